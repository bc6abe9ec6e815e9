//! What the shared model is compared with: each branch alone, and everyone's rows in one place; both
//! without privacy, trained by the same zoo.

use super::datasets::{Dataset, Rows};
use anyhow::Result;
use candle_core::Device;
use weighhouse_shared::evaluation::{auc, log_loss};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::model::{Network, Workspace, score};

/// Full-batch steps of the optimiser; enough for the loss to stand still on the demo's data.
const STEPS: i32 = 300;
/// Step size of Adam (Kingma and Ba 2015), with that paper's other constants.
const RATE: f64 = 0.05;

/// A branch that trained alone.
#[derive(Debug)]
pub struct Alone {
    /// AUC on its own test rows.
    pub own_rows: Option<f64>,
    /// AUC on all branches' test rows.
    pub all_rows: Option<f64>,
}

/// What the shared model is compared with.
#[derive(Debug)]
pub struct Yardsticks {
    /// Each branch.
    pub alone: Vec<Alone>,
    /// AUC of the pooled model on all branches' test rows.
    pub pooled: Option<f64>,
}

impl Yardsticks {
    /// Trains and tests all of them.
    pub fn measure(dataset: &Dataset, contract: &JobContract, network: &Network) -> Result<Self> {
        let start = network.initial_parameters(*contract.id().as_bytes());
        let tests: Vec<&Rows> = dataset.sites.iter().map(|site| &site.test).collect();
        let mut alone = Vec::new();
        for site in &dataset.sites {
            let parameters = fit(network, start.clone(), &site.train)?;
            alone.push(Alone {
                own_rows: auc_of(network, &parameters, &[&site.test])?,
                all_rows: auc_of(network, &parameters, &tests)?,
            });
        }
        let mut pooled = Rows { starts: vec![0], ..Rows::default() };
        for site in &dataset.sites {
            let first = pooled.labels.len() as u32;
            pooled.numbers.extend_from_slice(&site.train.numbers);
            pooled.ids.extend_from_slice(&site.train.ids);
            pooled.labels.extend_from_slice(&site.train.labels);
            pooled.starts.extend(site.train.starts[1..].iter().map(|start| first + start));
        }
        let parameters = fit(network, start, &pooled)?;
        Ok(Self { alone, pooled: auc_of(network, &parameters, &tests)? })
    }
}

/// Minimises the mean loss over customers plus |w|^2 / (2 customers), by full-batch Adam.
fn fit(network: &Network, mut parameters: Vec<f32>, rows: &Rows) -> Result<Vec<f32>> {
    let batch = rows.as_batch();
    let ridge = 1.0 / batch.customers().max(1) as f64;
    let (mut workspace, mut gradient) = (Workspace::new(), Vec::new());
    let mut mean = vec![0.0f64; parameters.len()];
    let mut square = vec![0.0f64; parameters.len()];
    for step in 1..=STEPS {
        network.backward(&parameters, &batch, &mut workspace)?;
        network.mean_gradient(&mut workspace, &mut gradient);
        let (first, second) = (1.0 - 0.9f64.powi(step), 1.0 - 0.999f64.powi(step));
        for (index, parameter) in parameters.iter_mut().enumerate() {
            let slope = f64::from(gradient[index]) + ridge * f64::from(*parameter);
            mean[index] = 0.9 * mean[index] + 0.1 * slope;
            square[index] = 0.999 * square[index] + 0.001 * slope * slope;
            let change = RATE * (mean[index] / first) / ((square[index] / second).sqrt() + 1e-8);
            *parameter = (f64::from(*parameter) - change) as f32;
        }
    }
    Ok(parameters)
}

fn scores_of(network: &Network, parameters: &[f32], tests: &[&Rows]) -> Result<(Vec<f32>, Vec<f32>)> {
    let (mut scores, mut labels) = (Vec::new(), Vec::new());
    for rows in tests {
        scores.extend(score(network, parameters, &rows.as_batch().rows, &Device::Cpu)?);
        labels.extend_from_slice(&rows.labels);
    }
    Ok((scores, labels))
}

/// AUC on all rows of `tests` together. None if they have one label only.
pub fn auc_of(network: &Network, parameters: &[f32], tests: &[&Rows]) -> Result<Option<f64>> {
    let (scores, labels) = scores_of(network, parameters, tests)?;
    Ok(auc(&scores, &labels))
}

/// Log loss on all rows of `tests` together, in nats.
pub fn log_loss_of(network: &Network, parameters: &[f32], tests: &[&Rows]) -> Result<Option<f64>> {
    let (scores, labels) = scores_of(network, parameters, tests)?;
    Ok(log_loss(&scores, &labels))
}
