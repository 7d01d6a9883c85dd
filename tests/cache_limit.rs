//! Limit of the cache while several processes read more than it allows, are killed, or fill the disk.
//!
//! A child process is this test binary again, running only the test `child` with its orders in the environment. A watcher looks at
//! the directory all the time. `OCIFS_LONG=1` makes the scan ten times as long: 1 GiB under a limit of 200 MiB, and lets crowds of
//! 2, 4 and 8 processes work for ten minutes each; `OCIFS_LONG=4,8` names the crowds.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why it skips"
)]

#[path = "support/random.rs"]
mod random;

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use ocifs::cache::{BlockCache, CachedFile, SizeLimit};
use ocifs::io::{BoxFuture, ByteRange, RangeDelivery, RangeFetch, ReadError, read_vec};
use ocifs::oci::Digest;
use random::Random;

const BLOCK: u64 = 256 * 1024;
const MIB: u64 = 1 << 20;
/// Longer than a process of a busy machine stands still between two steps of one eviction.
const STAYS: Duration = Duration::from_secs(3);
const ORDERS: &str = "OCIFS_TEST_CHILD";

/// Notes every range in a file, so that several processes can count together.
struct Source {
    content: Bytes,
    log: Option<PathBuf>,
    delivered: AtomicU64,
}

impl Source {
    fn new(content: &Bytes, log: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self { content: content.clone(), log, delivered: AtomicU64::new(0) })
    }
}

impl RangeFetch for Source {
    fn size(&self) -> u64 {
        self.content.len() as u64
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        Box::pin(async move {
            if let Some(log) = &self.log {
                let mut log = OpenOptions::new().append(true).create(true).open(log).unwrap();
                log.write_all(format!("{}\n", range.len()).as_bytes()).unwrap();
                // A round trip, in which the others come by.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.delivered.fetch_add(range.len(), Ordering::SeqCst);
            let bytes = self.content.slice(range.start as usize..range.end as usize);
            let chunks: Vec<Result<Bytes, ReadError>> =
                bytes.chunks(50_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
            Ok(RangeDelivery { range, body: futures_util::stream::iter(chunks).boxed() })
        })
    }
}

fn noise(size: u64, seed: u64) -> Bytes {
    Random::of(seed).bytes(size as usize).into()
}

/// Reads everything from block `first` on, going round, and compares.
async fn scan(cached: &CachedFile, content: &Bytes, first: u64) {
    let blocks = (content.len() as u64).div_ceil(BLOCK);
    for step in 0..blocks {
        let start = (first + step) % blocks * BLOCK;
        let range = ByteRange::new(start, (start + BLOCK).min(content.len() as u64));
        let bytes = read_vec(cached, range).await.unwrap();
        assert!(bytes == content[range.start as usize..range.end as usize], "wrong bytes at {start}");
    }
}

/// What a child has to do.
struct Orders<'a> {
    dir: &'a Path,
    /// In MiB; 0 is none.
    limit: u64,
    /// Which contents to read, one after the other.
    seeds: &'a [u64],
    size: u64,
    first: u64,
}

impl Orders<'_> {
    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn spawn(&self) -> Reaped {
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let orders = format!(
            "{}\n{}\n{}\n{}\n{}",
            self.dir.display(),
            self.limit,
            seeds.join(","),
            self.size,
            self.first
        );
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(ORDERS, orders)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Reaped(child)
    }
}

/// A child that is killed and reaped at the latest when the test ends.
struct Reaped(Child);

impl Reaped {
    fn succeeds(mut self) {
        let status = self.0.wait().unwrap();
        let mut stderr = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(status.success(), "child: {stderr}");
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail for a child that is gone, which is what they are for.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Not a test of its own: the work of the child processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let parts: Vec<&str> = orders.lines().collect();
    let number = |index: usize| parts[index].parse::<u64>().unwrap();
    let dir = Path::new(parts[0]);
    let limit = match number(1) {
        0 => SizeLimit::default(),
        limit => SizeLimit::Bytes(limit * MIB),
    };
    let cache = BlockCache::open_limited(dir, limit).unwrap();
    let mut held = Vec::new();
    for seed in parts[2].split(',') {
        let content = noise(number(3), seed.parse().unwrap());
        let source = Source::new(&content, Some(dir.join("log")));
        let cached = cache.blob(&Digest::sha256(&content), source).unwrap();
        scan(&cached, &content, number(4)).await;
        held.push(cached);
    }
}

fn occupied(dir: &Path) -> u64 {
    let mut total = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // A file may go while it is looked at.
        let Ok(found) = entry.metadata() else { continue };
        total += if found.is_dir() { occupied(&entry.path()) } else { found.blocks() * 512 };
    }
    total
}

