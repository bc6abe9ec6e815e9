//! An operator's connection to the coordinator: one request, one answer.

use anyhow::{Context, Result, anyhow, bail};
use quinn::{Connection, Endpoint, RecvStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use weighhouse_client::session::connect;
use weighhouse_coordinator::home::Home;
use weighhouse_shared::ids::{ContentHash, JobId};
use weighhouse_shared::job::JobContract;
use weighhouse_shared::ledger::MAX_WITNESS_LEN;
use weighhouse_shared::tls::Trust;
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::{
    CoordinatorToOperator, ExportModel, JobEvent, JobRefusals, JobSummary, ListJobs, ListRefusals,
    ListWitnesses, ModelHeader, OperatorToCoordinator, WatchJob,
};
use weighhouse_shared::wire::stream;

/// The longest model an operator takes, in bytes.
const MAX_MODEL_LEN: u64 = 4 << 30;

/// Where the operator's keys are.
#[derive(Debug, Clone, clap::Args)]
pub struct HomeArgument {
    /// Folder made by `weighhouse coordinator init`
    #[arg(long, env = "WEIGHHOUSE_HOME", default_value = "coordinator-home", value_name = "DIR")]
    pub home: PathBuf,
}

/// A connection with the operator's certificate.
pub struct Operator {
    _endpoint: Endpoint,
    connection: Connection,
}

impl Operator {
    /// Connects to the coordinator whose home is `folder`.
    pub async fn connect(folder: &Path) -> Result<Self> {
        let home = Home::at(folder);
        home.config()?;
        let address = home.noted_address()?;
        let credentials = home.credentials("operator")?;
        let trust = Trust::Authority(home.authority()?);
        let (endpoint, connection) = connect(address, &credentials, trust).await.with_context(|| {
            format!(
                "cannot reach the coordinator; start it with `weighhouse coordinator serve --home {}`",
                folder.display()
            )
        })?;
        Ok(Self { _endpoint: endpoint, connection })
    }

    /// Sends a request; returns the answer and the stream behind it.
    async fn ask(&self, request: &OperatorToCoordinator) -> Result<(CoordinatorToOperator, RecvStream)> {
        let (mut send, mut receive) = self.connection.open_bi().await?;
        stream::send(&mut send, request).await?;
        send.finish()?;
        let answer = stream::receive(&mut receive).await?;
        match answer.ok_or_else(|| anyhow!("the coordinator ended the connection"))? {
            CoordinatorToOperator::Refused(refused) => bail!("{}", refused.reason),
            answer => Ok((answer, receive)),
        }
    }

    /// Sends a request; returns the answer.
    pub async fn request(&self, request: &OperatorToCoordinator) -> Result<CoordinatorToOperator> {
        Ok(self.ask(request).await?.0)
    }

    /// All jobs, oldest first.
    pub async fn jobs(&self) -> Result<Vec<JobSummary>> {
        match self.request(&OperatorToCoordinator::ListJobs(ListJobs {})).await? {
            CoordinatorToOperator::Jobs(jobs) => Ok(jobs),
            _ => bail!("the coordinator answered another question"),
        }
    }

    /// The jobs in which something was refused, and what.
    pub async fn refusals(&self) -> Result<Vec<JobRefusals>> {
        match self.request(&OperatorToCoordinator::ListRefusals(ListRefusals {})).await? {
            CoordinatorToOperator::Refusals(refusals) => Ok(refusals),
            _ => bail!("the coordinator answered another question"),
        }
    }

    /// The job a person means: the beginning of its identifier, or the newest if none is given.
    pub async fn find_job(&self, text: Option<&str>) -> Result<JobId> {
        let jobs = self.jobs().await?;
        let Some(text) = text else {
            let newest = jobs.last().ok_or_else(|| {
                anyhow!("there is no job yet; submit one with `weighhouse job submit FILE`")
            })?;
            return Ok(newest.job);
        };
        let matching: Vec<JobId> =
            jobs.iter().map(|job| job.job).filter(|job| job.to_string().starts_with(text)).collect();
        match matching.as_slice() {
            [job] => Ok(*job),
            [] => bail!("there is no job {text}; `weighhouse job list` shows all"),
            _ => bail!("{text} is the beginning of {} jobs; give more of it", matching.len()),
        }
    }

    /// Hands every event of `job` to `each`, from the first on, until the last.
    pub async fn watch(&self, job: JobId, mut each: impl FnMut(&JobEvent)) -> Result<()> {
        let (mut answer, mut receive) = self.ask(&OperatorToCoordinator::WatchJob(WatchJob { job })).await?;
        loop {
            let CoordinatorToOperator::Progress(event) = answer else {
                bail!("the coordinator answered another question")
            };
            each(&event);
            if matches!(&event, JobEvent::Status(status) if status.is_final()) {
                return Ok(());
            }
            answer = stream::receive(&mut receive).await?.ok_or_else(|| {
                anyhow!("the coordinator stopped telling; watch again with `weighhouse job watch`")
            })?;
        }
    }

    /// All witnesses of the ledger of the site named `name`, one a line, oldest first; and the coordinator's
    /// certificate, DER, whose key signed them.
    pub async fn witnesses(&self, name: &str) -> Result<(String, Vec<u8>)> {
        let (mut lines, mut after) = (String::new(), 0);
        loop {
            let list = ListWitnesses { name: name.into(), after };
            let (answer, mut receive) = self.ask(&OperatorToCoordinator::ListWitnesses(list)).await?;
            let CoordinatorToOperator::Witnesses(header) = answer else {
                bail!("the coordinator answered another question")
            };
            let limit = u64::from(header.count) * MAX_WITNESS_LEN as u64;
            if header.len > limit || (header.count > 0 && header.last <= after) {
                bail!("the coordinator offers witnesses that cannot be any");
            }
            let part = receive.read_to_end(header.len as usize).await;
            lines += std::str::from_utf8(&part.context("the witnesses did not arrive whole")?)?;
            if header.count == 0 {
                return Ok((lines, header.certificate));
            }
            after = header.last;
        }
    }

    /// The model of `job` as it stands, with the contract that made it.
    pub async fn model(&self, job: JobId) -> Result<(JobContract, ModelHeader, Vec<f32>)> {
        let (answer, mut receive) =
            self.ask(&OperatorToCoordinator::ExportModel(ExportModel { job })).await?;
        let CoordinatorToOperator::Model(header) = answer else {
            bail!("the coordinator answered another question")
        };
        let contract: JobContract = codec::decode(&header.contract)?;
        contract.validate()?;
        if header.len > MAX_MODEL_LEN {
            bail!("the coordinator offers a model of {} bytes, more than any job can have", header.len);
        }
        let bytes =
            receive.read_to_end(header.len as usize).await.context("the model did not arrive whole")?;
        if ContentHash::of(&bytes) != header.model {
            bail!("the model did not arrive whole; ask again");
        }
        let (values, _) = bytes.as_chunks::<4>();
        Ok((contract, header, values.iter().map(|value| f32::from_le_bytes(*value)).collect()))
    }
}

/// How long the goodbyes of connections may take to leave. The coordinator would hold a silent one for half a minute,
/// and has a limit of them for each key.
const GOODBYE: Duration = Duration::from_millis(10);

/// Runs an operator's short task on a small runtime.
pub fn block_on<T>(task: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(task);
    runtime.block_on(async { tokio::time::sleep(GOODBYE).await });
    outcome
}
