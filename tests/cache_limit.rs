//! What the limit of the cache promises while several processes read more than it allows, are killed, or fill the disk.
//!
//! A child process is this test binary again, running only the test `child` with its orders in the environment. A watcher looks at
//! the directory all the time. `OCIFS_LONG=1` makes the scan ten times as long: 1 GiB under a limit of 200 MiB, and lets crowds of
//! 2, 4 and 8 processes work for ten minutes each.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why it skips"
)]

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use ocifs::cache::{Cache, Cached, Limit};
use ocifs::io::{BoxFuture, ByteRange, Delivery, Fetch, ReadError, read_vec};
use ocifs::oci::Digest;

const BLOCK: u64 = 256 * 1024;
const MIB: u64 = 1 << 20;
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

impl Fetch for Source {
    fn size(&self) -> u64 {
        self.content.len() as u64
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<Delivery, ReadError>> {
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
            Ok(Delivery { range, body: futures_util::stream::iter(chunks).boxed() })
        })
    }
}

fn noise(size: u64, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size as usize + 8);
    while (bytes.len() as u64) < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size as usize);
    bytes.into()
}

/// Reads everything from block `first` on, going round, and compares.
async fn scan(cached: &Cached, content: &Bytes, first: u64) {
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
        0 => Limit::default(),
        limit => Limit::Bytes(limit * MIB),
    };
    let cache = Cache::open_limited(dir, limit).unwrap();
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
        let (told, dir) = (stop.clone(), dir.to_owned());
        let thread = std::thread::spawn(move || {
            let cache = Cache::open(&dir).unwrap();
            let (mut most, mut looks, mut over) = (0, 0, 0);
            while !told.load(Ordering::SeqCst) {
                let used = cache.used();
                assert!(used.is_none_or(|used| used <= limit), "the account says {used:?} of {limit}");
                let here = occupied(&dir.join("v1"));
                // What goes while others are looked at may be seen in two places: only what stays is true.
                over = if here > limit + BLOCK { over + 1 } else { 0 };
                assert!(over < 8, "the files take {here} of {limit}");
                if over == 0 {
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
    let cache = Cache::open_limited(dir.path(), Limit::Bytes(limit)).unwrap();
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
        let used = Cache::open(dir.path()).unwrap().used().unwrap_or(u64::MAX);
        let here = occupied(&dir.path().join("v1"));
        assert!(
            here <= used.saturating_add(4096),
            "round {round}: {here} are there, {used} are in the account"
        );
    }
    let content = noise(24 * MIB, 20);
    let cache = Cache::open_limited(dir.path(), Limit::Bytes(limit * MIB)).unwrap();
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
    let cache = Cache::open(disk.0.path()).unwrap();
    let content = noise(20 * MIB, 30);
    let source = Source::new(&content, None);
    let cached = cache.blob(&Digest::sha256(&content), source.clone()).unwrap();
    scan(&cached, &content, 0).await;
    // Of what was fetched ahead of the reader, a little may have gone before it was read.
    let delivered = || source.delivered.load(Ordering::SeqCst);
    assert!(delivered() <= 24 * MIB, "{}", delivered());
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
    for limit in [Limit::Share, Limit::Percent(100), Limit::Bytes(64 * MIB)] {
        let cache = Cache::open_limited(disk.0.path(), limit).unwrap();
        let content = noise(24 * MIB, 40);
        let cached = cache.blob(&Digest::sha256(&content), Source::new(&content, None)).unwrap();
        scan(&cached, &content, 0).await;
        let found = statvfs(disk.0.path()).unwrap();
        let (free, size) = (found.blocks_available() as f64, found.blocks() as f64);
        assert!(free / size >= 0.05, "{limit:?}: {free} of {size} are free");
        let most = if limit == Limit::Share { 0.35 } else { 0.25 };
        assert!(free / size <= most, "{limit:?}: {free} of {size} are free");
    }
}

/// Processes that share one cache at its limit, and do to it what processes do.
mod crowd {
    use std::time::Instant;

    use ocifs::cache::{Found, Prune, State};
    use ocifs::io::ReadAt as _;

    use super::*;

    const CROWD: &str = "OCIFS_TEST_CROWD";
    const LIMIT: u64 = 6 * MIB;
    /// Reads between two notes of how far a process is.
    const NOTED: u64 = 50;

    /// Numbers that follow from a seed alone.
    struct SeededDice(u64);

    impl SeededDice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
        }
    }

    /// What the processes read: blobs, decoded streams with pages of zeros, and one blob that is not what its digest says.
    struct ShelfItem {
        name: Digest,
        bytes: Bytes,
        is_stream: bool,
        lies: bool,
    }

    fn shelf() -> Vec<ShelfItem> {
        let blob = |seed| {
            let bytes = noise(3 * MIB + 7, seed);
            ShelfItem { name: Digest::sha256(&bytes), bytes, is_stream: false, lies: false }
        };
        let stream = |seed: u64| {
            let mut bytes = noise(3 * MIB + 99, seed).to_vec();
            for page in (0..bytes.len() - 4096).step_by(4096 * (2 + seed as usize % 3)) {
                bytes[page..page + 4096].fill(0);
            }
            let name = Digest::sha256(&seed.to_le_bytes());
            ShelfItem { name, bytes: bytes.into(), is_stream: true, lies: false }
        };
        let bytes = noise(2 * MIB, 54);
        let liar = ShelfItem { name: Digest::sha256(b"another"), bytes, is_stream: false, lies: true };
        vec![blob(50), blob(51), stream(52), stream(53), liar]
    }

    fn open(cache: &Cache, one: &ShelfItem) -> Option<Arc<Cached>> {
        let source = Source::new(&one.bytes, None);
        let opened = match one.is_stream {
            true => {
                let sums: Vec<[u8; 32]> =
                    one.bytes.chunks(BLOCK as usize).map(|block| blake3::hash(block).into()).collect();
                cache.stream(&one.name, sums.into(), source)
            }
            false => cache.blob(&one.name, source),
        };
        // Its files may be in the hands of a process that was stopped, or of one that removes them.
        opened.ok()
    }

    /// Not a test of its own: the life of one process of the crowd.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn member() {
        let Ok(orders) = std::env::var(CROWD) else { return };
        let parts: Vec<&str> = orders.lines().collect();
        let (dir, seed) = (PathBuf::from(parts[0]), parts[1].parse::<u64>().unwrap());
        let end = Instant::now() + Duration::from_millis(parts[2].parse().unwrap());
        let mut dice = SeededDice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let shelf = shelf();
        let mut cache = Cache::open_limited(&dir, Limit::Bytes(LIMIT)).unwrap();
        let mut held: Vec<Option<Arc<Cached>>> = shelf.iter().map(|_| None).collect();
        let mut reads = 0;
        while Instant::now() < end {
            let at = dice.roll(shelf.len() as u64) as usize;
            let one = &shelf[at];
            match dice.roll(1000) {
                0..900 => {
                    let Some(cached) = held[at].clone().or_else(|| open(&cache, one)) else { continue };
                    held[at] = Some(Arc::clone(&cached));
                    let start = dice.roll(cached.size());
                    let len = (1 + dice.roll(2 * BLOCK)).min(cached.size() - start);
                    let read = read_vec(&*cached, ByteRange::at(start, len)).await;
                    let right = &one.bytes[start as usize..(start + len) as usize];
                    match read {
                        Ok(bytes) => assert!(bytes == right, "{at}: wrong bytes at {start}, {len} long"),
                        Err(error) => assert!(one.lies, "{at}: {error:?}"),
                    }
                    reads += 1;
                    if reads % NOTED == 0 {
                        // A full disk takes no note.
                        let log = OpenOptions::new().append(true).create(true).open(dir.join("log"));
                        drop(log.and_then(|mut log| log.write_all(b"x")));
                    }
                }
                900..950 => held[at] = None,
                950..970 => {
                    let keep = Some(dice.roll(2 * LIMIT));
                    cache.inventory().prune(Prune { older_than: None, keep }, |_, _| {}).unwrap();
                }
                970..980 => {
                    cache.inventory().collect(|_, _, _| {}).unwrap();
                }
                980..990 => scrub(&cache),
                990..994 => {
                    held.iter_mut().for_each(|one| *one = None);
                    cache = Cache::open_limited(&dir, Limit::Bytes(LIMIT)).unwrap();
                }
                994..996 => {
                    // The next one finds no account, and counts.
                    drop(fs::write(dir.join("v1/account"), b"lost"));
                }
                _ => {
                    for (one, cached) in shelf.iter().zip(&held) {
                        let state = cached.as_ref().map(|cached| cached.state());
                        assert!(one.lies || state != Some(State::Poisoned), "right content is poisoned");
                        assert!(!one.lies || state != Some(State::Verified), "wrong content is verified");
                    }
                }
            }
        }
    }

    fn scrub(cache: &Cache) {
        let inventory = cache.inventory();
        let used = inventory.used().unwrap();
        let walked = inventory.walk(|found| {
            if let Found::Content(entry) = found {
                // What a killed process was writing is found damaged, rightly.
                inventory.scrub(&entry, &used)?;
            }
            Ok(std::ops::ControlFlow::<()>::Continue(()))
        });
        walked.unwrap();
    }

    fn member_of(dir: &Path, seed: u64, time: Duration) -> Reaped {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crowd::member", "--nocapture", "--test-threads=1"])
            .env(CROWD, format!("{}\n{seed}\n{}", dir.display(), time.as_millis()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Reaped(child)
    }

    /// What the account says and what the files take, when the two can be compared.
    fn account(cache: &Cache, root: &Path) -> Option<(u64, u64)> {
        let before = cache.used()?;
        let here = occupied(root);
        Some((cache.used()?.max(before), here))
    }

    /// Lets `processes` of them work at once; every few hundred milliseconds one is killed, and another one comes.
    fn run(dir: &Path, seed: u64, processes: u64, time: Duration) -> u64 {
        let end = Instant::now() + time;
        let mut next = seed * 1000;
        let mut come = || {
            next += 1;
            member_of(dir, next, end.saturating_duration_since(Instant::now()))
        };
        let mut members: Vec<Reaped> = (0..processes).map(|_| come()).collect();
        let mut dice = SeededDice(seed | 1);
        let watched = Cache::open(dir).unwrap();
        let mut low = 0;
        let mut kill = Instant::now() + Duration::from_millis(700);
        while Instant::now() < end {
            let seen = account(&watched, &dir.join("v1"));
            // A file that goes, or gets another name, while others are looked at may be seen where it is no more.
            low = if seen.is_some_and(|(used, here)| here > used) { low + 1 } else { 0 };
            assert!(low < 20, "the account says less than the files take: {seen:?}");
            if Instant::now() > kill {
                kill = Instant::now() + Duration::from_millis(300 + dice.roll(600));
                let victim = dice.roll(processes) as usize;
                members[victim].0.kill().unwrap();
                members[victim] = come();
            }
            for member in &mut members {
                if let Some(status) = member.0.try_wait().unwrap()
                    && !status.success()
                {
                    let mut stderr = String::new();
                    member.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
                    panic!("seed {seed}: {stderr}");
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        members.into_iter().for_each(Reaped::succeeds);
        fs::metadata(dir.join("log")).map_or(0, |log| log.len() * NOTED)
    }

    /// When all is at rest and counted, the account is what the files take.
    fn rests(dir: &Path) {
        fs::write(dir.join("v1/account"), b"lost").unwrap();
        let cache = Cache::open_limited(dir, Limit::Bytes(64 * MIB)).unwrap();
        let patience = Instant::now() + Duration::from_secs(20);
        while cache.used().is_none() {
            assert!(Instant::now() < patience, "the files are not counted");
            std::thread::sleep(Duration::from_millis(20));
        }
        let (used, here) = account(&cache, &dir.join("v1")).unwrap();
        assert!((here..=here + BLOCK).contains(&used), "the account says {used}, the files take {here}");
    }

    #[test]
    fn no_process_of_a_crowd_at_the_limit_reads_a_wrong_byte() {
        let long = std::env::var_os("OCIFS_LONG").is_some();
        let (crowds, time): (&[u64], _) = match long {
            true => (&[2, 4, 8], Duration::from_secs(600)),
            false => (&[3], Duration::from_secs(12)),
        };
        for &processes in crowds {
            let dir = tempfile::tempdir().unwrap();
            let reads = run(dir.path(), 60 + processes, processes, time);
            eprintln!("{processes} processes: {reads} reads");
            assert!(reads >= if long { 100_000 } else { 100 }, "only {reads} reads");
            rests(dir.path());
        }
    }

    #[test]
    fn a_crowd_on_a_full_disk_reads_no_wrong_byte() {
        let Some(disk) = Tmpfs::new("size=5m,mode=0700") else { return };
        run(disk.0.path(), 70, 3, Duration::from_secs(4));
    }
}

const FEW: &str = "OCIFS_TEST_FEW_FILES";

/// Not a test of its own: many contents in a process that may open few files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_files() {
    use nix::sys::resource::{Resource, setrlimit};
    let Ok(dir) = std::env::var(FEW) else { return };
    setrlimit(Resource::RLIMIT_NOFILE, 100, 100).unwrap();
    let cache = Cache::open(Path::new(&dir)).unwrap();
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
