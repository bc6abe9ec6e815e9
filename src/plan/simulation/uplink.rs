//! From simulated sites to one update: the contract's compression, the coordinator's own admission and strategy.

use anyhow::{Result, anyhow};
use std::sync::Arc;
use tempfile::TempDir;
use weighhouse_coordinator::admission::Arriving;
use weighhouse_coordinator::aggregate::Aggregate;
use weighhouse_coordinator::spool::Spool;
use weighhouse_shared::compression::{Compression, Encoding};
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::job::{JobContract, Rule, UPDATE_LIMIT, UPDATE_STEP};
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::wire::stream::Piece;

/// The way of updates that are compressed, bounded or combined by another rule than the mean.
pub struct Uplink {
    encoding: Encoding,
    aggregate: Aggregate,
    /// What compression left out, by site.
    left: Vec<Vec<i32>>,
    spool: Arc<Spool>,
    _folder: TempDir,
}

impl Uplink {
    /// For so many sites; None if updates only have to be averaged.
    pub fn of(contract: &JobContract, sites: usize) -> Result<Option<Self>> {
        let federation = &contract.federation;
        let plain = federation.compression == Compression::None && federation.norm_bound.is_none();
        if plain && federation.strategy.rule() == Rule::Mean {
            return Ok(None);
        }
        let encoding = contract.update_encoding()?;
        let parameters = encoding.parameters as usize;
        let folder = tempfile::tempdir()?;
        let spool = Spool::new(folder.path().into());
        let aggregate = Aggregate::new(parameters, federation, &spool)?;
        let left = vec![vec![0; parameters]; if encoding.compression.has_feedback() { sites } else { 0 }];
        Ok(Some(Self { encoding, aggregate, left, spool, _folder: folder }))
    }

    /// Sends the `changes` of one site.
    pub fn send(
        &mut self,
        site: usize,
        changes: impl Iterator<Item = f64>,
        generator: &mut Generator,
    ) -> Result<()> {
        let limit = f64::from(UPDATE_LIMIT);
        let mut values: Vec<i32> =
            changes.map(|change| (change / UPDATE_STEP).round().clamp(-limit, limit) as i32).collect();
        if let Some(left) = self.left.get(site) {
            values.iter_mut().zip(left).for_each(|(value, left)| *value = value.saturating_add(*left));
        }
        let body = self.encoding.compression.encode(&mut values, UPDATE_LIMIT, generator);
        if let Some(left) = self.left.get_mut(site) {
            *left = values;
        }
        let piece = Piece {
            job: JobId::from_bytes([0; 32]),
            round: RoundId(0),
            base: ContentHash::from_bytes([0; 32]),
            content: ContentHash::of(&body),
            total: body.len() as u64,
            offset: 0,
            len: 0,
        };
        let refused = |outcome| anyhow!("a simulated update was refused: {outcome}");
        let mut arriving = Arriving::begin(piece, self.encoding, &self.spool)?.map_err(refused)?;
        arriving.push(&body)?;
        let update = arriving.finish()?.and_then(|parsed| parsed.admit(Ok(()))).map_err(refused)?;
        Ok(self.aggregate.add(update, 0)?)
    }

    /// What all that was sent comes to, put into `change`; the next round begins.
    pub fn receive(&mut self, change: &mut [f64]) -> Result<()> {
        if let Some(combined) = self.aggregate.combine()? {
            let scale = UPDATE_STEP / combined.divisor as f64;
            change.iter_mut().zip(combined.sums).for_each(|(change, sum)| *change = *sum as f64 * scale);
        }
        Ok(self.aggregate.clear()?)
    }
}
