//! A batch's gradients, each customer's clipped and on the integer grid, summed: the last value that
//! is not yet private. It can go only into [`crate::noise`].

use crate::features::FeatureTable;
use std::fmt;
use std::num::NonZero;
use std::thread;
use weighhouse_shared::model::{Engine, ModelError, Network};
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::privacy::grid::{Grid, SumWorkspace, clipped_sum};

/// Most bytes of buffers for the customers whose gradients a thread works on at a time: bounds memory whatever
/// the batch. One customer alone may need more.
const MICRO_BATCH_BYTES: usize = 12 << 20;
/// Most customers whose gradients a thread works on at a time: more fall out of its cache.
const MICRO_BATCH: usize = 256;
/// Customers times parameters below which a thread of its own does not pay.
const THREAD_WORK: usize = 1 << 19;

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

/// The threads' buffers, kept between steps.
#[derive(Debug)]
pub struct Workers {
    /// One for each thread, at least one.
    workers: Vec<Worker>,
}

struct Worker {
    workspace: SumWorkspace,
    /// The thread's part of the sum; of the first thread memory for all of it.
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
        let worker = |_| Worker { workspace: SumWorkspace::on(engine.clone()), sum: Vec::new() };
        Self { workers: (0..threads.max(1)).map(worker).collect() }
    }

    /// Takes back a sum's memory, for the next one.
    pub(crate) fn keep(&mut self, memory: Vec<i64>) {
        self.workers[0].sum = memory;
    }
}

/// Sums the clipped gradients of the customers of `table` at `chosen`. `generator` draws what the model does at random
/// while it learns, for each customer by itself.
///
/// The sum is of integers, so it is the same for any number of threads, but for those random draws.
pub fn clip_and_sum(
    step: Step<'_>,
    table: &FeatureTable,
    chosen: &[usize],
    workers: &mut Workers,
    generator: &mut Generator,
) -> Result<ClippedSum, ModelError> {
    let count = step.network.parameter_count();
    let entries = count + step.grid.clipping().counts();
    let mut sum = std::mem::take(&mut workers.workers[0].sum);
    sum.clear();
    sum.resize(entries, 0);
    let threads = workers.workers.len().min(1 + chosen.len().saturating_mul(count) / THREAD_WORK);
    let mut parts = chosen.chunks(chosen.len().div_ceil(threads).max(1));
    let (first, others) = workers.workers[..threads].split_first_mut().expect("at least one worker");
    let own = parts.next().unwrap_or_default();
    let others: Vec<_> =
        others.iter_mut().zip(parts).map(|(worker, part)| (worker, part, generator.fork())).collect();
    thread::scope(|scope| {
        let others: Vec<_> = others
            .into_iter()
            .map(|(worker, part, mut generator)| {
                scope.spawn(move || {
                    let Worker { workspace, sum } = worker;
                    sum.clear();
                    sum.resize(entries, 0);
                    add_customers(step, table, part, workspace, &mut generator, sum).map(|()| &*sum)
                })
            })
            .collect();
        let mut done = add_customers(step, table, own, &mut first.workspace, generator, &mut sum);
        for other in others {
            match other.join() {
                Ok(Ok(part)) => sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part),
                Ok(Err(error)) => done = done.and(Err(error)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    })?;
    Ok(ClippedSum { sum, grid: *step.grid })
}

/// Adds the clipped gradients of the customers at `chosen` to `sum`, a micro-batch at a time.
fn add_customers(
    step: Step<'_>,
    table: &FeatureTable,
    mut chosen: &[usize],
    workspace: &mut SumWorkspace,
    generator: &mut Generator,
    sum: &mut [i64],
) -> Result<(), ModelError> {
    let Step { network, parameters, max_rows, grid } = step;
    while !chosen.is_empty() {
        let mut bytes = 0;
        let fits = chosen.iter().take(MICRO_BATCH).take_while(|&&customer| {
            let (rows, steps) = table.size(customer, max_rows);
            bytes += network.buffer_bytes(rows, steps);
            bytes <= MICRO_BATCH_BYTES
        });
        let (now, later) = chosen.split_at(fits.count().max(1));
        let batch = table.gather(now, max_rows).with_draws(network, generator);
        clipped_sum(network, parameters, &batch.as_batch(), grid, workspace, sum)?;
        chosen = later;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::model::ModelSpec;
    use weighhouse_shared::privacy::ClipNorm;

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
        assert!(format!("{workers:?}").contains("customers: 3"), "the last part: {workers:?}");
        let mut workspace = SumWorkspace::new();
        let mut sum = vec![0; 2];
        let batch = table.gather(&chosen, 25);
        clipped_sum(&network, &parameters, &batch.as_batch(), &grid, &mut workspace, &mut sum).unwrap();
        assert_eq!(whole.sum, sum);
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
