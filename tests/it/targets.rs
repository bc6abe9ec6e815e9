//! Labels that are classes and items, and sequences of visits, through real daemons.

use crate::federation::{Federation, output, run};
use serde_json::Value;
use std::path::PathBuf;

const FEATURES: &str = "[[features]]\ncolumn = \"spend\"\nmin = 0\nmax = 1\n\
    [[features]]\ncolumn = \"paid\"\nmin = 0\nmax = 10\nlength = 4\n\
    [[features]]\ncolumn = \"shop\"\ncategories = [\"a\", \"b\"]\nlength = 4\n";

fn schema(label: &str) -> String {
    format!("name = \"test\"\ncustomer = \"id\"\n[label]\ncolumn = \"y\"\n{label}\n{FEATURES}")
}

/// Records whose label follows the shop that was visited; `label(shop)` is its text, for shops 0 to 2.
fn records(customers: usize, label: impl Fn(usize) -> &'static str) -> String {
    let row = |customer: usize| {
        let shop = customer % 3;
        let visits = customer % 7;
        let list = |entry: &str| vec![entry; visits].join(" ");
        let (paid, shops) = (list(["1", "5", "9"][shop]), list(["a", "b", "elsewhere"][shop]));
        format!("c{customer},0.{:02},{paid},{shops},{}\n", customer * 37 % 100, label(shop))
    };
    std::iter::once("id,spend,paid,shop,y\n".to_owned()).chain((0..customers).map(row)).collect()
}

fn join(federation: &Federation, label: &str, value: impl Fn(usize) -> &'static str) -> [PathBuf; 2] {
    std::fs::write(federation.path("schema.toml"), schema(label)).unwrap();
    ["berlin", "bonn"].map(|name| federation.join(name, &records(150, &value), &["--cap-epsilon", "50"]))
}

/// Trains `model` to the end: what was said of it, and the quality of the final model.
fn train(federation: &Federation, homes: &[PathBuf; 2], model: &str) -> (String, Value) {
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    let job = federation.job(4, 40.0, model);
    let said = federation.operator(&["job", "submit", &job, "--watch"]);
    assert!(said.contains("finished"), "{said}");
    let events = federation.operator(&["job", "watch", "--format", "json"]);
    let mut events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let last = events.rfind(|event| event["committed"]["quality"].is_object()).unwrap();
    (said, last["committed"]["quality"].clone())
}

/// What of a quality is there.
fn names(quality: &Value) -> Vec<&str> {
    let figures = quality.as_object().unwrap().iter();
    let mut names: Vec<&str> =
        figures.filter(|(_, value)| value.is_number()).map(|(name, _)| name.as_str()).collect();
    names.sort();
    names
}

/// The metadata of the exported model.
fn exported(federation: &Federation) -> Value {
    let path = federation.path("model.safetensors");
    federation.operator(&["model", "export", "--output", path.to_str().unwrap()]);
    let bytes = std::fs::read(path).unwrap();
    let (head, rest) = bytes.split_first_chunk::<8>().unwrap();
    let header: Value = serde_json::from_slice(&rest[..u64::from_le_bytes(*head) as usize]).unwrap();
    header["__metadata__"].clone()
}

