//! A daemon that dies under a service manager, and the next one that serves its mount on.
//!
//! The test plays the manager: it keeps the descriptors that are sent to its socket and hands them to the next process. What
//! stands for all users is one process that waits in a read, one that holds files open, one that lists a directory and one
//! that has mapped a file: none of them may notice more than a delay.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::Signal;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use sha2::Digest as _;

use crate::artifact::Piece;
use crate::cost::{push_files, push_image};
use crate::encode::Encoding;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::layout::Layer;
use crate::process::{Need, able, becomes_true, signal};
use crate::random::Random;
use crate::scratch::{mounted_at, mounts};
use crate::site::{Site, binary};
use crate::tarball::{Tarball, noise};
use crate::wedge::waits;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const PATIENCE: Duration = Duration::from_secs(60);
/// After this long a test has hung, and so have its readers.
const HUNG: Duration = Duration::from_secs(240);
/// Names in the directory that is listed: several answers' worth.
const NAMES: usize = 4000;

/// A service manager with one service.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    log: PathBuf,
    kept: Kept,
    said: Vec<String>,
    main: Option<Child>,
    /// Ends the guard by its end.
    _guard: mpsc::Sender<()>,
}

/// The descriptors of a service. Readers that nobody serves cannot be killed: whatever happens, they are let go in the end.
#[derive(Clone)]
struct Kept {
    descriptors: Arc<Mutex<Vec<OwnedFd>>>,
    below: PathBuf,
}

impl Kept {
    fn len(&self) -> usize {
        self.descriptors.lock().unwrap().len()
    }

    fn clone_all(&self) -> Vec<OwnedFd> {
        self.descriptors.lock().unwrap().iter().map(|kept| kept.try_clone().unwrap()).collect()
    }

    /// Ends the connections of this test and no others.
    fn abort(&self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted = table.lines().filter(|line| {
            line.contains(" - fuse.ocifs ")
                && line.split(' ').nth(4).is_some_and(|dir| Path::new(dir).starts_with(&self.below))
        });
        let mounted: Vec<_> = mounted.filter_map(|line| line.split([' ', ':']).nth(3)).collect();
        let descriptors = self.clone_all();
        let kept = descriptors.iter().filter_map(|kept| {
            let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", kept.as_raw_fd())).ok()?;
            let number = about.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
            Some(number.trim().to_owned())
        });
        let connections: BTreeSet<String> = kept.chain(mounted.into_iter().map(str::to_owned)).collect();
        // The machine may have the control file system mounted nowhere.
        let control = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("fusectl"), control.path(), Some("fusectl"), flags, None::<&str>).unwrap();
        let aborted =
            connections.iter().map(|number| fs::write(control.path().join(number).join("abort"), "1"));
        let aborted: Vec<_> = aborted.collect();
        nix::mount::umount2(control.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        assert!(aborted.iter().all(Result::is_ok), "{connections:?}: {aborted:?}");
    }
}

impl Manager {
    fn new(site: &Site) -> Self {
        let (path, log) = (site.scratch().join("notify"), site.scratch().join("log"));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let kept = Kept { descriptors: Arc::default(), below: site.scratch().path().to_owned() };
        let (guard, ended) = mpsc::channel();
        let guarded = kept.clone();
        std::thread::spawn(move || {
            if ended.recv_timeout(HUNG) == Err(RecvTimeoutError::Timeout) {
                guarded.abort();
            }
        });
        Self { socket, path, log, kept, said: Vec::new(), main: None, _guard: guard }
    }

    /// Starts the service with what is kept, and waits until it is ready.
    #[track_caller]
    fn start(&mut self, site: &Site, arguments: &[&str]) {
        self.spawn(site, arguments);
        self.said.clear();
        let ready = self.hears("READY=1");
        assert!(ready, "not ready: {:?}\n{}", self.said, self.logged());
        // The kernel learns that closing a file needs no answer. Programs that are started while no daemon lives close the
        // files that this test holds, and would wait for the daemon that one of them is to become.
        let dir = Path::new(arguments[arguments.len() - 1]);
        let any = ["manifest.json", "late"].into_iter().find_map(|name| File::open(dir.join(name)).ok());
        drop(any.unwrap());
    }

