//! Mounts at the limit of the cache: smaller than the bytes that are read, or full of files.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::artifact::{self, Piece};
use crate::byte_text::digest_of;
use crate::fault_registry::FaultRegistry;
use crate::layout::Layout;
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run};
use crate::site::{Mount, Site, binary};
use crate::tarball::noise;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const BLOCK: u64 = 256 << 10;
const MIB: u64 = 1 << 20;
/// Longer than a process of a busy machine stands still between two steps of one eviction.
const STAYS: Duration = Duration::from_secs(3);

fn occupied(dir: &Path) -> u64 {
    let mut total = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // A file may go while it is looked at.
        let Ok(found) = entry.metadata() else { continue };
        total += if found.is_dir() { occupied(&entry.path()) } else { found.blocks() * 512 };
    }
    total
}

/// How many bytes of the blob came through the process.
fn served(mount: &Mount, digest: &str) -> u64 {
    let status: serde_json::Value = serde_json::from_str(&mount.status()).unwrap();
    let blobs = status["blobs"].as_array().unwrap();
    blobs.iter().find(|blob| blob["digest"] == digest).unwrap()["served"].as_u64().unwrap()
}

fn read_without_pages(file: &File, length: usize) -> Vec<u8> {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let mut seen = vec![0; length];
    file.read_exact_at(&mut seen, 0).unwrap();
    seen
}

#[test]
fn scan_under_a_small_limit_keeps_files_passed_through() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (small, large) = (noise(5 << 20, 501), noise(40 << 20, 502));
    let mut layout = Layout::create(site.scratch().join("layout"));
    let pieces = [
        Piece::new("small", "application/octet-stream", small.clone()),
        Piece::new("large", "application/octet-stream", large.clone()),
    ];
    artifact::write(&mut layout, "v1", "application/vnd.example.model.v1", &pieces);
    let registry = FaultRegistry::of_layout(&site.scratch().join("layout"), "a/b");
    let mount = site.mount(&format!("{}/a/b:v1", registry.host()), &["--cache-size=12M", "--passthrough=on"]);
    let path = mount.join("files/small");
    assert!(fs::read(&path).unwrap() == small);
    let verified = || xattr::get(&path, "user.ocifs.verified").unwrap();
    assert!(becomes_true(CONDITION_TIMEOUT, || verified().as_deref() == Some(&b"full"[..])));
    // From its next open on, once the kernel has reported that the first one was closed.
    let digest = digest_of(&small);
    let mut kept = None;
    becomes_true(CONDITION_TIMEOUT, || {
        let file = File::open(&path).unwrap();
        let before = served(&mount, &digest);
        assert!(read_without_pages(&file, small.len()) == small);
        kept = (served(&mount, &digest) == before).then_some(file);
        kept.is_some()
    });
    let file = kept.expect("the kernel never reads the file by itself");

    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, root) = (stop.clone(), site.cache().join("v1"));
    let watcher = std::thread::spawn(move || {
        let mut over = None;
        while !stopping.load(Ordering::SeqCst) {
            let here = occupied(&root);
            // What moves while it is counted may be counted twice: only what stays is true.
            over = (here > 12 * MIB + BLOCK).then(|| over.unwrap_or_else(Instant::now));
            assert!(over.is_none_or(|since| since.elapsed() < STAYS), "the files take {here}");
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    for _ in 0..2 {
        let scanned = File::open(mount.join("files/large")).unwrap();
        assert!(read_without_pages(&scanned, large.len()) == large);
        assert!(read_without_pages(&file, small.len()) == small, "other bytes");
    }
    stop.store(true, Ordering::SeqCst);
    watcher.join().unwrap();
    let data = site.cache().join("v1/blobs").join(digest.replace(':', "/"));
    assert!(fs::metadata(&data).unwrap().blocks() * 512 >= small.len() as u64, "a part of it was evicted");
    assert!(becomes_true(CONDITION_TIMEOUT, || occupied(&site.cache().join("v1")) <= 12 * MIB + BLOCK));
    // And once it is closed it makes room like everything else.
    drop(file);
    let scanned = File::open(mount.join("files/large")).unwrap();
    assert!(becomes_true(CONDITION_TIMEOUT, || {
        assert!(read_without_pages(&scanned, large.len()) == large);
        fs::metadata(&data).unwrap().blocks() * 512 < small.len() as u64
    }));
    assert!(fs::read(&path).unwrap() == small);
}

#[test]
fn a_size_that_is_none_is_refused_with_the_form_of_one() {
    let site = Site::new();
    for (size, word) in [("much", "20G"), ("0", "4M"), ("101%", "30%")] {
        site.ocifs(&["ls", "oci:/nowhere", "--cache-size", size]).refused(&[2], &[word]);
    }
}

#[test]
fn a_mount_looks_at_no_file_of_a_full_directory() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("strace")]) {
        return;
    }
    let site = Site::new();
    let body = noise(300_000, 503);
    let mut layout = Layout::create(site.scratch().join("layout"));
    artifact::write(&mut layout, "v1", "application/x.thing", &[Piece::new("f", "text/plain", body.clone())]);
    let reference = layout.reference("v1");
    site.ocifs(&["cat", &reference, "files/f"]).ok();
    for number in 0..2000 {
        fs::write(site.cache().join(format!("v1/documents/sha256/{number:064x}")), b"{}").unwrap();
    }
    let log = site.scratch().join("trace");
    let mut traced = site.tool("strace");
    traced.args(["-f", "-y", "-e", "trace=getdents64", "-o"]).arg(&log);
    traced.arg(binary()).args(["cat", &reference, "files/f"]);
    assert!(run(&mut traced).ok().stdout == body);
    let seen = fs::read_to_string(&log).unwrap();
    assert!(seen.contains("v1/tmp"), "the trace shows what is listed: {seen}");
    assert!(!seen.contains("v1/documents") && !seen.contains("v1/blobs"), "{seen}");
}
