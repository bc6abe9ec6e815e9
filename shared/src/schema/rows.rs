//! Records as a model takes them: cells in, numbers, ids, steps and labels out.

use super::{Cell, CellReader, InputShape, LabelReader, Schema, SequenceShape};
use crate::model::Rows;
use std::ops::Range;

/// Rows of some records, of one [`InputShape`]. Not shown in `Debug`.
#[derive(Clone, Default)]
pub struct RowTable {
    /// `[rows, numbers]`, each from -1 to 1.
    pub numbers: Vec<f32>,
    /// `[rows, categorical columns]`.
    pub ids: Vec<u32>,
    /// Steps of each row's sequence, at most 1024: `[rows]`, empty if rows have no sequence.
    pub step_counts: Vec<u16>,
    /// `[steps of all rows, numbers of a step]`, each from -1 to 1.
    pub step_numbers: Vec<f32>,
    /// `[steps of all rows, categorical columns of a step]`.
    pub step_ids: Vec<u32>,
    /// `[rows]`, as [`Target`](super::Target) says; empty if the rows were read without.
    pub labels: Vec<f32>,
}

impl RowTable {
    /// How many rows with labels there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Steps of the rows in `rows` together.
    pub fn steps(&self, rows: Range<usize>) -> usize {
        self.step_counts.get(rows).unwrap_or_default().iter().map(|&count| usize::from(count)).sum()
    }

    /// Moves the rows of `other`, of the same shape, behind these.
    pub fn append(&mut self, other: &mut Self) {
        self.numbers.append(&mut other.numbers);
        self.ids.append(&mut other.ids);
        self.step_counts.append(&mut other.step_counts);
        self.step_numbers.append(&mut other.step_numbers);
        self.step_ids.append(&mut other.step_ids);
        self.labels.append(&mut other.labels);
    }

    /// Copies the rows `rows` of `other`, of the same `shape`, behind these; the first of them has its steps from
    /// `first_step` on. Returns how many steps they have.
    ///
    /// # Panics
    /// If `other` is not of `shape` or has no such rows.
    pub fn extend_from(
        &mut self,
        other: &Self,
        shape: &InputShape,
        rows: Range<usize>,
        first_step: usize,
    ) -> usize {
        let of = |width: usize, rows: &Range<usize>| rows.start * width..rows.end * width;
        self.numbers.extend_from_slice(&other.numbers[of(shape.numbers, &rows)]);
        self.ids.extend_from_slice(&other.ids[of(shape.columns(), &rows)]);
        self.labels.extend_from_slice(&other.labels[rows.clone()]);
        let Some(sequence) = &shape.sequence else { return 0 };
        let count = other.steps(rows.clone());
        let steps = first_step..first_step + count;
        self.step_counts.extend_from_slice(&other.step_counts[rows]);
        self.step_numbers.extend_from_slice(&other.step_numbers[of(sequence.numbers, &steps)]);
        self.step_ids.extend_from_slice(&other.step_ids[of(sequence.columns(), &steps)]);
        count
    }

    /// Where each row's steps begin and the last one's end: `[rows + 1]`, empty if rows have no sequence. For
    /// [`as_rows`](Self::as_rows).
    ///
    /// # Panics
    /// If there are 2^32 steps or more: take the rows in parts.
    pub fn step_starts(&self) -> Vec<u32> {
        if self.step_counts.is_empty() {
            return Vec::new();
        }
        let mut end = 0u32;
        let ends = self.step_counts.iter().map(|&count| {
            end = end.checked_add(u32::from(count)).expect("parts of fewer than 2^32 steps");
            end
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// As a network takes them, with their own [`step_starts`](Self::step_starts).
    pub fn as_rows<'a>(&'a self, step_starts: &'a [u32]) -> Rows<'a> {
        let Self { numbers, ids, step_numbers, step_ids, .. } = self;
        Rows { numbers, ids, step_starts, step_numbers, step_ids }
    }
}

impl std::fmt::Debug for RowTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RowTable({} rows)", self.len())
    }
}

/// Why a record is not a row. Holds the beginning of a cell: stays where the records are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CellFault {
    /// A cell, or an entry of a sequence, that should be a number.
    #[error("column `{column}` holds `{text}`, which is not a finite number")]
    NotANumber {
        /// The column.
        column: String,
        /// Its beginning.
        text: String,
    },
    /// Two sequences of one row that do not go together.
    #[error(
        "column `{column}` lists {got} entries and column `{first}` {expected}; all sequences of a row have one \
         entry a step"
    )]
    Steps {
        /// The column.
        column: String,
        /// Its entries.
        got: usize,
        /// The first sequence of the schema.
        first: String,
        /// Its entries.
        expected: usize,
    },
    /// A label that is not of its kind.
    #[error("label `{column}` is `{text}`, and must be {expected}")]
    Label {
        /// The column.
        column: String,
        /// Its beginning.
        text: String,
        /// What it must be.
        expected: &'static str,
    },
}

