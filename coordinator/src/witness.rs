//! What the coordinator knows of one site's ledger: heads in, verdicts and witnesses out. Pure: no clock, no store.

use std::collections::BTreeMap;
use weighhouse_shared::ids::{JobId, RoundId, SiteId};
use weighhouse_shared::ledger::{Head, Received, SignedWitness, Witness};
use weighhouse_shared::wire::messages::HeadVerdict;

/// The most contents that one witness names: far more than a site sends between two of them.
const MAX_RECEIVED: usize = 64;

/// One site's ledger as seen from here.
#[derive(Debug)]
pub struct LedgerWatch {
    site: SiteId,
    /// The newest that is stored.
    newest: Option<SignedWitness>,
    /// The last head that followed.
    told: Option<Head>,
    /// What came since the newest witness.
    received: Vec<Received>,
    /// The round of each job whose contribution may come, in this connection.
    announced: BTreeMap<JobId, RoundId>,
}

impl LedgerWatch {
    /// Goes on from the newest stored witness.
    pub fn of(site: SiteId, newest: Option<SignedWitness>) -> Self {
        Self { site, newest, told: None, received: Vec::new(), announced: BTreeMap::new() }
    }

    /// The newest stored witness.
    pub fn newest(&self) -> Option<&SignedWitness> {
        self.newest.as_ref()
    }

    fn furthest(&self) -> Option<Head> {
        let witnessed = self.newest.as_ref().map(|signed| signed.witness.head);
        witnessed.into_iter().chain(self.told).max_by_key(|head| head.entries)
    }

    /// The site, whose signature was checked, tells how far its ledger has come. Nothing changes if that
    /// cannot follow what was told or witnessed before.
    pub fn hear(&mut self, head: Head) -> HeadVerdict {
        let verdict = match self.furthest() {
            Some(seen) if head.entries < seen.entries => HeadVerdict::SetBack,
            Some(seen) if head.entries == seen.entries && head.hash != seen.hash => HeadVerdict::Rewritten,
            _ => HeadVerdict::Follows,
        };
        if verdict == HeadVerdict::Follows {
            self.told = Some(head);
        }
        verdict
    }

    /// A connection begins or ends: what was announced is announced again.
    pub fn reset(&mut self) {
        self.announced.clear();
    }

    /// A head came for the contribution to `round` of `job`.
    pub fn announce(&mut self, job: JobId, round: RoundId) {
        self.announced.insert(job, round);
    }

    /// The round of `job` whose contribution was announced last.
    pub fn announced(&self, job: JobId) -> Option<RoundId> {
        self.announced.get(&job).copied()
    }

    /// Something came from the site. What comes again is named once.
    pub fn receive(&mut self, received: Received) {
        if self.received.len() < MAX_RECEIVED && !self.received.contains(&received) {
            self.received.push(received);
        }
    }

    /// What is not witnessed yet, if anything: a head further than the newest witness, or something
    /// received since. A witness of the same head replaces the newest and names all that it names.
    pub fn unwitnessed(&self, time_s: u64) -> Option<Witness> {
        let head = self.told?;
        let same = self.newest.as_ref().map(|signed| &signed.witness).filter(|newest| newest.head == head);
        let mut received = same.map_or_else(Vec::new, |newest| newest.received.clone());
        let known = received.len();
        let fresh: Vec<_> = self.received.iter().filter(|item| !received.contains(item)).cloned().collect();
        received.extend(fresh);
        received.truncate(MAX_RECEIVED);
        if same.is_some() && received.len() == known {
            return None;
        }
        Some(Witness { site: self.site, head, time_s, received })
    }

    /// `signed`, made of [`LedgerWatch::unwitnessed`], is on disk.
    pub fn keep(&mut self, signed: SignedWitness) {
        self.newest = Some(signed);
        self.received.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::ids::ContentHash;
    use weighhouse_shared::ledger::ReleaseKind;

    const JOB: JobId = JobId::from_bytes([1; 32]);

    fn head(entries: u64) -> Head {
        Head { entries, hash: ContentHash::of(&entries.to_le_bytes()) }
    }

    fn received(content: &[u8]) -> Received {
        let (kind, content, len) = (ReleaseKind::Update, ContentHash::of(content), content.len() as u64);
        Received { job: JOB, round: RoundId(0), kind, content, len }
    }

    fn watch() -> LedgerWatch {
        LedgerWatch::of(SiteId::from_bytes([2; 32]), None)
    }

    fn keep(watch: &mut LedgerWatch) -> Witness {
        let witness = watch.unwitnessed(7).unwrap();
        watch.keep(SignedWitness { witness: witness.clone(), signature: String::new() });
        witness
    }

    #[test]
    fn a_ledger_that_only_grows_always_follows_and_one_that_does_not_never_does() {
        let mut watch = watch();
        for entries in [0, 1, 1, 4, 9] {
            assert_eq!(watch.hear(head(entries)), HeadVerdict::Follows);
        }
        keep(&mut watch);
        let mut restarted = LedgerWatch::of(watch.site, watch.newest.clone());
        for watch in [&mut watch, &mut restarted] {
            assert_eq!(watch.hear(head(8)), HeadVerdict::SetBack);
            let other = Head { hash: ContentHash::of(b"other"), ..head(9) };
            assert_eq!(watch.hear(other), HeadVerdict::Rewritten);
            assert_eq!(watch.hear(head(9)), HeadVerdict::Follows, "the newest ledger is back");
            assert_eq!(watch.hear(head(12)), HeadVerdict::Follows);
        }
    }

    #[test]
    fn a_head_that_was_told_and_not_yet_witnessed_counts_too_and_leaves_a_witness() {
        let mut watch = watch();
        watch.hear(head(5));
        assert_eq!(watch.hear(head(3)), HeadVerdict::SetBack);
        assert_eq!(watch.unwitnessed(7).unwrap().head, head(5));
    }

    #[test]
    fn everything_received_is_named_by_a_witness_once() {
        let mut watch = watch();
        assert_eq!(watch.unwitnessed(7), None);
        watch.hear(head(3));
        for content in [b"a", b"b", b"a"] {
            watch.receive(received(content));
        }
        assert_eq!(keep(&mut watch).received, [received(b"a"), received(b"b")]);
        assert_eq!(watch.unwitnessed(8), None, "nothing is new");

        // What comes late for the same head joins its witness; sent again, it adds nothing.
        watch.receive(received(b"c"));
        assert_eq!(keep(&mut watch).received, [received(b"a"), received(b"b"), received(b"c")]);
        watch.receive(received(b"c"));
        assert_eq!(watch.unwitnessed(8), None);

        watch.hear(head(4));
        assert_eq!(keep(&mut watch).received, [received(b"c")]);
    }

    #[test]
    fn no_site_makes_a_witness_long() {
        let mut watch = watch();
        watch.hear(head(1));
        for round in 0..3 {
            for item in 0..MAX_RECEIVED + 5 {
                watch.receive(received(format!("{round} {item}").as_bytes()));
            }
            if let Some(witness) = watch.unwitnessed(7) {
                assert!(witness.received.len() <= MAX_RECEIVED);
                watch.keep(SignedWitness { witness, signature: String::new() });
            }
        }
    }
}
