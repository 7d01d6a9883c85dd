//! A mount that has given up its rights: that it has, that it serves as before, and that it ends in every way.
//!
//! Every test takes the process as it is started by default. What a sandbox refuses in itself is tested beside it.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::fault_registry::{Fault, FaultRegistry};
use crate::other::Other;
use crate::proc_files::{proc_of, status_field};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, sh, signal};
use crate::scratch::mounted_at;
use crate::served::Content;
use crate::servers::{HERE, Server};
use crate::site::{Mount, Site, announcement, binary, daemons, monitor, unmounts};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const USER: &str = "user";

/// A field of `status` of a thread or a process; empty when it is gone.
fn field(place: &Path, name: &str) -> String {
    status_field(place, name).unwrap_or_default()
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/cmdline")).exists() && !field(&proc_of(pid), "State").starts_with('Z')
}

#[track_caller]
fn reads_all(dir: &Path, content: &Content) {
    for file in content.files() {
        assert!(
            fs::read(dir.join(&file.path)).unwrap() == file.bytes,
            "{} is not what was pushed",
            file.path
        );
    }
}

/// A file that is written as programs write logins: beside its name first.
fn replace(path: &Path, bytes: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, bytes).unwrap();
    fs::rename(beside, path).unwrap();
}

fn login(registry: &FaultRegistry, password: &str) -> String {
    use base64::Engine as _;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}"));
    json!({"auths": {registry.host(): {"auth": auth}}}).to_string()
}

fn ask_for(registry: &FaultRegistry, password: &str) {
    registry.clear();
    registry.set(Fault::RequireBasic { user: USER.into(), pass: password.into() });
    registry.revoke_tokens();
}

#[test]
fn the_process_of_a_mount_has_no_rights_left_in_any_thread() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(1));
    content.push(&registry);
    let log = site.scratch().join("log");
    let options = ["--passthrough=off", "--log-file", log.to_str().unwrap()];
    let mount = site.mount(&content.reference(&registry), &options);
    reads_all(mount.dir(), &content);
    let threads: Vec<PathBuf> =
        fs::read_dir(proc_of(mount.pid()).join("task")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(threads.len() > 2, "{threads:?}");
    for thread in &threads {
        assert_eq!(field(thread, "NoNewPrivs"), "1", "{thread:?}");
        assert_eq!(field(thread, "Seccomp"), "2", "{thread:?}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&field(thread, set), 16), Ok(0), "{set} of {thread:?}");
        }
    }
    // What it gave up somebody else has, who serves nothing.
    let kept = monitor(mount.pid()).expect("there is a monitor");
    assert_eq!(field(&proc_of(kept), "Threads"), "1");
    let log = fs::read_to_string(log).unwrap();
    assert!(!log.contains("sandbox"), "this machine has all of it: {log}");
    mount.unmount();
    assert!(becomes_true(CONDITION_TIMEOUT, || !is_alive(kept)), "the monitor outlived the mount");
}

