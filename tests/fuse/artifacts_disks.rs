//! Disks in every packaging that is pushed: each is in `disk/` as the bytes that its producer started from.
//!
//! Never compared with what ocifs says of itself: the raw disk that a test makes is what has to come out, however it was cut
//! and compressed on the way.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::artifact::{Blob, Bundle, OS_IMAGE, Packed, QCOW2_PART, Shape};
use crate::artifacts::small_image;
use crate::byte_text::digest_of;
use crate::encode::gzip;
use crate::golden::Golden;
use crate::layout::CONFIG;
use crate::process::{Need, able};
use crate::scratch::Scratch;
use crate::shapes::{DISK_SIZE, hole, qcow2, raw_disk, sum_line, tar, through, zstd};
use crate::shapes_lz4::{apple, frame};
use crate::stage::{BLOCK, Stage, read};

/// Cuts bytes into pieces of this size.
fn cut(bytes: &[u8], size: usize) -> Vec<&[u8]> {
    bytes.chunks(size).collect()
}

#[test]
fn an_epoch_image_is_its_parts_and_the_disk_they_make() {
    if !able(&[Need::Tool("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new();
    let raw = raw_disk(4);
    // As the Windows builder converts them: clusters compressed with zlib.
    let whole = qcow2(&scratch, &raw, "-c");
    let mut sums = String::new();
    let mut parts: Vec<Blob> = Vec::new();
    for (number, piece) in cut(&whole, 100_000).into_iter().enumerate() {
        let title = format!("windows-11-25h2.qcow2.{number:02}.qcow2.part");
        sums.push_str(&sum_line(&title, piece));
        parts.push(Blob::new(QCOW2_PART, piece).titled(&title));
    }
    assert!(parts.len() > 2);
    let sums = Blob::new("text/plain", sums).titled("SHA256SUMS");
    for kind in [OS_IMAGE, "application/vnd.cocoonstack.windows-image.v1+json"] {
        // 01, SHA256SUMS, 00, 02, ...: titles put them in order, not the manifest.
        let shape = Shape::artifact(kind).layer(&parts[1]).layer(&sums).layer(&parts[0]).layers(&parts[2..]);
        let packed = shape
            .note("cocoonstack.os.name", "windows-11")
            .note("cocoonstack.disk.format", "qcow2")
            .note("cocoonstack.disk.reassemble", "cat windows-11-25h2.*.qcow2.part > windows-11-25h2.qcow2")
            .pack();
        let mut golden = Golden::of(&packed)
            .disk("windows-11-25h2.qcow2", &whole)
            .disk("windows-11-25h2.raw", &raw)
            .file("files/SHA256SUMS", &sums.bytes);
        for (number, part) in parts.iter().enumerate() {
            golden = golden.file(&format!("files/windows-11-25h2.qcow2.{number:02}.qcow2.part"), &part.bytes);
        }
        for stage in Stage::both(&packed) {
            let mount = stage.mount_for(&[], &[]);
            stage.costs(&[&sums], || assert!(read(mount.join("files/SHA256SUMS")) == sums.bytes));
            golden.check(mount.dir());
            let info = String::from_utf8(read(mount.join("disk/info.json"))).unwrap();
            assert!(info.contains(&DISK_SIZE.to_string()) && info.contains("qcow2"), "{info}");
        }
    }
}

/// Sparse as cocoon packs it: the data alone, and a map of where it belongs.
fn packed_sparsely(raw: &[u8]) -> (Vec<u8>, String) {
    let (first, last) = (hole().start, hole().end);
    let map = json!([{"o": 0, "l": first}, {"o": last, "l": raw.len() - last}]).to_string();
    ([&raw[..first], &raw[last..]].concat(), map)
}

#[test]
fn an_epoch_snapshot_is_its_files_with_their_holes() {
    let memory = raw_disk(5);
    let (stored, map) = packed_sparsely(&memory);
    let vm = |name: &str| format!("application/vnd.cocoonstack.vm.{name}");
    let files = [
        (Blob::new(&vm("config+json"), br#"{"cpus":2}"#.as_slice()), "config.json", 0o644),
        (Blob::new(&vm("state+json"), br#"{"state":"paused"}"#.as_slice()), "state.json", 0o600),
        (Blob::new(&vm("memory"), stored), "memory-ranges", 0o600),
        (Blob::new(&vm("cidata"), b"iso".as_slice()), "cidata.img", 0o644),
    ];
    let mut recorded = json!({});
    for (_, name, mode) in &files {
        recorded[name] = json!({"mode": mode});
    }
    recorded["memory-ranges"]["sparseMap"] = map.into();
    recorded["memory-ranges"]["sparseSize"] = memory.len().into();
    let config = json!({"schemaVersion": "v1", "snapshotId": "s-1", "cpu": 2, "files": recorded}).to_string();
    let mut shape = Shape::of("application/vnd.cocoonstack.snapshot.config.v1+json", config)
        .kind("application/vnd.cocoonstack.snapshot.v1+json")
        .note("cocoonstack.snapshot.id", "s-1")
        .note("cocoonstack.snapshot.baseimage", "ubuntu:24.04");
    for (blob, name, _) in &files {
        shape = shape.layer(&blob.clone().titled(name));
    }
    let packed = shape.pack();
    let config = packed.config().unwrap().clone();
    let golden = Golden::of(&packed).tree(
        "files",
        &[
            ("config.json", &files[0].0.bytes),
            ("state.json", &files[1].0.bytes),
            ("memory-ranges", &memory),
            ("cidata.img", b"iso"),
        ],
    );
    for stage in Stage::both(&packed) {
        let mount = stage.mount_for(&[&config], &[]);
        for (_, name, mode) in &files {
            let stat = std::fs::metadata(mount.join("files").join(name)).unwrap();
            assert_eq!(stat.mode() & 0o7777, *mode, "{name}");
        }
        stage.costs(&[&files[2].0], || assert!(read(mount.join("files/memory-ranges")) == memory));
        let file = File::open(mount.join("files/memory-ranges")).unwrap();
        assert_eq!(seek(&file, 0, libc::SEEK_HOLE), hole().start as i64);
        assert_eq!(seek(&file, hole().start as i64, libc::SEEK_DATA), hole().end as i64);
        let data = file.metadata().unwrap().blocks() * 512;
        assert!(data < (DISK_SIZE / 2) as u64, "{data} bytes are said to be data");
        golden.check(mount.dir());
    }
}

fn seek(file: &File, offset: i64, whence: i32) -> i64 {
    let whence = match whence {
        libc::SEEK_HOLE => nix::unistd::Whence::SeekHole,
        _ => nix::unistd::Whence::SeekData,
    };
    nix::unistd::lseek(file, offset, whence).unwrap()
}

#[test]
fn snapshot_overlay_with_a_host_backing_file_is_reported() {
    if !able(&[Need::Tool("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new();
    let overlay = scratch.join("overlay.qcow2");
    crate::process::sh("qemu-img create -q -f qcow2 -u -b /var/lib/base.qcow2 -F qcow2 $1 1M", &[&overlay]);
    let bytes = read(overlay);
    let layer = Blob::new("application/vnd.cocoonstack.disk.qcow2", bytes.clone()).titled("overlay.qcow2");
    let config = json!({"schemaVersion": "v1", "files": {"overlay.qcow2": {"mode": 420}}}).to_string();
    let packed = Shape::of("application/vnd.cocoonstack.snapshot.config.v1+json", config)
        .kind("application/vnd.cocoonstack.snapshot.v1+json")
        .layer(&layer)
        .pack();
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.mount(&[]);
    assert!(read(mount.join("files/overlay.qcow2")) == bytes);
    let disk = mount.join("disk/overlay.qcow2");
    assert_ne!(File::open(&disk).map(|_| ()).unwrap_err().raw_os_error(), None);
    let info = String::from_utf8(read(mount.join("disk/info.json"))).unwrap();
    assert!(info.contains("/var/lib/base.qcow2"), "{info}");
    assert!(!mount.join("disk/overlay.raw").exists());
}

#[test]
fn a_nosi_disk_is_its_five_files_and_the_decoded_image() {
    let raw = raw_disk(6);
    let name = "nosi-debian-13-x86_64.img.gz";
    let disk = Blob::new("application/vnd.nosi.disk-image.layer.v1+gzip", gzip(&raw)).titled(name);
    let report = b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let files = [
        disk.clone(),
        Blob::new("text/plain", sum_line(name, &disk.bytes)).titled(&format!("{name}.sha256")),
        Blob::new("application/vnd.nosi.build-report.v1+zip", report.as_slice())
            .titled("nosi-debian-13.report.zip"),
        Blob::new("text/plain", sum_line("nosi-debian-13.report.zip", report))
            .titled("nosi-debian-13.report.zip.sha256"),
        Blob::new("application/vnd.nosi.metadata.v1+json", br#"{"distro":"debian"}"#.as_slice())
            .titled("nosi-debian-13.metadata.json"),
    ];
    let packed = Shape::artifact("application/vnd.nosi.disk-image.v1+gzip")
        .layers(&files)
        .note("org.opencontainers.image.title", "nosi-debian-13")
        .note("org.opencontainers.image.architecture", "amd64")
        .note("dev.nosi.shape", "disk")
        .pack();
    let golden = Golden::of(&packed)
        .tree(
            "files",
            &[
                (name, &files[0].bytes),
                ("nosi-debian-13-x86_64.img.gz.sha256", &files[1].bytes),
                ("nosi-debian-13.report.zip", &files[2].bytes),
                ("nosi-debian-13.report.zip.sha256", &files[3].bytes),
                ("nosi-debian-13.metadata.json", &files[4].bytes),
            ],
        )
        .disk("nosi-debian-13-x86_64.img", &raw);
    for stage in Stage::both(&packed) {
        let mount = stage.mount_for(&[], &[]);
        stage.costs(&[&files[4]], || drop(read(mount.join("files/nosi-debian-13.metadata.json"))));
        stage.costs(&[&disk], || assert!(read(mount.join("disk/nosi-debian-13-x86_64.img")) == raw));
        let file = File::open(mount.join("disk/nosi-debian-13-x86_64.img")).unwrap();
        let found = seek(&file, 0, libc::SEEK_HOLE);
        assert!((found as usize) < DISK_SIZE, "the zeros of a decoded disk are no hole");
        golden.check(mount.dir());
    }
}

/// One provider's disk of podman's machine, as an artifact of one layer.
fn machine(provider: &str, disk: &[u8], name: &str) -> (Packed, Blob, Value) {
    let layer = Blob::new("application/zstd", zstd(disk)).titled(name);
    let packed = Shape::artifact("").layer(&layer).pack();
    let more = json!({
        "platform": {"os": "linux", "architecture": "x86_64"},
        "annotations": {"disktype": provider},
    });
    (packed, layer, more)
}

#[test]
fn a_podman_machine_is_one_tree_for_each_provider() {
    if !able(&[Need::Tool("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new();
    let raw = raw_disk(7);
    let whole = qcow2(&scratch, &raw, "");
    let (qemu, qemu_layer, qemu_more) = machine("qemu", &whole, "podman-machine.x86_64.qemu.qcow2.zst");
    let (apple, apple_layer, apple_more) = machine("applehv", &raw, "podman-machine.x86_64.applehv.raw.zst");
    let (bootc, bootc_tree) = small_image("linux", "arm64", "bootc");
    let packed = Bundle::default()
        .entry(&bootc, json!({"platform": {"os": "linux", "architecture": "arm64"}}))
        .entry(&qemu, qemu_more)
        .entry(&apple, apple_more)
        .pack();
    let qemu_tree = Golden::of(&qemu)
        .file("files/podman-machine.x86_64.qemu.qcow2.zst", &qemu_layer.bytes)
        .disk("podman-machine.x86_64.qemu.qcow2", &whole)
        .disk("podman-machine.x86_64.qemu.raw", &raw);
    let apple_tree = Golden::of(&apple)
        .file("files/podman-machine.x86_64.applehv.raw.zst", &apple_layer.bytes)
        .disk("podman-machine.x86_64.applehv.raw", &raw);
    for stage in Stage::both(&packed) {
        let all = stage.mount_for(&[], &["--platform", "all"]);
        bootc_tree.check(&all.join("platforms/linux-arm64"));
        qemu_tree.check(&all.join("platforms/linux-amd64-qemu"));
        apple_tree.check(&all.join("platforms/linux-amd64-applehv"));
        let reference = stage.reference(":v1");
        let one = stage.site.mount_at("one", &reference, &["--select", "disktype=qemu"]);
        assert!(read(one.join("disk/podman-machine.x86_64.qemu.qcow2")) == whole);
        // Two fit: neither is taken, both are named.
        let words = [qemu.digest(), apple.digest()];
        let words: Vec<&str> = words.iter().map(|digest| &digest[..19]).collect();
        stage.site.mount_refused(&reference, &["--platform", "linux/amd64"], &[2, 3, 6], &words);
    }
}

#[test]
fn the_one_file_of_a_container_disk_is_the_disk() {
    if !able(&[Need::Tool("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new();
    let raw = raw_disk(9);
    let whole = qcow2(&scratch, &raw, "");
    for (prefix, stored) in [("", true), ("./", false)] {
        let plain = tar(&[(&format!("{prefix}disk/"), b""), (&format!("{prefix}disk/fedora.qcow2"), &whole)]);
        let layer = if stored {
            Blob::new("application/vnd.oci.image.layer.v1.tar", plain.clone())
        } else {
            Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&plain))
        };
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(&plain)]},
        });
        let packed = Shape::of(CONFIG, config.to_string()).layer(&layer).pack();
        let golden = Golden::of(&packed)
            .layer(0, &layer, if stored { ".tar" } else { ".tar.gz" }, &[("disk/fedora.qcow2", &whole)])
            .tree("merged", &[("disk/fedora.qcow2", &whole)])
            .disk("fedora.qcow2", &whole)
            .disk("fedora.raw", &raw);
        let Some(stage) = Stage::strict(&packed) else { return };
        // An image that runs nothing is looked at: its config, and the head of its only layer.
        let config = packed.config().unwrap().clone();
        golden.check(stage.mount_for(&[&config, &layer], &[]).dir());
    }
}

#[test]
fn every_file_of_a_container_disk_is_a_disk_whatever_the_image_runs() {
    let (first, second) = (raw_disk(21), raw_disk(22));
    let plain = tar(&[
        (".no.prefetch.landmark", b"\x0f"),
        ("etc/", b""),
        ("disk/", b""),
        ("disk/a.img", &first),
        ("disk/b.raw", &second),
    ]);
    let layer = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&plain));
    let small = tar(&[("etc/motd", b"hello")]);
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": {"Entrypoint": ["no-entrypoint"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(&plain), digest_of(&small)]},
    });
    let packed = Shape::of(CONFIG, config.to_string())
        .layer(&layer)
        .layer(&Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&small)))
        .pack();
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.mount(&[]);
    let mut names: Vec<_> = std::fs::read_dir(mount.join("disk"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["a.img", "b.raw", "info.json"]);
    assert!(read(mount.join("disk/a.img")) == first && read(mount.join("disk/b.raw")) == second);
}

#[test]
fn an_image_file_that_is_a_qcow2_has_its_raw_form() {
    if !able(&[Need::Tool("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new();
    let raw = raw_disk(23);
    let whole = qcow2(&scratch, &raw, "");
    let layer = Blob::new("application/octet-stream", whole.clone()).titled("noble-cloudimg-amd64.img");
    let packed = Shape::artifact("application/vnd.unknown.artifact.v1").layer(&layer).pack();
    let golden = Golden::of(&packed)
        .file("files/noble-cloudimg-amd64.img", &whole)
        .disk("noble-cloudimg-amd64.img", &whole)
        .disk("noble-cloudimg-amd64.raw", &raw);
    for stage in Stage::both(&packed) {
        golden.check(stage.mount(&[]).dir());
    }
}

#[test]
fn a_kubevirt_export_is_all_its_disks() {
    let (root, data) = (raw_disk(11), raw_disk(12));
    let disk = |name: &str, bytes: &[u8]| {
        Blob::new("application/vnd.kubevirt.disk.raw+zstd", zstd(bytes))
            .titled(&format!("{name}.raw.zst"))
            .note("io.kubevirt.disk.name", name)
            .note("io.kubevirt.pvc.capacity", "2Mi")
            .note("io.kubevirt.pvc.volumeMode", "Filesystem")
    };
    let (first, second) = (disk("rootdisk", &root), disk("datadisk", &data));
    let manifest = Shape::of(
        "application/vnd.kubevirt.virtualmachine.config.v1+json",
        br#"{"kind":"VirtualMachine"}"#.as_slice(),
    )
    .kind("application/vnd.kubevirt.virtualmachine.v1")
    .layer(&first)
    .layer(&second)
    .pack();
    let packed = Bundle::default()
        .kind("application/vnd.kubevirt.virtualmachine.v1")
        .entry(&manifest, json!({"platform": {"os": "linux", "architecture": "amd64"}}))
        .pack();
    let golden = Golden::of(&manifest)
        .file("index.json", &packed.bytes)
        .file("files/rootdisk.raw.zst", &first.bytes)
        .file("files/datadisk.raw.zst", &second.bytes)
        .disk("rootdisk.raw", &root)
        .disk("datadisk.raw", &data);
    for stage in Stage::both(&packed) {
        let mount = stage.mount_for(&[], &["--platform", "linux/amd64"]);
        stage.costs(&[&second], || assert!(read(mount.join("disk/datadisk.raw")) == data));
        golden.check(mount.dir());
    }
}

/// The config that tart and vetu push: it looks like that of an image and is none.
const STUB: &[u8] =
    br#"{"architecture":"arm64","os":"darwin","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#;

#[test]
fn a_tart_machine_is_one_disk_of_chunks_and_never_a_tree() {
    let raw = raw_disk(13);
    let chunks: Vec<Blob> = cut(&raw, 600_000)
        .into_iter()
        .map(|chunk| {
            Blob::new("application/vnd.cirruslabs.tart.disk.v2", apple(chunk))
                .note("org.cirruslabs.tart.uncompressed-size", &chunk.len().to_string())
                .note("org.cirruslabs.tart.uncompressed-content-digest", &digest_of(chunk))
        })
        .collect();
    let config =
        Blob::new("application/vnd.cirruslabs.tart.config.v1", br#"{"version":1,"os":"darwin"}"#.as_slice());
    let nvram = Blob::new("application/vnd.cirruslabs.tart.nvram.v1", b"nvram".as_slice());
    let packed = Shape::of(CONFIG, STUB)
        .layer(&config)
        .layers(&chunks)
        .layer(&nvram)
        .note("org.cirruslabs.tart.uncompressed-disk-size", &raw.len().to_string())
        .pack();
    let golden = Golden::of(&packed)
        .file("files/config.json", &config.bytes)
        .file("files/nvram.bin", b"nvram")
        .disk("disk.raw", &raw);
    for stage in Stage::both(&packed) {
        let mount = stage.mount_for(&[], &[]);
        // The size is written in the manifest, and the last chunk is found without the ones before it.
        // The first chunk tells whether the disk may be given out.
        stage.costs(&[&chunks[0], &chunks[3]], || {
            assert_eq!(mount.join("disk/disk.raw").metadata().unwrap().len(), raw.len() as u64);
            let file = File::open(mount.join("disk/disk.raw")).unwrap();
            let mut tail = vec![0; 4096];
            use std::os::unix::fs::FileExt as _;
            file.read_exact_at(&mut tail, 1_900_000).unwrap();
            assert!(tail == raw[1_900_000..1_904_096]);
        });
        golden.check(mount.dir());
    }
}

#[test]
fn a_vetu_machine_has_its_disks_by_name_and_its_kernel() {
    let (system, data) = (raw_disk(14), raw_disk(15));
    let chunk = |name: &str, bytes: &[u8]| {
        Blob::new("application/vnd.cirruslabs.vetu.disk.v1", frame(bytes))
            .note("org.cirruslabs.vetu.name", name)
            .note("org.cirruslabs.vetu.uncompressed-size", &bytes.len().to_string())
            .note("org.cirruslabs.vetu.uncompressed-digest", &digest_of(bytes))
    };
    let kind = |name: &str| format!("application/vnd.cirruslabs.vetu.{name}.v1");
    let files = [
        Blob::new(&kind("config"), br#"{"version":1}"#.as_slice()),
        Blob::new(&kind("kernel"), b"kernel".as_slice()),
        Blob::new(&kind("initramfs"), b"initramfs".as_slice()),
    ];
    let half = DISK_SIZE / 2;
    let packed = Shape::of(CONFIG, STUB)
        .layers(&files)
        .layer(&chunk("disk.img", &system[..half]))
        .layer(&chunk("disk.img", &system[half..]))
        .layer(&chunk("data.img", &data))
        .pack();
    let golden = Golden::of(&packed)
        .tree(
            "files",
            &[("config.json", &files[0].bytes), ("kernel", b"kernel"), ("initramfs", b"initramfs")],
        )
        .disk("disk.img", &system)
        .disk("data.img", &data);
    let Some(stage) = Stage::strict(&packed) else { return };
    golden.check(stage.mount_for(&[], &[]).dir());
}

#[test]
fn lume_machines_of_every_age_are_one_disk() {
    let raw = raw_disk(16);
    let config = Blob::new("application/vnd.oci.image.config.v1+json", br#"{"os":"macOS"}"#.as_slice())
        .titled("config.json");
    let nvram = Blob::new("application/octet-stream", b"nvram".as_slice()).titled("nvram.bin");
    let pieces = cut(&raw, 700_000);
    let total = pieces.len().to_string();
    // Gzip chunks with offsets, listed backwards.
    let mut offset = 0;
    let mut chunked: Vec<(String, Blob)> = Vec::new();
    for (number, piece) in pieces.iter().enumerate() {
        let title = format!("disk.img.part.{}", number + 1);
        let blob = Blob::new("application/vnd.trycua.lume.disk.v1", gzip(piece))
            .note("org.trycua.lume.part.number", &(number + 1).to_string())
            .note("org.trycua.lume.part.total", &total)
            .note("org.trycua.lume.part.offset", &offset.to_string())
            .note("org.trycua.lume.content.uncompressed-size", &piece.len().to_string())
            .titled(&title);
        chunked.insert(0, (title, blob));
        offset += piece.len();
    }
    let lume_nvram =
        Blob::new("application/vnd.trycua.lume.nvram.v1", b"nvram".as_slice()).titled("nvram.bin");
    let new = Shape::of("application/vnd.trycua.lume.config.v1+json", br#"{"os":"macOS"}"#.as_slice())
        .layers(chunked.iter().map(|(_, blob)| blob))
        .layer(&lume_nvram)
        .note("org.trycua.lume.disk-size", &raw.len().to_string())
        .pack();
    let mut golden = Golden::of(&new).file("files/nvram.bin", b"nvram").disk("disk.img", &raw);
    for (title, blob) in &chunked {
        golden = golden.file(&format!("files/{title}"), &blob.bytes);
    }
    if let Some(stage) = Stage::strict(&new) {
        golden.check(stage.mount_for(&[], &[]).dir());
    }
    // Parts by parameters of the media type: plain bytes, whatever the label says.
    for label in ["application/vnd.oci.image.layer.v1.tar", "application/octet-stream+lzfse"] {
        let mut shards: Vec<(String, Blob)> = Vec::new();
        for (number, piece) in pieces.iter().enumerate() {
            let title = format!("disk.img.part.a{}", char::from(b'a' + number as u8));
            let kind = format!("{label};part.number={};part.total={total}", number + 1);
            shards.push((title.clone(), Blob::new(&kind, *piece).titled(&title)));
        }
        shards.swap(0, 1);
        let old = Shape::of(crate::artifact::EMPTY.0, crate::artifact::EMPTY.1)
            .layer(&config)
            .layers(shards.iter().map(|(_, blob)| blob))
            .layer(&nvram)
            .pack();
        let mut golden = Golden::of(&old)
            .file("files/config.json", &config.bytes)
            .file("files/nvram.bin", b"nvram")
            .disk("disk.img", &raw);
        for (title, blob) in &shards {
            golden = golden.file(&format!("files/{title}"), &blob.bytes);
        }
        let Some(stage) = Stage::strict(&old) else { return };
        golden.check(stage.mount_for(&[], &[]).dir());
    }
    // A part that is missing makes no disk.
    let gap = Shape::of("application/vnd.trycua.lume.config.v1+json", b"{}".as_slice())
        .layers(chunked.iter().skip(1).map(|(_, blob)| blob))
        .pack();
    let Some(stage) = Stage::strict(&gap) else { return };
    let mount = stage.mount(&[]);
    assert!(!mount.join("disk/disk.img").exists());
    let info = String::from_utf8(read(mount.join("disk/info.json"))).unwrap();
    assert!(info.contains("disk.img"), "{info}");
}

/// A piece of a file as geranos pushes it: the range has its last byte in it.
fn segment(name: &str, start: usize, plain: &[u8], stored: Vec<u8>) -> Blob {
    Blob::new("application/online.jarosik.tomasz.geranos.segment", stored)
        .note("filename", name)
        .note("range", &format!("{start}-{}", start + plain.len() - 1))
}

#[test]
fn geranos_segments_are_the_files_they_were_cut_from() {
    let disk = raw_disk(17);
    let config = br#"{"cpu":4}"#;
    let Some(()) = able(&[Need::Root, Need::Fuse]).then_some(()) else { return };
    // The tool compresses every segment with zstd; a segment that is stored plain is as good.
    for pack in [zstd as fn(&[u8]) -> Vec<u8>, <[u8]>::to_vec] {
        let third = 700_000;
        let mut segments: Vec<Blob> = cut(&disk, third)
            .into_iter()
            .enumerate()
            .map(|(number, piece)| segment("disk.img", number * third, piece, pack(piece)))
            .collect();
        segments.swap(0, 2);
        let packed = Shape::of(CONFIG, STUB)
            .layers(&segments)
            .layer(&segment("config.json", 0, config, pack(config)))
            .pack();
        let golden = Golden::of(&packed)
            .file("files/disk.img", &disk)
            .file("files/config.json", config)
            .disk("disk.img", &disk);
        let Some(stage) = Stage::strict(&packed) else { return };
        golden.check(stage.mount_for(&[], &[]).dir());
        // A hole between segments is nobody's zeros.
        let torn = Shape::of(CONFIG, STUB).layer(&segments[0]).layer(&segments[2]).pack();
        stage.push("torn", &torn);
        let mount = stage.site.mount_at("torn", &stage.reference(":torn"), &[]);
        assert!(std::fs::read(mount.join("files/disk.img")).is_err());
        assert!(mount.status().contains("disk.img"), "{}", mount.status());
    }
}

#[test]
fn a_disk_of_oras_is_there_decoded_whatever_it_is_compressed_with() {
    let tools = ["qemu-img", "xz", "bzip2"].map(Need::Tool);
    if !able(&tools) {
        return;
    }
    let scratch = Scratch::new();
    let raw = raw_disk(18);
    let whole = qcow2(&scratch, &raw, "-o compression_type=zstd -c");
    let layers = [
        Blob::new("application/x-qemu-qcow2+zstd", zstd(&whole)).titled("fedora-bootc-cloud-eln.qcow2.zst"),
        Blob::new("application/octet-stream", through(&scratch, "xz -T2 --block-size=256KiB -c", &raw))
            .titled("images/a.img.xz"),
        Blob::new("application/octet-stream", gzip(&raw)).titled("b.raw.gz"),
        Blob::new("application/octet-stream", through(&scratch, "bzip2 -c", &raw)).titled("c.img.bz2"),
        Blob::new("application/octet-stream", frame(&raw)).titled("d.img.lz4"),
        Blob::new("application/vnd.oci.image.layer.v1.tar", whole.clone()).titled("plain.qcow2"),
        Blob::new("text/markdown", b"# disks".as_slice()).titled("README.md"),
    ];
    let packed = Shape::artifact("application/vnd.unknown.artifact.v1").layers(&layers).pack();
    let golden = Golden::of(&packed)
        .tree(
            "files",
            &[
                ("fedora-bootc-cloud-eln.qcow2.zst", &layers[0].bytes),
                ("images/a.img.xz", &layers[1].bytes),
                ("b.raw.gz", &layers[2].bytes),
                ("c.img.bz2", &layers[3].bytes),
                ("d.img.lz4", &layers[4].bytes),
                ("plain.qcow2", &layers[5].bytes),
                ("README.md", b"# disks"),
            ],
        )
        .disk("fedora-bootc-cloud-eln.qcow2", &whole)
        .disk("fedora-bootc-cloud-eln.raw", &raw)
        .disk("a.img", &raw)
        .disk("b.raw", &raw)
        .disk("c.img", &raw)
        .disk("d.img", &raw)
        .disk("plain.qcow2", &whole)
        .disk("plain.raw", &raw);
    for stage in Stage::both(&packed) {
        let mount = stage.mount_for(&[], &[]);
        // Names in disk/ take the heads of what is called a qcow2, or .img, which says nothing.
        let heads = [&layers[2], &layers[0], &layers[5], &layers[1], &layers[3], &layers[4]];
        stage.costs(&heads, || assert!(read(mount.join("disk/b.raw")) == raw));
        golden.check(mount.dir());
        let info = read(mount.join("disk/info.json"));
        let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
        for (name, encoding) in [("a.img", "xz"), ("b.raw", "gzip"), ("c.img", "bzip2"), ("d.img", "lz4")] {
            let disks = info["disks"].as_array().unwrap();
            let seen = &disks.iter().find(|disk| disk["name"] == name).unwrap()["inspection"];
            assert_eq!(seen["encoding"], encoding, "{name}");
            assert!(seen["size"].is_null() || seen["size"] == raw.len(), "{name}: {seen}");
        }
        // What was decoded once is there for the next mount, which fetches nothing.
        let again = stage.site.mount_at("again", &stage.reference(":v1"), &[]);
        stage.costs(&[], || assert!(read(again.join("disk/c.img")) == raw));
    }
    // A raw disk that is no small blob, stored plain: a read costs its blocks.
    let big = crate::tarball::noise(9 << 20, 19);
    let plain = Blob::new("application/octet-stream", big.clone()).titled("big.raw");
    let Some(stage) = Stage::strict(&Shape::artifact("application/x.disk").layer(&plain).pack()) else {
        return;
    };
    let mount = stage.mount_for(&[], &[]);
    stage.costs_at_most(2 * BLOCK, &[&plain], || {
        use std::os::unix::fs::FileExt as _;
        let file = File::open(mount.join("disk/big.raw")).unwrap();
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
        let mut bytes = vec![0; 4096];
        file.read_exact_at(&mut bytes, 1 << 20).unwrap();
        assert!(bytes == big[1 << 20..(1 << 20) + 4096]);
    });
}
