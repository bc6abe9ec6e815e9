//! The demo's processes: started, waited for until they say they are ready, ended. Each holds the read
//! end of a pipe whose write end is here, and ends when it closes: none outlives the demo, however that
//! ends.

use super::DemoArguments;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long a daemon may take until it is ready.
const START_TIME: Duration = Duration::from_secs(30);

/// Running daemons.
pub struct Processes {
    program: PathBuf,
    running: Vec<Child>,
}

impl Processes {
    /// None yet.
    pub fn new() -> Result<Self> {
        Ok(Self {
            program: std::env::current_exe().context("cannot find this program's file")?,
            running: Vec::new(),
        })
    }

    fn spawn(&self, verb: &[&str], home: &Path) -> Result<Child> {
        let log_path = home.with_extension("log");
        let log = std::fs::File::create(&log_path)
            .with_context(|| format!("cannot write {}; is the disk full?", log_path.display()))?;
        let child = Command::new(&self.program)
            .args(verb)
            .arg("--home")
            .arg(home)
            .arg("--end-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        child.context("cannot start a process")
    }

    /// Starts a daemon and waits until it prints a line with `ready` in it.
    pub async fn start(&mut self, verb: &[&str], home: &Path, ready: &str) -> Result<()> {
        self.start_all(verb, &[home.to_owned()], ready).await
    }

    /// Starts a daemon for each home and waits until all are ready.
    pub async fn start_all(&mut self, verb: &[&str], homes: &[PathBuf], ready: &str) -> Result<()> {
        let first = self.running.len();
        for home in homes {
            let child = self.spawn(verb, home)?;
            self.running.push(child);
        }
        for (child, home) in self.running[first..].iter_mut().zip(homes) {
            let stdout = child.stdout.take().context("the pipe is gone")?;
            let mut lines = BufReader::new(stdout).lines();
            let waited = tokio::time::timeout(START_TIME, async {
                while let Some(line) = lines.next_line().await? {
                    if line.contains(ready) {
                        return Ok(true);
                    }
                }
                Ok::<_, std::io::Error>(false)
            });
            // Keeps reading, so that the daemon never waits for us.
            if matches!(waited.await, Ok(Ok(true))) {
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                continue;
            }
            let log = std::fs::read_to_string(home.with_extension("log")).unwrap_or_default();
            let last = log.lines().last().unwrap_or("it said nothing");
            bail!("the daemon of {} did not start: {last}", home.display());
        }
        Ok(())
    }

    /// Joins a site, as a process of its own.
    pub async fn join(
        &self,
        invite: &str,
        home: &Path,
        data: &Path,
        schema: &Path,
        arguments: &DemoArguments,
    ) -> Result<()> {
        let output = Command::new(&self.program)
            .args(["client", "join", invite, "--home"])
            .arg(home)
            .arg("--data")
            .arg(data)
            .arg("--schema")
            .arg(schema)
            .args([
                "--cap-epsilon",
                &arguments.epsilon.to_string(),
                "--cap-delta",
                &arguments.delta.to_string(),
            ])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot start a process")?;
        if !output.status.success() {
            bail!("joining failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Asks all daemons to end, and waits; whoever takes longer than `patience` is killed.
    pub async fn end(mut self, patience: Duration) -> Result<()> {
        for child in self.running.iter_mut().rev() {
            drop(child.stdin.take());
        }
        for child in &mut self.running {
            if tokio::time::timeout(patience, child.wait()).await.is_err() {
                child.kill().await?;
            }
        }
        Ok(())
    }
}
