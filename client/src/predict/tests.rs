use super::*;
use weighhouse_shared::model::ModelSpec;
use weighhouse_shared::schema::{Feature, Label, LabelKind, Values};

/// A number from 0 to 4, a category, a hashed one.
fn schema() -> Schema {
    let feature = |column: &str, values| Feature { column: column.into(), values, length: None };
    Schema {
        name: "test".into(),
        customer: "id".into(),
        label: Label { column: "y".into(), kind: LabelKind::Binary },
        features: vec![
            feature("tier", Values::Categories(vec!["basic".into(), "gold".into()])),
            feature("spend", Values::Numeric { min: 0.0, max: 4.0 }),
            feature("visits", Values::Numeric { min: 0.0, max: 2.0 }),
        ],
    }
}

fn model(spec: ModelSpec, parameters: impl Fn(usize) -> f32) -> Model {
    let inputs = schema().input_shape();
    let network = weighhouse_shared::model::Network::new(&spec, inputs.clone()).unwrap();
    let parameters = (0..network.parameter_count()).map(parameters).collect();
    let schema_json = serde_json::to_string(&schema()).unwrap();
    let artifact = ModelArtifact { spec, shape: inputs.into(), schema_json, parameters };
    Model::from_bytes(&artifact.to_safetensors().unwrap(), Path::new("m.safetensors")).unwrap()
}

/// Weights of spend, visits; the bias; weights of basic, gold, other.
const LOGISTIC: [f32; 6] = [0.5, -0.25, 0.125, 1.0, -2.0, 0.75];

fn logistic() -> Model {
    model(ModelSpec::Logistic {}, |at| LOGISTIC[at])
}

fn options(reasons: Option<Reasons>, format: TableFormat) -> Options {
    Options { keep: Vec::new(), skip_bad_rows: false, reasons, format }
}

fn predicted(model: &Model, input: &str, options: &Options) -> Result<(String, Summary), PredictError> {
    let mut output = Vec::new();
    let summary = predict(model, input.as_bytes(), "rows.csv", &mut output, options, |_, _| ())?;
    Ok((String::from_utf8(output).unwrap(), summary))
}

fn refusal(input: &str, options: &Options) -> String {
    predicted(&logistic(), input, options).unwrap_err().to_string()
}

#[test]
fn each_row_is_scored_in_order_without_a_label_and_keeps_its_customer_and_chosen_columns() {
    let input = "city,visits,id,tier,spend\n Rome ,1,u,gold,4\nBonn,2,\"v,1\",basic,2\n";
    let options = Options { keep: vec!["city".into()], ..options(None, TableFormat::Csv) };
    let (output, summary) = predicted(&logistic(), input, &options).unwrap();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "id,city,probability");
    // Logits 0.5 - 0 + 0.125 - 2 and 0 - 0.25 + 0.125 + 1.
    let probability = |line: &str| line.rsplit(',').next().unwrap().parse::<f64>().unwrap();
    assert!(lines[1].starts_with("u, Rome ,") && lines[2].starts_with("\"v,1\",Bonn,"), "{output}");
    assert!((probability(lines[1]) - 1.0 / (1.0 + 1.375f64.exp())).abs() < 1e-6);
    assert!((probability(lines[2]) - 1.0 / (1.0 + (-0.875f64).exp())).abs() < 1e-6);
    assert_eq!((lines.len(), summary), (3, Summary { scored: 2, skipped: 0, first_skipped: None }));
}

/// The baseline's logit is 0.125 + 0.75 (the category "other"); a number's contribution is its weight times its
/// scaled value, a category's the difference of two weights. All are multiples of 1/8: exact in binary.
#[test]
fn a_logistic_models_contributions_are_those_worked_out_by_hand() {
    let input = "id,tier,spend,visits\nu,gold,4,1\nv,basic,1,0\nw,mars,2,1\n";
    let all = options(Some(Reasons::All), TableFormat::Csv);
    let (output, _) = predicted(&logistic(), input, &all).unwrap();
    let lines: Vec<(&str, &str)> = output
        .lines()
        .map(|line| (line.split(',').next().unwrap(), line.splitn(3, ',').nth(2).unwrap()))
        .collect();
    assert_eq!(
        lines,
        [
            ("id", "logit,base,contribution_tier,contribution_spend,contribution_visits"),
            ("u", "-1.375,0.875,-2.75,0.5,0"),
            ("v", "1.125,0.875,0.25,-0.25,0.25"),
            ("w", "0.875,0.875,0,0,0"),
        ]
    );
    let top = options(Some(Reasons::Top(2)), TableFormat::JsonLines);
    let (output, _) = predicted(&logistic(), input, &top).unwrap();
    let rows: Vec<serde_json::Value> =
        output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows[0]["reason_1"], "tier");
    assert_eq!(rows[0]["reason_1_contribution"], -2.75);
    assert_eq!((&rows[0]["reason_2"], &rows[2]["reason_1"]), (&"spend".into(), &serde_json::Value::Null));
    assert!(rows[1]["probability"].as_f64().unwrap() > 0.7);
}

