//! Passthrough: files that the kernel reads itself, files that it must not, and equal bytes in both cases.
//!
//! What the kernel reads by itself leaves no trace in `served`. The page cache leaves none either, so every look at the
//! counter comes after the file's pages were dropped.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::Signal;
use nix::unistd::Whence;
use serde_json::Value;

use crate::artifact::{self, Piece};
use crate::byte_text::digest_of;
use crate::fault_registry::FaultRegistry;
use crate::layout::Layout;
use crate::metrics;
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, sh, signal};
use crate::random::Random;
use crate::scratch::mounted_at;
use crate::site::{Mount, Site, daemons, unmounts};
use crate::tarball::noise;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
/// Several blocks of the cache, and an odd end.
const LENGTH: usize = (5 << 20) + 12_345;

/// One blob with a name, and where it lies.
struct Thing {
    site: Site,
    reference: String,
    bytes: Vec<u8>,
    /// A layout would be read where it lies.
    _registry: FaultRegistry,
}

impl Thing {
    fn new(length: usize) -> Self {
        let site = Site::new();
        let bytes = noise(length, 77);
        let mut layout = Layout::create(site.scratch().join("layout"));
        let piece = Piece::new("model.bin", "application/octet-stream", bytes.clone());
        artifact::write(&mut layout, "v1", "application/vnd.example.model.v1", &[piece]);
        let registry = FaultRegistry::of_layout(&site.scratch().join("layout"), "a/b");
        Self { site, reference: format!("{}/a/b:v1", registry.host()), bytes, _registry: registry }
    }

    fn mount(&self, options: &[&str]) -> Mount {
        let asked = options.iter().any(|option| option.contains("passthrough"));
        let on: &[&str] = if asked { &[] } else { &["--passthrough=on"] };
        let metrics = format!("--metrics=unix:{}", self.metrics().display());
        self.site.mount(&self.reference, &[on, options, &[&metrics]].concat())
    }

    fn metrics(&self) -> PathBuf {
        self.site.scratch().subdir("run").join("metrics")
    }

    /// Waits until the mount has so many files open: the kernel reports that a file was closed after `close` has returned, and
    /// a program that another test starts holds our files from its fork to its exec.
    #[track_caller]
    fn has_open(&self, files: u64) {
        let line = format!("\nocifs_open_files {files}\n");
        let is_so = || metrics::shown(&self.metrics()).contains(&line);
        assert!(becomes_true(CONDITION_TIMEOUT, is_so), "{}", metrics::shown(&self.metrics()));
    }

    /// The blob, by its digest.
    fn path(&self, mount: &Mount) -> PathBuf {
        mount.join("blobs").join(digest_of(&self.bytes).replace(':', "/"))
    }

    /// Reads everything, after which the blob is verified and nothing is open.
    fn warm(&self, mount: &Mount) {
        assert!(fs::read(self.path(mount)).unwrap() == self.bytes);
        // The last block is served from the disk while the whole is still being compared.
        let verified = || xattr::get(self.path(mount), "user.ocifs.verified").unwrap();
        assert!(becomes_true(CONDITION_TIMEOUT, || verified().as_deref() == Some(&b"full"[..])));
    }

    fn served(&self, mount: &Mount) -> u64 {
        served(&mount.status(), &digest_of(&self.bytes))
    }

    /// How many bytes came through the process while `file`, without its pages, was read from end to end.
    fn through_us(&self, mount: &Mount, file: &File) -> u64 {
        let before = self.served(mount);
        posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        self.compare(file);
        self.served(mount) - before
    }

    /// Opens `path` once no process has it open any more and it is read by the kernel.
    #[track_caller]
    fn by_the_kernel(&self, mount: &Mount, path: &Path) -> File {
        let mut found = None;
        becomes_true(CONDITION_TIMEOUT, || {
            let file = File::open(path).unwrap();
            found = (self.through_us(mount, &file) == 0).then_some(file);
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("{path:?} still comes through us"))
    }

    fn compare(&self, file: &File) {
        let mut seen = vec![0; self.bytes.len()];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == self.bytes, "other bytes");
    }
}

fn served(status: &str, digest: &str) -> u64 {
    let status: Value = serde_json::from_str(status).unwrap();
    let blobs = status["blobs"].as_array().unwrap();
    blobs.iter().find(|blob| blob["digest"] == digest).unwrap()["served"].as_u64().unwrap()
}

#[test]
fn a_verified_blob_is_read_by_the_kernel_from_its_next_open_on() {
    if !able(&NEEDS) {
        return;
    }
    let thing = Thing::new(LENGTH);
    let mount = thing.mount(&[]);
    thing.warm(&mount);
    let file = thing.by_the_kernel(&mount, &thing.path(&mount));
    // The same content under another name is another inode.
    drop(thing.by_the_kernel(&mount, &mount.join("files/model.bin")));
    assert_eq!(file.metadata().unwrap().size(), LENGTH as u64);
    assert_eq!(file.metadata().unwrap().ino(), fs::metadata(thing.path(&mount)).unwrap().ino());
}

