//! Exported trees, single files and disks, and the requests of `pull` and `resolve`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::artifact::{Blob, OS_IMAGE, Packed, Shape};
use crate::byte_text::digest_of;
use crate::compare::assert_same;
use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able, sh};
use crate::site::Site;
use crate::stage::{Stage, read};
use crate::tarball::{Tarball, noise};

/// An image with one of everything that a tree can have.
fn image(site: &Site) -> Layout {
    let mut layout = Layout::create(site.scratch().join("source"));
    let long = "n".repeat(180);
    let lower = Tarball::new()
        .dir("d")
        .file_with_mode("d/suid", 0o4755, b"#!/bin/sh\n")
        .file("d/f", &noise(2_500_000, 1))
        .hard_link("d/hard", "d/f", 0o644)
        .file(&format!("d/{long}"), b"long\n")
        .file("d/empty", b"")
        .symlink("d/up", "../../../../etc/passwd")
        .symlink("d/out", "/tmp")
        .dir("d/readonly")
        .file("d/readonly/in", b"in\n")
        .char_device("d/null", 1, 3)
        .pax([("SCHILY.xattr.user.note", &b"a\nb"[..]), ("mtime", b"1600000000.25")])
        .file("d/noted", b"noted\n")
        .file_named(b"d/\xff\xfe", b"no text\n")
        .bytes();
    let upper = Tarball::new().dir("d").file("d/.wh.empty", b"").file("d/later", b"later\n").bytes();
    layout.image("v1", &[Layer::of(&lower, Encoding::Gzip), Layer::of(&upper, Encoding::Zstd)]);
    layout
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_tree_is_written_as_a_directory_and_as_a_tar_with_all_that_is_recorded() {
    if !able(&[Need::Root, Need::Fuse]) {
        return;
    }
    let site = Site::new();
    let layout = image(&site);
    let reference = layout.reference("v1");
    let mount = site.mount(&reference, &[]);
    let dir = site.scratch().join("tree");
    let output = site.ocifs(&["export", &reference, "--format=dir", "--preserve=all", "-o", text(&dir)]).ok();
    assert_eq!((output.text(), &output.stderr[..]), (String::new(), ""));
    assert_same(&mount.join("merged"), &dir);
    let (one, two) = (fs::metadata(dir.join("d/f")).unwrap(), fs::metadata(dir.join("d/hard")).unwrap());
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));

    let tar = site.scratch().join("tree.tar");
    site.ocifs(&["export", &reference, "--format=tar", "-o", text(&tar)]).ok();
    let again = site.ocifs(&["export", "--no-cache", &reference, "--format=tar"]).ok();
    assert!(again.stdout == read(&tar), "the same tree is the same bytes");
    let unpacked = site.scratch().subdir("unpacked");
    sh("tar xf $1 -C $2 --xattrs --xattrs-include='*' --numeric-owner -p", &[&tar, &unpacked]);
    // The directory that they are unpacked into is no entry of the archive.
    sh("touch -d @0 $1 $2; chmod 755 $1 $2", &[&unpacked, &dir]);
    assert_same(&dir, &unpacked);
    // As a layer of its own it is the same tree once more.
    let mut whole = Layout::create(site.scratch().join("whole"));
    whole.image("v1", &[Layer::of(&read(&tar), Encoding::Plain)]);
    let flat = site.mount_at("flat", &whole.reference("v1"), &[]);
    assert_same(&mount.join("merged/d"), &flat.join("merged/d"));
    flat.unmount();

    // One directory of it, and another view.
    let part = site.scratch().join("part");
    site.ocifs(&["cp", &reference, "merged/d/readonly", text(&part)]).ok();
    assert_same(&mount.join("merged/d/readonly"), &part);
    let layers = site.ocifs(&["export", &reference, "--format=tar", "--view=layers"]).ok().stdout;
    let names = sh("tar tf $1", &[&site.scratch().file("layers.tar", &layers)]).text();
    assert!(names.contains("/d/.wh.empty"), "{names}");
    mount.unmount();
}

