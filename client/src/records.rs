//! The site's own rows: CSV files in, customers with their feature rows out. Rows never leave this
//! module's types and [`crate::features`]'s; neither shows them in its `Debug`.

use crate::features::{CustomerRows, FeatureTable};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use weighhouse_shared::ids::{ContentHasher, SiteId};
use weighhouse_shared::schema::{Cell, CellReader, Feature, Schema};

/// The most customers a site may have.
const MAX_CUSTOMERS: usize = 100_000_000;

/// Why the site's records cannot be used. Says what to do; shown at the site, never sent.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// A file cannot be read.
    #[error("cannot read the records in {path}; check `data.files` in client.toml")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        #[source]
        source: csv::Error,
    },
    /// A column of the schema is not in the header.
    #[error(
        "{path} has no column `{column}`; its header is: {header}. Name the right file in client.toml, or the \
         right column in the schema"
    )]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// What the header has.
        header: String,
    },
    /// A cell that should be a number.
    #[error(
        "{path}, line {line}: column `{column}` holds `{text}`, which is not a finite number; correct the cell or remove the row"
    )]
    NotANumber {
        /// The file.
        path: PathBuf,
        /// Counted from 1, the header being line 1.
        line: u64,
        /// The column.
        column: String,
        /// The cell's beginning.
        text: String,
    },
    /// A label that is not 0 or 1.
    #[error(
        "{path}, line {line}: label `{column}` is `{text}`, and must be 0 or 1; correct the cell or remove the row"
    )]
    NotALabel {
        /// The file.
        path: PathBuf,
        /// Counted from 1, the header being line 1.
        line: u64,
        /// The column.
        column: String,
        /// The cell's beginning.
        text: String,
    },
    /// A row without a customer.
    #[error("{path}, line {line}: the customer column `{column}` is empty; every row must name its customer")]
    NoCustomer {
        /// The file.
        path: PathBuf,
        /// Counted from 1, the header being line 1.
        line: u64,
        /// The column.
        column: String,
    },
    /// No rows at all.
    #[error("there is no row in {files}; a site needs customers to learn from")]
    Empty {
        /// The files.
        files: String,
    },
    /// All customers were held out, or none learns.
    #[error("every customer is held out for evaluation; lower `data.holdout` in client.toml or add records")]
    NothingToTrain,
    /// A label with one value teaches nothing.
    #[error(
        "every row's label `{column}` is {value}; a site needs both 0 and 1 to learn from: check the label column in the schema"
    )]
    OneClass {
        /// The label column.
        column: String,
        /// The value all rows have.
        value: u8,
    },
    /// More customers than can be counted.
    #[error("there are more than {MAX_CUSTOMERS} customers; split the site")]
    TooMany,
}

/// A site's customers, split for good into those models learn from and those held out.
#[derive(Debug)]
pub struct Records {
    /// Customers that models learn from.
    pub training: FeatureTable,
    /// Customers on whom quality is measured.
    pub holdout: FeatureTable,
}

/// How a site's customers are split.
#[derive(Debug, Clone, Copy)]
pub struct Split {
    /// Whose customers they are.
    pub site: SiteId,
    /// How many of a thousand are held out.
    pub holdout_permille: u32,
}

impl Split {
    /// Whether `customer` is held out: a fixed function of site and name, so that no customer ever
    /// pays for both groups' releases.
    fn holds_out(&self, customer: &[u8]) -> bool {
        let mut hasher = ContentHasher::default();
        hasher.update(b"weighhouse holdout v1\0");
        hasher.update(self.site.as_bytes());
        hasher.update(customer);
        let hash = hasher.finish();
        let (head, _) = hash.as_bytes().split_first_chunk::<8>().expect("a hash has 32 bytes");
        // The bias of a 64-bit number modulo 1000 is below 2^-54.
        u64::from_be_bytes(*head) % 1000 < u64::from(self.holdout_permille)
    }
}

/// Rows of the customers of one group, in the order in which customers first appear.
#[derive(Default)]
struct Grouped {
    index: HashMap<Box<[u8]>, usize>,
    customers: Vec<CustomerRows>,
}