/// What an intruder in the serving process would try, on x86-64: a name, the call, and its arguments (`calls_inside.py`). `SOCKET`,
/// `PLAIN`, `MOUNT` and `PID` stand for a socket, a file, the mount and a process outside.
const INTRUSIONS: &str = "
unix-stream 41 1 1 0
unix-datagram 41 1 2 0
unix-seqpacket 41 1 0x80005 0
unix-upper-half 41 0x100000001 1 0
datagram-pair 53 1 2 0 x:0000000000000000
raw-pair 53 1 0x80003 0 x:0000000000000000
packet 41 17 3 0
vsock 41 40 1 0
chmod 90 s:PLAIN 0o4755
fchmodat 268 -100 s:PLAIN 0o4755
fchmodat2 452 -100 s:PLAIN 0o4755 0
chown 92 s:PLAIN 1 1
lchown 94 s:PLAIN 1 1
fchownat 260 -100 s:PLAIN 1 1 0
utime 132 s:PLAIN 0
utimes 235 s:PLAIN 0
futimesat 261 -100 s:PLAIN 0
utimensat 280 -100 s:PLAIN 0 0
setxattr 188 s:PLAIN s:user.x x:31 1 0
lsetxattr 189 s:PLAIN s:user.x x:31 1 0
removexattr 197 s:PLAIN s:user.y
setxattrat 463 -100 s:PLAIN 0 s:user.x x:00 16
file_setattr 469 -100 s:PLAIN x:00 24 0
fchmod 91 1 0o4755
fchown 93 1 1 1
fsetxattr 190 1 s:user.x x:31 1 0
futimens 280 1 0 0 0
prlimit 302 PID 7 x:e703000000000000e703000000000000 0
sched_setaffinity 203 PID 8 x:0100000000000000
sched_setscheduler 144 PID 3 x:00000000
setpriority 141 0 PID 19
ioprio_set 251 1 PID 0
kill 62 PID 0
kill-group 62 0 0
kill-everything 62 -1 0
tkill 200 PID 0
tgkill 234 PID PID 0
pidfd_send_signal 424 0 0 0 0
open_tree_attr 467 -100 s:MOUNT 0 x:0000000000000000070000000000000000000000000000000000000000000000 32
open_tree 428 -100 s:MOUNT 0
mount_setattr 442 -100 s:MOUNT 0 x:00 32
mount 165 s:x s:/tmp s:tmpfs 0 0
umount2 166 s:MOUNT 2
unshare 272 0x10000000
unshare-files-and-user 272 0x10000400
newest 470 0 0 0 0
next 600 0 0 0 0
x32 0x40000027
shadow 2 s:/etc/shadow 0 0
environment 2 s:/proc/PID/environ 0 0
memory 2 s:/proc/PID/mem 0 0
execve 59 s:/bin/true 0 0
ptrace 101 0x4206 PID 0 0
process_vm_readv 310 PID 0 0 0 0 0
io_uring 425 8 x:00
bpf 321 0 0 0
";

/// Whether what an intruder tried was refused for want of a right, or as a call that there is not.
fn is_refused(answer: &str) -> bool {
    matches!(answer, "EPERM" | "EACCES" | "ENOSYS")
}

#[test]
fn an_intruder_in_the_serving_process_reaches_no_socket_no_mode_no_mount_and_no_other_process() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("python3")]) || !cfg!(target_arch = "x86_64") {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(12));
    content.push(&registry);
    let mount = site.mount(&content.reference(&registry), &[]);
    let mut other = Command::new("sleep").arg("300").env("SECRET", "x").spawn().unwrap();
    let plain = site.scratch().file("plain", "x");
    let calls = INTRUSIONS
        .replace("PLAIN", plain.to_str().unwrap())
        .replace("MOUNT", mount.dir().to_str().unwrap())
        .replace("PID", &other.id().to_string());
    let answers = calls_inside(&mount, &calls);
    other.kill().unwrap();
    other.wait().unwrap();
    let Some(answers) = answers else { return };
    let asked: Vec<&str> = calls.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let answers: Vec<Vec<&str>> = answers.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(answers.iter().map(|answer| answer[0]).collect::<Vec<_>>(), asked);
    let allowed: Vec<_> = answers.iter().filter(|answer| !is_refused(answer[1])).collect();
    assert!(allowed.is_empty(), "{allowed:?}");
    assert_eq!(fs::metadata(&plain).unwrap().permissions().mode() & 0o7777, 0o644);
    // What was tried has not harmed what it serves; and what serving needs is allowed, also to an intruder.
    reads_all(mount.dir(), &content);
    let needed =
        calls_inside(&mount, "inet 41 2 1 0\npair 53 1 0x80001 0 x:0000000000000000\nlimit 302 0 7 0 0\n");
    for answer in needed.unwrap().lines() {
        assert!(!is_refused(answer.split_whitespace().nth(1).unwrap()), "{answer}");
    }
    mount.unmount();
}