    fn spawn(&mut self, site: &Site, arguments: &[&str]) {
        let mut command = Command::new("sh");
        // sd_listen_fds(3): the descriptors from 3 on, and the process that they are meant for.
        let script = "test \"$KEPT\" = 0 || {
                export LISTEN_PID=$$ LISTEN_FDS=$KEPT LISTEN_FDNAMES=ocifs:ocifs
                exec 3<&0 4<&1; }
            exec </dev/null >/dev/null; exec \"$0\" \"$@\"";
        command.args(["-euc", script]).arg(binary()).args(["mount", "-f"]).args(arguments);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", site.scratch().join("home")).env("OCIFS_CACHE_DIR", site.cache());
        command.env("NOTIFY_SOCKET", &self.path).env("KEPT", self.kept.len().to_string());
        command.env("OCIFS_LOG", "info,ocifs=debug");
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if let Ok([first, second]) = <[OwnedFd; 2]>::try_from(self.kept.clone_all()) {
            command.stdin(first).stdout(second);
        }
        self.main = Some(command.spawn().unwrap());
    }

    /// Takes what was sent.
    fn receive(&mut self) {
        loop {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut text = [0; 4096];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received =
                rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags);
            let Ok(received) = received else { return };
            let mut sent = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    sent.extend(descriptors);
                }
            }
            let text = String::from_utf8_lossy(&text[..received.bytes]).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            if lines.contains(&"FDSTORE=1") {
                assert!(lines.contains(&"FDNAME=ocifs"), "{text}");
                self.kept.descriptors.lock().unwrap().append(&mut sent);
            }
            if lines.contains(&"FDSTOREREMOVE=1") {
                assert!(lines.contains(&"FDNAME=ocifs"), "{text}");
                self.kept.descriptors.lock().unwrap().clear();
            }
            self.said.extend(lines.into_iter().map(str::to_owned));
        }
    }

    /// Whether the service says `line`, while it lives.
    fn hears(&mut self, line: &str) -> bool {
        becomes_true(PATIENCE, || {
            let ended = self.main.as_mut().is_none_or(|main| main.try_wait().unwrap().is_some());
            self.receive();
            ended || self.said.iter().any(|said| said == line)
        }) && self.said.iter().any(|said| said == line)
    }

    /// Ends the service as a crash would.
    #[track_caller]
    fn crash(&mut self) {
        let mut main = self.main.take().unwrap();
        signal(main.id(), Signal::SIGKILL);
        main.wait().unwrap();
        self.receive();
        assert_eq!(self.kept.len(), 2, "{:?}", self.said);
    }

    /// Stops the service, which takes its mount away.
    #[track_caller]
    fn stop(&mut self, dir: &Path) {
        signal(self.main.as_ref().unwrap().id(), Signal::SIGTERM);
        let status = self.main.take().unwrap().wait().unwrap();
        self.receive();
        assert_eq!(status.code(), Some(0), "{}", self.logged());
        assert!(self.said.iter().any(|said| said == "STOPPING=1"), "{:?}", self.said);
        assert_eq!(self.kept.len(), 0);
        assert!(mounted_at(dir).is_none());
    }

    fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // First of all, so that nobody hangs, not even the service itself.
        if self.main.is_some() || self.kept.len() > 0 {
            self.kept.abort();
        }
        if let Some(mut main) = self.main.take() {
            main.kill().unwrap();
            main.wait().unwrap();
        }
    }
}

/// The number and the device of the mount at `dir`.
fn identity(dir: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == dir.to_str()).unwrap();
    line.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn big() -> Vec<u8> {
    noise((24 << 20) + 321, 5)
}

