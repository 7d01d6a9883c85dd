//! Everything that qemu's tools do with a disk, on every form in which a disk lies in a registry.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::Value;

use crate::artifact::{self, OS_IMAGE, Piece, QCOW2, QCOW2_PART};
use crate::compare::sha256_of;
use crate::machine::{self, Machine};
use crate::process::{Need, able, run, sh};
use crate::real_registry::RealRegistry;
use crate::scratch::Scratch;
use crate::site::{Mount, Site};
use crate::tarball::noise;

const NEEDS: [Need<'_>; 8] = [
    Need::Root,
    Need::Fuse,
    Need::Tool("docker-registry"),
    Need::Tool("qemu-img"),
    Need::Tool("qemu-io"),
    Need::Tool("qemu-system-x86_64"),
    Need::Tool("gzip"),
    Need::Tool("zstd"),
];

/// A whole raw disk.
const RAW: &str = "application/vnd.cocoonstack.disk.raw";
const MIB: u64 = 1 << 20;
/// What a machine sees.
const SIZE: u64 = 64 * MIB;
/// What of it is not zero: noise at the start and at 40 MiB, a pattern at 24 MiB.
const DATA: u64 = 6 * MIB;

/// The disk as local files.
struct Plain {
    raw: PathBuf,
    qcow2: PathBuf,
}

/// A disk in a mount, and what it is to be compared with.
struct Subject {
    disk: PathBuf,
    format: &'static str,
    plain: Plain,
    /// Whether the tools can know its holes.
    holes: bool,
    // Mounts before the registry, the registry before its files: dropped in this order.
    _mount: Mount,
    _registry: RealRegistry,
    site: Site,
}

#[test]
fn qemu_does_everything_with_a_split_qcow2() {
    every_row("split", |plain| {
        let bytes = fs::read(&plain.qcow2).unwrap();
        let part = |(number, bytes): (usize, &[u8])| {
            Piece::new(&format!("system.qcow2.{number:02}.qcow2.part"), QCOW2_PART, bytes)
        };
        let pieces = bytes.chunks(1 << 20).enumerate().map(part).collect();
        (OS_IMAGE, pieces, "system.qcow2", "qcow2", true)
    });
}

#[test]
fn qemu_does_everything_with_a_raw_disk_as_it_is() {
    every_row("raw", |plain| {
        let pieces = vec![Piece::new("disk.raw", RAW, fs::read(&plain.raw).unwrap())];
        (OS_IMAGE, pieces, "disk.raw", "raw", false)
    });
}

#[test]
fn qemu_does_everything_with_a_raw_disk_in_gzip() {
    every_row("gzip", |plain| {
        let bytes = sh("gzip -9 < $1", &[&plain.raw]).stdout;
        let kind = "application/vnd.nosi.disk-image.v1+gzip";
        let pieces = vec![Piece::new("disk.img.gz", "application/vnd.nosi.disk-image.layer.v1+gzip", bytes)];
        (kind, pieces, "disk.img", "raw", false)
    });
}

#[test]
fn qemu_does_everything_with_a_qcow2_in_zstd() {
    every_row("zstd", |plain| {
        let bytes = sh("zstd -q -c < $1", &[&plain.qcow2]).stdout;
        let kind = "application/vnd.unknown.artifact.v1";
        let pieces = vec![Piece::new("system.qcow2.zst", "application/x-qemu-qcow2+zstd", bytes)];
        (kind, pieces, "system.qcow2", "qcow2", true)
    });
}

#[test]
fn qemu_does_everything_with_the_raw_view_of_a_qcow2() {
    every_row("raw-view", |plain| {
        let pieces = vec![Piece::new("system.qcow2", QCOW2, fs::read(&plain.qcow2).unwrap())];
        (OS_IMAGE, pieces, "system.raw", "raw", true)
    });
}

