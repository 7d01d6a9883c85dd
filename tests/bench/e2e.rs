//! What a user waits for, beside the same work done by the usual tools, in one run: `cargo bench --bench e2e`.
//!
//! An unindexed two-layer gzip image lies in a real registry on a loopback port. ocifs mounts it with an empty cache;
//! skopeo and umoci fetch and unpack it. Absolute times depend on the machine, so the ratio is what counts, and every
//! figure is the median of `OCIFS_BENCH_RUNS` runs (5) that alternate between the two. The method is described in
//! `docs/performance.md`; the table that is printed goes there.
//!
//! - `OCIFS_BENCH_RUNS=N`: so many runs.
//! - `OCIFS_BENCH_PEERS=only`: measure skopeo and umoci alone.
//! - `OCIFS_BENCH_PAGE_CACHE=keep`: do not empty the machine's page cache (needs root) before the native cold read.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is the result")]

mod image;
mod measure;
mod registry;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};
use std::{env, fs};

use image::Image;
use measure::{Samples, Table, Unit, drop_page_cache, find, read_all, run, tool};
use registry::Registry;

/// Everything that goes wrong ends the run with its message.
pub(crate) type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// What one core inflates with checkpoints, in bytes a second: the limit that the forward pass is held against.
const INFLATE: f64 = 528e6;

fn main() -> ExitCode {
    // `cargo test --all-targets` starts benchmarks too, without this word.
    if !env::args().any(|argument| argument == "--bench") {
        eprintln!("e2e measures only under `cargo bench`");
        return ExitCode::SUCCESS;
    }
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-data");
    fs::create_dir_all(&data)?;
    let runs: usize = env::var("OCIFS_BENCH_RUNS").map_or(Ok(5), |runs| runs.parse())?;
    let image = Image::get(&data)?;
    let registry = Registry::with(&image, &data)?;
    let scratch = Scratch::new(&data)?;

    let mut peers = Peers::default();
    let mut ours = Ours::default();
    let peers_only = env::var_os("OCIFS_BENCH_PEERS").is_some_and(|value| value == "only");
    for number in 1..=runs {
        eprintln!("run {number} of {runs}");
        peers.measure(&registry, &scratch)?;
        if !peers_only {
            ours.measure(&registry, &scratch)?;
            if ours.entries != peers.entries {
                return Err(format!("ocifs shows {} entries, umoci {}", ours.entries, peers.entries).into());
            }
        }
    }
    report(&image, runs, &ours, &peers);
    Ok(())
}

/// skopeo, umoci and reading from a local disk.
#[derive(Default)]
struct Peers {
    copy: Samples,
    unpack: Samples,
    /// Both, and naming every entry of the result.
    ready: Samples,
    bytes: Samples,
    find: Samples,
    read_cold: Samples,
    read_warm: Samples,
    entries: usize,
}

impl Peers {
    fn measure(&mut self, registry: &Registry, scratch: &Scratch) -> Result<()> {
        let layout = scratch.fresh("peer-layout")?;
        let bundle = scratch.fresh("peer-bundle")?;
        let image = format!("{}:bench", layout.display());
        let from = format!("docker://{}", registry.reference());
        let start = registry.now()?;
        let copy = run(tool("skopeo")
            .args(["copy", "--quiet", "--src-tls-verify=false", &from])
            .arg(format!("oci:{image}")))?;
        let traffic = registry.since(start)?;
        let unpack = run(tool("umoci").args(["unpack", "--image", &image]).arg(&bundle))?;
        let root = bundle.join("rootfs");
        let found = find(&root)?;
        self.entries = found.lines;
        self.copy.add_time(copy);
        self.unpack.add_time(unpack);
        self.ready.add_time(copy + unpack + found.time);
        self.find.add_time(found.time);
        self.bytes.add(traffic.bytes as f64);
        if env::var_os("OCIFS_BENCH_PAGE_CACHE").is_none_or(|value| value != "keep") {
            drop_page_cache()?;
            self.read_cold.add_time(read_all(&root)?.time);
        }
        read_all(&root)?;
        self.read_warm.add_time(read_all(&root)?.time);
        scratch.fresh("peer-layout")?;
        scratch.fresh("peer-bundle")?;
        Ok(())
    }
}

