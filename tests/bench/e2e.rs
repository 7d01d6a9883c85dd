//! End-to-end benchmark (`cargo bench --bench e2e`): the waits of a user, beside the usual tools for the same work, in
//! one run.
//!
//! Images, blobs and disks lie in a real registry on a loopback port; ocifs reads them lazily, the usual tools fetch and
//! unpack them, and native reads show what the machine can do. Absolute times depend on the machine, so the ratio is what
//! counts, and every figure is the median of runs that alternate between the two. The method is described in
//! `docs/performance.md`; the table that is printed goes there.
//!
//! - `OCIFS_BENCH_RUNS=N`: so many runs (5).
//! - `OCIFS_BENCH_PROGRAM=PROGRAM`: measure another build of ocifs.
//! - `OCIFS_BENCH_ROWS=P1,P11`: only the groups that have one of these rows.
//! - `OCIFS_BENCH_PAGE_CACHE=keep`: do not empty the machine's page cache (needs root).
//! - `OCIFS_BENCH_ESTARGZ=DIR`, `OCIFS_BENCH_SOCI=DIR`: a layout with the main image, converted by somebody else.
//! - `OCIFS_BENCH_STARGZ_STORE=PROGRAM`: measure it beside ocifs.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is the result")]

mod artifact;
#[path = "../support/chunked.rs"]
#[allow(clippy::unwrap_used, reason = "what is converted is our own image")]
mod chunked;
mod convert;
mod image;
mod lab;
mod link;
mod measure;
mod mounted;
mod peers;
mod proxy;
mod registry;
mod report;
mod route;
mod rows_blob;
mod rows_boot;
mod rows_image;
mod rows_indexed;
mod rows_link;
mod rows_model;
mod rows_ready;
mod rows_tree;
#[path = "../support/soci.rs"]
#[allow(clippy::unwrap_used, reason = "what is converted is our own image")]
mod soci;
mod stop;
#[path = "../support/zran.rs"]
#[allow(clippy::unwrap_used, reason = "what is converted is our own image")]
mod zran;

use std::error::Error;
use std::fs::TryLockError;
use std::path::Path;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Instant;
use std::{env, fs};

use lab::{Group, Lab};
use report::Row;

/// Everything that goes wrong ends the group of rows with its message.
pub(crate) type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// A group: the rows it has, and how it gets ready.
struct Kind {
    rows: &'static [&'static str],
    work: &'static str,
    ready: fn(&Lab) -> Result<Box<dyn Group>>,
}

static GROUPS: [Kind; 19] = [
    Kind { rows: &["P1", "P2", "P6", "P10", "P12"], work: "the image", ready: rows_image::ready },
    Kind { rows: &["P1"], work: "one layer beside ratarmount", ready: rows_indexed::ready_ratarmount },
    Kind { rows: &["P4", "P5"], work: "gzip, index known", ready: rows_indexed::ready_gzip },
    Kind { rows: &["P3", "P4", "P5"], work: "eStargz", ready: rows_indexed::ready_estargz },
    Kind { rows: &["P3", "P4", "P5"], work: "zstd:chunked", ready: rows_indexed::ready_zstd_chunked },
    Kind { rows: &["P3", "P4", "P5"], work: "SOCI", ready: rows_indexed::ready_soci },
    Kind { rows: &["P7"], work: "complete blobs and disks", ready: rows_blob::ready_complete },
    Kind { rows: &["P8"], work: "a layer of 100 000 files", ready: rows_tree::ready_many },
    Kind { rows: &["P9"], work: "booting", ready: rows_boot::ready },
    Kind { rows: &["P10"], work: "a layer of 1 000 000 entries", ready: rows_tree::ready_million },
    Kind { rows: &["P11"], work: "a large blob, cold", ready: rows_blob::ready_cold },
    Kind { rows: &["P13"], work: "a model, mapped", ready: rows_model::ready },
    Kind { rows: &["P15"], work: "readiness", ready: rows_ready::ready_loopback },
    Kind { rows: &["P15"], work: "readiness at 1 Gbit/s", ready: rows_ready::ready_fast },
    Kind { rows: &["P15"], work: "readiness at 100 Mbit/s", ready: rows_ready::ready_slow },
    Kind { rows: &["P15"], work: "readiness with 20 ms of delay each way", ready: rows_ready::ready_delayed },
    Kind { rows: &["L100"], work: "100 Mbit/s", ready: rows_link::ready_slow },
    Kind { rows: &["L1000"], work: "1 Gbit/s", ready: rows_link::ready_fast },
    Kind { rows: &["D20"], work: "20 ms each way", ready: rows_link::ready_delayed },
];

