//! Life of a mount: its ends, and its remains.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::statfs::statfs;

use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, run_within, signal};
use crate::scratch::mounted_at;
use crate::site::{Site, binary, daemons, unmounts};
use crate::tarball::Tarball;
use crate::wedge::{FOREVER, PROMPT, waits};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

fn image(site: &Site) -> String {
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[Layer::of(&Tarball::new().file("f", b"data").bytes(), Encoding::Gzip)]);
    layout.reference("v1")
}

#[track_caller]
fn ends(child: &mut Child) -> ExitStatus {
    let mut status = None;
    let ended = becomes_true(CONDITION_TIMEOUT, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    if !ended {
        child.kill().unwrap();
        panic!("process {} did not end", child.id());
    }
    status.unwrap()
}

#[test]
fn sigterm_and_sigint_unmount_and_end_with_0() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    for sent in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut child, dir) = site.mount_foreground(&reference, &[]);
        assert_eq!(fs::read(dir.join("merged/f")).unwrap(), b"data");
        signal(child.id(), sent);
        let status = ends(&mut child);
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{sent}");
        assert!(mounted_at(&dir).is_none(), "{sent}");
    }
}

#[test]
fn an_unmount_from_outside_ends_the_process_with_0() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    for tool in [&["umount"][..], &["fusermount3", "-u"]] {
        let (mut child, dir) = site.mount_foreground(&reference, &[]);
        assert_eq!(fs::read(dir.join("merged/f")).unwrap(), b"data");
        unmounts(Command::new(tool[0]).args(&tool[1..]).arg(&dir));
        assert_eq!(ends(&mut child).code(), Some(0), "{tool:?}");
    }
    site.mount(&reference, &[]).unmount_from_outside();
}

#[test]
fn sigterm_ends_a_background_mount_that_is_in_use() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mount = site.mount(&image(&site), &[]);
    let (dir, pid) = (mount.dir().to_owned(), mount.pid());
    let held = fs::File::open(mount.join("merged/f")).unwrap();
    signal(pid, Signal::SIGTERM);
    // One polite attempt, then a second signal, which must not wait for the open file.
    if !becomes_true(Duration::from_secs(3), || daemons(&dir).is_empty()) {
        signal(pid, Signal::SIGTERM);
        assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()), "still there");
    }
    assert!(mounted_at(&dir).is_none());
    drop(held);
    mount.forget();
}

#[test]
fn a_background_mount_lets_go_of_the_callers_terminal_and_directory() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    let dir = site.mount_point("mnt");
    // `cat` ends only when nobody holds the pipe any more.
    let mut command = site.command();
    let line = "\"$1\" mount \"$2\" \"$3\" 2>&1 | cat";
    let path =
        command.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, value)| value).unwrap().to_owned();
    let mut shell = Command::new("sh");
    shell.args(["-c", line, "sh"]).arg(binary()).arg(&reference).arg(&dir);
    shell
        .env_clear()
        .env("PATH", path)
        .env("OCIFS_CACHE_DIR", site.cache())
        .current_dir(site.scratch().path());
    let output = run_within(&mut shell, CONDITION_TIMEOUT).ok().text();
    assert!(output.contains("@sha256:"), "{output}");
    let pids = daemons(&dir);
    assert_eq!(pids.len(), 1);
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", pids[0])).unwrap(), std::path::Path::new("/"));
    unmounts(command.arg("umount").arg(&dir));
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()));
}

#[test]
fn umount_refuses_mounts_of_other_programs() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let plain = site.mount_point("plain");
    site.ocifs(&["umount", plain.to_str().unwrap()]).refused(&[1, 8], &["plain"]);
    let other = site.mount_point("other");
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&other)).ok();
    site.ocifs(&["umount", other.to_str().unwrap()]).refused(&[1, 8], &["other"]);
    site.ocifs(&["umount", "-l", other.to_str().unwrap()]).refused(&[1, 8], &["other"]);
    assert_eq!(mounted_at(&other).unwrap().fstype, "tmpfs");
    site.ocifs(&["umount", "/no/such/dir"]).refused(&[1, 8], &["/no/such/dir"]);
}

#[test]
fn a_busy_mount_is_unmounted_only_lazily() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mount = site.mount(&image(&site), &[]);
    let (dir, held) = (mount.dir().to_owned(), fs::File::open(mount.join("merged/f")).unwrap());
    site.ocifs(&["umount", dir.to_str().unwrap()]).refused(&[1, 8], &["in use"]);
    assert_eq!(fs::read(mount.join("merged/f")).unwrap(), b"data");
    site.ocifs(&["umount", "-l", dir.to_str().unwrap()]).ok();
    assert!(mounted_at(&dir).is_none());
    drop(held);
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()));
    mount.forget();
}

#[test]
fn a_dead_mount_stays_until_umount_clears_it() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mount = site.mount(&image(&site), &[]);
    let dir = mount.dir().to_owned();
    signal(mount.pid(), Signal::SIGKILL);
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()));
    mount.forget();
    // The kernel keeps the mount of a dead daemon: "transport endpoint is not connected".
    let is_dead = || statfs(&dir).is_err_and(|errno| errno == nix::errno::Errno::ENOTCONN);
    assert!(becomes_true(CONDITION_TIMEOUT, is_dead));
    unmounts(site.command().arg("umount").arg(&dir));
    assert!(mounted_at(&dir).is_none());
}

#[test]
fn an_unmount_with_an_unreachable_registry_is_prompt() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("docker-registry"), Need::Tool("skopeo")]) {
        return;
    }
    let site = Site::new();
    let mut registry = crate::real_registry::RealRegistry::start();
    registry.push_layout(&image(&site), "some/image:v1");
    let mount = site.mount(&registry.reference("some/image:v1"), &[FOREVER]);
    registry.stop();
    let null = std::process::Stdio::null;
    let reader = Command::new("cat").arg(mount.join("merged/f")).stdout(null()).stderr(null()).spawn();
    let mut reader = reader.unwrap();
    assert!(becomes_true(PROMPT, || waits(reader.id())), "the reader does not wait");
    signal(mount.pid(), Signal::SIGTERM);
    let dir = mount.dir().to_owned();
    // The read that waits would be tried for an hour.
    assert!(becomes_true(PROMPT, || daemons(&dir).is_empty()), "the mount waits for the registry");
    assert!(!ends(&mut reader).success(), "a read that nobody could answer succeeded");
    mount.forget();
}

#[test]
fn the_log_goes_to_the_file_that_was_named() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let log = site.scratch().join("ocifs.log");
    let dir = site.mount_point("mnt");
    let mut command = site.command();
    command.env("OCIFS_LOG", "debug").arg("mount").arg("--log-file").arg(&log).arg(image(&site)).arg(&dir);
    let mount = crate::site::Mount::up(&mut command, dir);
    fs::read(mount.join("merged/f")).unwrap();
    mount.unmount();
    assert!(!fs::read_to_string(log).unwrap().is_empty());
}

#[test]
fn a_password_does_not_stay_in_the_process_list() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    for form in [["--creds", "user:open sesame"], ["-o", "creds=user:open sesame"]] {
        let mount = site.mount(&reference, &form);
        let line = fs::read(format!("/proc/{}/cmdline", mount.pid())).unwrap();
        assert!(!String::from_utf8_lossy(&line).contains("sesame"), "{}", String::from_utf8_lossy(&line));
        mount.unmount();
    }
}
