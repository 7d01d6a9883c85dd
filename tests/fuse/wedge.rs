//! Outages and hanging servers block no request that needs no registry.
//!
//! Never asserts how fast a thing is, but that it ends while what it must not wait for is still away. The idea: a registry that is never
//! there, so that whatever answers has answered without it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::encode::Encoding;
use crate::fault_registry::{Fault, FaultRegistry, ReservedPort};
use crate::layout::{Layer, Layout};
use crate::proc_files::state_of;
use crate::process::{CONDITION_TIMEOUT, Finished, Need, able, becomes_true, run, run_within, signal};
use crate::scratch::{mounted_at, mounts};
use crate::served::Content;
use crate::site::{Mount, Site, binary, daemons, unmounts};
use crate::tarball::Tarball;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
/// Far below the time that any registry is waited for here, and enough for a busy machine.
pub(crate) const PROMPT: Duration = CONDITION_TIMEOUT;
/// How long a registry is waited for where nothing may wait for it.
pub(crate) const FOREVER: &str = "--timeout=3600";

/// A server that takes connections and says nothing, and its address.
pub(crate) fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// A mount that waits for a registry that is never there, at this port.
fn waiting(site: &Site, options: &[&str]) -> (Mount, ReservedPort) {
    let closed = ReservedPort::new();
    let options = [&["--delay-connect", "--timeout=1"], options].concat();
    (site.mount_at("waits", &format!("{}/a/b:1", closed.address()), &options), closed)
}

/// Runs a program that needs no answer of a registry.
#[track_caller]
pub(crate) fn prompt(command: &mut Command) -> Finished {
    run_within(command, PROMPT)
}

pub(crate) fn ended(child: &mut Child) -> Option<std::process::ExitStatus> {
    let mut status = None;
    becomes_true(PROMPT, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    status
}

#[test]
fn signals_end_every_command_that_connects() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (held, address) = silent();
    held.set_nonblocking(true).unwrap();
    let reference = format!("{address}/a/b:1");
    let dir = site.mount_point("mnt").display().to_string();
    let out = site.scratch().join("out").display().to_string();
    let archive = site.scratch().join("archive").display().to_string();
    let commands: [&[&str]; 14] = [
        &["mount", "-f", &reference, &dir],
        &["mount", &reference, &dir],
        &["mount", "--refresh", &reference, &dir],
        &["run", &reference, "--", "true"],
        &["record", &reference, "--", "true"],
        &["inspect", &reference],
        &["ls", &reference],
        &["cat", &reference, "f"],
        &["resolve", &reference],
        &["pull", &reference],
        &["cp", &reference, "f", &out],
        &["export", &reference, "-o", &archive],
        &["verify", &reference],
        &["doctor", &reference],
    ];
    let tmp = site.scratch().subdir("tmp");
    for words in commands {
        for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            let mut command = site.command();
            command.args([words[0], FOREVER]).args(&words[1..]).env("TMPDIR", &tmp);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let connects = || connections(&address) > 0 || child.try_wait().unwrap().is_some();
            assert!(becomes_true(PROMPT, connects), "{words:?} does not connect");
            signal(child.id(), number);
            let status = ended(&mut child).unwrap_or_else(|| panic!("{words:?} goes on after {number}"));
            assert!(!status.success(), "{words:?} ended well after {number}");
            assert!(
                becomes_true(PROMPT, || connections(&address) == 0),
                "{words:?}: a process is left after {number}"
            );
            // Connections that nobody takes would fill the queue of the listener.
            while held.accept().is_ok() {}
        }
    }
    assert!(mounted_at(Path::new(&dir)).is_none());
    assert!(fs::read_dir(tmp).unwrap().next().is_none(), "a directory is left");
}

/// Connections that are open at a server here, as the client sees them (proc_net_tcp(5)).
fn connections(address: &str) -> usize {
    let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
    let peer = format!(" 0100007F:{port:04X} 01 ");
    fs::read_to_string("/proc/net/tcp").unwrap().matches(&peer).count()
}

