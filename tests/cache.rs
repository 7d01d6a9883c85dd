//! Cache across processes, after `kill -9`, and on disks that are full or read-only.
//!
//! A child process is this test binary again, running only the test `child` with its orders in the environment.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why it skips"
)]

#[path = "support/random.rs"]
mod random;

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use ocifs::cache::{BlockCache, BlockSums, VerificationState};
use ocifs::io::{
    BoxFuture, ByteRange, FaultClass, RangeDelivery, RangeFetch, ReadAt, ReadError, read_all, read_vec,
};
use ocifs::oci::Digest;
use random::Random;

const BLOCK: u64 = 256 * 1024;
const ORDERS: &str = "OCIFS_TEST_CHILD";

/// How a source answers.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Exact,
    Refuse,
    /// Says so in the log, and never answers.
    Hang,
}

/// A source that notes every range in a file, so that several processes can count together.
struct Source {
    content: Bytes,
    log: Option<PathBuf>,
    delay: Duration,
    answer: Answer,
    /// How many ranges are answered; the source hangs with the next one.
    answers: u64,
    asked: AtomicU64,
    delivered: AtomicU64,
}

impl Source {
    fn new(content: &[u8]) -> Self {
        Self {
            content: Bytes::copy_from_slice(content),
            log: None,
            delay: Duration::ZERO,
            answer: Answer::Exact,
            answers: u64::MAX,
            asked: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
        }
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
                log.write_all(format!("{} {}\n", range.start, range.end).as_bytes()).unwrap();
            }
            let asked = self.asked.fetch_add(1, Ordering::SeqCst);
            match self.answer {
                Answer::Exact if asked >= self.answers => std::future::pending().await,
                Answer::Exact => tokio::time::sleep(self.delay).await,
                Answer::Refuse => return Err(ReadError::new(FaultClass::Unavailable, "the line is dead")),
                Answer::Hang => std::future::pending().await,
            }
            self.delivered.fetch_add(range.len(), Ordering::SeqCst);
            let bytes = self.content.slice(range.start as usize..range.end as usize);
            let chunks: Vec<Result<Bytes, ReadError>> =
                bytes.chunks(50_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
            Ok(RangeDelivery { range, body: futures_util::stream::iter(chunks).boxed() })
        })
    }
}

fn noise(size: u64, seed: u64) -> Vec<u8> {
    Random::of(seed).bytes(size as usize)
}

/// What a child has to do.
struct Orders<'a> {
    work: &'a str,
    dir: &'a Path,
    seed: u64,
    size: u64,
    /// Where a reader begins; it goes round.
    first: u64,
    delay: Duration,
    /// How many ranges its source answers.
    answers: u64,
}

