//! The table that is scored: CSV of any length in, chunks of rows as a model takes them out. Hostile tables cost no
//! more memory than honest ones.

use super::scorer::Scorer;
use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;
use weighhouse_shared::schema::{CellFault, RowReader, RowTable, Schema};

/// The most rows of a chunk.
const CHUNK_ROWS: usize = 4096;
/// A chunk ends once its rows take so many bytes to score.
const CHUNK_BYTES: usize = 256 << 20;
/// A chunk ends after so many bytes of cells that are kept.
const CHUNK_KEPT_BYTES: usize = 8 << 20;
/// The longest row, in bytes.
const MAX_ROW_BYTES: u64 = 4 << 20;

/// Why a table cannot be scored. Says where; shown at the site, never sent.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// It cannot be read.
    #[error("cannot read {name} after line {line}")]
    Read {
        /// What people know the table as.
        name: String,
        /// Counted from 1, the header being line 1.
        line: u64,
        /// What the reader said.
        #[source]
        source: csv::Error,
    },
    /// A column is not in the header.
    #[error("{name} has no column `{column}`; its header is: {header}")]
    MissingColumn {
        /// What people know the table as.
        name: String,
        /// The column.
        column: String,
        /// What the header has.
        header: String,
    },
    /// A row that is shorter or longer than the header.
    #[error(
        "{name}, line {line}: {got} cells, and the header has {expected}; correct the row or give --skip-bad-rows"
    )]
    CellCount {
        /// What people know the table as.
        name: String,
        /// Counted from 1, the header being line 1.
        line: u64,
        /// Cells of the row.
        got: usize,
        /// Cells of the header.
        expected: usize,
    },
    /// A cell that is not what the schema says.
    #[error("{name}, line {line}: {fault}; correct the cell or give --skip-bad-rows")]
    Cell {
        /// What people know the table as.
        name: String,
        /// Counted from 1, the header being line 1.
        line: u64,
        /// What is wrong with it.
        fault: CellFault,
    },
    /// A row without a customer.
    #[error(
        "{name}, line {line}: the customer column `{column}` is empty; correct the cell or give --skip-bad-rows"
    )]
    NoCustomer {
        /// What people know the table as.
        name: String,
        /// Counted from 1, the header being line 1.
        line: u64,
        /// The column.
        column: String,
    },
}

/// Rows of one chunk.
#[derive(Default)]
pub struct Rows {
    /// Without labels.
    pub(super) table: RowTable,
    kept: Vec<csv::ByteRecord>,
    lines: Vec<u64>,
    /// If it was asked for, the ids of the items that each row lists.
    histories: Vec<Vec<u32>>,
}

impl Rows {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The customer and the other cells of a row that are written out.
    pub fn kept(&self, row: usize) -> &csv::ByteRecord {
        &self.kept[row]
    }

    /// Where a row stands in the input.
    pub fn line(&self, row: usize) -> u64 {
        self.lines[row]
    }

    /// The ids of the items that a row lists, if that was asked for.
    pub fn history(&self, row: usize) -> &[u32] {
        self.histories.get(row).map_or(&[], Vec::as_slice)
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rows({})", self.len())
    }
}

/// Reads a table chunk by chunk. No label column is needed.
pub struct TableReader<'a, R> {
    reader: csv::Reader<Metered<R>>,
    record: csv::ByteRecord,
    layout: RowLayout<'a>,
    meter: Rc<Meter>,
    /// Bytes that it takes to score a row and a step.
    bytes: [usize; 2],
    skipped: u64,
    first_skipped: Option<String>,
}

/// Where in a record things stand.
struct RowLayout<'a> {
    name: String,
    schema: &'a Schema,
    reads: RowReader<'a>,
    features_at: Vec<usize>,
    /// The customer first.
    kept_at: Vec<usize>,
    /// Features whose cells list the items of a row's history.
    histories: &'a [usize],
    cells: usize,
    /// One row on its way, so that a bad one leaves nothing behind.
    row: RowTable,
}

impl<'a, R: Read> TableReader<'a, R> {
    /// Reads the header of `source`, which people know as `name`; `keep` are columns whose cells are kept, `histories`
    /// features whose items are listed; chunks are as long as `scorer` can take.
    pub fn new(
        source: R,
        name: &str,
        schema: &'a Schema,
        scorer: &Scorer,
        keep: &[String],
        histories: &'a [usize],
    ) -> Result<Self, RowsError> {
        let meter = Rc::new(Meter::default());
        let source = Metered { source, meter: meter.clone() };
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(source);
        let unreadable = |source| RowsError::Read { name: name.into(), line: 0, source };
        let header = reader.byte_headers().map_err(unreadable)?;
        let position = |column: &String| {
            let found = header.iter().position(|cell| cell.trim_ascii() == column.as_bytes());
            found.ok_or_else(|| RowsError::MissingColumn {
                name: name.into(),
                column: column.clone(),
                header: header.iter().take(50).map(beginning).collect::<Vec<_>>().join(", "),
            })
        };
        let columns = schema.features.iter().map(|feature| &feature.column);
        let layout = RowLayout {
            name: name.into(),
            schema,
            reads: RowReader::new(schema),
            features_at: columns.map(position).collect::<Result<_, _>>()?,
            kept_at: std::iter::once(&schema.customer).chain(keep).map(position).collect::<Result<_, _>>()?,
            histories,
            cells: header.len(),
            row: RowTable::default(),
        };
        let (record, bytes) = (csv::ByteRecord::new(), scorer.bytes());
        Ok(Self { reader, record, layout, meter, bytes, skipped: 0, first_skipped: None })
    }

