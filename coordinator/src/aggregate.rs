//! From a round's updates to one: integers throughout, so any order and any thread count give the same bits.
//!
//! The mean is a running sum: one accumulator however many sites there are. Rules that need all updates at once keep
//! them as the rows of one file in the spool folder and read it in blocks of columns.
//!
//! **Memory**, for n sites and p parameters: 8 p bytes for what comes out; for rules that keep updates beside that
//! [`WORK_LEN`] bytes for a block, and for those that compare all updates 16 n^2 bytes of distances. The file has
//! 4 n p bytes.

mod norm;
mod rules;

use crate::admission::AdmittedUpdate;
use crate::spool::{Spool, SpoolFile};
use norm::SquaredNorm;
use std::io;
use std::sync::Arc;
use weighhouse_shared::ids::ContentHash;
use weighhouse_shared::job::{
    Federation, FederationSchedule, Rule, UPDATE_STEP, WHOLE_WEIGHT, staleness_weight,
};
use weighhouse_shared::model::vectorised;

/// Bytes of the block of columns that a rule works on at a time.
pub const WORK_LEN: usize = 16 << 20;

/// A round's updates so far.
#[derive(Debug)]
pub struct Aggregate {
    rule: Rule,
    /// In update steps.
    norm_bound: Option<f64>,
    sum: Vec<i64>,
    updates: u32,
    /// What updates are multiplied by: their weights' unit.
    unit: u32,
    /// For rules that need all updates.
    rows: Option<Rows>,
}

/// What a round comes to: an update of `sums` over `divisor`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Combined<'a> {
    /// One a parameter.
    pub sums: &'a [i64],
    /// At least 1.
    pub divisor: u64,
    /// Units of the model's parameters in one of them.
    pub unit: f64,
}

impl Aggregate {
    /// Of no update yet, for a model of `parameters` parameters. Kept updates are in a file of `spool`.
    pub fn new(parameters: usize, federation: &Federation, spool: &Arc<Spool>) -> io::Result<Self> {
        let rule = federation.strategy.rule();
        let rows = match rule {
            Rule::Mean => None,
            _ => Some(Rows { file: spool.file()?, parameters, contents: Vec::new() }),
        };
        let norm_bound = federation.norm_bound.map(|bound| bound / UPDATE_STEP);
        let unit = match federation.schedule {
            FederationSchedule::Synchronous => 1,
            FederationSchedule::Buffered { .. } => WHOLE_WEIGHT,
        };
        Ok(Self { rule, norm_bound, sum: vec![0; parameters], updates: 0, unit, rows })
    }

    /// Adds an update that was made `staleness` versions ago, which counts with the buffered schedule only; returns the
    /// memory that it was in, if it was in memory. It was parsed before, so nothing in it can fail half-way but the
    /// disk; on an error the aggregate must be given up.
    pub fn add(&mut self, mut update: AdmittedUpdate, staleness: u32) -> io::Result<Vec<u8>> {
        let weight = if self.unit == 1 { 1 } else { i64::from(staleness_weight(staleness)) };
        let factor = match self.norm_bound {
            None => None,
            Some(bound) => {
                let mut norm = SquaredNorm::default();
                update.read(|part| {
                    norm.add(part.as_chunks::<4>().0);
                    Ok(())
                })?;
                norm.factor_to(bound)
            }
        };
        self.updates += 1;
        match &mut self.rows {
            None => {
                let mut rest = self.sum.as_mut_slice();
                update.read(|part| {
                    let (values, _) = part.as_chunks::<4>();
                    let sums = rest.split_off_mut(..values.len()).ok_or(io::ErrorKind::InvalidData)?;
                    add_to_sums(sums, values, weight, factor);
                    Ok(())
                })?;
            }
            Some(rows) => {
                rows.contents.push(update.content);
                let mut block = Vec::new();
                update.read(|part| {
                    let Some(factor) = factor else { return rows.file.write(part) };
                    let values = part.as_chunks::<4>().0.iter();
                    block.clear();
                    block.extend(values.flat_map(|value| scaled(*value, factor).to_le_bytes()));
                    rows.file.write(&block)
                })?;
            }
        }
        Ok(update.into_memory())
    }

