//! The order in which one item leaves a site: debited, made, stored, bound in the ledger, and only then sent.
//! Pure: [`crate::contribute`] carries it out.
//!
//! An item whose round is debited already is never made again: its bytes are the stored ones or none. So noise is
//! drawn once a debit, and a retry sends the same bytes.

use crate::budget::Debit;
use crate::outbox::Stored;
use bytes::Bytes;
use weighhouse_shared::ids::ContentHash;

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
    /// These bytes may leave; None if the debit was spent on bytes that are lost or made from another model.
    Done(Option<(ContentHash, Bytes)>),
}

#[derive(Debug)]
enum Step {
    Finding,
    Debiting,
    Making,
    Storing(ContentHash, Bytes),
    Binding(ContentHash, Bytes),
    Done,
}

/// One item on its way out.
#[derive(Debug)]
pub struct Payment {
    base: ContentHash,
    step: Step,
}

impl Payment {
    /// Begins for an item made from the model `base`, whose round is `debited` already or not.
    pub fn begin(base: ContentHash, debited: bool) -> (Self, Action) {
        let (step, action) =
            if debited { (Step::Finding, Action::Find) } else { (Step::Debiting, Action::Debit) };
        (Self { base, step }, action)
    }

    /// Takes what was done, returns what to do next. What comes out of turn ends it with nothing.
    pub fn handle(&mut self, event: Event) -> Action {
        let (step, action) = match (std::mem::replace(&mut self.step, Step::Done), event) {
            (Step::Finding, Event::Found(stored)) => match stored.filter(|stored| stored.base == self.base) {
                Some(Stored { content, bytes, .. }) => bind(content, bytes),
                None => (Step::Done, Action::Done(None)),
            },
            (Step::Debiting, Event::Debited(debit)) => (Step::Making, Action::Make(debit)),
            (Step::Making, Event::Made(bytes)) => {
                let bytes = Bytes::from(bytes);
                let content = ContentHash::of(&bytes);
                (Step::Storing(content, bytes.clone()), Action::Store { content, bytes })
            }
            (Step::Storing(content, bytes), Event::Stored) => bind(content, bytes),
            (Step::Binding(content, bytes), Event::Bound) => {
                (Step::Done, Action::Done(Some((content, bytes))))
            }
            _ => (Step::Done, Action::Done(None)),
        };
        self.step = step;
        action
    }
}

fn bind(content: ContentHash, bytes: Bytes) -> (Step, Action) {
    let len = bytes.len() as u64;
    (Step::Binding(content, bytes), Action::Bind { content, len })
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
        let (mut payment, first) = Payment::begin(BASE, false);
        assert!(matches!(first, Action::Debit));
        assert!(matches!(payment.handle(Event::Debited(debit())), Action::Make(_)));
        let content = ContentHash::of(b"noised");
        let stored = payment.handle(Event::Made(b"noised".to_vec()));
        assert!(matches!(stored, Action::Store { content: of, .. } if of == content));
        assert!(matches!(payment.handle(Event::Stored), Action::Bind { len: 6, .. }));
        let Action::Done(Some((of, bytes))) = payment.handle(Event::Bound) else { panic!("it is paid") };
        assert_eq!((of, &bytes[..]), (content, b"noised".as_slice()));
    }

    #[test]
    fn a_debited_item_is_the_stored_one_of_the_same_model_or_none_and_is_never_made_again() {
        let stored = |base| Stored { base, content: ContentHash::of(b"a"), bytes: b"a".as_slice().into() };
        for (found, leaves) in
            [(Some(stored(BASE)), true), (Some(stored(ContentHash::of(b""))), false), (None, false)]
        {
            let (mut payment, first) = Payment::begin(BASE, true);
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
            let (mut payment, _) = Payment::begin(BASE, false);
            assert!(matches!(payment.handle(event), Action::Done(None)));
            assert!(matches!(payment.handle(Event::Bound), Action::Done(None)));
        }
    }
}
