//! A daemon's system calls as `strace` writes them down.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// What changes a file, makes it durable, or sends to the network.
const CALLS: &str = "trace=write,pwrite64,fdatasync,fsync,sync_file_range,?rename,renameat,renameat2,?unlink,\
                     unlinkat,sendmsg,sendmmsg,sendto";

/// A `strace` that writes the calls of the program given to it into `log`. `options` go before the program.
///
/// Panics where there is no `strace`: what these tests claim would otherwise go unchecked in silence.
pub fn tracer(log: &Path, options: &[&str]) -> Command {
    let probe = Command::new("strace").arg("--version").stdout(Stdio::null()).status();
    assert!(
        probe.is_ok_and(|status| status.success()),
        "this test watches a daemon's system calls and needs `strace`: apt-get install strace"
    );
    let mut tracer = Command::new("strace");
    tracer.args(["-f", "-y", "-s", "420", "-e", CALLS, "-o"]).arg(log).args(options);
    tracer
}

/// One system call. Its place in the order of all is where it began.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// Which thread made it.
    pub thread: u32,
    /// Its name.
    pub name: String,
    /// Its arguments as written; a file descriptor with its path behind it.
    pub arguments: String,
    /// What it gave; none if the process ended in it.
    pub result: Option<i64>,
    /// Line of the log where it began, and where it ended.
    pub lines: (usize, usize),
}

impl Call {
    /// Whether it is one of `names`, on an open file whose path ends in `path`.
    pub fn is_on(&self, names: &[&str], path: &str) -> bool {
        let file = self.arguments.split([',', ' ', ')']).next().unwrap_or_default();
        names.contains(&self.name.as_str()) && file.trim_end_matches('>').ends_with(path)
    }

    /// Whether it makes something durable.
    pub fn is_sync(&self) -> bool {
        ["fdatasync", "fsync"].contains(&self.name.as_str())
    }

    /// Bytes that it handed to the network.
    pub fn sent(&self) -> u64 {
        let sends = self.name.starts_with("send") && !self.arguments.contains("MSG_NOSIGNAL");
        self.result.filter(|_| sends).map_or(0, |result| u64::try_from(result).unwrap_or(0))
    }

    /// The kind of the ledger entry that it writes.
    pub fn ledger_entry(&self) -> Option<&str> {
        let writes = self.is_on(&["write"], "/ledger.jsonl");
        let (_, body) = self.arguments.split_once(r#"\"body\":{\""#).filter(|_| writes)?;
        body.split('\\').next()
    }
}

/// The calls in `log`, in the order in which they began.
pub fn read(log: &Path) -> Vec<Call> {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
    let mut calls: Vec<Call> = Vec::new();
    let mut unfinished: BTreeMap<u32, usize> = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let Some((thread, what)) = line.split_once(' ') else { continue };
        let (Ok(thread), what) = (thread.parse::<u32>(), what.trim_start()) else { continue };
        let result = what.rsplit_once(" = ").and_then(|(_, result)| result.split(' ').next()?.parse().ok());
        if what.starts_with("<... ") {
            if let Some(call) = unfinished.remove(&thread) {
                (calls[call].result, calls[call].lines.1) = (result, at);
            }
        } else if let Some((name, arguments)) = what.split_once('(') {
            let (name, arguments) = (name.to_owned(), arguments.to_owned());
            if arguments.ends_with("<unfinished ...>") {
                unfinished.insert(thread, calls.len());
            }
            calls.push(Call { thread, name, arguments, result, lines: (at, at) });
        }
    }
    calls
}
