//! The rules that need all updates of a round, on integers. No result depends on the order of the rows: columns are
//! sorted, distances are exact, and where scores are equal the hash of the content decides.

use super::Rows;
use super::norm::SquaredNorm;
use std::io;
use std::num::NonZero;
use weighhouse_shared::job::Rule;

/// Puts into `sums` what `rule` makes of all rows; returns what they are to be divided by.
pub(super) fn combine(rule: Rule, rows: &Rows, sums: &mut [i64]) -> io::Result<u32> {
    let all = rows.in_order();
    let count = all.len();
    match rule {
        Rule::Mean => {
            by_column(rows, &all, sums, |column| column.iter().map(|value| i64::from(*value)).sum())
                .map(|()| count as u32)
        }
        // Twice the median, so that the mean of two middle values is whole.
        Rule::Median => by_column(rows, &all, sums, twice_median).map(|()| 2),
        Rule::TrimmedMean(share) => {
            let trimmed = trimmed(share, count);
            by_column(rows, &all, sums, |column| trimmed_sum(column, trimmed))?;
            Ok((count - 2 * trimmed) as u32)
        }
        Rule::Krum(hostile) | Rule::MultiKrum(hostile) => {
            let kept = match rule {
                Rule::Krum(_) => 1,
                _ => count.saturating_sub(hostile as usize).max(1),
            };
            let distances = Distances::of(rows, &all)?;
            let chosen: Vec<usize> = distances
                .best((0..count).collect(), hostile as usize, kept)
                .iter()
                .map(|at| all[*at])
                .collect();
            by_column(rows, &chosen, sums, |column| column.iter().map(|value| i64::from(*value)).sum())?;
            Ok(chosen.len() as u32)
        }
        Rule::Bulyan(hostile) => {
            let hostile = hostile as usize;
            let picked = count.saturating_sub(2 * hostile).max(1);
            let averaged = picked.saturating_sub(2 * hostile).max(1);
            let distances = Distances::of(rows, &all)?;
            let mut left: Vec<usize> = (0..count).collect();
            let mut chosen = Vec::with_capacity(picked);
            while chosen.len() < picked {
                let [best] = distances.best(left.clone(), hostile, 1)[..] else { break };
                left.retain(|at| *at != best);
                chosen.push(all[best]);
            }
            by_column(rows, &chosen, sums, |column| sum_around_median(column, averaged))?;
            Ok(averaged as u32)
        }
    }
}

/// How many of `count` updates a share is, rounded down; a share below one half never trims all.
fn trimmed(share: f64, count: usize) -> usize {
    // 0.29 x 100 is a little below 29 in binary.
    ((share * count as f64 + 1e-9) as usize).min(count.saturating_sub(1) / 2)
}

/// Puts `of` each column of `rows` into `sums`, with as many threads as there are processors.
fn by_column(
    rows: &Rows,
    chosen: &[usize],
    sums: &mut [i64],
    of: impl Fn(&mut [i32]) -> i64 + Sync,
) -> io::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    rows.blocks(chosen, |first, block| {
        let width = block.first().map_or(0, |part| part.len());
        let sums = &mut sums[first..first + width];
        let share = width.div_ceil(threads).max(1024);
        let work = |at: usize, sums: &mut [i64]| {
            let mut column = vec![0; block.len()];
            for (at, sum) in (at..).zip(sums) {
                for (value, row) in column.iter_mut().zip(block) {
                    *value = i32::from_le_bytes(row[at]);
                }
                *sum = of(&mut column);
            }
        };
        let work = &work;
        std::thread::scope(|scope| {
            let mut parts = (0..).step_by(share).zip(sums.chunks_mut(share));
            let last = parts.next();
            for (at, part) in parts {
                scope.spawn(move || work(at, part));
            }
            if let Some((at, part)) = last {
                work(at, part);
            }
        });
    })
}

/// Twice the median of a column of at least one value: for an even number of values the sum of the middle two.
fn twice_median(column: &mut [i32]) -> i64 {
    let (middle, even) = (column.len() / 2, column.len().is_multiple_of(2));
    let (below, upper, _) = column.select_nth_unstable(middle);
    match below.iter().max() {
        Some(lower) if even => i64::from(*lower) + i64::from(*upper),
        _ => 2 * i64::from(*upper),
    }
}

/// The sum of a column without its `trimmed` smallest and largest values.
fn trimmed_sum(column: &mut [i32], trimmed: usize) -> i64 {
    let mut kept = column;
    if trimmed > 0 {
        kept = kept.select_nth_unstable(trimmed - 1).2;
        let end = kept.len() - trimmed;
        kept = kept.select_nth_unstable(end).0;
    }
    kept.iter().map(|value| i64::from(*value)).sum()
}

/// The sum of the `count` values of a column that are closest to its median; of two equally close the smaller.
fn sum_around_median(column: &mut [i32], count: usize) -> i64 {
    column.sort_unstable();
    let middle = column.len() / 2;
    let upper = i64::from(column[middle]);
    let twice_median =
        if column.len().is_multiple_of(2) { i64::from(column[middle - 1]) + upper } else { 2 * upper };
    // In a sorted column the closest ones lie side by side: drop the further end.
    let mut kept = &column[..];
    while kept.len() > count.max(1) {
        let [first, .., last] = kept else { break };
        let (below, above) = (twice_median - 2 * i64::from(*first), 2 * i64::from(*last) - twice_median);
        kept = if below > above { &kept[1..] } else { &kept[..kept.len() - 1] };
    }
    kept.iter().map(|value| i64::from(*value)).sum()
}

/// Exact squared distances of all updates from one another.
struct Distances {
    count: usize,
    /// `[count, count]`.
    squared: Vec<u128>,
}

impl Distances {
    /// Of the rows `order`; number k here is row `order[k]`.
    fn of(rows: &Rows, order: &[usize]) -> io::Result<Self> {
        let count = order.len();
        let pairs: Vec<(usize, usize)> =
            (0..count).flat_map(|one| (one + 1..count).map(move |other| (one, other))).collect();
        let mut norms = vec![SquaredNorm::default(); pairs.len()];
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let share = pairs.len().div_ceil(threads).max(1);
        rows.blocks(order, |_, block| {
            std::thread::scope(|scope| {
                for (pairs, norms) in pairs.chunks(share).zip(norms.chunks_mut(share)) {
                    scope.spawn(move || {
                        for ((one, other), norm) in pairs.iter().zip(norms) {
                            norm.add_differences(block[*one], block[*other]);
                        }
                    });
                }
            });
        })?;
        let mut squared = vec![0; count * count];
        for ((one, other), norm) in pairs.into_iter().zip(norms) {
            squared[one * count + other] = norm.value();
            squared[other * count + one] = norm.value();
        }
        Ok(Self { count, squared })
    }

    /// The `kept` of `among` with the lowest scores; a score is the sum of the distances to the n - f - 2 nearest others
    /// (at least one) of the n in `among`, f the number of `hostile` ones.
    fn best(&self, among: Vec<usize>, hostile: usize, kept: usize) -> Vec<usize> {
        let neighbours = among.len().saturating_sub(hostile + 2).max(1);
        let score = |one: usize| {
            let others = among.iter().filter(|other| **other != one);
            let mut nearest: Vec<u128> = others.map(|other| self.squared[one * self.count + other]).collect();
            nearest.sort_unstable();
            nearest.iter().take(neighbours).sum::<u128>()
        };
        let mut scored: Vec<(u128, usize)> = among.iter().map(|one| (score(*one), *one)).collect();
        scored.sort_unstable();
        scored.into_iter().take(kept).map(|(_, one)| one).collect()
    }
}
