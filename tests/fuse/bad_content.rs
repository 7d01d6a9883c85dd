//! Images that mount and turn out to be damaged: reading is an error, nothing else suffers, nothing is called verified.

use std::fs;
use std::path::Path;

use crate::artifact::{self, Piece};
use crate::byte_text::digest_of;
use crate::encode::{Encoding, gzip};
use crate::layout::{Layer, Layout};
use crate::proc_files::{proc_of, status_bytes};
use crate::process::{Need, able};
use crate::real_registry::{RealRegistry, flip_a_byte};
use crate::site::{Mount, Site};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

fn errno(result: std::io::Result<Vec<u8>>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn list_errno(dir: &Path) -> Option<i32> {
    let listed = fs::read_dir(dir).and_then(|entries| entries.map(|entry| entry.map(|_| 0)).collect());
    errno(listed)
}

fn verified(path: &Path) -> String {
    String::from_utf8(xattr::get(path, "user.ocifs.verified").unwrap().unwrap()).unwrap()
}

/// A mount whose layer cannot be read must stay a mount.
#[track_caller]
fn unreadable(site: &Site, mount: &Mount, layer: &Layer, reference: &str) {
    assert_eq!(list_errno(&mount.join("merged")), Some(libc::EIO));
    assert_eq!(list_errno(&mount.join("merged")), Some(libc::EIO), "the second time");
    let blob = mount.join("blobs").join(layer.digest().replace(':', "/"));
    assert!(fs::read(blob).unwrap() == layer.stored);
    assert!(fs::read(mount.join("manifest.json")).is_ok());
    assert!(mount.status().contains(&layer.digest()), "{}", mount.status());
    let hex = &layer.digest()["sha256:".len()..][..12];
    site.ocifs(&["ls", reference, "merged"]).refused(&[1, 6, 7], &[hex]);
}

#[test]
fn a_broken_layer_is_an_error_and_the_rest_of_the_mount_lives() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let tar = Tarball::new().file("a", &noise(200_000, 1)).file("b", &noise(200_000, 2)).bytes();
    let label = Encoding::Gzip.media_type();
    let stored = gzip(&tar);
    let mut crc = stored.clone();
    let end = crc.len() - 6;
    crc[end] ^= 1;
    let mut middle = stored.clone();
    middle[stored.len() / 2..][..64].fill(0xff);
    let cases = [
        ("gzip-cut", label, stored[..stored.len() / 2].to_vec()),
        ("gzip-crc", label, crc),
        ("gzip-middle", label, middle),
        ("tar-cut-in-body", Encoding::Plain.media_type(), tar[..tar.len() / 2].to_vec()),
        ("tar-cut-in-header", Encoding::Plain.media_type(), tar[..200].to_vec()),
        ("tar-cut-compressed", label, gzip(&tar[..tar.len() / 2])),
        ("zstd-cut", Encoding::Zstd.media_type(), Encoding::Zstd.encode(&tar)[..1000].to_vec()),
    ];
    let mut layout = Layout::create(site.scratch().join("layout"));
    for (tag, media_type, stored) in cases {
        let layer =
            || Layer { media_type: media_type.into(), stored: stored.clone(), diff_id: digest_of(&tar) };
        layout.image(tag, &[layer()]);
        let reference = layout.reference(tag);
        let mount = site.mount_at(tag, &reference, &[]);
        unreadable(&site, &mount, &layer(), &reference);
        mount.unmount();
    }
}

#[test]
fn a_layer_labelled_wrongly_is_read_by_its_content() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let tar = Tarball::new().file("f", b"found\n").bytes();
    let mut layout = Layout::create(site.scratch().join("layout"));
    for (label, truth) in [
        (Encoding::Gzip, Encoding::Plain),
        (Encoding::Plain, Encoding::Zstd),
        (Encoding::Zstd, Encoding::Gzip),
    ] {
        let mut layer = Layer::of(&tar, truth);
        layer.media_type = label.media_type().to_owned();
        layout.image(truth.name(), &[layer]);
        let mount = site.mount_at(truth.name(), &layout.reference(truth.name()), &[]);
        assert_eq!(fs::read(mount.join("merged/f")).unwrap(), b"found\n", "{truth:?} called {label:?}");
    }
}

