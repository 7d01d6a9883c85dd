//! Gain of an index: files of a layer without cached bytes, in requests and bytes.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use crate::cost::push_image;
use crate::encode::Encoding;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::layout::Layer;
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, sh};
use crate::site::{Mount, Site};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Bytes that compress to three quarters, so that deflate has something to do.
fn text(length: usize, seed: u64) -> Vec<u8> {
    noise(length, seed).into_iter().map(|byte| b'0' + (byte & 63)).collect()
}

/// Removes everything from a cache that can be fetched or decoded again, and nothing that was learnt.
pub(crate) fn evict(cache: &Path) {
    for kind in ["blobs", "streams", "claims"] {
        let directory = cache.join("v1").join(kind).join("sha256");
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// A layer of `count` files of `size` bytes, and what is in each.
fn many(count: u64, size: usize) -> (Layer, impl Fn(u64) -> Vec<u8>) {
    let mut tar = Tarball::new().dir("d");
    for number in 0..count {
        tar = tar.file(&format!("d/{number:05}"), &text(size, number + 1));
    }
    (Layer::of(&tar.bytes(), Encoding::Gzip), move |number| text(size, number + 1))
}

#[test]
fn a_file_deep_in_an_evicted_layer_costs_only_the_spans_around_it() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    // 300 MB stored.
    let (layer, content) = many(4000, 100 * KIB);
    assert!(layer.stored.len() > 300_000_000, "{} bytes stored", layer.stored.len());
    let reference = push_image(&registry, std::slice::from_ref(&layer));
    let first = site.mount(&reference, &[]);
    assert_eq!(sh("ls $1/merged/d | wc -l", &[&first.dir()]).text().trim(), "4000");
    first.unmount();
    evict(&site.cache());
    registry.reset_counts();
    let again = site.mount_at("again", &reference, &[]);
    assert!(fs::read(again.join("merged/d/03210")).unwrap() == content(3210));
    let bytes = registry.blob_bytes();
    assert!(bytes <= 2 * MIB as u64, "{bytes} bytes for a file of 100 KiB");
    assert!(registry.blob_requests().len() <= 4, "{:?}", registry.blob_requests());
}

/// With the index alone in the cache, a file costs the stored bytes from the last deflate block before its first block
/// of the stream to the end of its last one, in whole blocks of the cache.
#[test]
fn a_large_file_in_the_middle_of_a_layer_costs_a_quarter_more_than_its_stored_bytes() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    // Length of each large file, and the kibibytes of small files before it.
    let large = [(3 * MIB, 1340), (2 * MIB, 620), (7 * MIB - 300, 900), (4 * MIB, 500), (3 * MIB, 1024)];
    let mut tar = Tarball::new().dir("d");
    let mut seed = 0;
    for (number, (length, before)) in large.into_iter().enumerate() {
        for small in 0..before / 20 {
            seed += 1;
            tar = tar.file(&format!("d/{number}-{small}"), &text(19 * KIB + 512, seed));
        }
        tar = tar.file(&format!("d/large-{number}"), &text(length, 1000 + number as u64));
    }
    for small in 0..100 {
        tar = tar.file(&format!("d/after-{small}"), &text(40 * KIB, 2000 + small));
    }
    let layer = Layer::of(&tar.bytes(), Encoding::Gzip);
    let reference = push_image(&registry, std::slice::from_ref(&layer));
    site.ocifs(&["index", "build", &reference]).ok();
    for (number, (length, _)) in large.into_iter().enumerate() {
        evict(&site.cache());
        let mount = site.mount_at(&format!("mnt-{number}"), &reference, &["--prefetch=none"]);
        assert!(fs::metadata(mount.join(format!("merged/d/large-{number}"))).is_ok());
        registry.reset_counts();
        let read = fs::read(mount.join(format!("merged/d/large-{number}"))).unwrap();
        assert!(read == text(length, 1000 + number as u64));
        // Readahead that no read waits for.
        std::thread::sleep(Duration::from_millis(300));
        // Of 8 bits 6 are stored.
        let (bytes, own) = (registry.blob_bytes(), length as u64 * 3 / 4);
        assert!(bytes <= own + own / 4 + 256 * KIB as u64, "{bytes} bytes for a file of {own} stored ones");
        mount.unmount();
    }
}

