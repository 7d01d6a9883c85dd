//! A whole distribution root with an interpreter on top, against what `umoci unpack` makes of it.

use std::fs;
use std::process::Command;

use crate::compare::assert_same;
use crate::debian::{Debian, NAME};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, sh};
use crate::site::Site;

/// What the Debian image needs.
pub(crate) const NEEDS: [Need<'_>; 6] = [
    Need::Root,
    Need::Fuse,
    Need::Tool("umoci"),
    Need::Tool("skopeo"),
    Need::Tool("debootstrap"),
    Need::Tool("docker-registry"),
];

#[test]
fn pushed_debian_root_equals_the_tree_of_umoci() {
    if !able(&NEEDS) {
        return;
    }
    let debian = Debian::get();
    let registry = debian.registry();
    let site = Site::new();
    let mount = site.mount(&registry.reference(NAME), &[]);
    assert_same(&debian.unpacked(), &mount.join("merged"));
}

#[test]
fn debian_root_from_a_layout_equals_the_tree_of_umoci() {
    if !able(&NEEDS) {
        return;
    }
    let debian = Debian::get();
    let site = Site::new();
    let mount = site.mount(&debian.layout(), &["--view", "merged"]);
    assert_same(&debian.unpacked(), mount.dir());
}

#[test]
fn programs_run_from_the_mount() {
    if !able(&NEEDS) {
        return;
    }
    let debian = Debian::get();
    let site = Site::new();
    let mount = site.mount(&debian.layout(), &["--view", "merged"]);
    let sum = "import os, re, subprocess; print(sum(range(100)))";
    let python = run(Command::new("chroot").arg(mount.dir()).args(["/usr/bin/python3", "-c", sum])).ok();
    assert_eq!(python.text(), "4950\n");
}

#[test]
fn layers_keep_the_whiteouts_that_merged_obeys() {
    if !able(&NEEDS) {
        return;
    }
    let debian = Debian::get();
    let site = Site::new();
    let mount = site.mount(&debian.layout(), &[]);
    let mut layers: Vec<_> = fs::read_dir(mount.join("layers"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|it| !it.is_symlink())
        .collect();
    layers.sort();
    assert_eq!(layers.len(), 4, "{layers:?}");
    assert!(layers[0].join("usr/share/doc").is_dir());
    assert!(layers[2].join("usr/share/.wh.doc").exists());
    assert!(layers[3].join("etc/apt/.wh..wh..opq").exists());
    assert!(!mount.join("merged/usr/share/doc").exists());
    let names = |dir: &str| sh("ls -A $1", &[&mount.join("merged").join(dir)]).text();
    assert_eq!(names("etc/apt"), "sources.list\n");
    assert_eq!(names("usr/share/zoneinfo"), "Mars\n");
}

#[test]
fn a_second_mount_by_digest_needs_no_registry() {
    if !able(&NEEDS) {
        return;
    }
    let debian = Debian::get();
    let mut registry = debian.registry();
    let site = Site::new();
    let reference = registry.reference(NAME);
    let mount = site.mount(&reference, &[]);
    let pinned = registry.reference(&format!("debian/python@{}", mount.digest()));
    let listed = sh("cd $1/merged; find . | sort", &[&mount.dir()]).text();
    let read = fs::read(mount.join("merged/etc/os-release")).unwrap();
    let perl = fs::read(mount.join("merged/usr/bin/perl")).unwrap();
    assert!(listed.lines().count() > 4000);
    mount.unmount();
    registry.stop();
    for options in [&[][..], &["--offline"]] {
        let again = site.mount(&pinned, options);
        assert_eq!(sh("cd $1/merged; find . | sort", &[&again.dir()]).text(), listed);
        assert_eq!(fs::read(again.join("merged/etc/os-release")).unwrap(), read);
        assert!(fs::read(again.join("merged/usr/bin/perl")).unwrap() == perl);
    }
}

#[test]
fn a_second_mount_fetches_no_blob() {
    if !able(&NEEDS) {
        return;
    }
    let debian = Debian::get();
    let mut registry = debian.registry();
    let site = Site::new();
    let reference = registry.reference(NAME);
    let mount = site.mount(&reference, &[]);
    sh("cd $1/merged; find . -type f -exec cat {} + | wc -c", &[&mount.dir()]);
    mount.unmount();
    registry.reset_counts();
    let again = site.mount(&reference, &[]);
    sh("cd $1/merged; find . -type f -exec cat {} + | wc -c", &[&again.dir()]);
    assert_eq!(registry.blob_requests().len(), 0, "{:?}", registry.blob_requests());
}

/// A killed daemon loses at most what was under way: of each of the eight requests that a host gets at once, what the registry
/// had sent ahead into the buffers of its socket, some megabytes on loopback.
const UNDER_WAY: u64 = 8 * (4 << 20);

#[test]
fn kill_during_a_cold_read_loses_only_blocks_in_flight() {
    if !able(&NEEDS) {
        return;
    }
    let debian = Debian::get();
    let mut registry = debian.registry();
    let site = Site::new();
    let reference = registry.reference(NAME);
    let mount = site.mount(&reference, &[]);
    registry.reset_counts();
    let mut tar = Command::new("sh");
    tar.args(["-c", "tar cf - -C \"$1\" merged > \"$2\" 2>/dev/null", "sh"]);
    let mut tar = tar.arg(mount.dir()).arg(site.scratch().join("cut.tar")).spawn().unwrap();
    let begun = becomes_true(CONDITION_TIMEOUT, || {
        registry.blob_bytes_so_far() > 45 << 20 || tar.try_wait().is_ok_and(|status| status.is_some())
    });
    assert!(begun, "tar fetched nothing");
    assert!(tar.try_wait().unwrap().is_none(), "tar was done before it could be interrupted");
    mount.kill();
    tar.wait().unwrap();
    let first = registry.blob_bytes();
    assert!(first > 0);
    registry.reset_counts();

    let again = site.mount(&reference, &[]);
    assert_same(&debian.unpacked(), &again.join("merged"));
    let second = registry.blob_bytes();
    let stored = stored_bytes(&again.join("blobs/sha256"));
    assert!(
        first + second <= stored + UNDER_WAY,
        "{first} bytes before the kill and {second} after it, of {stored} stored"
    );
}

fn stored_bytes(dir: &std::path::Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn sixteen_readers_of_a_cold_layer_fetch_it_once() {
    if !able(&NEEDS) {
        return;
    }
    let debian = Debian::get();
    let mut registry = debian.registry();
    let site = Site::new();
    let mount = site.mount(&registry.reference(NAME), &[]);
    let stored = stored_bytes(&mount.join("blobs/sha256"));
    registry.reset_counts();
    let oracle = fs::read(debian.unpacked().join("usr/bin/perl")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert!(fs::read(mount.join("merged/usr/bin/perl")).unwrap() == oracle));
        }
    });
    // All of the image's blobs, once, and not a block more.
    assert!(registry.blob_bytes() <= stored, "{} of {stored} bytes", registry.blob_bytes());
}