#[test]
fn powers_that_an_image_author_recorded_are_written_on_demand_alone() {
    if !able(&[Need::Root]) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("source"));
    let tar = Tarball::new()
        .file_with_mode("suid", 0o6755, b"#!/bin/sh\n")
        .char_device("null", 1, 3)
        .pax([
            ("SCHILY.xattr.trusted.overlay.opaque", &b"y"[..]),
            ("SCHILY.xattr.security.evil", b"x"),
            ("SCHILY.xattr.user.note", b"n"),
        ])
        .file("marked", b"marked\n")
        .bytes();
    layout.image("v1", &[Layer::of(&tar, Encoding::Gzip)]);
    let reference = layout.reference("v1");
    let export = |name: &str, options: &[&str]| {
        let dir = site.scratch().join(name);
        let args = [&["export", &reference, "--format=dir", "-o", text(&dir)], options].concat();
        let output = site.ocifs(&args).ok().stderr;
        let mode = fs::metadata(dir.join("suid")).unwrap().mode() & 0o7777;
        let has = |name: &str| xattr::get(dir.join("marked"), name).unwrap().is_some();
        let marks = ["trusted.overlay.opaque", "security.evil", "user.note"].map(has);
        (mode, dir.join("null").exists(), marks, output)
    };
    let (mode, device, marks, output) = export("plain", &[]);
    assert_eq!((mode, device, marks), (0o755, false, [false, false, true]));
    for part in ["1 files lost", "1 devices", "--preserve=suid,devices,trusted,security"] {
        assert!(output.contains(part), "{output}");
    }
    let (mode, device, marks, output) = export("all", &["--preserve=all"]);
    assert_eq!((mode, device, marks, &output[..]), (0o6755, true, [true; 3], ""));
    let (mode, device, marks, _) = export("some", &["--preserve=security,devices"]);
    assert_eq!((mode, device, marks), (0o755, true, [false, true, true]));
    // A copy of a directory does the same.
    let copy = site.scratch().join("copy");
    let output = site.ocifs(&["cp", &reference, "merged", text(&copy)]).ok().stderr;
    assert!(output.contains("--preserve=") && !copy.join("null").exists(), "{output}");
    site.ocifs(&["export", &reference, "--preserve=all", "-o", text(&site.scratch().join("x.tar"))])
        .refused(&[2], &["--format=dir"]);
}

#[test]
fn a_directory_is_written_only_where_nothing_was_and_nothing_is_left_of_a_failure() {
    let site = Site::new();
    let layout = image(&site);
    let reference = layout.reference("v1");
    let full = site.scratch().subdir("full");
    fs::write(full.join("mine"), b"mine").unwrap();
    let link = site.scratch().join("link");
    std::os::unix::fs::symlink(&full, &link).unwrap();
    for dir in [&full, &link] {
        site.ocifs(&["export", &reference, "--format=dir", "-o", text(dir)]).refused(&[2], &["is not empty"]);
    }
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
    // The second layer is not what its digest names.
    let index: Value =
        serde_json::from_slice(&site.ocifs(&["cat", &reference, "manifest.json"]).ok().stdout).unwrap();
    let digest = index["layers"][1]["digest"].as_str().unwrap();
    let stored = layout.blob_path(digest);
    let mut bytes = read(&stored);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&stored, bytes).unwrap();
    let (new, empty) = (site.scratch().join("new"), site.scratch().subdir("empty"));
    for dir in [&new, &empty] {
        let args = ["export", "--no-cache", &reference, "--format=dir", "-o", text(dir)];
        site.ocifs(&args).refused(&[6, 7], &[]);
    }
    assert!(!new.exists() && fs::read_dir(&empty).unwrap().next().is_none());
    for args in
        [&["export", "--format=dir", &reference][..], &["export", "--format=tar", &reference, &reference]]
    {
        site.ocifs(args).refused(&[2], &[]);
    }
}

/// A disk with a sidecar, and the bytes of the disk.
fn disk(seed: u64, size: usize) -> (Packed, Blob) {
    let disk = Blob::new("application/vnd.cocoonstack.disk.raw", noise(size, seed)).titled("vm.raw");
    let sums = Blob::new("text/plain", b"sums".as_slice()).titled("SHA256SUMS");
    (Shape::artifact(OS_IMAGE).layer(&disk).layer(&sums).pack(), disk)
}