    /// The next rows, at least one; None at the end. A row that cannot be read is an error, or with
    /// `skip_bad_rows` left out and counted.
    pub fn next_chunk(&mut self, skip_bad_rows: bool) -> Result<Option<Rows>, RowsError> {
        let (mut rows, mut size) = (Rows::default(), Size::default());
        while rows.len() < CHUNK_ROWS && !size.is_full(self.bytes) {
            self.meter.begin_row();
            let more = self.reader.read_byte_record(&mut self.record).map_err(|source| {
                let line = self.reader.position().line();
                RowsError::Read { name: self.layout.name.clone(), line, source }
            })?;
            if !more {
                break;
            }
            match self.layout.add(&self.record, &mut rows, &mut size) {
                Ok(()) => {}
                Err(error) if skip_bad_rows => {
                    self.skipped += 1;
                    self.first_skipped.get_or_insert_with(|| error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(if rows.is_empty() { None } else { Some(rows) })
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.meter.total.get()
    }

    /// Rows left out so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Why the first row was left out.
    pub fn first_skipped(&self) -> Option<String> {
        self.first_skipped.clone()
    }
}

/// How much a chunk holds.
#[derive(Default)]
struct Size {
    rows: usize,
    steps: usize,
    kept_bytes: usize,
}

impl Size {
    /// Whether a chunk ends here; `bytes` are those of a row and of a step.
    fn is_full(&self, bytes: [usize; 2]) -> bool {
        let of = |count: usize, bytes: usize| count.saturating_mul(bytes);
        let scored = of(self.rows, bytes[0]).saturating_add(of(self.steps, bytes[1]));
        scored >= CHUNK_BYTES || self.kept_bytes >= CHUNK_KEPT_BYTES
    }
}

impl RowLayout<'_> {
    /// Adds a record to `rows`, all of it or nothing.
    fn add(&mut self, record: &csv::ByteRecord, rows: &mut Rows, size: &mut Size) -> Result<(), RowsError> {
        let name = || self.name.clone();
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |at: usize| record.get(at).unwrap_or_default().trim_ascii();
        if record.len() != self.cells {
            return Err(RowsError::CellCount { name: name(), line, got: record.len(), expected: self.cells });
        }
        if cell(self.kept_at[0]).is_empty() {
            return Err(RowsError::NoCustomer { name: name(), line, column: self.schema.customer.clone() });
        }
        let of_feature = |feature: usize| cell(self.features_at[feature]);
        if let Err(fault) = self.reads.read_features(of_feature, &mut self.row) {
            self.row = RowTable::default();
            return Err(RowsError::Cell { name: name(), line, fault });
        }
        size.rows += 1;
        size.steps += self.row.steps(0..1);
        rows.table.append(&mut self.row);
        if !self.histories.is_empty() {
            let listed = |&feature: &usize| self.reads.listed(feature, of_feature(feature));
            let history: Vec<u32> = self.histories.iter().flat_map(listed).collect();
            size.kept_bytes += size_of_val(history.as_slice());
            rows.histories.push(history);
        }
        let kept: csv::ByteRecord = self.kept_at.iter().map(|at| &record[*at]).collect();
        size.kept_bytes += kept.as_slice().len();
        rows.kept.push(kept);
        rows.lines.push(line);
        Ok(())
    }
}

/// The first characters of a cell, for an error a person at the site reads.
fn beginning(cell: &[u8]) -> String {
    String::from_utf8_lossy(cell).trim().chars().take(40).collect()
}

/// Counts what is read, in all and for one row.
#[derive(Default)]
struct Meter {
    total: Cell<u64>,
    row: Cell<u64>,
}

impl Meter {
    fn begin_row(&self) {
        self.row.set(0);
    }
}

/// Refuses to read on when a row has no end: one quotation mark too many would else have the rest of the file in
/// one cell.
struct Metered<R> {
    source: R,
    meter: Rc<Meter>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.meter.row.get() > MAX_ROW_BYTES {
            let reason = format!("a row of more than {MAX_ROW_BYTES} bytes; is a quotation mark left open?");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let read = self.source.read(buffer)?;
        self.meter.total.set(self.meter.total.get() + read as u64);
        self.meter.row.set(self.meter.row.get() + read as u64);
        Ok(read)
    }
}