#[test]
fn waiting_mount_answers_calls_that_need_no_registry() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (mount, closed) = waiting(&site, &[]);
    let address = closed.address().to_string();
    let dir = mount.dir();
    let around = dir.parent().unwrap();
    for (program, args) in [
        ("stat", vec![dir]),
        ("stat", vec![Path::new("-f"), dir]),
        ("ls", vec![Path::new("-ld"), dir]),
        ("ls", vec![Path::new("-l"), around]),
        ("df", vec![dir]),
        ("mountpoint", vec![dir]),
        ("find", vec![around, Path::new("-maxdepth"), Path::new("1")]),
        ("ls", vec![&dir.join(".ocifs")]),
    ] {
        prompt(Command::new(program).args(&args)).ok();
    }
    beside_no_other_mount(dir, &mut Command::new("df")).ok();
    let named = || fs::read_to_string(mount.join(".ocifs/status.json")).unwrap().contains(&address);
    assert!(named());
    let waiting_status = || -> Value { serde_json::from_str(&mount.status()).unwrap() };
    assert!(
        becomes_true(PROMPT, || !waiting_status()["errors"].as_array().unwrap().is_empty()),
        "{}",
        mount.status()
    );
    assert_eq!(waiting_status()["waiting"], true);
    let output = prompt(site.command().arg("status").arg(dir)).ok().text();
    for word in [&address[..], "waiting", "refused"] {
        assert!(output.contains(word), "{word}: {output}");
    }
    // One that does not answer in time is listed as unknown, as on a busy machine.
    let mut listed = String::new();
    let is_listed = becomes_true(PROMPT, || {
        listed = prompt(site.command().arg("list")).ok().text();
        listed.lines().any(|line| line.starts_with("waiting") && line.contains(&address))
    });
    assert!(is_listed, "{listed}");
    // A name waits, and whoever looks for it can be killed.
    let mut reader = Command::new("cat").arg(dir.join("config.json")).spawn().unwrap();
    assert!(becomes_true(PROMPT, || waits(reader.id())));
    signal(reader.id(), Signal::SIGKILL);
    assert_eq!(ended(&mut reader).and_then(|status| status.signal()), Some(9));
    unmounts(Command::new("umount").arg(dir));
    assert!(becomes_true(PROMPT, || daemons(dir).is_empty()));
    mount.forget();
}

/// Runs a program that looks at every mount, where the mount at `dir` is the only one by FUSE: other tests stop processes of theirs.
#[track_caller]
fn beside_no_other_mount(dir: &Path, command: &mut Command) -> Finished {
    let in_a_namespace = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        for other in mounts().iter().rev().filter(|it| it.fstype.starts_with("fuse") && it.dir != dir) {
            umount2(&other.dir, MntFlags::MNT_DETACH).unwrap();
        }
        prompt(command)
    };
    std::thread::scope(|scope| scope.spawn(in_a_namespace).join()).unwrap()
}

/// Whether a process waits for an answer of a mount: until somebody wants to end it, that is a sleep like others (proc_pid_wchan(5)).
pub(crate) fn waits(pid: u32) -> bool {
    let place = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    state_of(pid) == 'D' || place.contains("request_wait_answer")
}

#[test]
fn mount_over_a_hung_mount_fails_and_leaves_no_process() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(61));
    content.push(&registry);
    let reference = content.reference(&registry);
    let (mount, closed) = waiting(&site, &[]);
    let address = closed.address().to_string();
    for more in [&[][..], &["--refresh"]] {
        let finished = prompt(site.command().arg("mount").args(more).arg(&reference).arg(mount.dir()));
        finished.refused(&[8], &["already a mount point", &address]);
        assert_eq!(daemons(mount.dir()).len(), 1, "{more:?} left a process");
    }
    mount.unmount_from_outside();

    // Without a monitor a process that was stopped stays so.
    let mount = site.mount(&reference, &["--sandbox=off"]);
    signal(mount.pid(), Signal::SIGSTOP);
    for more in [&[][..], &["--refresh"]] {
        let finished = prompt(site.command().arg("mount").args(more).arg(&reference).arg(mount.dir()));
        finished.refused(&[8], &["does not answer", "already a mount point", "umount -l"]);
        assert_eq!(daemons(mount.dir()), [mount.pid()], "{more:?} left a process");
    }
    let below = mount.join("merged");
    prompt(site.command().arg("mount").arg(&reference).arg(below)).refused(&[8], &["does not answer"]);
    signal(mount.pid(), Signal::SIGCONT);
    mount.unmount();
}

