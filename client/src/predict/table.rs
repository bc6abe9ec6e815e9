//! Rows as they are written: CSV, or one JSON object a line.

use serde::ser::{Serialize, SerializeMap, Serializer};
use std::io::{self, BufWriter, Write};

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// Comma-separated, with a header.
    Csv,
    /// One JSON object a line.
    JsonLines,
}

/// What stands in a cell; numbers in the fewest digits that give them back.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Empty,
    /// A 32-bit number.
    Single(f32),
    /// A 64-bit number.
    Double(f64),
    /// Text.
    Text(String),
}

impl Value {
    /// False for a number that is none.
    pub fn is_finite(&self) -> bool {
        match self {
            Self::Single(number) => number.is_finite(),
            Self::Double(number) => number.is_finite(),
            Self::Empty | Self::Text(_) => true,
        }
    }

    fn to_cell(&self) -> String {
        match self {
            Self::Empty => String::new(),
            Self::Single(number) => number.to_string(),
            Self::Double(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Empty => serializer.serialize_none(),
            Self::Single(number) => serializer.serialize_f32(*number),
            Self::Double(number) => serializer.serialize_f64(*number),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

/// Writes rows of the same columns.
pub(super) struct TableWriter<W: Write> {
    columns: Vec<String>,
    out: Out<W>,
}

enum Out<W: Write> {
    Csv(Box<csv::Writer<W>>),
    JsonLines(BufWriter<W>),
}

/// One row as a JSON object, its columns in order.
struct JsonRow<'a> {
    columns: &'a [String],
    kept: &'a csv::ByteRecord,
    values: &'a [Value],
}

impl Serialize for JsonRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_map(Some(self.columns.len()))?;
        let (kept, scored) = self.columns.split_at(self.kept.len());
        for (column, cell) in kept.iter().zip(self.kept) {
            row.serialize_entry(column, &String::from_utf8_lossy(cell))?;
        }
        for (column, value) in scored.iter().zip(self.values) {
            row.serialize_entry(column, value)?;
        }
        row.end()
    }
}

impl<W: Write> TableWriter<W> {
    /// Begins a table.
    pub fn new(out: W, columns: Vec<String>, format: TableFormat) -> io::Result<Self> {
        let out = match format {
            TableFormat::Csv => {
                let mut out = csv::Writer::from_writer(out);
                out.write_record(&columns)?;
                Out::Csv(Box::new(out))
            }
            TableFormat::JsonLines => Out::JsonLines(BufWriter::new(out)),
        };
        Ok(Self { columns, out })
    }

    /// Writes a row: the cells of the first columns, and the values of the others.
    pub fn write(&mut self, kept: &csv::ByteRecord, values: &[Value]) -> io::Result<()> {
        match &mut self.out {
            Out::Csv(out) => {
                for cell in kept {
                    out.write_field(cell)?;
                }
                for value in values {
                    out.write_field(value.to_cell())?;
                }
                out.write_record(None::<&[u8]>)?;
                Ok(())
            }
            Out::JsonLines(out) => {
                serde_json::to_writer(&mut *out, &JsonRow { columns: &self.columns, kept, values })?;
                out.write_all(b"\n")
            }
        }
    }

    /// Hands on what is still buffered.
    pub fn finish(self) -> io::Result<()> {
        match self.out {
            Out::Csv(mut out) => out.flush(),
            Out::JsonLines(mut out) => out.flush(),
        }
    }
}
