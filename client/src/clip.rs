//! A batch's gradients, each customer's clipped and on the integer grid, summed: the last value that
//! is not yet private. It can go only into [`crate::noise`].

use crate::features::FeatureTable;
use crate::threads::Threads;
use std::fmt;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use weighhouse_shared::model::{Engine, ModelError, Network, TILE_ROWS};
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::privacy::grid::{Grid, SumWorkspace};

/// About how many bytes of buffers the customers have whose gradients a thread works on at a time: bounds memory whatever
/// the batch. Fewer would leave a recurrence few rows a step, each of which reads all its weights. One customer alone may
/// need more.
const MICRO_BATCH_BYTES: usize = 4 << 20;
/// The most it may be of several customers, so that there is no micro-batch of few.
const MOST_BYTES: usize = MICRO_BATCH_BYTES / 4 * 5;
/// Most customers whose gradients a thread works on at a time: more fall out of its cache. Whole tiles.
const MICRO_BATCH: usize = 43 * TILE_ROWS;
/// Customers times parameters below which a thread of its own does not pay.
const THREAD_WORK: usize = 1 << 19;
/// Entries that are worked on with one generator.
const PIECE: usize = 1 << 14;

/// A sum over customers, in units of the grid. One customer more or less changes it by at most
/// [`Grid::sensitivity`] in L2 norm.
pub struct ClippedSum {
    pub(crate) sum: Vec<i64>,
    pub(crate) grid: Grid,
}

impl fmt::Debug for ClippedSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClippedSum[{}]", self.sum.len())
    }
}

/// What the sum is of.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The model.
    pub network: &'a Network,
    /// Where it is.
    pub parameters: &'a [f32],
    /// Rows of one customer that count.
    pub max_rows: usize,
    /// The clip norm.
    pub grid: &'a Grid,
}

/// The threads and their buffers, kept between steps.
#[derive(Debug)]
pub struct Workers {
    threads: Threads,
    /// One for each thread.
    workers: Vec<Worker>,
}

struct Worker {
    workspace: SumWorkspace,
    /// Its part of the sum; between steps, memory for it.
    sum: Vec<i64>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.workspace.fmt(f)
    }
}

impl Workers {
    /// As many as the machine has cores; on an accelerator, which has its own threads, one.
    pub fn new(engine: &Engine) -> Self {
        let threads = match engine {
            Engine::Processor => thread::available_parallelism().map_or(1, NonZero::get),
            Engine::Candle(_) => 1,
        };
        Self::with_threads(engine, threads)
    }

    /// As many as `threads`, at least one.
    pub fn with_threads(engine: &Engine, threads: usize) -> Self {
        let threads = Threads::new(threads);
        let worker = |_| Worker { workspace: SumWorkspace::on(engine.clone()), sum: Vec::new() };
        Self { workers: (0..threads.count()).map(worker).collect(), threads }
    }

    /// Takes back the memory of a sum that is done with.
    pub(crate) fn keep(&mut self, memory: Vec<i64>) {
        self.workers[0].sum = memory;
    }

    /// Calls `work` with each piece of `entries` and a generator of its own, drawn from `generator`, on all threads.
    /// Which entries share a generator does not depend on the number of threads.
    pub(crate) fn by_pieces(
        &self,
        entries: &mut [i64],
        generator: &mut Generator,
        work: impl Fn(&mut [i64], &mut Generator) + Sync,
    ) {
        if entries.len() <= PIECE {
            return work(entries, generator);
        }
        let pieces: Vec<_> = entries.chunks_mut(PIECE).map(|piece| (piece, generator.fork())).collect();
        let mut hands = vec![(); self.workers.len().min(pieces.len())];
        let pieces = Mutex::new(pieces.into_iter());
        let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
        self.threads.share(&mut hands, |()| {
            while let Some((piece, mut generator)) = next() {
                work(piece, &mut generator);
            }
        });
    }
}

/// Sums the clipped gradients of the customers of `table` at `chosen`. `generator` draws what the model does at random
/// while it learns, for each customer by itself.
///
/// The sum is of integers, so it is the same for any number of threads, but for those random draws: which customers share
/// a thread's generator depends on who is done first.
pub fn clip_and_sum(
    step: Step<'_>,
    table: &FeatureTable,
    chosen: &[usize],
    workers: &mut Workers,
    generator: &mut Generator,
) -> Result<ClippedSum, ModelError> {
    let Workers { threads, workers } = workers;
    let count = step.network.parameter_count();
    let entries = count + step.grid.clipping().counts();
    let shares = workers.len().min(1 + chosen.len().saturating_mul(count) / THREAD_WORK);
    let batches = micro_batches(step, table, chosen, shares);
    let begun = AtomicUsize::new(0);
    let next = || batches.get(begun.fetch_add(1, Ordering::Relaxed)).copied();
    let part = |worker| Part { worker, generator: generator.fork(), done: Ok(()) };
    let mut parts: Vec<_> = workers[..shares].iter_mut().map(part).collect();
    threads.share(&mut parts, |Part { worker: Worker { workspace, sum }, generator, done }| {
        sum.clear();
        sum.resize(entries, 0);
        *done = add_customers(step, table, next, workspace, generator, sum);
    });
    parts.into_iter().try_for_each(|part| part.done)?;
    let mut sum = std::mem::take(&mut workers[0].sum);
    for worker in &workers[1..shares] {
        sum.iter_mut().zip(&worker.sum).for_each(|(sum, part)| *sum += part);
    }
    Ok(ClippedSum { sum, grid: *step.grid })
}