/// Has the serving process make the calls; `None` where it cannot be traced.
#[allow(clippy::print_stderr, reason = "a skipped test says why")]
fn calls_inside(mount: &Mount, calls: &str) -> Option<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/calls_inside.py");
    let finished = run(Command::new("bash")
        .args(["-c", "printf %s \"$1\" | python3 \"$2\" \"$3\"", "sh", calls.trim_start()])
        .arg(script)
        .arg(mount.pid().to_string()));
    if finished.code == Some(77) {
        eprintln!("skipped: the process is not in a system call");
        return None;
    }
    Some(finished.ok().text())
}

#[test]
fn a_mount_without_a_sandbox_keeps_its_rights_and_has_no_monitor() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(2));
    content.push(&registry);
    let mount = site.mount(&content.reference(&registry), &["--sandbox=off"]);
    reads_all(mount.dir(), &content);
    let process = proc_of(mount.pid());
    assert_eq!((field(&process, "NoNewPrivs"), field(&process, "Seccomp")), ("0".into(), "0".into()));
    assert_eq!(monitor(mount.pid()), None);
    mount.unmount();
}

#[test]
fn a_mount_serves_cold_reads_and_finds_a_registry_again_that_was_away() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(3));
    content.push(&registry);
    for options in [&["--timeout", "3"][..], &["--timeout", "3", "--no-cache"]] {
        let mount = site.mount(&content.reference(&registry), options);
        let first = content.file(0);
        assert_eq!(fs::read(mount.join(&first.path)).unwrap(), first.bytes);
        registry.go_down();
        fs::read(mount.join(&content.file(2).path)).expect_err("nobody is there to ask");
        registry.come_up();
        reads_all(mount.dir(), &content);
        mount.unmount();
        fs::remove_dir_all(site.cache()).unwrap();
    }
}

#[test]
fn a_login_that_is_replaced_is_read_again_when_it_is_refused_and_on_sighup() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(4));
    content.push(&registry);
    ask_for(&registry, "one");
    let log = site.scratch().join("log");
    let authfile = site.scratch().subdir("login").join("auth.json");
    replace(&authfile, &login(&registry, "one"));
    let options = ["--authfile", authfile.to_str().unwrap(), "--log-file", log.to_str().unwrap()];
    let mut command = site.command();
    let dir = site.mount_point("mnt");
    command.env("OCIFS_LOG", "ocifs=info").arg("mount").args(options).arg(content.reference(&registry));
    let mount = Mount::up(command.arg(&dir), dir);
    // Each piece is of another blob, which is fetched whole when it is first read.
    let reads = |at: usize, offset: u64| {
        let expected = content.file(at);
        let file = fs::File::open(mount.join(&expected.path)).unwrap();
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
        let mut piece = [0; 4096];
        file.read_exact_at(&mut piece, offset)
            .map(|()| assert!(piece[..] == expected.bytes[offset as usize..][..4096], "{}", expected.path))
    };
    let (blob, disk) = (0, 2);
    ask_for(&registry, "two");
    replace(&authfile, &login(&registry, "two"));
    reads(blob, 0).expect("the refused login is read again");

    // A login that is still good is not looked at again, unless somebody says so.
    let hup = |times: usize| {
        signal(mount.pid(), Signal::SIGHUP);
        let reloads = || fs::read_to_string(&log).unwrap().matches("configuration reloaded").count();
        assert!(becomes_true(CONDITION_TIMEOUT, || reloads() == times), "SIGHUP was not answered");
    };
    replace(&authfile, &login(&registry, "three"));
    hup(1);
    ask_for(&registry, "three");
    reads(disk, 0).expect("the new login counts");

    // A file outside is out of reach, even under a name that is not.
    let outside = site.scratch().subdir("outside").join("auth.json");
    fs::write(&outside, login(&registry, "three")).unwrap();
    fs::remove_file(&authfile).unwrap();
    std::os::unix::fs::symlink(&outside, &authfile).unwrap();
    hup(2);
    reads(disk, 600_000).expect_err("there is no login that may be read");
    let output = fs::read_to_string(&log).unwrap();
    assert!(output.contains("cannot read credentials"), "{output}");
    mount.unmount();
}

