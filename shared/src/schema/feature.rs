//! A column that a model learns from, and how its cells are read.

use super::{MAX_CATEGORIES, MAX_HASH_BUCKETS, MAX_NAME_LEN, SchemaError};
use crate::ids::ContentHasher;
use crate::model::MAX_STEPS;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::{HashMap, HashSet};

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
/// let visits = read("column = \"visits\"\nhash_buckets = 64\nlength = 20").unwrap();
/// assert_eq!(visits.length, Some(20));
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "FeatureEntry")]
pub struct Feature {
    /// Its name in the header.
    pub column: String,
    /// What its values are; of a sequence, those of its entries.
    pub values: Values,
    /// Most steps of a sequence, 1 to 1024, of which the last count; None if a cell holds one value.
    ///
    /// A sequence's cell lists its entries from the oldest to the newest with spaces between them.
    pub length: Option<u32>,
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
    length: Option<u32>,
}

impl TryFrom<FeatureEntry> for Feature {
    type Error = SchemaError;

    fn try_from(entry: FeatureEntry) -> Result<Self, SchemaError> {
        let FeatureEntry { column, min, max, categories, hash_buckets, length } = entry;
        let values = match (min, max, categories, hash_buckets) {
            (Some(min), Some(max), None, None) => Values::Numeric { min, max },
            (None, None, Some(categories), None) => Values::Categories(categories),
            (None, None, None, Some(buckets)) => Values::HashBuckets(buckets),
            _ => return Err(SchemaError::Kind { column: column.chars().take(40).collect() }),
        };
        Ok(Self { column, values, length })
    }
}

impl Serialize for Feature {
    /// In text only the keys that are set; in canonical bytes, which carry no keys, all there are.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { column, values, length } = self;
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
            if let Some(length) = length {
                entries.serialize_entry("length", length)?;
            }
            return entries.end();
        }
        let (column, length) = (column.clone(), *length);
        let empty =
            FeatureEntry { column, min: None, max: None, categories: None, hash_buckets: None, length };
        let entry = match values.clone() {
            Values::Numeric { min, max } => FeatureEntry { min: Some(min), max: Some(max), ..empty },
            Values::Categories(categories) => FeatureEntry { categories: Some(categories), ..empty },
            Values::HashBuckets(buckets) => FeatureEntry { hash_buckets: Some(buckets), ..empty },
        };
        entry.serialize(serializer)
    }
}

impl Feature {
    /// Checks bounds, categories, sizes and length.
    pub(super) fn validate(&self) -> Result<(), SchemaError> {
        let column = &self.column;
        match &self.values {
            &Values::Numeric { min, max } => check_bounds(column, min, max)?,
            Values::Categories(categories) => check_categories(column, categories, 1)?,
            &Values::HashBuckets(buckets) => check_buckets(column, buckets)?,
        }
        let Some(length) = self.length else { return Ok(()) };
        if !(1..=MAX_STEPS).contains(&(length as usize)) {
            return Err(SchemaError::Length { column: column.clone(), got: length });
        }
        let spaced = |category: &&String| category.contains(|c: char| c.is_ascii_whitespace());
        match self.categories().iter().find(spaced) {
            Some(category) => {
                Err(SchemaError::StepCategory { column: column.clone(), category: beginning(category) })
            }
            None => Ok(()),
        }
    }

    pub(super) fn categories(&self) -> &[String] {
        match &self.values {
            Values::Categories(categories) => categories,
            _ => &[],
        }
    }

    /// How many ids a categorical feature's cells, or its sequence's entries, can have; None for numbers.
    pub fn vocabulary_len(&self) -> Option<usize> {
        match &self.values {
            Values::Numeric { .. } => None,
            Values::Categories(categories) => Some(categories.len() + 1),
            Values::HashBuckets(buckets) => Some(*buckets as usize + 1),
        }
    }

    /// What reads the cells of this feature's column, or the entries of its sequences. Build it once for many cells.
    pub fn reader(&self) -> CellReader<'_> {
        match &self.values {
            &Values::Numeric { min, max } => CellReader::Number { min, max },
            Values::Categories(categories) => CellReader::of_categories(categories),
            &Values::HashBuckets(buckets) => CellReader::Hash { buckets },
        }
    }
}

/// Refuses bounds that bound nothing.
pub(super) fn check_bounds(column: &str, min: f64, max: f64) -> Result<(), SchemaError> {
    if min.is_finite() && max.is_finite() && min < max && (max - min).is_finite() {
        return Ok(());
    }
    Err(SchemaError::Bounds { column: column.to_owned(), min, max })
}

/// Refuses fewer than `least` categories, too many, and those that no cell can be.
pub(super) fn check_categories(column: &str, categories: &[String], least: usize) -> Result<(), SchemaError> {
    let column = || column.to_owned();
    if !(least..=MAX_CATEGORIES).contains(&categories.len()) {
        return Err(SchemaError::CategoryCount { column: column(), least, got: categories.len() });
    }
    let mut seen = HashSet::new();
    let usable = |category: &str| {
        (1..=MAX_NAME_LEN).contains(&category.len())
            && category.trim() == category
            && !category.chars().any(char::is_control)
    };
    let bad = categories.iter().find(|category| !usable(category) || !seen.insert(category.as_str()));
    match bad {
        Some(category) => Err(SchemaError::Category { column: column(), category: beginning(category) }),
        None => Ok(()),
    }
}

/// Refuses no buckets and too many.
pub(super) fn check_buckets(column: &str, buckets: u32) -> Result<(), SchemaError> {
    if (1..=MAX_HASH_BUCKETS).contains(&buckets) {
        return Ok(());
    }
    Err(SchemaError::CategoryCount { column: column.to_owned(), least: 1, got: buckets as usize })
}

fn beginning(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Turns the cells of one feature's column, or the entries of a sequence, into a model's inputs.
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

impl<'a> CellReader<'a> {
    /// Of one of `categories` or another text.
    pub(super) fn of_categories(categories: &'a [String]) -> Self {
        Self::Category((0u32..).zip(categories).map(|(id, category)| (category.as_bytes(), id)).collect())
    }

    /// Reads `cell`, whose outer spaces are gone. None if it should be a finite number and is not; as a category any
    /// bytes will do.
    ///
    /// A category's id is its place in the list, and the list's length for anything else. A hashed value's id is
    /// the first 8 bytes, big-endian, of SHA-256 of `weighhouse category v1`, a zero byte and the cell, modulo the
    /// number of buckets; an empty cell's is that number.
    pub fn read(&self, cell: &[u8]) -> Option<Cell> {
        match self {
            Self::Number { min, max } => Some(Cell::Number(scaled(finite(cell)?, *min, *max))),
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

/// The finite number that a cell holds.
pub(super) fn finite(cell: &[u8]) -> Option<f64> {
    let value: f64 = std::str::from_utf8(cell).ok()?.parse().ok()?;
    value.is_finite().then_some(value)
}

/// Brings a finite `value` between the bounds and onto -1 to 1.
pub(super) fn scaled(value: f64, min: f64, max: f64) -> f32 {
    let share = (value.clamp(min, max) - min) / (max - min);
    (2.0 * share - 1.0) as f32
}
