//! The README's walk-through, run line by line as a reader would.

use crate::federation::{Daemon, PROGRAM};
use std::path::Path;
use std::process::Command;

/// The commands between the walk-through's markers, in order.
fn commands() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let section = readme.split("<!-- walk-through -->").nth(1).expect("the README has a walk-through");
    let mut inside = false;
    let mut commands = Vec::new();
    for line in section.lines() {
        match line.trim() {
            fence if fence.starts_with("```") => inside = !inside,
            command if inside && !command.is_empty() && !command.starts_with('#') => {
                commands.push(command.to_owned());
            }
            _ => {}
        }
    }
    commands
}

#[test]
fn the_readmes_three_terminal_walk_through_works() {
    let folder = tempfile::tempdir().unwrap();
    for part in ["configs", "tests"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(part);
        std::os::unix::fs::symlink(source, folder.path().join(part)).unwrap();
    }
    let bin = Path::new(PROGRAM).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let commands = commands();
    assert!(commands.len() >= 10, "{commands:?}");
    let mut daemons = Vec::new();
    for command in &commands {
        if let Some(arguments) = command.strip_prefix("weighhouse ").filter(|rest| rest.contains(" serve ")) {
            let home = arguments.split_whitespace().last().unwrap();
            let home = folder.path().join(home);
            let verb = arguments.split_whitespace().next().unwrap();
            let ready = if verb == "coordinator" { "listening" } else { "is connected" };
            daemons.push(Daemon::start(&[verb, "serve", "--home", home.to_str().unwrap()], ready));
            continue;
        }
        // A free port instead of the well-known one, so that tests can run beside a real coordinator.
        let command = match command.contains("coordinator init") {
            true => format!("{command} --listen 127.0.0.1:0 --public-address 127.0.0.1:0"),
            false => command.clone(),
        };
        let status = Command::new("sh")
            .args(["-c", &command])
            .current_dir(folder.path())
            .env("PATH", &path)
            .status()
            .unwrap();
        assert!(status.success(), "{command}");
    }
    assert!(daemons.len() >= 3);
    assert!(folder.path().join("campaign.safetensors").is_file());
}
