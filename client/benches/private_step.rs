//! The private step as a site makes it (Poisson sampling, forward, backward, clipping, exact noise, update) in customers
//! a second, on one and on two threads, with the peak memory of the process, and the rate of its arithmetic beside that of
//! a large matrix product in the same run.
//!
//! `cargo bench -p weighhouse-client --bench private_step`. With `WEIGHHOUSE_PEERS` the folder of scripts
//! `torch_bench.py` and `jax_bench.py`, and `WEIGHHOUSE_PYTHON` a Python that has their libraries, those run the
//! same shapes in turn and the ratios to them are printed; names of models behind `--` choose among them.
//! Each figure is the median of seven blocks of a quarter of a second, as the scripts measure theirs.

use candle_core::{Device, Tensor};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use weighhouse_client::budget::Budget;
use weighhouse_client::records::{Records, Split, load};
use weighhouse_client::train::{RoundBase, train_round};
use weighhouse_shared::identity::Identity;
use weighhouse_shared::ids::{RoundId, SiteId};
use weighhouse_shared::job::{JobContract, JobFile};
use weighhouse_shared::ledger::{Charge, Population};
use weighhouse_shared::model::Engine;
use weighhouse_shared::policy::{PolicyText, first_policy};
use weighhouse_shared::privacy::{Delta, Epsilon, Generator, Mechanism};
use weighhouse_shared::schema::Schema;

/// One model, its rows and its batch.
struct Shape {
    name: &'static str,
    /// As the scripts call it.
    peer: &'static str,
    customers: usize,
    clip_norm: f64,
    model: &'static str,
    schema: &'static str,
    header: &'static str,
    /// A row's cells behind the customer's name, from draws below one.
    cells: fn(&mut dyn FnMut() -> f64) -> String,
    /// Multiplications of one customer's forward.
    products: usize,
}

const STEPS: usize = 30;
const WORDS: usize = 2000;

const SHAPES: [Shape; 4] = [
    Shape {
        name: "mlp 64-128-64-1, dropout 0.2",
        peer: "mlp",
        customers: 256,
        clip_norm: 4.0,
        model: "[model.mlp]\nhidden = [128, 64]\ndropout = 0.2",
        schema: "",
        header: "",
        cells: numbers,
        products: 64 * 128 + 128 * 64 + 64,
    },
    Shape {
        name: "lstm 2000x32, 128, 64, 30 steps",
        peer: "lstm",
        customers: 64,
        clip_norm: 0.83,
        model: "[model.lstm]\nhidden = [128, 64]\nembedding_dim = 32\ndropout = 0.0",
        schema: "[[features]]\ncolumn = \"words\"\nhash_buckets = 1999\nlength = 30\n",
        header: "words",
        cells: words,
        products: STEPS * (4 * 128 * (32 + 128) + 4 * 64 * (128 + 64)),
    },
    Shape {
        name: "transformer 2 layers, 64, 4 heads, 256, 30 steps",
        peer: "trf",
        customers: 64,
        clip_norm: 6.8,
        model: "[model.transformer]\nlayers = 2\nwidth = 64\nheads = 4\nfeed_forward = 256\ndropout = 0.0",
        schema: "[[features]]\ncolumn = \"words\"\nhash_buckets = 1999\nlength = 30\n",
        header: "words",
        cells: words,
        products: STEPS * 2 * (4 * 64 * 64 + 2 * 64 * 256 + 2 * STEPS * 64),
    },
    Shape {
        name: "matrix_factorisation 2000 items, 32, rated, history of 4",
        peer: "mf",
        customers: 256,
        clip_norm: 2.0,
        model: "[model.matrix_factorisation]\nfactors = 32",
        schema: "[[features]]\ncolumn = \"item\"\nhash_buckets = 1999\n\n[[features]]\ncolumn = \"history\"\n\
                 hash_buckets = 1999\nlength = 4\n\n[[features]]\ncolumn = \"ratings\"\nmin = -1.0\nmax = 1.0\nlength = 4\n",
        header: "item,history,ratings",
        cells: ratings,
        products: 4 * 4 * 32 + 32,
    },
];

fn list(count: usize, entry: impl FnMut(usize) -> String) -> String {
    (0..count).map(entry).collect::<Vec<_>>().join(" ")
}

fn numbers(draw: &mut dyn FnMut() -> f64) -> String {
    let cells: Vec<String> = (0..64).map(|_| (2.0 * draw() - 1.0).to_string()).collect();
    format!("{},{}", cells.join(","), u8::from(draw() > 0.5))
}