    /// What the updates come to; None if there are none. Takes the time of comparing all of them if the rule does.
    pub fn combine(&mut self) -> io::Result<Option<Combined<'_>>> {
        if self.updates == 0 {
            return Ok(None);
        }
        let divisor = match &self.rows {
            None => u64::from(self.updates) * u64::from(self.unit),
            Some(rows) => rules::combine(self.rule, rows, &mut self.sum)?.into(),
        };
        Ok(Some(Combined { sums: &self.sum, divisor, unit: UPDATE_STEP }))
    }

    /// Takes over the updates of `other`, which is empty afterwards. Both are of one job, by a rule that keeps no updates.
    pub fn take(&mut self, other: &mut Self) -> io::Result<()> {
        vectorised(
            #[inline(always)]
            || self.sum.iter_mut().zip(&other.sum).for_each(|(sum, other)| *sum += other),
        );
        self.updates += other.updates;
        other.clear()
    }

    /// Forgets all updates and keeps the memory and the file.
    pub fn clear(&mut self) -> io::Result<()> {
        if self.updates > 0 {
            self.sum.fill(0);
            self.updates = 0;
            if let Some(rows) = &mut self.rows {
                rows.contents.clear();
                rows.file.restart()?;
            }
        }
        Ok(())
    }

    /// Whether the rule compares updates, which takes long if they are many.
    pub fn compares(&self) -> bool {
        self.rows.is_some()
    }

    /// How many updates are in it.
    pub fn updates(&self) -> u32 {
        self.updates
    }
}

/// Towards zero, so that rounding cannot lift an update over the bound again.
#[inline(always)]
fn scaled(value: [u8; 4], factor: f64) -> i32 {
    (f64::from(i32::from_le_bytes(value)) * factor) as i32
}

/// Adds `weight` times each value to its sum. Each value is at most 2^29, a weight at most 2^16, and there are at most
/// 2^17 sites: 2^62.
fn add_to_sums(sums: &mut [i64], values: &[[u8; 4]], weight: i64, factor: Option<f64>) {
    vectorised(
        #[inline(always)]
        || {
            let pairs = sums.iter_mut().zip(values);
            // A loop for each case: one for all would multiply by a factor that is not there, whatever bits are in its
            // place.
            match factor {
                Some(factor) => {
                    pairs.for_each(|(sum, value)| *sum += i64::from(scaled(*value, factor)) * weight);
                }
                None if weight == 1 => {
                    pairs.for_each(|(sum, value)| *sum += i64::from(i32::from_le_bytes(*value)));
                }
                None => pairs.for_each(|(sum, value)| *sum += i64::from(i32::from_le_bytes(*value)) * weight),
            }
        },
    );
}

/// Updates as rows of a file, in the order in which they came.
#[derive(Debug)]
struct Rows {
    file: SpoolFile,
    parameters: usize,
    contents: Vec<ContentHash>,
}

impl Rows {
    /// Numbers of the rows by their contents' hashes: an order that does not depend on who was first. Rows of one hash
    /// are one update sent twice over, and it does not matter which of them is which.
    fn in_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.contents.len()).collect();
        order.sort_by_key(|row| self.contents[*row]);
        order
    }

    /// Columns of `rows` rows that a block of [`WORK_LEN`] bytes holds.
    fn columns_at_once(&self, rows: usize) -> usize {
        (WORK_LEN / 4 / rows.max(1)).clamp(1, self.parameters.max(1))
    }

    /// Hands over all columns of `rows`, block by block: the first column's number, then a block of
    /// `[rows, columns]` values, row by row.
    fn blocks(&self, rows: &[usize], mut each: impl FnMut(usize, &[&[[u8; 4]]])) -> io::Result<()> {
        let columns = self.columns_at_once(rows.len());
        let mut block = vec![0; 4 * columns * rows.len()];
        for first in (0..self.parameters).step_by(columns) {
            let width = 4 * columns.min(self.parameters - first);
            for (part, row) in block.chunks_mut(4 * columns).zip(rows) {
                let offset = 4 * (*row as u64 * self.parameters as u64 + first as u64);
                self.file.read_at(offset, &mut part[..width])?;
            }
            let parts: Vec<&[[u8; 4]]> =
                block.chunks(4 * columns).map(|part| part[..width].as_chunks::<4>().0).collect();
            each(first, &parts);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod hostile;
#[cfg(test)]
pub(crate) mod tests;
