//! Uses of `disk/` and `files/`: streams, machines on a disk, and interrupted downloads that continue.
//!
//! Never about a shape: those are in the files beside this one.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::process::Stdio;

use serde_json::json;

use crate::artifact::{Blob, OS_IMAGE, Packed, QCOW2_PART, Shape};
use crate::byte_text::digest_of;
use crate::encode::gzip;
use crate::fault_registry::Fault;
use crate::layout::CONFIG;
use crate::proc_files::{proc_of, status_bytes};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, sh};
use crate::scratch::Scratch;
use crate::shapes::{DISK_SIZE, qcow2, raw_disk, tar};
use crate::stage::{Stage, read};
use crate::tarball::noise;

/// A gzipped raw disk with a sidecar.
fn gzipped(seed: u64) -> (Packed, Blob, Vec<u8>) {
    let raw = raw_disk(seed);
    let blob = Blob::new("application/vnd.nosi.disk-image.layer.v1+gzip", gzip(&raw)).titled("d.img.gz");
    let note = Blob::new("text/plain", b"sums".as_slice()).titled("d.img.gz.sha256");
    let packed = Shape::artifact("application/vnd.nosi.disk-image.v1+gzip").layer(&blob).layer(&note).pack();
    (packed, blob, raw)
}

#[test]
fn a_disk_in_a_registry_is_the_base_of_one_that_grows() {
    if !able(&[Need::Tool("qemu-img")]) {
        return;
    }
    let (packed, _, raw) = gzipped(40);
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.mount(&[]);
    let disk = mount.join("disk/d.img");
    let overlay = stage.site.scratch().join("overlay.qcow2");
    let copy = stage.site.scratch().join("copy.qcow2");
    let plain = stage.site.scratch().file("plain.img", &raw);
    let script = "qemu-img create -q -f qcow2 -b $1 -F raw $2; qemu-img resize -q $2 +8M; \
                  qemu-io -f qcow2 -c 'write -P 7 9M 64k' $2 > $3.log; \
                  qemu-img convert -q -f raw -O qcow2 $1 $3; qemu-img compare -q -f raw -F qcow2 $4 $3; \
                  qemu-img info --output=json -U $2";
    let info = sh(script, &[&disk, &overlay, &copy, &plain]).text();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"], (DISK_SIZE + (8 << 20)) as u64);
}

#[test]
fn a_pinned_artifact_that_was_read_is_there_again_without_a_request() {
    let (packed, _, raw) = gzipped(41);
    for stage in Stage::both(&packed) {
        let reference = stage.reference(&format!("@{}", packed.digest()));
        let mount = stage.site.mount_at("first", &reference, &[]);
        assert!(read(mount.join("disk/d.img")) == raw);
        drop(read(mount.join("files/d.img.gz")));
        mount.unmount();
        stage.reset();
        let again = stage.site.mount_at("again", &reference, &[]);
        assert!(read(again.join("disk/d.img")) == raw);
        assert_eq!(stage.blob_requests(), []);
        assert_eq!(stage.document_requests(), 0);
    }
}

#[test]
fn another_digest_under_the_same_tag_is_other_bytes_at_the_next_mount() {
    let (old, _, old_raw) = gzipped(42);
    let (new, _, new_raw) = gzipped(43);
    for stage in Stage::both(&old) {
        let mount = stage.mount(&[]);
        assert!(read(mount.join("disk/d.img")) == old_raw);
        stage.push("v1", &new);
        assert_eq!(read(mount.join("manifest.json")), old.bytes);
        assert!(read(mount.join("disk/d.img")) == old_raw);
        let next = stage.site.mount_at("next", &stage.reference(":v1"), &[]);
        assert_eq!(next.digest(), new.digest());
        assert!(read(next.join("disk/d.img")) == new_raw);
    }
}

/// A cloud image of two parts, and the disk they are.
fn two_parts(scratch: &Scratch) -> (Packed, Vec<u8>, Vec<u8>) {
    let raw = raw_disk(44);
    let whole = qcow2(scratch, &raw, "");
    let half = whole.len() / 2;
    let part = |number: usize, bytes: &[u8]| {
        Blob::new(QCOW2_PART, bytes).titled(&format!("d.qcow2.{number:02}.qcow2.part"))
    };
    let packed =
        Shape::artifact(OS_IMAGE).layer(&part(1, &whole[half..])).layer(&part(0, &whole[..half])).pack();
    (packed, whole, raw)
}