#[test]
fn the_only_disk_is_written_by_the_name_of_its_directory_and_one_of_several_is_not_guessed() {
    let (packed, blob) = disk(30, 700_000);
    let Some(stage) = Stage::strict(&packed) else { return };
    let output = stage.site.ocifs(&["cat", &stage.reference(":v1"), "disk"]).ok();
    assert!(output.stdout == blob.bytes && output.stderr.is_empty(), "{}", output.stderr);
    let other = Blob::new("application/vnd.kubevirt.disk.raw", vec![7; 4096]);
    let one = other.clone().note("io.kubevirt.disk.name", "one");
    let two =
        Blob::new("application/vnd.kubevirt.disk.raw", vec![8; 4096]).note("io.kubevirt.disk.name", "two");
    let both = Shape::artifact("application/vnd.kubevirt.virtualmachine.v1").layer(&one).layer(&two).pack();
    stage.push("both", &both);
    let refused = stage.site.ocifs(&["cat", &stage.reference(":both"), "disk"]);
    refused.refused(&[2], &["several disks", "one.raw", "two.raw"]);
    stage.site.ocifs(&["cat", &stage.reference(":both"), "blobs"]).refused(&[2], &["not a regular file"]);
}

#[test]
fn cp_copies_files_with_holes_and_replaces_unfinished_ones() {
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("source"));
    let mut sparse = vec![0; 12 << 20];
    sparse[5 << 20..(5 << 20) + 10].copy_from_slice(b"0123456789");
    let tar = Tarball::new().file_with_mode("run", 0o755, b"#!/bin/sh\n").file("sparse", &sparse).bytes();
    layout.image("v1", &[Layer::of(&tar, Encoding::Gzip)]);
    let reference = layout.reference("v1");
    let dest = site.scratch().join("copy");
    fs::write(&dest, b"old").unwrap();
    fs::write(site.scratch().join(".copy.ocifs-part"), vec![b'z'; 20 << 20]).unwrap();
    site.ocifs(&["cp", &reference, "merged/sparse", text(&dest)]).ok();
    assert!(read(&dest) == sparse);
    let blocks = fs::metadata(&dest).unwrap().blocks() * 512;
    assert!(blocks < 1 << 20, "{blocks} bytes are stored of a file that is a hole");
    assert!(!site.scratch().join(".copy.ocifs-part").exists());
    // Into a directory, under its own name, with the right to run and none to run as somebody else.
    let into: PathBuf = site.scratch().subdir("into");
    site.ocifs(&["cp", &reference, "merged/run", text(&into)]).ok();
    let mode = fs::metadata(into.join("run")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode & 0o7700, 0o700, "{mode:o}");
    site.ocifs(&["cp", &reference, "merged/no/such", text(&dest)]).refused(&[3], &["merged/no/such"]);
    assert!(read(&dest) == sparse, "what was there stays");
    // What is open already is written to as it is, and nothing is renamed there.
    let mut command = site.command();
    command.args(["cp", &reference, "merged/run", "/proc/self/fd/1"]);
    assert_eq!(crate::process::run(&mut command).ok().text(), "#!/bin/sh\n");
    // Also where that is a file: what is in it already stays.
    for to in ["/dev/stdout", "/dev/fd/1", "/dev/fd/9"] {
        fs::write(&dest, b"head\n").unwrap();
        let line = "exec \"$1\" cp \"$2\" merged/run \"$3\" >> \"$4\" 9>&1";
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", line, "sh"]).arg(crate::site::binary()).args([&reference, to]).arg(&dest);
        shell.env("OCIFS_CACHE_DIR", site.cache()).env("HOME", site.scratch().path());
        crate::process::run(&mut shell).ok();
        assert_eq!(String::from_utf8(read(&dest)).unwrap(), "head\n#!/bin/sh\n", "{to}");
    }
}

