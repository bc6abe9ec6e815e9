//! `job plan`: what a job would cost and be worth, before anything is spent.

use crate::federation::{Federation, failure, output, records};
use serde_json::Value;

fn plan(federation: &Federation, job: &str) -> Value {
    let home = federation.home();
    let home = home.to_str().unwrap();
    serde_json::from_str(&output(&["job", "plan", job, "--home", home, "--format", "json"])).unwrap()
}

#[test]
fn a_plan_knows_each_sites_room_and_what_else_could_be_asked_for() {
    let federation = Federation::start();
    let caps = [("rich", "4"), ("poor", "2")];
    let homes: Vec<_> = caps
        .iter()
        .map(|(name, cap)| {
            federation.join(name, &records(80), &["--cap-epsilon", cap, "--cap-delta", "1e-4"])
        })
        .collect();
    let _sites: Vec<_> = homes.iter().map(|home| federation.serve_site(home)).collect();
    // A site says what it has left before it answers an offer, and a job begins once all have answered:
    // after this one both have spoken.
    let job = federation.job(2, 3.0, "[federation]\nmin_sites = 1");
    federation.operator(&["job", "submit", &job, "--watch"]);
    let jobs: Value =
        serde_json::from_str(&federation.operator(&["job", "list", "--format", "json"])).unwrap();
    assert_eq!(jobs[0]["sites"], 1, "{jobs}");
    let spent = federation.status(&homes[1])["ledger_entries"].clone();

    let small = plan(&federation, &federation.job(4, 1.0, "[federation]\nmin_sites = 1"));
    let large = plan(&federation, &federation.job(4, 3.0, "[federation]\nmin_sites = 1"));
    let poor = |plan: &Value| {
        plan["sites"].as_array().unwrap().iter().find(|site| site["name"] == "poor").unwrap().clone()
    };
    assert_eq!((&poor(&small)["can_run"], &poor(&large)["can_run"]), (&true.into(), &false.into()));
    assert_eq!(poor(&small)["spent_epsilon"], 0.0);
    let rounds = |plan: &Value| poor(plan)["rounds_left"].as_u64().unwrap();
    assert!(rounds(&small) >= 8 && rounds(&large) < 4, "{small} {large}");
    let choices = small["choices"].as_array().unwrap();
    let noise = |index: usize| choices[index]["noise_multiplier"].as_f64().unwrap();
    assert_eq!(choices.len(), 3);
    assert!(noise(1) > 1.5 * noise(0) && noise(2) < noise(0), "{choices:?}");
    for choice in choices {
        let (certified, epsilon) = (&choice["certified_epsilon"], &choice["epsilon"]);
        assert!(certified.as_f64().unwrap() <= epsilon.as_f64().unwrap());
        assert!((0.3..1.0).contains(&choice["expected_auc"].as_f64().unwrap()), "{choice}");
    }
    assert_eq!(federation.status(&homes[1])["ledger_entries"], spent, "a plan costs nothing");
}

#[test]
fn a_plan_without_a_coordinator_gives_epsilon_for_a_given_noise() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("schema.toml"), crate::federation::SCHEMA).unwrap();
    let write = |privacy: &str| {
        let text = format!("name = \"n\"\nschema = \"schema.toml\"\n[privacy]\ndelta = 1e-5\n{privacy}\n");
        std::fs::write(path("job.toml"), text).unwrap();
    };
    write("noise_multiplier = 20.0");
    let arguments = ["job", "plan", &path("job.toml"), "--offline", "--home", &path("none")];
    let text = output(&[&arguments[..], &["--format", "json"]].concat());
    let plan: Value = serde_json::from_str(&text).unwrap();
    let choice = &plan["choices"][0];
    assert_eq!(choice["noise_multiplier"], 20.0);
    // 90 releases at 20 are one of a Gaussian with mu = sqrt(90)/20: between the certified and the
    // Renyi figure.
    assert!((1.5..3.0).contains(&choice["epsilon"].as_f64().unwrap()), "{choice}");
    assert!(output(&arguments).contains("signal to noise"));
    write("noise_multiplier = 20.0\nepsilon = 1.0");
    assert!(failure(&arguments).contains("either `epsilon` or `noise_multiplier`"));
}
