//! The demo's job, in either mode, and what the mode that was not chosen comes to.

use super::DemoArguments;
use super::datasets::{Dataset, Rows};
use super::yardstick;
use crate::members;
use crate::simulation::{Customers, OwnSites, Simulation, Work};
use anyhow::Result;
use serde::Serialize;
use weighhouse_shared::job::{
    EvaluationAsked, FederationAsked, JobContract, JobFile, ModeName, PrivacyAsked, TrainingAsked,
};
use weighhouse_shared::model::ModelSpec;
use weighhouse_shared::privacy::{ClipNorm, Generator};

/// Multiplications and additions up to which the other mode is simulated: some seconds.
const MOST_OPERATIONS: f64 = 1e11;

/// The same job in the other mode, simulated with the judge's view: its noise is never sent, and nobody is charged.
#[derive(Debug, Clone, Serialize)]
pub struct OtherMode {
    /// Its name.
    pub mode: ModeName,
    /// Quality of its shared model after each round on all branches' test rows.
    pub judged_rounds: Vec<Option<f64>>,
    /// That of the model it ends with.
    pub shared: Option<f64>,
}

/// How people call a mode.
pub fn name(mode: ModeName) -> &'static str {
    match mode {
        ModeName::Site => "noise at each site",
        ModeName::SecureSum => "noise of the secure sum",
    }
}

/// The job file of a demo in `mode`.
pub fn file(
    arguments: &DemoArguments,
    spec: &ModelSpec,
    dataset: &Dataset,
    mode: ModeName,
) -> Result<JobFile> {
    let of_site = mode == ModeName::Site;
    Ok(JobFile {
        name: dataset.name.clone(),
        schema: "schema.toml".into(),
        model: spec.clone(),
        training: TrainingAsked {
            rounds: arguments.rounds,
            expected_customers: dataset.expected_customers,
            ..TrainingAsked::default()
        },
        privacy: PrivacyAsked {
            epsilon: Some(arguments.epsilon),
            noise_multiplier: None,
            delta: arguments.delta,
            clip_norm: Some(ClipNorm::new(0.5)?),
        },
        evaluation: EvaluationAsked::default(),
        federation: FederationAsked {
            mode,
            min_sites: of_site.then(|| 2.max(dataset.sites.len() as u32 / 2)),
            ..FederationAsked::default()
        },
    })
}

/// The other mode than `contract`'s on the same branches; None where that takes long or cannot be.
pub fn other_mode(
    arguments: &DemoArguments,
    dataset: &Dataset,
    contract: &JobContract,
) -> Result<Option<OtherMode>> {
    let mode = match contract.federation.secure_sum() {
        Some(_) => ModeName::Site,
        None => ModeName::SecureSum,
    };
    let members = members::stand_ins(dataset.sites.len());
    let file = file(arguments, &contract.model, dataset, mode)?;
    let Ok(other) = file.contract_among(contract.schema.clone(), contract.nonce, &members) else {
        return Ok(None);
    };
    let network = other.network()?;
    let rows: usize = dataset.sites.iter().map(|site| site.train.table.len()).sum();
    let steps = f64::from(other.training.rounds) * f64::from(other.training.local_steps);
    if 6.0 * steps * rows as f64 * network.parameter_count() as f64 > MOST_OPERATIONS {
        return Ok(None);
    }
    let mut generator = Generator::from_system()?;
    let customers = Customers::Own(OwnSites::new(dataset, true, arguments.seed));
    let mut simulation = Simulation::new(&other, &network, &customers, Work::Train, other.id())?;
    let tests: Vec<&Rows> = dataset.sites.iter().map(|site| &site.test).collect();
    let label = &dataset.schema.label.kind;
    let judged = |parameters: &[f32]| yardstick::figure_of(&network, label, parameters, &tests);
    let mut judged_rounds = Vec::new();
    for _ in 0..other.training.rounds {
        simulation.round(0..dataset.sites.len(), &mut generator, || ())?;
        judged_rounds.push(judged(&simulation.parameters())?);
    }
    Ok(Some(OtherMode { mode, judged_rounds, shared: judged(&simulation.concluded())? }))
}