#[test]
fn readers_during_a_pass_over_everything_wait_for_their_own_bytes_only() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    let (layer, content) = many(640, 100 * KIB);
    let reference = push_image(&registry, std::slice::from_ref(&layer));
    site.ocifs(&["index", "build", &reference]).ok();
    evict(&site.cache());
    registry.set(Fault::SlowBytesPerSecond(2 << 20));
    registry.reset_counts();
    let mount = site.mount(&reference, &["--prefetch=all"]);
    let all = layer.stored.len() as u64;
    std::thread::scope(|scope| {
        for reader in 0..64_u64 {
            let (mount, content) = (&mount, &content);
            scope.spawn(move || {
                let number = (reader * 7919) % 640;
                let file = fs::File::open(mount.join(format!("merged/d/{number:05}"))).unwrap();
                let (mut buffer, at) = (vec![0; 4 * KIB], (reader * 1013 % 96) * KIB as u64);
                file.read_exact_at(&mut buffer, at).unwrap();
                assert!(buffer == content(number)[at as usize..][..4 * KIB], "{number} at {at}");
            });
        }
    });
    // Everything was not here yet when the last of them was done.
    let fetched = registry.blob_bytes();
    assert!(fetched < all, "{fetched} of {all} bytes were fetched before all readers had theirs");
    registry.clear();
}

#[test]
fn an_index_that_was_pushed_spares_another_machine_the_pass() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("docker-registry"), Need::Tool("skopeo")]) {
        return;
    }
    let (builder, user) = (Site::new(), Site::new());
    let mut registry = crate::real_registry::RealRegistry::start();
    let (layer, content) = many(200, 100 * KIB);
    let mut layout = crate::layout::Layout::create(builder.scratch().join("layout"));
    let size = layer.stored.len() as u64;
    layout.image("v1", &[layer]);
    registry.push_layout(&layout.reference("v1"), "an/image:v1");
    let reference = registry.reference("an/image:v1");
    let output = builder.ocifs(&["index", "push", &reference]).ok().text();
    assert!(output.contains("published sha256:"), "{output}");

    let inspected = user.ocifs(&["inspect", &reference]).ok().text();
    assert!(inspected.contains("pushed index"), "{inspected}");
    registry.reset_counts();
    let mount = user.mount(&reference, &[]);
    assert_eq!(sh("ls $1/merged/d | wc -l", &[&mount.dir()]).text().trim(), "200");
    assert!(fs::read(mount.join("merged/d/00150")).unwrap() == content(150));
    let bytes = registry.blob_bytes();
    assert!(bytes < size / 10, "{bytes} of {size} bytes for the names and one file");
    assert!(
        mount.status().contains("\"index\":\"pushed\"") || mount.status().contains("\"index\": \"pushed\"")
    );
    mount.unmount();

    // Again, without anybody to ask.
    let digest = format!("{}@{}", reference.trim_end_matches(":v1"), {
        let output = user.ocifs(&["inspect", "--format", "json", &reference]).ok().text();
        let at = output.find("\"digest\": \"").unwrap() + 11;
        output[at..at + 71].to_owned()
    });
    registry.stop();
    let offline = user.mount_at("offline", &digest, &["--offline"]);
    assert!(fs::read(offline.join("merged/d/00150")).unwrap() == content(150));
    offline.unmount();

    // Whoever wants none of it gets none of it.
    let refused = user.ocifs(&["ls", "--offline", "--index=local", &digest, "merged"]);
    assert_ne!(refused.code, Some(0), "the layer cannot be read without its bytes");
}

#[test]
fn trace_prefetches_recorded_ranges_alone() {
    if !able(&NEEDS) {
        return;
    }
    let (teacher, pupil) = (Site::new(), Site::new());
    let registry = FaultRegistry::start();
    let (layer, content) = many(400, 100 * KIB);
    let reference = push_image(&registry, std::slice::from_ref(&layer));
    teacher.ocifs(&["index", "build", &reference]).ok();
    let trace = teacher.scratch().join("trace.json");
    let trace = trace.to_str().unwrap();
    let ran = teacher.ocifs(&[
        "record",
        "--view",
        "merged",
        "-o",
        trace,
        &reference,
        "--",
        "sh",
        "-c",
        "cat $OCIFS_MOUNT/d/00300 \"$1\"/d/00007 | wc -c; exit 7",
        "sh",
        "{}",
    ]);
    assert_eq!((ran.code, ran.text().trim()), (Some(7), "204800"), "{}", ran.stderr);
    assert!(fs::metadata(trace).unwrap().len() < 2000);

    pupil.ocifs(&["index", "build", &reference]).ok();
    evict(&pupil.cache());
    registry.reset_counts();
    let (dir, log) = (pupil.mount_point("mnt"), pupil.scratch().join("log"));
    let mut command = pupil.command();
    command.env("OCIFS_LOG", "ocifs=debug").args([
        "mount",
        "--prefetch=trace",
        "--trace",
        trace,
        "--log-file",
    ]);
    let mount = Mount::up(command.arg(&log).arg(&reference).arg(&dir), dir);
    let has_ended = || fs::read_to_string(&log).unwrap().contains("prefetch ended");
    assert!(becomes_true(CONDITION_TIMEOUT, has_ended), "{}", fs::read_to_string(&log).unwrap());
    let (bytes, requests) = (registry.blob_bytes(), registry.blob_requests().len());
    assert!(bytes <= 4 * MIB as u64, "{bytes} bytes were fetched for two files");
    assert!(fs::read(mount.join("merged/d/00300")).unwrap() == content(300));
    assert!(fs::read(mount.join("merged/d/00007")).unwrap() == content(7));
    assert_eq!(registry.blob_requests().len(), requests, "what the trace named is here");

    // A trace that is asked for and not there is an error that says what to do.
    pupil.mount_refused(&reference, &["--prefetch=trace"], &[2], &["no trace", "ocifs record"]);
}