impl Orders<'_> {
    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn spawn(&self) -> Reaped {
        let orders = format!(
            "{}\n{}\n{}\n{}\n{}\n{}\n{}",
            self.work,
            self.dir.display(),
            self.seed,
            self.size,
            self.first,
            self.delay.as_micros(),
            self.answers
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

    /// Whether it had not ended by itself.
    fn kill(mut self) -> bool {
        let ran = self.0.try_wait().unwrap().is_none();
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        ran
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail for a child that is gone, which is what they are for.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The checksums of the blocks of `content`.
fn sums(content: &[u8]) -> BlockSums {
    content.chunks(BLOCK as usize).map(|block| *blake3::hash(block).as_bytes()).collect()
}

/// Not a test of its own: the work of the child processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let parts: Vec<&str> = orders.lines().collect();
    let number = |index: usize| parts[index].parse::<u64>().unwrap();
    let orders = Orders {
        work: parts[0],
        dir: Path::new(parts[1]),
        seed: number(2),
        size: number(3),
        first: number(4),
        delay: Duration::from_micros(number(5)),
        answers: number(6),
    };
    let content = noise(orders.size, orders.seed);
    let digest = Digest::sha256(&content);
    let cache = BlockCache::open(orders.dir).unwrap();
    let mut source = Source::new(&content);
    source.log = Some(orders.log());
    source.delay = orders.delay;
    source.answers = orders.answers;
    match orders.work {
        "read" => {
            let blob = cache.blob(&digest, Arc::new(source)).unwrap();
            let blocks = orders.size.div_ceil(BLOCK);
            for step in 0..blocks {
                let start = (orders.first + step) % blocks * BLOCK;
                let range = ByteRange::new(start, (start + BLOCK).min(orders.size));
                let bytes = read_vec(&*blob, range).await.unwrap();
                assert_eq!(bytes, content[range.start as usize..range.end as usize]);
            }
        }
        "decode" => {
            let mut writer = cache.stream_writer(&digest);
            let sums = sums(&content);
            for (piece, sum) in content.chunks(BLOCK as usize).zip(&*sums) {
                writer.keep(piece, sum).unwrap();
            }
            writer.publish(&sums, orders.size).unwrap();
        }
        "hang" => {
            let _lock = cache.build_lock(&digest).await.unwrap();
            source.answer = Answer::Hang;
            let blob = cache.blob(&digest, Arc::new(source)).unwrap();
            read_all(&*blob).await.unwrap();
        }
        other => panic!("no such work: {other}"),
    }
}

#[test]
fn processes_that_share_a_directory_fetch_each_block_once() {
    let dir = tempfile::tempdir().unwrap();
    let size = 24 * BLOCK + 99;
    let delay = Duration::from_millis(20);
    let answers = u64::MAX;
    let orders = |first| Orders { work: "read", dir: dir.path(), seed: 1, size, first, delay, answers };
    let children: Vec<Reaped> = [0, 3, 12].into_iter().map(|first| orders(first).spawn()).collect();
    children.into_iter().for_each(Reaped::succeeds);
    let log = fs::read_to_string(orders(0).log()).unwrap();
    let mut blocks: Vec<u64> = Vec::new();
    for line in log.lines() {
        let ends: Vec<u64> = line.split(' ').map(|end| end.parse().unwrap()).collect();
        assert_eq!(ends[0] % BLOCK, 0);
        blocks.extend(ends[0] / BLOCK..ends[1].div_ceil(BLOCK));
    }
    blocks.sort_unstable();
    assert_eq!(blocks, (0..25).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_kill_9_leaves_behind_is_right_and_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let size = 20 * BLOCK + 7;
    let (mut killed, mut partial) = (0, 0);
    for round in 0..18u64 {
        let work = if round % 3 == 0 { "decode" } else { "read" };
        // Two rounds in a row work on the same content, from another end.
        let seed = 100 + round / 2;
        let delay = Duration::from_micros(2000 * (round % 4));
        // Every third one does not come to its end, however late it is killed.
        let answers = if round % 3 == 1 { 1 } else { u64::MAX };
        let child =
            Orders { work, dir: dir.path(), seed, size, first: round * 7 % 20, delay, answers }.spawn();
        let content = noise(size, seed);
        let digest = Digest::sha256(&content);
        let folder = dir.path().join(if work == "read" { "v1/blobs/sha256" } else { "v1/tmp" });
        let is_begun = || {
            let files = fs::read_dir(&folder).into_iter().flatten().flatten();
            files.filter(|file| file.path().extension().is_some_and(|end| end == "map")).any(|map| {
                (work != "read" || map.path().file_stem().is_some_and(|stem| stem == digest.encoded()))
                    && map.metadata().is_ok_and(|found| found.len() > 4096)
            })
        };
        // In the middle of the work, and not in the start of the process. A draft may be gone again by now.
        let patience = Instant::now() + Duration::from_secs(if work == "read" { 120 } else { 2 });
        while !is_begun() && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(round * 2311 % 40_000)).await;
        killed += u32::from(child.kill());

        let cache = BlockCache::open(dir.path()).unwrap();
        let mut dead = Source::new(&content);
        dead.answer = Answer::Refuse;
        let left = match work {
            "read" => cache.blob(&digest, Arc::new(dead)).unwrap(),
            _ => cache.stream(&digest, sums(&content), Arc::new(dead)).unwrap(),
        };
        let before = left.bytes_present();
        partial += u32::from(before > 0 && before < size);
        for block in 0..21 {
            let range = ByteRange::new(block * BLOCK, ((block + 1) * BLOCK).min(size));
            let present = left.present(range);
            match read_vec(&*left, range).await {
                Ok(bytes) => assert_eq!(bytes, content[range.start as usize..range.end as usize]),
                Err(error) => {
                    assert_eq!(error.fault(), FaultClass::Unavailable);
                    assert!(
                        !present,
                        "the page cache outlives a process: a record means that the data is there"
                    );
                }
            }
        }
        drop(left);
        drop(cache);
        if round % 2 == 1 {
            let cache = BlockCache::open(dir.path()).unwrap();
            let source = Arc::new(Source::new(&content));
            let blob = cache.blob(&digest, source.clone()).unwrap();
            let before = blob.bytes_present();
            assert_eq!(read_all(&*blob).await.unwrap(), content);
            assert_eq!(source.delivered.load(Ordering::SeqCst), size - before);
            assert_eq!(blob.state(), VerificationState::Verified);
        }
    }
    assert!(killed >= 6 && partial >= 6, "{killed} killed while they worked, {partial} left a part");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_claims_and_the_build_lock_of_a_dead_process_are_free() {
    let dir = tempfile::tempdir().unwrap();
    let size = 3 * BLOCK;
    let (delay, answers) = (Duration::ZERO, 0);
    let orders = Orders { work: "hang", dir: dir.path(), seed: 5, size, first: 0, delay, answers };
    let child = orders.spawn();
    let patience = Instant::now() + Duration::from_secs(120);
    while !orders.log().exists() {
        assert!(Instant::now() < patience, "the child does not start to fetch");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let content = noise(size, 5);
    let digest = Digest::sha256(&content);
    let cache = BlockCache::open(dir.path()).unwrap();
    let source = Arc::new(Source::new(&content));
    let blob = cache.blob(&digest, source.clone()).unwrap();
    let mut read = tokio::spawn(async move { read_all(&*blob).await });
    let mut lock = tokio::spawn(async move { cache.build_lock(&digest).await });
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut read).await.is_err());
    assert!(tokio::time::timeout(Duration::from_millis(1), &mut lock).await.is_err());
    assert_eq!(source.delivered.load(Ordering::SeqCst), 0, "the child holds the claims");
    assert!(child.kill());
    let deadline = Duration::from_secs(120);
    assert_eq!(tokio::time::timeout(deadline, read).await.unwrap().unwrap().unwrap(), content);
    tokio::time::timeout(deadline, lock).await.unwrap().unwrap().unwrap();
}

/// A small file system in memory.
struct Tmpfs {
    at: tempfile::TempDir,
}

impl Tmpfs {
    fn new(options: &str) -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        match mount(Some("none"), at.path(), Some("tmpfs"), MsFlags::empty(), Some(options)) {
            Ok(()) => Some(Self { at }),
            Err(error) => {
                eprintln!("skipped: mounting a tmpfs needs root: {error}");
                None
            }
        }
    }

    /// Tries again while the tasks of the last read still hold files open for writing.
    async fn read_only(&self) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let patience = Instant::now() + Duration::from_secs(120);
        while let Err(error) = mount(None::<&str>, self.at.path(), None::<&str>, flags, None::<&str>) {
            assert!(error == Errno::EBUSY && Instant::now() < patience, "{error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        umount2(self.at.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_no_read() {
    let Some(disk) = Tmpfs::new("size=1m,mode=0700") else { return };
    let dir = disk.at.path().join("cache");
    let cache = BlockCache::open(&dir).unwrap();
    let content = noise(12 * BLOCK + 3, 6);
    let digest = Digest::sha256(&content);
    let source = Arc::new(Source::new(&content));
    let blob = cache.blob(&digest, source.clone()).unwrap();
    for _ in 0..2 {
        assert_eq!(read_all(&*blob).await.unwrap(), content);
    }
    blob.ensure(ByteRange::new(0, blob.size())).await.unwrap();
    assert!(blob.bytes_present() > 0 && blob.bytes_present() < blob.size());
    // Whatever space the last block left.
    let rest = noise(1 << 20, 7);
    let error = cache.put_document(&Digest::sha256(&rest), &rest).unwrap_err();
    assert!(error.to_string().ends_with("is full"), "{error}");
    let mut filler = fs::File::create(disk.at.path().join("filler")).unwrap();
    while filler.write(&[1; 512]).is_ok_and(|written| written > 0) {}
    // Nothing can be made any more, and everything is read all the same.
    let cache = BlockCache::open(&dir).unwrap();
    let other = noise(2 * BLOCK, 8);
    let blob = cache.blob(&Digest::sha256(&other), Arc::new(Source::new(&other))).unwrap();
    assert_eq!(read_all(&*blob).await.unwrap(), other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_inodes_costs_no_read() {
    let Some(disk) = Tmpfs::new("size=4m,nr_inodes=24,mode=0700") else { return };
    let cache = BlockCache::open(disk.at.path()).unwrap();
    while fs::File::create(disk.at.path().join(format!("filler-{}", rand_name()))).is_ok() {}
    let content = noise(2 * BLOCK, 9);
    let source = Arc::new(Source::new(&content));
    let blob = cache.blob(&Digest::sha256(&content), source.clone()).unwrap();
    assert_eq!(read_all(&*blob).await.unwrap(), content);
    assert_eq!(read_all(&*blob).await.unwrap(), content);
    assert_eq!(source.delivered.load(Ordering::SeqCst), 4 * BLOCK, "nothing is kept");
    assert_eq!((blob.state(), blob.bytes_present()), (VerificationState::Partial, 0));
    assert!(!blob.present(ByteRange::new(0, 1)));
    // A directory that was never made cannot be made now.
    let error = BlockCache::open(&disk.at.path().join("new")).err().unwrap();
    assert!(error.to_string().ends_with("is full"), "{error}");
}

/// A name that was not used before.
fn rand_name() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_disk_serves_its_cached_blocks() {
    let Some(disk) = Tmpfs::new("size=8m,mode=0700") else { return };
    let dir = disk.at.path().join("cache");
    let content = noise(4 * BLOCK, 10);
    let digest = Digest::sha256(&content);
    {
        let cache = BlockCache::open(&dir).unwrap();
        let blob = cache.blob(&digest, Arc::new(Source::new(&content))).unwrap();
        read_vec(&*blob, ByteRange::new(0, 3 * BLOCK)).await.unwrap();
        cache.put_document(&Digest::sha256(b"{}"), b"{}").unwrap();
    }
    disk.read_only().await;
    let error = BlockCache::open(&disk.at.path().join("new")).err().unwrap();
    assert!(error.to_string().ends_with("is on a read-only file system"), "{error}");
    let cache = BlockCache::open(&dir).unwrap();
    let source = Arc::new(Source::new(&content));
    let blob = cache.blob(&digest, source.clone()).unwrap();
    assert_eq!(read_all(&*blob).await.unwrap(), content);
    assert_eq!(source.delivered.load(Ordering::SeqCst), BLOCK);
    assert_eq!(cache.document(&Digest::sha256(b"{}")).unwrap().unwrap(), "{}");
    let other = noise(BLOCK, 11);
    let blob = cache.blob(&Digest::sha256(&other), Arc::new(Source::new(&other))).unwrap();
    assert_eq!(read_all(&*blob).await.unwrap(), other);
}
