//! How the binary fails: one line on standard error, and an exit code that says whose turn it is.
//!
//! 1: it did not work; the line says what to do. 2: the command line is wrong. 3: the job ended without a
//! model. 130: interrupted.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

/// The job was stopped or failed.
#[derive(Debug)]
pub struct JobDidNotFinish(pub String);

impl fmt::Display for JobDidNotFinish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for JobDidNotFinish {}

/// Ctrl-C.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The doctor found problems, and has said which.
#[derive(Debug)]
pub struct Unwell {
    /// The home.
    pub home: PathBuf,
    /// How many.
    pub problems: usize,
}

impl fmt::Display for Unwell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problems = if self.problems == 1 { "problem" } else { "problems" };
        write!(f, "{} has {} {problems}; see the cures above", self.home.display(), self.problems)
    }
}

impl std::error::Error for Unwell {}

/// Prints `error` with its causes on one line and returns its exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let line = format!("{error:#}").replace('\n', " ");
    eprintln!("error: {line}");
    if error.is::<JobDidNotFinish>() {
        ExitCode::from(3)
    } else if error.is::<Interrupted>() {
        ExitCode::from(130)
    } else {
        ExitCode::FAILURE
    }
}
