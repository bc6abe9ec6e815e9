//! The column that is learned, and how its cells are read.

use super::feature::{CellReader, check_bounds, check_buckets, check_categories, finite, scaled};
use super::{Cell, SchemaError, Target};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::HashMap;

/// The largest count that a label may be: larger ones are no whole numbers in 32-bit floats.
pub const MAX_COUNT: f64 = 16_777_216.0;

/// The column that is learned.
///
/// ```
/// # use weighhouse_shared::schema::{Items, Label, LabelKind};
/// let read = |text| toml::from_str::<Label>(text);
/// let response = read("column = \"y\"\nkind = \"binary\"").unwrap();
/// assert_eq!(response.kind, LabelKind::Binary);
/// let segment = read("column = \"y\"\nkind = \"classes\"\ncategories = [\"a\", \"b\"]").unwrap();
/// assert_eq!(segment.kind, LabelKind::Classes(vec!["a".into(), "b".into()]));
/// let spend = read("column = \"y\"\nkind = \"number\"\nmin = 0.0\nmax = 500.0").unwrap();
/// assert_eq!(spend.kind, LabelKind::Number { min: 0.0, max: 500.0 });
/// let product = read("column = \"y\"\nkind = \"item\"\nhash_buckets = 512").unwrap();
/// assert_eq!(product.kind, LabelKind::Item(Items::HashBuckets(512)));
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "LabelEntry")]
pub struct Label {
    /// Its name in the header.
    pub column: String,
    /// What its values are.
    pub kind: LabelKind,
}

/// What a label's values are. As with features, classes, bounds and items are public and not read off the data.
#[derive(Debug, Clone, PartialEq)]
pub enum LabelKind {
    /// 0 or 1.
    Binary,
    /// One of these texts and nothing else: 2 to 4096.
    Classes(Vec<String>),
    /// How often: a whole number from 0 to [`MAX_COUNT`].
    Count,
    /// A finite number.
    Number {
        /// Values below count as this.
        min: f64,
        /// Values above count as this.
        max: f64,
    },
    /// One of many items, to be ranked.
    Item(Items),
}

/// Which items there are.
#[derive(Debug, Clone, PartialEq)]
pub enum Items {
    /// These; all others, and an empty cell, are one more item, "other".
    Categories(Vec<String>),
    /// Any, sorted into so many buckets by their hash as a feature's values are; an empty cell is one more.
    HashBuckets(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindName {
    Binary,
    Classes,
    Count,
    Number,
    Item,
}

/// A label as files and contracts hold it: its kind, and the keys that go with it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelEntry {
    column: String,
    kind: KindName,
    min: Option<f64>,
    max: Option<f64>,
    categories: Option<Vec<String>>,
    hash_buckets: Option<u32>,
}

impl TryFrom<LabelEntry> for Label {
    type Error = SchemaError;

    fn try_from(entry: LabelEntry) -> Result<Self, SchemaError> {
        let LabelEntry { column, kind, min, max, categories, hash_buckets } = entry;
        let kind = match (kind, (min, max), categories, hash_buckets) {
            (KindName::Binary, (None, None), None, None) => LabelKind::Binary,
            (KindName::Classes, (None, None), Some(categories), None) => LabelKind::Classes(categories),
            (KindName::Count, (None, None), None, None) => LabelKind::Count,
            (KindName::Number, (Some(min), Some(max)), None, None) => LabelKind::Number { min, max },
            (KindName::Item, (None, None), Some(categories), None) => {
                LabelKind::Item(Items::Categories(categories))
            }
            (KindName::Item, (None, None), None, Some(buckets)) => {
                LabelKind::Item(Items::HashBuckets(buckets))
            }
            (kind, ..) => {
                let needs = match kind {
                    KindName::Binary | KindName::Count => "no key beside `column` and `kind`",
                    KindName::Classes => "`categories`, the list of its classes, and no other key",
                    KindName::Number => "`min` and `max`, and no other key",
                    KindName::Item => "either `categories` or `hash_buckets`, and no other key",
                };
                let column = column.chars().take(40).collect();
                return Err(SchemaError::LabelKeys { column, kind: kind.as_str(), needs });
            }
        };
        Ok(Self { column, kind })
    }
}

impl Serialize for Label {
    /// In text only the keys that are set; in canonical bytes, which carry no keys, all there are.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { column, kind } = self;
        let name = kind.name();
        if serializer.is_human_readable() {
            let mut entries = serializer.serialize_map(None)?;
            entries.serialize_entry("column", column)?;
            entries.serialize_entry("kind", &name)?;
            match kind {
                LabelKind::Binary | LabelKind::Count => {}
                LabelKind::Classes(categories) | LabelKind::Item(Items::Categories(categories)) => {
                    entries.serialize_entry("categories", categories)?;
                }
                LabelKind::Number { min, max } => {
                    entries.serialize_entry("min", min)?;
                    entries.serialize_entry("max", max)?;
                }
                LabelKind::Item(Items::HashBuckets(buckets)) => {
                    entries.serialize_entry("hash_buckets", buckets)?;
                }
            }
            return entries.end();
        }
        let column = column.clone();
        let empty =
            LabelEntry { column, kind: name, min: None, max: None, categories: None, hash_buckets: None };
        let entry = match kind.clone() {
            LabelKind::Binary | LabelKind::Count => empty,
            LabelKind::Classes(categories) | LabelKind::Item(Items::Categories(categories)) => {
                LabelEntry { categories: Some(categories), ..empty }
            }
            LabelKind::Number { min, max } => LabelEntry { min: Some(min), max: Some(max), ..empty },
            LabelKind::Item(Items::HashBuckets(buckets)) => {
                LabelEntry { hash_buckets: Some(buckets), ..empty }
            }
        };
        entry.serialize(serializer)
    }
}

