//! What must outlive the coordinator of a job's secure sums: the roster, the newest batch, and the masked sum of a round
//! with whose updates are in it, from before the first of them is asked until the round is committed.

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

fn key(job: JobId, kind: u8, rest: &[u8]) -> Vec<u8> {
    [job.as_bytes().as_slice(), &[kind], rest].concat()
}

impl Store {
    fn sum_value<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        let value = self.sums.get(key).map_err(|source| self.failed(source))?;
        value.map(|value| codec::decode(&value).map_err(|_| self.damaged(TREE))).transpose()
    }

    /// Keeps the keys of a job's roster.
    pub fn put_sum_roster(&self, job: JobId, keys: &[SignedKey]) -> Result<(), StoreError> {
        self.put(&self.sums, &key(job, ROSTER, &[]), &keys)
    }

    /// The keys of a job's roster, if it is fixed.
    pub fn sum_roster(&self, job: JobId) -> Result<Option<Vec<SignedKey>>, StoreError> {
        self.sum_value(&key(job, ROSTER, &[]))
    }

    /// Keeps a job's newest batch in the place of the one before.
    pub fn put_sum_batch(&self, job: JobId, batch: &Batch) -> Result<(), StoreError> {
        let of_batch = |number: u32| key(job, OFFER, &number.to_be_bytes());
        for (site, offer) in &batch.offers {
            let place = [of_batch(batch.number), site.to_be_bytes().to_vec()].concat();
            self.put(&self.sums, &place, offer)?;
        }
        let before: Option<u32> = self.sum_value(&key(job, BATCH, &[]))?;
        // Whole by now: from here on it is the newest.
        self.put(&self.sums, &key(job, BATCH, &[]), &batch.number)?;
        match before.filter(|before| *before != batch.number) {
            Some(before) => self.forget_sum_values(&of_batch(before)),
            None => Ok(()),
        }
    }

    /// A job's newest batch.
    pub fn sum_batch(&self, job: JobId) -> Result<Option<Batch>, StoreError> {
        let Some(number) = self.sum_value::<u32>(&key(job, BATCH, &[]))? else { return Ok(None) };
        let prefix = key(job, OFFER, &number.to_be_bytes());
        let offers = self.all(self.sums.scan_prefix(&prefix), TREE)?.into_iter().map(|(key, offer)| {
            let site = key.as_ref()[prefix.len()..].try_into().map_err(|_| self.damaged(TREE))?;
            Ok((u16::from_be_bytes(site), offer))
        });
        Ok(Some(Batch { number, offers: offers.collect::<Result<_, StoreError>>()? }))
    }

    /// Keeps the masked sum of a round, which came of these sites.
    pub fn put_sum(
        &self,
        job: JobId,
        round: RoundId,
        survivors: Vec<SiteId>,
        values: &[u32],
    ) -> Result<(), StoreError> {
        // With the round in front no two sums have one hash, and none is taken for a model.
        let mut bytes = super::round_key(job, round);
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let sum = ContentHash::of(&bytes);
        self.put_model(sum, &bytes)?;
        self.put(&self.sums, &key(job, ROUND, &[]), &KeptSum { round, survivors, sum })
    }

    /// The round whose masked sum is kept.
    pub fn kept_sum(&self, job: JobId) -> Result<Option<KeptSum>, StoreError> {
        self.sum_value(&key(job, ROUND, &[]))
    }

    /// The masked sum itself, checked.
    pub fn sum_values(&self, job: JobId, kept: &KeptSum) -> Result<Vec<u32>, StoreError> {
        let bytes = self.model(kept.sum)?;
        let values = bytes.strip_prefix(super::round_key(job, kept.round).as_slice());
        let (values, rest) = values.ok_or_else(|| self.damaged(TREE))?.as_chunks::<4>();
        let whole = rest.is_empty().then(|| values.iter().map(|value| u32::from_le_bytes(*value)).collect());
        whole.ok_or_else(|| self.damaged(TREE))
    }

    /// Drops the kept sum of a job: its round is committed, or given up.
    pub fn forget_sum(&self, job: JobId) -> Result<(), StoreError> {
        let Some(kept) = self.kept_sum(job)? else { return Ok(()) };
        match self.forget_model(kept.sum) {
            // Its record was to go right after it, and the process was killed between the two.
            Err(StoreError::Sync { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
        self.sums.remove(key(job, ROUND, &[])).map(|_| ()).map_err(|source| self.failed(source))
    }

    /// Drops all that is kept of a job's secure sums.
    pub fn forget_sums(&self, job: JobId) -> Result<(), StoreError> {
        self.forget_sum(job)?;
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
        for id in [job, other] {
            store().put_sum_roster(id, &keys).unwrap();
            for (number, sites) in [(0, [0, 1, 300]), (1, [1, 2, 700])] {
                store().put_sum_batch(id, &batch(number, &sites)).unwrap();
                assert_eq!(store().sum_batch(id).unwrap(), Some(batch(number, &sites)));
            }
            store().put_sum(id, RoundId(8), vec![SiteId::from_bytes([9; 32])], &[1, u32::MAX]).unwrap();
        }
        let kept = store().kept_sum(job).unwrap().unwrap();
        assert_eq!((kept.round, kept.survivors.len()), (RoundId(8), 1));
        assert_eq!(store().sum_values(job, &kept).unwrap(), [1, u32::MAX]);
        store().forget_sum(job).unwrap();
        assert_eq!(store().kept_sum(job).unwrap(), None);
        assert!(store().sum_values(job, &kept).is_err());
        store().forget_sums(job).unwrap();
        assert_eq!((store().sum_roster(job).unwrap(), store().sum_batch(job).unwrap()), (None, None));
        assert_eq!(store().sum_roster(other).unwrap(), Some(keys));
        assert!(store().kept_sum(other).unwrap().is_some());
    }
}