/// What one thread does of a sum.
struct Part<'a> {
    worker: &'a mut Worker,
    generator: Generator,
    done: Result<(), ModelError>,
}

/// The customers at `chosen` in micro-batches, such that as many threads as there are `shares`, each of which takes the next
/// whenever it is done with one, are done at about the same time: the shares' first, then their second, and so on.
fn micro_batches<'a>(
    step: Step<'_>,
    table: &FeatureTable,
    chosen: &'a [usize],
    shares: usize,
) -> Vec<&'a [usize]> {
    let bytes = |customer: &usize| {
        let (rows, steps) = table.size(*customer, step.max_rows);
        step.network.buffer_bytes(rows, steps)
    };
    let share = chosen.len().div_ceil(shares).max(1);
    let shares: Vec<_> = chosen.chunks(share).map(|share| in_order(share, bytes)).collect();
    let most = shares.iter().map(Vec::len).max().unwrap_or(0);
    (0..most).flat_map(|at| shares.iter().filter_map(move |share| share.get(at).copied())).collect()
}

/// One thread's customers in micro-batches, as few as there may be, all of about one size: a last one of few customers would
/// cost as much as a whole one.
fn in_order(mut chosen: &[usize], bytes: impl Fn(&usize) -> usize) -> Vec<&[usize]> {
    let mut batches = Vec::new();
    let mut left: usize = chosen.iter().map(&bytes).sum();
    let mut parts = usize::MAX;
    while !chosen.is_empty() {
        // One less than before, and not one more for a few bytes.
        let least = left.div_ceil(MOST_BYTES).max(chosen.len().div_ceil(MICRO_BATCH));
        parts = parts.min(left.div_ceil(MICRO_BATCH_BYTES)).max(least);
        let mut taken = 0;
        let fits = chosen.iter().take(MICRO_BATCH).take_while(|&customer| {
            let more = bytes(customer);
            let fits = taken == 0 || taken + more / 2 <= left / parts && taken + more <= MOST_BYTES;
            taken += if fits { more } else { 0 };
            fits
        });
        let mut count = fits.count();
        if parts > 1 && count > TILE_ROWS {
            // Whole tiles of a step's rows, where a recurrence has one for each customer: the nearest.
            let nearest = ((count + TILE_ROWS / 2) / TILE_ROWS * TILE_ROWS).min(chosen.len());
            let fits = chosen[..nearest].iter().map(&bytes).sum::<usize>() <= MOST_BYTES;
            count = if fits { nearest } else { count - count % TILE_ROWS };
        }
        let (now, later) = chosen.split_at(count);
        left -= now.iter().map(&bytes).sum::<usize>();
        batches.push(now);
        chosen = later;
        parts -= 1;
    }
    batches
}