impl KindName {
    /// As files write it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Classes => "classes",
            Self::Count => "count",
            Self::Number => "number",
            Self::Item => "item",
        }
    }
}

impl LabelKind {
    fn name(&self) -> KindName {
        match self {
            Self::Binary => KindName::Binary,
            Self::Classes(_) => KindName::Classes,
            Self::Count => KindName::Count,
            Self::Number { .. } => KindName::Number,
            Self::Item(_) => KindName::Item,
        }
    }

    /// What a model learns from such labels.
    pub fn target(&self) -> Target {
        match self {
            Self::Binary => Target::Binary,
            Self::Classes(categories) => Target::Classes(categories.len()),
            Self::Count => Target::Count,
            Self::Number { .. } => Target::Number,
            Self::Item(Items::Categories(categories)) => Target::Item(categories.len() + 1),
            Self::Item(Items::HashBuckets(buckets)) => Target::Item(*buckets as usize + 1),
        }
    }
}

impl Label {
    /// Checks bounds, categories and sizes.
    pub(super) fn validate(&self) -> Result<(), SchemaError> {
        let column = &self.column;
        match &self.kind {
            LabelKind::Binary | LabelKind::Count => Ok(()),
            LabelKind::Classes(categories) => check_categories(column, categories, 2),
            &LabelKind::Number { min, max } => check_bounds(column, min, max),
            LabelKind::Item(Items::Categories(categories)) => check_categories(column, categories, 1),
            &LabelKind::Item(Items::HashBuckets(buckets)) => check_buckets(column, buckets),
        }
    }

    pub(super) fn categories(&self) -> &[String] {
        match &self.kind {
            LabelKind::Classes(categories) | LabelKind::Item(Items::Categories(categories)) => categories,
            _ => &[],
        }
    }

    /// What reads the cells of the label's column. Build it once for many cells.
    pub fn reader(&self) -> LabelReader<'_> {
        match &self.kind {
            LabelKind::Binary => LabelReader::Binary,
            LabelKind::Classes(categories) => LabelReader::Class(
                (0u32..).zip(categories).map(|(id, category)| (category.as_bytes(), id)).collect(),
            ),
            LabelKind::Count => LabelReader::Count,
            &LabelKind::Number { min, max } => LabelReader::Number { min, max },
            LabelKind::Item(Items::Categories(categories)) => {
                LabelReader::Item(CellReader::of_categories(categories))
            }
            &LabelKind::Item(Items::HashBuckets(buckets)) => LabelReader::Item(CellReader::Hash { buckets }),
        }
    }
}

/// Turns the cells of a label's column into labels as [`Target`] says.
#[derive(Debug)]
pub enum LabelReader<'a> {
    /// 0 or 1.
    Binary,
    /// Listed classes with their places.
    Class(HashMap<&'a [u8], u32>),
    /// Whole numbers.
    Count,
    /// Numbers, brought between the bounds and onto -1 to 1.
    Number {
        /// Lower bound.
        min: f64,
        /// Upper bound.
        max: f64,
    },
    /// Items with their ids, as a feature's.
    Item(CellReader<'a>),
}

impl LabelReader<'_> {
    /// Reads `cell`, whose outer spaces are gone. None if it is not what [`expected`](Self::expected) says.
    pub fn read(&self, cell: &[u8]) -> Option<f32> {
        match self {
            Self::Binary => {
                finite(cell).filter(|&label| label == 0.0 || label == 1.0).map(|label| label as f32)
            }
            // At most 4096 classes and 65537 items: exact in 32 bits.
            Self::Class(places) => places.get(cell).map(|&place| place as f32),
            Self::Count => finite(cell)
                .filter(|label| label.fract() == 0.0 && (0.0..=MAX_COUNT).contains(label))
                .map(|label| label as f32),
            Self::Number { min, max } => finite(cell).map(|label| scaled(label, *min, *max)),
            Self::Item(reader) => match reader.read(cell)? {
                Cell::Id(id) => Some(id as f32),
                Cell::Number(_) => None,
            },
        }
    }

    /// What a cell must be, for an error.
    pub fn expected(&self) -> &'static str {
        match self {
            Self::Binary => "0 or 1",
            Self::Class(_) => "one of the label's `categories` in the schema",
            Self::Count => "a whole number from 0 to 16777216",
            Self::Number { .. } => "a finite number",
            Self::Item(_) => "an item",
        }
    }
}
