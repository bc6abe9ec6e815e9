//! The order in which one item leaves a site: debited, made, stored, bound in the ledger, and only then sent.
//! Pure: [`crate::contribute`] carries it out.
//!
//! An item whose round is debited already is never made again: its bytes are the stored ones or none. So noise is
//! drawn once a debit, and a retry sends the same bytes.

use crate::budget::Debit;
use crate::outbox::Stored;
use bytes::Bytes;
use weighhouse_shared::ids::ContentHash;

/// Bytes that were noised, paid for and stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaidBytes {
    /// The model they were made from.
    pub base: ContentHash,
    /// Their hash.
    pub content: ContentHash,
    /// What leaves.
    pub bytes: Bytes,
}

/// What was done.
#[derive(Debug)]
pub enum Event {
    /// What is stored for the item was looked up.
    Found(Option<Stored>),
    /// The round is debited; that is on disk.
    Debited(Debit),
    /// The bytes that the debit pays for.
    Made(Vec<u8>),
    /// The bytes are stored.
    Stored,
    /// The ledger says which bytes the debit paid for; that is on disk.
    Bound,
}

/// What to do next.
#[derive(Debug)]
pub enum Action {
    /// Look up what is stored for the item.
    Find,
    /// Debit the round.
    Debit,
    /// Make the bytes.
    Make(Debit),
    /// Store these bytes, made from the base model.
    Store {
        /// Their hash.
        content: ContentHash,
        /// The bytes.
        bytes: Bytes,
    },
    /// Bind these bytes in the ledger.
    Bind {
        /// Their hash.
        content: ContentHash,
        /// How many they are.
        len: u64,
    },
    /// These bytes may leave; None if the debit was spent on bytes that are lost, or made from another model where that
    /// is not good enough.
    Done(Option<PaidBytes>),
}

#[derive(Debug)]
enum Step {
    Finding,
    Debiting,
    Making,
    Storing(PaidBytes),
    Binding(PaidBytes),
    Done,
}

/// One item on its way out.
#[derive(Debug)]
pub struct Payment {
    base: ContentHash,
    any_base: bool,
    step: Step,
}

impl Payment {
    /// Begins for an item made from the model `base`, whose round is `debited` already or not. With `any_base`, what is
    /// stored may have been made from another model.
    pub fn begin(base: ContentHash, any_base: bool, debited: bool) -> (Self, Action) {
        let (step, action) =
            if debited { (Step::Finding, Action::Find) } else { (Step::Debiting, Action::Debit) };
        (Self { base, any_base, step }, action)
    }

    /// Takes what was done, returns what to do next. What comes out of turn ends it with nothing.
    pub fn handle(&mut self, event: Event) -> Action {
        let (step, action) = match (std::mem::replace(&mut self.step, Step::Done), event) {
            (Step::Finding, Event::Found(stored)) => {
                match stored.filter(|stored| self.any_base || stored.base == self.base) {
                    Some(Stored { base, content, bytes }) => bind(PaidBytes { base, content, bytes }),
                    None => (Step::Done, Action::Done(None)),
                }
            }
            (Step::Debiting, Event::Debited(debit)) => (Step::Making, Action::Make(debit)),
            (Step::Making, Event::Made(bytes)) => {
                let bytes = Bytes::from(bytes);
                let content = ContentHash::of(&bytes);
                let paid = PaidBytes { base: self.base, content, bytes: bytes.clone() };
                (Step::Storing(paid), Action::Store { content, bytes })
            }
            (Step::Storing(paid), Event::Stored) => bind(paid),
            (Step::Binding(paid), Event::Bound) => (Step::Done, Action::Done(Some(paid))),
            _ => (Step::Done, Action::Done(None)),
        };
        self.step = step;
        action
    }
}

fn bind(paid: PaidBytes) -> (Step, Action) {
    let (content, len) = (paid.content, paid.bytes.len() as u64);
    (Step::Binding(paid), Action::Bind { content, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::ledger::{Charge, Population};
    use weighhouse_shared::privacy::accountant::GaussianEvent;
    use weighhouse_shared::privacy::grid::Grid;
    use weighhouse_shared::privacy::{ClipNorm, Mechanism, NoiseMultiplier, SamplingRate};

    const BASE: ContentHash = ContentHash::from_bytes([1; 32]);

    fn debit() -> Debit {
        let noise_multiplier = NoiseMultiplier::new(5.0).unwrap();
        let sampling_rate = SamplingRate::new(1.0).unwrap();
        let event = GaussianEvent { noise_multiplier, sampling_rate, steps: 1 };
        let grid = Grid::new(ClipNorm::new(0.5).unwrap());
        let mechanism = Mechanism::clipped_gradient_sum(&grid, noise_multiplier);
        Debit::for_test(Charge { population: Population::Training, event }, mechanism)
    }

    #[test]
    fn nothing_is_made_before_its_debit_and_nothing_leaves_before_it_is_stored_and_bound() {
        let (mut payment, first) = Payment::begin(BASE, false, false);
        assert!(matches!(first, Action::Debit));
        assert!(matches!(payment.handle(Event::Debited(debit())), Action::Make(_)));
        let content = ContentHash::of(b"noised");
        let stored = payment.handle(Event::Made(b"noised".to_vec()));
        assert!(matches!(stored, Action::Store { content: of, .. } if of == content));
        assert!(matches!(payment.handle(Event::Stored), Action::Bind { len: 6, .. }));
        let Action::Done(Some(paid)) = payment.handle(Event::Bound) else { panic!("it is paid") };
        assert_eq!(paid, PaidBytes { base: BASE, content, bytes: b"noised".as_slice().into() });
    }

    #[test]
    fn a_debited_item_is_the_stored_one_of_a_model_that_will_do_or_none_and_is_never_made_again() {
        let stored = |base| Stored { base, content: ContentHash::of(b"a"), bytes: b"a".as_slice().into() };
        let other = ContentHash::of(b"");
        for (found, any_base, leaves) in [
            (Some(stored(BASE)), false, true),
            (Some(stored(other)), false, false),
            (Some(stored(other)), true, true),
            (None, false, false),
            (None, true, false),
        ] {
            let (mut payment, first) = Payment::begin(BASE, any_base, true);
            assert!(matches!(first, Action::Find));
            match payment.handle(Event::Found(found)) {
                Action::Bind { .. } => assert!(leaves),
                Action::Done(None) => assert!(!leaves),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_comes_out_of_turn_sends_nothing() {
        for event in [Event::Bound, Event::Stored, Event::Made(vec![1]), Event::Found(None)] {
            let (mut payment, _) = Payment::begin(BASE, false, false);
            assert!(matches!(payment.handle(event), Action::Done(None)));
            assert!(matches!(payment.handle(Event::Bound), Action::Done(None)));
        }
    }
}
