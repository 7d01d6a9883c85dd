//! Random reads under random faults: every delivered byte is right.
//!
//! Never asserts when anything happens. The idea: several worlds, each a registry whose blob requests meet a fault at a fixed
//! rate, and a cache from which files vanish; many readers compare every byte they get with what was pushed. The variable
//! OCIFS_STORM_READS makes it longer: 10000000 is the long run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints its sums"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ocifs::cache::{BlockCache, VERIFY_FIRST_BYTES};
use ocifs::image::{ImageSet, OpenOptions};
use ocifs::io::{ByteRange, read_vec};
use ocifs::registry::{RegistryClient, RegistryOptions};
use ocifs::view::{MountNamespace, ViewScope};

use crate::fault_registry::{Fault, FaultRegistry, Weather};
use crate::fault_rows::Setup;
use crate::random::Random;
use crate::served::Content;

/// What a machine that others use too can do in some seconds.
const READS: u64 = 100_000;
/// Each with a registry and a cache of its own.
const WORLDS: u64 = 8;
/// Readers of one mount.
const READERS: u64 = 6;
/// Reads of each reader until everything is opened anew.
const READS_OF_ONE: u64 = 150;
/// One request in this many meets a fault.
const ONE_IN: u64 = 5;
/// The longest read.
const LONGEST: u64 = 64 * 1024;

/// Everything that a registry, or what stands before it, can do to one request.
fn faults() -> Vec<Fault> {
    let status = |code, retry_after: Option<&str>| Fault::Status {
        code,
        times: u32::MAX,
        retry_after: retry_after.map(str::to_owned),
    };
    vec![
        Fault::TruncateAfter { bytes: 300_000, times: u32::MAX },
        Fault::ResetAfter(300_000),
        Fault::StallAfter(300_000),
        Fault::ShortBody { by: 7 },
        Fault::LongBody,
        Fault::IgnoreRange,
        Fault::WrongContentRange,
        Fault::Multipart,
        Fault::Chunked,
        Fault::ContentEncodingGzip,
        Fault::Html,
        Fault::Unsatisfiable { size: 3 },
        status(404, None),
        status(403, None),
        status(429, Some("0")),
        status(500, None),
        status(503, None),
        Fault::TokensEnd,
        Fault::SignedUrlsEnd,
        Fault::RedirectTo("http://127.0.0.1:1/nobody".to_owned()),
        Fault::RedirectTo("http://no-such-host.invalid/blob".to_owned()),
        Fault::RedirectTo("file:///etc/passwd".to_owned()),
        Fault::RedirectLoop,
    ]
}

fn client() -> RegistryClient {
    let options = RegistryOptions {
        anonymous: true,
        // Time enough for every fault that asking again cures, on a busy machine too.
        read_budget: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(1),
        stall_timeout: Duration::from_millis(150),
        ..RegistryOptions::default()
    };
    RegistryClient::new(options).unwrap()
}

/// What was counted.
#[derive(Default)]
struct Sums {
    reads: u64,
    requests: u64,
    befallen: u64,
    removed: u64,
    errors: BTreeMap<String, u64>,
}

impl Sums {
    fn add(&mut self, other: Sums) {
        self.reads += other.reads;
        self.requests += other.requests;
        self.befallen += other.befallen;
        self.removed += other.removed;
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
    }

    /// Flipped bits poison a blob, and asking again does not cure that: they are not counted.
    fn failed(&self) -> u64 {
        self.errors.iter().filter(|(kind, _)| *kind != "Mismatch").map(|(_, count)| count).sum()
    }
}

/// Reads at random until it has read enough; an error counts as a read.
async fn reader(namespace: Arc<MountNamespace>, content: Arc<Content>, mut random: Random) -> Sums {
    let mut sums = Sums::default();
    for _ in 0..READS_OF_ONE {
        sums.reads += 1;
        let file = random.pick(content.files());
        let size = file.bytes.len() as u64;
        let start = random.below(size);
        let range = ByteRange::at(start, random.below(LONGEST.min(size - start)) + 1);
        let read = async {
            let node = namespace.resolve(file.path.as_bytes()).await.map_err(|error| error.fault())?;
            let opened = namespace.open_file(node).await.map_err(|error| error.fault())?;
            read_vec(&*opened.bytes, range).await.map_err(|error| error.fault())
        };
        match read.await {
            Ok(bytes) => {
                let right = bytes == file.bytes[range.start as usize..range.end as usize];
                assert!(right, "wrong bytes in {range} of {}", file.path);
            }
            Err(fault) => *sums.errors.entry(format!("{fault:?}")).or_default() += 1,
        }
    }
    sums
}

