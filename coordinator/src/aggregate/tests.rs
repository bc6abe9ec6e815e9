use super::*;
use crate::admission::Arriving;
use proptest::prelude::*;
use std::time::Instant;
use weighhouse_shared::compression::{Compression, Encoding};
use weighhouse_shared::ids::{JobId, RoundId};
use weighhouse_shared::job::JobFile;
use weighhouse_shared::wire::stream::Piece;

/// The `[federation]` with these keys; every number fixed.
pub fn federation(keys: &str) -> Federation {
    let schema = "name = \"test\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
                  features = [{ column = \"a\", min = 0.0, max = 1.0 }]";
    let proximal = if keys.contains("fedprox") { "proximal = 0.1" } else { "" };
    let file = format!(
        "name = \"x\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n[training]\n{proximal}\n\
         [federation]\nmax_sites = 1000\n{keys}"
    );
    let file: JobFile = toml::from_str(&file).unwrap();
    file.contract(toml::from_str(schema).unwrap(), [0; 16]).unwrap().federation
}

/// An update with these values, as it comes out of admission.
pub fn admitted(values: &[i32], spool: &Arc<Spool>) -> AdmittedUpdate {
    let body: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let piece = Piece {
        job: JobId::from_bytes([0; 32]),
        round: RoundId(0),
        base: ContentHash::of(b""),
        content: ContentHash::of(&body),
        total: body.len() as u64,
        offset: 0,
        len: body.len() as u32,
    };
    let encoding = Encoding { compression: Compression::None, parameters: values.len() as u64 };
    let mut arriving = Arriving::begin(piece, encoding, spool).unwrap().unwrap();
    arriving.push(&body).unwrap();
    arriving.finish().unwrap().unwrap().admit(Ok(())).unwrap()
}

/// All of `updates` under these keys of a job's federation.
pub fn aggregate_of(keys: &str, updates: &[Vec<i32>]) -> Aggregate {
    let spool = Spool::new(std::env::temp_dir());
    let mut aggregate = Aggregate::new(updates[0].len(), &federation(keys), &spool).unwrap();
    for values in updates {
        aggregate.add(admitted(values, &spool), 0).unwrap();
    }
    aggregate
}

fn combined(keys: &str, updates: &[Vec<i32>]) -> (Vec<i64>, u64) {
    let mut aggregate = aggregate_of(keys, updates);
    let combined = aggregate.combine().unwrap().unwrap();
    (combined.sums.to_vec(), combined.divisor)
}

/// As numbers.
fn means(keys: &str, updates: &[Vec<i32>]) -> Vec<f64> {
    let (sums, divisor) = combined(keys, updates);
    sums.into_iter().map(|sum| sum as f64 / divisor as f64).collect()
}

const KRUM: &str = "strategy = \"krum\"\nmin_sites = 5\nhostile_sites = 1";
const MULTI_KRUM: &str = "strategy = \"multi_krum\"\nmin_sites = 5\nhostile_sites = 1";
const BULYAN: &str = "strategy = \"bulyan\"\nmin_sites = 7\nhostile_sites = 1";
const TRIMMED: &str = "strategy = \"trimmed_mean\"\nmin_sites = 5\ntrim_share = 0.29";
const MEDIAN: &str = "strategy = \"fedmedian\"";
const ALL: [&str; 6] = ["strategy = \"fedavg\"", MEDIAN, TRIMMED, KRUM, MULTI_KRUM, BULYAN];

#[test]
fn each_rule_comes_to_what_its_paper_says_on_columns_worked_out_by_hand() {
    let rows = |columns: &[&[i32]]| -> Vec<Vec<i32>> {
        (0..columns[0].len()).map(|row| columns.iter().map(|column| column[row]).collect()).collect()
    };
    let odd = rows(&[&[5, -3, 900, 4, 1], &[0, 0, 7, 0, 0]]);
    assert_eq!(means("", &odd), [907.0 / 5.0, 7.0 / 5.0]);
    assert_eq!(means(MEDIAN, &odd), [4.0, 0.0]);
    // One of five at each end.
    assert_eq!(means(TRIMMED, &odd), [10.0 / 3.0, 0.0]);
    assert_eq!(means(MEDIAN, &odd[1..]), [2.5, 0.0]);
    assert_eq!(means(MEDIAN, &rows(&[&[i32::MIN / 4]])), [f64::from(i32::MIN / 4)]);
    // Distances among 0, 1, 3, 7, 1000 on a line: with f = 1 a score sums the two nearest of four others. For 1 that
    // is 1 + 4, for 0 it is 1 + 9, for 3 it is 4 + 9, for 7 it is 16 + 36.
    let line = rows(&[&[7, 1000, 1, 0, 3]]);
    assert_eq!(means(KRUM, &line), [1.0]);
    assert_eq!(means(MULTI_KRUM, &line), [11.0 / 4.0]);
    // Of -9, 0, 1, 2, 3, 1000, 2000 Krum picks five, 1000 and 2000 not among them; the three around the median 1.
    assert_eq!(means(BULYAN, &rows(&[&[1000, 2, -9, 0, 3, 2000, 1]])), [1.0]);
}

#[test]
fn an_update_over_the_norm_bound_is_scaled_down_to_it_and_others_are_as_they_were() {
    // The bound is 1024 steps.
    let bounded = |rule: &str| format!("{rule}\nnorm_bound = {:?}", 1024.0 * UPDATE_STEP);
    let updates = vec![vec![3000, -4000], vec![600, 800]];
    assert_eq!(means(&bounded("strategy = \"fedavg\""), &updates[..1]), [614.0, -819.0]);
    assert_eq!(means(&bounded("strategy = \"fedavg\""), &updates), [607.0, -9.5]);
    assert_eq!(means(&bounded(MEDIAN), &updates), [607.0, -9.5]);
    assert_eq!(means(&bounded("strategy = \"fedadam\""), &updates), [607.0, -9.5]);
}

#[test]
fn a_buffer_weighs_each_update_by_its_age_and_is_divided_by_their_number() {
    let spool = Spool::new(std::env::temp_dir());
    let keys = federation("schedule = \"buffered\"\nmin_sites = 2");
    let mut aggregate = Aggregate::new(1, &keys, &spool).unwrap();
    aggregate.add(admitted(&[1000], &spool), 0).unwrap();
    aggregate.add(admitted(&[500], &spool), 3).unwrap();
    let Combined { sums, divisor, .. } = aggregate.combine().unwrap().unwrap();
    assert_eq!(sums[0] as f64 / divisor as f64, (1000.0 + 500.0 / 2.0) / 2.0);
}

/// Over several blocks of columns.
#[test]
fn a_rule_gives_each_column_what_it_would_give_it_alone() {
    let (sites, parameters) = (5, WORK_LEN / 4 / 5 * 2 + 77);
    let value = |site: usize, at: usize| ((site * 7919 + at * 104_729) % 2001) as i32 - 1000;
    let updates: Vec<Vec<i32>> =
        (0..sites).map(|site| (0..parameters).map(|at| value(site, at)).collect()).collect();
    let mut aggregate = aggregate_of(MEDIAN, &updates);
    let combined = aggregate.combine().unwrap().unwrap();
    for (at, sum) in combined.sums.iter().enumerate() {
        let mut column: Vec<i32> = (0..sites).map(|site| value(site, at)).collect();
        column.sort_unstable();
        assert_eq!(*sum, 2 * i64::from(column[2]), "column {at}");
    }
    aggregate.clear().unwrap();
    assert_eq!(aggregate.combine().unwrap(), None);
}

#[test]
fn a_block_of_columns_is_bounded_however_many_sites_and_parameters_there_are() {
    let rows = |parameters| Rows {
        file: Spool::new(std::env::temp_dir()).file().unwrap(),
        parameters,
        contents: Vec::new(),
    };
    for parameters in [1, 1000, 10_000_000, 1_000_000_000] {
        for sites in [1, 2, 100, 1000, 100_000] {
            let columns = rows(parameters).columns_at_once(sites);
            assert!(columns >= 1 && columns <= parameters);
            assert!(4 * columns * sites <= WORK_LEN, "{columns} columns of {sites} sites");
        }
    }
}

#[test]
fn squared_norms_are_exact() {
    let values = [i32::MAX / 4, 3, -7, -(1 << 29), 1 << 29];
    let bytes: Vec<[u8; 4]> = values.iter().map(|value| value.to_le_bytes()).collect();
    let mut norm = SquaredNorm::default();
    norm.add(&bytes);
    let square = |value: i32| u128::from(value.unsigned_abs()).pow(2);
    assert_eq!(norm.value(), values.iter().map(|value| square(*value)).sum::<u128>());
    let mut distance = SquaredNorm::default();
    distance.add_differences(&bytes[3..4], &bytes[4..5]);
    assert_eq!(distance.value(), 1 << 60);
}

proptest! {
    #[test]
    fn no_rule_depends_on_the_order_in_which_updates_came(
        updates in proptest::collection::vec(proptest::collection::vec(-9i32..9, 3), 7..12),
        seed in any::<u64>(),
        bounded in any::<bool>(),
    ) {
        let mut shuffled = updates.clone();
        let mut state = seed;
        for at in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.swap(at, (state >> 33) as usize % (at + 1));
        }
        for rule in ALL {
            let bound = if bounded { format!("norm_bound = {:?}", 6.0 * UPDATE_STEP) } else { String::new() };
            let keys = format!("{rule}\n{bound}");
            prop_assert_eq!(combined(&keys, &updates), combined(&keys, &shuffled), "{}", rule);
        }
    }
}

/// Run by hand, with 4 GB of disk under the temporary folder:
/// `cargo test --release -p weighhouse-coordinator --lib hundred_sites -- --ignored --nocapture`.
#[test]
#[ignore = "writes 4 GB"]
fn hundred_sites_of_ten_million_parameters() {
    let (sites, parameters) = (100, 10_000_000);
    let spool = Spool::new(std::env::temp_dir());
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let rules = ["strategy = \"fedmedian\"", "strategy = \"trimmed_mean\"\nmin_sites = 9"];
    let compared = "strategy = \"multi_krum\"\nmin_sites = 70\nhostile_sites = 30";
    for keys in rules.into_iter().chain([compared]) {
        let mut aggregate = Aggregate::new(parameters, &federation(keys), &spool).unwrap();
        let began = Instant::now();
        for site in 0..sites {
            let mut state = site as u64;
            let mut file = spool.file().unwrap();
            let mut values = vec![0u8; 4 * parameters];
            for value in values.as_chunks_mut::<4>().0 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *value = ((state >> 44) as i32).to_le_bytes();
            }
            file.write(&values).unwrap();
            drop(values);
            aggregate.add(crate::admission::tests::admitted_file(file), 0).unwrap();
        }
        let added = began.elapsed();
        let divisor = aggregate.combine().unwrap().unwrap().divisor;
        println!(
            "{keys:?}: {added:?} to add, {:?} to combine, divisor {divisor}, peak {} MB",
            began.elapsed() - added,
            peak()
        );
    }
}