#[test]
fn the_monitor_continues_a_process_that_was_stopped() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(62));
    content.push(&registry);
    let mount = site.mount(&content.reference(&registry), &[]);
    signal(mount.pid(), Signal::SIGSTOP);
    let file = content.file(1);
    let read = prompt(Command::new("cat").arg(mount.join(&file.path))).ok();
    assert!(read.stdout == file.bytes);
    assert_ne!(state_of(mount.pid()), 'T');
    mount.unmount();
}

#[test]
fn a_mount_holds_nothing_that_its_caller_had_open_and_takes_signals_that_its_caller_had_blocked() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("python3"), Need::Tool("flock")]) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(63));
    content.push(&registry);
    let lock = site.scratch().file("lock", "");
    // A pipe, a lock, and all signals blocked; the pipe ends when no process has its other end.
    let caller = "import fcntl, os, signal, subprocess, sys
r, w = os.pipe(); os.set_inheritable(w, True)
lock = os.open(sys.argv[1], os.O_RDWR); os.set_inheritable(lock, True); fcntl.flock(lock, fcntl.LOCK_EX)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
code = subprocess.run(sys.argv[2:], close_fds=False, stdout=subprocess.DEVNULL).returncode
os.close(w); os.read(r, 1); os._exit(code)";
    for more in [&[][..], &["--sandbox=off"]] {
        let dir = site.mount_point("mnt");
        let mut command = site.tool("python3");
        command.args(["-c", caller]).arg(&lock).arg(binary()).arg("mount").args(more);
        command.arg(content.reference(&registry)).arg(&dir);
        prompt(&mut command).ok();
        prompt(Command::new("flock").arg("-n").arg(&lock).arg("true")).ok();
        let daemon = daemons(&dir)[0];
        let open: Vec<_> = fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().flatten().collect();
        let names: Vec<_> = open.iter().filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
        assert!(!names.contains(&lock), "{names:?}");
        signal(daemon, Signal::SIGTERM);
        assert!(becomes_true(PROMPT, || mounted_at(&dir).is_none() && daemons(&dir).is_empty()), "{more:?}");
    }
}

#[test]
fn foreground_mount_ends_with_its_terminal_unless_under_nohup() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("python3"), Need::Tool("nohup")]) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(67));
    content.push(&registry);
    // A terminal whose other end is closed once the mount has answered SIGHUP as a reload.
    let terminal = "import os, pty, signal, sys, time
child, master = pty.fork()
if child == 0: os.execvp(sys.argv[3], sys.argv[3:])
mounted = lambda: os.path.ismount(sys.argv[1])
for _ in range(2400):
    if mounted(): break
    time.sleep(.05)
for _ in range(2400):
    os.kill(child, signal.SIGHUP)
    time.sleep(.05)
    if sys.argv[2] == 'nohup' or 'configuration reloaded' in open(sys.argv[2]).read(): break
assert mounted()
os.close(master)
for _ in range(40 if sys.argv[2] == 'nohup' else 2400):
    time.sleep(.05)
    if not mounted(): break
