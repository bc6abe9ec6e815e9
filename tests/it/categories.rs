//! Categorical columns from the schema to the model file, through real daemons.

use crate::federation::{Federation, failure, output};
use std::path::Path;

const SCHEMA: &str = "name = \"test\"\ncustomer = \"id\"\n[label]\ncolumn = \"y\"\nkind = \"binary\"\n\
    [[features]]\ncolumn = \"spend\"\nmin = 0\nmax = 1\n\
    [[features]]\ncolumn = \"tier\"\ncategories = [\"basic\", \"gold\"]\n\
    [[features]]\ncolumn = \"product\"\nhash_buckets = 4\n";

/// Records whose label follows the tier; some tiers are unknown, some products missing.
fn records(customers: usize) -> String {
    let row = |customer: usize| {
        let tier = ["basic", "gold", "platinum", ""][customer % 4];
        let product = if customer.is_multiple_of(7) { String::new() } else { format!("p{}", customer % 11) };
        let spend = customer * 37 % 100;
        format!("c{customer},0.{spend:02},{tier},{product},{}\n", u8::from(tier == "gold"))
    };
    std::iter::once("id,spend,tier,product,y\n".to_owned()).chain((0..customers).map(row)).collect()
}

fn join(federation: &Federation) -> [std::path::PathBuf; 2] {
    std::fs::write(federation.path("schema.toml"), SCHEMA).unwrap();
    ["berlin", "bonn"].map(|name| federation.join(name, &records(120), &[]))
}

fn metadata(path: &Path) -> (serde_json::Value, Vec<(String, Vec<usize>)>) {
    let bytes = std::fs::read(path).unwrap();
    let (head, rest) = bytes.split_first_chunk::<8>().unwrap();
    let header: serde_json::Value =
        serde_json::from_slice(&rest[..u64::from_le_bytes(*head) as usize]).unwrap();
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    let shape = |entry: &serde_json::Value| serde_json::from_value(entry["shape"].clone()).unwrap();
    let tensors = tensors.map(|(name, entry)| (name.clone(), shape(entry))).collect();
    (header["__metadata__"].clone(), tensors)
}

#[test]
fn sites_with_categories_train_a_wide_and_deep_model_and_it_is_exported_with_them() {
    let federation = Federation::start();
    let homes = join(&federation);
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    let model = "[model.wide_and_deep]\nhidden = [6]\nembedding_dim = 3";
    let job = federation.job(3, 4.0, model);
    let watched = federation.operator(&["job", "submit", &job, "--watch"]);
    assert!(watched.contains("finished"), "{watched}");
    let path = federation.path("model.safetensors");
    federation.operator(&["model", "export", "--output", path.to_str().unwrap()]);
    let (metadata, mut tensors) = metadata(&path);
    tensors.sort();
    let named: Vec<_> = tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    assert_eq!(
        named,
        [
            ("categories.0.weight", &[3, 1][..]),
            ("categories.1.weight", &[5, 1]),
            ("embeddings.0.weight", &[3, 3]),
            ("embeddings.1.weight", &[5, 3]),
            ("layers.0.bias", &[6]),
            ("layers.0.weight", &[6, 7]),
            ("layers.1.bias", &[1]),
            ("layers.1.weight", &[1, 6]),
            ("wide.weight", &[1, 1]),
        ]
    );
    let schema = metadata["weighhouse.schema"].as_str().unwrap();
    assert!(schema.contains(r#""categories":["basic","gold"]"#), "{schema}");
    assert!(metadata["weighhouse.spec"].as_str().unwrap().contains("wide_and_deep"));
    assert_eq!(metadata["weighhouse.inputs"], r#"{"numbers":1,"vocabularies":[3,5]}"#);
    // Both sites paid for it.
    for home in &homes {
        assert!(federation.status(home)["epsilon_spent"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn a_site_that_does_not_allow_wide_and_deep_refuses_it() {
    let federation = Federation::start();
    let homes = join(&federation);
    let policy = homes[0].join("policy.toml");
    let text = std::fs::read_to_string(&policy).unwrap();
    assert!(text.contains(", \"wide_and_deep\""), "{text}");
    std::fs::write(&policy, text.replace(", \"wide_and_deep\"", "")).unwrap();
    let _sites = homes.each_ref().map(|home| federation.serve_site(home));
    let model = "[model.wide_and_deep]\nhidden = [2]\n[federation]\nmin_sites = 1";
    let job = federation.job(1, 1.0, model);
    let watched = federation.operator(&["job", "submit", &job, "--watch"]);
    assert!(watched.contains("berlin refused: `jobs.models`"), "{watched}");
}

#[test]
fn a_plan_is_made_for_categories_without_a_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("schema.toml"), SCHEMA).unwrap();
    let job = |model: &str| {
        let text = format!(
            "name = \"n\"\nschema = \"schema.toml\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n{model}\n\
             [training]\nrounds = 2\n"
        );
        std::fs::write(path("job.toml"), text).unwrap();
        path("job.toml")
    };
    for (model, parameters) in [
        ("[model.logistic]", 1 + 1 + 3 + 5),
        ("[model.mlp]\nhidden = [2]", 2 * (17 + 1) + 3 + 8 * 8),
        ("[model.wide_and_deep]\nhidden = [2]\nembedding_dim = 1", 2 * (3 + 1) + 3 + 8 + 1 + 8),
    ] {
        let arguments =
            ["job", "plan", &job(model), "--offline", "--home", &path("none"), "--format", "json"];
        let plan: serde_json::Value = serde_json::from_str(&output(&arguments)).unwrap();
        assert_eq!(plan["parameters"], parameters, "{model}");
        assert!(plan["choices"][0]["expected_auc"].as_f64().unwrap() > 0.2, "{plan}");
    }
    let bad = job("[model.wide_and_deep]\nhidden = [2]\nembedding_dim = 0");
    let refusal = failure(&["job", "plan", &bad, "--offline", "--home", &path("none")]);
    assert!(refusal.contains("embedding_dim must be 1 to 256"), "{refusal}");
}
