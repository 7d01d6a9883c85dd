//! Machines and directories that cannot carry a mount: one message, the right exit code, nothing left behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::artifact::{self, Piece};
use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{CONDITION_TIMEOUT, Finished, Need, able, run, run_within};
use crate::scratch::{Scratch, mounted_at};
use crate::site::{Site, copy_binary, daemons};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const MOUNT_FAILED: &[i32] = &[8];

fn thing(dir: impl Into<std::path::PathBuf>, body: &[u8]) -> String {
    let mut layout = Layout::create(dir);
    artifact::write(&mut layout, "v1", "application/x.thing", &[Piece::new("f", "text/plain", body)]);
    layout.reference("v1")
}

fn try_mount(site: &Site, reference: &str, dir: &Path) -> Finished {
    let mut command = site.command();
    run_within(command.arg("mount").arg(reference).arg(dir), CONDITION_TIMEOUT)
}

#[test]
fn a_mount_point_must_be_an_empty_directory_that_is_there() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = thing(site.scratch().join("layout"), b"x");
    let missing = site.scratch().join("missing");
    try_mount(&site, &reference, &missing).refused(MOUNT_FAILED, &["missing"]);
    assert!(!missing.exists());
    let file = site.scratch().file("plain-file", b"");
    try_mount(&site, &reference, &file).refused(MOUNT_FAILED, &["plain-file"]);
    let full = site.mount_point("full");
    fs::write(full.join("mine"), b"").unwrap();
    try_mount(&site, &reference, &full).refused(MOUNT_FAILED, &["full", "empty"]);
    assert!(mounted_at(&full).is_none() && full.join("mine").exists());
    for dir in [&missing, &file, &full] {
        assert!(daemons(dir).is_empty(), "a process is left for {dir:?}");
    }
}

#[test]
fn a_directory_is_mounted_only_once() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = thing(site.scratch().join("layout"), b"x");
    let mount = site.mount(&reference, &[]);
    try_mount(&site, &reference, mount.dir()).refused(MOUNT_FAILED, &["mnt", "mount point"]);
    assert_eq!(daemons(mount.dir()), [mount.pid()]);
    assert_eq!(fs::read(mount.join("files/f")).unwrap(), b"x");
}

/// Runs `mount` in a mount namespace of its own, after `prepare` has changed that namespace.
fn in_a_namespace(public: &Scratch, prepare: &str, as_nobody: bool) -> Finished {
    let reference = thing(public.join("layout"), b"x");
    let (copy, dir, home) = (public.join("ocifs"), public.subdir("mnt"), public.subdir("home"));
    copy_binary(&copy);
    for owned in [&dir, &home].into_iter().filter(|_| as_nobody) {
        std::os::unix::fs::chown(owned, Some(65_534), Some(65_534)).unwrap();
    }
    let user: &[&str] = if as_nobody {
        &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    } else {
        &["env"]
    };
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-euc", &format!("{prepare}\nexec \"$@\""), "sh"]).args(user);
    command.arg(&copy).args(["mount", "--cache-dir"]).arg(home.join("cache")).arg(reference).arg(&dir);
    command.env("HOME", &home).current_dir("/");
    let finished = run(&mut command);
    assert!(daemons(&dir).is_empty(), "a process is left");
    finished
}

#[test]
fn machine_without_fuse_is_reported() {
    if !able(&NEEDS) {
        return;
    }
    let hidden = Scratch::public();
    let empty = "mount -t tmpfs none /dev; : > /dev/null";
    in_a_namespace(&hidden, empty, false).refused(MOUNT_FAILED, &["/dev/fuse", "modprobe"]);
    if !able(&[Need::Root, Need::Tool("setpriv")]) {
        return;
    }
    let locked =
        "mount -t tmpfs -o mode=755 none /dev; mknod -m 600 /dev/fuse c 10 229; mknod -m 666 /dev/null c 1 3";
    in_a_namespace(&Scratch::public(), locked, true).refused(MOUNT_FAILED, &["chmod 666 /dev/fuse"]);
}

#[test]
fn ordinary_user_without_fusermount3_is_an_error_with_a_hint() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("setpriv"), Need::Tool("fusermount3")]) {
        return;
    }
    let hidden = Scratch::public();
    let tools = hidden.subdir("tools");
    // An own /dev with a FUSE device that everybody may open, and a /usr/bin with little more than setpriv in it.
    let prepare = format!(
        "mount -t tmpfs -o mode=755 none /dev; mknod -m 666 /dev/fuse c 10 229; mknod -m 666 /dev/null c 1 3\n\
         cp /usr/bin/setpriv {0}; cp /bin/bash {0}; export PATH=/usr/bin; mount --bind {0} /usr/bin\n\
         test ! -e /bin/fusermount3 || {{ mount -t tmpfs none /bin && cp /usr/bin/setpriv /bin; }}",
        tools.display()
    );
    in_a_namespace(&hidden, &prepare, true).refused(MOUNT_FAILED, &["fusermount3"]);
}

#[test]
fn a_cache_directory_that_cannot_be_used_is_named() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = thing(site.scratch().join("layout"), b"x");
    let file = site.scratch().file("not-a-directory", b"");
    let below = file.join("cache");
    site.mount_refused(&reference, &["--cache-dir", below.to_str().unwrap()], &[1], &["not-a-directory"]);
    let foreign = site.scratch().subdir("foreign");
    std::os::unix::fs::chown(&foreign, Some(12_345), None).unwrap();
    site.mount_refused(
        &reference,
        &["--cache-dir", foreign.to_str().unwrap()],
        &[1, 2],
        &["foreign", "12345"],
    );
    let frozen = site.scratch().subdir("frozen");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "none"]).arg(&frozen)).ok();
    site.mount_refused(&reference, &["--cache-dir", frozen.to_str().unwrap()], &[1], &["frozen"]);
}

#[test]
fn a_full_cache_directory_never_makes_wrong_bytes() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let body = noise(4 << 20, 31);
    let reference = thing(site.scratch().join("layout"), &body);
    let small = site.scratch().subdir("small");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m,mode=700", "none"]).arg(&small)).ok();
    let mount = site.mount(&reference, &["--cache-dir", small.to_str().unwrap()]);
    match fs::read(mount.join("files/f")) {
        Ok(read) => assert!(read == body),
        Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::EIO | libc::ENOSPC)), "{error}"),
    }
    // The mount outlives the shortage, and heals when there is room.
    run(Command::new("mount").args(["-o", "remount,size=64m"]).arg(&small)).ok();
    assert!(fs::read(mount.join("files/f")).unwrap() == body);
    mount.unmount();
}

#[test]
fn a_compressed_layer_is_read_right_though_the_cache_is_full() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let body = noise(4 << 20, 32);
    let small = site.scratch().subdir("small");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m,mode=700", "none"]).arg(&small)).ok();
    let mut layout = Layout::create(site.scratch().join("layout"));
    for encoding in [Encoding::Gzip, Encoding::ZstdFrames] {
        layout.image(encoding.name(), &[Layer::of(&Tarball::new().file("f", &body).bytes(), encoding)]);
        let mount = site.mount(&layout.reference(encoding.name()), &["--cache-dir", small.to_str().unwrap()]);
        assert!(fs::read(mount.join("merged/f")).unwrap() == body, "{}", encoding.name());
        mount.unmount();
    }
}