#[test]
fn a_disk_is_written_to_standard_output_whole_and_in_order() {
    if !able(&[Need::Tool("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new();
    let (packed, whole, raw) = two_parts(&scratch);
    for stage in Stage::both(&packed) {
        let reference = stage.reference(":v1");
        assert!(stage.site.ocifs(&["cat", &reference, "disk/d.qcow2"]).ok().stdout == whole);
        assert!(stage.site.ocifs(&["cat", &reference, "disk/d.raw"]).ok().stdout == raw);
        // Who reads only the beginning ends it, and nothing is left running.
        let mut command = stage.site.command();
        command.args(["cat", &reference, "disk/d.qcow2"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut head = [0; 4];
        child.stdout.take().unwrap().read_exact(&mut head).unwrap();
        assert_eq!(&head, b"QFI\xfb");
        assert!(becomes_true(CONDITION_TIMEOUT, || child.try_wait().is_ok_and(|it| it.is_some())));
        let words = ["no-such-disk"];
        stage.site.ocifs(&["cat", &reference, "disk/no-such-disk.qcow2"]).refused(&[3], &words);
    }
}

#[test]
fn a_download_that_breaks_and_is_throttled_and_killed_goes_on_where_it_was() {
    let bytes = noise(6 << 20, 45);
    let blob = Blob::new("application/octet-stream", bytes.clone()).titled("d.img");
    let Some(stage) = Stage::strict(&Shape::artifact("application/x.disk").layer(&blob).pack()) else {
        return;
    };
    let mount = stage.mount(&[]);
    stage.fault().set(Fault::TruncateAfter { bytes: 300_000, times: 2 });
    stage.fault().set(Fault::Status { code: 429, times: 1, retry_after: Some("0".into()) });
    let mut half = vec![0; 3 << 20];
    File::open(mount.join("disk/d.img")).unwrap().read_exact_at(&mut half, 0).unwrap();
    assert!(half == bytes[..3 << 20]);
    stage.fault().clear();
    mount.kill();
    let again = stage.site.mount_at("again", &stage.reference(":v1"), &[]);
    // What had been written before the process died is not fetched again; 1 MiB may have been under way.
    stage.costs_at_most(4 << 20, &[&blob], || assert!(read(again.join("disk/d.img")) == bytes));
}

#[test]
fn a_disk_of_many_parts_streams_in_little_memory() {
    let Some(()) = able(&[Need::Root, Need::Fuse]).then_some(()) else { return };
    let parts: Vec<Vec<u8>> = (0..12).map(|part| noise(8 << 20, 50 + part)).collect();
    let blobs: Vec<Blob> = parts
        .iter()
        .enumerate()
        .map(|(number, bytes)| {
            Blob::new("application/x.part", &bytes[..]).titled(&format!("d.raw.{number:02}"))
        })
        .collect();
    let packed = Shape::artifact("application/x.disk").layers(&blobs).pack();
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.mount(&[]);
    let mut file = File::open(mount.join("disk/d.raw")).unwrap();
    let mut piece = vec![0; 8 << 20];
    for part in &parts {
        file.read_exact(&mut piece).unwrap();
        assert!(piece == *part);
    }
    assert_eq!(file.read(&mut piece).unwrap(), 0);
    let peak = status_bytes(&proc_of(mount.pid()), "VmHWM");
    assert!(peak < 80 << 20, "{peak} bytes at the peak for 96 MiB that were read");
}

#[test]
fn names_that_depend_on_content_that_cannot_be_read_are_an_error() {
    let plain = tar(&[("disk/", b""), ("disk/a.img", &raw_disk(50))]);
    let layer = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&plain));
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(&plain)]},
    });
    let packed = Shape::of(CONFIG, config.to_string()).layer(&layer).pack();
    let Some(stage) = Stage::strict(&packed) else { return };
    let pinned = stage.reference(&format!("@{}", packed.digest()));
    let cat = |path: &str| stage.site.ocifs(&["cat", "--timeout=2", &pinned, path]);
    cat("disk/a.img").ok();
    for (code, exit) in [(503, 5), (403, 4)] {
        // The manifest stays.
        std::fs::remove_dir_all(stage.site.cache().join("v1/blobs")).unwrap();
        stage.fault().set(Fault::Status { code, times: u32::MAX, retry_after: None });
        for path in ["disk/a.img", "disk"] {
            cat(path).refused(&[exit], &["sha256:"]);
        }
        if exit == 5 {
            stage.site.mount_refused(&pinned, &["--timeout=2"], &[5], &["sha256:"]);
        }
        stage.fault().clear();
        cat("disk/a.img").ok();
        cat("disk/b.img").refused(&[3], &["disk/b.img"]);
    }
}