/// An image with a big file, one that nobody has read, a long directory and a link, in two layers.
fn image(registry: &FaultRegistry) -> String {
    let mut many = Tarball::new().dir("many");
    for at in 0..NAMES {
        many = many.file(&format!("many/a-file-with-a-long-name-{at}"), at.to_string().as_bytes());
    }
    let rest = Tarball::new().file("big", &big()).file("late", &noise(200_000, 6)).symlink("link", "late");
    push_image(
        registry,
        &[Layer::of(&many.bytes(), Encoding::Gzip), Layer::of(&rest.bytes(), Encoding::Plain)],
    )
}

/// Maps a file, shows a byte of it for every number it is given, and holds it until its input ends.
const MAPPER: &str = "import mmap, sys
with open(sys.argv[1], 'rb') as f:
    m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
while True:
    line = sys.stdin.readline()
    if not line: break
    print(m[int(line)], flush=True)
";

struct Mapper(Child, BufReader<std::process::ChildStdout>);

impl Mapper {
    fn new(path: &Path) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", MAPPER]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self(child, out)
    }

    fn byte(&mut self, at: usize) -> String {
        writeln!(self.0.stdin.as_mut().unwrap(), "{at}").unwrap();
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        // It ends only with the connection when it waits for a page that nobody brings.
        becomes_true(PATIENCE / 6, || self.0.try_wait().unwrap().is_some());
    }
}

#[track_caller]
fn same(file: &File, bytes: &[u8], range: std::ops::Range<usize>) {
    let mut seen = vec![0; range.len()];
    file.read_exact_at(&mut seen, range.start as u64).unwrap();
    assert!(seen == bytes[range.clone()], "other bytes at {range:?}");
}

