//! Mounts at a limit of descriptors or of processes: they work, or end with an error and leave no mount; no reader waits for ever.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::artifact::{self, Piece};
use crate::byte_text::digest_of;
use crate::encode::Encoding;
use crate::fault_registry::FaultRegistry;
use crate::layout::{Layer, Layout, MANIFEST};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, run_within, sh};
use crate::scratch::mounted_at;
use crate::site::{Site, daemons, unmounts};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

/// What a reader or a command may take at most, on a machine that does much else.
const PATIENCE: Duration = CONDITION_TIMEOUT;

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

/// Descriptors of a process, and layers and blobs of an image, of which it cannot have all open.
struct DescriptorCrowd {
    descriptors: &'static str,
    layers: usize,
    blobs: usize,
}

impl DescriptorCrowd {
    /// The full one with `OCIFS_LONG`, half of the layers and a quarter of the blobs without.
    fn new() -> Self {
        match std::env::var_os("OCIFS_LONG") {
            Some(_) => Self { descriptors: "1024", layers: 400, blobs: 4000 },
            None => Self { descriptors: "512", layers: 200, blobs: 1000 },
        }
    }
}

/// Mounts with few descriptors, runs `script` in the mount, and gives its output.
fn with_few_descriptors(site: &Site, name: &str, reference: &str, options: &[&str], script: &str) -> String {
    let dir = site.mount_point(name);
    let mut command = site.command();
    command.arg("mount").args(options).arg(reference).arg(&dir);
    let limited =
        &mut inside("ulimit -n $0 && exec \"$@\"", DescriptorCrowd::new().descriptors.as_ref(), &command);
    run_within(limited, PATIENCE).ok();
    let read = run_within(Command::new("sh").args(["-c", script]).arg(&dir), 10 * PATIENCE);
    run(Command::new("umount").arg("-l").arg(&dir)).ok();
    assert!(becomes_true(PATIENCE, || daemons(&dir).is_empty()));
    let read = read.ok();
    assert_eq!(read.stderr, "", "{name}");
    read.text()
}

#[test]
fn more_layers_than_descriptors_are_read() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let layer = |number: usize| {
        let tar = Tarball::new().file(&format!("f-{number:03}"), &noise(3000, number as u64)).bytes();
        Layer::of(&tar, if number.is_multiple_of(2) { Encoding::Gzip } else { Encoding::Plain })
    };
    let DescriptorCrowd { layers: count, .. } = DescriptorCrowd::new();
    layout.image("v1", &(0..count).map(layer).collect::<Vec<_>>());
    let expected: Vec<u8> = (0..count).flat_map(|number| noise(3000, number as u64)).collect();
    let script = "cd $0/merged && ls | wc -l && cat * | sha256sum && cat ../layers/*/f-* | wc -c";
    let text = with_few_descriptors(&site, "layers", &layout.reference("v1"), &[], script);
    let sum = digest_of(&expected);
    assert_eq!(text, format!("{count}\n{}  -\n{}\n", &sum["sha256:".len()..], expected.len()));
}

#[test]
fn more_blobs_than_descriptors_are_read() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let registry = FaultRegistry::start();
    let DescriptorCrowd { blobs, .. } = DescriptorCrowd::new();
    let bytes = |number: usize| noise(1024, 7000 + number as u64);
    let pieces = |title: fn(usize) -> String| -> Vec<Piece> {
        (0..blobs).map(|at| Piece::new(&title(at), "application/octet-stream", bytes(at))).collect()
    };
    let files = pieces(|at| format!("f-{at:04}.bin"));
    let parts = pieces(|at| format!("disk.img.{at:04}.part"));
    artifact::write(&mut layout, "files", "application/x-test", &files);
    artifact::write(&mut layout, "disk", "application/x-test", &parts);
    registry.push_blob(b"{}");
    for piece in &files {
        registry.push_blob(piece.bytes.clone());
    }
    let manifest = artifact::manifest("application/x-test", &files);
    registry.push_manifest("few/files", "v1", MANIFEST, &manifest);
    let all: Vec<u8> = (0..blobs).flat_map(bytes).collect();
    let sum = digest_of(&all);
    let sum = &sum["sha256:".len()..];
    let store = format!("--content-store={}", site.scratch().join("layout").display());
    let remote = format!("{}/few/files:v1", registry.host());
    let listed = "cd $0/files && ls | wc -l && cat * | sha256sum";
    let whole = "cd $0/disk && ls *.img | wc -l && cat *.img | sha256sum";
    let cases: [(&str, &str, &[&str], &str, usize); 4] = [
        ("local", &layout.reference("files"), &[], listed, blobs),
        ("parts", &layout.reference("disk"), &[], whole, 1),
        ("stored", &remote, &[&store], listed, blobs),
        ("fetched", &remote, &["--content-store="], listed, blobs),
    ];
    for (name, reference, options, script, count) in cases {
        let text = with_few_descriptors(&site, name, reference, options, script);
        assert_eq!(text, format!("{count}\n{sum}  -\n"), "{name}");
    }
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
    unmounts(Command::new("umount").arg(&dir));
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
            unmounts(Command::new("umount").arg(&dir));
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
