//! Disks in artifacts: parts that were cut and pushed are one image again, for every tool that reads one.

use std::fs;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::artifact::{self, OS_IMAGE, Piece, QCOW2, QCOW2_PART};
use crate::compare::sha256_of;
use crate::layout::Layout;
use crate::process::{Need, able, sh};
use crate::real_registry::RealRegistry;
use crate::scratch::Scratch;
use crate::site::Site;
use crate::tarball::noise;

const NEEDS: [Need<'_>; 4] = [Need::Root, Need::Fuse, Need::Tool("qemu-img"), Need::Tool("docker-registry")];

/// A qcow2 with 5 MiB of data in a 64 MiB disk, cut as cocoon cuts it.
struct Cut {
    original: PathBuf,
    raw: PathBuf,
    pieces: Vec<Piece>,
}

fn cut_disk(scratch: &Scratch) -> Cut {
    let (raw, original) = (scratch.join("system.img"), scratch.join("system.qcow2"));
    let file = File::create(&raw).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(&noise(3 << 20, 1), 0).unwrap();
    file.write_all_at(&noise(2 << 20, 2), 40 << 20).unwrap();
    let script = "qemu-img convert -q -f raw -O qcow2 $1 $2; cd $(dirname $2); mkdir parts; cd parts; \
                  split -b 1M -d --additional-suffix=.qcow2.part $2 system.qcow2.; sha256sum * > SHA256SUMS; ls";
    let names = sh(script, &[&raw, &original]).text();
    let part = |name: &str| fs::read(scratch.join("parts").join(name)).unwrap();
    let pieces: Vec<Piece> = names
        .lines()
        .map(|name| {
            Piece::new(name, if name == "SHA256SUMS" { "text/plain" } else { QCOW2_PART }, part(name))
        })
        .collect();
    assert!(pieces.len() > 5, "{names}");
    Cut { original, raw, pieces }
}

#[test]
fn a_cut_qcow2_is_the_original_for_every_qemu_tool() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let cut = cut_disk(site.scratch());
    let registry = RealRegistry::start();
    artifact::push(&registry, "os/system", "v1", OS_IMAGE, &cut.pieces);
    let mount = site.mount(&registry.reference("os/system:v1"), &[]);
    let disk = mount.join("disk/system.qcow2");
    assert_eq!(sha256_of(&disk).unwrap(), sha256_of(&cut.original).unwrap());
    let script = "qemu-img check -q -f qcow2 $1; qemu-img compare -q -f qcow2 -F raw $1 $2; \
                  qemu-img convert -q -f qcow2 -O raw $1 $3; cmp $3 $2; \
                  qemu-img map -f qcow2 $1; qemu-io -r -t none -f qcow2 -c 'read 1M 1M' -c 'read 41M 512k' $1";
    sh(script, &[&disk, &cut.raw, &site.scratch().join("back.raw")]);
    // An overlay is how a machine would use it.
    let overlay = "qemu-img create -q -f qcow2 -b $1 -F qcow2 $2; qemu-io -f qcow2 -c 'write -P 7 1M 64k' $2; \
                   qemu-img compare -q -f qcow2 -F raw $1 $3";
    sh(overlay, &[&disk, &site.scratch().join("overlay.qcow2"), &cut.raw]);
    sh("cd $1; sha256sum --check --quiet SHA256SUMS", &[&mount.join("files")]);
    let info = fs::read_to_string(mount.join("disk/info.json")).unwrap();
    assert!(info.contains("qcow2") && info.contains(&(64_u64 << 20).to_string()), "{info}");
}

#[test]
fn parts_listed_in_any_order_give_the_same_disk() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut cut = cut_disk(site.scratch());
    let mut layout = Layout::create(site.scratch().join("layout"));
    let count = cut.pieces.len();
    cut.pieces.reverse();
    cut.pieces.swap(1, count / 2);
    artifact::write(&mut layout, "v1", OS_IMAGE, &cut.pieces);
    let mount = site.mount(&layout.reference("v1"), &["--view", "disk"]);
    assert_eq!(sha256_of(&mount.join("system.qcow2")).unwrap(), sha256_of(&cut.original).unwrap());
}

#[test]
fn the_older_name_of_the_artifact_type_gives_the_same_disk() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let cut = cut_disk(site.scratch());
    let mut layout = Layout::create(site.scratch().join("layout"));
    let old = "application/vnd.cocoonstack.windows-image.v1+json";
    artifact::write(&mut layout, "v1", old, &cut.pieces);
    let mount = site.mount(&layout.reference("v1"), &[]);
    assert_eq!(sha256_of(&mount.join("disk/system.qcow2")).unwrap(), sha256_of(&cut.original).unwrap());
}

#[test]
fn a_small_random_read_of_a_disk_in_small_parts_costs_the_parts_that_it_touches() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let cut = cut_disk(site.scratch());
    let mut registry = RealRegistry::start();
    artifact::push(&registry, "os/system", "v1", OS_IMAGE, &cut.pieces);
    let whole = fs::read(&cut.original).unwrap();
    let mount = site.mount(&registry.reference("os/system:v1"), &[]);
    let disk = File::open(mount.join("disk/system.qcow2")).unwrap();
    // Without this the kernel reads ahead of a reader that it takes for a sequential one.
    posix_fadvise(disk.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
    // Far apart, so that no read profits from another or from the header, which open() had to look at; the third
    // crosses a part. A part of 1 MiB is compared as a whole before its first byte is given out.
    for (offset, parts) in [(1_703_936_u64, 1), (2_400_256, 1), ((1 << 20) * 4 - 32_768, 2)] {
        registry.reset_counts();
        let mut bytes = vec![0; 64 << 10];
        disk.read_exact_at(&mut bytes, offset).unwrap();
        let start = usize::try_from(offset).unwrap();
        assert!(bytes == whole[start..start + bytes.len()], "wrong bytes at {offset}");
        let hits = registry.blob_requests();
        assert!(!hits.is_empty() && hits.len() <= parts, "at {offset}: {hits:?}");
        assert!(registry.blob_bytes() <= (parts as u64) << 20, "at {offset}: {hits:?}");
    }
}

