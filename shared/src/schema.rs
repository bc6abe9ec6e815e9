//! What the columns of a site's records mean: which one names the customer, which are features and
//! between which public bounds or with which public categories, which is the label. A job carries the schema it
//! was made for; a site answers only jobs whose schema is its own.

use crate::ids::{ContentHash, ContentHasher};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::{HashMap, HashSet};

/// The most features a schema may name.
pub const MAX_FEATURES: usize = 4096;
/// The longest column, schema or category name, in bytes.
pub const MAX_NAME_LEN: usize = 128;
/// The most categories a feature may list.
pub const MAX_CATEGORIES: usize = 4096;
/// The most bytes that all listed categories of a schema may have together, so that a contract fits a frame and
/// a model file's header.
pub const MAX_CATEGORY_BYTES: usize = 1 << 17;
/// The most buckets into which a feature's values may be hashed.
pub const MAX_HASH_BUCKETS: u32 = 1 << 16;

/// Columns of a table of customers' records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// What people call it.
    pub name: String,
    /// The column whose value names the customer; all rows with one value are one customer.
    pub customer: String,
    /// What is learned.
    pub label: Label,
    /// What it is learned from, in the order of the model's inputs.
    pub features: Vec<Feature>,
}

/// The column that is learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// Its name in the header.
    pub column: String,
    /// What its values are.
    pub kind: LabelKind,
}

/// What a label's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelKind {
    /// 0 or 1.
    Binary,
}

/// A column that a model learns from.
///
/// ```
/// # use weighhouse_shared::schema::{Feature, Values};
/// let read = |text| toml::from_str::<Feature>(text);
/// let age = read("column = \"age\"\nmin = 0.0\nmax = 110.0").unwrap();
/// assert_eq!(age.values, Values::Numeric { min: 0.0, max: 110.0 });
/// let tier = read("column = \"tier\"\ncategories = [\"basic\", \"gold\"]").unwrap();
/// assert_eq!(tier.values, Values::Categories(vec!["basic".into(), "gold".into()]));
/// let product = read("column = \"product\"\nhash_buckets = 1024").unwrap();
/// assert_eq!(product.values, Values::HashBuckets(1024));
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "FeatureEntry")]
pub struct Feature {
    /// Its name in the header.
    pub column: String,
    /// What its values are.
    pub values: Values,
}

/// What a feature's values are. Bounds and categories are public and chosen without looking at the records (a
/// percentage runs from 0 to 100, an age from 0 to 110; the districts are on the map): read off the data they would
/// leak it.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Finite numbers.
    Numeric {
        /// Values below count as this.
        min: f64,
        /// Values above count as this.
        max: f64,
    },
    /// One of these texts; all others, and an empty cell, are one more category, "other".
    Categories(Vec<String>),
    /// Any text, sorted into so many buckets by its hash; an empty cell is one more bucket. For values that are too
    /// many or too changing to list, as product numbers: some share a bucket.
    HashBuckets(u32),
}

/// A feature as files and contracts hold it: bounds, or categories, or buckets.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeatureEntry {
    column: String,
    min: Option<f64>,
    max: Option<f64>,
    categories: Option<Vec<String>>,
    hash_buckets: Option<u32>,
}

impl TryFrom<FeatureEntry> for Feature {
    type Error = SchemaError;

    fn try_from(entry: FeatureEntry) -> Result<Self, SchemaError> {
        let FeatureEntry { column, min, max, categories, hash_buckets } = entry;
        let values = match (min, max, categories, hash_buckets) {
            (Some(min), Some(max), None, None) => Values::Numeric { min, max },
            (None, None, Some(categories), None) => Values::Categories(categories),
            (None, None, None, Some(buckets)) => Values::HashBuckets(buckets),
            _ => return Err(SchemaError::Kind { column: column.chars().take(40).collect() }),
        };
        Ok(Self { column, values })
    }
}