/// A model with interactions: base and contributions add up to the network's own logit, and the same input gives
/// the same bytes.
#[test]
fn contributions_add_up_to_the_logit_whatever_the_model() {
    let spec = ModelSpec::WideAndDeep { hidden: vec![5, 3], embedding_dim: 2 };
    let model = model(spec, |at| (at as f32 * 0.7).sin());
    let tiers = ["gold", "basic", "", "mars"];
    let row = |i: usize| format!("c{i},{},{},{}\n", tiers[i % 4], i % 5, i % 3);
    let input: String = std::iter::once("id,tier,spend,visits\n".into()).chain((0..60).map(row)).collect();
    let all = options(Some(Reasons::All), TableFormat::Csv);
    let (output, summary) = predicted(&model, &input, &all).unwrap();
    assert_eq!(summary.scored, 60);
    let mut moved = false;
    for line in output.lines().skip(1) {
        let numbers: Vec<f64> = line.split(',').skip(1).map(|cell| cell.parse().unwrap()).collect();
        let [probability, logit, base, contributions @ ..] = &numbers[..] else { panic!("{line}") };
        assert!((base + contributions.iter().sum::<f64>() - logit).abs() < 1e-12, "{line}");
        assert!((1.0 / (1.0 + (-logit).exp()) - probability).abs() < 1e-6, "{line}");
        moved |= contributions.iter().all(|by| *by != 0.0);
    }
    assert!(moved);
    assert_eq!(predicted(&model, &input, &all).unwrap().0, output);
}

#[test]
fn bad_rows_are_refused_with_line_and_column_or_left_out_and_counted() {
    let plain = options(None, TableFormat::Csv);
    let refused = |row: &str| refusal(&format!("id,tier,spend,visits\nu,gold,1,1\n{row}\n"), &plain);
    assert!(refused("v,gold,cheap,1").contains("rows.csv, line 3: column `spend` holds `cheap`"));
    assert!(refused("v,gold,1,inf").contains("line 3: column `visits` holds `inf`"));
    assert!(refused("v,gold,1").contains("line 3: 3 cells, and the header has 4"));
    assert!(refused(" ,gold,1,1").contains("line 3: the customer column `id` is empty"));
    assert!(
        refusal("id,tier,spend\n", &plain).contains("no column `visits`; its header is: id, tier, spend")
    );
    assert!(refusal("", &plain).contains("no column"));
    let keep = Options { keep: vec!["town".into()], ..plain.clone() };
    assert!(refusal("id,tier,spend,visits\n", &keep).contains("no column `town`"));
    let twice = Options { keep: vec!["id".into()], ..plain.clone() };
    assert!(refusal("id,tier,spend,visits\n", &twice).contains("two columns `id`"));

    let skipping = Options { skip_bad_rows: true, ..plain };
    let input = "id,tier,spend,visits\nu,gold,1,1\nv,gold,cheap,1\nw,gold\n,gold,1,1\nx,basic,0,0\n";
    let (output, summary) = predicted(&logistic(), input, &skipping).unwrap();
    assert_eq!(output.lines().map(|line| &line[..1]).collect::<Vec<_>>(), ["i", "u", "x"]);
    assert_eq!((summary.scored, summary.skipped), (2, 3));
    assert!(summary.first_skipped.unwrap().contains("line 3: column `spend`"));
}

#[test]
fn a_quotation_mark_left_open_does_not_swallow_the_file() {
    let mut input = String::from("id,tier,spend,visits\nu,\"gold,1,1\n");
    input.extend((0..500_000).map(|_| "v,gold,1,1\n"));
    let error = predicted(&logistic(), &input, &options(None, TableFormat::Csv)).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("quotation mark left open"), "{error}: {cause}");
}

#[test]
fn a_table_without_rows_is_a_table_without_scores() {
    let (output, summary) =
        predicted(&logistic(), "id,tier,spend,visits\n", &options(None, TableFormat::Csv)).unwrap();
    assert_eq!((output.as_str(), summary.scored), ("id,probability\n", 0));
}

/// More rows than two chunks, so that each chunk begins where the one before ended.
#[test]
fn no_row_is_lost_between_chunks() {
    let rows = 10_000;
    let input: String = std::iter::once("id,tier,spend,visits\n".into())
        .chain((0..rows).map(|row| format!("c{row},gold,{},1\n", row % 5)))
        .collect();
    let mut heard = Vec::new();
    let mut output = Vec::new();
    let plain = options(None, TableFormat::Csv);
    predict(&logistic(), input.as_bytes(), "rows", &mut output, &plain, |read, rows| {
        heard.push((read, rows))
    })
    .unwrap();
    let output = String::from_utf8(output).unwrap();
    let customers = output.lines().skip(1).map(|line| line.split(',').next().unwrap().to_owned());
    assert!(customers.eq((0..rows).map(|row| format!("c{row}"))));
    assert_eq!(heard.len(), 3);
    assert_eq!(heard.last(), Some(&(input.len() as u64, rows)));
}

#[test]
fn a_model_whose_schema_is_not_its_own_is_refused() {
    let inputs = schema().input_shape();
    let artifact = |schema_json: String| ModelArtifact {
        spec: ModelSpec::Logistic {},
        shape: inputs.clone().into(),
        schema_json,
        parameters: LOGISTIC.to_vec(),
    };
    let refusal = |artifact: ModelArtifact| {
        let bytes = artifact.to_safetensors().unwrap();
        Model::from_bytes(&bytes, Path::new("m.safetensors")).unwrap_err().to_string()
    };
    assert!(refusal(artifact("{}".into())).contains("the schema in m.safetensors is malformed"));
    let mut other = schema();
    other.features.pop();
    assert!(refusal(artifact(serde_json::to_string(&other).unwrap())).contains("malformed"));
    let mut other = schema();
    other.features[1].values = Values::Numeric { min: 1.0, max: 1.0 };
    assert!(refusal(artifact(serde_json::to_string(&other).unwrap())).contains("is not valid"));
    let none = Model::from_bytes(b"not a model", Path::new("m")).unwrap_err().to_string();
    assert!(none.contains("not a model that this program can use"), "{none}");
}
