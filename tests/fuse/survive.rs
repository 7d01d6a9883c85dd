//! Crashes under a service manager: the next process serves the mount on.
//!
//! One process that waits in a read, one that holds files open, one that lists a directory and one that has mapped a file stand
//! for all users. None of them may notice more than a delay.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::artifact::Piece;
use crate::cost::{push_files, push_image};
use crate::encode::Encoding;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::layout::Layer;
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true};
use crate::random::Random;
use crate::scratch::{mounted_at, mounts};
use crate::service_manager::ServiceManager;
use crate::site::Site;
use crate::tarball::{Tarball, noise};
use crate::wedge::waits;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
/// Names in the directory that is listed: several answers' worth.
const NAMES: usize = 4000;

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
        becomes_true(CONDITION_TIMEOUT / 6, || self.0.try_wait().unwrap().is_some());
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
    let ended = becomes_true(CONDITION_TIMEOUT, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert!(ended && status.is_some_and(|status| status.success()), "{status:?}");
}
/// How a mount is made, and where the image's tree is then: the kernel asks to open files, or it never does.
const WAYS: [(&[&str], &str); 2] = [(&[], "merged"), (&["--view", "merged"], "")];

/// A mount of the image whose service can crash.
struct CrashScene {
    manager: ServiceManager,
    site: Site,
    registry: FaultRegistry,
    arguments: Vec<String>,
    dir: PathBuf,
    /// The image's tree.
    top: PathBuf,
}

impl CrashScene {
    fn new((options, top): (&[&str], &str)) -> Self {
        let (site, registry) = (Site::new(), FaultRegistry::start());
        let (reference, dir) = (image(&registry), site.mount_point("mnt"));
        let arguments = [options, &[&reference, dir.to_str().unwrap()]].concat();
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let manager = ServiceManager::new(&site);
        let top = dir.join(top);
        let mut scene = Self { manager, site, registry, arguments, dir, top };
        scene.start();
        assert_eq!(scene.manager.kept.len(), 2);
        scene
    }

    fn start(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.manager.start(&self.site, &arguments);
    }

    /// The service crashes, and the next process serves its mount.
    fn restart(&mut self) {
        self.manager.crash();
        self.start();
    }

    fn stop(mut self) {
        self.manager.stop(&self.dir);
    }
}

/// Runs a story in a mount of each kind.
fn in_every_way(story: impl Fn(CrashScene)) {
    if !able(&[NEEDS[0], NEEDS[1], Need::Tool("python3")]) {
        return;
    }
    for way in WAYS {
        story(CrashScene::new(way));
    }
}

#[test]
fn a_read_that_a_crashed_process_took_is_answered_by_the_next() {
    in_every_way(|mut scene| {
        scene.registry.set(Fault::StallAfter(1000));
        scene.registry.reset_counts();
        let out = scene.site.scratch().join("out");
        let mut waiting = Command::new("dd")
            .arg(format!("if={}", scene.top.join("big").display()))
            .arg(format!("of={}", out.display()))
            .args(["bs=1M", "skip=16", "status=none"])
            .spawn()
            .unwrap();
        let is_asked = || !scene.registry.blob_requests().is_empty();
        assert!(becomes_true(CONDITION_TIMEOUT, is_asked), "nothing was asked for");
        scene.manager.crash();
        scene.registry.clear();
        scene.start();
        ends_well(&mut waiting);
        assert!(fs::read(&out).unwrap() == big()[16 << 20..], "dd read other bytes");
        scene.stop();
    });
}

#[test]
fn a_file_that_is_opened_while_no_process_serves_is_read_from_the_next() {
    in_every_way(|mut scene| {
        scene.manager.crash();
        let late = Command::new("cat").arg(scene.top.join("late")).stdout(Stdio::piped()).spawn();
        let mut late = late.unwrap();
        assert!(becomes_true(CONDITION_TIMEOUT, || waits(late.id())), "the reader does not wait");
        scene.start();
        let mut seen = Vec::new();
        late.stdout.take().unwrap().read_to_end(&mut seen).unwrap();
        assert!(seen == noise(200_000, 6), "cat read other bytes");
        ends_well(&mut late);
        scene.stop();
    });
}