impl Serialize for Feature {
    /// In text only the keys that are set; in canonical bytes, which carry no keys, all there are.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (column, values) = (&self.column, &self.values);
        if serializer.is_human_readable() {
            let mut entries = serializer.serialize_map(None)?;
            entries.serialize_entry("column", column)?;
            match values {
                Values::Numeric { min, max } => {
                    entries.serialize_entry("min", min)?;
                    entries.serialize_entry("max", max)?;
                }
                Values::Categories(categories) => entries.serialize_entry("categories", categories)?,
                Values::HashBuckets(buckets) => entries.serialize_entry("hash_buckets", buckets)?,
            }
            return entries.end();
        }
        let column = column.clone();
        let empty = FeatureEntry { column, min: None, max: None, categories: None, hash_buckets: None };
        let entry = match values.clone() {
            Values::Numeric { min, max } => FeatureEntry { min: Some(min), max: Some(max), ..empty },
            Values::Categories(categories) => FeatureEntry { categories: Some(categories), ..empty },
            Values::HashBuckets(buckets) => FeatureEntry { hash_buckets: Some(buckets), ..empty },
        };
        entry.serialize(serializer)
    }
}

/// Why a schema cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SchemaError {
    /// No feature, or too many.
    #[error("a schema names 1 to {MAX_FEATURES} features, this one names {got}")]
    FeatureCount {
        /// How many it names.
        got: usize,
    },
    /// An empty or overlong name.
    #[error("the name `{name}` is empty or longer than {MAX_NAME_LEN} bytes")]
    Name {
        /// Its beginning.
        name: String,
    },
    /// Two roles for one column.
    #[error("column `{column}` is named twice; a column is the customer, the label or one feature")]
    Repeated {
        /// The column.
        column: String,
    },
    /// Bounds that bound nothing.
    #[error("feature `{column}` needs finite bounds with min below max, got min {min} and max {max}")]
    Bounds {
        /// The feature.
        column: String,
        /// Its lower bound.
        min: f64,
        /// Its upper bound.
        max: f64,
    },
    /// Neither or several of bounds, categories and buckets.
    #[error(
        "feature `{column}` needs `min` and `max` if it is a number, else either `categories` or `hash_buckets`"
    )]
    Kind {
        /// The feature.
        column: String,
    },
    /// No categories, too many, or no usable number of buckets.
    #[error(
        "feature `{column}` must have 1 to {MAX_CATEGORIES} categories or 1 to {MAX_HASH_BUCKETS} hash_buckets, got {got}"
    )]
    CategoryCount {
        /// The feature.
        column: String,
        /// How many it has.
        got: usize,
    },
    /// A category that no cell can be, or that is listed twice.
    #[error(
        "category `{category}` of feature `{column}` is empty, repeated, longer than {MAX_NAME_LEN} bytes, or holds control characters or outer spaces"
    )]
    Category {
        /// The feature.
        column: String,
        /// The category's beginning.
        category: String,
    },
    /// Too long a list of categories.
    #[error(
        "the categories of all features have {got} bytes together, at most {MAX_CATEGORY_BYTES} are allowed; use hash_buckets for the longest list"
    )]
    CategoryBytes {
        /// Their bytes.
        got: usize,
    },
}

impl Schema {
    /// Checks names, bounds and sizes.
    pub fn validate(&self) -> Result<(), SchemaError> {
        if self.features.is_empty() || self.features.len() > MAX_FEATURES {
            return Err(SchemaError::FeatureCount { got: self.features.len() });
        }
        let columns = self.features.iter().map(|feature| &feature.column);
        let columns: Vec<_> = [&self.customer, &self.label.column].into_iter().chain(columns).collect();
        for name in columns.iter().copied().chain([&self.name]) {
            if name.is_empty() || name.len() > MAX_NAME_LEN {
                return Err(SchemaError::Name { name: name.chars().take(40).collect() });
            }
        }
        let mut seen = HashSet::new();
        if let Some(column) = columns.into_iter().find(|column| !seen.insert(column.as_str())) {
            return Err(SchemaError::Repeated { column: column.clone() });
        }
        self.features.iter().try_for_each(Feature::validate)?;
        let categories = self.features.iter().flat_map(Feature::categories);
        let got = categories.map(String::len).sum();
        if got > MAX_CATEGORY_BYTES { Err(SchemaError::CategoryBytes { got }) } else { Ok(()) }
    }

    /// Two schemas with one hash ask for the same columns in the same order with the same bounds and categories.
    pub fn hash(&self) -> ContentHash {
        ContentHash::of(&crate::wire::codec::encode(self))
    }

    /// What a model takes and what it gives.
    pub fn shape(&self) -> DataShape {
        let target = match self.label.kind {
            LabelKind::Binary => Target::Binary,
        };
        DataShape { inputs: self.input_shape(), target }
    }