#[test]
fn sites_learn_classes_from_sequences_and_quality_is_told_as_accuracy() {
    let federation = Federation::start();
    let label = "kind = \"classes\"\ncategories = [\"few\", \"some\", \"many\"]";
    let homes = join(&federation, label, |shop| ["few", "some", "many"][shop]);
    let (said, quality) = train(&federation, &homes, "");
    assert!(said.contains(", accuracy 0.") || said.contains(", accuracy 1."), "{said}");
    assert!(!said.contains("AUC"), "{said}");
    assert_eq!(names(&quality), ["accuracy", "mean_confidence"]);
    // The label follows the shop for all but the seventh who never came; at epsilon 40 that is found.
    assert!(quality["accuracy"].as_f64().unwrap() > 0.5, "{quality}");
    let metadata = exported(&federation);
    assert_eq!(metadata["weighhouse.target"], r#"{"classes":3}"#);
    let schema = metadata["weighhouse.schema"].as_str().unwrap();
    assert!(schema.contains(r#""kind":"classes","categories":["few","some","many"]"#), "{schema}");
    assert!(federation.operator(&["model", "list"]).contains("accuracy "));
}

#[test]
fn sites_rank_items_with_two_towers_and_quality_is_told_as_hit_rate() {
    let federation = Federation::start();
    let homes = join(&federation, "kind = \"item\"\nhash_buckets = 30", |shop| ["milk", "tea", "soap"][shop]);
    let model = "[model.two_tower]\nhidden = [6]\ndim = 4\nnegatives = 3";
    let (said, quality) = train(&federation, &homes, model);
    assert!(said.contains(", hit rate@10 ") && !said.contains("AUC"), "{said}");
    assert_eq!(names(&quality), ["hit_rate_at_10", "mean_reciprocal_rank"]);
    // Three of thirty-one items are all that anyone buys, which the items' biases alone tell.
    assert!(quality["hit_rate_at_10"].as_f64().unwrap() > 0.5, "{quality}");
    assert_eq!(exported(&federation)["weighhouse.target"], r#"{"item":31}"#);
    for home in &homes {
        assert!(federation.status(home)["epsilon_spent"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn a_site_whose_policy_allows_only_binary_labels_refuses_classes() {
    let federation = Federation::start();
    let homes =
        join(&federation, "kind = \"classes\"\ncategories = [\"x\", \"y\"]", |shop| ["x", "y", "x"][shop]);
    let policy = homes[0].join("policy.toml");
    let text = std::fs::read_to_string(&policy).unwrap();
    assert!(text.contains("\"classes\", "), "{text}");
    std::fs::write(&policy, text.replace("\"classes\", ", "")).unwrap();
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    let job = federation.job(1, 1.0, "[federation]\nmin_sites = 1");
    let watched = federation.operator(&["job", "submit", &job, "--watch"]);
    assert!(watched.contains("berlin refused: `jobs.tasks`"), "{watched}");
}

#[test]
fn records_that_the_schema_does_not_allow_are_refused_with_their_line() {
    let federation = Federation::start();
    let label = "kind = \"classes\"\ncategories = [\"x\", \"y\"]";
    std::fs::write(federation.path("schema.toml"), schema(label)).unwrap();
    for (name, row, says) in [
        ("berlin", "c1,0,1 2,a b,z", "line 3: label `y` is `z`, and must be one of the label's `categories`"),
        ("bonn", "c1,0,1 2,a,x", "line 3: column `shop` lists 1 entries and column `paid` 2"),
    ] {
        let home = federation.join(name, &format!("id,spend,paid,shop,y\nc0,0,1,a,y\n{row}\n"), &[]);
        let refused = run(&["client", "serve", "--home", home.to_str().unwrap()]);
        let error = String::from_utf8(refused.stderr).unwrap();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_plan_names_the_figure_of_the_label() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("schema.toml"), schema("kind = \"number\"\nmin = 0.0\nmax = 50.0")).unwrap();
    let job = "name = \"n\"\nschema = \"schema.toml\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n[training]\nrounds = 2\n";
    std::fs::write(path("job.toml"), job).unwrap();
    let arguments =
        ["job", "plan", &path("job.toml"), "--offline", "--home", &path("none"), "--format", "json"];
    let plan: Value = serde_json::from_str(&output(&arguments)).unwrap();
    let choice = &plan["choices"][0];
    assert!(choice["expected_mean_absolute_error"].as_f64().unwrap() > 0.0, "{choice}");
    assert!(choice["best_possible_mean_absolute_error"].as_f64().unwrap() > 0.0, "{choice}");
    assert!(choice["expected_auc"].is_null() && choice["expected_accuracy"].is_null(), "{choice}");
    let text = output(&arguments[..6]);
    assert!(text.contains("MAE") && !text.contains("AUC"), "{text}");
}