#[track_caller]
fn ends_well(child: &mut Child) {
    let mut status = None;
    let ended = becomes_true(PATIENCE, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert!(ended && status.is_some_and(|status| status.success()), "{status:?}");
}

/// `options` decide whether the kernel asks to open files; `top` is where the image's tree is then.
fn goes_on(options: &[&str], top: &str) {
    if !able(&[NEEDS[0], NEEDS[1], Need::Tool("python3")]) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let (reference, body) = (image(&registry), big());
    let dir = site.mount_point("mnt");
    let mut manager = Manager::new(&site);
    let arguments = [options, &[&reference, dir.to_str().unwrap()]].concat();
    manager.start(&site, &arguments);
    assert_eq!(manager.kept.len(), 2);
    let top = dir.join(top);
    let before = identity(&dir);

    let held = File::open(top.join("big")).unwrap();
    same(&held, &body, 0..100_000);
    let inode = fs::metadata(top.join("late")).unwrap().ino();
    let mut listing = fs::read_dir(top.join("many")).unwrap();
    let mut names: Vec<_> = listing.by_ref().take(10).map(|entry| entry.unwrap().file_name()).collect();
    let mut mapper = Mapper::new(&top.join("big"));
    assert_eq!(mapper.byte(5000), body[5000].to_string());

    // A read that the daemon has taken and cannot answer, and after its death one that nobody takes.
    registry.set(Fault::StallAfter(1000));
    registry.reset_counts();
    let out = site.scratch().join("out");
    let mut waiting = Command::new("dd")
        .arg(format!("if={}", top.join("big").display()))
        .arg(format!("of={}", out.display()))
        .args(["bs=1M", "skip=16", "status=none"])
        .spawn()
        .unwrap();
    assert!(becomes_true(PATIENCE, || !registry.blob_requests().is_empty()), "nothing was asked for");
    manager.crash();
    let late = Command::new("cat").arg(top.join("late")).stdout(Stdio::piped()).spawn();
    let mut late = late.unwrap();
    assert!(becomes_true(PATIENCE, || waits(late.id())), "the reader does not wait");
    registry.clear();
    manager.start(&site, &arguments);

    ends_well(&mut waiting);
    assert!(fs::read(&out).unwrap() == body[16 << 20..], "dd read other bytes");
    let mut seen = Vec::new();
    late.stdout.take().unwrap().read_to_end(&mut seen).unwrap();
    assert!(seen == noise(200_000, 6), "cat read other bytes");
    ends_well(&mut late);
    assert_eq!(identity(&dir), before);
    for _ in 0..2 {
        same(&held, &body, 0..body.len());
        posix_fadvise(&held, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    }
    for at in [6000, 9 << 20, body.len() - 1] {
        assert_eq!(mapper.byte(at), body[at].to_string());
    }
    names.extend(listing.map(|entry| entry.unwrap().file_name()));
    names.sort();
    names.dedup();
    assert_eq!(names.len(), NAMES);
    assert_eq!(fs::read(top.join("many/a-file-with-a-long-name-77")).unwrap(), b"77");
    assert_eq!(fs::read_link(top.join("link")).unwrap(), Path::new("late"));
    assert_eq!(fs::metadata(top.join("late")).unwrap().ino(), inode);
    assert_eq!(held.metadata().unwrap().len(), body.len() as u64);

    // And once more, with files that two different processes opened.
    let other = File::open(top.join("late")).unwrap();
    manager.crash();
    manager.start(&site, &arguments);
    for file in [&held, &other] {
        posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    }
    same(&held, &body, 1 << 20..5 << 20);
    same(&other, &noise(200_000, 6), 0..200_000);
    assert_eq!(identity(&dir), before);
    drop((held, other, mapper));
    manager.stop(&dir);
}

#[test]
fn open_files_waiting_reads_listings_and_mappings_go_on_under_the_next_daemon() {
    goes_on(&[], "merged");
}

#[test]
fn they_go_on_too_where_the_kernel_never_asks_to_open_a_file() {
    goes_on(&["--view", "merged"], "");
}

#[test]
fn a_mount_that_the_kernel_serves_goes_on_under_the_next_daemon() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let (reference, body) = (image(&registry), big());
    let dir = site.mount_point("mnt");
    let arguments = ["--view=merged", "--kernel=on", &reference, dir.to_str().unwrap()];
    let mut manager = Manager::new(&site);
    manager.start(&site, &arguments);
    assert_eq!((mounted_at(&dir).unwrap().fstype, manager.kept.len()), ("erofs".to_owned(), 2));
    let before = identity(&dir);
    let held = File::open(dir.join("big")).unwrap();
    same(&held, &body, 0..100_000);
    for _ in 0..2 {
        manager.crash();
        // What the kernel has is read on; what it has not got waits for the next process.
        same(&held, &body, 0..4096);
        posix_fadvise(&held, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let mut waiting =
            Command::new("sha256sum").arg(dir.join("big")).stdout(Stdio::piped()).spawn().unwrap();
        manager.start(&site, &arguments);
        let mut said = String::new();
        waiting.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        ends_well(&mut waiting);
        assert!(said.starts_with(&crate::real_registry::hex(&sha2::Sha256::digest(&body))), "{said}");
        same(&held, &body, 0..body.len());
        assert_eq!(identity(&dir), before);
        let status = site.ocifs(&["status", dir.to_str().unwrap()]).ok().text();
        assert!(status.contains("the kernel (EROFS)"), "{status}");
    }
    drop(held);
    manager.stop(&dir);
    // Another command line is another mount.
    manager.start(&site, &arguments);
    manager.crash();
    let by_fuse = ["--view=merged", &reference, dir.to_str().unwrap()];
    manager.start(&site, &by_fuse);
    assert_eq!(mounted_at(&dir).unwrap().fstype, "fuse.ocifs");
    manager.stop(&dir);
}

#[test]
fn a_tag_that_moved_meanwhile_does_not_move_the_mount() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let file = |seed| [Piece::new("file", "application/x.file", noise(300_000, seed))];
    let reference = push_files(&registry, &file(1));
    let dir = site.mount_point("mnt");
    let arguments = [reference.as_str(), dir.to_str().unwrap()];
    let mut manager = Manager::new(&site);
    manager.start(&site, &arguments);
    let held = File::open(dir.join("files/file")).unwrap();
    manager.crash();
    assert_eq!(push_files(&registry, &file(2)), reference);
    manager.start(&site, &arguments);
    same(&held, &noise(300_000, 1), 0..300_000);
    assert!(fs::read(dir.join("files/file")).unwrap() == noise(300_000, 1));
    drop(held);
    manager.stop(&dir);
    // Who mounts anew gets what the tag is now.
    manager.start(&site, &arguments);
    assert!(fs::read(dir.join("files/file")).unwrap() == noise(300_000, 2));
    manager.stop(&dir);
}

/// A mount of one file that is held open when its daemon dies.
fn left(site: &Site, registry: &FaultRegistry, manager: &mut Manager) -> (String, PathBuf, File) {
    let reference = push_files(registry, &[Piece::new("file", "application/x.file", noise(300_000, 1))]);
    let dir = site.mount_point("mnt");
    manager.start(site, &[&reference, dir.to_str().unwrap()]);
    let held = File::open(dir.join("files/file")).unwrap();
    manager.crash();
    (reference, dir, held)
}

/// A reader of what is over is told so.
#[track_caller]
fn is_over(held: &File) {
    let error = held.read_at(&mut [0; 10], 0).unwrap_err();
    // The second when the end comes during the read.
    assert!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{error}");
}

#[test]
fn mount_removed_between_crash_and_restart_is_mounted_again() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let mut manager = Manager::new(&site);
    let (reference, dir, held) = left(&site, &registry, &mut manager);
    crate::process::run(Command::new("umount").arg("-l").arg(&dir)).ok();
    manager.start(&site, &[&reference, dir.to_str().unwrap()]);
    assert!(manager.logged().contains("taken out of the tree meanwhile"), "{}", manager.logged());
    assert!(fs::read(dir.join("files/file")).unwrap() == noise(300_000, 1));
    is_over(&held);
    assert_eq!(manager.kept.len(), 2, "the new mount is kept");
    manager.stop(&dir);
}