    /// What a row holds once it is read: the numeric features as numbers and the others as ids, each in the order of
    /// the features.
    pub fn input_shape(&self) -> InputShape {
        let vocabularies: Vec<usize> = self.features.iter().filter_map(Feature::vocabulary_len).collect();
        InputShape { numbers: self.features.len() - vocabularies.len(), vocabularies, sequence: None }
    }
}

/// What a row of a model's input holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InputShape {
    /// How many numbers.
    pub numbers: usize,
    /// For each categorical column, in order, how many ids there are: 0 up to one less.
    pub vocabularies: Vec<usize>,
    /// What a step of the row's sequence holds, if rows have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<SequenceShape>,
}

/// What a step of a sequence holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SequenceShape {
    /// Most steps.
    pub length: usize,
    /// How many numbers.
    pub numbers: usize,
    /// For each categorical column, in order, how many ids there are.
    pub vocabularies: Vec<usize>,
}

/// What is learned from a row, and how its label is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A probability; labels are 0 or 1 or between.
    #[default]
    Binary,
    /// One of so many classes; labels are their places from 0.
    Classes(usize),
    /// How often: a rate; labels are counts.
    Count,
    /// A number, brought onto -1 to 1.
    Number,
    /// One of so many items, to be ranked; labels are their places from 0.
    Item(usize),
}

impl Target {
    /// Outputs for each row: classes or items, else one.
    pub fn outputs(self) -> usize {
        match self {
            Self::Classes(outputs) | Self::Item(outputs) => outputs,
            Self::Binary | Self::Count | Self::Number => 1,
        }
    }
}

/// What a model takes and what it gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DataShape {
    /// What a row holds.
    pub inputs: InputShape,
    /// What is learned from it.
    pub target: Target,
}

impl From<usize> for InputShape {
    /// Rows of numbers alone.
    fn from(numbers: usize) -> Self {
        Self { numbers, ..Self::default() }
    }
}

impl From<usize> for DataShape {
    /// Rows of numbers alone, and a probability.
    fn from(numbers: usize) -> Self {
        InputShape::from(numbers).into()
    }
}

impl From<InputShape> for DataShape {
    /// A probability.
    fn from(inputs: InputShape) -> Self {
        Self { inputs, target: Target::Binary }
    }
}

impl InputShape {
    /// How many ids a row holds.
    pub fn columns(&self) -> usize {
        self.vocabularies.len()
    }
}

impl SequenceShape {
    /// How many ids a step holds.
    pub fn columns(&self) -> usize {
        self.vocabularies.len()
    }
}

impl Feature {
    fn validate(&self) -> Result<(), SchemaError> {
        let column = self.column.clone();
        match &self.values {
            &Values::Numeric { min, max } => {
                if !(min.is_finite() && max.is_finite() && min < max && (max - min).is_finite()) {
                    return Err(SchemaError::Bounds { column, min, max });
                }
            }
            Values::Categories(categories) => {
                if categories.is_empty() || categories.len() > MAX_CATEGORIES {
                    return Err(SchemaError::CategoryCount { column, got: categories.len() });
                }
                let mut seen = HashSet::new();
                let usable = |category: &str| {
                    (1..=MAX_NAME_LEN).contains(&category.len())
                        && category.trim() == category
                        && !category.chars().any(char::is_control)
                };
                let bad =
                    categories.iter().find(|category| !usable(category) || !seen.insert(category.as_str()));
                if let Some(category) = bad {
                    let category = category.chars().take(40).collect();
                    return Err(SchemaError::Category { column, category });
                }
            }
            &Values::HashBuckets(buckets) => {
                if !(1..=MAX_HASH_BUCKETS).contains(&buckets) {
                    return Err(SchemaError::CategoryCount { column, got: buckets as usize });
                }
            }
        }
        Ok(())
    }

    fn categories(&self) -> &[String] {
        match &self.values {
            Values::Categories(categories) => categories,
            _ => &[],
        }
    }

    /// How many ids a categorical feature's cells can have; None for numbers.
    pub fn vocabulary_len(&self) -> Option<usize> {
        match &self.values {
            Values::Numeric { .. } => None,
            Values::Categories(categories) => Some(categories.len() + 1),
            Values::HashBuckets(buckets) => Some(*buckets as usize + 1),
        }
    }

    /// What reads the cells of this feature's column. Build it once for many cells.
    pub fn reader(&self) -> CellReader<'_> {
        match &self.values {
            &Values::Numeric { min, max } => CellReader::Number { min, max },
            Values::Categories(categories) => CellReader::Category(
                (0u32..).zip(categories).map(|(id, category)| (category.as_bytes(), id)).collect(),
            ),
            &Values::HashBuckets(buckets) => CellReader::Hash { buckets },
        }
    }
}