/// Reads all `files` into one table, grouped by customer: numeric features brought onto -1 to 1,
/// categories as ids.
pub fn load(files: &[PathBuf], schema: &Schema, split: Split) -> Result<Records, RecordsError> {
    let mut groups = [Grouped::default(), Grouped::default()];
    let mut seen = [false; 2];
    for path in files {
        read_file(path, schema, split, &mut groups, &mut seen)?;
    }
    let column = schema.label.column.clone();
    match seen {
        [false, false] => {
            let files: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
            return Err(RecordsError::Empty { files: files.join(", ") });
        }
        [true, false] => return Err(RecordsError::OneClass { column, value: 0 }),
        [false, true] => return Err(RecordsError::OneClass { column, value: 1 }),
        [true, true] => {}
    }
    let shape = schema.input_shape();
    let [training, holdout] = groups.map(|group| FeatureTable::new(shape.clone(), group.customers));
    if training.customers() == 0 {
        return Err(RecordsError::NothingToTrain);
    }
    Ok(Records { training, holdout })
}

fn read_file(
    path: &Path,
    schema: &Schema,
    split: Split,
    groups: &mut [Grouped; 2],
    seen: &mut [bool; 2],
) -> Result<(), RecordsError> {
    let read_error = |source| RecordsError::Read { path: path.into(), source };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(read_error)?;
    let header = reader.byte_headers().map_err(read_error)?.clone();
    let position = |column: &str| {
        header.iter().position(|name| name == column.as_bytes()).ok_or_else(|| RecordsError::MissingColumn {
            path: path.into(),
            column: column.to_owned(),
            header: header.iter().take(50).map(String::from_utf8_lossy).collect::<Vec<_>>().join(", "),
        })
    };
    let customer_at = position(&schema.customer)?;
    let label_at = position(&schema.label.column)?;
    let features_at =
        schema.features.iter().map(|feature| position(&feature.column)).collect::<Result<Vec<_>, _>>()?;
    let readers: Vec<CellReader<'_>> = schema.features.iter().map(Feature::reader).collect();

    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(read_error)? {
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |at: usize| record.get(at).unwrap_or_default();
        let not_a_number = |at: usize, column: &str| RecordsError::NotANumber {
            path: path.into(),
            line,
            column: column.to_owned(),
            text: beginning(cell(at)),
        };
        let customer = record.get(customer_at).unwrap_or_default();
        if customer.is_empty() {
            let column = schema.customer.clone();
            return Err(RecordsError::NoCustomer { path: path.into(), line, column });
        }
        let label = std::str::from_utf8(cell(label_at)).ok().and_then(|text| text.parse::<f64>().ok());
        let label = label.filter(|label| label.is_finite());
        let label = label.ok_or_else(|| not_a_number(label_at, &schema.label.column))?;
        if label != 0.0 && label != 1.0 {
            return Err(RecordsError::NotALabel {
                path: path.into(),
                line,
                column: schema.label.column.clone(),
                text: beginning(cell(label_at)),
            });
        }
        seen[usize::from(label == 1.0)] = true;
        let group = &mut groups[usize::from(split.holds_out(customer))];
        let known = group.customers.len();
        let at = match group.index.entry(customer.into()) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => *entry.insert(known),
        };
        if at == known {
            if known == MAX_CUSTOMERS {
                return Err(RecordsError::TooMany);
            }
            group.customers.push(CustomerRows::default());
        }
        let rows = &mut group.customers[at];
        for ((feature, reader), at) in schema.features.iter().zip(&readers).zip(&features_at) {
            match reader.read(cell(*at)).ok_or_else(|| not_a_number(*at, &feature.column))? {
                Cell::Number(number) => rows.numbers.push(number),
                Cell::Id(id) => rows.ids.push(id),
            }
        }
        rows.labels.push(label as f32);
    }
    Ok(())
}

