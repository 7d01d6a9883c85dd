//! Mounting over a dead mount: only dead mounts of ocifs are replaced.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::signal::Signal;
use nix::sys::statfs::statfs;

use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, signal};
use crate::scratch::{Scratch, mounted_at, mounts};
use crate::site::{Mount, Site, copy_binary, daemons, unmounts};
use crate::tarball::Tarball;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

fn image(dir: &Path, content: &[u8]) -> String {
    let mut layout = Layout::create(dir);
    layout.image("v1", &[Layer::of(&Tarball::new().file("f", content).bytes(), Encoding::Gzip)]);
    layout.reference("v1")
}

/// Ends the daemon as a crash would, and leaves its mount.
#[track_caller]
fn crash(mount: Mount) {
    signal(mount.pid(), Signal::SIGKILL);
    let dir = mount.dir().to_owned();
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()));
    mount.forget();
    assert!(becomes_true(CONDITION_TIMEOUT, || is_dead(&dir)));
}

/// A process that ends has no command line any more a moment before it lets its descriptors go. What stat says the kernel may
/// still know.
fn is_dead(dir: &Path) -> bool {
    statfs(dir).is_err_and(|errno| errno == Errno::ENOTCONN)
}

fn mounts_at(dir: &Path) -> usize {
    mounts().iter().filter(|line| line.dir == dir).count()
}

#[test]
fn a_mount_over_a_dead_one_replaces_it() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let old = site.mount(&image(&site.scratch().join("old"), b"old"), &[]);
    let held = File::open(old.join("merged/f")).unwrap();
    crash(old);
    let new = site.mount(&image(&site.scratch().join("new"), b"new"), &[]);
    assert_eq!(fs::read(new.join("merged/f")).unwrap(), b"new");
    assert_eq!(mounts_at(new.dir()), 1);
    // Who had the old one open is told that it ended, and not given the new one.
    let read = std::io::read_to_string(&held);
    assert!(read.as_ref().is_err() || read.as_deref().is_ok_and(|text| text == "old"), "{read:?}");
    // The same by another name of the directory.
    let link = site.scratch().join("link");
    std::os::unix::fs::symlink(new.dir(), &link).unwrap();
    crash(new);
    let reference = image(&site.scratch().join("third"), b"third");
    let mut command = site.command();
    run(command.arg("mount").arg(&reference).arg(&link)).ok();
    assert_eq!(fs::read(link.join("merged/f")).unwrap(), b"third");
    assert_eq!(mounts_at(&fs::canonicalize(&link).unwrap()), 1);
    unmounts(site.command().arg("umount").arg(&link));
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&link).is_empty()));
}

#[test]
fn several_dead_mounts_on_one_directory_are_all_replaced() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site.scratch().join("layout"), b"data");
    let (below, beside) = (site.mount_at("a", &reference, &[]), site.mount_at("b", &reference, &[]));
    let (dir, other) = (below.dir().to_owned(), beside.dir().to_owned());
    for _ in 0..2 {
        run(Command::new("mount").arg("--bind").arg(&other).arg(&dir)).ok();
    }
    assert_eq!(mounts_at(&dir), 3);
    signal(below.pid(), Signal::SIGKILL);
    below.forget();
    crash(beside);
    let mount = site.mount_at("a", &reference, &[]);
    assert_eq!(fs::read(mount.join("merged/f")).unwrap(), b"data");
    assert_eq!(mounts_at(&dir), 1);
}

#[test]
fn a_dead_mount_below_one_that_lives_is_left_alone() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site.scratch().join("layout"), b"data");
    let (below, beside) = (site.mount_at("a", &reference, &[]), site.mount_at("b", &reference, &[]));
    let dir = below.dir().to_owned();
    run(Command::new("mount").arg("--bind").arg(beside.dir()).arg(&dir)).ok();
    signal(below.pid(), Signal::SIGKILL);
    below.forget();
    let mut again = site.command();
    run(again.arg("mount").arg(&reference).arg(&dir)).refused(&[8], &["already a mount point"]);
    assert_eq!(mounts_at(&dir), 2);
    assert_eq!(fs::read(dir.join("merged/f")).unwrap(), b"data");
    unmounts(Command::new("umount").arg(&dir));
}

#[test]
fn the_dead_mount_of_another_program_is_named_and_stays() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let dir = site.mount_point("other");
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    nix::mount::mount(Some("theirs"), &dir, Some("fuse.other"), MsFlags::MS_RDONLY, Some(data.as_str()))
        .unwrap();
    // A program that another test starts may hold it from its fork to its exec.
    drop(device);
    assert!(becomes_true(CONDITION_TIMEOUT, || is_dead(&dir)));
    let reference = image(&site.scratch().join("layout"), b"data");
    let mut command = site.command();
    run(command.arg("mount").arg(&reference).arg(&dir))
        .refused(&[8], &["theirs", "fuse.other", "server is gone"]);
    let mut below = site.command();
    run(below.arg("mount").arg(&reference).arg(dir.join("sub"))).refused(&[8], &["below a mount point"]);
    assert_eq!(mounted_at(&dir).unwrap().fstype, "fuse.other");
}

#[test]
fn an_ordinary_user_replaces_a_dead_mount_too() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("setpriv"), Need::Tool("fusermount3")]) {
        return;
    }
    let public = Scratch::public();
    let reference = image(&public.join("layout"), b"data");
    let (copy, dir, home) = (public.join("ocifs"), public.subdir("mnt"), public.subdir("home"));
    copy_binary(&copy);
    for owned in [&dir, &home] {
        std::os::unix::fs::chown(owned, Some(65_534), Some(65_534)).unwrap();
    }
    // A mount namespace of its own, with a FUSE device that everybody may open.
    let device = public.join("device");
    let prepare = format!("mknod -m 666 {0} c 10 229; mount --bind {0} /dev/fuse", device.display());
    let session = "\"$0\" mount \"$1\" \"$2\"; kill -9 $(pgrep -f \"^ocifs mount.* $2\")
        until stat -f \"$2\" 2>&1 | grep -q 'not connected'; do sleep 0.01; done
        \"$0\" mount \"$1\" \"$2\"; cat \"$2/merged/f\"; grep -c \"$2\" /proc/self/mountinfo; \"$0\" umount \"$2\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-euc", &format!("{prepare}\nexec \"$@\""), "sh"]);
    command.args([
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "bash",
        "-euc",
        session,
    ]);
    command.arg(&copy).arg(&reference).arg(&dir);
    command.env("HOME", &home).env("OCIFS_CACHE_DIR", home.join("cache")).current_dir("/");
    let output = run(&mut command).ok().text();
    assert!(output.ends_with("data1\n"), "{output}");
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()));
}