#[test]
fn a_credential_helper_is_run_by_the_monitor() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(5));
    content.push(&registry);
    ask_for(&registry, "one");
    let tools = site.scratch().subdir("tools");
    let (secret, parents, variables) = (tools.join("secret"), tools.join("parents"), tools.join("variables"));
    let script = format!(
        "#!/bin/sh\ntr '\\0' ' ' < /proc/$PPID/cmdline >> {parents}\nenv >> {variables}\nread server\n\
         printf '{{\"Username\":\"{USER}\",\"Secret\":\"%s\"}}' \"$(cat {secret})\"\n",
        parents = parents.display(),
        variables = variables.display(),
        secret = secret.display()
    );
    fs::write(&secret, "one").unwrap();
    // By a program of its own, because no file runs while a process has it open for writing.
    let helper = tools.join("docker-credential-ours");
    sh("printf %s \"$1\" > \"$2\"; chmod 755 \"$2\"", &[&script, &helper]);
    let config = json!({"credHelpers": {registry.host(): "ours"}}).to_string();
    let authfile = site.scratch().subdir("login").join("auth.json");
    fs::write(&authfile, config).unwrap();
    let dir = site.mount_point("mnt");
    let mut command = site.command();
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    // A variable that a caller left makes no monitor of the command.
    command.env("PATH", path).env("OCIFS_MONITOR", "1").args(["mount", "--authfile"]).arg(&authfile);
    let mount = Mount::up(command.arg(content.reference(&registry)).arg(&dir), dir);
    // A stop breaks off a wait at a socket with a timeout, as the end of a child can.
    let kept = monitor(mount.pid()).expect("there is a monitor");
    signal(kept, Signal::SIGSTOP);
    assert!(becomes_true(CONDITION_TIMEOUT, || field(&proc_of(kept), "State").starts_with('T')));
    signal(kept, Signal::SIGCONT);
    fs::write(&secret, "two").unwrap();
    ask_for(&registry, "two");
    reads_all(mount.dir(), &content);
    let parents = fs::read_to_string(parents).unwrap();
    assert!(
        parents.starts_with("ocifs-monitor") && parents.matches("ocifs-monitor").count() > 1,
        "{parents}"
    );
    assert!(!parents.contains("mount"), "{parents}");
    let variables = fs::read_to_string(variables).unwrap();
    assert!(variables.contains("PATH=") && !variables.contains("OCIFS_MONITOR"), "{variables}");
    mount.unmount();
}

/// How a mount can be ended.
const ENDS: [&[&str]; 6] = [
    &["ocifs", "umount"],
    &["ocifs", "umount", "-l"],
    &["umount"],
    &["fusermount3", "-u"],
    &["SIGTERM"],
    &["SIGINT"],
];

#[track_caller]
fn ends_cleanly(mut child: Child, dir: &Path, how: &[&str]) {
    let kept = monitor(child.id());
    match how {
        ["SIGTERM"] => signal(child.id(), Signal::SIGTERM),
        ["SIGINT"] => signal(child.id(), Signal::SIGINT),
        ["ocifs", more @ ..] => unmounts(Command::new(binary()).args(more).arg(dir)),
        [tool, more @ ..] => unmounts(Command::new(tool).args(more).arg(dir)),
        [] => unreachable!("every end has a name"),
    }
    let mut status = None;
    becomes_true(CONDITION_TIMEOUT, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    if status.is_none() {
        child.kill().unwrap();
    }
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{how:?}");
    assert!(mounted_at(dir).is_none(), "{how:?} left a mount");
    assert!(daemons(dir).is_empty(), "{how:?} left a process");
    assert!(
        kept.is_none_or(|kept| becomes_true(CONDITION_TIMEOUT, || !is_alive(kept))),
        "{how:?} left the monitor"
    );
}

#[test]
fn every_way_to_unmount_works_after_dentries_were_dropped() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("fusermount3")]) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(6));
    content.push(&registry);
    for forgets in [false, true] {
        for how in ENDS {
            let (child, dir) = site.mount_foreground(&content.reference(&registry), &["--no-cache"]);
            let file = content.file(1);
            assert_eq!(fs::read(dir.join(&file.path)).unwrap(), file.bytes);
            if forgets {
                // Inodes of /proc, to which rules for files may refer, are made anew after this.
                fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            }
            ends_cleanly(child, &dir, how);
            let left: Vec<_> = fs::read_dir(site.cache().join("v1/private")).unwrap().flatten().collect();
            assert!(left.is_empty(), "{how:?} left {left:?}");
        }
    }
}