#[test]
fn restart_with_another_reference_mounts_anew_and_ends_old_handles() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let mut manager = Manager::new(&site);
    let (_, dir, held) = left(&site, &registry, &mut manager);
    let other =
        push_image(&registry, &[Layer::of(&Tarball::new().file("f", b"other").bytes(), Encoding::Gzip)]);
    manager.start(&site, &[&other, dir.to_str().unwrap()]);
    assert!(manager.logged().contains("the reference or the options changed"), "{}", manager.logged());
    assert_eq!(fs::read(dir.join("merged/f")).unwrap(), b"other");
    is_over(&held);
    manager.stop(&dir);
}

fn record_of(manager: &Manager) -> File {
    let kept = manager.kept.clone_all().into_iter().map(File::from);
    kept.into_iter().find(|kept| kept.metadata().unwrap().is_file()).unwrap()
}

/// Changes what the record says about the subtrees for which `which` holds, as if they had been built otherwise.
fn rewrite(manager: &Manager, mut which: impl FnMut(usize) -> bool) {
    let record = record_of(manager);
    let mut text = vec![0; record.metadata().unwrap().len() as usize];
    record.read_exact_at(&mut text, 0).unwrap();
    let text = String::from_utf8(text).unwrap();
    let mut changed = String::new();
    let mut subtrees = 0;
    let mut hash = String::new();
    for line in text.lines() {
        let mut json = line[16..].to_owned();
        if json.starts_with("{\"Subtree\"") {
            // The digits of the first byte are counted up, and their number stays.
            let (head, tail) = json.split_once('[').unwrap();
            let (digits, rest) = tail.split_once(',').unwrap();
            if which(subtrees) {
                let last = if digits.ends_with('0') { '1' } else { '0' };
                json = format!("{head}[{}{last},{rest}", &digits[..digits.len() - 1]);
            }
            subtrees += 1;
        }
        // Each line begins with a hash of the one before it and itself.
        hash = blake3::hash(format!("{hash}{json}").as_bytes()).to_hex()[..16].to_owned();
        changed.push_str(&format!("{hash}{json}\n"));
    }
    assert!(subtrees > 0, "{text}");
    record.write_all_at(changed.as_bytes(), 0).unwrap();
}