#[test]
fn a_seek_table_spares_the_large_files_of_a_layer() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    let bodies: Vec<Vec<u8>> = (0..4).map(|seed| text(12 << 20, 50 + seed)).collect();
    let mut tar = Tarball::new();
    for (number, body) in bodies.iter().enumerate() {
        tar = tar.file(&format!("big-{number}"), body).file(&format!("small-{number}"), b"little\n");
    }
    let tar = tar.bytes();
    let mut layer = Layer::of(&tar, Encoding::Zstd);
    layer.stored = crate::chunked::seekable(&tar, 256 * KIB, crate::chunked::Checksums::Without);
    let reference = push_image(&registry, std::slice::from_ref(&layer));
    let mount = site.mount(&reference, &[]);
    assert_eq!(sh("ls $1/merged", &[&mount.dir()]).text().lines().count(), 8);
    let (names, all) = (registry.blob_bytes(), layer.stored.len() as u64);
    assert!(names < all / 4, "{names} of {all} bytes for the names");
    assert!(mount.status().contains("zstd seekable"), "{}", mount.status());
    assert_eq!(fs::read(mount.join("merged/small-2")).unwrap(), b"little\n");
    assert!(fs::read(mount.join("merged/big-3")).unwrap() == bodies[3]);
    // Where files are small there is nothing to skip, and one pass is cheaper.
    let (many, content) = many(300, 20 * KIB);
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&many.stored[..]), &mut plain).unwrap();
    let mut many = Layer::of(&plain, Encoding::Zstd);
    many.stored = crate::chunked::seekable(&plain, 256 * KIB, crate::chunked::Checksums::Without);
    let reference = push_image(&registry, std::slice::from_ref(&many));
    let mount = site.mount_at("many", &reference, &[]);
    assert!(fs::read(mount.join("merged/d/00200")).unwrap() == content(200));
    assert!(mount.status().contains("local"), "{}", mount.status());
}

#[test]
fn a_recorded_command_gets_no_password_and_leaves_no_mount() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    let (layer, _) = many(3, KIB);
    let reference = push_image(&registry, std::slice::from_ref(&layer));
    let script = "echo \"creds=$OCIFS_CREDS mount=$OCIFS_MOUNT\"; kill -TERM $$";
    let mut command = site.command();
    command.env("OCIFS_CREDS", "user:secret").args(["record", &reference, "--", "sh", "-c", script]);
    let ran = crate::process::run(&mut command);
    // As a shell says it of a command that SIGTERM ended.
    assert_eq!(ran.code, Some(143), "{}", ran.stderr);
    let output = ran.text();
    let place = output.trim().strip_prefix("creds= mount=").unwrap_or_else(|| panic!("{output}"));
    assert!(!Path::new(place).exists(), "{place} is left");
    let missing = site.ocifs(&["record", &reference, "--", "/no/such/program"]);
    missing.refused(&[127], &["/no/such/program"]);
}

#[test]
fn a_mount_of_archives_alone_reads_more_files_than_it_keeps_at_hand() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    let (layer, content) = many(600, 5 * KIB);
    let reference = push_image(&registry, std::slice::from_ref(&layer));
    let mount = site.mount(&reference, &["--view=merged"]);
    let files: Vec<_> =
        (0..600).map(|number| fs::File::open(mount.join(format!("d/{number:05}"))).unwrap()).collect();
    for round in 0..2 {
        for (number, file) in files.iter().enumerate() {
            let mut buffer = vec![0; KIB];
            let at = (number * 7 + round * 2) % (4 * KIB);
            file.read_exact_at(&mut buffer, at as u64).unwrap();
            assert!(buffer == content(number as u64)[at..at + KIB], "{number} at {at}");
        }
    }
    // What opening decides elsewhere is as it is elsewhere.
    assert_eq!(fs::File::open(mount.join("none")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert!(fs::OpenOptions::new().write(true).open(mount.join("d/00001")).is_err());
    let seek = sh("dd if=$1/d/00002 bs=1 skip=5000 count=500 status=none | wc -c", &[&mount.dir()]).text();
    assert_eq!(seek.trim(), "120");
}