#[test]
fn mount_ends_while_a_read_waits_for_a_silent_registry() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(11));
    content.push(&registry);
    for how in [&["SIGTERM"], &["SIGINT"]] {
        // Whoever waited for the network would wait for ten minutes.
        let options = ["--no-cache", "--timeout", "600"];
        let (child, dir) = site.mount_foreground(&content.reference(&registry), &options);
        let before = registry.blob_requests().len();
        registry.set(Fault::StallAfter(1000));
        let null = std::process::Stdio::null;
        let file = dir.join(&content.file(0).path);
        let mut reader = Command::new("cat").arg(file).stdout(null()).stderr(null()).spawn().unwrap();
        assert!(becomes_true(CONDITION_TIMEOUT, || registry.blob_requests().len() > before), "nobody asked");
        ends_cleanly(child, &dir, how);
        assert!(!reader.wait().unwrap().success(), "{how:?}: a read that nobody could answer succeeded");
        registry.clear();
    }
}

#[test]
fn a_mount_whose_monitor_is_gone_serves_on_and_can_be_ended_from_outside() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(7));
    content.push(&registry);
    let mount = site.mount(&content.reference(&registry), &[]);
    let kept = monitor(mount.pid()).expect("there is a monitor");
    signal(kept, Signal::SIGKILL);
    assert!(becomes_true(CONDITION_TIMEOUT, || !is_alive(kept)));
    reads_all(mount.dir(), &content);
    mount.unmount_from_outside();
}

#[test]
fn a_kernel_that_can_do_less_is_no_reason_not_to_mount() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("strace")]) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(8));
    content.push(&registry);
    for (missing, part) in [("landlock_create_ruleset", "files"), ("seccomp", "calls")] {
        let dir = site.mount_point("mnt");
        let log = site.scratch().join(missing);
        let inject = format!("inject={missing}:error=ENOSYS");
        let mut command = site.tool("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=landlock_create_ruleset,seccomp", "-e"]);
        command.arg(inject).arg(binary()).args(["mount", "-f", "--log-file"]).arg(&log);
        command.arg(content.reference(&registry)).arg(&dir);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let line = announcement(&mut child);
        assert!(line.contains(" mounted at "), "without {missing} nothing is mounted: {line:?}");
        reads_all(&dir, &content);
        let daemon = daemons(&dir)[0];
        let process = proc_of(daemon);
        // The other parts hold.
        assert_eq!(field(&process, "NoNewPrivs"), "1");
        assert_eq!(field(&process, "Seccomp"), if part == "calls" { "0" } else { "2" });
        let output = fs::read_to_string(&log).unwrap();
        let line = format!("the sandbox does not hold part=\"{part}\"");
        assert_eq!(output.matches("sandbox").count(), 1, "{output}");
        assert!(output.contains(&line), "{output}");
        signal(daemon, Signal::SIGTERM);
        assert!(becomes_true(CONDITION_TIMEOUT, || child.try_wait().unwrap().is_some()));
        assert!(mounted_at(&dir).is_none());
    }
}

/// Mounts, reads what is named, looks at the process, and unmounts in the way that is given.
const WHOLE_LIFE: &str = r#"
of() { for p in /proc/[0-9]*; do if tr '\0' ' ' < "$p/cmdline" 2> /dev/null | grep -q "$1"; then echo "$p"; fi; done; }
"$1" mount --log-file "$HOME/log" "$3" "$2" > /dev/null
cat "$2/$4" | sha256sum
daemon=$(of "^ocifs mount .* $2 $")
grep -E '^(NoNewPrivs|Seccomp|CapEff):' "$daemon/status"
for p in $(of ^ocifs-monitor); do
  if grep -q "^PPid:.${daemon#/proc/}$" "$p/status"; then monitor=$p; fi
