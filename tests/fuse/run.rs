//! `run`: a mount for the life of a command, which sees its own exit code and signals come through.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::other::Other;
use crate::process::{CONDITION_TIMEOUT, Finished, Need, able, becomes_true, run, signal};
use crate::scratch::mounted_at;
use crate::site::{Site, daemons};
use crate::tarball::Tarball;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const UNTIL_A_SIGNAL: &str = "while :; do sleep 0.05; done";
/// For as long as the file is there that [`started`] waits for.
const WHILE_WANTED: &str = "while [ -e $where ]; do sleep 0.05; done";

fn image(site: &Site) -> String {
    let mut layout = Layout::create(site.scratch().join("layout"));
    let tar = Tarball::new().dir("d").file("d/f", b"data").file("g", b"more");
    layout.image("v1", &[Layer::of(&tar.bytes(), Encoding::Gzip)]);
    layout.reference("v1")
}

/// `ocifs run` whose temporary directory is in the site, so that what it leaves is seen.
fn command(site: &Site, args: &[&str]) -> Command {
    let mut command = site.command();
    command.env("TMPDIR", site.scratch().subdir("tmp")).arg("run").args(args);
    command
}

fn ran(site: &Site, args: &[&str]) -> Finished {
    run(&mut command(site, args))
}

/// What `run` left in its temporary directory.
fn left(site: &Site) -> Vec<PathBuf> {
    fs::read_dir(site.scratch().join("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Starts `ocifs run` on a command that does `first`, writes where its mount is to a file, and then does `script`.
fn started(site: &Site, options: &[&str], reference: &str, [first, script]: [&str; 2]) -> (Child, PathBuf) {
    let file = site.scratch().join("where");
    let script = format!(
        "{first}; where={}; echo $OCIFS_MOUNT > $where.new; mv $where.new $where; {script}",
        file.display()
    );
    let mut command = command(site, &[options, &[reference, "--", "sh", "-c", &script]].concat());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    assert!(becomes_true(CONDITION_TIMEOUT, || file.exists()), "the command does not start");
    (child, PathBuf::from(fs::read_to_string(&file).unwrap().trim()))
}

fn ends(child: &mut Child) -> std::process::ExitStatus {
    let mut status = None;
    assert!(becomes_true(CONDITION_TIMEOUT, || {
        status = child.try_wait().unwrap();
        status.is_some()
    }));
    status.unwrap()
}

#[track_caller]
fn is_gone(dir: &Path) {
    assert!(
        becomes_true(CONDITION_TIMEOUT, || mounted_at(dir).is_none() && daemons(dir).is_empty()),
        "{dir:?} is left"
    );
}

#[test]
fn a_command_reads_the_mount_and_its_exit_code_is_ours() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    let script = "cat {}/merged/d/f; test {} = \"$OCIFS_MOUNT\" && echo \" $OCIFS_CREDS.\"; exit 7";
    let mut command = command(&site, &[&reference, "--", "sh", "-c", script]);
    let output = run(command.env("OCIFS_CREDS", "user:secret"));
    assert_eq!((output.code, output.text().as_str()), (Some(7), "data .\n"), "{}", output.stderr);
    assert!(left(&site).is_empty(), "{:?}", left(&site));
    // Options of mount are options of run, in both spellings.
    let one = ran(&site, &["--view", "merged", &reference, "--", "cat", "{}/g"]);
    assert_eq!(one.ok().text(), "more");
    let other = ran(&site, &["-o", "view=merged,subdir=d", &reference, "--", "cat", "{}/f"]);
    assert_eq!(other.ok().text(), "data");
    let words = ran(&site, &[&reference, "--", "printf", "%s|", "--rw", "--", "-o"]);
    assert_eq!(words.ok().text(), "--rw|--|-o|");
}

#[test]
fn run_of_an_impossible_command_exits_as_in_shells() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    ran(&site, &[&reference, "--", "/no/such/program"]).refused(&[127], &["/no/such/program"]);
    ran(&site, &[&reference, "--", "/etc/hostname"]).refused(&[126], &["/etc/hostname"]);
    // The reference is wrong: the command is never run, and the exit code is that of a mount.
    let missing = format!("oci:{}:nothing", site.scratch().join("layout").display());
    let file = site.scratch().join("ran");
    ran(&site, &[&missing, "--", "touch", file.to_str().unwrap()]).refused(&[3], &["nothing"]);
    assert!(!file.exists());
    ran(&site, &[&reference]).refused(&[2], &["CMD"]);
    assert!(left(&site).is_empty(), "{:?}", left(&site));
}

#[test]
fn signals_reach_the_command_and_its_answer_is_ours() {
    if !able(&NEEDS) {
        return;
    }
    for (sent, trap, code) in [
        (Signal::SIGTERM, "trap 'exit 9' TERM", 9),
        (Signal::SIGUSR1, "trap 'exit 8' USR1", 8),
        // It does nothing about it, and is ended.
        (Signal::SIGHUP, ":", 128 + 1),
    ] {
        let site = Site::new();
        let (mut child, dir) = started(&site, &[], &image(&site), [trap, UNTIL_A_SIGNAL]);
        assert!(mounted_at(&dir).is_some());
        signal(child.id(), sent);
        assert_eq!(ends(&mut child).code(), Some(code), "{sent}");
        is_gone(&dir);
        assert!(left(&site).is_empty(), "{:?}", left(&site));
    }
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    let script = "trap '' HUP; \"$0\" run \"$1\" -- sh -c 'kill -HUP $PPID; kill -HUP $$; cat {}/merged/g'";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(crate::site::binary()).arg(&reference);
    shell.env("OCIFS_CACHE_DIR", site.cache()).env("TMPDIR", site.scratch().subdir("tmp"));
    assert_eq!(run(&mut shell).ok().text(), "more");
    ran(&site, &["--creds=user:secret", &reference, "--", "true"]).refused(&[2], &["--creds", "OCIFS_CREDS"]);
}

#[test]
fn no_mount_is_left_whatever_is_killed() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    // The one who waits for the command.
    let (mut child, dir) = started(&site, &[], &reference, [":", WHILE_WANTED]);
    child.kill().unwrap();
    assert_eq!(ends(&mut child).signal(), Some(9));
    is_gone(&dir);
    assert!(becomes_true(CONDITION_TIMEOUT, || left(&site).is_empty()), "{:?}", left(&site));
    // The one who serves.
    fs::remove_file(site.scratch().join("where")).unwrap();
    let go = site.scratch().join("go");
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.02; done; cat $OCIFS_MOUNT/merged/g && exit 3; exit 4",
        go.display()
    );
    let (mut child, dir) = started(&site, &[], &reference, [":", &script]);
    for pid in daemons(&dir) {
        signal(pid, Signal::SIGKILL);
    }
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()));
    fs::write(go, "").unwrap();
    assert_eq!(ends(&mut child).code(), Some(4));
    is_gone(&dir);
}