/// The first characters of a cell, for an error a person at the site reads.
fn beginning(cell: &[u8]) -> String {
    String::from_utf8_lossy(cell).chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use weighhouse_shared::schema::{Label, LabelKind, Values};

    fn schema() -> Schema {
        let feature =
            |column: &str| Feature { column: column.into(), values: Values::Numeric { min: 0.0, max: 2.0 } };
        Schema {
            name: "test".into(),
            customer: "id".into(),
            label: Label { column: "y".into(), kind: LabelKind::Binary },
            features: vec![feature("a"), feature("b")],
        }
    }

    fn load_text(text: &str, holdout_permille: u32) -> Result<Records, RecordsError> {
        load_with(&schema(), text, holdout_permille)
    }

    fn load_with(schema: &Schema, text: &str, holdout_permille: u32) -> Result<Records, RecordsError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let split = Split { site: SiteId::from_bytes([1; 32]), holdout_permille };
        load(&[file.path().to_owned()], schema, split)
    }

    #[test]
    fn rows_of_one_customer_are_one_customer_wherever_they_stand() {
        let records = load_text("y,id,b,a\n1,u,0,2\n0,v,1,1\n0,u,2,0\n", 0).unwrap();
        assert_eq!(records.training.customers(), 2);
        let batch = records.training.gather(&[0], 25);
        assert_eq!(batch.as_batch().rows.numbers, [1.0, -1.0, -1.0, 1.0]);
        assert_eq!(batch.as_batch().labels, [1.0, 0.0]);
    }

    #[test]
    fn categories_become_ids_and_what_is_unknown_or_empty_the_last_one() {
        let mut schema = schema();
        schema.features[0].values = Values::Categories(vec!["north".into(), "south".into()]);
        let text = "y,id,b,a\n1,u,0,south\n0,v,1,\n0,u,2,mars\n1,w,0, north \n";
        let records = load_with(&schema, text, 0).unwrap();
        let batch = records.training.gather(&[0, 2, 1], 25);
        assert_eq!(batch.as_batch().rows.ids, [1, 2, 0, 2]);
        assert_eq!(batch.as_batch().rows.numbers, [-1.0, 1.0, -1.0, 0.0]);
        assert_eq!(batch.as_batch().customer_starts, [0, 2, 3, 4]);
    }

    #[test]
    fn a_customer_is_held_out_by_name_alone() {
        let text: String = std::iter::once("y,id,b,a\n".to_owned())
            .chain((0..400).map(|row| format!("{},c{},1,1\n", row % 2, row / 4)))
            .collect();
        let records = load_text(&text, 300).unwrap();
        assert_eq!(records.training.customers() + records.holdout.customers(), 100);
        assert!((15..=45).contains(&records.holdout.customers()));
        let longer = load_text(&format!("{text}1,new,0,0\n"), 300).unwrap();
        let moved = longer.holdout.customers().abs_diff(records.holdout.customers());
        assert!(moved <= 1, "one more customer moves no other");
    }

    #[test]
    fn each_kind_of_bad_record_is_refused_with_its_place() {
        let refused = |text| load_text(text, 0).unwrap_err().to_string();
        assert!(refused("y,id,a\n1,u,0\n").contains("no column `b`"));
        assert!(refused("id,a,b\nu,0,1\n").contains("no column `y`"));
        assert!(refused("y,id,a,b\n1,u,0,cheap\n").contains("line 2: column `b` holds `cheap`"));
        assert!(refused("y,id,a,b\n1,u,0,NaN\n").contains("not a finite number"));
        assert!(refused("y,id,a,b\n0.5,u,0,1\n").contains("must be 0 or 1"));
        assert!(refused("y,id,a,b\n1,,0,1\n").contains("customer column `id` is empty"));
        assert!(refused("y,id,a,b\n1,u,0,1\n1,v,0,1\n").contains("every row's label `y` is 1"));
        assert!(refused("y,id,a,b\n").contains("no row"));
        assert!(refused("y,id,a,b\n1,u,0\n").contains("cannot read"));
        assert!(refused("").contains("no column"));
    }
}