/// Looks at the account and at the files of a cache until it is told to stop.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, u64)>,
}

impl Watcher {
    fn of(dir: &Path, limit: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, dir) = (stop.clone(), dir.to_owned());
        let thread = std::thread::spawn(move || {
            let cache = BlockCache::open(&dir).unwrap();
            let (mut most, mut looks, mut over) = (0, 0, None);
            while !stopping.load(Ordering::SeqCst) {
                let used = cache.used();
                assert!(used.is_none_or(|used| used <= limit), "the account says {used:?} of {limit}");
                let here = occupied(&dir.join("v1"));
                // What goes while others are looked at may be seen in two places: only what stays is true.
                over = (here > limit + BLOCK).then(|| over.unwrap_or_else(Instant::now));
                assert!(over.is_none_or(|since| since.elapsed() < STAYS), "the files take {here} of {limit}");
                if over.is_none() {
                    most = most.max(here);
                }
                looks += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            (most, looks)
        });
        Self { stop, thread }
    }

    /// The most that the files took.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let (most, looks) = self.thread.join().unwrap();
        assert!(looks > 10, "only {looks} looks");
        most
    }
}

#[test]
fn eight_processes_fetch_one_cold_blob_once() {
    let dir = tempfile::tempdir().unwrap();
    let size = 12 * MIB + 99;
    let orders = |first| Orders { dir: dir.path(), limit: 0, seeds: &[1], size, first };
    let children: Vec<Reaped> = (0..8).map(|child| orders(child % 4 * 11).spawn()).collect();
    children.into_iter().for_each(Reaped::succeeds);
    let log = fs::read_to_string(orders(0).log()).unwrap();
    let fetched: u64 = log.lines().map(|line| line.parse::<u64>().unwrap()).sum();
    assert!(fetched * 10 <= size * 11, "{fetched} bytes were fetched of {size}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_of_five_times_the_limit_never_passes_it() {
    let dir = tempfile::tempdir().unwrap();
    let (limit, size) = match std::env::var_os("OCIFS_LONG") {
        Some(_) => (200 * MIB, 1024 * MIB),
        None => (20 * MIB, 100 * MIB),
    };
    let cache = BlockCache::open_limited(dir.path(), SizeLimit::Bytes(limit)).unwrap();
    let watcher = Watcher::of(dir.path(), limit);
    let content = noise(size, 2);
    let source = Source::new(&content, None);
    let cached = cache.blob(&Digest::sha256(&content), source.clone()).unwrap();
    scan(&cached, &content, 0).await;
    // What was fetched far ahead of a reader may go before it is read, and is fetched again.
    let delivered = source.delivered.load(Ordering::SeqCst);
    assert!(delivered <= 2 * size, "{delivered} of {size}");
    let most = watcher.end();
    assert!(most > limit / 2, "at most {most} of {limit} were used");
    assert!(cache.evicted() >= size - limit);
}

#[test]
fn several_processes_together_never_pass_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let limit = 20;
    let watcher = Watcher::of(dir.path(), limit * MIB);
    let all: [&[u64]; 3] = [&[10, 13], &[11, 13], &[12, 13]];
    let children: Vec<Reaped> = all
        .into_iter()
        .map(|seeds| Orders { dir: dir.path(), limit, seeds, size: 16 * MIB + 7, first: 5 }.spawn())
        .collect();
    children.into_iter().for_each(Reaped::succeeds);
    let most = watcher.end();
    assert!(most > 10 * MIB, "at most {most} were used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_are_killed_leave_an_account_that_is_never_too_low() {
    let dir = tempfile::tempdir().unwrap();
    let limit = 8;
    let watcher = Watcher::of(dir.path(), limit * MIB);
    for round in 0..6u64 {
        let seeds = [20 + round % 2];
        let child = Orders { dir: dir.path(), limit, seeds: &seeds, size: 24 * MIB, first: round }.spawn();
        tokio::time::sleep(Duration::from_millis(150 + round * 31)).await;
        drop(child);
        let used = BlockCache::open(dir.path()).unwrap().used().unwrap_or(u64::MAX);
        let here = occupied(&dir.path().join("v1"));
        assert!(
            here <= used.saturating_add(4096),
            "round {round}: {here} are there, {used} are in the account"
        );
    }
    let content = noise(24 * MIB, 20);
    let cache = BlockCache::open_limited(dir.path(), SizeLimit::Bytes(limit * MIB)).unwrap();
    let cached = cache.blob(&Digest::sha256(&content), Source::new(&content, None)).unwrap();
    scan(&cached, &content, 0).await;
    watcher.end();
}

/// A small file system in memory.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(options: &str) -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        match mount(Some("none"), at.path(), Some("tmpfs"), MsFlags::empty(), Some(options)) {
            Ok(()) => Some(Self(at)),
            Err(error) => {
                eprintln!("skipped: mounting a tmpfs needs root: {error}");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_takes_new_blocks_in_the_place_of_old_ones() {
    let Some(disk) = Tmpfs::new("size=8m,mode=0700") else { return };
    let cache = BlockCache::open(disk.0.path()).unwrap();
    let content = noise(20 * MIB, 30);
    let source = Source::new(&content, None);
    let cached = cache.blob(&Digest::sha256(&content), source.clone()).unwrap();
    scan(&cached, &content, 0).await;
    // What was fetched ahead of the reader may have gone before it was read: more of it, the later the reader comes.
    let delivered = || source.delivered.load(Ordering::SeqCst);
    assert!(delivered() <= 2 * 20 * MIB, "{}", delivered());
    let last = ByteRange::new(20 * MIB - BLOCK, 20 * MIB);
    read_vec(&*cached, last).await.unwrap();
    let before = delivered();
    read_vec(&*cached, last).await.unwrap();
    assert_eq!(delivered(), before, "the last block was stored");
    assert!(cache.evicted() > 0);
    // What another program leaves no room for is served all the same, and comes back to the cache later.
    drop(cached);
    let filler = disk.0.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
    let other = noise(12 * MIB, 31);
    let cached = cache.blob(&Digest::sha256(&other), Source::new(&other, None)).unwrap();
    scan(&cached, &other, 0).await;
    drop(file);
    fs::remove_file(filler).unwrap();
    scan(&cached, &other, 0).await;
    assert!(cached.bytes_present() > 3 * MIB, "{}", cached.bytes_present());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_the_disk_stays_free_for_others() {
    let Some(disk) = Tmpfs::new("size=16m,mode=0700") else { return };
    for limit in [SizeLimit::Share, SizeLimit::Percent(100), SizeLimit::Bytes(64 * MIB)] {
        let cache = BlockCache::open_limited(disk.0.path(), limit).unwrap();
        let content = noise(24 * MIB, 40);
        let cached = cache.blob(&Digest::sha256(&content), Source::new(&content, None)).unwrap();
        scan(&cached, &content, 0).await;
        let found = statvfs(disk.0.path()).unwrap();
        let (free, size) = (found.blocks_available() as f64, found.blocks() as f64);
        assert!(free / size >= 0.05, "{limit:?}: {free} of {size} are free");
        let most = if limit == SizeLimit::Share { 0.35 } else { 0.25 };
        assert!(free / size <= most, "{limit:?}: {free} of {size} are free");
    }
}

#[path = "cache_limit/crowd.rs"]
mod crowd;

const FEW: &str = "OCIFS_TEST_FEW_FILES";

/// Not a test of its own: many contents in a process that may open few files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_files() {
    use nix::sys::resource::{Resource, setrlimit};
    let Ok(dir) = std::env::var(FEW) else { return };
    setrlimit(Resource::RLIMIT_NOFILE, 100, 100).unwrap();
    let cache = BlockCache::open(Path::new(&dir)).unwrap();
    let contents: Vec<Bytes> = (0..600).map(|seed| noise(BLOCK + 3000, 1000 + seed)).collect();
    let opened: Vec<_> = contents
        .iter()
        .map(|content| {
            let source = Source::new(content, None);
            (cache.blob(&Digest::sha256(content), source.clone()).unwrap(), source)
        })
        .collect();
    for step in [1, 7, 599] {
        for at in 0..contents.len() {
            let at = at * step % contents.len();
            scan(&opened[at].0, &contents[at], 0).await;
            assert_eq!(opened[at].0.bytes_present(), contents[at].len() as u64);
        }
    }
    for ((_, source), content) in opened.iter().zip(&contents) {
        assert_eq!(source.delivered.load(Ordering::SeqCst), content.len() as u64, "fetched again");
    }
}

#[test]
fn more_contents_than_a_process_may_open_files_are_read_right_and_fetched_once() {
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "few_files", "--nocapture", "--test-threads=1"])
        .env(FEW, dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Reaped(child).succeeds();
}
