//! Disk headers by the real `qemu-img`: formats are recognised, and disks that name other files are refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot make its input has failed")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use ocifs::disk::{DiskFormat, DiskInspection, HEAD, inspect};
use tempfile::TempDir;

/// Runs `qemu-img` in `dir`.
fn qemu_img(dir: &Path, args: &[&str]) {
    let output = Command::new("qemu-img").args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether there is a `qemu-img`; says so where there is none.
fn have_qemu_img() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: no qemu-img on this machine");
    }
    found
}

fn inspect_file(path: &Path, label: DiskFormat) -> DiskInspection {
    let mut head = Vec::new();
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    file.take(HEAD).read_to_end(&mut head).unwrap();
    inspect(&head, size, &label)
}

/// Makes `disk` in a fresh directory with these arguments to `qemu-img create`, and inspects it.
fn create(format: &str, options: &[&str]) -> DiskInspection {
    let dir = TempDir::new().unwrap();
    let args = [&["create", "-q", "-f", format], options, &["disk", "64M"]].concat();
    qemu_img(dir.path(), &args);
    inspect_file(
        &dir.path().join("disk"),
        if format == "qcow2" { DiskFormat::Qcow2 } else { DiskFormat::Raw },
    )
}

/// A raw file of text, which compresses.
fn write_text(dir: &Path) {
    std::fs::write(dir.join("text"), "all work and no play\n".repeat(100_000)).unwrap();
}

#[test]
fn both_versions_are_read_and_allowed() {
    if !have_qemu_img() {
        return;
    }
    for (compat, version) in [("compat=0.10", 2), ("compat=1.1", 3)] {
        let seen = create("qcow2", &["-o", compat]);
        let header = seen.qcow2.unwrap();
        assert_eq!((header.version, header.virtual_size, header.cluster_bits), (version, 64 << 20, 16));
        assert_eq!((seen.format, seen.refusal, seen.notes), (DiskFormat::Qcow2, None, vec![]));
    }
}

#[test]
fn every_cluster_size_and_a_large_disk_are_allowed() {
    if !have_qemu_img() {
        return;
    }
    for bits in 9..=21 {
        let size = format!("cluster_size={}", 1 << bits);
        let seen = create("qcow2", &["-o", &size]);
        assert_eq!((seen.refusal, seen.qcow2.unwrap().cluster_bits), (None, bits));
    }
    let dir = TempDir::new().unwrap();
    qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "disk", "100T"]);
    let seen = inspect_file(&dir.path().join("disk"), DiskFormat::Qcow2);
    assert_eq!((seen.refusal, seen.qcow2.unwrap().virtual_size), (None, 100 << 40));
}

#[test]
fn compression_types_are_read() {
    if !have_qemu_img() {
        return;
    }
    for (kind, number) in [("zlib", 0), ("zstd", 1)] {
        let dir = TempDir::new().unwrap();
        write_text(dir.path());
        let option = format!("compression_type={kind}");
        qemu_img(
            dir.path(),
            &["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", &option, "text", "disk"],
        );
        let seen = inspect_file(&dir.path().join("disk"), DiskFormat::Qcow2);
        assert_eq!((seen.refusal, seen.notes), (None, vec![]));
        let header = seen.qcow2.unwrap();
        assert_eq!((header.compression_type, header.incompatible), (number, u64::from(number) << 3));
    }
}

#[test]
fn extended_l2_is_read() {
    if !have_qemu_img() {
        return;
    }
    let seen = create("qcow2", &["-o", "extended_l2=on"]);
    let header = seen.qcow2.unwrap();
    assert!(header.extended_l2 && seen.refusal.is_none());
    assert_eq!(header.incompatible, 1 << 4);
}

#[test]
fn a_backing_file_is_refused_under_every_label() {
    if !have_qemu_img() {
        return;
    }
    for compat in ["compat=0.10", "compat=1.1"] {
        let dir = TempDir::new().unwrap();
        qemu_img(
            dir.path(),
            &["create", "-q", "-f", "qcow2", "-o", compat, "-b", "/etc/passwd", "-F", "raw", "disk"],
        );
        for label in [DiskFormat::Qcow2, DiskFormat::Raw] {
            let seen = inspect_file(&dir.path().join("disk"), label);
            assert_eq!(seen.qcow2.unwrap().backing_file.as_deref(), Some(&b"/etc/passwd"[..]));
            assert!(seen.refusal.unwrap().contains("\"/etc/passwd\""));
        }
    }
}

