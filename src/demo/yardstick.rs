//! What the shared model is compared with: each branch alone, and everyone's rows in one place; both
//! without privacy, trained by the same zoo.

use super::datasets::{Dataset, Rows};
use anyhow::Result;
use candle_core::Device;
use weighhouse_shared::evaluation::{Figure, Quality};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::model::{Network, Workspace, score};
use weighhouse_shared::privacy::Generator;
use weighhouse_shared::schema::LabelKind;

/// Full-batch steps of the optimiser; enough for the loss to stand still on the demo's data.
const STEPS: i32 = 300;
/// Step size of Adam (Kingma and Ba 2015), with that paper's other constants.
const RATE: f64 = 0.05;

/// A branch that trained alone.
#[derive(Debug)]
pub struct Alone {
    /// The label's [`Figure`] on its own test rows.
    pub own_rows: Option<f64>,
    /// The same on all branches' test rows.
    pub all_rows: Option<f64>,
}

/// What the shared model is compared with.
#[derive(Debug)]
pub struct Yardsticks {
    /// Each branch.
    pub alone: Vec<Alone>,
    /// The label's [`Figure`] of the pooled model on all branches' test rows.
    pub pooled: Option<f64>,
}

impl Yardsticks {
    /// Trains and tests all of them.
    pub fn measure(dataset: &Dataset, contract: &JobContract, network: &Network) -> Result<Self> {
        let start = network.initial_parameters(*contract.id().as_bytes());
        let tests: Vec<&Rows> = dataset.sites.iter().map(|site| &site.test).collect();
        let label = &dataset.schema.label.kind;
        let mut generator = Generator::from_system()?;
        let mut alone = Vec::new();
        for site in &dataset.sites {
            let parameters = fit(network, start.clone(), &site.train, &mut generator)?;
            alone.push(Alone {
                own_rows: figure_of(network, label, &parameters, &[&site.test])?,
                all_rows: figure_of(network, label, &parameters, &tests)?,
            });
        }
        Ok(Self { alone, pooled: pooled(dataset, contract, network)? })
    }
}

/// The label's [`Figure`] on all branches' test rows of one model that learned from all branches' rows.
pub fn pooled(dataset: &Dataset, contract: &JobContract, network: &Network) -> Result<Option<f64>> {
    let start = network.initial_parameters(*contract.id().as_bytes());
    let rows = Rows::pooled(network.inputs(), dataset.sites.iter().map(|site| &site.train));
    let parameters = fit(network, start, &rows, &mut Generator::from_system()?)?;
    let tests: Vec<&Rows> = dataset.sites.iter().map(|site| &site.test).collect();
    figure_of(network, &dataset.schema.label.kind, &parameters, &tests)
}

/// Minimises the mean loss over customers plus |w|^2 / (2 customers), by full-batch Adam.
fn fit(
    network: &Network,
    mut parameters: Vec<f32>,
    rows: &Rows,
    generator: &mut Generator,
) -> Result<Vec<f32>> {
    let mut draws = vec![0; network.draws(rows.table.len(), rows.steps())];
    let ridge = 1.0 / rows.as_batch(&[]).customers().max(1) as f64;
    let (mut workspace, mut gradient) = (Workspace::new(), Vec::new());
    let mut mean = vec![0.0f64; parameters.len()];
    let mut square = vec![0.0f64; parameters.len()];
    for step in 1..=STEPS {
        generator.fill(&mut draws);
        network.backward(&parameters, &rows.as_batch(&draws), &mut workspace)?;
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

/// On all rows of `tests` together, whose labels are of kind `label`.
pub fn quality_of(
    network: &Network,
    label: &LabelKind,
    parameters: &[f32],
    tests: &[&Rows],
) -> Result<Quality> {
    let (mut predictions, mut labels) = (Vec::new(), Vec::new());
    for rows in tests {
        predictions.extend(score(network, parameters, &rows.as_batch(&[]).rows, &Device::Cpu)?);
        labels.extend_from_slice(&rows.table.labels);
    }
    Ok(Quality::of_rows(label, &predictions, &labels))
}

/// The label's [`Figure`] on all rows of `tests` together; None if it is not defined on them.
pub fn figure_of(
    network: &Network,
    label: &LabelKind,
    parameters: &[f32],
    tests: &[&Rows],
) -> Result<Option<f64>> {
    Ok(Figure::of(network.target()).in_quality(&quality_of(network, label, parameters, tests)?))
}
