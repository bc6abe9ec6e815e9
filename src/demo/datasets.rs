//! Where the demo's records come from: made-up branches, or a folder with one folder a site, perhaps
//! regrouped by a column. The result is each site's training file and its test rows; the latter only the
//! judge sees.

use super::branches;
use anyhow::{Context, Result, bail};
use csv::StringRecord;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use weighhouse_client::home::load_schema;
use weighhouse_shared::model::{self, Batch};
use weighhouse_shared::schema::{Cell, CellReader, Feature, Schema};

/// Regroups all rows into sites by a column's value.
#[derive(Debug, Clone)]
pub struct Partition {
    /// The column.
    pub column: String,
    /// Sites with fewer customers are left out.
    pub min_customers: usize,
}

/// Rows as a model takes them, each customer's adjacent.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// `[rows, numeric features]`, scaled onto -1 to 1.
    pub numbers: Vec<f32>,
    /// `[rows, categorical features]`.
    pub ids: Vec<u32>,
    /// `[rows]`.
    pub labels: Vec<f32>,
    /// Customer i owns rows `starts[i]..starts[i + 1]`.
    pub starts: Vec<u32>,
}

/// One site's records.
#[derive(Debug, Clone)]
pub struct SiteData {
    /// Its name.
    pub name: String,
    records: Vec<StringRecord>,
    /// What it learns from.
    pub train: Rows,
    /// What the judge tests on.
    pub test: Rows,
}

/// All sites' records.
#[derive(Debug)]
pub struct Dataset {
    /// What it is called.
    pub name: String,
    /// What the columns mean.
    pub schema: Schema,
    /// The same as a file.
    pub schema_toml: String,
    /// Column names.
    pub header: StringRecord,
    /// The sites.
    pub sites: Vec<SiteData>,
    /// The job's public denominator: about how many customers a site of this kind has.
    pub expected_customers: u32,
}

/// Customers a made-up branch or a district is declared to have.
const DISTRICT_CUSTOMERS: u32 = 100;
/// Customers a single store is declared to have.
const STORE_CUSTOMERS: u32 = 15;

impl SiteData {
    /// Customers it learns from.
    pub fn train_customers(&self) -> usize {
        self.train.starts.len() - 1
    }

    /// Writes train.csv into `folder`: all that the site's daemon gets.
    pub fn write(&self, header: &StringRecord, folder: &Path) -> Result<()> {
        let path = folder.join("train.csv");
        let failed = || format!("cannot write {}; is the disk full?", path.display());
        let mut writer = csv::Writer::from_path(&path).with_context(failed)?;
        writer.write_record(header)?;
        for record in &self.records {
            writer.write_record(record).with_context(failed)?;
        }
        writer.flush().with_context(failed)
    }
}

/// A site's rows before they are parsed.
#[derive(Default)]
struct Raw {
    train: Vec<StringRecord>,
    test: Vec<StringRecord>,
}

impl Dataset {
    /// Made-up branches.
    pub fn generate(count: u32, seed: u64) -> Result<Self> {
        let schema_toml = branches::synthetic_schema();
        let schema: Schema = toml::from_str(&schema_toml)?;
        let mut columns = vec![schema.customer.as_str()];
        columns.extend(schema.features.iter().map(|feature| feature.column.as_str()));
        columns.push(&schema.label.column);
        let header = StringRecord::from(columns);
        let record = |offer: &branches::Offer| {
            let mut cells = vec![offer.customer_id.clone()];
            cells.extend(offer.features.iter().map(|value| format!("{value:.5}")));
            cells.push(u8::from(offer.responded).to_string());
            StringRecord::from(cells)
        };
        let raw = branches::branches(count as usize, seed).into_iter().map(|branch| {
            let raw = Raw {
                train: branch.train.iter().map(record).collect(),
                test: branch.test.iter().map(record).collect(),
            };
            (branch.name, raw)
        });
        Self::build("branches".into(), schema, schema_toml, header, raw.collect(), DISTRICT_CUSTOMERS)
    }