#[test]
fn a_blob_that_is_not_its_digest_is_never_verified_and_ends_in_an_error() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("docker-registry")]) {
        return;
    }
    let site = Site::new();
    let registry = RealRegistry::start();
    let (good, bad) = (noise(900_000, 3), noise(900_000, 4));
    let pieces =
        [Piece::new("good", "text/plain", good.clone()), Piece::new("bad", "text/plain", bad.clone())];
    artifact::push(&registry, "a/rotten", "v1", "application/x.thing", &pieces);
    flip_a_byte(&registry.stored_blob(&digest_of(&bad)));
    let mut layout = Layout::create(site.scratch().join("layout"));
    artifact::write(&mut layout, "v1", "application/x.thing", &pieces);
    flip_a_byte(&layout.blob_path(&digest_of(&bad)));
    for (name, reference) in
        [("by-registry", registry.reference("a/rotten:v1")), ("by-layout", layout.reference("v1"))]
    {
        let mount = site.mount_at(name, &reference, &[]);
        let path = mount.join("files/bad");
        // The first pass may find out only at its end; from then on nothing of it is served.
        fs::read(&path).map(drop).unwrap_or_default();
        assert_eq!(errno(fs::read(&path)), Some(libc::EIO), "{name}");
        assert_ne!(verified(&path), "full", "{name}");
        assert!(fs::read(mount.join("files/good")).unwrap() == good);
        assert_eq!(verified(&mount.join("files/good")), "full");
        assert!(mount.status().contains(&digest_of(&bad)), "{}", mount.status());
    }
}

#[test]
fn a_blob_of_another_size_than_described_is_an_error() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let body = noise(500_000, 5);
    let pieces = [Piece::new("f", "text/plain", body.clone()), Piece::new("gone", "text/plain", *b"gone")];
    artifact::write(&mut layout, "v1", "application/x.thing", &pieces);
    fs::write(layout.blob_path(&digest_of(&body)), &body[..400_000]).unwrap();
    fs::remove_file(layout.blob_path(&digest_of(b"gone"))).unwrap();
    let mount = site.mount(&layout.reference("v1"), &[]);
    assert_eq!(errno(fs::read(mount.join("files/f"))), Some(libc::EIO));
    assert_eq!(errno(fs::read(mount.join("files/gone"))), Some(libc::EIO));
    assert_eq!(fs::metadata(mount.join("files/f")).unwrap().len(), 500_000);
}

#[test]
fn a_bomb_of_zeros_does_not_fill_the_memory() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    // Each member is 40 MiB of zeros in 40 KiB.
    let zeros = gzip(&vec![0_u8; 40 << 20]);
    let mut header = Tarball::new().file("huge", b"").bytes();
    header.truncate(512);
    let mut stored = gzip(&header);
    for _ in 0..8 {
        stored.extend_from_slice(&zeros);
    }
    let mut layout = Layout::create(site.scratch().join("layout"));
    let label = Encoding::Gzip.media_type().to_owned();
    layout.image("v1", &[Layer { media_type: label, stored, diff_id: digest_of(b"") }]);
    let mount = site.mount(&layout.reference("v1"), &[]);
    // Zeros after the end-of-archive blocks are padding, so the listing itself may succeed.
    let listed = fs::read_dir(mount.join("merged")).map(|entries| entries.count());
    assert!(listed.as_ref().map_or(true, |count| *count == 1), "{listed:?}");
    let peak = status_bytes(&proc_of(mount.pid()), "VmHWM");
    assert!(peak < 256 << 20, "{peak} bytes at the peak");
}
