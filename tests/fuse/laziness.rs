//! Cost of listing and `stat`, counted by an independent registry.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::artifact::{self, OS_IMAGE, Piece, QCOW2_PART};
use crate::encode::Encoding;
use crate::layout::{Layer, Layout, MANIFEST};
use crate::process::{Need, able, sh};
use crate::real_registry::{Hit, RealRegistry};
use crate::site::Site;
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 4] = [Need::Root, Need::Fuse, Need::Tool("skopeo"), Need::Tool("docker-registry")];

/// The unit in which a cold read is fetched.
const BLOCK: u64 = 256 << 10;

/// An image of two layers, one gzip of about 3 MiB, and one plain that is no small blob.
fn pushed_image(site: &Site, registry: &RealRegistry) -> (String, Vec<Layer>) {
    let mut layout = Layout::create(site.scratch().join("layout"));
    let lower = Tarball::new().dir("a").file("a/big", &noise(3 << 20, 3)).file("a/small", b"small\n").bytes();
    let upper = Tarball::new().dir("b").file("b/big", &noise(9 << 20, 4)).bytes();
    let layers = || vec![Layer::of(&lower, Encoding::Gzip), Layer::of(&upper, Encoding::Plain)];
    layout.image("v1", &layers());
    registry.push_layout(&layout.reference("v1"), "lazy/image:v1");
    (registry.reference("lazy/image:v1"), layers())
}

fn manifests(hits: &[Hit]) -> usize {
    hits.iter().filter(|hit| hit.path.contains("/manifests/")).count()
}

#[test]
fn mounting_and_listing_an_image_fetches_no_blob_byte() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut registry = RealRegistry::start();
    let (reference, layers) = pushed_image(&site, &registry);
    registry.reset_counts();
    let mount = site.mount(&reference, &[]);
    let listed = sh("cd $1; ls -lR blobs; ls; ls -ld layers; stat blobs/sha256/*", &[&mount.dir()]).text();
    for layer in &layers {
        assert!(listed.contains(&layer.stored.len().to_string()), "{listed}");
    }
    let hits = registry.requests();
    assert_eq!(registry.blob_bytes(), 0, "{hits:?}");
    assert!((1..=2).contains(&manifests(&hits)), "{hits:?}");
    assert!(hits.len() <= 2, "more than the manifest was asked for: {hits:?}");
    // The root directory of a tree is told by the first block of each layer, and asked for once.
    for _ in 0..2 {
        sh("stat $1/merged $1/merged", &[&mount.dir()]).ok();
        assert_eq!(registry.blob_bytes(), 2 * BLOCK, "{:?}", registry.requests());
    }
}

#[test]
fn mounting_and_listing_a_disk_fetches_its_head_alone() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut registry = RealRegistry::start();
    let parts = [("d.qcow2.00.qcow2.part", 5), ("d.qcow2.01.qcow2.part", 6)];
    let mut pieces: Vec<Piece> =
        parts.iter().map(|(title, seed)| Piece::new(title, QCOW2_PART, noise(1 << 20, *seed))).collect();
    pieces.push(Piece::new("notes/read.me", "text/plain", *b"hello\n"));
    artifact::push(&registry, "lazy/disk", "v1", OS_IMAGE, &pieces);
    registry.reset_counts();
    let mount = site.mount(&registry.reference("lazy/disk:v1"), &[]);
    let listed = sh(
        "cd $1; ls -lR blobs files disk; stat files/notes/read.me; stat -c %s disk/d.qcow2",
        &[&mount.dir()],
    );
    assert!(listed.text().ends_with("2097152\n"), "{}", listed.text());
    let hits = registry.requests();
    // Whether a qcow2 has a raw form, and how large that is, stands in its head.
    assert_eq!(registry.blob_bytes(), 256 * 1024, "{hits:?}");
    assert!(hits.len() <= 3 && manifests(&hits) >= 1, "{hits:?}");
}

#[test]
fn inspecting_fetches_no_layer_byte() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut registry = RealRegistry::start();
    let (reference, layers) = pushed_image(&site, &registry);
    registry.reset_counts();
    let text = site.ocifs(&["inspect", &reference]).ok().text();
    let json = site.ocifs(&["inspect", "--format", "json", &reference]).ok().text();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    for layer in &layers {
        assert!(json.to_string().contains(&layer.digest()), "{json}");
        assert!(text.contains(&layer.digest()["sha256:".len()..][..12]), "{text}");
        assert_eq!(registry.bytes_of(&layer.digest()), 0);
    }
}

#[test]
fn one_block_of_a_plain_blob_costs_one_block() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut registry = RealRegistry::start();
    let (reference, layers) = pushed_image(&site, &registry);
    let mount = site.mount(&reference, &["--view", "blobs"]);
    registry.reset_counts();
    let stored = &layers[1].stored;
    let blob = mount.join(layers[1].digest().replace(':', "/"));
    let (file, mut bytes) = (File::open(blob).unwrap(), vec![0; 4096]);
    file.read_exact_at(&mut bytes, 2 << 20).unwrap();
    assert!(bytes == stored[2 << 20..(2 << 20) + 4096]);
    // The kernel may ask for up to 128 KiB more than the reader did.
    assert!(registry.blob_requests().len() <= 2, "{:?}", registry.blob_requests());
    assert!(registry.blob_bytes() <= 2 * BLOCK, "{:?}", registry.blob_requests());
}

#[test]
fn sixteen_readers_of_one_cold_blob_fetch_it_once() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut registry = RealRegistry::start();
    let (reference, layers) = pushed_image(&site, &registry);
    let mount = site.mount(&reference, &[]);
    for layer in &layers {
        let blob = mount.join("blobs").join(layer.digest().replace(':', "/"));
        registry.reset_counts();
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| assert!(fs::read(&blob).unwrap() == layer.stored));
            }
        });
        assert_eq!(registry.bytes_of(&layer.digest()), layer.stored.len() as u64);
    }
}

#[test]
fn two_mounts_with_one_cache_fetch_a_blob_once() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut registry = RealRegistry::start();
    let (reference, layers) = pushed_image(&site, &registry);
    let mounts = [site.mount_at("one", &reference, &[]), site.mount_at("two", &reference, &[])];
    let name = format!("blobs/{}", layers[0].digest().replace(':', "/"));
    registry.reset_counts();
    std::thread::scope(|scope| {
        for mount in &mounts {
            let name = &name;
            scope.spawn(move || assert!(fs::read(mount.join(name)).unwrap().len() > 3 << 20));
        }
    });
    let (sent, size) = (registry.bytes_of(&layers[0].digest()), layers[0].stored.len() as u64);
    assert!(sent * 10 <= size * 11, "{sent} bytes of {size}");
}

#[test]
fn a_moved_tag_does_not_move_the_mount() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = RealRegistry::start();
    let (reference, _) = pushed_image(&site, &registry);
    let mount = site.mount(&reference, &[]);
    let before = fs::read(mount.join("manifest.json")).unwrap();
    let pieces = [Piece::new("other", "text/plain", *b"other\n")];
    artifact::push(&registry, "lazy/image", "v1", "application/x.other", &pieces);
    assert!(fs::read(mount.join("manifest.json")).unwrap() == before);
    assert_eq!(fs::read(mount.join("merged/a/small")).unwrap(), b"small\n");
    mount.unmount();
    let moved = site.mount(&reference, &[]);
    assert_eq!(fs::read(moved.join("files/other")).unwrap(), b"other\n");
    let text = String::from_utf8(before).unwrap();
    assert!(text.contains(MANIFEST));
}