print(mounted())
os.kill(child, signal.SIGTERM)
os.waitpid(child, 0)";
    let dir = site.mount_point("mnt");
    let log = site.scratch().file("log", "");
    for (before, stays) in [(&[][..], "False"), (&["nohup"][..], "True")] {
        let mut command = site.tool("python3");
        command.args(["-c", terminal]).arg(&dir);
        if stays == "True" {
            command.arg("nohup")
        } else {
            command.arg(&log)
        };
        command.args(before).arg(binary()).args(["mount", "-f", "--log-file"]).arg(&log);
        command.arg(content.reference(&registry)).arg(&dir).env("OCIFS_LOG", "info");
        let output = run(&mut command).ok().text();
        assert_eq!(output.trim(), stays, "{before:?}: {}", fs::read_to_string(&log).unwrap());
        assert!(mounted_at(&dir).is_none());
    }
}

/// Everything that asks for something of a mount and may have to wait for it.
const READERS: [&[&str]; 6] = [
    &["cat", "merged/f"],
    &["ls", "merged"],
    &["stat", "merged/f"],
    &["readlink", "merged/l"],
    &["dd", "bs=1M", "iflag=direct", "status=none", "if=merged/f"],
    &["head", "-c1", "files/none"],
];

#[test]
fn killed_reader_ends_while_the_registry_is_silent() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(64));
    content.push(&registry);
    for words in READERS {
        for number in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGQUIT] {
            let mount =
                site.mount(&content.reference(&registry), &[FOREVER, "--no-cache", "--prefetch=none"]);
            registry.set(Fault::Silent);
            let path = words.iter().map(|word| word.replace("merged/f", &content.file(1).path));
            let mut reader = Command::new("env");
            reader.arg("--").args(path).current_dir(mount.dir()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut reader = reader.spawn().unwrap();
            // It waits, or it needs no registry.
            becomes_true(Duration::from_secs(5), || waits(reader.id()) || state_of(reader.id()) == 'Z');
            signal(reader.id(), number);
            assert!(ended(&mut reader).is_some(), "{words:?} goes on after {number}");
            registry.clear();
            mount.unmount();
        }
    }
}

#[test]
fn a_second_mount_of_everything_in_fstab_finds_all_mounted() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("unshare")]) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("lay out,v"));
    layout.image("v1", &[Layer::of(&Tarball::new().file("f", b"data").bytes(), Encoding::Gzip)]);
    let escaped = layout.reference("v1").replace(' ', "\\040");
    let digest = site.ocifs(&["resolve", &layout.reference("v1")]).ok().text();
    let digest = digest.trim().rsplit('@').next().unwrap().to_owned();
    let lines: Vec<String> = [escaped.clone(), format!("{escaped}@{digest}")]
        .iter()
        .enumerate()
        .map(|(at, reference)| {
            let dir = site.mount_point(&format!("m{at}"));
            format!("{reference} {} ocifs ro,view=merged 0 0\n", dir.display())
        })
        .collect();
    let text = format!(
        "mount --bind $1 /etc/fstab; mount -a; mount -a; grep -c '{0}/m.*fuse.ocifs' /proc/self/mountinfo
         umount {0}/m0 {0}/m1",
        site.scratch().path().display()
    );
    let output = run(&mut crate::system::script(&site, &lines.concat(), &text)).ok().text();
    assert_eq!(output.lines().last().map(str::trim), Some("2"), "{output}");
}

#[test]
fn run_with_a_writable_layer_works_where_the_cache_lies_on_an_overlay() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[Layer::of(&Tarball::new().file("f", b"old").bytes(), Encoding::Gzip)]);
    let [lower, upper, work, joined] =
        ["lower", "upper", "work", "joined"].map(|name| site.scratch().subdir(name));
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&joined)).ok();
    let tmp = joined.join("tmp");
    fs::create_dir(&tmp).unwrap();
    for more in [&[][..], &["--passthrough=on"], &["--sandbox=off"]] {
        let mut command = site.command();
        command.env("OCIFS_CACHE_DIR", joined.join("cache")).env("TMPDIR", &tmp);
        command.args(["run", "--rw", "--view=merged"]).args(more).arg(layout.reference("v1"));
        let finished = run(command.args(["--", "sh", "-c", "echo new > {}/f && cat {}/f"]));
        assert_eq!(
            (finished.code, &finished.text()[..]),
            (Some(0), "new\n"),
            "{more:?}: {}",
            finished.stderr
        );
        assert!(fs::read_dir(&tmp).unwrap().next().is_none(), "{more:?} left a directory");
    }
    run(Command::new("umount").arg(&joined)).ok();
}

