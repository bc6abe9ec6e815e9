//! Bad input: one clear line that says what to do, an exit code that is not 0, nothing half-written.

use crate::federation::{Federation, PROGRAM, SCHEMA, failure, output, records, run};
use std::process::{Command, Stdio};

/// Joins a site with good records, replaces them, and tells how its daemon fails.
fn serve_with(records_after: &str, schema_after: &str) -> String {
    let federation = Federation::start();
    let home = federation.join("shop", &records(20), &[]);
    std::fs::write(federation.path("shop.csv"), records_after).unwrap();
    std::fs::write(federation.path("schema.toml"), schema_after).unwrap();
    let error = failure(&["client", "serve", "--home", home.to_str().unwrap()]);
    assert!(!home.join("ledger.jsonl").exists(), "nothing half-written");
    error
}

#[test]
fn records_that_cannot_be_used_are_refused_with_their_place() {
    assert!(serve_with("id,a,b,y\nc1,0,0,1\n", SCHEMA).contains("no column `c`"));
    assert!(serve_with("id,a,b,c\nc1,0,0,0\n", SCHEMA).contains("no column `y`"));
    assert!(serve_with("id,a,b,c,y\nc1,0,cheap,0,1\n", SCHEMA).contains("line 2: column `b` holds `cheap`"));
    assert!(
        serve_with("id,a,b,c,y\nc1,0,0,0,1\nc2,0,0,0,1\n", SCHEMA).contains("every row's label `y` is 1")
    );
    assert!(serve_with("id,a,b,c,y\n", SCHEMA).contains("no row"));
    assert!(serve_with(&records(20), "name = 3").contains("schema.toml is not valid"));
    assert!(serve_with(&records(20), &SCHEMA.replace("max = 1", "max = 0")).contains("min below max"));
}

#[test]
fn a_missing_or_unreadable_config_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("none");
    let home = home.to_str().unwrap();
    assert!(failure(&["client", "serve", "--home", home]).contains("join first"));
    assert!(failure(&["coordinator", "serve", "--home", home]).contains("coordinator init"));
    assert!(failure(&["site", "list", "--home", home]).contains("coordinator init"));
    std::fs::create_dir(home).unwrap();
    std::fs::write(format!("{home}/client.toml"), "name = \"x\"\ncolour = \"red\"\n").unwrap();
    assert!(failure(&["client", "status", "--home", home]).contains("client.toml is not valid"));
}

#[test]
fn a_home_is_never_overwritten_and_a_path_that_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().to_str().unwrap();
    assert!(failure(&["coordinator", "init", "--home", taken]).contains("already exists"));
    let impossible = "/proc/weighhouse/hq";
    assert!(failure(&["coordinator", "init", "--home", impossible]).contains("cannot write /proc"));
    let cut = ["client", "join", "weighhouse-1-abc", "--home", "/tmp/x", "--data", "a", "--schema", "b"];
    let output = run(&cut);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a whole invite"));
}

/// A limit of no bytes a file, as a full disk: the write fails, and the daemon says so and ends.
#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(20), &[]);
    let command = format!("trap '' XFSZ; ulimit -f 0; exec {PROGRAM} client serve --home {}", home.display());
    let output = Command::new("sh").args(["-c", &command]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("error: cannot use the privacy ledger"), "{error}");
    assert_eq!(std::fs::read(home.join("ledger.jsonl")).unwrap(), b"");
    // With room again, the site goes on by itself.
    drop(federation.serve_site(&home));
    assert_eq!(federation.status(&home)["ledger_entries"], 1);
}

#[test]
fn a_ledger_that_is_no_plain_file_is_refused() {
    let federation = Federation::start();
    let home = federation.join("shop", &records(20), &[]);
    std::os::unix::fs::symlink("/dev/zero", home.join("ledger.jsonl")).unwrap();
    let error = failure(&["client", "serve", "--home", home.to_str().unwrap()]);
    assert!(error.contains("not a plain file"), "{error}");
}

#[test]
fn a_port_in_use_and_a_second_daemon_are_refused() {
    let federation = Federation::start();
    let taken = std::fs::read_to_string(federation.home().join("address")).unwrap();
    let other = federation.path("other");
    let other = other.to_str().unwrap();
    output(&["coordinator", "init", "--home", other, "--listen", &taken]);
    let error = failure(&["coordinator", "serve", "--home", other]);
    assert!(error.contains(&format!("cannot listen on {taken}")), "{error}");

    let home = federation.join("shop", &records(20), &[]);
    let _daemon = federation.serve_site(&home);
    let error = failure(&["client", "serve", "--home", home.to_str().unwrap()]);
    assert!(error.contains("another daemon already runs"), "{error}");
}

#[test]
fn a_job_that_cannot_run_is_refused_before_it_starts() {
    let federation = Federation::start();
    let submit = |text: &str| {
        let path = federation.path("job.toml");
        std::fs::write(&path, text).unwrap();
        let home = federation.home();
        failure(&["job", "submit", path.to_str().unwrap(), "--home", home.to_str().unwrap()])
    };
    let privacy = "[privacy]\nepsilon = 8\ndelta = 1e-4\n";
    let head = "name = \"x\"\nschema = \"schema.toml\"\n";
    assert!(submit("name = \"x\"").contains("schema"));
    assert!(
        submit(&format!("{head}[privacy]\nepsilon = -1\ndelta = 1e-4\n")).contains("epsilon must be above 0")
    );
    assert!(
        submit(&format!("{head}{privacy}[training]\nrounds = 0\n"))
            .contains("training.rounds must be from 1")
    );
    assert!(submit(&format!("{head}{privacy}[training]\nspeed = 3\n")).contains("unknown field `speed`"));
    assert!(submit(&format!("{head}{privacy}[model.mlp]\nhidden = []\n")).contains("model"));
    assert!(
        submit("name = \"x\"\nschema = \"none.toml\"\n[privacy]\nepsilon = 8\ndelta = 1e-4\n")
            .contains("none.toml")
    );
}

#[test]
fn a_job_for_another_schema_is_refused_by_the_site_with_the_reason() {
    let federation = Federation::start();
    let homes = [federation.join("berlin", &records(40), &[]), federation.join("bonn", &records(40), &[])];
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    std::fs::write(federation.path("schema.toml"), SCHEMA.replace("\"test\"", "\"other\"")).unwrap();
    let job = federation.job(2, 1.0, "");
    federation.operator(&["job", "submit", &job]);
    // The site's own word on it: its status names both schemas.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let status = federation.status(&homes[0]);
        if let Some(last) = status["last_job"].as_str() {
            assert!(last.contains("`other`") && last.contains("`test`"), "{last}");
            assert_eq!(status["epsilon_reserved"], 0.0);
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the site never judged the job");
        std::thread::yield_now();
    }
}