#[test]
fn with_passthrough_off_every_read_comes_to_us() {
    if !able(&NEEDS) {
        return;
    }
    for options in [["--passthrough", "off"], ["-o", "passthrough=off"]] {
        let thing = Thing::new(LENGTH);
        let mount = thing.mount(&options);
        thing.warm(&mount);
        let file = File::open(thing.path(&mount)).unwrap();
        assert!(thing.through_us(&mount, &file) >= LENGTH as u64);
    }
}

#[test]
fn handles_from_before_keep_the_file_ours_until_the_last_is_closed() {
    if !able(&NEEDS) {
        return;
    }
    let thing = Thing::new(LENGTH);
    let mount = thing.mount(&[]);
    let early = File::open(thing.path(&mount)).unwrap();
    thing.warm(&mount);
    let late = File::open(thing.path(&mount)).unwrap();
    assert!(thing.through_us(&mount, &late) >= LENGTH as u64);
    drop(early);
    thing.has_open(1);
    let later = File::open(thing.path(&mount)).unwrap();
    assert!(thing.through_us(&mount, &later) >= LENGTH as u64);
    drop((late, later));
    thing.has_open(0);
    let first = thing.by_the_kernel(&mount, &thing.path(&mount));
    let second = File::open(thing.path(&mount)).unwrap();
    drop(first);
    thing.has_open(1);
    let third = File::open(thing.path(&mount)).unwrap();
    assert_eq!(thing.through_us(&mount, &second), 0);
    assert_eq!(thing.through_us(&mount, &third), 0);
}

#[test]
fn a_file_read_by_the_kernel_behaves_like_any_other() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("python3")]) {
        return;
    }
    let thing = Thing::new(LENGTH);
    let mount = thing.mount(&[]);
    thing.warm(&mount);
    let path = thing.path(&mount);
    let file = thing.by_the_kernel(&mount, &path);
    let before = thing.served(&mount);
    // Random pieces, also over the end.
    let mut random = Random::of(12_345);
    for _ in 0..2000 {
        let offset = random.below(LENGTH as u64 + 5000);
        let mut piece = vec![0; random.index(10_000)];
        let count = file.read_at(&mut piece, offset).unwrap();
        let from = (offset as usize).min(LENGTH);
        assert_eq!(count, piece.len().min(LENGTH - from));
        assert!(piece[..count] == thing.bytes[from..from + count], "{count} bytes at {offset}");
    }
    // A duplicate, and a child that inherits the descriptor.
    thing.compare(&file.try_clone().unwrap());
    let inherited = File::open(&path).unwrap();
    let child = Command::new("sha256sum").stdin(inherited).stdout(Stdio::piped()).spawn().unwrap();
    let sum = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(format!("sha256:{}", &sum[..64]), digest_of(&thing.bytes));
    let map = "import mmap,sys,hashlib; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); \
               f.close(); print(hashlib.sha256(m).hexdigest())";
    let mapped = sh("python3 -c \"$1\" \"$2\"", &[&map, &path]).text();
    assert_eq!(format!("sha256:{}", mapped.trim()), digest_of(&thing.bytes));
    let copy = thing.site.scratch().join("copy");
    sh("cp --sparse=always $1 $2; cmp $1 $2", &[&path, &copy]);
    assert_eq!(thing.served(&mount), before);
    // Where data and holes are, and how long the file is, is still asked of us.
    let seek = |offset, whence| nix::unistd::lseek(file.as_fd(), offset, whence);
    assert_eq!(seek(0, Whence::SeekData), Ok(0));
    assert_eq!(seek(10, Whence::SeekHole), Ok(LENGTH as i64));
    assert_eq!(seek(LENGTH as i64, Whence::SeekData), Err(Errno::ENXIO));
    assert_eq!(seek(-1, Whence::SeekEnd), Ok(LENGTH as i64 - 1));
    assert_eq!(fs::metadata(&path).unwrap().size(), LENGTH as u64);
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let mut buffer = vec![0; 12_288];
    let start = buffer.as_ptr().align_offset(4096);
    assert_eq!(direct.read_at(&mut buffer[start..start + 4096], 8192).unwrap(), 4096);
    assert!(buffer[start..start + 4096] == thing.bytes[8192..12_288]);
    // An advice makes the kernel fill the page cache of our inode, through us.
    posix_fadvise(&file, 0, 1 << 20, PosixFadviseAdvice::POSIX_FADV_WILLNEED).unwrap();
    thing.compare(&file);
    assert!(OpenOptions::new().write(true).open(&path).is_err());
}