#[test]
fn a_backing_file_is_found_behind_every_cluster_size() {
    if !have_qemu_img() {
        return;
    }
    for bits in 9..=21 {
        let size = format!("cluster_size={}", 1 << bits);
        let seen = create("qcow2", &["-o", &size, "-u", "-b", "base.raw", "-F", "raw"]);
        assert_eq!(seen.qcow2.unwrap().backing_file.as_deref(), Some(&b"base.raw"[..]), "{bits}");
        assert!(seen.refusal.is_some());
    }
}

#[test]
fn an_external_data_file_is_refused_under_every_label() {
    if !have_qemu_img() {
        return;
    }
    let dir = TempDir::new().unwrap();
    qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "-o", "data_file=outside.raw", "disk", "8M"]);
    for label in [DiskFormat::Qcow2, DiskFormat::Raw] {
        let seen = inspect_file(&dir.path().join("disk"), label);
        assert_eq!(seen.qcow2.unwrap().data_file.as_deref(), Some(&b"outside.raw"[..]));
        assert!(seen.refusal.unwrap().contains("external data file \"outside.raw\""));
    }
}

#[test]
fn encrypted_images_are_refused() {
    if !have_qemu_img() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=200";
    let secret =
        ["create", "-q", "-f", "qcow2", "--object", "secret,id=key,data=abc", "-o", options, "disk", "64M"];
    // It times itself, and gives up on a machine that is too busy for that.
    let made = (0..20)
        .any(|_| Command::new("qemu-img").args(secret).current_dir(dir.path()).status().unwrap().success());
    assert!(made, "qemu-img makes no encrypted image");
    let seen = inspect_file(&dir.path().join("disk"), DiskFormat::Qcow2);
    assert_eq!(seen.qcow2.unwrap().crypt_method, 2);
    assert_eq!(seen.refusal.as_deref(), Some("qcow2 is encrypted (luks)"));
}

#[test]
fn internal_snapshots_are_counted() {
    if !have_qemu_img() {
        return;
    }
    let dir = TempDir::new().unwrap();
    qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "disk", "8M"]);
    qemu_img(dir.path(), &["snapshot", "-c", "first", "disk"]);
    let seen = inspect_file(&dir.path().join("disk"), DiskFormat::Qcow2);
    assert_eq!((seen.refusal, seen.qcow2.unwrap().snapshots), (None, 1));
    assert_eq!(seen.notes, ["qcow2 has 1 internal snapshots"]);
}

#[test]
fn other_formats_are_recognised() {
    if !have_qemu_img() {
        return;
    }
    for (name, format) in [
        ("vmdk", DiskFormat::Vmdk),
        ("vhdx", DiskFormat::Vhdx),
        ("vpc", DiskFormat::Vhd),
        ("vdi", DiskFormat::Vdi),
        ("qed", DiskFormat::Other("qed".into())),
        ("raw", DiskFormat::Raw),
    ] {
        let seen = create(name, &[]);
        assert_eq!((seen.format, seen.refusal), (format, None), "{name}");
    }
}

#[test]
fn a_stream_optimized_vmdk_is_self_contained_and_a_descriptor_is_not() {
    if !have_qemu_img() {
        return;
    }
    let dir = TempDir::new().unwrap();
    write_text(dir.path());
    let option = "subformat=streamOptimized";
    qemu_img(dir.path(), &["convert", "-q", "-f", "raw", "-O", "vmdk", "-o", option, "text", "disk.vmdk"]);
    let seen = inspect_file(&dir.path().join("disk.vmdk"), DiskFormat::Vmdk);
    assert_eq!((seen.format, seen.refusal), (DiskFormat::Vmdk, None));
    for kind in ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let seen = create("vmdk", &["-o", &format!("subformat={kind}")]);
        assert_eq!(seen.format, DiskFormat::Vmdk);
        assert!(seen.refusal.unwrap().contains("other files"), "{kind}");
    }
}

#[test]
fn children_of_other_formats_are_refused() {
    if !have_qemu_img() {
        return;
    }
    for format in ["vmdk", "qed"] {
        let dir = TempDir::new().unwrap();
        qemu_img(dir.path(), &["create", "-q", "-f", format, "base", "8M"]);
        qemu_img(dir.path(), &["create", "-q", "-f", format, "-b", "base", "-F", format, "disk"]);
        assert!(inspect_file(&dir.path().join("disk"), DiskFormat::Raw).refusal.is_some(), "{format}");
    }
}