/// Artifact type, pieces, the name in `disk/`, its format, and whether the tools can know its holes.
type Packed = (&'static str, Vec<Piece>, &'static str, &'static str, bool);

fn every_row(name: &str, pack: impl Fn(&Plain) -> Packed) {
    if !able(&NEEDS) {
        return;
    }
    let subject = subject(name, pack);
    // The first reader of a cold mount is two machines at once.
    two_machines_at_once(&subject);
    a_machine_beside_sha256sum(&subject);
    info(&subject);
    map(&subject);
    check(&subject);
    convert(&subject);
    compare(&subject);
    rebase(&subject);
    qemu_io(&subject);
    machines(&subject);
    writing_is_refused(&subject);
}

fn subject(name: &str, pack: impl Fn(&Plain) -> Packed) -> Subject {
    let site = Site::new();
    let plain = plain(site.scratch());
    let registry = RealRegistry::start();
    let (kind, pieces, file, format, holes) = pack(&plain);
    let repository = format!("qemu/{name}");
    artifact::push(&registry, &repository, "v1", kind, &pieces);
    let mount = site.mount(&registry.reference(&format!("{repository}:v1")), &[]);
    let disk = mount.join("disk").join(file);
    assert!(disk.exists(), "there is no {disk:?}: {}", mount.status());
    Subject { disk, format, plain, holes, _mount: mount, _registry: registry, site }
}

fn plain(scratch: &Scratch) -> Plain {
    let (raw, qcow2) = (scratch.join("plain.raw"), scratch.join("plain.qcow2"));
    let file = File::create(&raw).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(&noise(3 << 20, 1), 0).unwrap();
    file.write_all_at(&[0x5a; 1 << 20], 24 * MIB).unwrap();
    file.write_all_at(&noise(2 << 20, 2), 40 * MIB).unwrap();
    sh("qemu-img convert -q -f raw -O qcow2 $1 $2", &[&raw, &qcow2]);
    Plain { raw, qcow2 }
}

impl Subject {
    fn drive(&self, more: &str) -> String {
        format!("file={},format={}{more}", self.disk.display(), self.format)
    }

    fn made(&self, name: &str) -> PathBuf {
        self.site.scratch().join(name)
    }

    /// An empty overlay of the disk.
    fn overlay(&self, name: &str) -> PathBuf {
        let overlay = self.made(name);
        sh("qemu-img create -q -f qcow2 -b $1 -F $2 $3", &[&self.disk, &self.format, &overlay]);
        overlay
    }

    /// The same bytes as a file of this format on a local disk.
    fn local(&self) -> &Path {
        if self.format == "raw" { &self.plain.raw } else { &self.plain.qcow2 }
    }
}

fn info(subject: &Subject) {
    let output = sh("qemu-img info --output=json -f $1 $2", &[&subject.format, &subject.disk]).text();
    let output: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(
        (output["virtual-size"].as_u64(), output["format"].as_str()),
        (Some(SIZE), Some(subject.format))
    );
    // Without a word about the format it finds the same.
    let probed = sh("qemu-img info --output=json $1", &[&subject.disk]).text();
    let probed: Value = serde_json::from_str(&probed).unwrap();
    assert_eq!(probed["format"].as_str(), Some(subject.format));
}

fn map(subject: &Subject) {
    let output = sh("qemu-img map --output=json -f $1 $2", &[&subject.format, &subject.disk]).text();
    let output: Vec<Value> = serde_json::from_str(&output).unwrap();
    let length = |extent: &Value| extent["length"].as_u64().unwrap();
    assert_eq!(output.iter().map(length).sum::<u64>(), SIZE);
    let data: u64 = output.iter().filter(|extent| extent["data"] == true).map(length).sum();
    assert!(data >= DATA, "{output:?}");
    assert!(!subject.holes || data == DATA, "{output:?}");
}

fn check(subject: &Subject) {
    let mut command = Command::new("qemu-img");
    let finished = run(command.args(["check", "-f", subject.format]).arg(&subject.disk));
    // 63: the format has nothing that could be checked.
    assert_eq!(finished.code, Some(if subject.format == "raw" { 63 } else { 0 }), "{}", finished.stderr);
}

fn convert(subject: &Subject) {
    let back = subject.made("back.raw");
    // -T none reads past the page cache.
    for cache in ["none", "writeback"] {
        let script = "qemu-img convert -q -T $4 -f $1 -O raw $2 $3; cmp $3 $5";
        sh(script, &[&subject.format, &subject.disk, &back, &cache, &subject.plain.raw]);
        fs::remove_file(&back).unwrap();
    }
}

fn compare(subject: &Subject) {
    // With -s the holes have to be the same, too.
    let strict = if subject.holes { "-s" } else { "-p" };
    let script = "qemu-img compare $5 -f $1 -F $1 $2 $3 > $6; qemu-img compare -q -f $1 -F raw $2 $4";
    let (local, output) = (subject.local(), subject.made("said"));
    sh(script, &[&subject.format, &subject.disk, &local, &subject.plain.raw, &strict, &output]);
}

/// An overlay that was begun over the mount goes on without it, and keeps what it saw there.
fn rebase(subject: &Subject) {
    let overlay = subject.overlay("rebased.qcow2");
    let script = "qemu-io -f qcow2 -c 'write -P 7 24M 64k' $1 > $4; \
                  qemu-img rebase -f qcow2 -b $2 -F $3 $1; qemu-img check -q -f qcow2 $1; \
                  qemu-io -f qcow2 -c 'read -P 7 24M 64k' -c 'read -P 0x5a 24640k 512k' $1 >> $4; \
                  ! grep -i failed $4; qemu-img rebase -f qcow2 -b '' $1; qemu-img info $1";
    let output = sh(script, &[&overlay, &subject.local(), &subject.format, &subject.made("said")]).text();
    assert!(!output.contains("backing file:"), "{output}");
    let (same, expected) = (subject.made("same.raw"), &subject.plain.raw);
    let script = "cp --sparse=always $1 $2; \
                  qemu-io -f raw -c 'write -P 7 24M 64k' $2 > /dev/null; qemu-img compare -q -f qcow2 -F raw $3 $2";
    sh(script, &[expected, &same, &overlay]);
    fs::remove_file(same).unwrap();
}

/// Past the page cache, with each of the kernel's asynchronous interfaces, at sizes that are not the mount's.
fn qemu_io(subject: &Subject) {
    let script = "for how in '-t none -i native' '-t none -i io_uring' '-t none -i threads' '-t writeback'; do \
                  qemu-io -r $how -f $1 -c 'read -P 0x5a 24M 1M' -c 'read -P 0 8M 15M' -c 'read 512 3584' \
                  -c 'read -P 0x5a 25165312 512' -c 'read 39M 3M' -c 'aio_read -P 0x5a 24M 512k' \
                  -c 'aio_read 0 1M' -c 'aio_read -P 0x5a 24704k 4k' -c aio_flush $2 || true; done";
    // The block before the pattern is not the pattern: qemu-io has to be able to tell.
    let mut command = Command::new("bash");
    command.args(["-euc", script, "sh", subject.format]).arg(&subject.disk);
    let finished = run(&mut command);
    let output = finished.text() + &finished.stderr;
    assert_eq!(output.matches("Pattern verification failed at offset 25165312").count(), 4, "{output}");
    assert_eq!(output.matches("failed").count(), 4, "{output}");
    assert_eq!(output.matches(" bytes at offset ").count(), 4 * 8, "{output}");
}

/// The three ways in which a machine can have a disk that it may not write.
fn machines(subject: &Subject) {
    let overlay = subject.overlay("machine.qcow2");
    let over = format!("file={},format=qcow2", overlay.display());
    let drives = [
        (subject.drive(",snapshot=on"), true),
        (subject.drive(",readonly=on"), false),
        (subject.drive(",readonly=on,cache=none,aio=native"), false),
        (subject.drive(",readonly=on,cache=none,aio=io_uring"), false),
        (over, true),
    ];
    for (drive, writable) in drives {
        let mut machine = Machine::with(&drive);
        machine.io("read -P 0x5a 24M 1M");
        machine.io("read -P 0 30M 10M");
        machine.io("read 0 3M");
        if writable {
            machine.io("write -P 9 24M 64k");
            machine.io("read -P 9 24M 64k");
            machine.io("read -P 0x5a 24640k 960k");
        }
        machine.end();
    }
    // Nothing of it reached the disk.
    compare(subject);
}

fn two_machines_at_once(subject: &Subject) {
    let drives = [subject.drive(",readonly=on"), subject.drive(",snapshot=on,cache=none,aio=native")];
    let mut machines: Vec<Machine> = drives.iter().map(|drive| Machine::with(drive)).collect();
    thread::scope(|scope| {
        for machine in &mut machines {
            scope.spawn(|| {
                for _ in 0..3 {
                    machine.io("read -P 0x5a 24M 1M");
                    machine.io("read 40M 2M");
                    machine.io("read -P 0 8M 8M");
                }
            });
        }
    });
    machines.into_iter().for_each(Machine::end);
}

fn a_machine_beside_sha256sum(subject: &Subject) {
    let mut machine = Machine::with(&subject.drive(",readonly=on"));
    thread::scope(|scope| {
        let sums = scope.spawn(|| sh("sha256sum < $1", &[&subject.disk]).text());
        for _ in 0..5 {
            machine.io("read -P 0x5a 24M 1M");
            machine.io("read 0 3M");
        }
        let (theirs, ours) = (sums.join().unwrap(), sha256_of(subject.local()).unwrap());
        assert!(theirs.starts_with(&ours), "{theirs} is not {ours}");
    });
    machine.end();
}

/// Whoever asks for more than reading is told that it is a read-only file system.
fn writing_is_refused(subject: &Subject) {
    let refused = "Read-only file system";
    run(&mut machine::command(&subject.drive(""))).refused(&[1], &[refused]);
    let mut command = Command::new("qemu-io");
    command.args(["-f", subject.format, "-c", "write 0 64k"]).arg(&subject.disk);
    run(&mut command).refused(&[1], &[refused]);
    compare(subject);
}