fn main() -> ExitCode {
    // `cargo test --all-targets` starts benchmarks too, without this word.
    if !env::args().any(|argument| argument == "--bench") {
        eprintln!("e2e measures only under `cargo bench`");
        return ExitCode::SUCCESS;
    }
    match bench() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("error: {failed} groups of rows ended with an error");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints; the answer is how many groups failed while they were measured.
fn bench() -> Result<usize> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-data");
    fs::create_dir_all(&data)?;
    // One path for it however it is reached: what runs there is found again by it.
    let data = fs::canonicalize(data)?;
    let lock = fs::File::create(data.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(format!("another run uses {}", data.display()).into());
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    stop::watch()?;
    let runs: usize = match env::var("OCIFS_BENCH_RUNS") {
        Ok(runs) => runs.parse().map_err(|_| format!("OCIFS_BENCH_RUNS={runs:?} is not a number"))?,
        Err(_) => 5,
    };
    let groups = chosen()?;
    let lab = Lab::new(&data)?;
    let mut rows = Vec::new();
    let mut failed = 0;
    for kind in groups {
        let mut group = match (kind.ready)(&lab) {
            Ok(group) => group,
            Err(why) => {
                stop::check()?;
                eprintln!("{}: not measured: {why}", kind.work);
                rows.extend(kind.rows.iter().map(|number| Row::missing(number, kind.work, why.to_string())));
                continue;
            }
        };
        let mut outcome = Ok(());
        let runs = runs.min(group.most_runs());
        let start = Instant::now();
        for number in 1..=runs {
            eprintln!("{}: run {number} of {runs}", kind.work);
            outcome = group.run(&lab);
            if outcome.is_err() {
                break;
            }
        }
        stop::check()?;
        eprintln!("{}: {:.0} s", kind.work, start.elapsed().as_secs_f64());
        match outcome {
            Ok(()) => rows.extend(group.rows()),
            Err(error) => {
                failed += 1;
                eprintln!("{}: failed: {error}", kind.work);
                let why = format!("FAILED: {error}");
                rows.extend(kind.rows.iter().map(|number| Row::missing(number, kind.work, why.clone())));
            }
        }
    }
    let cores = available_parallelism().map_or(1, usize::from);
    println!(
        "{} layers, {:.0} MB stored, {:.0} MB uncompressed; {cores} cores; median of {runs} runs, where a figure does not say fewer\n",
        lab.image.layers.len(),
        lab.image.stored() as f64 / 1e6,
        lab.image.uncompressed as f64 / 1e6,
    );
    println!("{}", report::table(&rows, runs)?);
    Ok(failed)
}

/// The groups that `OCIFS_BENCH_ROWS` names, or all.
fn chosen() -> Result<Vec<&'static Kind>> {
    let Ok(wanted) = env::var("OCIFS_BENCH_ROWS") else { return Ok(GROUPS.iter().collect()) };
    let wanted: Vec<&str> = wanted.split(',').map(str::trim).collect();
    for name in &wanted {
        if !GROUPS.iter().any(|kind| kind.rows.contains(name)) {
            return Err(format!("OCIFS_BENCH_ROWS: there is no row {name:?}").into());
        }
    }
    Ok(GROUPS.iter().filter(|kind| kind.rows.iter().any(|row| wanted.contains(row))).collect())
}
