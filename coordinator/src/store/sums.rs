//! What must outlive the coordinator of a job's secure sums, of each group: the roster, the newest batch, and the masked sum of
//! a round with whose updates are in it, from before the first of them is asked until the round is committed.
//!
//! Keys begin with the job. What is of the first group follows right behind it, as in jobs that have one sum over all; what is
//! of another behind the group's number.

use super::{Store, StoreError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId, SiteId};
use weighhouse_shared::secure_sum::coordinator::Batch;
use weighhouse_shared::secure_sum::keys::SignedKey;
use weighhouse_shared::wire::codec;

const TREE: &str = "secure-sums-1";
const ROSTER: u8 = b'k';
const BATCH: u8 = b'b';
const OFFER: u8 = b'o';
const ROUND: u8 = b'r';
const GROUP: u8 = b'g';

/// Whose sums: of a job and one group of its members, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SumGroup {
    /// The job.
    pub job: JobId,
    /// The group.
    pub group: u16,
}

impl SumGroup {
    /// What stands between the job and all else.
    fn place(self) -> Vec<u8> {
        match self.group {
            0 => Vec::new(),
            group => [&[GROUP][..], &group.to_be_bytes()].concat(),
        }
    }
}

/// A round whose masked sum is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSum {
    /// The round.
    pub round: RoundId,
    /// Whose updates are in it, ascending.
    pub survivors: Vec<SiteId>,
    /// Under which hash it is kept.
    sum: ContentHash,
}

fn key(of: SumGroup, kind: u8, rest: &[u8]) -> Vec<u8> {
    [of.job.as_bytes().as_slice(), &of.place(), &[kind], rest].concat()
}

/// What the bytes of a masked sum begin with: no two sums have one hash, and none is taken for a model.
fn sum_prefix(of: SumGroup, round: RoundId) -> Vec<u8> {
    [super::round_key(of.job, round), of.place()].concat()
}