/// ocifs on the same image.
#[derive(Default)]
struct Ours {
    /// With an empty cache: until the mount command returns, and until `find merged` has ended.
    mount: Samples,
    ready: Samples,
    bytes: Samples,
    blob_requests: Samples,
    /// The daemon's peak resident memory after that.
    memory: Samples,
    /// Mounted again with the cache that is there now.
    mount_again: Samples,
    ready_again: Samples,
    blob_requests_again: Samples,
    /// With an empty cache: mount, and read every byte; then the same bytes again.
    read_cold: Samples,
    read_warm: Samples,
    /// The daemon's peak resident memory after that.
    memory_read: Samples,
    entries: usize,
}

impl Ours {
    fn measure(&mut self, registry: &Registry, scratch: &Scratch) -> Result<()> {
        let cache = scratch.fresh("cache")?;
        let start = registry.now()?;
        let mounted = Mounted::new(registry, &cache, scratch)?;
        let found = find(&mounted.merged())?;
        let traffic = registry.since(start)?;
        self.entries = found.lines;
        self.mount.add_time(mounted.time);
        self.ready.add_time(mounted.time + found.time);
        self.bytes.add(traffic.bytes as f64);
        self.blob_requests.add(traffic.blob_requests as f64);
        self.memory.add(mounted.peak_memory()?);
        mounted.end()?;

        let start = registry.now()?;
        let mounted = Mounted::new(registry, &cache, scratch)?;
        let found = find(&mounted.merged())?;
        let traffic = registry.since(start)?;
        self.mount_again.add_time(mounted.time);
        self.ready_again.add_time(mounted.time + found.time);
        self.blob_requests_again.add(traffic.blob_requests as f64);
        mounted.end()?;

        let cache = scratch.fresh("cache")?;
        let mounted = Mounted::new(registry, &cache, scratch)?;
        let cold = read_all(&mounted.merged())?;
        let warm = read_all(&mounted.merged())?;
        if cold.bytes != warm.bytes {
            return Err(format!("tar read {} bytes, then {}", cold.bytes, warm.bytes).into());
        }
        self.read_cold.add_time(mounted.time + cold.time);
        self.read_warm.add_time(warm.time);
        self.memory_read.add(mounted.peak_memory()?);
        mounted.end()?;
        scratch.fresh("cache")?;
        Ok(())
    }
}

/// A mount, and the daemon behind it.
struct Mounted {
    point: PathBuf,
    daemon: u32,
    /// How long the mount command took.
    time: Duration,
}

/// The program that is measured.
const OCIFS: &str = env!("CARGO_BIN_EXE_ocifs");

impl Mounted {
    fn new(registry: &Registry, cache: &Path, scratch: &Scratch) -> Result<Self> {
        let point = scratch.fresh("mount")?;
        let time = run(tool(OCIFS)
            .arg("mount")
            .arg("--cache-dir")
            .arg(cache)
            .arg(registry.reference())
            .arg(&point))?;
        if !is_mounted(&point)? {
            return Err(format!("ocifs mount ended with 0, but {} is not mounted", point.display()).into());
        }
        let daemon = daemon_of(&point)?;
        Ok(Self { point, daemon, time })
    }

    fn merged(&self) -> PathBuf {
        self.point.join("merged")
    }