done
test -e "$monitor/status"
END "$2"
! grep " $2 " /proc/self/mountinfo
for wait in $(seq 1200); do
  if [ ! -e "$daemon" ] && [ ! -e "$monitor" ]; then exit 0; fi
  sleep 0.1
done
echo "processes are left" >&2; exit 1
"#;

#[test]
fn an_ordinary_user_mounts_reads_and_unmounts_inside_the_sandbox() {
    lives_a_whole_life(&[], &["fusermount3 -u", "\"$1\" umount"]);
}

#[test]
fn root_of_a_user_namespace_mounts_reads_and_unmounts_inside_the_sandbox() {
    lives_a_whole_life(&["unshare", "-Urm"], &["umount", "\"$1\" umount"]);
}

fn lives_a_whole_life(namespace: &[&str], ends: &[&str]) {
    let needs =
        [Need::Root, Need::Fuse, Need::Tool("setpriv"), Need::Tool("unshare"), Need::Tool("fusermount3")];
    if !able(&needs) {
        return;
    }
    let (registry, content) = (FaultRegistry::start(), Content::new(9));
    content.push(&registry);
    for end in ends {
        let other = Other::new();
        let file = content.file(1);
        let script = WHOLE_LIFE.replace("END", end);
        let finished = other.runs(namespace, &script, &[&content.reference(&registry), &file.path]);
        let log = fs::read_to_string(other.home.join("log")).unwrap_or_default();
        assert_eq!(finished.code, Some(0), "{end}: {} {} {log}", finished.text(), finished.stderr);
        let output = finished.text();
        let sum = ocifs::oci::Digest::sha256(&file.bytes).as_str().replace("sha256:", "");
        assert!(output.contains(&sum), "{output}");
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
            assert_eq!(output.matches(line).count(), 1, "{line} in {output}");
        }
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    }
}

/// Mounts from a host whose address is in a file, replaces that file, drops all connections, and reads on.
const NAMES_CHANGE: &str = r#"
mount --bind "$4" /etc
"$1" mount --plain-http --log-file "$4/log" "$3" "$2" > /dev/null
cp /etc/hosts /etc/hosts.new; mv /etc/hosts.new /etc/hosts
for p in /proc/[0-9]*; do
  if tr '\0' ' ' < "$p/cmdline" 2> /dev/null | grep -q "^ocifs mount .* $2 $"; then kill -HUP "${p#/proc/}"; fi
done
for wait in $(seq 1200); do if grep -q "configuration reloaded" "$4/log"; then break; fi; sleep 0.1; done
sha256sum < "$2/$5"
umount "$2"
"#;

#[test]
fn a_host_is_found_again_when_the_files_for_names_were_replaced() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("unshare"), Need::Tool("nginx")]) {
        return;
    }
    let (site, content) = (Site::new(), Content::new(10));
    let server = Server::nginx(&content, &HERE, "", "");
    let etc = site.scratch().subdir("etc");
    fs::write(etc.join("hosts"), "127.0.0.1 registry.test\n").unwrap();
    fs::write(etc.join("nsswitch.conf"), "hosts: files\n").unwrap();
    let port = server.host.rsplit(':').next().unwrap();
    let reference = content.reference_at(&format!("registry.test:{port}"));
    let (dir, file) = (site.mount_point("mnt"), content.file(0));
    let mut command = site.tool("unshare");
    command.args(["--mount", "bash", "-euc", NAMES_CHANGE, "sh"]).arg(binary()).arg(&dir).arg(reference);
    command.arg(&etc).arg(&file.path);
    let finished = run(command.env("OCIFS_LOG", "ocifs=debug")).ok();
    let log = fs::read_to_string(etc.join("log")).unwrap();
    let sum = ocifs::oci::Digest::sha256(&file.bytes).as_str().replace("sha256:", "");
    assert!(finished.text().contains(&sum), "{} {log}", finished.text());
    assert!(log.contains("resolved outside the sandbox"), "{log}");
}