#[test]
fn status_json_never_bypasses_us() {
    if !able(&NEEDS) {
        return;
    }
    let thing = Thing::new(LENGTH);
    let mount = thing.mount(&[]);
    let held = File::open(mount.join(".ocifs/status.json")).unwrap();
    thing.warm(&mount);
    let now = mount.status();
    assert!(served(&now, &digest_of(&thing.bytes)) >= LENGTH as u64);
    assert!(held.as_raw_fd() > 2);
}

#[test]
fn an_overlay_can_be_put_on_a_mount() {
    if !able(&NEEDS) {
        return;
    }
    let thing = Thing::new(LENGTH);
    let mount = thing.mount(&[]);
    thing.warm(&mount);
    let dirs = ["upper", "work", "top"].map(|name| thing.site.scratch().subdir(name));
    let overlay = format!(
        "lowerdir={},upperdir={},workdir={}",
        mount.dir().display(),
        dirs[0].display(),
        dirs[1].display()
    );
    sh("mount -t overlay overlay -o \"$1\" \"$2\"", &[&overlay, &dirs[2]]);
    let seen = fs::read(dirs[2].join("files/model.bin"));
    let written = fs::write(dirs[2].join("files/new"), b"x");
    unmounts(Command::new("umount").arg(&dirs[2]));
    assert!(seen.unwrap() == thing.bytes);
    written.unwrap();
}

/// An overlay at `at` whose layers lie in the scratch directory.
fn overlaid(thing: &Thing, at: &Path) {
    let dirs =
        ["overlay-lower", "overlay-upper", "overlay-work"].map(|name| thing.site.scratch().subdir(name));
    fs::create_dir_all(at).unwrap();
    let [lower, upper, work] = dirs.each_ref().map(|dir| dir.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    sh(
        "chmod 700 \"$2\"; chmod 700 \"$3\"; mount -t overlay overlay -o \"$1\" \"$2\"",
        &[&options, &at, &dirs[1]],
    );
}

#[test]
fn a_cache_on_an_overlay_is_read_by_the_kernel_too() {
    if !able(&NEEDS) {
        return;
    }
    let thing = Thing::new(LENGTH);
    let cache = thing.site.cache();
    overlaid(&thing, &cache);
    let mount = thing.mount(&[]);
    thing.warm(&mount);
    drop(thing.by_the_kernel(&mount, &thing.path(&mount)));
    mount.unmount();
    unmounts(Command::new("umount").arg(&cache));
}

#[test]
fn a_file_that_the_kernel_does_not_take_is_served_by_us() {
    if !able(&NEEDS) {
        return;
    }
    let thing = Thing::new(LENGTH);
    // The cache is no overlay, but what is in it lies on one: the kernel was told of fewer levels than there are.
    let inner = thing.site.cache().join("v1");
    sh("mkdir -m 700 \"$1\"", &[&thing.site.cache()]);
    overlaid(&thing, &inner);
    let mount = thing.mount(&[]);
    thing.warm(&mount);
    for _ in 0..3 {
        let file = File::open(thing.path(&mount)).unwrap();
        assert!(thing.through_us(&mount, &file) >= LENGTH as u64);
        drop(file);
        thing.has_open(0);
    }
    mount.unmount();
    unmounts(Command::new("umount").arg(&inner));
}

#[test]
fn without_rights_over_the_machine_every_read_comes_to_us() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("unshare")]) {
        return;
    }
    let thing = Thing::new(LENGTH);
    let dir = thing.site.mount_point("mnt");
    let log = thing.site.scratch().join("log");
    let script = "\"$1\" mount --passthrough=on --log-file \"$5\" \"$2\" \"$3\"; f=$3/files/model.bin
        for i in 1 2; do sha256sum \"$f\"; done
        until getfattr --only-values -n user.ocifs.verified \"$f\" | grep -q full; do sleep 0.05; done; dd if=\"$f\" iflag=direct bs=1M of=/dev/null status=none
        cat \"$3/.ocifs/status.json\" > \"$4\"; \"$1\" umount \"$3\"";
    let status = thing.site.scratch().join("status");
    let mut command = thing.site.command();
    let binary = command.get_program().to_owned();
    let environment: Vec<_> =
        command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
    command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "bash", "-euc", script, "sh"]).arg(binary);
    command.arg(&thing.reference).arg(&dir).arg(&status).arg(&log);
    command.env_clear().envs(environment).env("OCIFS_LOG", "debug");
    let finished = run(&mut command).ok();
    let right = digest_of(&thing.bytes)["sha256:".len()..].to_owned();
    assert_eq!(finished.text().matches(&right).count(), 2, "{}", finished.text());
    assert!(served(&fs::read_to_string(status).unwrap(), &digest_of(&thing.bytes)) >= 2 * LENGTH as u64);
    let logged = fs::read_to_string(log).unwrap();
    assert_eq!(logged.matches("no passthrough: it needs CAP_SYS_ADMIN").count(), 1, "{logged}");
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()), "a process is left");
}