/// Turns the cells of one feature's column into a model's inputs.
#[derive(Debug)]
pub enum CellReader<'a> {
    /// Numbers, brought between the bounds and onto -1 to 1.
    Number {
        /// Lower bound.
        min: f64,
        /// Upper bound.
        max: f64,
    },
    /// Listed categories with their ids.
    Category(HashMap<&'a [u8], u32>),
    /// Buckets of a hash.
    Hash {
        /// How many.
        buckets: u32,
    },
}

/// What a cell says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell {
    /// A number from -1 to 1.
    Number(f32),
    /// An id below the feature's [`vocabulary_len`](Feature::vocabulary_len).
    Id(u32),
}

impl CellReader<'_> {
    /// Reads `cell`, whose outer spaces are gone. None if it should be a finite number and is not; as a category any
    /// bytes will do.
    ///
    /// A category's id is its place in the list, and the list's length for anything else. A hashed value's id is
    /// the first 8 bytes, big-endian, of SHA-256 of `weighhouse category v1`, a zero byte and the cell, modulo the
    /// number of buckets; an empty cell's is that number.
    pub fn read(&self, cell: &[u8]) -> Option<Cell> {
        match self {
            Self::Number { min, max } => {
                let value: f64 = std::str::from_utf8(cell).ok()?.parse().ok()?;
                value.is_finite().then(|| Cell::Number(scaled(value, *min, *max)))
            }
            Self::Category(ids) => {
                let other = ids.len() as u32;
                Some(Cell::Id(ids.get(cell).copied().unwrap_or(other)))
            }
            Self::Hash { buckets } if cell.is_empty() => Some(Cell::Id(*buckets)),
            Self::Hash { buckets } => {
                let mut hasher = ContentHasher::default();
                hasher.update(b"weighhouse category v1\0");
                hasher.update(cell);
                let hash = hasher.finish();
                let (head, _) = hash.as_bytes().split_first_chunk::<8>().expect("a hash has 32 bytes");
                Some(Cell::Id((u64::from_be_bytes(*head) % u64::from(*buckets)) as u32))
            }
        }
    }
}

