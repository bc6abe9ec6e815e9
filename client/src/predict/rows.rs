//! The table that is scored: CSV of any length in, chunks of rows as a model takes them out. Hostile tables cost no
//! more memory than honest ones.

use std::cell::Cell as Shared;
use std::io::{self, Read};
use std::rc::Rc;
use weighhouse_shared::schema::{Cell, CellReader, Feature, Schema};

/// The most rows of a chunk.
const CHUNK_ROWS: usize = 4096;
/// The most inputs of a chunk.
const CHUNK_INPUTS: usize = 1 << 20;
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
    /// A cell that should be a number.
    #[error(
        "{name}, line {line}: column `{column}` holds `{text}`, which is not a finite number; correct the cell or \
         give --skip-bad-rows"
    )]
    NotANumber {
        /// What people know the table as.
        name: String,
        /// Counted from 1, the header being line 1.
        line: u64,
        /// The column.
        column: String,
        /// The cell's beginning.
        text: String,
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
    pub(super) numbers: Vec<f32>,
    pub(super) ids: Vec<u32>,
    kept: Vec<csv::ByteRecord>,
    lines: Vec<u64>,
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
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rows({})", self.len())
    }
}

/// Reads a table chunk by chunk. No label column is needed.
pub struct RowReader<'a, R> {
    reader: csv::Reader<Metered<R>>,
    record: csv::ByteRecord,
    layout: RowLayout<'a>,
    meter: Rc<Meter>,
    chunk_rows: usize,
    skipped: u64,
    first_skipped: Option<String>,
}

/// Where in a record things stand.
struct RowLayout<'a> {
    name: String,
    schema: &'a Schema,
    readers: Vec<CellReader<'a>>,
    features_at: Vec<usize>,
    /// The customer first.
    kept_at: Vec<usize>,
    cells: usize,
}

impl<'a, R: Read> RowReader<'a, R> {
    /// Reads the header of `source`, which people know as `name`; `keep` are columns whose cells are kept.
    pub fn new(source: R, name: &str, schema: &'a Schema, keep: &[String]) -> Result<Self, RowsError> {
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
            readers: schema.features.iter().map(Feature::reader).collect(),
            features_at: columns.map(position).collect::<Result<_, _>>()?,
            kept_at: std::iter::once(&schema.customer).chain(keep).map(position).collect::<Result<_, _>>()?,
            cells: header.len(),
        };
        let chunk_rows = (CHUNK_INPUTS / schema.features.len()).clamp(1, CHUNK_ROWS);
        let record = csv::ByteRecord::new();
        Ok(Self { reader, record, layout, meter, chunk_rows, skipped: 0, first_skipped: None })
    }

    /// The next rows, at least one; None at the end. A row that cannot be read is an error, or with
    /// `skip_bad_rows` left out and counted.
    pub fn next_chunk(&mut self, skip_bad_rows: bool) -> Result<Option<Rows>, RowsError> {
        let (mut rows, mut kept_bytes) = (Rows::default(), 0);
        while rows.len() < self.chunk_rows && kept_bytes < CHUNK_KEPT_BYTES {
            self.meter.begin_row();
            let more = self.reader.read_byte_record(&mut self.record).map_err(|source| {
                let line = self.reader.position().line();
                RowsError::Read { name: self.layout.name.clone(), line, source }
            })?;
            if !more {
                break;
            }
            match self.layout.add(&self.record, &mut rows) {
                Ok(bytes) => kept_bytes += bytes,
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

impl RowLayout<'_> {
    /// Adds a record to `rows`, all of it or nothing; how many bytes are kept of it.
    fn add(&self, record: &csv::ByteRecord, rows: &mut Rows) -> Result<usize, RowsError> {
        let name = || self.name.clone();
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |at: usize| record.get(at).unwrap_or_default().trim_ascii();
        if record.len() != self.cells {
            return Err(RowsError::CellCount { name: name(), line, got: record.len(), expected: self.cells });
        }
        if cell(self.kept_at[0]).is_empty() {
            return Err(RowsError::NoCustomer { name: name(), line, column: self.schema.customer.clone() });
        }
        let before = [rows.numbers.len(), rows.ids.len()];
        for ((feature, reader), at) in self.schema.features.iter().zip(&self.readers).zip(&self.features_at) {
            match reader.read(cell(*at)) {
                Some(Cell::Number(number)) => rows.numbers.push(number),
                Some(Cell::Id(id)) => rows.ids.push(id),
                None => {
                    rows.numbers.truncate(before[0]);
                    rows.ids.truncate(before[1]);
                    let (column, text) = (feature.column.clone(), beginning(cell(*at)));
                    return Err(RowsError::NotANumber { name: name(), line, column, text });
                }
            }
        }
        let kept: csv::ByteRecord = self.kept_at.iter().map(|at| &record[*at]).collect();
        let bytes = kept.as_slice().len();
        rows.kept.push(kept);
        rows.lines.push(line);
        Ok(bytes)
    }
}

/// The first characters of a cell, for an error a person at the site reads.
fn beginning(cell: &[u8]) -> String {
    String::from_utf8_lossy(cell).trim().chars().take(40).collect()
}

/// Counts what is read, in all and for one row.
#[derive(Default)]
struct Meter {
    total: Shared<u64>,
    row: Shared<u64>,
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
