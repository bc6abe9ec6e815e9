//! A coordinator and sites as processes of the real binary, for the other tests.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;

/// The binary under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_weighhouse");

/// A daemon; killed when dropped.
pub struct Daemon(Child);

impl Daemon {
    /// Starts `arguments` and waits for a line that contains `ready`.
    pub fn start(arguments: &[&str], ready: &str) -> Self {
        let mut program = Command::new(PROGRAM);
        program.args(arguments);
        Self::start_command(program, ready)
    }

    /// Starts `command`, which runs a daemon, and waits for a line that contains `ready`.
    pub fn start_command(command: Command, ready: &str) -> Self {
        let shown = format!("{command:?}");
        let (daemon, stdout) = Self::spawn(command);
        let mut lines = BufReader::new(stdout).lines();
        let found = lines.by_ref().map_while(Result::ok).any(|line| line.contains(ready));
        assert!(found, "{shown} never said {ready}");
        std::thread::spawn(move || lines.for_each(drop));
        daemon
    }

    /// Starts `command`, which runs a daemon; its standard output ends when it does.
    pub fn spawn(mut command: Command) -> (Self, ChildStdout) {
        command.arg("--end-with-stdin").env("RUST_LOG", "error");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        (Self(child), stdout)
    }

    /// Asks it to end, and waits for that.
    pub fn end(mut self) {
        // Waiting closes its standard input first, which asks it to end.
        self.0.wait().unwrap();
    }

    /// Its process's number.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// The most memory it has had, in MB.
    pub fn peak_memory_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// SIGKILL: no destructor, no goodbye.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits until it ends by itself; its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        // Waiting would close its standard input, which asks it to end.
        let stdin = self.0.stdin.take();
        let code = self.0.wait().unwrap().code();
        drop(stdin);
        code
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the binary to its end.
pub fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Runs the binary; its standard output. Panics with its error if it fails.
pub fn output(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the binary; the error line of its failure.
pub fn failure(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?} must fail");
    let error = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = error.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "one clear line: {error}");
    lines[0].to_owned()
}

/// A federation in a folder of its own.
pub struct Federation {
    folder: tempfile::TempDir,
    coordinator: Option<Daemon>,
}

/// A schema with three features.
pub const SCHEMA: &str = "name = \"test\"\ncustomer = \"id\"\n[label]\ncolumn = \"y\"\nkind = \"binary\"\n\
    [[features]]\ncolumn = \"a\"\nmin = 0\nmax = 1\n[[features]]\ncolumn = \"b\"\nmin = 0\nmax = 1\n\
    [[features]]\ncolumn = \"c\"\nmin = 0\nmax = 1\n";

/// Records whose label follows the first feature.
pub fn records(customers: usize) -> String {
    let row = |customer: usize| {
        let (a, b, c) = (customer * 37 % 100, customer * 61 % 100, customer * 13 % 100);
        format!("c{customer},0.{a:02},0.{b:02},0.{c:02},{}\n", u8::from(a + b / 4 > 60))
    };
    std::iter::once("id,a,b,c,y\n".to_owned()).chain((0..customers).map(row)).collect()
}

impl Federation {
    /// Makes and starts a coordinator on a free port.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("hq");
        let home = home.to_str().unwrap();
        // The port stays the same over restarts, as a real one does.
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listen = port.to_string();
        output(&["coordinator", "init", "--home", home, "--listen", &listen, "--public-address", &listen]);
        Self::at(folder)
    }

    /// Starts the coordinator whose home is `hq` in `folder`.
    pub fn at(folder: tempfile::TempDir) -> Self {
        let mut federation = Self { folder, coordinator: None };
        std::fs::write(federation.path("schema.toml"), SCHEMA).unwrap();
        federation.serve();
        federation
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The coordinator's home.
    pub fn home(&self) -> PathBuf {
        self.path("hq")
    }

    /// Starts the coordinator's daemon.
    pub fn serve(&mut self) {
        let home = self.home();
        self.coordinator =
            Some(Daemon::start(&["coordinator", "serve", "--home", home.to_str().unwrap()], "listening"));
    }

    /// Kills the coordinator's daemon.
    pub fn kill_coordinator(&mut self) {
        self.coordinator.take().unwrap().kill();
    }

    /// Runs an operator's command.
    pub fn operator(&self, arguments: &[&str]) -> String {
        let home = self.home();
        output(&[arguments, &["--home", home.to_str().unwrap()]].concat())
    }

    /// Joins a site with records of its own; its home.
    pub fn join(&self, name: &str, records: &str, extra: &[&str]) -> PathBuf {
        let invite = self.operator(&["site", "invite", name]);
        let (home, data) = (self.path(name), self.path(&format!("{name}.csv")));
        std::fs::write(&data, records).unwrap();
        let schema = self.path("schema.toml");
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let (home_text, data, schema) = (text(&home), text(&data), text(&schema));
        let join =
            ["client", "join", invite.trim(), "--home", &home_text, "--data", &data, "--schema", &schema];
        output(&[&join, extra].concat());
        home
    }

    /// Starts the coordinator's daemon under `tracer`, a command that takes the program to run.
    pub fn serve_under(&mut self, mut tracer: Command) {
        tracer.arg(PROGRAM).args(["coordinator", "serve", "--home"]).arg(self.home());
        self.coordinator = Some(Daemon::start_command(tracer, "listening"));
    }

    /// Asks the coordinator's daemon to end, and waits for that.
    pub fn end_coordinator(&mut self) {
        self.coordinator.take().unwrap().end();
    }

    /// The most memory the coordinator has had, in MB.
    pub fn peak_memory_mb(&self) -> f64 {
        self.coordinator.as_ref().unwrap().peak_memory_mb()
    }

    /// Starts a site's daemon.
    pub fn serve_site(&self, home: &Path) -> Daemon {
        Daemon::start(&["client", "serve", "--home", home.to_str().unwrap()], "is connected")
    }

    /// Writes a job file; its path. `more` is TOML that goes under the privacy section.
    pub fn job(&self, rounds: u32, epsilon: f64, more: &str) -> String {
        let path = self.path("job.toml");
        let text = format!(
            "name = \"test\"\nschema = \"schema.toml\"\n[privacy]\nepsilon = {epsilon:?}\ndelta = 1e-4\n{more}\n\
             [training]\nrounds = {rounds}\n"
        );
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A site's status.
    pub fn status(&self, home: &Path) -> serde_json::Value {
        let text = output(&["client", "status", "--home", home.to_str().unwrap(), "--format", "json"]);
        serde_json::from_str(&text).unwrap()
    }
}

/// A site's daemon and what it says.
pub fn talking(home: &Path) -> (Daemon, mpsc::Receiver<String>) {
    let mut command = Command::new(PROGRAM);
    command.args(["client", "serve", "--home"]).arg(home);
    let (daemon, stdout) = Daemon::spawn(command);
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    (daemon, lines)
}
