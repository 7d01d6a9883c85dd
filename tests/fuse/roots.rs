//! Attributes of a root directory before its tree is known, and copies made then.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::compare::assert_same;
use crate::debian::Debian;
use crate::debian_image::NEEDS as DEBIAN;
use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able, run, sh};
use crate::site::Site;
use crate::tarball::{MTIME, Tarball};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

/// Permissions and time of a directory.
fn look(path: impl AsRef<Path>) -> (u32, i64) {
    let found = fs::metadata(path).unwrap();
    (found.mode() & 0o7777, found.mtime())
}

fn layer_directory(mount: &Path) -> std::path::PathBuf {
    let layers = fs::read_dir(mount.join("layers")).unwrap().map(|entry| entry.unwrap().path());
    layers.filter(|path| !path.is_symlink()).min().unwrap()
}

#[test]
fn root_attributes_are_those_of_its_archive_or_default() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let rooted = Tarball::new().dir_with_mode("./", 0o1751).file("x", b"x").bytes();
    let rootless = Tarball::new().dir("d").file("d/y", b"y").bytes();
    let late = Tarball::new().file("x", b"x").file("y", &[7; 600_000]).dir_with_mode("./", 0o700).bytes();
    let of = |tar: &[u8]| Layer::of(tar, Encoding::Gzip);
    layout.image("rooted", &[of(&rooted), of(&rootless)]);
    layout.image("rootless", &[of(&rootless)]);
    layout.image("late", &[Layer::of(&late, Encoding::Plain)]);
    let time = MTIME as i64;
    for (tag, root, after) in [
        ("rooted", (0o1751, time), (0o1751, time)),
        ("rootless", (0o755, 0), (0o755, 0)),
        ("late", (0o755, 0), (0o700, time)),
    ] {
        let whole = site.mount_at("whole", &layout.reference(tag), &["--no-cache"]);
        assert_eq!(look(whole.join("merged")), root, "{tag}");
        assert_eq!(look(layer_directory(whole.dir())), root, "{tag}");
        fs::read_dir(whole.join("merged")).unwrap().count();
        assert_eq!(look(whole.join("merged")), after, "{tag}");
        whole.unmount();
        // A pass in the background may have told more by now than the first look, where an archive tells it late.
        let view = site.mount_at("view", &layout.reference(tag), &["--no-cache", "--view", "merged"]);
        let first = look(view.dir());
        assert!(first == root || first == after, "{tag}: {first:?}");
        fs::read_dir(view.dir()).unwrap().count();
        assert_eq!(look(view.dir()), after, "{tag}");
        view.unmount();
    }
}

#[test]
fn an_image_without_layers_is_an_empty_directory() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("none", &[]);
    let mount = site.mount(&layout.reference("none"), &["--view", "merged"]);
    assert_eq!(fs::read_dir(mount.dir()).unwrap().count(), 0);
    assert_eq!(look(mount.dir()), (0o755, 0));
}

#[test]
fn an_exported_tree_has_the_entry_of_its_root() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let rooted = Tarball::new()
        .pax([("SCHILY.xattr.user.r", &b"v"[..])])
        .dir_with_mode("./", 0o1751)
        .file("x", b"x")
        .bytes();
    layout.image("v1", &[Layer::of(&rooted, Encoding::Gzip)]);
    let archive = site.scratch().join("tree.tar").display().to_string();
    site.ocifs(&["export", "--format=tar", "-o", &archive, &layout.reference("v1")]).ok();
    let listed = sh("tar --xattrs -tvvf $1", &[&archive]).text();
    let first: Vec<&str> = listed.lines().next().unwrap().split_whitespace().collect();
    assert_eq!((first[0], *first.last().unwrap()), ("drwxr-x--t*", "./"), "{listed}");
    assert!(listed.contains("user.r"), "{listed}");
}

#[test]
fn copies_of_a_fresh_mount_are_silent_and_equal() {
    if !able(&DEBIAN) || !able(&[Need::Tool("rsync")]) {
        return;
    }
    let debian = Debian::get();
    let site = Site::new();
    for (view, options) in [("", &["--no-cache", "--view", "merged"][..]), ("/merged", &["--no-cache"])] {
        for (number, copy) in [
            "cp -a $1/. $2",
            "tar --xattrs -C $1 -cf - . | tar --warning=no-timestamp --xattrs --xattrs-include='*' -C $2 -xf -",
            "rsync -aHAX $1/ $2/",
        ]
        .iter()
        .enumerate()
        {
            let mount = site.mount(&debian.layout(), options);
            let from = format!("{}{view}", mount.dir().display());
            let to = site.scratch().subdir(format!("copy{number}{}", view.len()));
            let script = format!("set -e -o pipefail; {copy}");
            let done = run(std::process::Command::new("bash").args(["-c", &script, "sh", &from]).arg(&to));
            assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{copy}");
            assert_same(&debian.unpacked(), &to);
            mount.unmount();
            fs::remove_dir_all(&to).unwrap();
        }
    }
}
