//! What the columns of a site's records mean: which one names the customer, which are features and
//! between which public bounds or with which public categories, which is the label and of what kind. A job carries the schema it
//! was made for; a site answers only jobs whose schema is its own.

mod feature;
mod label;
mod rows;

pub use feature::{Cell, CellReader, Feature, Values};
pub use label::{Items, Label, LabelKind, LabelReader, MAX_COUNT};
pub use rows::{CellFault, RowReader, RowTable};

use crate::ids::ContentHash;
use crate::model::MAX_STEPS;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// The most features a schema may name.
pub const MAX_FEATURES: usize = 4096;
/// The longest column, schema or category name, in bytes.
pub const MAX_NAME_LEN: usize = 128;
/// The most categories a feature or a label may list.
pub const MAX_CATEGORIES: usize = 4096;
/// The most bytes that all listed categories of a schema may have together, so that a contract fits a frame and
/// a model file's header.
pub const MAX_CATEGORY_BYTES: usize = 1 << 17;
/// The most buckets into which a feature's values, or items, may be hashed.
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
    #[error("column `{column}` needs finite bounds with min below max, got min {min} and max {max}")]
    Bounds {
        /// The feature or label.
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
        "column `{column}` must have {least} to {MAX_CATEGORIES} categories or 1 to {MAX_HASH_BUCKETS} hash_buckets, got {got}"
    )]
    CategoryCount {
        /// The feature or label.
        column: String,
        /// The fewest categories it may have.
        least: usize,
        /// How many it has.
        got: usize,
    },
    /// A category that no cell can be, or that is listed twice.
    #[error(
        "category `{category}` of column `{column}` is empty, repeated, longer than {MAX_NAME_LEN} bytes, or holds control characters or outer spaces"
    )]
    Category {
        /// The feature or label.
        column: String,
        /// The category's beginning.
        category: String,
    },
    /// Too long a list of categories.
    #[error(
        "the categories of all columns have {got} bytes together, at most {MAX_CATEGORY_BYTES} are allowed; use hash_buckets for the longest list"
    )]
    CategoryBytes {
        /// Their bytes.
        got: usize,
    },
    /// Keys that do not go with the label's kind.
    #[error("label `{column}` of kind \"{kind}\" needs {needs}")]
    LabelKeys {
        /// The label.
        column: String,
        /// Its kind.
        kind: &'static str,
        /// What goes with it.
        needs: &'static str,
    },
    /// A sequence of no steps, or of too many.
    #[error("feature `{column}` must have a length of 1 to {MAX_STEPS} steps, got {got}")]
    Length {
        /// The feature.
        column: String,
        /// Its length.
        got: u32,
    },
    /// Sequences of different lengths.
    #[error(
        "feature `{column}` has a length of {got} steps and feature `{first}` one of {expected}; all sequences of a schema \
         have the same"
    )]
    Lengths {
        /// The feature.
        column: String,
        /// Its length.
        got: u32,
        /// The first sequence of the schema.
        first: String,
        /// Its length.
        expected: u32,
    },
    /// A category that no entry of a sequence can be.
    #[error(
        "category `{category}` of feature `{column}` holds a space, which stands between the entries of a sequence; write it \
         without in schema and records"
    )]
    StepCategory {
        /// The feature.
        column: String,
        /// The category's beginning.
        category: String,
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
        self.label.validate()?;
        self.features.iter().try_for_each(Feature::validate)?;
        let mut sequences = self.features.iter().filter_map(|feature| Some((feature, feature.length?)));
        if let Some((first, expected)) = sequences.next()
            && let Some((feature, got)) = sequences.find(|&(_, length)| length != expected)
        {
            let (column, first) = (feature.column.clone(), first.column.clone());
            return Err(SchemaError::Lengths { column, got, first, expected });
        }
        let categories = self.features.iter().flat_map(Feature::categories).chain(self.label.categories());
        let got = categories.map(String::len).sum();
        if got > MAX_CATEGORY_BYTES { Err(SchemaError::CategoryBytes { got }) } else { Ok(()) }
    }

    /// Two schemas with one hash ask for the same columns in the same order with the same bounds and categories.
    pub fn hash(&self) -> ContentHash {
        ContentHash::of(&crate::wire::codec::encode(self))
    }

    /// What a model takes and what it gives.
    pub fn shape(&self) -> DataShape {
        DataShape { inputs: self.input_shape(), target: self.label.kind.target() }
    }

    /// What a row holds once it is read: the numeric features as numbers and the others as ids, each in the order of
    /// the features; likewise each step of its sequence, if there are sequence features.
    pub fn input_shape(&self) -> InputShape {
        let mut shape = InputShape::default();
        for feature in &self.features {
            let (numbers, vocabularies) = match feature.length {
                None => (&mut shape.numbers, &mut shape.vocabularies),
                Some(length) => {
                    let sequence = shape.sequence.get_or_insert_default();
                    sequence.length = length as usize;
                    (&mut sequence.numbers, &mut sequence.vocabularies)
                }
            };
            match feature.vocabulary_len() {
                Some(ids) => vocabularies.push(ids),
                None => *numbers += 1,
            }
        }
        shape
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

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        let feature = |column: &str| Feature {
            column: column.into(),
            values: Values::Numeric { min: 0.0, max: 10.0 },
            length: None,
        };
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

    fn sequence(values: Values, length: u32) -> Schema {
        let mut schema = with(values);
        schema.features[1].length = Some(length);
        schema
    }

    fn labelled(kind: LabelKind) -> Schema {
        Schema { label: Label { column: "y".into(), kind }, ..schema() }
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.into()).collect()
    }

    #[test]
    fn a_sequence_has_a_length_in_range_that_all_share_and_categories_without_spaces() {
        let values = || Values::HashBuckets(4);
        for length in [1, 1024] {
            assert_eq!(sequence(values(), length).validate(), Ok(()));
        }
        for length in [0, 1025] {
            let refusal = sequence(values(), length).validate();
            assert_eq!(refusal, Err(SchemaError::Length { column: "b".into(), got: length }));
        }
        let mut schema = sequence(values(), 8);
        schema.features[0].length = Some(9);
        let refusal = schema.validate().unwrap_err().to_string();
        assert!(
            refusal.contains("feature `b` has a length of 8 steps and feature `a` one of 9"),
            "{refusal}"
        );
        let spaced = sequence(Values::Categories(texts(&["far west"])), 8);
        assert!(matches!(spaced.validate(), Err(SchemaError::StepCategory { .. })));
        let shape = sequence(values(), 8).input_shape();
        let steps = SequenceShape { length: 8, numbers: 0, vocabularies: vec![5] };
        assert_eq!(shape, InputShape { numbers: 1, vocabularies: vec![], sequence: Some(steps) });
    }

    #[test]
    fn each_kind_of_label_has_its_keys_and_no_other() {
        for (bad, says) in [
            ("kind = \"binary\"\nmin = 0.0", "needs no key beside `column` and `kind`"),
            ("kind = \"classes\"", "of kind \"classes\" needs `categories`"),
            ("kind = \"classes\"\nhash_buckets = 4", "needs `categories`"),
            ("kind = \"count\"\nmax = 4.0", "needs no key beside"),
            ("kind = \"number\"\nmin = 0.0", "needs `min` and `max`"),
            ("kind = \"item\"", "either `categories` or `hash_buckets`"),
            ("kind = \"item\"\ncategories = [\"a\"]\nhash_buckets = 4", "either `categories`"),
            ("kind = \"rank\"", "unknown variant `rank`"),
            ("kind = \"count\"\nlength = 4", "unknown field `length`"),
        ] {
            let refusal = toml::from_str::<Label>(&format!("column = \"y\"\n{bad}")).unwrap_err();
            assert!(refusal.to_string().contains(says), "{refusal}");
        }
    }

    #[test]
    fn labels_out_of_range_are_refused() {
        let one = labelled(LabelKind::Classes(texts(&["a"]))).validate().unwrap_err().to_string();
        assert!(one.contains("column `y` must have 2 to 4096 categories"), "{one}");
        assert_eq!(labelled(LabelKind::Item(Items::Categories(texts(&["a"])))).validate(), Ok(()));
        for kind in [
            LabelKind::Classes(texts(&["a", "a"])),
            LabelKind::Number { min: 1.0, max: f64::NAN },
            LabelKind::Item(Items::HashBuckets(0)),
        ] {
            assert!(labelled(kind.clone()).validate().is_err(), "{kind:?}");
        }
        let long: Vec<String> = (0..2000).map(|id| format!("{id:0100}")).collect();
        let refusal = labelled(LabelKind::Classes(long)).validate();
        assert_eq!(refusal, Err(SchemaError::CategoryBytes { got: 200_000 }));
    }

    #[test]
    fn files_and_contracts_carry_every_kind_of_feature_and_label() {
        for schema in [
            schema(),
            listed(&["x", "y"]),
            with(Values::HashBuckets(7)),
            sequence(Values::HashBuckets(7), 12),
            sequence(Values::Numeric { min: 0.0, max: 1.0 }, 12),
            labelled(LabelKind::Classes(texts(&["x", "y"]))),
            labelled(LabelKind::Count),
            labelled(LabelKind::Number { min: -1.0, max: 3.5 }),
            labelled(LabelKind::Item(Items::Categories(texts(&["x", "y"])))),
            labelled(LabelKind::Item(Items::HashBuckets(64))),
        ] {
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
            sequence(Values::HashBuckets(2), 2),
            sequence(Values::HashBuckets(2), 3),
            labelled(LabelKind::Count),
            labelled(LabelKind::Classes(texts(&["x", "y"]))),
            labelled(LabelKind::Item(Items::Categories(texts(&["x", "y"])))),
        ]
        .iter()
        .map(Schema::hash)
        .collect();
        assert_eq!(hashes.len(), 10);
    }
}
