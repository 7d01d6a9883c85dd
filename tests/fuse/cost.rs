//! The exact price of common things, in requests and bytes, at a registry that records every range.

use std::fs;
use std::io::Read as _;
use std::time::Duration;

use crate::artifact::{self, EMPTY, Piece};
use crate::byte_text::digest_of;
use crate::encode::Encoding;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::layout::{CONFIG, Layer, MANIFEST};
use crate::process::{Need, able, sh};
use crate::site::Site;
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
/// The unit in which a cold read is fetched.
const BLOCK: u64 = 256 << 10;

/// Pushes an artifact; the answer is its reference.
pub(crate) fn push_files(registry: &FaultRegistry, pieces: &[Piece]) -> String {
    registry.push_blob(EMPTY.1);
    for piece in pieces {
        registry.push_blob(piece.bytes.clone());
    }
    registry.push_manifest("a/thing", "v1", MANIFEST, &artifact::manifest("application/x.thing", pieces));
    format!("{}/a/thing:v1", registry.host())
}

/// Pushes an image; the answer is its reference.
pub(crate) fn push_image(registry: &FaultRegistry, layers: &[Layer]) -> String {
    let diffs: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diffs}})
    .to_string();
    registry.push_blob(config.as_bytes());
    let mut listed = Vec::new();
    for layer in layers {
        registry.push_blob(layer.stored.clone());
        listed.push(serde_json::json!({"mediaType": layer.media_type, "digest": layer.digest(),
            "size": layer.stored.len()}));
    }
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": digest_of(config.as_bytes()), "size": config.len()},
        "layers": listed})
    .to_string();
    registry.push_manifest("an/image", "v1", MANIFEST, manifest.as_bytes());
    format!("{}/an/image:v1", registry.host())
}

#[test]
fn mounting_and_reading_one_small_file_is_two_requests() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    let reference = push_files(&registry, &[Piece::new("small", "text/plain", *b"hello\n")]);
    let mount = site.mount(&reference, &[]);
    assert_eq!(fs::read(mount.join("files/small")).unwrap(), b"hello\n");
    let requests = registry.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert_eq!(registry.blob_bytes(), 6);
    assert_eq!(registry.blob_requests()[0].range, Some((0, 6)));
    // Again, from another mount of the same cache: the tag is resolved, the rest is there.
    let again = site.mount_at("again", &reference, &[]);
    assert_eq!(fs::read(again.join("files/small")).unwrap(), b"hello\n");
    assert_eq!(registry.requests().len(), 3, "{:?}", registry.requests());
}

#[test]
fn the_names_in_a_plain_tar_cost_its_headers_not_its_bodies() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    let mut tar = Tarball::new();
    for number in 0..4_u64 {
        tar = tar
            .file(&format!("big-{number}"), &noise(10 << 20, number))
            .file(&format!("small-{number}"), b"little\n");
    }
    let layer = Layer::of(&tar.bytes(), Encoding::Plain);
    let reference = push_image(&registry, std::slice::from_ref(&layer));
    let mount = site.mount(&reference, &[]);
    assert_eq!(sh("ls $1", &[&mount.join("merged")]).text().lines().count(), 8);
    assert_eq!(fs::read(mount.join("merged/small-2")).unwrap(), b"little\n");
    // A block or two where each pair of headers lies, and one for the end.
    assert!(registry.blob_bytes() <= 11 * BLOCK, "{} bytes of {}", registry.blob_bytes(), layer.stored.len());
}

#[test]
fn sequential_reading_joins_blocks_into_larger_ranges() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    let body = noise(32 << 20, 7);
    let reference = push_files(&registry, &[Piece::new("big", "application/x.big", body.clone())]);
    let mount = site.mount(&reference, &[]);
    registry.reset_counts();
    assert!(fs::read(mount.join("files/big")).unwrap() == body);
    assert_eq!(registry.blob_bytes(), body.len() as u64);
    let requests = registry.blob_requests().len() as u64;
    assert!(requests < body.len() as u64 / BLOCK / 2, "{requests} requests");
}

#[test]
fn a_reader_that_stops_leaves_at_most_a_mebibyte_of_readahead() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    let reference = push_files(&registry, &[Piece::new("big", "application/x.big", noise(64 << 20, 7))]);
    let mount = site.mount(&reference, &[]);
    // The bandwidth-delay product of one body is 0.4 MB, and two bodies have twice the bandwidth.
    registry.set(Fault::FirstByteAfter(Duration::from_millis(50)));
    registry.set(Fault::SlowBytesPerSecond(8_000_000));
    for read in [8 << 20, 16 << 20] {
        registry.reset_counts();
        let mut file = fs::File::open(mount.join("files/big")).unwrap();
        let mut bytes = vec![0; read];
        file.read_exact(&mut bytes).unwrap();
        drop(file);
        registry.rest(Duration::from_millis(500));
        // The second reader finds the first part present. The kernel's own readahead is 1 MiB, begun once more before
        // it is used up.
        let (fetched, wanted) = (registry.blob_bytes(), 8 << 20);
        assert!(fetched <= wanted + (1 << 20) + (2 << 20) + BLOCK, "{fetched} bytes for {wanted}");
        assert!(registry.blob_requests().len() <= 24, "{:?}", registry.blob_requests());
    }
}

#[test]
fn ranges_go_straight_to_the_remembered_redirect_target() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    registry.set(Fault::RedirectTo307SecondHost);
    let body = noise(16 << 20, 8);
    let reference = push_files(&registry, &[Piece::new("big", "application/x.big", body.clone())]);
    let mount = site.mount(&reference, &[]);
    assert!(fs::read(mount.join("files/big")).unwrap() == body);
    let requests = registry.blob_requests();
    let asked = requests.iter().filter(|request| !request.cdn).count();
    assert!(asked <= 4 && asked * 2 < requests.len(), "{asked} redirects in {} requests", requests.len());
    assert!(requests.iter().filter(|request| request.cdn).all(|request| !request.authorization));
}

#[test]
fn a_second_mount_asks_for_the_manifest_only() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    let tar = Tarball::new().dir("d").file("d/f", &noise(2 << 20, 9)).bytes();
    let reference =
        push_image(&registry, &[Layer::of(&tar, Encoding::Gzip), Layer::of(&tar, Encoding::Zstd)]);
    let first = site.mount(&reference, &[]);
    let size = sh("cat $1/merged/d/f | wc -c; ls -lR $1/merged", &[&first.dir()]).text();
    first.unmount();
    registry.reset_counts();
    let second = site.mount(&reference, &[]);
    assert_eq!(sh("cat $1/merged/d/f | wc -c; ls -lR $1/merged", &[&second.dir()]).text(), size);
    assert_eq!(registry.blob_requests().len(), 0, "{:?}", registry.blob_requests());
    assert!(registry.requests().len() <= 2, "{:?}", registry.requests());
}