    /// The sites in `folder`.
    pub fn read(
        folder: &Path,
        schema: Option<&Path>,
        partition: Option<Partition>,
        sites: Option<u32>,
    ) -> Result<Self> {
        let name =
            folder.file_name().map_or_else(|| "data".into(), |name| name.to_string_lossy().into_owned());
        let schema_path = match schema {
            Some(path) => path.to_owned(),
            None => PathBuf::from("configs").join(format!("{name}.schema.toml")),
        };
        if !schema_path.exists() {
            bail!("{} does not exist; name the schema of {name} with --schema FILE", schema_path.display());
        }
        let parsed = load_schema(&schema_path)?;
        let schema_toml = std::fs::read_to_string(&schema_path)?;
        let mut folders: Vec<PathBuf> = std::fs::read_dir(folder)
            .with_context(|| {
                format!("cannot read {}; --data needs a folder with one folder a site", folder.display())
            })?
            .filter_map(|item| Some(item.ok()?.path()))
            .filter(|path| path.join("train.csv").is_file())
            .collect();
        folders.sort();
        if folders.is_empty() {
            bail!(
                "{} holds no folder with a train.csv; --data needs one such folder a site",
                folder.display()
            );
        }
        let mut header: Option<StringRecord> = None;
        let mut raw = Vec::new();
        for path in &folders {
            let mut site = Raw::default();
            for file in ["train.csv", "valid.csv"] {
                read_rows(&path.join(file), &mut header, &mut site.train)?;
            }
            read_rows(&path.join("test.csv"), &mut header, &mut site.test)?;
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            raw.push((name, site));
        }
        let header = header.context("the files have no header")?;
        let expected_customers = if partition.is_some() { STORE_CUSTOMERS } else { DISTRICT_CUSTOMERS };
        if let Some(partition) = partition {
            raw = regroup(raw, &header, &parsed, &partition)?;
        }
        let mut dataset = Self::build(name, parsed, schema_toml, header, raw, expected_customers)?;
        if let Some(count) = sites {
            dataset.sites.truncate(count as usize);
        }
        if dataset.sites.len() < 2 {
            bail!(
                "there are fewer than 2 sites with both labels in {}; a federation needs two",
                folder.display()
            );
        }
        Ok(dataset)
    }

    fn build(
        name: String,
        schema: Schema,
        schema_toml: String,
        header: StringRecord,
        raw: Vec<(String, Raw)>,
        expected_customers: u32,
    ) -> Result<Self> {
        let mut sites = Vec::new();
        for (name, Raw { train, test }) in raw {
            let rows =
                Rows::parse(&header, &train, &schema).with_context(|| format!("in the rows of {name}"))?;
            let test = Rows::parse(&header, &test, &schema)
                .with_context(|| format!("in the test rows of {name}"))?;
            // A site whose rows all have one label has nothing to learn from; its daemon would say so.
            if rows.labels.contains(&0.0) && rows.labels.contains(&1.0) {
                sites.push(SiteData { name, records: train, train: rows, test });
            }
        }
        Ok(Self { name, schema, schema_toml, header, sites, expected_customers })
    }
}

fn read_rows(path: &Path, header: &mut Option<StringRecord>, rows: &mut Vec<StringRecord>) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    let failed = || format!("cannot read {}", path.display());
    let mut reader = csv::Reader::from_path(path).with_context(failed)?;
    let own = reader.headers().with_context(failed)?.clone();
    match header {
        Some(known) if *known != own => {
            bail!("{} has another header than the files before it", path.display())
        }
        Some(_) => {}
        None => *header = Some(own),
    }
    for record in reader.records() {
        rows.push(record.with_context(failed)?);
    }
    Ok(())
}

fn position(header: &StringRecord, column: &str) -> Result<usize> {
    header.iter().position(|name| name == column).with_context(|| {
        let names: Vec<&str> = header.iter().collect();
        format!("there is no column `{column}`; the header is: {}", names.join(", "))
    })
}

