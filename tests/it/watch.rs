//! `job watch`, read line by line: what a reader sees next is what a test waits for.

use crate::federation::{Federation, PROGRAM};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A running `job watch`; killed when dropped.
pub struct Watch {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Watch {
    /// Of the newest job.
    pub fn start(federation: &Federation) -> Self {
        Self::of(federation, &[])
    }

    /// Of the job that `arguments` name.
    pub fn of(federation: &Federation, arguments: &[&str]) -> Self {
        let mut process = Command::new(PROGRAM)
            .args(["job", "watch", "--home", federation.home().to_str().unwrap()])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { process, lines }
    }

    /// Reads on to a line that contains `text`.
    pub fn until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        for line in self.lines.iter() {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("nobody said {text}: {seen:?}")
    }

    /// The next line, if there is one within `time`.
    pub fn within(&mut self, time: Duration) -> Option<String> {
        self.lines.recv_timeout(time).ok()
    }

    /// Reads on until `count` more lines contain `text`.
    pub fn until_times(&mut self, text: &str, count: usize) {
        for _ in 0..count {
            self.until(text);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
