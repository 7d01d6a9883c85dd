//! Mounts at a limit of descriptors or of processes: they work, or end with an error and leave no mount; no reader waits for ever.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able, becomes_true, run, run_within, sh};
use crate::scratch::mounted_at;
use crate::site::{Site, daemons};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

/// What a reader or a command may take at most, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

fn image(site: &Site) -> String {
    let mut layout = Layout::create(site.scratch().join("layout"));
    let tar = |name: &str, seed| Tarball::new().file(name, &noise(2 << 20, seed)).bytes();
    layout.image("v1", &[Layer::of(&tar("f", 1), Encoding::Gzip), Layer::of(&tar("g", 2), Encoding::Gzip)]);
    layout.reference("v1")
}

#[test]
fn a_mount_that_fails_for_want_of_descriptors_leaves_no_mount() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    let (mut failed, mut mounted) = (0, 0);
    for limit in (6..30).chain((30..60).step_by(5)) {
        let dir = site.mount_point(&format!("mnt-{limit}"));
        let mut command = site.command();
        command.arg("mount").args(["--view", "merged"]).arg(&reference).arg(&dir);
        let mut few = inside("ulimit -n $0 && exec \"$@\"", limit.to_string().as_ref(), &command);
        let finished = run_within(&mut few, PATIENCE);
        if finished.code == Some(0) {
            mounted += 1;
            assert!(mounted_at(&dir).is_some(), "with {limit} descriptors a mount that was reported is gone");
            run(Command::new("umount").arg("-l").arg(&dir)).ok();
        } else {
            failed += 1;
            assert!(mounted_at(&dir).is_none(), "with {limit} descriptors: {}", finished.stderr);
            assert!(fs::read_dir(&dir).is_ok_and(|mut names| names.next().is_none()), "{limit}");
        }
        assert!(becomes_true(PATIENCE, || daemons(&dir).is_empty()), "with {limit} descriptors");
    }
    assert!(failed > 0 && mounted > 0, "{failed} failed, {mounted} did not");
}

/// `command` by a shell that does `script` before; `argument` is its `$0`.
fn inside(script: &str, argument: &OsStr, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(argument).arg(command.get_program()).args(command.get_args()).env_clear();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    shell
}

/// A cgroup whose processes are counted; gone when it is dropped.
struct Pids(PathBuf);

impl Pids {
    /// `None` where no such cgroup can be made.
    fn new(name: &str) -> Option<Self> {
        let name = format!("ocifs-test-{name}-{}", std::process::id());
        ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].into_iter().find_map(|top| {
            let group = PathBuf::from(top).join(&name);
            fs::create_dir(&group).ok()?;
            if group.join("pids.max").exists() {
                return Some(Self(group));
            }
            fs::remove_dir(&group).ok();
            None
        })
    }

    fn limit(&self, most: &str) {
        fs::write(self.0.join("pids.max"), most).unwrap();
    }

    fn current(&self) -> String {
        fs::read_to_string(self.0.join("pids.current")).unwrap().trim().to_owned()
    }

    /// `command` as one that runs in it.
    fn holds(&self, command: &Command) -> Command {
        inside("echo $$ > \"$0/cgroup.procs\" && exec \"$@\"", self.0.as_os_str(), command)
    }
}

impl Drop for Pids {
    fn drop(&mut self) {
        becomes_true(PATIENCE, || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_moment_without_threads_fails_readers_or_delays_them_and_no_longer() {
    if !able(&NEEDS) {
        return;
    }
    let Some(pids) = Pids::new("moment") else {
        eprintln!("skipped: no cgroup with pids.max can be made");
        return;
    };
    let site = Site::new();
    let reference = image(&site);
    let dir = site.mount_point("mnt");
    let mut command = site.command();
    command.arg("mount").args(["--view", "merged"]).arg(&reference).arg(&dir);
    run_within(&mut pids.holds(&command), PATIENCE).ok();
    pids.limit(&pids.current());
    let cat = |name: &str| {
        let mut cat = Command::new("cat");
        cat.arg(dir.join(name)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut first = cat("f");
    becomes_true(Duration::from_secs(3), || first.try_wait().unwrap().is_some());
    pids.limit("max");
    assert!(becomes_true(PATIENCE, || first.try_wait().unwrap().is_some()), "the reader hangs");
    let mut second = cat("g");
    assert!(becomes_true(PATIENCE, || second.try_wait().unwrap().is_some()), "the next reader hangs");
    assert_eq!(fs::read(dir.join("g")).unwrap(), noise(2 << 20, 2));
    run(Command::new("umount").arg(&dir)).ok();
    assert!(becomes_true(PATIENCE, || daemons(&dir).is_empty()));
}

#[test]
fn start_with_too_few_threads_fails_and_never_hangs() {
    if !able(&NEEDS) {
        return;
    }
    let Some(pids) = Pids::new("start") else {
        eprintln!("skipped: no cgroup with pids.max can be made");
        return;
    };
    let site = Site::new();
    let reference = image(&site);
    let mut mounted = Vec::new();
    for most in [4, 6, 8, 10, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 24, 60] {
        pids.limit(&most.to_string());
        let dir = site.mount_point(&format!("mnt-{most}"));
        let mut mount = site.command();
        mount.arg("mount").args(["--view", "merged"]).arg(&reference).arg(&dir);
        let mut cat = site.command();
        cat.arg("cat").arg(&reference).arg("merged/f");
        let finished = run_within(&mut pids.holds(&cat), PATIENCE);
        assert!(finished.code == Some(0) || !finished.stderr.is_empty(), "cat with {most}");
        assert!(!finished.stderr.contains("panicked"), "cat with {most}: {}", finished.stderr);
        let finished = run_within(&mut pids.holds(&mount), PATIENCE);
        if finished.code == Some(0) {
            mounted.push(most);
            // What is mounted is read.
            let read = sh("timeout 60 cat $1/f | wc -c", &[&dir]).text();
            assert_eq!(read.trim(), (2 << 20).to_string(), "with {most}");
            run(Command::new("umount").arg(&dir)).ok();
        } else {
            assert!(!finished.stderr.contains("panicked"), "with {most}: {}", finished.stderr);
            assert!(!finished.stderr.trim().is_empty(), "with {most}");
            assert!(mounted_at(&dir).is_none(), "with {most}: {}", finished.stderr);
        }
        assert!(becomes_true(PATIENCE, || daemons(&dir).is_empty()), "with {most}");
    }
    // How many threads a mount needs depends on the cores; 4 is below its fixed ones, 60 above all of two cores.
    assert!(!mounted.contains(&4) && mounted.contains(&60), "mounted with {mounted:?}");
}