#[test]
fn a_copy_that_broke_off_goes_on_from_the_cache_and_wrong_bytes_never_get_the_name() {
    let part = |number: u64, size| {
        let kind = "application/vnd.cocoonstack.disk.raw.part";
        Blob::new(kind, noise(size, 40 + number)).titled(&format!("vm.raw.0{number}.part"))
    };
    let parts = [part(0, 12 << 20), part(1, 9 << 20)];
    let packed = Shape::artifact(OS_IMAGE).layers(&parts).pack();
    let Some(stage) = Stage::strict(&packed) else { return };
    let dest = stage.site.scratch().join("vm.raw");
    let reference = stage.reference(":v1");
    let cp = |path: &str, flags: &[&str]| {
        stage.site.ocifs(&[&["cp", &reference, path, text(&dest)], flags].concat())
    };
    let second: ocifs::oci::Digest = parts[1].digest().parse().unwrap();
    stage.fault().delete_blob(&second);
    cp("disk/vm.raw", &[]).refused(&[3, 5], &[]);
    assert!(!dest.exists());
    let first = format!("blobs/{}", parts[0].digest().replace(':', "/"));
    cp(&first, &[]).ok();
    assert!(read(&dest) == parts[0].bytes);
    stage.fault().push_blob(parts[1].bytes.clone());
    // What is here by now is not asked for again.
    stage.costs_at_most(parts[1].size() + (1 << 20), &[&parts[1]], || {
        cp("disk/vm.raw", &[]).ok();
    });
    assert!(read(&dest) == [&parts[0].bytes[..], &parts[1].bytes].concat());
    fs::remove_file(&dest).unwrap();
    let mut wrong = parts[1].bytes.clone();
    wrong[8 << 20] ^= 1;
    stage.fault().push_blob_as(&second, wrong);
    cp("disk/vm.raw", &["--no-cache"]).refused(&[7], &[&parts[1].digest()]);
    assert!(!dest.exists() && !stage.site.scratch().join(".vm.raw.ocifs-part").exists());
}

#[test]
fn a_reference_is_resolved_by_one_request_and_a_digest_by_none() {
    let (packed, _) = disk(32, 1000);
    let Some(stage) = Stage::strict(&packed) else { return };
    stage.reset();
    let output = stage.site.ocifs(&["resolve", &stage.reference(":v1")]).ok().text();
    assert_eq!(output.trim(), stage.reference(&format!(":v1@{}", packed.digest())));
    assert_eq!((stage.document_requests(), stage.blob_requests().len()), (1, 0));
    stage.reset();
    let pinned = stage.reference(&format!("@{}", packed.digest()));
    assert_eq!(stage.site.ocifs(&["resolve", &pinned]).ok().text().trim(), pinned);
    assert_eq!(stage.fault().requests().len(), 0);
    let json = stage.site.ocifs(&["resolve", "--format=json", &stage.reference(":v1")]).ok().stdout;
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["digest"], digest_of(&packed.bytes).as_str());
    assert_eq!((&json["size"], &json["schemaVersion"]), (&packed.bytes.len().into(), &1.into()));
    stage.site.ocifs(&["resolve", &stage.reference(":none")]).refused(&[3], &["none"]);
}

#[test]
fn pull_fills_the_cache_once_and_then_sends_no_request() {
    let (packed, blob) = disk(33, 20 << 20);
    let Some(stage) = Stage::strict(&packed) else { return };
    let pinned = stage.reference(&format!("@{}", packed.digest()));
    let output = stage.site.ocifs(&["pull", &stage.reference(":v1")]).ok().text();
    assert!(output.contains(&packed.digest()) && output.contains("fetched"), "{output}");
    stage.reset();
    let json = stage.site.ocifs(&["pull", "--format=json", &pinned]).ok().stdout;
    let json: Value = serde_json::from_slice(&json).unwrap();
    let image = &json["images"][0];
    assert_eq!((&image["present"], &image["fetched"]), (&image["blobs"], &0.into()), "{json}");
    let text = stage.site.ocifs(&["pull", &pinned]).ok().text();
    assert!(text.contains("already cached"), "{text}");
    assert_eq!(stage.fault().requests().len(), 0);
    stage.fault().go_down();
    assert!(stage.site.ocifs(&["cat", "--offline", &pinned, "disk"]).ok().stdout == blob.bytes);
    let archive = stage.site.ocifs(&["export", "--offline", &pinned]).ok().stdout;
    assert!(archive.len() as u64 > blob.size());
    stage.fault().come_up();
    stage.site.ocifs(&["pull", "--no-cache", &pinned]).refused(&[2], &["--no-cache"]);
    // Wrong bytes are not pulled.
    stage.fault().push_blob_as(&blob.digest().parse().unwrap(), vec![0; blob.bytes.len()]);
    let fresh = stage.site.scratch().join("fresh");
    stage
        .site
        .ocifs(&["pull", "--cache-dir", fresh.to_str().unwrap(), &pinned])
        .refused(&[7], &[&blob.digest()]);
}
