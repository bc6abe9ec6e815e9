//! A small model of every kind, never trained, and rows for it: for other tests.

use std::path::Path;
use weighhouse_shared::model::{ActivationName, ModelArtifact, ModelSpec, Network, Workspace};
use weighhouse_shared::schema::{RowReader, RowTable, Schema};

/// A model, its parameters drawn from a fixed seed.
pub struct Sample {
    /// What its files are called.
    pub name: &'static str,
    /// What its rows are.
    pub schema: Schema,
    spec: ModelSpec,
}

/// One column more than any schema names, and rows with long, short and empty sequences.
const ROWS: [&str; 7] = [
    "id,town,age,tier,rated,paid,product",
    "u1,Rome,50,gold,tea,1 5 9,milk tea tea",
    "u2,Bonn,20,basic,soap,,",
    "u3,Bonn,95,mars,milk,10,soap",
    "u4,Rome,0,,bread,0 2 4 6 8 10 3,milk milk tea soap bread tea milk",
    "u5,Oslo,33.5,gold,milk,2.5 7.5,bread soap",
    "u6,Oslo,77,basic,tea,1 1 1 1 1,tea tea tea tea tea",
];

/// The places of a row's cells in [`ROWS`].
const COLUMNS: [&str; 7] = ["id", "town", "age", "tier", "rated", "paid", "product"];

const AGE: &str = "column = \"age\"\nmin = 0.0\nmax = 100.0";
const TIER: &str = "column = \"tier\"\ncategories = [\"basic\", \"gold\"]";
const RATED: &str = "column = \"rated\"\ncategories = [\"milk\", \"tea\", \"soap\"]";
const PAID: &str = "column = \"paid\"\nmin = 0.0\nmax = 10.0\nlength = 5";
const PRODUCT: &str = "column = \"product\"\ncategories = [\"milk\", \"tea\", \"soap\"]\nlength = 5";
const BUCKETS: &str = "column = \"product\"\nhash_buckets = 6\nlength = 5";

pub const BINARY: &str = "kind = \"binary\"";
pub const CLASSES: &str = "kind = \"classes\"\ncategories = [\"low\", \"mid\", \"high\"]";
pub const COUNT: &str = "kind = \"count\"";
pub const NUMBER: &str = "kind = \"number\"\nmin = 10.0\nmax = 250.0";
pub const ITEM: &str = "kind = \"item\"\ncategories = [\"milk\", \"tea\", \"soap\"]";
pub const BUCKET: &str = "kind = \"item\"\nhash_buckets = 6";

/// One of every kind of model, and one of every kind of label.
pub fn all() -> Vec<Sample> {
    let everything = [AGE, TIER, PAID, PRODUCT];
    let hidden = || vec![5, 3];
    let mlp = |activation| ModelSpec::Mlp { hidden: hidden(), dropout: 0.25, activation };
    let wide_and_deep = ModelSpec::WideAndDeep { hidden: hidden(), embedding_dim: 3 };
    let lstm = || ModelSpec::Lstm { hidden: vec![4, 3], dropout: 0.25, embedding_dim: 2, negatives: 3 };
    let transformer = || ModelSpec::Transformer {
        layers: 2,
        width: 4,
        heads: 2,
        feed_forward: 5,
        dropout: 0.25,
        negatives: 3,
    };
    let cnn =
        ModelSpec::Cnn { channels: vec![4, 3], kernel: 3, dropout: 0.25, embedding_dim: 2, negatives: 3 };
    let two_tower = ModelSpec::TwoTower { hidden: vec![4], dim: 3, negatives: 3 };
    let factorisation = || ModelSpec::MatrixFactorisation { factors: 3, negatives: 3, ridge: 0.5 };
    vec![
        sample("logistic_binary", ModelSpec::Logistic {}, BINARY, &everything),
        sample("logistic_classes", ModelSpec::Logistic {}, CLASSES, &everything),
        sample("mlp_classes", mlp(ActivationName::Relu), CLASSES, &everything),
        sample("mlp_leaky_relu", mlp(ActivationName::LeakyRelu), BINARY, &everything),
        sample("mlp_tanh", mlp(ActivationName::Tanh), COUNT, &everything),
        sample("mlp_sigmoid", mlp(ActivationName::Sigmoid), NUMBER, &everything),
        sample("wide_and_deep_count", wide_and_deep, COUNT, &everything),
        sample("lstm_number", lstm(), NUMBER, &everything),
        sample("lstm_item", lstm(), ITEM, &[PRODUCT, AGE]),
        sample("transformer_binary", transformer(), BINARY, &everything),
        sample("transformer_item", transformer(), BUCKET, &[TIER, BUCKETS]),
        sample("cnn_count", cnn, COUNT, &everything),
        sample("two_tower_item", two_tower, ITEM, &everything),
        sample("matrix_factorisation_item", factorisation(), ITEM, &[PRODUCT]),
        sample("matrix_factorisation_number", factorisation(), NUMBER, &[RATED, PRODUCT, PAID]),
    ]
}

fn sample(name: &'static str, spec: ModelSpec, label: &str, features: &[&str]) -> Sample {
    let features: String = features.iter().map(|feature| format!("\n[[features]]\n{feature}")).collect();
    let text = format!("name = \"{name}\"\ncustomer = \"id\"\n[label]\ncolumn = \"y\"\n{label}{features}");
    Sample { name, schema: toml::from_str(&text).unwrap(), spec }
}

/// [`ROWS`] as a file.
pub fn csv() -> String {
    ROWS.map(|row| format!("{row}\n")).concat()
}

impl Sample {
    /// The model.
    pub fn artifact(&self) -> ModelArtifact {
        let network = Network::new(&self.spec, self.schema.shape()).unwrap();
        let mut parameters = network.initial_parameters([7; 32]);
        // What starts at zero must count too.
        for (at, parameter) in parameters.iter_mut().enumerate() {
            *parameter += (at as f32 * 0.7).sin() * 0.4;
        }
        let schema_json = serde_json::to_string(&self.schema).unwrap();
        ModelArtifact { spec: self.spec.clone(), shape: self.schema.shape(), schema_json, parameters }
    }

    /// Writes the model into a folder; its path.
    pub fn write(&self, folder: &Path) -> String {
        let path = folder.join(format!("{}.safetensors", self.name));
        std::fs::write(&path, self.artifact().to_safetensors().unwrap()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The rows of [`csv`] as the model takes them.
    pub fn rows(&self) -> RowTable {
        let reader = RowReader::new(&self.schema);
        let at = |feature: usize| {
            COLUMNS.iter().position(|column| *column == self.schema.features[feature].column).unwrap()
        };
        let mut table = RowTable::default();
        for row in &ROWS[1..] {
            let cells: Vec<&str> = row.split(',').collect();
            reader.read_features(|feature| cells[at(feature)].as_bytes(), &mut table).unwrap();
        }
        table
    }

    /// The outputs of each row, before the link to a prediction.
    pub fn outputs(&self) -> Vec<Vec<f32>> {
        let (artifact, rows) = (self.artifact(), self.rows());
        let network = artifact.network().unwrap();
        let starts = rows.step_starts();
        let outputs = network.outputs(&artifact.parameters, &rows.as_rows(&starts), &mut Workspace::new());
        outputs.chunks_exact(network.target().outputs()).map(<[f32]>::to_vec).collect()
    }
}