#[test]
fn a_qcow2_in_one_piece_is_a_disk_too() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let cut = cut_disk(site.scratch());
    let mut layout = Layout::create(site.scratch().join("layout"));
    let whole = fs::read(&cut.original).unwrap();
    artifact::write(&mut layout, "v1", OS_IMAGE, &[Piece::new("system.qcow2", QCOW2, whole)]);
    let mount = site.mount(&layout.reference("v1"), &[]);
    assert_eq!(sha256_of(&mount.join("disk/system.qcow2")).unwrap(), sha256_of(&cut.original).unwrap());
    sh("qemu-img compare -q -f qcow2 -F raw $1 $2", &[&mount.join("disk/system.qcow2"), &cut.raw]);
}

#[test]
fn missing_part_makes_no_disk_and_is_reported() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut cut = cut_disk(site.scratch());
    let mut layout = Layout::create(site.scratch().join("layout"));
    cut.pieces.retain(|piece| !piece.title.contains(".02."));
    artifact::write(&mut layout, "v1", OS_IMAGE, &cut.pieces);
    let mount = site.mount(&layout.reference("v1"), &[]);
    assert!(!mount.join("disk/system.qcow2").exists());
    let info = fs::read_to_string(mount.join("disk/info.json")).unwrap();
    assert!(info.contains("02") || info.contains("missing") || info.contains("incomplete"), "{info}");
}

#[test]
fn disk_that_would_open_host_files_is_refused_with_the_reason() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let recipes = [
        ("backing", "qemu-img create -q -f qcow2 -u -b /etc/shadow -F raw $1 1M", "/etc/shadow"),
        ("datafile", "qemu-img create -q -f qcow2 -o data_file=$1.data,data_file_raw=on $1 1M", "data"),
    ];
    for (name, recipe, reason) in recipes {
        let file = site.scratch().join(format!("{name}.qcow2"));
        sh(recipe, &[&file]);
        let bytes = fs::read(&file).unwrap();
        let mut layout = Layout::create(site.scratch().join(format!("layout-{name}")));
        let title = format!("{name}.qcow2");
        artifact::write(&mut layout, "v1", OS_IMAGE, &[Piece::new(&title, QCOW2, bytes.clone())]);
        let mount = site.mount_at(name, &layout.reference("v1"), &[]);
        let opened = File::open(mount.join("disk").join(&title)).map(|_| ());
        assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::EPERM), "{name}");
        let info = fs::read_to_string(mount.join("disk/info.json")).unwrap();
        assert!(info.contains(reason), "{name}: {info}");
        // The bytes themselves are no secret.
        assert!(fs::read(mount.join("files").join(&title)).unwrap() == bytes);
        same_everywhere(&mount.join("blobs/sha256"), &bytes);
    }
}

#[test]
fn the_raw_form_of_a_disk_that_begins_as_one_that_would_open_host_files_is_refused() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let recipes = [
        ("plain", "truncate -s 1M $1", true),
        ("harmless", "qemu-img create -q -f qcow2 $1 1M", true),
        ("qcow2", "qemu-img create -q -f qcow2 -u -b /etc/shadow -F raw $1 1M", false),
        ("qed", "qemu-img create -q -f qed -u -b /etc/shadow -F raw $1 1M", false),
        (
            "vmdk",
            "printf '# Disk DescriptorFile\\nversion=1\\nRW 2048 FLAT \"/etc/shadow\" 0\\n' > $1",
            false,
        ),
    ];
    for (name, recipe, is_given_out) in recipes {
        let (inner, outer) = (site.scratch().join(name), site.scratch().join(format!("{name}.qcow2")));
        sh(recipe, &[&inner]);
        sh("truncate -s 4M $1; qemu-img convert -q -f raw -O qcow2 $1 $2", &[&inner, &outer]);
        let mut layout = Layout::create(site.scratch().join(format!("layout-{name}")));
        let piece = Piece::new("disk.qcow2", QCOW2, fs::read(&outer).unwrap());
        artifact::write(&mut layout, "v1", OS_IMAGE, &[piece]);
        let mount = site.mount_at(&format!("mnt-{name}"), &layout.reference("v1"), &[]);
        assert!(File::open(mount.join("disk/disk.qcow2")).is_ok(), "{name}");
        let raw = File::open(mount.join("disk/disk.raw")).map(|_| ());
        let expected = if is_given_out { None } else { Some(libc::EPERM) };
        assert_eq!(raw.err().and_then(|error| error.raw_os_error()), expected, "{name}");
    }
}

fn same_everywhere(blobs: &Path, bytes: &[u8]) {
    let found = fs::read_dir(blobs).unwrap().any(|entry| fs::read(entry.unwrap().path()).unwrap() == bytes);
    assert!(found, "no blob in {blobs:?} has the disk's bytes");
}
