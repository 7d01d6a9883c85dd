//! Disks that are stored in another form than the one that is read: compressed, or a qcow2 read as raw.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::artifact::{self, OS_IMAGE, Piece, QCOW2_PART};
use crate::process::{Need, able, sh};
use crate::random::Random;
use crate::real_registry::RealRegistry;
use crate::site::{Mount, Site};
use crate::tarball::noise;

const NEEDS: [Need<'_>; 4] = [Need::Root, Need::Fuse, Need::Tool("qemu-img"), Need::Tool("docker-registry")];

const MIB: u64 = 1 << 20;

/// How often each form is read at random.
const READS: u64 = 1000;

/// `size` bytes of which only the runs (offset, length) are stored.
fn sparse(path: &Path, size: u64, runs: &[(u64, usize)]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (seed, (offset, length)) in (1..).zip(runs) {
        file.write_all_at(&noise(*length, seed), *offset).unwrap();
    }
}

#[test]
fn random_reads_of_a_disk_in_gzip_equal_the_disk_and_are_not_paid_twice() {
    random_reads("gz", "gzip -6", "application/vnd.nosi.disk-image.layer.v1+gzip");
}

#[test]
fn random_reads_of_a_disk_in_zstd_equal_the_disk_and_are_not_paid_twice() {
    random_reads("zst", "zstd -q -c", "application/zstd");
}

#[test]
fn random_reads_of_a_disk_in_xz_equal_the_disk_and_are_not_paid_twice() {
    random_reads("xz", "xz -1 -T 1 --block-size=4MiB -c", "application/x-xz");
}

#[test]
fn random_reads_of_a_disk_in_bzip2_equal_the_disk_and_are_not_paid_twice() {
    random_reads("bz2", "bzip2 -1 -c", "application/x-bzip2");
}

fn random_reads(extension: &str, pack: &str, media_type: &'static str) {
    let tool = pack.split(' ').next().unwrap();
    if !able(&[&NEEDS[..], &[Need::Tool(tool)]].concat()) {
        return;
    }
    let site = Site::new();
    let plain = site.scratch().join("disk.img");
    let middle = (20 * MIB + 12_345, 3 << 20);
    sparse(&plain, 48 * MIB + 512, &[(0, 2 << 20), middle, (48 * MIB - 4096, 4608)]);
    let packed = sh(&format!("{pack} < $1"), &[&plain]).stdout;
    let mut registry = RealRegistry::start();
    let pieces = [Piece::new(&format!("disk.img.{extension}"), media_type, packed)];
    artifact::push(&registry, "packed", "v1", "application/vnd.unknown.artifact.v1", &pieces);
    let reference = registry.reference("packed:v1");

    let mount = site.mount(&reference, &[]);
    compare_at_random(&mount, &plain);
    mount.unmount();
    registry.reset_counts();
    let mount = site.mount(&reference, &[]);
    compare_at_random(&mount, &plain);
    let status: Value = serde_json::from_str(&mount.status()).unwrap();
    for blob in status["blobs"].as_array().unwrap() {
        assert_eq!(blob["fetched"], 0, "{blob}");
    }
    assert_eq!(registry.blob_bytes(), 0, "{:?}", registry.blob_requests());
}

/// The same places in every run.
fn compare_at_random(mount: &Mount, plain: &Path) {
    let disk = mount.join("disk/disk.img");
    let disk = File::open(&disk).unwrap_or_else(|error| panic!("{disk:?}: {error}: {}", mount.status()));
    let whole = fs::read(plain).unwrap();
    assert_eq!(disk.metadata().unwrap().len(), whole.len() as u64);
    let mut random = Random::of(1);
    let mut next = |below: u64| random.below(below);
    let mut buffer = vec![0; 128 << 10];
    for number in 0..READS {
        let start = usize::try_from(next(whole.len() as u64)).unwrap();
        let length = usize::try_from(1 + next(if number % 10 == 0 { 128 << 10 } else { 4096 })).unwrap();
        let expected = &whole[start..whole.len().min(start + length)];
        let bytes = &mut buffer[..expected.len()];
        disk.read_exact_at(bytes, start as u64).unwrap();
        assert!(bytes == expected, "read {number}: {length} bytes at {start}");
    }
}

/// A qcow2 of 1 GiB with 300 MiB of data, and with clusters that a guest wrote and gave back: they are in the file, in
/// front of half of the data.
fn large(dir: &Path) -> (PathBuf, PathBuf) {
    let (raw, qcow2, half) = (dir.join("large.raw"), dir.join("large.qcow2"), dir.join("half.raw"));
    let runs = [(0, 100 << 20), (400 * MIB, 100 << 20), (900 * MIB + 64 * 1024, 100 << 20)];
    sparse(&raw, 1024 * MIB, &runs);
    // The freed clusters lie behind the first two runs because the third is written when they are there, from a file
    // that has nothing else.
    sparse(&half, 1024 * MIB, &runs[..2]);
    let script = "qemu-img convert -q -f raw -O qcow2 $3 $2; \
                  qemu-io -f qcow2 -c 'write -P 1 600M 64M' $2; \
                  dd if=$1 of=$3.third bs=64K skip=14401 count=1600 status=none; \
                  qemu-io -f qcow2 -c \"write -s $3.third 943783936 100M\" $2; \
                  qemu-io -d unmap -f qcow2 -c 'discard 600M 64M' $2; rm $3 $3.third; \
                  qemu-img compare -f raw -F qcow2 $1 $2";
    sh(script, &[&raw, &qcow2, &half]);
    (raw, qcow2)
}

#[test]
fn converting_the_raw_view_of_a_qcow2_fetches_its_data_and_no_hole() {
    if !able(&[&NEEDS[..], &[Need::Tool("qemu-io")]].concat()) {
        return;
    }
    let site = Site::new();
    let (raw, qcow2) = large(site.scratch().path());
    let bytes = fs::read(&qcow2).unwrap();
    assert!(bytes.len() as u64 >= 364 * MIB, "the freed clusters are not in the file: {}", bytes.len());
    let part = |(number, bytes): (usize, &[u8])| {
        Piece::new(&format!("large.qcow2.{number:02}.qcow2.part"), QCOW2_PART, bytes)
    };
    let pieces: Vec<Piece> = bytes.chunks(64 << 20).enumerate().map(part).collect();
    drop(bytes);
    let mut registry = RealRegistry::start();
    artifact::push(&registry, "os/large", "v1", OS_IMAGE, &pieces);
    drop(pieces);
    let mount = site.mount(&registry.reference("os/large:v1"), &[]);
    let (view, back) = (mount.join("disk/large.raw"), site.scratch().join("back.raw"));
    assert!(view.exists(), "there is no {view:?}: {}", mount.status());
    registry.reset_counts();
    let map = sh("qemu-img map --output=json -f raw $1", &[&view]).text();
    let map: Vec<Value> = serde_json::from_str(&map).unwrap();
    let data = map.iter().filter(|extent| extent["data"] == true);
    assert_eq!(data.map(|extent| extent["length"].as_u64().unwrap()).sum::<u64>(), 300 * MIB);
    // To know the holes takes the tables: one block for each of them.
    assert!(registry.blob_bytes() <= 4 * MIB, "{:?}", registry.blob_requests());
    sh("qemu-img convert -f raw -O raw $1 $2; cmp $2 $3", &[&view, &back, &raw]);
    let fetched = registry.blob_bytes();
    // Beside the data and the tables, what reading ahead got of the clusters between two runs.
    assert!((300 * MIB..=340 * MIB).contains(&fetched), "{} MiB", fetched / MIB);
}