/// Adds the clipped gradients of the customers of one micro-batch after the other to `sum`.
fn add_customers<'a>(
    step: Step<'_>,
    table: &FeatureTable,
    next: impl Fn() -> Option<&'a [usize]>,
    workspace: &mut SumWorkspace,
    generator: &mut Generator,
    sum: &mut [i64],
) -> Result<(), ModelError> {
    let Step { network, parameters, max_rows, grid } = step;
    let mut summation = workspace.begin(network, parameters, grid, sum)?;
    while let Some(chosen) = next() {
        let batch = table.gather(chosen, max_rows).with_draws(network, generator);
        summation.add(&batch.as_batch())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::model::ModelSpec;
    use weighhouse_shared::privacy::ClipNorm;
    use weighhouse_shared::privacy::grid::clipped_sum;

    #[test]
    fn however_large_the_batch_memory_is_that_of_a_micro_batch() {
        let customers: Vec<Vec<f32>> = (0..2 * MICRO_BATCH + 3).map(|at| vec![at as f32, 1.0]).collect();
        let table = FeatureTable::from_customers(1, &customers);
        let network = Network::new(&ModelSpec::Logistic {}, 1).unwrap();
        let grid = Grid::new(ClipNorm::new(1.0).unwrap());
        let mut workers = Workers::with_threads(&Engine::Processor, 1);
        let chosen: Vec<usize> = (0..customers.len()).collect();
        let parameters = [0.0; 2];
        let step = Step { network: &network, parameters: &parameters, max_rows: 25, grid: &grid };
        let mut generator = Generator::from_seed(1);
        let whole = clip_and_sum(step, &table, &chosen, &mut workers, &mut generator).unwrap();
        assert!(format!("{workers:?}").contains("customers: 171"), "the last of three: {workers:?}");
        let mut workspace = SumWorkspace::new();
        let mut sum = vec![0; 2];
        let batch = table.gather(&chosen, 25);
        clipped_sum(&network, &parameters, &batch.as_batch(), &grid, &mut workspace, &mut sum).unwrap();
        assert_eq!(whole.sum, sum);
    }

    #[test]
    fn micro_batches_are_of_whole_tiles_and_about_one_size_within_their_limits() {
        for (count, bytes) in
            [(1, 9), (5, 5 << 20), (64, 192 << 10), (515, 16), (512, 16), (1000, 100 << 10), (256, 1)]
        {
            let chosen: Vec<usize> = (0..count).collect();
            let batches = in_order(&chosen, |_| bytes);
            assert_eq!(batches.concat(), chosen);
            let (last, others) = batches.split_last().unwrap();
            for batch in others {
                assert!(batch.len() <= MICRO_BATCH, "{count} of {bytes} bytes: {}", batch.len());
                let whole = batch.len().is_multiple_of(TILE_ROWS) || batch.len() <= TILE_ROWS;
                assert!(whole, "{count} of {bytes} bytes: {}", batch.len());
                assert!(batch.len().abs_diff(last.len()) < 2 * TILE_ROWS, "{batch:?} and {last:?}");
            }
        }
    }

    #[test]
    fn micro_batches_bound_memory_however_customers_differ() {
        let few_large = |at: &usize| if at.is_multiple_of(100) { 1 << 20 } else { 1 };
        let large_last = |at: &usize| if *at < 2009 { 1 } else { 1 << 20 };
        let large_first = |at: &usize| if *at < 20 { 3 << 20 } else { 1 };
        let one_large = |at: &usize| if *at == 11 { 4_000_000 } else { 350_000 };
        let chosen: Vec<usize> = (0..2020).collect();
        for bytes in [few_large, large_last, large_first, one_large] {
            let batches = in_order(&chosen, bytes);
            assert_eq!(batches.concat(), chosen);
            for batch in batches {
                let taken: usize = batch.iter().map(bytes).sum();
                assert!(batch.len() <= MICRO_BATCH && taken <= MOST_BYTES, "{taken} of {batch:?}");
            }
        }
    }

    #[test]
    fn pieces_and_their_generators_are_the_same_on_any_number_of_threads() {
        let drawn = |threads: usize| {
            let mut entries = vec![0; 3 * PIECE + 5];
            let workers = Workers::with_threads(&Engine::Processor, threads);
            workers.by_pieces(&mut entries, &mut Generator::from_seed(1), |piece, generator| {
                piece.iter_mut().for_each(|entry| *entry += generator.next_u64() as i64);
            });
            entries
        };
        let one = drawn(1);
        assert!(one.iter().all(|&entry| entry != 0) && one[0] != one[PIECE]);
        assert_eq!(drawn(2), one);
        assert_eq!(drawn(5), one);
    }

    #[test]
    fn threads_and_micro_batches_change_no_bit_of_the_sum() {
        let width = 40;
        let customer = |at: usize| (0..=width).map(|i| ((at * 31 + i * 7) % 11) as f32 / 11.0).collect();
        let customers: Vec<Vec<f32>> = (0..600).map(customer).collect();
        let table = FeatureTable::from_customers(width, &customers);
        let spec = ModelSpec::Mlp { hidden: vec![64, 32], dropout: 0.0, activation: Default::default() };
        let network = Network::new(&spec, width).unwrap();
        let parameters = network.initial_parameters([1; 32]);
        let grid = Grid::new(ClipNorm::new(1.0).unwrap());
        let step = Step { network: &network, parameters: &parameters, max_rows: 25, grid: &grid };
        let chosen: Vec<usize> = (0..600).filter(|at| at % 5 != 0).collect();
        let sum = |threads: usize| {
            let mut workers = Workers::with_threads(&Engine::Processor, threads);
            clip_and_sum(step, &table, &chosen, &mut workers, &mut Generator::from_seed(1)).unwrap().sum
        };
        let one = sum(1);
        assert!(one.iter().any(|&entry| entry != 0));
        assert!(chosen.len() * network.parameter_count() / THREAD_WORK >= 2, "enough work for three threads");
        assert_eq!(sum(2), one);
        assert_eq!(sum(3), one);
        let nobody = clip_and_sum(
            step,
            &table,
            &[],
            &mut Workers::new(&Engine::Processor),
            &mut Generator::from_seed(1),
        );
        assert!(nobody.unwrap().sum.iter().all(|&entry| entry == 0));
    }
}
