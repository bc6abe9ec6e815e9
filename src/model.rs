//! `weighhouse model …`: list, export.

use crate::operator::{HomeArgument, Operator, block_on};
use crate::output::{Format, FormatArgument, print_json, table};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use std::path::{Path, PathBuf};
use weighhouse_shared::config::write_whole;
use weighhouse_shared::job::JobContract;
use weighhouse_shared::model::ModelArtifact;
use weighhouse_shared::wire::messages::{
    CoordinatorToOperator, ListModels, ModelSummary, OperatorToCoordinator,
};

#[derive(Debug, Subcommand)]
pub enum ModelVerb {
    /// Show all models
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        home: HomeArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Write a job's model as safetensors
    #[command(
        after_help = "Example:\n  weighhouse model export 3f2a --output campaign.safetensors\n\nWithout a job: the newest."
    )]
    Export {
        /// The beginning of the job's identifier
        job: Option<String>,
        /// File to write
        #[arg(long, short, default_value = "model.safetensors", value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        home: HomeArgument,
    },
}

pub fn run(verb: ModelVerb) -> Result<()> {
    match verb {
        ModelVerb::List { home, format } => {
            let request = OperatorToCoordinator::ListModels(ListModels {});
            let answer = block_on(async { Operator::connect(&home.home).await?.request(&request).await })?;
            let CoordinatorToOperator::Models(models) = answer else {
                bail!("the coordinator answered another question")
            };
            match format.format {
                Format::Json => print_json(&models)?,
                Format::Text => println!("{}", model_table(&models)),
            }
            Ok(())
        }
        ModelVerb::Export { job, output, home } => block_on(async {
            let operator = Operator::connect(&home.home).await?;
            let job = operator.find_job(job.as_deref()).await?;
            let (contract, header, parameters) = operator.model(job).await?;
            save(&output, &contract, parameters)?;
            println!("wrote {} ({} rounds of job {})", output.display(), header.rounds, job.short());
            Ok(())
        }),
    }
}

/// Writes a model with its spec and schema.
pub fn save(path: &Path, contract: &JobContract, parameters: Vec<f32>) -> Result<()> {
    let artifact = ModelArtifact {
        spec: contract.model.clone(),
        shape: contract.schema.shape(),
        schema_json: serde_json::to_string(&contract.schema)?,
        parameters,
    };
    write_whole(path, &artifact.to_safetensors()?).with_context(|| {
        format!("cannot write {}; is the disk full, and does its folder exist?", path.display())
    })
}

fn model_table(models: &[ModelSummary]) -> String {
    if models.is_empty() {
        return "no model yet; a job makes one with its first round".to_owned();
    }
    let row = |model: &ModelSummary| {
        let auc = model.quality.and_then(|quality| quality.auc);
        vec![
            model.job.short(),
            model.name.clone(),
            model.rounds.to_string(),
            model.parameters.to_string(),
            auc.map_or_else(|| "-".to_owned(), |auc| format!("{auc:.3}")),
            model.model.short(),
        ]
    };
    let header = ["job", "name", "rounds", "parameters", "AUC (noised)", "content"];
    table(&header, &models.iter().map(row).collect::<Vec<_>>())
}