#[test]
fn a_mount_ends_cleanly_under_files_that_the_kernel_reads() {
    if !able(&NEEDS) {
        return;
    }
    let thing = Thing::new(LENGTH);
    // Killed like a crash.
    let mount = thing.mount(&[]);
    thing.warm(&mount);
    let file = thing.by_the_kernel(&mount, &thing.path(&mount));
    mount.kill();
    let mut bytes = vec![0; 4096];
    // The kernel may still have the file; what it must not do is hang or give other bytes.
    if file.read_exact_at(&mut bytes, 4096).is_ok() {
        assert!(bytes == thing.bytes[4096..8192]);
    }
    drop(file);
    // Asked to end while in use.
    let mount = thing.mount(&[]);
    thing.warm(&mount);
    let file = File::open(thing.path(&mount)).unwrap();
    let dir = mount.dir().to_owned();
    signal(mount.pid(), Signal::SIGTERM);
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()), "it did not end");
    assert!(mounted_at(&dir).is_none());
    mount.forget();
    if file.read_exact_at(&mut bytes, 4096).is_ok() {
        assert!(bytes == thing.bytes[4096..8192]);
    }
    drop(file);
    // Taken out of the tree while in use: the files go on, and the process ends with the last of them.
    let mount = thing.mount(&[]);
    thing.warm(&mount);
    let file = File::open(thing.path(&mount)).unwrap();
    sh("umount -l \"$1\"", &[&mount.dir()]);
    thing.compare(&file);
    assert!(!daemons(&dir).is_empty());
    drop(file);
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()), "it outlived its last file");
    mount.forget();
    // And the next mount finds everything as it was.
    let mount = thing.mount(&[]);
    thing.warm(&mount);
}

#[test]
fn readers_that_come_and_go_while_a_blob_completes_never_fail() {
    if !able(&NEEDS) {
        return;
    }
    const THREADS: u64 = 8;
    for round in 0..3_u64 {
        let thing = Thing::new(24 << 20);
        let mount = thing.mount(&[]);
        let path = thing.path(&mount);
        let (whole, opened) = (AtomicBool::new(false), AtomicU64::new(0));
        let all = Barrier::new(THREADS as usize);
        thread::scope(|scope| {
            for number in 0..THREADS {
                let (thing, path, whole, opened, all) = (&thing, &path, &whole, &opened, &all);
                scope.spawn(move || {
                    let mut random = Random::of(round * THREADS + number);
                    let mut held = Vec::new();
                    let mut after = 0;
                    // Until the blob is whole, and then for long enough that it changes hands.
                    while after < 200 {
                        after += u32::from(whole.load(Ordering::Relaxed));
                        if after > 0 && after % 10 == 0 {
                            // Nobody has it open, and then everybody opens it at once.
                            held.clear();
                            all.wait();
                            thread::sleep(Duration::from_micros(random.below(2000)));
                        }
                        held.push(File::open(path).unwrap_or_else(|error| panic!("open: {error}")));
                        opened.fetch_add(1, Ordering::Relaxed);
                        let file = random.pick(&held);
                        let offset = random.index(thing.bytes.len());
                        let mut piece = vec![0; (1 + random.index(20_000)).min(thing.bytes.len() - offset)];
                        let read = file.read_exact_at(&mut piece, offset as u64);
                        read.unwrap_or_else(|error| panic!("{} bytes at {offset}: {error}", piece.len()));
                        assert!(
                            piece == thing.bytes[offset..offset + piece.len()],
                            "other bytes at {offset}"
                        );
                        while held.len() > random.index(4) {
                            held.swap_remove(random.index(held.len()));
                        }
                    }
                });
            }
            scope.spawn(|| {
                let file = File::open(&path).unwrap();
                for (at, right) in thing.bytes.chunks(1 << 20).enumerate() {
                    let mut piece = vec![0; right.len()];
                    file.read_exact_at(&mut piece, (at as u64) << 20).unwrap();
                    assert!(piece == right);
                }
                whole.store(true, Ordering::Relaxed);
            });
        });
        assert!(opened.load(Ordering::Relaxed) >= THREADS * 200);
        thing.has_open(0);
        thing.warm(&mount);
        drop(thing.by_the_kernel(&mount, &path));
        let status = mount.status();
        assert!(!status.contains("\"open of inode") && !status.contains("\"read of inode"), "{status}");
    }
}