fn regroup(
    raw: Vec<(String, Raw)>,
    header: &StringRecord,
    schema: &Schema,
    partition: &Partition,
) -> Result<Vec<(String, Raw)>> {
    let column = position(header, &partition.column)?;
    let customer = position(header, &schema.customer)?;
    let mut groups: BTreeMap<String, Raw> = BTreeMap::new();
    let mut customers: HashMap<String, HashSet<String>> = HashMap::new();
    for (_, Raw { train, test }) in raw {
        for (records, is_test) in [(train, false), (test, true)] {
            for record in records {
                let key = record.get(column).unwrap_or_default().to_owned();
                let who = record.get(customer).unwrap_or_default().to_owned();
                customers.entry(key.clone()).or_default().insert(who);
                let group = groups.entry(key).or_default();
                if is_test { group.test.push(record) } else { group.train.push(record) }
            }
        }
    }
    let enough = |key: &String| customers.get(key).is_some_and(|who| who.len() >= partition.min_customers);
    let named = |(key, raw): (String, Raw)| (format!("{}-{key}", partition.column), raw);
    Ok(groups.into_iter().filter(|(key, _)| enough(key)).map(named).collect())
}

impl Rows {
    /// As the model takes them.
    pub fn as_batch(&self) -> Batch<'_> {
        let rows = model::Rows { numbers: &self.numbers, ids: &self.ids, ..model::Rows::default() };
        Batch { rows, labels: &self.labels, customer_starts: &self.starts, draws: &[] }
    }

    fn parse(header: &StringRecord, records: &[StringRecord], schema: &Schema) -> Result<Self> {
        let customer_at = position(header, &schema.customer)?;
        let label_at = position(header, &schema.label.column)?;
        let columns = schema.features.iter().map(|feature| position(header, &feature.column));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let readers: Vec<CellReader<'_>> = schema.features.iter().map(Feature::reader).collect();
        fn cell(record: &StringRecord, at: usize) -> &str {
            record.get(at).unwrap_or_default().trim()
        }
        let not_a_number = |record: &StringRecord, at: usize| {
            let (column, cell) = (header.get(at).unwrap_or_default(), cell(record, at));
            format!("column `{column}` holds `{cell}`, which is not a finite number")
        };
        let mut order = Vec::new();
        let mut customers: HashMap<&str, Vec<&StringRecord>> = HashMap::new();
        for record in records {
            let who = record.get(customer_at).unwrap_or_default();
            customers.entry(who).or_insert_with(|| {
                order.push(who);
                Vec::new()
            });
            if let Some(rows) = customers.get_mut(who) {
                rows.push(record);
            }
        }
        let mut rows = Self { starts: vec![0], ..Self::default() };
        for who in order {
            for record in &customers[who] {
                for (reader, at) in readers.iter().zip(&columns) {
                    let read = reader.read(cell(record, *at).as_bytes());
                    match read.with_context(|| not_a_number(record, *at))? {
                        Cell::Number(number) => rows.numbers.push(number),
                        Cell::Id(id) => rows.ids.push(id),
                    }
                }
                let label = cell(record, label_at).parse().ok().filter(|label: &f32| label.is_finite());
                rows.labels.push(label.with_context(|| not_a_number(record, label_at))?);
            }
            rows.starts.push(rows.labels.len() as u32);
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_judge_reads_categories_as_a_site_does_and_names_the_cell_that_is_no_number() {
        let schema: Schema = toml::from_str(
            "name = \"x\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\nfeatures = [\
             { column = \"tier\", categories = [\"basic\", \"gold\"] }, { column = \"age\", min = 0.0, max = 100.0 }]",
        )
        .unwrap();
        let header = StringRecord::from(vec!["id", "age", "tier", "y"]);
        let parse = |cells: &[[&str; 4]]| {
            let records: Vec<_> = cells.iter().map(|cells| StringRecord::from(cells.to_vec())).collect();
            Rows::parse(&header, &records, &schema)
        };
        let rows =
            parse(&[["a", "50", "gold", "1"], ["b", " 100", "", "0"], ["a", "0", "basic ", "0"]]).unwrap();
        assert_eq!((&rows.ids[..], &rows.numbers[..]), (&[1, 0, 2][..], &[0.0, -1.0, 1.0][..]));
        assert_eq!((&rows.labels[..], &rows.starts[..]), (&[1.0, 0.0, 0.0][..], &[0, 2, 3][..]));
        let refusal = parse(&[["a", "old", "gold", "1"]]).unwrap_err().to_string();
        assert_eq!(refusal, "column `age` holds `old`, which is not a finite number");
    }
}