fn words(draw: &mut dyn FnMut() -> f64) -> String {
    let words = list(STEPS, |_| ((draw().powi(3) * WORDS as f64) as usize).to_string());
    format!("{words},{}", u8::from(draw() > 0.5))
}

fn ratings(draw: &mut dyn FnMut() -> f64) -> String {
    let mut item = || ((draw() * WORDS as f64) as usize).to_string();
    let (wanted, history) = (item(), list(4, |_| item()));
    let ratings = list(4, |_| (2.0 * draw() - 1.0).to_string());
    format!("{wanted},{history},{ratings},{}", 2.0 * draw() - 1.0)
}

impl Shape {
    fn schema(&self) -> Schema {
        let label = match self.peer {
            "mf" => "kind = \"number\"\nmin = -1.0\nmax = 1.0",
            _ => "kind = \"binary\"",
        };
        let mut text =
            format!("name = \"bench\"\ncustomer = \"id\"\n[label]\ncolumn = \"y\"\n{label}\n{}", self.schema);
        if self.peer == "mlp" {
            for at in 0..64 {
                write!(text, "[[features]]\ncolumn = \"x{at}\"\nmin = -1.0\nmax = 1.0\n").unwrap();
            }
        }
        toml::from_str(&text).unwrap()
    }

    fn records(&self, folder: &Path) -> Records {
        let mut state = 1u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let header = if self.peer == "mlp" {
            (0..64).map(|at| format!("x{at}")).collect::<Vec<_>>().join(",")
        } else {
            self.header.into()
        };
        let mut text = format!("id,{header},y\n");
        for customer in 0..self.customers {
            writeln!(text, "c{customer},{}", (self.cells)(&mut draw)).unwrap();
        }
        let file = folder.join("records.csv");
        std::fs::write(&file, text).unwrap();
        let split = Split { site: SiteId::from_bytes([1; 32]), holdout_permille: 0 };
        load(&[file], &self.schema(), split).unwrap()
    }

    /// A job of one round of `steps` steps, everybody in each batch.
    fn contract(&self, steps: usize, nonce: u64) -> JobContract {
        let file: JobFile = toml::from_str(&format!(
            "name = \"bench\"\nschema = \"bench\"\n{}\n[training]\nrounds = 1\nlocal_steps = {steps}\nlearning_rate = 0.01\n\
             expected_customers = {}\n[privacy]\nnoise_multiplier = 100.0\ndelta = 1e-5\nclip_norm = {}\n[evaluation]\nevery = 0",
            self.model, self.customers, self.clip_norm
        ))
        .unwrap();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&nonce.to_le_bytes());
        file.contract(self.schema(), bytes).unwrap()
    }
}

/// Seconds a step; prints one line of JSON.
fn measure(shape: &Shape) {
    let folder = tempfile::tempdir().unwrap();
    let records = shape.records(folder.path());
    let policy = PolicyText::unsigned(first_policy(Epsilon::new(1000.0).unwrap(), Delta::new(1e-3).unwrap()));
    let identity = Identity::generate().unwrap();
    let mut budget = Budget::open(&folder.path().join("ledger"), identity, &policy, 0).unwrap();
    let mut nonce = 0;
    let mut round = |steps: usize| {
        nonce += 1;
        let contract = shape.contract(steps, nonce);
        let charge = Charge { population: Population::Training, event: contract.round_charge() };
        let mechanism = Mechanism::clipped_gradient_sum(&contract.grid(), charge.event.noise_multiplier);
        let job = contract.id();
        budget.reserve(job, "bench", vec![charge]).unwrap();
        let debit = budget.debit(job, RoundId(0), charge, mechanism).unwrap();
        let network = contract.network().unwrap();
        let parameters = network.initial_parameters([1; 32]);
        let base = RoundBase {
            round: RoundId(0),
            parameters: &parameters,
            engine: &Engine::Processor,
            clip_norm: None,
        };
        let mut generator = Generator::from_system().unwrap();
        let begun = Instant::now();
        train_round(&contract, &network, base, &records.training, debit, &mut generator, Vec::new()).unwrap();
        let time = begun.elapsed();
        budget.give_back(job).unwrap();
        time
    };
    let warm = round(5);
    let steps =
        (Duration::from_millis(250).as_secs_f64() / (warm.as_secs_f64() / 5.0)).clamp(3.0, 10_000.0) as usize;
    let mut blocks: Vec<f64> = (0..7).map(|_| round(steps).as_secs_f64() / steps as f64).collect();
    blocks.sort_by(f64::total_cmp);
    println!("{{\"exs\":{},\"rss_mb\":{}}}", shape.customers as f64 / blocks[3], peak_memory());
}