/// Brings a finite `value` between the bounds and onto -1 to 1.
fn scaled(value: f64, min: f64, max: f64) -> f32 {
    let share = (value.clamp(min, max) - min) / (max - min);
    (2.0 * share - 1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        let feature =
            |column: &str| Feature { column: column.into(), values: Values::Numeric { min: 0.0, max: 10.0 } };
        Schema {
            name: "campaign".into(),
            customer: "customer".into(),
            label: Label { column: "y".into(), kind: LabelKind::Binary },
            features: vec![feature("a"), feature("b")],
        }
    }

    fn with(values: Values) -> Schema {
        let mut schema = schema();
        schema.features[1].values = values;
        schema
    }

    fn listed(categories: &[&str]) -> Schema {
        with(Values::Categories(categories.iter().map(|&category| category.into()).collect()))
    }

    #[test]
    fn a_column_with_two_roles_and_bounds_that_bound_nothing_are_refused() {
        assert_eq!(schema().validate(), Ok(()));
        let mut twice = schema();
        twice.features[1].column = "customer".into();
        assert_eq!(twice.validate(), Err(SchemaError::Repeated { column: "customer".into() }));
        for (min, max) in [(1.0, 1.0), (2.0, 1.0), (f64::NAN, 1.0), (f64::MIN, f64::MAX)] {
            let unbounded = with(Values::Numeric { min, max });
            assert!(matches!(unbounded.validate(), Err(SchemaError::Bounds { .. })), "{min} {max}");
        }
    }

    #[test]
    fn categories_that_no_cell_can_be_and_sizes_out_of_range_are_refused() {
        assert_eq!(listed(&["north", "south", "far west"]).validate(), Ok(()));
        for bad in ["", " north", "south ", "no\nrth", &"n".repeat(129), "known"] {
            let refusal = listed(&["known", bad]).validate();
            assert!(matches!(refusal, Err(SchemaError::Category { .. })), "{bad:?}: {refusal:?}");
        }
        let names: Vec<String> = (0..=MAX_CATEGORIES).map(|id| id.to_string()).collect();
        for values in [
            Values::Categories(vec![]),
            Values::Categories(names),
            Values::HashBuckets(0),
            Values::HashBuckets(MAX_HASH_BUCKETS + 1),
        ] {
            assert!(matches!(with(values).validate(), Err(SchemaError::CategoryCount { .. })));
        }
        let long: Vec<String> = (0..2000).map(|id| format!("{id:0100}")).collect();
        assert_eq!(
            with(Values::Categories(long)).validate(),
            Err(SchemaError::CategoryBytes { got: 200_000 })
        );
        assert_eq!(with(Values::HashBuckets(MAX_HASH_BUCKETS)).validate(), Ok(()));
    }

    #[test]
    fn a_feature_is_a_number_or_listed_or_hashed_and_only_one_of_them() {
        for bad in [
            "",
            "min = 0.0",
            "min = 0.0\nmax = 1.0\nhash_buckets = 4",
            "categories = [\"x\"]\nhash_buckets = 4",
            "max = 1.0\ncategories = [\"x\"]",
        ] {
            let refusal = toml::from_str::<Feature>(&format!("column = \"tier\"\n{bad}")).unwrap_err();
            assert!(refusal.to_string().contains("feature `tier` needs `min` and `max`"), "{refusal}");
        }
        assert!(toml::from_str::<Feature>("column = \"tier\"\nbuckets = 4").is_err());
    }

    #[test]
    fn files_and_contracts_carry_every_kind_of_feature() {
        for schema in [schema(), listed(&["x", "y"]), with(Values::HashBuckets(7))] {
            let text = toml::to_string(&schema).unwrap();
            assert_eq!(toml::from_str::<Schema>(&text).unwrap(), schema, "{text}");
            let text = serde_json::to_string(&schema).unwrap();
            assert_eq!(serde_json::from_str::<Schema>(&text).unwrap(), schema, "{text}");
            assert!(!text.contains("null"), "{text}");
            let bytes = crate::wire::codec::encode(&schema);
            assert_eq!(crate::wire::codec::decode::<Schema>(&bytes).unwrap(), schema);
        }
    }

    #[test]
    fn a_value_outside_the_bounds_counts_as_the_bound() {
        let schema = schema();
        let reader = schema.features[0].reader();
        for (cell, number) in [("-5", -1.0), ("0", -1.0), ("5", 0.0), ("10", 1.0), ("1e300", 1.0)] {
            assert_eq!(reader.read(cell.as_bytes()), Some(Cell::Number(number)), "{cell}");
        }
        for cell in ["", "NaN", "inf", "cheap"] {
            assert_eq!(reader.read(cell.as_bytes()), None, "{cell}");
        }
        assert_eq!(reader.read(&[0xff]), None);
    }

    #[test]
    fn what_is_not_listed_and_an_empty_cell_are_one_more_category() {
        let schema = listed(&["north", "south"]);
        let reader = schema.features[1].reader();
        let ids = [&b"north"[..], b"south", b"South", b"", &[0xff]].map(|cell| reader.read(cell).unwrap());
        assert_eq!(ids, [0, 1, 2, 2, 2].map(Cell::Id));
        assert_eq!(schema.features[1].vocabulary_len(), Some(3));
        assert_eq!(schema.input_shape(), InputShape { numbers: 1, vocabularies: vec![3], sequence: None });
    }

    /// Computed with Python: `int.from_bytes(sha256(b"weighhouse category v1\0" + cell).digest()[:8], "big") % 1024`.
    #[test]
    fn a_hashed_value_has_the_same_bucket_everywhere() {
        let schema = with(Values::HashBuckets(1024));
        let reader = schema.features[1].reader();
        let ids = [&b"1004906"[..], b"a", &[0xff], b""].map(|cell| reader.read(cell).unwrap());
        assert_eq!(ids, GOLDEN_BUCKETS.map(Cell::Id));
        assert_eq!(schema.features[1].vocabulary_len(), Some(1025));
    }

    const GOLDEN_BUCKETS: [u32; 4] = [916, 497, 478, 1024];

    #[test]
    fn the_hash_changes_with_any_bound_and_category() {
        let hashes: HashSet<_> = [
            schema(),
            with(Values::Numeric { min: 0.0, max: 10.5 }),
            listed(&["x", "y"]),
            listed(&["y", "x"]),
            with(Values::HashBuckets(2)),
        ]
        .iter()
        .map(Schema::hash)
        .collect();
        assert_eq!(hashes.len(), 5);
    }
}