/// Reads records into rows. Build it once for many records.
#[derive(Debug)]
pub struct RowReader<'a> {
    schema: &'a Schema,
    features: Vec<CellReader<'a>>,
    label: LabelReader<'a>,
    sequence: Option<SequenceShape>,
}

impl<'a> RowReader<'a> {
    /// Reads records of `schema`.
    pub fn new(schema: &'a Schema) -> Self {
        let features = schema.features.iter().map(super::Feature::reader).collect();
        let sequence = schema.input_shape().sequence;
        Self { schema, features, label: schema.label.reader(), sequence }
    }

    /// Reads one record behind the rows of `table`: `label` is its label's cell, `cell(i)` that of the schema's feature
    /// `i`, all without their outer spaces. Returns the label.
    ///
    /// After an error `table` may hold a part of the row.
    pub fn read<'c>(
        &self,
        label: &[u8],
        cell: impl Fn(usize) -> &'c [u8],
        table: &mut RowTable,
    ) -> Result<f32, CellFault> {
        self.read_features(cell, table)?;
        let read = self.label.read(label).ok_or_else(|| CellFault::Label {
            column: self.schema.label.column.clone(),
            text: beginning(label),
            expected: self.label.expected(),
        })?;
        table.labels.push(read);
        Ok(read)
    }

    /// Reads one record behind the rows of `table`, whose rows have no labels; see [`read`](Self::read).
    pub fn read_features<'c>(
        &self,
        cell: impl Fn(usize) -> &'c [u8],
        table: &mut RowTable,
    ) -> Result<(), CellFault> {
        let mut steps = None;
        let (mut number_at, mut id_at) = (0, 0);
        for (at, (feature, reader)) in self.schema.features.iter().zip(&self.features).enumerate() {
            let column = || feature.column.clone();
            let fault = |text: &[u8]| CellFault::NotANumber { column: column(), text: beginning(text) };
            let cell = cell(at);
            let Some(length) = feature.length else {
                match reader.read(cell).ok_or_else(|| fault(cell))? {
                    Cell::Number(number) => table.numbers.push(number),
                    Cell::Id(id) => table.ids.push(id),
                }
                continue;
            };
            let got = entries(cell).count();
            let of_step = self.sequence.as_ref().expect("a schema with a sequence feature has a sequence");
            let (first, expected, first_number, first_id) = *steps.get_or_insert_with(|| {
                // At most 1024 by the schema.
                let count = got.min(length as usize);
                table.step_counts.push(count as u16);
                let begun = (table.step_numbers.len(), table.step_ids.len());
                table.step_numbers.resize(begun.0 + count * of_step.numbers, 0.0);
                table.step_ids.resize(begun.1 + count * of_step.columns(), 0);
                (at, got, begun.0, begun.1)
            });
            if got != expected {
                let first = self.schema.features[first].column.clone();
                return Err(CellFault::Steps { column: column(), got, first, expected });
            }
            let last = entries(cell).skip(got.saturating_sub(length as usize));
            for (step, entry) in last.enumerate() {
                match reader.read(entry).ok_or_else(|| fault(entry))? {
                    Cell::Number(number) => {
                        table.step_numbers[first_number + step * of_step.numbers + number_at] = number;
                    }
                    Cell::Id(id) => table.step_ids[first_id + step * of_step.columns() + id_at] = id,
                }
            }
            match feature.vocabulary_len() {
                None => number_at += 1,
                Some(_) => id_at += 1,
            }
        }
        Ok(())
    }

    /// The ids of all entries that `cell` lists of the schema's feature `feature`, a sequence of categories: those before
    /// its last steps too.
    pub fn listed(&self, feature: usize, cell: &[u8]) -> impl Iterator<Item = u32> {
        entries(cell).filter_map(move |entry| match self.features[feature].read(entry) {
            Some(Cell::Id(id)) => Some(id),
            Some(Cell::Number(_)) | None => None,
        })
    }
}

/// The entries of a sequence's cell.
fn entries(cell: &[u8]) -> impl Iterator<Item = &[u8]> {
    cell.split(u8::is_ascii_whitespace).filter(|entry| !entry.is_empty())
}