impl Store {
    fn sum_value<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        let value = self.sums.get(key).map_err(|source| self.failed(source))?;
        value.map(|value| codec::decode(&value).map_err(|_| self.damaged(TREE))).transpose()
    }

    /// Keeps the keys of a group's roster.
    pub fn put_sum_roster(&self, of: SumGroup, keys: &[SignedKey]) -> Result<(), StoreError> {
        self.put(&self.sums, &key(of, ROSTER, &[]), &keys)
    }

    /// The keys of a group's roster, if it is fixed.
    pub fn sum_roster(&self, of: SumGroup) -> Result<Option<Vec<SignedKey>>, StoreError> {
        self.sum_value(&key(of, ROSTER, &[]))
    }

    /// Keeps a group's newest batch in the place of the one before.
    pub fn put_sum_batch(&self, of: SumGroup, batch: &Batch) -> Result<(), StoreError> {
        let of_batch = |number: u32| key(of, OFFER, &number.to_be_bytes());
        for (site, offer) in &batch.offers {
            let place = [of_batch(batch.number), site.to_be_bytes().to_vec()].concat();
            self.put(&self.sums, &place, offer)?;
        }
        let before: Option<u32> = self.sum_value(&key(of, BATCH, &[]))?;
        // Whole by now: from here on it is the newest.
        self.put(&self.sums, &key(of, BATCH, &[]), &batch.number)?;
        match before.filter(|before| *before != batch.number) {
            Some(before) => self.forget_sum_values(&of_batch(before)),
            None => Ok(()),
        }
    }

    /// A group's newest batch.
    pub fn sum_batch(&self, of: SumGroup) -> Result<Option<Batch>, StoreError> {
        let Some(number) = self.sum_value::<u32>(&key(of, BATCH, &[]))? else { return Ok(None) };
        let prefix = key(of, OFFER, &number.to_be_bytes());
        let offers = self.all(self.sums.scan_prefix(&prefix), TREE)?.into_iter().map(|(key, offer)| {
            let site = key.as_ref()[prefix.len()..].try_into().map_err(|_| self.damaged(TREE))?;
            Ok((u16::from_be_bytes(site), offer))
        });
        Ok(Some(Batch { number, offers: offers.collect::<Result<_, StoreError>>()? }))
    }

    /// Keeps the masked sum of a round, which came of these sites.
    pub fn put_sum(
        &self,
        of: SumGroup,
        round: RoundId,
        survivors: Vec<SiteId>,
        values: &[u32],
    ) -> Result<(), StoreError> {
        let mut bytes = sum_prefix(of, round);
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let sum = ContentHash::of(&bytes);
        self.put_model(sum, &bytes)?;
        self.put(&self.sums, &key(of, ROUND, &[]), &KeptSum { round, survivors, sum })
    }

    /// The round whose masked sum is kept.
    pub fn kept_sum(&self, of: SumGroup) -> Result<Option<KeptSum>, StoreError> {
        self.sum_value(&key(of, ROUND, &[]))
    }

    /// The masked sum itself, checked.
    pub fn sum_values(&self, of: SumGroup, kept: &KeptSum) -> Result<Vec<u32>, StoreError> {
        let bytes = self.model(kept.sum)?;
        let values = bytes.strip_prefix(sum_prefix(of, kept.round).as_slice());
        let (values, rest) = values.ok_or_else(|| self.damaged(TREE))?.as_chunks::<4>();
        let whole = rest.is_empty().then(|| values.iter().map(|value| u32::from_le_bytes(*value)).collect());
        whole.ok_or_else(|| self.damaged(TREE))
    }

    /// Drops the kept sum of a group: its round is committed, or given up.
    pub fn forget_sum(&self, of: SumGroup) -> Result<(), StoreError> {
        let Some(kept) = self.kept_sum(of)? else { return Ok(()) };
        match self.forget_model(kept.sum) {
            // Its record was to go right after it, and the process was killed between the two.
            Err(StoreError::Sync { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
        self.sums.remove(key(of, ROUND, &[])).map(|_| ()).map_err(|source| self.failed(source))
    }

    /// Drops the kept sums of all groups of a job, whichever they are.
    fn forget_round_sums(&self, job: JobId) -> Result<(), StoreError> {
        for entry in self.sums.scan_prefix(job.as_bytes()) {
            let (found, _) = entry.map_err(|source| self.failed(source))?;
            match found.as_ref()[job.as_bytes().len()..] {
                [ROUND] => self.forget_sum(SumGroup { job, group: 0 })?,
                [GROUP, high, low, ROUND] => {
                    self.forget_sum(SumGroup { job, group: u16::from_be_bytes([high, low]) })?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Drops all that is kept of a job's secure sums.
    pub fn forget_sums(&self, job: JobId) -> Result<(), StoreError> {
        self.forget_round_sums(job)?;
        self.forget_sum_values(job.as_bytes())
    }

    fn forget_sum_values(&self, prefix: &[u8]) -> Result<(), StoreError> {
        for entry in self.sums.scan_prefix(prefix) {
            let (key, _) = entry.map_err(|source| self.failed(source))?;
            self.sums.remove(key).map_err(|source| self.failed(source))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryDisk;
    use super::*;
    use std::collections::BTreeMap;
    use weighhouse_shared::secure_sum::batch::Offer;

    fn batch(number: u32, sites: &[u16]) -> Batch {
        let offer = |site: &u16| {
            let sealed = vec![vec![*site as u8; 3]];
            (*site, Offer { batch: number, publics: vec![], commitments: vec![], sealed })
        };
        Batch { number, offers: sites.iter().map(offer).collect::<BTreeMap<_, _>>() }
    }

    #[test]
    fn what_is_kept_of_sums_is_there_again_and_goes_with_its_job() {
        let disk = MemoryDisk::default();
        let store = || Store::in_memory(&disk).unwrap();
        let [job, other] = [1, 2].map(|byte| JobId::from_bytes([byte; 32]));
        let keys = vec![SignedKey { identity: [1; 32], key: [2; 32], signature: vec![3] }];
        let of = |job, group| SumGroup { job, group };
        // 111 is the byte of an offer's key.
        let groups = [of(job, 0), of(job, 1), of(job, 111), of(other, 0), of(other, 1)];
        for of in groups {
            let group = of.group;
            store().put_sum_roster(of, &keys).unwrap();
            for (number, sites) in [(0, [0, 1, 300 + group]), (1, [1, 2, 700 + group])] {
                store().put_sum_batch(of, &batch(number, &sites)).unwrap();
                assert_eq!(store().sum_batch(of).unwrap(), Some(batch(number, &sites)));
            }
            store().put_sum(of, RoundId(8), vec![SiteId::from_bytes([9; 32])], &[1, u32::MAX]).unwrap();
        }
        for of in groups {
            let newest = batch(1, &[1, 2, 700 + of.group]);
            assert_eq!(store().sum_batch(of).unwrap(), Some(newest), "{of:?}");
        }
        let kept = groups.map(|of| store().kept_sum(of).unwrap().unwrap());
        assert_eq!((kept[0].round, kept[0].survivors.len()), (RoundId(8), 1));
        assert_eq!(store().sum_values(groups[0], &kept[0]).unwrap(), [1, u32::MAX]);
        store().forget_sum(groups[0]).unwrap();
        assert_eq!(store().kept_sum(groups[0]).unwrap(), None);
        assert!(store().sum_values(groups[0], &kept[0]).is_err());
        // Equal sums of other groups are still there.
        assert_eq!(store().sum_values(groups[1], &kept[1]).unwrap(), [1, u32::MAX]);
        store().forget_round_sums(job).unwrap();
        assert_eq!(store().kept_sum(groups[2]).unwrap(), None);
        assert!(store().sum_values(groups[2], &kept[2]).is_err());
        assert!(store().sum_batch(groups[2]).unwrap().is_some());
        store().forget_sums(job).unwrap();
        for of in &groups[..3] {
            assert_eq!((store().sum_roster(*of).unwrap(), store().sum_batch(*of).unwrap()), (None, None));
        }
        for of in &groups[3..] {
            assert_eq!(store().sum_roster(*of).unwrap(), Some(keys.clone()));
            assert!(store().kept_sum(*of).unwrap().is_some());
        }
    }

    /// What a coordinator of an earlier release wrote is found.
    #[test]
    fn the_first_groups_keys_are_those_of_one_sum_over_all() {
        let job = JobId::from_bytes([7; 32]);
        let first = key(SumGroup { job, group: 0 }, OFFER, &[1, 2]);
        assert_eq!(first, [&[7; 32][..], b"o", &[1, 2]].concat());
        let third = key(SumGroup { job, group: 2 }, OFFER, &[1, 2]);
        assert_eq!(third, [&[7; 32][..], b"g\x00\x02o", &[1, 2]].concat());
    }
}
