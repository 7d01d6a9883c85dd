//! Layouts, archive files and content stores: bytes are read where they lie; indexes and decoded bytes are cached.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;

use crate::compare::assert_same;
use crate::encode::Encoding;
use crate::fault_registry::FaultRegistry;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able, run, sh};
use crate::site::Site;
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const BODY: usize = 8 << 20;

/// Bytes of the disk that a directory takes.
fn occupied(dir: &Path) -> u64 {
    let mut total = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let found = entry.metadata().unwrap();
        total += if found.is_dir() { occupied(&entry.path()) } else { found.blocks() * 512 };
    }
    total
}

/// An image of a plain and a gzip layer, in a layout of `site`; the digest of the plain one.
fn image(site: &Site) -> (Layout, String) {
    let plain = Tarball::new().dir("d").file("d/plain", &noise(BODY, 901)).bytes();
    let packed = Tarball::new().dir("d").file("d/packed", &noise(BODY, 902)).bytes();
    let layers = [Layer::of(&plain, Encoding::Plain), Layer::of(&packed, Encoding::Gzip)];
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &layers);
    (layout, layers[0].digest())
}

#[test]
fn local_bytes_are_not_copied_into_the_cache() {
    if !able(&NEEDS) {
        return;
    }
    let home = Site::new();
    let (layout, _) = image(&home);
    let dir = home.scratch().join("layout");
    let archive = home.scratch().join("i.tar");
    run(Command::new("tar").arg("-C").arg(&dir).arg("-cf").arg(&archive).arg(".")).ok();
    let registry = FaultRegistry::of_layout(&dir, "a/b");
    let store = format!("content_store={}", dir.display());
    let rows: [(String, &[&str]); 3] = [
        (layout.reference("v1"), &[]),
        (archive.display().to_string(), &[]),
        (format!("{}/a/b:v1", registry.host()), &["-o", &store]),
    ];
    let copied = Site::new();
    let pushed = copied.mount(&format!("{}/a/b:v1", registry.host()), &[]);
    let requested = registry.blob_bytes();
    assert!(occupied(&copied.cache().join("v1/blobs")) <= occupied(&dir), "what a registry gives is copied");
    for (location, options) in rows {
        let site = Site::new();
        for round in 0..2 {
            let mount = site.mount(&location, options);
            sh(
                "find \"$1\" -type f -not -path '*/.ocifs/*' -exec sha256sum {} + > /dev/null",
                &[&mount.dir()],
            );
            if round == 0 {
                let (all, decoded) = (occupied(&site.cache()), occupied(&site.cache().join("v1/streams")));
                let stored = occupied(&dir);
                assert!(decoded > 0, "{location}");
                assert!(all - decoded <= stored / 20, "{location}: {all} with {decoded} decoded of {stored}");
                assert_same(&mount.join("merged"), &pushed.join("merged"));
            }
            mount.unmount();
        }
    }
    assert!(requested <= registry.blob_bytes());
    pushed.unmount();
}

#[test]
fn a_layout_that_changes_under_the_mount_gives_compared_bytes_or_an_error() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (layout, plain) = image(&site);
    let body = noise(BODY, 901);
    let mount = site.mount(&layout.reference("v1"), &[]);
    let path = mount.join("merged/d/plain");
    let read = |at: u64| {
        // What the kernel has in its pages would say nothing.
        sh("echo 3 > /proc/sys/vm/drop_caches", &[]);
        let mut seen = [0; 4096];
        File::open(&path).unwrap().read_exact_at(&mut seen, at).map(|()| seen.to_vec())
    };
    for at in [0, 1 << 20] {
        assert_eq!(read(at).unwrap(), body[at as usize..][..4096]);
    }
    let stored = File::options().write(true).open(layout.blob_path(&plain)).unwrap();
    stored.write_all_at(&[0xee; 300_000], 0).unwrap();
    stored.write_all_at(&[0xee; 8192], 6 << 20).unwrap();
    stored.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    let failed = |at: u64| read(at).map_err(|error| error.raw_os_error());
    assert_eq!(failed(0), Err(Some(Errno::EIO as i32)), "compared before, and another now");
    assert_eq!(failed(6 << 20), Err(Some(Errno::EIO as i32)), "never compared");
    assert_eq!(failed(4 << 20), Err(Some(Errno::EIO as i32)), "the same, and never compared");
    if let Ok(seen) = read(1 << 20) {
        assert_eq!(seen, body[1 << 20..][..4096], "compared before, and the same now");
    }
    mount.unmount();
}