#[test]
fn numbers_that_would_mean_other_files_are_never_served() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let mut manager = Manager::new(&site);
    let (reference, dir, held) = left(&site, &registry, &mut manager);
    rewrite(&manager, |_| true);
    manager.start(&site, &[&reference, dir.to_str().unwrap()]);
    assert!(manager.logged().contains("would mean other files"), "{}", manager.logged());
    is_over(&held);
    assert!(fs::read(dir.join("files/file")).unwrap() == noise(300_000, 1));
    manager.stop(&dir);

    // A tree that is built only when somebody looks into it is refused when it is built.
    let body = noise(100_000, 9);
    let tar = Tarball::new().file("f", &body).bytes();
    let reference = push_image(&registry, &[Layer::of(&tar, Encoding::Gzip)]);
    let arguments = [reference.as_str(), dir.to_str().unwrap()];
    manager.start(&site, &arguments);
    let held = File::open(dir.join("merged/f")).unwrap();
    same(&held, &body, 0..100);
    manager.crash();
    let mut lines = 0;
    rewrite(&manager, |at| {
        // What was noted last was built last.
        lines = at;
        false
    });
    rewrite(&manager, |at| at == lines);
    manager.start(&site, &arguments);
    posix_fadvise(&held, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    assert_eq!(held.read_at(&mut [0; 10], 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(
        fs::read_dir(dir.join("merged")).unwrap().find_map(Result::err).unwrap().raw_os_error(),
        Some(libc::EIO)
    );
    assert!(fs::read(dir.join("manifest.json")).is_ok());
    drop(held);
    manager.stop(&dir);
}

#[test]
fn a_damaged_record_ends_the_mount_and_another_one_is_made() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let mut manager = Manager::new(&site);
    let (reference, dir, held) = left(&site, &registry, &mut manager);
    // Nothing of it has been read before: this one waits for a daemon.
    let mut waiting = Command::new("cat");
    waiting.arg(dir.join("files/file")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut waiting = waiting.spawn().unwrap();
    assert!(becomes_true(PATIENCE, || waits(waiting.id())), "the reader does not wait");
    let record = record_of(&manager);
    let mut byte = [0];
    record.read_exact_at(&mut byte, 100).unwrap();
    record.write_all_at(&[byte[0] ^ 1], 100).unwrap();
    drop(record);
    manager.start(&site, &[&reference, dir.to_str().unwrap()]);
    assert!(manager.logged().contains("the record is damaged"), "{}", manager.logged());
    is_over(&held);
    let mut status = None;
    assert!(becomes_true(PATIENCE, || {
        status = waiting.try_wait().unwrap();
        status.is_some()
    }));
    assert!(status.is_some_and(|status| !status.success()), "{status:?}");
    assert!(fs::read(dir.join("files/file")).unwrap() == noise(300_000, 1));
    assert_eq!(mounts().iter().filter(|line| line.dir == dir).count(), 1);
    manager.stop(&dir);
}

/// How often the daemon is killed under load; more where somebody has the time.
fn rounds() -> usize {
    std::env::var("OCIFS_SURVIVE_ROUNDS").map_or(6, |rounds| rounds.parse().unwrap())
}

#[test]
fn readers_under_way_see_right_bytes_however_often_the_daemon_is_killed() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let (reference, body) = (image(&registry), big());
    let dir = site.mount_point("mnt");
    let mut manager = Manager::new(&site);
    let arguments = [reference.as_str(), dir.to_str().unwrap()];
    manager.start(&site, &arguments);
    let stop = AtomicBool::new(false);
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for seed in 1..=4_u64 {
            let (stop, done, body, dir) = (&stop, &done, &body, &dir);
            scope.spawn(move || {
                let held = File::open(dir.join("merged/big")).unwrap();
                let mut random = Random::of(seed);
                while !stop.load(Ordering::Relaxed) {
                    let start = random.index(body.len() - 200_000);
                    same(&held, body, start..start + 1 + random.index(200_000));
                    posix_fadvise(&held, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
                    let at = start % NAMES;
                    let small = dir.join(format!("merged/many/a-file-with-a-long-name-{at}"));
                    assert_eq!(fs::read_to_string(small).unwrap(), at.to_string());
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Whatever fails here, the readers end.
        let ended = Ended(&stop);
        for _ in 0..rounds() {
            let before = done.load(Ordering::Relaxed);
            let moved = becomes_true(PATIENCE, || done.load(Ordering::Relaxed) >= before + 8);
            assert!(moved, "no reader goes on: {}", manager.logged());
            manager.crash();
            manager.start(&site, &arguments);
        }
        let before = done.load(Ordering::Relaxed);
        assert!(becomes_true(PATIENCE, || done.load(Ordering::Relaxed) >= before + 8), "no reader goes on");
        drop(ended);
    });
    manager.stop(&dir);
}

/// Tells readers to end when it ends.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn while_the_registry_is_away_a_mount_waits_and_does_not_end() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let mut manager = Manager::new(&site);
    let reference = push_files(&registry, &[Piece::new("file", "application/x.file", noise(300_000, 1))]);
    let dir = site.mount_point("mnt");
    let arguments = ["--timeout", "2", reference.as_str(), dir.to_str().unwrap()];
    manager.start(&site, &arguments);
    let held = File::open(dir.join("files/file")).unwrap();
    manager.crash();
    registry.set(Fault::Status { code: 503, times: u32::MAX, retry_after: None });
    fs::remove_dir_all(site.cache()).unwrap();
    manager.spawn(&site, &arguments);
    let mut failed = manager.main.take().unwrap();
    let mut status = None;
    assert!(becomes_true(PATIENCE, || {
        status = failed.try_wait().unwrap();
        status.is_some()
    }));
    assert!(status.is_some_and(|status| !status.success()), "{status:?}");
    manager.receive();
    assert_eq!(manager.kept.len(), 2, "{}", manager.logged());
    registry.clear();
    manager.start(&site, &arguments);
    same(&held, &noise(300_000, 1), 0..300_000);
    drop(held);
    manager.stop(&dir);
}

#[test]
fn aborted_connection_is_remounted_and_not_taken_over() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let mut manager = Manager::new(&site);
    let (reference, dir, held) = left(&site, &registry, &mut manager);
    let arguments = [reference.as_str(), dir.to_str().unwrap()];
    manager.kept.abort();
    // The first one may see only when it reads that there is nobody to serve, and fails; the manager starts the next one.
    manager.spawn(&site, &arguments);
    let mut first = manager.main.take().unwrap();
    let mut status = None;
    assert!(becomes_true(PATIENCE, || {
        status = first.try_wait().unwrap();
        status.is_some()
    }));
    manager.receive();
    assert!(status.is_some_and(|status| !status.success()), "{status:?}");
    assert!(manager.logged().contains("the connection was closed"), "{}", manager.logged());
    assert_eq!((manager.kept.len(), mounted_at(&dir).is_none()), (0, true));
    manager.start(&site, &arguments);
    is_over(&held);
    assert!(fs::read(dir.join("files/file")).unwrap() == noise(300_000, 1));
    manager.stop(&dir);
}