/// The files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        // What vanished meanwhile need not be removed.
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => todo.push(entry.path()),
                _ => found.push(entry.path()),
            }
        }
    }
    found
}

/// Removes a file of the cache now and then, as an impatient administrator would.
fn remove_now_and_then(cache: &Path, done: &AtomicBool, mut random: Random) -> u64 {
    let mut removed = 0;
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(5 + random.below(20)));
        let files = files(cache);
        if !files.is_empty() && std::fs::remove_file(random.pick(&files)).is_ok() {
            removed += 1;
        }
    }
    removed
}

/// One registry, one cache, and mounts one after the other until enough was read.
fn world(runtime: &tokio::runtime::Handle, seed: u64, reads: u64) -> Sums {
    let content = Arc::new(Content::new(seed));
    let registry = FaultRegistry::start();
    content.push(&registry);
    Setup::Signed.apply(&registry);
    // Bits are flipped only where blobs are compared as a whole first: elsewhere the digest comes too late for the first reader.
    let small = if seed.is_multiple_of(2) { VERIFY_FIRST_BYTES } else { 0 };
    let mut faults = faults();
    if small > 0 {
        faults.push(Fault::FlipBitAt(100 + 1000 * seed));
    }
    registry.set_weather(Weather::new(seed, ONE_IN, faults));
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    let mut random = Random(seed);
    let (mut sums, done) = (Sums::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let evictor = Random(random.next() | 1);
        let evictor = scope.spawn(|| remove_now_and_then(&cache, &done, evictor));
        while sums.reads < reads {
            // Half of the mounts find what the ones before them left.
            if random.below(2) == 0 {
                std::fs::remove_dir_all(&cache).ok();
            }
            let location = content.pinned(&registry).parse().unwrap();
            let options = OpenOptions { small, ..OpenOptions::new(location) };
            // The evictor may take a file away while the directory is made.
            let Ok(opened) = BlockCache::open(&cache) else { continue };
            let readers = runtime.block_on(async {
                let family = ImageSet::open(&options, &client(), opened).await.map(Arc::new).ok()?;
                let namespace = Arc::new(MountNamespace::open(family, &ViewScope::default()).await.ok()?);
                let readers = (0..READERS).map(|_| {
                    let random = Random(random.next() | 1);
                    tokio::spawn(reader(namespace.clone(), content.clone(), random))
                });
                Some(futures_util::future::join_all(readers.collect::<Vec<_>>()).await)
            });
            for reader in readers.into_iter().flatten() {
                sums.add(reader.unwrap());
            }
        }
        done.store(true, Ordering::Relaxed);
        sums.removed = evictor.join().unwrap();
    });
    sums.requests = registry.blob_requests().len() as u64;
    sums.befallen = registry.befallen();
    sums
}

#[test]
fn random_reads_under_random_faults_are_right_or_errors() {
    let reads = std::env::var("OCIFS_STORM_READS").ok().and_then(|reads| reads.parse().ok()).unwrap_or(READS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut sums = Sums::default();
    std::thread::scope(|scope| {
        let worlds: Vec<_> = (1..=WORLDS)
            .map(|seed| {
                let handle = runtime.handle().clone();
                scope.spawn(move || world(&handle, seed, reads.div_ceil(WORLDS)))
            })
            .collect();
        for world in worlds {
            sums.add(world.join().unwrap());
        }
    });
    println!(
        "{} reads, 0 wrong, {} errors {:?}; {} requests for blobs, {} met a fault; {} cache files removed",
        sums.reads,
        sums.failed(),
        sums.errors,
        sums.requests,
        sums.befallen,
        sums.removed
    );
    assert!(sums.reads >= reads);
    // Were there no faults, or no reads that need the registry, this would prove nothing.
    assert!(sums.befallen * ONE_IN * 2 > sums.requests, "{} of {} requests", sums.befallen, sums.requests);
    assert!(sums.requests * 200 > sums.reads, "{} requests", sums.requests);
    // A fault that asking again does not cure is an error of the reads that wait for those bytes, and of no others.
    assert!(sums.failed() * 200 < sums.reads, "{} errors", sums.failed());
}