/// The first characters of a cell, for an error a person at the site reads.
fn beginning(cell: &[u8]) -> String {
    String::from_utf8_lossy(cell).chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(label: &str) -> Schema {
        let schema: Schema = toml::from_str(&format!(
            "name = \"x\"\ncustomer = \"id\"\nlabel = {{ column = \"y\", {label} }}\nfeatures = [\
             {{ column = \"age\", min = 0.0, max = 100.0 }},\
             {{ column = \"paid\", min = 0.0, max = 10.0, length = 3 }},\
             {{ column = \"shop\", categories = [\"a\", \"b\"], length = 3 }},\
             {{ column = \"kept\", min = 0.0, max = 2.0, length = 3 }}]"
        ))
        .unwrap();
        assert_eq!(schema.validate(), Ok(()));
        schema
    }

    fn read(label: &str, rows: &[[&str; 5]]) -> Result<RowTable, CellFault> {
        let schema = schema(label);
        let reader = RowReader::new(&schema);
        let mut table = RowTable::default();
        for row in rows {
            reader.read(row[4].as_bytes(), |at| row[at].as_bytes(), &mut table)?;
        }
        Ok(table)
    }

    #[test]
    fn a_cell_lists_the_steps_and_the_last_of_them_count() {
        let rows = [
            ["50", "0 10", "b  mars", "1 2", "1"],
            ["0", "", "", "", "0"],
            ["100", "9 9 0 5 10", "a a a b a", "0 0 2 1 0", "0"],
        ];
        let table = read("kind = \"binary\"", &rows).unwrap();
        assert_eq!((&table.numbers[..], &table.labels[..]), (&[0.0, -1.0, 1.0][..], &[1.0, 0.0, 0.0][..]));
        assert_eq!(table.step_counts, [2, 0, 3]);
        assert_eq!(table.step_starts(), [0, 2, 2, 5]);
        // Step by step: what was paid, then what was kept.
        assert_eq!(table.step_numbers, [-1.0, 0.0, 1.0, 1.0, -1.0, 1.0, 0.0, 0.0, 1.0, -1.0]);
        assert_eq!(table.step_ids, [1, 2, 0, 1, 0]);
        let mut part = RowTable::default();
        let shape = schema("kind = \"binary\"").input_shape();
        assert_eq!(part.extend_from(&table, &shape, 1..3, 2), 3);
        assert_eq!((&part.step_counts[..], &part.step_ids[..]), (&[0, 3][..], &[0, 1, 0][..]));
        assert_eq!(part.step_numbers, table.step_numbers[4..]);
    }

    #[test]
    fn features_are_read_without_a_label_as_with_one_and_all_entries_of_a_cell_can_be_listed() {
        let schema = schema("kind = \"binary\"");
        let reader = RowReader::new(&schema);
        let cells = ["100", "9 9 0 5 10", "mars a a b a", "0 0 2 1 0"];
        let (mut without, mut with) = (RowTable::default(), RowTable::default());
        reader.read_features(|at| cells[at].as_bytes(), &mut without).unwrap();
        reader.read(b"1", |at| cells[at].as_bytes(), &mut with).unwrap();
        assert!(without.labels.is_empty() && with.labels == [1.0]);
        assert_eq!((&without.numbers, &without.ids), (&with.numbers, &with.ids));
        assert_eq!((&without.step_numbers, &without.step_ids), (&with.step_numbers, &with.step_ids));
        assert_eq!(without.step_starts(), [0, 3]);
        assert_eq!(reader.listed(2, cells[2].as_bytes()).collect::<Vec<_>>(), [2, 0, 0, 1, 0]);
    }

    #[test]
    fn sequences_of_one_row_with_different_lengths_and_entries_that_are_no_numbers_are_refused() {
        let refused = |row: [&str; 5]| read("kind = \"binary\"", &[row]).unwrap_err().to_string();
        assert_eq!(
            refused(["1", "1 2", "a", "1 1", "1"]),
            "column `shop` lists 1 entries and column `paid` 2; all sequences of a row have one entry a step"
        );
        // Before the last of them are taken.
        assert!(refused(["1", "1 2 3 4", "a a a", "1 1 1", "1"]).contains("lists 3 entries"));
        let refusal = refused(["1", "1 cheap", "a a", "1 1", "1"]);
        assert_eq!(refusal, "column `paid` holds `cheap`, which is not a finite number");
    }

    #[test]
    fn each_kind_of_label_is_read_and_what_is_not_of_it_refused() {
        let label = |kind: &str, text: &str| {
            let table = read(kind, &[["1", "", "", "", text]]).map_err(|fault| fault.to_string())?;
            Ok::<f32, String>(table.labels[0])
        };
        let classes = "kind = \"classes\", categories = [\"a\", \"b\"]";
        assert_eq!(label(classes, "b"), Ok(1.0));
        let refusal = label(classes, "c").unwrap_err();
        assert_eq!(refusal, "label `y` is `c`, and must be one of the label's `categories` in the schema");
        assert!(label(classes, "").is_err());
        assert_eq!(label("kind = \"count\"", "12"), Ok(12.0));
        for bad in ["-1", "0.5", "1e9", "many", "NaN"] {
            let refusal = label("kind = \"count\"", bad).unwrap_err();
            assert!(refusal.contains("a whole number from 0 to 16777216"), "{refusal}");
        }
        let number = "kind = \"number\", min = 0.0, max = 200.0";
        assert_eq!([label(number, "50"), label(number, "1e9")], [Ok(-0.5), Ok(1.0)]);
        assert!(label(number, "inf").unwrap_err().contains("must be a finite number"));
        let items = "kind = \"item\", categories = [\"a\", \"b\"]";
        assert_eq!([label(items, "a"), label(items, "c"), label(items, "")], [Ok(0.0), Ok(2.0), Ok(2.0)]);
        let hashed = "kind = \"item\", hash_buckets = 1024";
        assert_eq!([label(hashed, "1004906"), label(hashed, "")], [Ok(916.0), Ok(1024.0)]);
        assert!(label("kind = \"binary\"", "0.5").unwrap_err().contains("must be 0 or 1"));
    }
}
