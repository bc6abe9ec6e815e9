use super::*;
use weighhouse_shared::model::{ModelSpec, Rows as Inputs};
use weighhouse_shared::schema::{Feature, Items, Label, LabelKind, Values};

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
    model_of(&schema(), spec, parameters)
}

fn model_of(schema: &Schema, spec: ModelSpec, parameters: impl Fn(usize) -> f32) -> Model {
    let shape = schema.shape();
    let network = weighhouse_shared::model::Network::new(&spec, shape.clone()).unwrap();
    let parameters = (0..network.parameter_count()).map(parameters).collect();
    let schema_json = serde_json::to_string(schema).unwrap();
    let artifact = ModelArtifact { spec, shape, schema_json, parameters };
    Model::from_bytes(&artifact.to_safetensors().unwrap(), Path::new("m.safetensors")).unwrap()
}

/// Weights of spend, visits; the bias; weights of basic, gold, other.
const LOGISTIC: [f32; 6] = [0.5, -0.25, 0.125, 1.0, -2.0, 0.75];

fn logistic() -> Model {
    model(ModelSpec::Logistic {}, |at| LOGISTIC[at])
}

fn options(reasons: Option<Reasons>, format: TableFormat) -> Options {
    Options { keep: Vec::new(), skip_bad_rows: false, reasons, format, top: None, new_items_only: false }
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

fn labelled(kind: LabelKind) -> Schema {
    Schema { label: Label { column: "y".into(), kind }, ..schema() }
}

const EVERY: Listing = Listing { top: MAX_TOP, new_items_only: false };

/// Scores with a dozen items are explained by a network of two, the one explained being both.
#[test]
fn one_items_score_is_explained_without_the_other_items_and_to_the_same_bit() {
    let spec = ModelSpec::TwoTower { hidden: vec![5], dim: 4, negatives: 3 };
    for items in [1, 11] {
        let schema = labelled(LabelKind::Item(Items::HashBuckets(items)));
        let model = model_of(&schema, spec.clone(), |at| (at as f32 * 0.7).sin());
        let rows = Inputs { numbers: &[0.5, -1.0, 1.0, 0.25], ids: &[2, 0], ..Inputs::default() };
        let outputs = model.scorer.raw_outputs(&rows);
        let (count, mut probe) = (items as usize + 1, model.scorer.probe());
        for item in (0..count).rev() {
            probe.aim(item);
            let expected = [outputs[item], outputs[count + item]].map(f64::from);
            assert_eq!(probe.explain(&rows), expected, "item {item} of {count}");
        }
    }
}

#[test]
fn items_are_listed_from_the_best_on_and_of_equal_ones_and_classes_the_first() {
    let spec = ModelSpec::TwoTower { hidden: vec![2], dim: 2, negatives: 1 };
    let ranks = model_of(&labelled(LabelKind::Item(Items::HashBuckets(4))), spec, |_| 0.0).scorer;
    let scores = [0.5, 2.0, -1.0, 2.0, 0.5];
    let list = |top, new_items_only, history: &[u32]| {
        ranks.choose(&scores, Listing { top, new_items_only }, history)
    };
    assert_eq!(list(100, false, &[]), [1, 3, 0, 4, 2]);
    assert_eq!(list(3, false, &[1]), [1, 3, 0]);
    assert_eq!(list(3, true, &[1, 1, 9]), [3, 0, 4]);
    assert_eq!(list(3, true, &[0, 1, 2, 3, 4]), [0; 0]);
    assert_eq!(ranks.columns(Listing { top: 1, new_items_only: true }), ["item_1", "item_1_score"]);
    assert_eq!(ranks.columns(EVERY).len(), 10);
    let mut values = Vec::new();
    ranks.values(&scores, &[3, 4], Listing { top: 3, new_items_only: true }, &mut values);
    let text = |text: &str| Value::Text(text.into());
    let [third, last] = [2.0, 0.5].map(Value::Single);
    assert_eq!(values, [text("bucket 3"), third, text("other"), last, Value::Empty, Value::Empty]);

    let classes = LabelKind::Classes(vec!["a".into(), "b".into(), "c".into()]);
    let classes = model_of(&labelled(classes), ModelSpec::Logistic {}, |_| 0.0).scorer;
    assert_eq!(classes.choose(&[0.2, 0.4, 0.4], EVERY, &[]), [1]);
}

/// With three classes a logistic model's log-odds interact; with two they are the difference of two logits.
#[test]
fn log_odds_are_those_of_the_predicted_class_against_all_others() {
    let classes = |names: &[&str]| LabelKind::Classes(names.iter().map(|&name| name.into()).collect());
    let scorer = |names| model_of(&labelled(classes(names)), ModelSpec::Logistic {}, |_| 0.0).scorer;
    let (two, three) = (scorer(&["a", "b"]), scorer(&["a", "b", "c"]));
    assert!(two.is_additive() && !three.is_additive());
    assert_eq!(two.quantity(&[1.5, 0.25], 0), 1.25);
    let odds: f64 = 1.0 / (2.0 + 4.0);
    let logits = [2f32.ln(), 0.0, 4f32.ln()];
    assert!((three.quantity(&logits, 1) - odds.ln()).abs() < 1e-6);
    // Far past where exponentials overflow.
    assert_eq!(three.quantity(&[0.0, 4000.0, 1000.0], 1), 3000.0);
}

/// A number's unit is the label's, in the prediction, the base and the contributions: the weight of `spend` moves it by
/// 0.5 x 1 of half of 200.
#[test]
fn numbers_and_their_reasons_are_in_the_labels_own_units() {
    let number = labelled(LabelKind::Number { min: 100.0, max: 300.0 });
    let model = model_of(&number, ModelSpec::Logistic {}, |at| LOGISTIC[at]);
    let all = options(Some(Reasons::All), TableFormat::Csv);
    let (output, _) = predicted(&model, "id,tier,spend,visits\nu,gold,4,1\n", &all).unwrap();
    let columns =
        "prediction,explained_prediction,base,contribution_tier,contribution_spend,contribution_visits";
    assert_eq!(output, format!("id,{columns}\nu,62.5,62.5,287.5,-275,50,0\n"));
}

/// Long sequences and many items make short chunks, so that memory does not grow with them.
#[test]
fn a_chunk_holds_as_many_rows_as_can_be_scored_at_once() {
    let mut schema = schema();
    schema.features[1].length = Some(1024);
    let spec = ModelSpec::Lstm { hidden: vec![64], dropout: 0.0, embedding_dim: 2, negatives: 1 };
    let model = model_of(&schema, spec, |_| 0.0);
    let visits = vec!["1"; 1000].join(" ");
    let input: String = std::iter::once("id,tier,spend,visits\n".into())
        .chain((0..500).map(|row| format!("c{row},gold,{},1\n", if row < 100 { "" } else { &visits })))
        .collect();
    let mut reader = TableReader::new(input.as_bytes(), "rows", &schema, &model.scorer, &[], &[]).unwrap();
    let mut chunks = Vec::new();
    while let Some(rows) = reader.next_chunk(false).unwrap() {
        chunks.push((rows.len(), rows.table.step_starts()[rows.len()]));
    }
    assert_eq!(chunks.iter().map(|(rows, _)| rows).sum::<usize>(), 500);
    assert!(chunks[0].0 > 100, "rows without steps are short: {chunks:?}");
    let [_, step] = model.scorer.bytes();
    assert!(chunks.iter().all(|(_, steps)| (*steps as usize).saturating_sub(1000) * step < 256 << 20));
    assert!(chunks.len() > 2, "{chunks:?}");
}
