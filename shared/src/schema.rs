//! What the columns of a site's records mean: which one names the customer, which are features and
//! between which public bounds, which is the label. A job carries the schema it was made for; a site
//! answers only jobs whose schema is its own.

use crate::ids::ContentHash;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// The most features a schema may name.
pub const MAX_FEATURES: usize = 4096;
/// The longest column or schema name, in bytes.
pub const MAX_NAME_LEN: usize = 128;

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

/// A numeric column and its public bounds. The bounds are chosen without looking at the records (a
/// percentage runs from 0 to 100, an age from 0 to 110): bounds read off the data would leak it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Its name in the header.
    pub column: String,
    /// Values below count as this.
    pub min: f64,
    /// Values above count as this.
    pub max: f64,
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
        for Feature { column, min, max } in &self.features {
            if !(min.is_finite() && max.is_finite() && min < max && (max - min).is_finite()) {
                return Err(SchemaError::Bounds { column: column.clone(), min: *min, max: *max });
            }
        }
        Ok(())
    }

    /// Two schemas with one hash ask for the same columns in the same order with the same bounds.
    pub fn hash(&self) -> ContentHash {
        ContentHash::of(&crate::wire::codec::encode(self))
    }
}

impl Feature {
    /// Brings a finite `value` between the bounds and onto -1 to 1.
    pub fn scaled(&self, value: f64) -> f32 {
        let share = (value.clamp(self.min, self.max) - self.min) / (self.max - self.min);
        (2.0 * share - 1.0) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        let feature = |column: &str| Feature { column: column.into(), min: 0.0, max: 10.0 };
        Schema {
            name: "campaign".into(),
            customer: "customer".into(),
            label: Label { column: "y".into(), kind: LabelKind::Binary },
            features: vec![feature("a"), feature("b")],
        }
    }

    #[test]
    fn a_column_with_two_roles_and_bounds_that_bound_nothing_are_refused() {
        assert_eq!(schema().validate(), Ok(()));
        let mut twice = schema();
        twice.features[1].column = "customer".into();
        assert_eq!(twice.validate(), Err(SchemaError::Repeated { column: "customer".into() }));
        for (min, max) in [(1.0, 1.0), (2.0, 1.0), (f64::NAN, 1.0), (f64::MIN, f64::MAX)] {
            let mut unbounded = schema();
            (unbounded.features[0].min, unbounded.features[0].max) = (min, max);
            assert!(matches!(unbounded.validate(), Err(SchemaError::Bounds { .. })), "{min} {max}");
        }
    }

    #[test]
    fn a_value_outside_the_bounds_counts_as_the_bound() {
        let feature = &schema().features[0];
        assert_eq!([-5.0, 0.0, 5.0, 10.0, 1e300].map(|value| feature.scaled(value)), [-1., -1., 0., 1., 1.]);
    }

    #[test]
    fn the_hash_changes_with_any_bound() {
        let mut other = schema();
        other.features[1].max = 10.5;
        assert_ne!(schema().hash(), other.hash());
    }
}