#[test]
fn root_without_cap_sys_admin_gets_an_error_that_names_it() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("setpriv"), Need::Tool("unshare")]) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[Layer::of(&Tarball::new().file("f", b"x").bytes(), Encoding::Gzip)]);
    let without = |before: &[&str], words: &[&str]| {
        let mut command = site.tool("setpriv");
        command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]).args(before);
        run(command.arg(binary()).args(words))
    };
    let dir = site.mount_point("mnt").display().to_string();
    for before in [&[][..], &["env", "PATH=/nowhere"]] {
        let mount = without(before, &["mount", &layout.reference("v1"), &dir]);
        mount.refused(&[8], &["CAP_SYS_ADMIN", "--cap-add SYS_ADMIN"]);
        assert!(!mount.stderr.contains("as root"), "{}", mount.stderr);
        let doctor = without(before, &["doctor"]);
        assert_eq!(doctor.code, Some(1), "{}", doctor.text());
        assert!(doctor.text().contains("CAP_SYS_ADMIN"), "{}", doctor.text());
    }
    let hidden = "umount -l /proc; exec \"$@\"";
    for (words, code) in [(&["mount", &layout.reference("v1"), &dir][..], 1), (&["doctor"], 1)] {
        let mut command = site.tool("unshare");
        command.args(["--mount", "bash", "-c", hidden, "sh"]).arg(binary()).args(words);
        let finished = run(&mut command);
        assert_eq!(finished.code, Some(code), "{words:?}: {}{}", finished.text(), finished.stderr);
        let output = finished.text() + &finished.stderr;
        assert!(
            output.contains("/proc is not mounted") && output.contains("mount -t proc proc /proc"),
            "{output}"
        );
        assert!(!output.contains("without CAP_SYS_ADMIN"), "{output}");
    }
}

#[test]
fn inode_numbers_fit_in_32_bits_and_outlive_kernel_forgets() {
    use std::os::unix::fs::MetadataExt as _;
    if !able(&[Need::Root, Need::Fuse, Need::Tool("python3")]) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(65));
    content.push(&registry);
    let mount = site.mount(&content.reference(&registry), &[]);
    let mut todo = vec![mount.dir().to_owned()];
    let mut seen = std::collections::HashMap::new();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            let meta = entry.path().symlink_metadata().unwrap();
            assert!(meta.ino() < 1 << 32, "{:?} has the number {}", entry.path(), meta.ino());
            if meta.is_dir() {
                assert_eq!(seen.insert(meta.ino(), entry.path()), None, "{:?}", entry.path());
                todo.push(entry.path());
            }
        }
    }
    assert!(seen.len() > 5, "{seen:?}");
    // By handle, also after the kernel has forgotten all that it knew, and after the subtree was never looked into by this process.
    let by_handle = "import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure): _fields_ = [('size', ctypes.c_uint), ('kind', ctypes.c_int), ('data', ctypes.c_ubyte * 128)]
top, names = os.open(sys.argv[1], os.O_RDONLY), sys.argv[2:]
kept = []
for name in names:
    handle, mount = Handle(128), ctypes.c_int()
    if libc.name_to_handle_at(-100, name.encode(), ctypes.byref(handle), ctypes.byref(mount), 0): sys.exit(77)
    kept.append((name, os.stat(name).st_ino, handle))
open('/proc/sys/vm/drop_caches', 'w').write('2')
for name, number, handle in kept:
    found = libc.open_by_handle_at(top, ctypes.byref(handle), os.O_RDONLY)
    if found < 0: sys.exit(f'{name}: {os.strerror(ctypes.get_errno())}')
    assert os.fstat(found).st_ino == number, name
    print(os.readlink(f'/proc/self/fd/{found}'))