#[test]
fn files_that_two_processes_opened_are_read_from_the_third() {
    in_every_way(|mut scene| {
        let body = big();
        let first = File::open(scene.top.join("big")).unwrap();
        same(&first, &body, 0..100_000);
        scene.restart();
        for _ in 0..2 {
            same(&first, &body, 0..body.len());
            posix_fadvise(&first, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        }
        assert_eq!(first.metadata().unwrap().len(), body.len() as u64);
        let second = File::open(scene.top.join("late")).unwrap();
        scene.restart();
        for file in [&first, &second] {
            posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        }
        same(&first, &body, 1 << 20..5 << 20);
        same(&second, &noise(200_000, 6), 0..200_000);
        drop((first, second));
        scene.stop();
    });
}

#[test]
fn a_listing_that_was_begun_goes_on_where_it_was_under_the_next_process() {
    in_every_way(|mut scene| {
        let mut listing = fs::read_dir(scene.top.join("many")).unwrap();
        let mut names: Vec<_> = listing.by_ref().take(10).map(|entry| entry.unwrap().file_name()).collect();
        scene.restart();
        names.extend(listing.map(|entry| entry.unwrap().file_name()));
        names.sort();
        let all = names.len();
        names.dedup();
        assert_eq!((all, names.len()), (NAMES, NAMES));
        scene.stop();
    });
}

#[test]
fn a_mapped_file_shows_its_bytes_under_the_next_process() {
    in_every_way(|mut scene| {
        let body = big();
        let mut mapper = Mapper::new(&scene.top.join("big"));
        assert_eq!(mapper.byte(5000), body[5000].to_string());
        scene.restart();
        for at in [6000, 9 << 20, body.len() - 1] {
            assert_eq!(mapper.byte(at), body[at].to_string());
        }
        drop(mapper);
        scene.stop();
    });
}

#[test]
fn the_mount_its_inode_numbers_and_its_names_are_the_same_under_the_next_process() {
    in_every_way(|mut scene| {
        let number = |scene: &CrashScene| fs::metadata(scene.top.join("late")).unwrap().ino();
        let before = (identity(&scene.dir), number(&scene));
        scene.restart();
        assert_eq!((identity(&scene.dir), number(&scene)), before);
        assert_eq!(fs::read(scene.top.join("many/a-file-with-a-long-name-77")).unwrap(), b"77");
        assert_eq!(fs::read_link(scene.top.join("link")).unwrap(), Path::new("late"));
        scene.stop();
    });
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
    let mut manager = ServiceManager::new(&site);
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
fn left(site: &Site, registry: &FaultRegistry, manager: &mut ServiceManager) -> (String, PathBuf, File) {
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
    let mut manager = ServiceManager::new(&site);
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
    let mut manager = ServiceManager::new(&site);
    let (_, dir, held) = left(&site, &registry, &mut manager);
    let other =
        push_image(&registry, &[Layer::of(&Tarball::new().file("f", b"other").bytes(), Encoding::Gzip)]);
    manager.start(&site, &[&other, dir.to_str().unwrap()]);
    assert!(manager.logged().contains("the reference or the options changed"), "{}", manager.logged());
    assert_eq!(fs::read(dir.join("merged/f")).unwrap(), b"other");
    is_over(&held);
    manager.stop(&dir);
}

fn record_of(manager: &ServiceManager) -> File {
    let kept = manager.kept.clone_all().into_iter().map(File::from);
    kept.into_iter().find(|kept| kept.metadata().unwrap().is_file()).unwrap()
}

/// Changes what the record says about the subtrees for which `which` holds, as if they had been built otherwise.
fn rewrite(manager: &ServiceManager, mut which: impl FnMut(usize) -> bool) {
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
    let mut manager = ServiceManager::new(&site);
    let (reference, dir, held) = left(&site, &registry, &mut manager);
    rewrite(&manager, |_| true);
    manager.start(&site, &[&reference, dir.to_str().unwrap()]);
    assert!(manager.logged().contains("would mean other files"), "{}", manager.logged());
    is_over(&held);
    assert!(fs::read(dir.join("files/file")).unwrap() == noise(300_000, 1));
    manager.stop(&dir);
}

#[test]
fn a_tree_that_would_be_built_otherwise_is_refused_when_it_is_built() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let mut manager = ServiceManager::new(&site);
    let dir = site.mount_point("mnt");
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
    let mut manager = ServiceManager::new(&site);
    let (reference, dir, held) = left(&site, &registry, &mut manager);
    // Nothing of it has been read before: this one waits for a daemon.
    let mut waiting = Command::new("cat");
    waiting.arg(dir.join("files/file")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut waiting = waiting.spawn().unwrap();
    assert!(becomes_true(CONDITION_TIMEOUT, || waits(waiting.id())), "the reader does not wait");
    let record = record_of(&manager);
    let mut byte = [0];
    record.read_exact_at(&mut byte, 100).unwrap();
    record.write_all_at(&[byte[0] ^ 1], 100).unwrap();
    drop(record);
    manager.start(&site, &[&reference, dir.to_str().unwrap()]);
    assert!(manager.logged().contains("the record is damaged"), "{}", manager.logged());
    is_over(&held);
    let mut status = None;
    assert!(becomes_true(CONDITION_TIMEOUT, || {
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
    let mut manager = ServiceManager::new(&site);
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
            let moved = becomes_true(CONDITION_TIMEOUT, || done.load(Ordering::Relaxed) >= before + 8);
            assert!(moved, "no reader goes on: {}", manager.logged());
            manager.crash();
            manager.start(&site, &arguments);
        }
        let before = done.load(Ordering::Relaxed);
        assert!(
            becomes_true(CONDITION_TIMEOUT, || done.load(Ordering::Relaxed) >= before + 8),
            "no reader goes on"
        );
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
    let mut manager = ServiceManager::new(&site);
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
    assert!(becomes_true(CONDITION_TIMEOUT, || {
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
    let mut manager = ServiceManager::new(&site);
    let (reference, dir, held) = left(&site, &registry, &mut manager);
    let arguments = [reference.as_str(), dir.to_str().unwrap()];
    manager.kept.abort();
    // The first one may see only when it reads that there is nobody to serve, and fails; the manager starts the next one.
    manager.spawn(&site, &arguments);
    let mut first = manager.main.take().unwrap();
    let mut status = None;
    assert!(becomes_true(CONDITION_TIMEOUT, || {
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