    /// The most memory the daemon ever had, in bytes.
    fn peak_memory(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0)
    }

    /// Unmounts and waits for the daemon's end, so that it takes no part in what is measured next.
    fn end(self) -> Result<()> {
        run(tool(OCIFS).arg("umount").arg(&self.point))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while Path::new(&format!("/proc/{}", self.daemon)).exists() {
            if Instant::now() > deadline {
                return Err(format!("process {} lives 10 s after its unmount", self.daemon).into());
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Only a run that failed half way leaves it mounted; its own message is the one to show.
        if is_mounted(&self.point).unwrap_or(false) {
            run(tool("fusermount3").args(["-u", "-z"]).arg(&self.point)).ok();
        }
    }
}

fn is_mounted(point: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1).map(Path::new) == Some(point)))
}

/// The process that runs our program with this mount point among its arguments.
fn daemon_of(point: &Path) -> Result<u32> {
    let wanted = fs::canonicalize(OCIFS)?;
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes end while we look at them.
        let Ok(program) = fs::read_link(process.path().join("exe")) else { continue };
        let Ok(arguments) = fs::read(process.path().join("cmdline")) else { continue };
        let point = point.as_os_str().as_encoded_bytes();
        if program == wanted && arguments.split(|byte| *byte == 0).any(|argument| argument == point) {
            return Ok(pid);
        }
    }
    Err(format!("no process serves {}", point.display()).into())
}

/// A folder for what a run makes, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(data: &Path) -> Result<Self> {
        let path = data.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// An empty folder of that name, whatever was there.
    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir(&path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} could not be removed: {error}", self.0.display());
        }
    }
}

fn report(image: &Image, runs: usize, ours: &Ours, peers: &Peers) {
    let cores = available_parallelism().map_or(1, usize::from);
    println!(
        "{} layers, {:.0} MB stored, {:.0} MB uncompressed, {} entries; {cores} cores; median of {runs} runs\n",
        image.layers,
        peers.bytes.median().unwrap_or_default() / 1e6,
        image.uncompressed as f64 / 1e6,
        peers.entries,
    );
    let seconds = |samples: &Samples| samples.median().unwrap_or_default();
    let ready = seconds(&peers.ready);
    let inflate = image.uncompressed as f64 / (INFLATE * image.layers.min(cores) as f64);
    let eager = Some(("skopeo copy + umoci unpack + find", ready));
    let limit = Some(("inflating everything on all cores", inflate));
    let native = |samples: &Samples| samples.median().map(|time| ("tar of the unpacked tree", time));

    let mut table = Table::new();
    let mut row =
        |work: &str, ours: &Samples, unit, peer, target: &str| table.row(work, ours, unit, peer, target);
    row("cold: mount", &ours.mount, Unit::Seconds, None, "");
    row("cold: mount + find merged", &ours.ready, Unit::Seconds, eager, "0.12");
    row("the same", &ours.ready, Unit::Seconds, limit, "1.5");
    let whole = peers.bytes.median().map(|bytes| ("skopeo copy", bytes));
    row("cold: bytes from the registry", &ours.bytes, Unit::MegaBytes, whole, "");
    row("cold: blob requests", &ours.blob_requests, Unit::Count, None, "");
    row("cold: peak memory", &ours.memory, Unit::MebiBytes, None, "64 MiB");
    row("again: mount", &ours.mount_again, Unit::Seconds, None, "0.05 s");
    let find = peers.find.median().map(|time| ("find in the unpacked tree", time));
    row("again: mount + find merged", &ours.ready_again, Unit::Seconds, find, "");
    row("again: blob requests", &ours.blob_requests_again, Unit::Count, None, "0");
    row("cold: mount + tar of merged", &ours.read_cold, Unit::Seconds, eager, "");
    row("the same", &ours.read_cold, Unit::Seconds, native(&peers.read_cold), "");
    row("warm: tar of merged", &ours.read_warm, Unit::Seconds, native(&peers.read_warm), "1.2");
    row("after tar: peak memory", &ours.memory_read, Unit::MebiBytes, None, "64 MiB");
    println!("{}", table.finish());
    println!("skopeo copy {:.2} s, umoci unpack {:.2} s", seconds(&peers.copy), seconds(&peers.unpack));
}