/// Of this process, in MB.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}

/// Multiplications a second of a large product.
fn product_rate() -> f64 {
    const SIZE: usize = 1024;
    let matrix = Tensor::rand(-1f32, 1.0, (SIZE, SIZE), &Device::Cpu).unwrap();
    let time = |_| {
        let begun = Instant::now();
        std::hint::black_box(matrix.matmul(&matrix).unwrap());
        begun.elapsed().as_secs_f64()
    };
    (SIZE * SIZE * SIZE) as f64 / (0..9).map(time).fold(f64::INFINITY, f64::min)
}

/// A figure of the JSON line that a command prints; none if it does not run.
fn figures(command: &mut Command) -> Option<serde_json::Value> {
    let output = command.output().ok()?;
    let line = String::from_utf8(output.stdout).ok()?;
    serde_json::from_str(line.lines().last()?).ok()
}

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let [verb, peer] = arguments.as_slice()
        && verb == "measure"
    {
        match SHAPES.iter().find(|shape| shape.peer == peer) {
            Some(shape) => measure(shape),
            None => println!("{{\"rate\":{}}}", product_rate()),
        }
        return;
    }
    let program = std::env::current_exe().unwrap();
    let pinned = |threads: usize| {
        let mut command = Command::new("taskset");
        command.args(["-c", if threads == 1 { "0" } else { "0,1" }]).arg(&program).arg("measure");
        command
    };
    let peers = std::env::var("WEIGHHOUSE_PEERS").ok();
    let python = std::env::var("WEIGHHOUSE_PYTHON").unwrap_or_else(|_| "python3".into());
    let peer = |script: &str, model: &str, variant: &str, threads: usize| {
        let script = Path::new(peers.as_ref()?).join(script);
        let mut command = Command::new(&python);
        command.arg(script).args([model, variant, &threads.to_string()]);
        Some(figures(&mut command)?["exs"].as_f64()?.round())
    };
    let chosen = |shape: &&Shape| arguments.is_empty() || arguments.iter().any(|name| name == shape.peer);
    for shape in SHAPES.iter().filter(chosen) {
        println!("{}, batch of {}", shape.name, shape.customers);
        let mut best = [0.0f64; 3];
        for threads in [1, 2] {
            let Some(own) = figures(pinned(threads).arg(shape.peer)) else {
                println!("  {threads} threads: this build does not run it");
                continue;
            };
            let rate = figures(pinned(threads).arg("rate"))
                .and_then(|rate| rate["rate"].as_f64())
                .unwrap_or(f64::NAN);
            let exs = own["exs"].as_f64().unwrap_or(f64::NAN);
            // Forward, gradients by the inputs and by the weights.
            let share = 3.0 * shape.products as f64 * exs / rate;
            println!(
                "  {threads} threads: {exs:.0} customers/s, peak memory {:.0} MB, {:.0} % of the rate of a matrix product ({:.1} G/s)",
                own["rss_mb"].as_f64().unwrap_or(f64::NAN),
                100.0 * share,
                rate / 1e9
            );
            best[0] = best[0].max(exs);
            let plain = peer("torch_bench.py", shape.peer, "sgd", threads);
            let private: Vec<(&str, Option<f64>)> = vec![
                ("Opacus hooks", peer("torch_bench.py", shape.peer, "hooks", threads)),
                ("Opacus ghost", peer("torch_bench.py", shape.peer, "ghost", threads)),
                ("JAX vmap", peer("jax_bench.py", shape.peer, "vmap", threads)),
                ("JAX two passes", peer("jax_bench.py", shape.peer, "vmap2", threads)),
            ];
            if let Some(plain) = plain {
                println!("    PyTorch, not private: {plain}");
                best[1] = best[1].max(plain);
            }
            for (name, exs) in private {
                if let Some(exs) = exs {
                    println!("    {name}: {exs}");
                    best[2] = best[2].max(exs);
                }
            }
        }
        if best[1] > 0.0 {
            println!(
                "  best of both: {:.2} times PyTorch without privacy, {:.2} times the best private peer",
                best[0] / best[1],
                best[0] / best[2]
            );
        }
    }
}