#[test]
fn background_processes_of_run_do_not_keep_its_mount() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let script = "exec 3< {}/merged/g; sleep 3600 > /dev/null 2>&1 & echo $! {}";
    let output = ran(&site, &[&image(&site), "--", "sh", "-c", script]).ok().text();
    let (left_running, dir) = output.trim().split_once(' ').unwrap();
    is_gone(Path::new(dir));
    assert!(left(&site).is_empty(), "{:?}", left(&site));
    let pid = left_running.parse().unwrap();
    let runs = || crate::proc_files::state_of(pid) == 'S';
    assert!(becomes_true(CONDITION_TIMEOUT, runs), "the process that was left running");
    signal(pid, Signal::SIGKILL);
}

#[test]
fn rw_writes_of_a_command_are_private() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let reference = image(&site);
    let script = "echo new > {}/d/n && rm {}/g && echo x >> {}/d/f && cat {}/d/n {}/d/f && ls {} && ls {}/../mnt; exit 5";
    let output = ran(&site, &["--rw", "--view=merged", &reference, "--", "sh", "-c", script]);
    assert_eq!(
        (output.code, output.text().as_str()),
        (Some(5), "new\ndatax\nd\nd\ng\n"),
        "{}",
        output.stderr
    );
    assert!(left(&site).is_empty(), "{:?}", left(&site));
    // The next one starts from the image again.
    let again = ran(&site, &["--rw", "--view=merged", &reference, "--", "cat", "{}/g", "{}/d/f"]);
    assert_eq!(again.ok().text(), "moredata");
    // While it runs, nothing of it is seen outside.
    let (mut child, dir) = started(
        &site,
        &["--rw", "--view=merged"],
        &reference,
        ["trap 'exit 6' TERM; touch $OCIFS_MOUNT/there", UNTIL_A_SIGNAL],
    );
    assert!(mounted_at(&dir).is_none() && fs::read_dir(&dir).unwrap().next().is_none());
    signal(child.id(), Signal::SIGTERM);
    assert_eq!(ends(&mut child).code(), Some(6));
    assert!(left(&site).is_empty(), "{:?}", left(&site));
    // Killed, it leaves files, and no mount.
    fs::remove_file(site.scratch().join("where")).unwrap();
    let (mut child, dir) = started(&site, &["--rw"], &reference, [":", WHILE_WANTED]);
    let mount = dir.parent().unwrap().join("mnt");
    assert!(mounted_at(&mount).is_some());
    child.kill().unwrap();
    ends(&mut child);
    is_gone(&mount);
}

#[test]
fn ordinary_user_can_run_and_gets_a_hint_for_rw() {
    let needs =
        [Need::Root, Need::Fuse, Need::Tool("setpriv"), Need::Tool("fusermount3"), Need::Tool("unshare")];
    if !able(&needs) {
        return;
    }
    let other = Other::new();
    let mut layout = Layout::create(other.room.join("layout"));
    layout.image("v1", &[Layer::of(&Tarball::new().file("g", b"more").bytes(), Encoding::Gzip)]);
    let runs = |namespace: &[&str], script: &str| {
        let script = format!("export TMPDIR=$HOME; {script}");
        other.runs(namespace, &script, &[&layout.reference("v1")])
    };
    assert_eq!(runs(&[], "\"$1\" run \"$3\" -- cat {}/merged/g").ok().text(), "more");
    runs(&[], "\"$1\" run --rw \"$3\" -- true").refused(&[8], &["writable", "unshare -rm"]);
    let script = "\"$1\" run --rw --view=merged \"$3\" -- sh -c 'echo y > {}/g && cat {}/g'";
    assert_eq!(runs(&["unshare", "-Urm"], script).ok().text(), "y\n");
    let left: Vec<_> = fs::read_dir(&other.home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("ocifs-")), "{left:?}");
}