wrong = kept[0][2]
for at in range(8): wrong.data[at] = 0x7f
assert libc.open_by_handle_at(top, ctypes.byref(wrong), os.O_RDONLY) < 0
print(os.strerror(ctypes.get_errno()))";
    let names =
        [mount.join("merged"), mount.join(&content.file(0).path), mount.join("layers"), mount.join(".ocifs")];
    let found =
        run(Command::new("python3").args(["-c", by_handle]).arg(mount.dir()).args(&names)).ok().text();
    assert!(found.lines().last().unwrap().contains("Stale"), "{found}");
    mount.unmount();
}

#[test]
fn a_read_that_fails_has_waited_once() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(68));
    content.push(&registry);
    let mount = site.mount(&content.reference(&registry), &["--timeout=4", "--no-cache", "--prefetch=none"]);
    registry.set(Fault::Silent);
    // Without the page cache the kernel asks once; with it, for the readahead, and again for the page.
    let tries = |more: &[&str]| {
        // A failure is the answer of a second request for half a second. A longer sleep changes nothing.
        std::thread::sleep(Duration::from_secs(1));
        let before = registry.unanswered();
        let mut dd = Command::new("dd");
        dd.args(["bs=4096", "count=1", "status=none", "of=/dev/null"]).args(more);
        let failed = run(dd.arg(format!("if={}", mount.join(&content.file(0).path).display())));
        assert!(failed.stderr.contains("Input/output error"), "{}", failed.stderr);
        registry.unanswered() - before
    };
    // Where the machine is too slow for a second try within the timeout, or for the kernel's second request within that
    // half second, the next reads are as good.
    let (mut once, mut cached) = (0, usize::MAX);
    for _ in 0..4 {
        once = once.max(tries(&["iflag=direct"]));
        cached = cached.min(tries(&[]));
        if cached < 2 * once {
            break;
        }
    }
    assert!(cached < 2 * once, "{once} tries for one read, {cached} through the page cache");
    // The next read of a program asks again.
    assert!(tries(&[]) > 0);
    registry.clear();
    let file = content.file(0);
    let read = || fs::read(mount.join(&file.path)).is_ok_and(|bytes| bytes == file.bytes);
    assert!(becomes_true(PROMPT, read));
    mount.unmount();
}

#[test]
fn umount_from_another_namespace_fails_with_a_hint() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("unshare")]) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(69));
    content.push(&registry);
    let mount = site.mount(&content.reference(&registry), &[]);
    let dir = mount.dir().display().to_string();
    let within = |namespaces: &[&str], words: &[&str]| {
        prompt(site.tool("unshare").args(namespaces).arg(binary()).args(words))
    };
    for namespaces in [&["-m"][..], &["-p", "-f"], &["-p", "-f", "--mount-proc"], &["-r", "-m"]] {
        let mut listed = String::new();
        let is_listed = becomes_true(PROMPT, || {
            listed = within(namespaces, &["list"]).ok().text();
            listed.lines().any(|line| line.starts_with("served") && line.contains(&dir))
        });
        assert!(is_listed, "{namespaces:?}: {listed}");
        assert!(within(namespaces, &["status", &dir]).ok().text().contains("reference"), "{namespaces:?}");
        within(namespaces, &["doctor"]).ok();
    }
    // In a user namespace the mounts of its parent are locked; in a copy of the table only the copy goes.
    within(&["-r", "-m"], &["umount", &dir]).refused(&[8], &["locked: unmount it in the parent"]);
    within(&["-m"], &["umount", &dir]).ok();
    assert!(mounted_at(mount.dir()).is_some());
    within(&["-p", "-f"], &["umount", &dir]).ok();
    assert!(mounted_at(mount.dir()).is_none());
    assert!(becomes_true(PROMPT, || daemons(mount.dir()).is_empty()));
    mount.forget();
}
