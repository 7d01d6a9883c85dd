//! Calls that would change something: each is refused with the errno that the kernel gives for a read-only file system.
//!
//! The oracle is the kernel itself: the same tree on a tmpfs that was made read-only gets the same calls, and whatever it answers
//! for a name that exists, is missing, lies below a file or behind a link, a mount has to answer too. It is mounted as a mount of
//! ocifs is, without devices and set-user-id.

use std::fs;
use std::io::Read as _;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, RenameFlags, open};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags};

use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able, sh};
use crate::site::Site;

type Answer = Result<(), Errno>;
/// A call on one name.
type Call = (&'static str, fn(&Path) -> Answer);
/// A call on two names.
type Call2 = (&'static str, fn(&Path, &Path) -> Answer);

fn os(result: std::io::Result<()>) -> Answer {
    result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

fn opened(path: &Path, flags: OFlag) -> Answer {
    // Nothing here may wait for the other end of a pipe.
    open(path, flags | OFlag::O_NONBLOCK, Mode::S_IRUSR).map(drop)
}

/// A descriptor for reading, on which some calls can be made that need no name.
fn reading(path: &Path, call: impl FnOnce(std::os::fd::OwnedFd) -> Answer) -> Answer {
    call(open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty())?)
}

fn mknod(path: &Path, kind: SFlag) -> Answer {
    nix::sys::stat::mknod(path, kind, Mode::S_IRUSR, nix::sys::stat::makedev(1, 3))
}

/// The address of a socket has 108 bytes at most, so that a long one goes through a descriptor of the directory.
fn socket(path: &Path) -> Answer {
    let parent = path.parent().ok_or(Errno::ENOENT)?;
    if path.as_os_str().len() < 100 {
        return os(UnixListener::bind(path).map(drop));
    }
    let parent = open(parent, OFlag::O_PATH, Mode::empty())?;
    let name = path.file_name().ok_or(Errno::ENOENT)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
    os(UnixListener::bind(short).map(drop))
}

fn times(path: &Path, flags: UtimensatFlags) -> Answer {
    let then = TimeSpec::new(1, 1);
    nix::sys::stat::utimensat(AT_FDCWD, path, &then, &then, flags)
}

fn owner(path: &Path, flags: AtFlags) -> Answer {
    nix::unistd::fchownat(AT_FDCWD, path, Some(Uid::from_raw(1)), Some(Gid::from_raw(1)), flags)
}

const CALLS: &[Call] = &[
    ("open for writing", |path| opened(path, OFlag::O_WRONLY)),
    ("open for reading and writing", |path| opened(path, OFlag::O_RDWR)),
    ("open and append", |path| opened(path, OFlag::O_WRONLY | OFlag::O_APPEND)),
    ("open and truncate", |path| opened(path, OFlag::O_WRONLY | OFlag::O_TRUNC)),
    ("open for reading and truncate", |path| opened(path, OFlag::O_RDONLY | OFlag::O_TRUNC)),
    ("open for writing without following", |path| opened(path, OFlag::O_WRONLY | OFlag::O_NOFOLLOW)),
    ("create", |path| opened(path, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC)),
    ("create for reading", |path| opened(path, OFlag::O_RDONLY | OFlag::O_CREAT)),
    ("create what must not be there", |path| opened(path, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL)),
    ("create without a name", |path| opened(path, OFlag::O_WRONLY | OFlag::O_TMPFILE)),
    ("open as a directory for writing", |path| opened(path, OFlag::O_WRONLY | OFlag::O_DIRECTORY)),
    ("mkdir", |path| os(fs::create_dir(path))),
    ("mknod of a file", |path| mknod(path, SFlag::S_IFREG)),
    ("mknod of a pipe", |path| mknod(path, SFlag::S_IFIFO)),
    ("mknod of a device", |path| mknod(path, SFlag::S_IFCHR)),
    ("mknod of a disk", |path| mknod(path, SFlag::S_IFBLK)),
    ("bind a socket", socket),
    ("symlink", |path| nix::unistd::symlinkat("target", AT_FDCWD, path)),
    ("unlink", |path| nix::unistd::unlinkat(AT_FDCWD, path, UnlinkatFlags::NoRemoveDir)),
    ("rmdir", |path| nix::unistd::unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir)),
    ("truncate", |path| nix::unistd::truncate(path, 0)),
    ("truncate to more", |path| nix::unistd::truncate(path, 1 << 20)),
    ("truncate to less than nothing", |path| nix::unistd::truncate(path, -1)),
    ("chmod", |path| nix::sys::stat::fchmodat(AT_FDCWD, path, Mode::S_IRUSR, FchmodatFlags::FollowSymlink)),
    ("chown", |path| owner(path, AtFlags::empty())),
    ("lchown", |path| owner(path, AtFlags::AT_SYMLINK_NOFOLLOW)),
    ("utimensat", |path| times(path, UtimensatFlags::FollowSymlink)),
    ("utimensat of a link", |path| times(path, UtimensatFlags::NoFollowSymlink)),
    ("setxattr", |path| os(xattr::set_deref(path, "user.x", b"y"))),
    ("setxattr of a link", |path| os(xattr::set(path, "user.x", b"y"))),
    ("setxattr of trusted", |path| os(xattr::set(path, "trusted.x", b"y"))),
    ("setxattr of security", |path| os(xattr::set(path, "security.x", b"y"))),
    ("setxattr without a namespace", |path| os(xattr::set(path, "x", b"y"))),
    ("removexattr", |path| os(xattr::remove_deref(path, "user.x"))),
    ("removexattr of a link", |path| os(xattr::remove(path, "user.x"))),
    ("fchmod", |path| reading(path, |fd| nix::sys::stat::fchmod(&fd, Mode::S_IRUSR))),
    ("fchown", |path| reading(path, |fd| nix::unistd::fchown(&fd, Some(Uid::from_raw(1)), None))),
    ("futimens", |path| {
        reading(path, |fd| nix::sys::stat::futimens(&fd, &TimeSpec::new(1, 1), &TimeSpec::new(1, 1)))
    }),
    ("fsetxattr", |path| {
        use xattr::FileExt as _;
        reading(path, |fd| os(fs::File::from(fd).set_xattr("user.x", b"y")))
    }),
    ("ftruncate", |path| reading(path, |fd| nix::unistd::ftruncate(&fd, 0))),
    ("fallocate", |path| reading(path, |fd| nix::fcntl::fallocate(&fd, FallocateFlags::empty(), 0, 10))),
    ("fallocate of a hole", |path| {
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        reading(path, |fd| nix::fcntl::fallocate(&fd, hole, 0, 1))
    }),
    ("write", |path| reading(path, |fd| nix::unistd::write(&fd, b"x").map(drop))),
    ("copy_file_range into", |path| {
        reading(path, |fd| {
            // The standard library copies between files by this call, and tells what it was answered.
            let from = fs::File::open("/proc/self/exe").map_err(|_| Errno::UnknownErrno)?;
            os(std::io::copy(&mut from.take(10), &mut fs::File::from(fd)).map(drop))
        })
    }),
];

fn renamed(from: &Path, to: &Path, flags: RenameFlags) -> Answer {
    nix::fcntl::renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)
}

const CALLS2: &[Call2] = &[
    ("rename", |from, to| renamed(from, to, RenameFlags::empty())),
    ("rename without replacing", |from, to| renamed(from, to, RenameFlags::RENAME_NOREPLACE)),
    ("exchange", |from, to| renamed(from, to, RenameFlags::RENAME_EXCHANGE)),
    ("link", |from, to| nix::unistd::linkat(AT_FDCWD, from, AT_FDCWD, to, LinkatFlags::empty())),
    ("link what a link leads to", |from, to| {
        nix::unistd::linkat(AT_FDCWD, from, AT_FDCWD, to, LinkatFlags::AT_SYMLINK_FOLLOW)
    }),
];

/// Every kind of name there is, in the tree that both have.
const NAMES: &[&str] = &[
    "d/f",
    "d",
    "d/e",
    "d/l",
    "d/to-dir",
    "d/dangling",
    "d/pipe",
    "d/null",
    "d/disk",
    "d/new",
    "d/new/below",
    "d/f/below",
    "d/l/below",
    "d/to-dir/new",
    "d/f/",
    "d/new/",
    "d/.",
    "d/..",
    ".",
    "d/loop",
];

struct Trees {
    site: Site,
    oracle: PathBuf,
}

impl Trees {
    fn new() -> Self {
        let site = Site::new();
        let oracle = site.scratch().subdir("oracle");
        let make = "mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs $1; cd $1; mkdir -p d/e; chmod 755 d d/e; echo data > d/f; \
                    ln -s f d/l; ln -s e d/to-dir; ln -s nowhere d/dangling; ln -s loop d/loop; mkfifo d/pipe; \
                    mknod d/null c 1 3; mknod d/disk b 7 99";
        let this = Self { site, oracle };
        sh(make, &[&this.oracle]);
        this
    }

    fn freeze(&self) {
        sh("mount -o remount,ro $1", &[&self.oracle]);
    }
}

impl Drop for Trees {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(&self.oracle).status().ok();
    }
}

fn image(trees: &Trees) -> String {
    let tar = sh("tar -C $1 -cf - d", &[&trees.oracle]).stdout;
    let mut layout = Layout::create(trees.site.scratch().join("layout"));
    layout.image("v1", &[Layer::of(&tar, Encoding::Gzip)]);
    layout.reference("v1")
}

/// How many calls on these names are refused as on a read-only file system, and a line for each that answers otherwise than the kernel does.
fn compare(oracle: &Path, ours: &Path, names: &[(&str, &str)], wrong: &mut Vec<String>) -> usize {
    let mut refused = 0;
    let mut note = |what: String, expected: Answer, answer: Answer| {
        if answer != expected {
            wrong.push(format!("{what}: {answer:?}, the kernel says {expected:?}"));
        }
        refused += usize::from(answer == Err(Errno::EROFS));
    };
    for (call, run) in CALLS {
        for (theirs, name) in names {
            let (expected, answer) = (run(&oracle.join(theirs)), run(&ours.join(name)));
            note(format!("{call} {name}"), expected, answer);
        }
    }
    let outside = oracle.with_file_name("outside");
    fs::write(&outside, b"outside").unwrap();
    for (call, run) in CALLS2 {
        for (theirs, name) in names {
            for (their_other, other) in names {
                let (expected, answer) = (
                    run(&oracle.join(theirs), &oracle.join(their_other)),
                    run(&ours.join(name), &ours.join(other)),
                );
                note(format!("{call} {name} {other}"), expected, answer);
            }
            let into = (run(&outside, &oracle.join(theirs)), run(&outside, &ours.join(name)));
            note(format!("{call} from outside to {name}"), into.0, into.1);
            let beside = outside.with_extension("other");
            let out = (run(&oracle.join(theirs), &beside), run(&ours.join(name), &beside));
            note(format!("{call} from {name} to outside"), out.0, out.1);
        }
    }
    assert_eq!(fs::read(&outside).unwrap(), b"outside");
    refused
}

#[test]
fn every_mutating_call_answers_as_the_kernel_does_for_a_read_only_file_system() {
    if !able(&[Need::Root, Need::Fuse]) {
        return;
    }
    let trees = Trees::new();
    let reference = image(&trees);
    trees.freeze();
    let mount = trees.site.mount(&reference, &[]);
    let layers = fs::read_dir(mount.join("layers")).unwrap().next().unwrap().unwrap().path();
    let blobs = mount.join("blobs/sha256");
    let mut blob = fs::read_dir(&blobs).unwrap();
    let blob = blob.next().unwrap().unwrap().file_name().into_string().unwrap();
    let mut wrong = Vec::new();
    let same: Vec<(&str, &str)> = NAMES.iter().map(|name| (*name, *name)).collect();
    for root in [&mount.join("merged"), &layers] {
        let kinds = ["d/pipe", "d/null", "d/disk"]
            .map(|name| fs::symlink_metadata(root.join(name)).unwrap().file_type());
        assert!(kinds[0].is_fifo() && kinds[1].is_char_device() && kinds[2].is_block_device());
        let before = fs::metadata(root.join("d/f")).unwrap();
        let refused = compare(&trees.oracle, root, &same, &mut wrong);
        assert!(refused > 700, "{refused}");
        let after = fs::metadata(root.join("d/f")).unwrap();
        let facts = |it: &fs::Metadata| (it.mode(), it.uid(), it.size(), it.mtime(), it.nlink());
        assert_eq!(facts(&before), facts(&after));
        assert_eq!(fs::read(root.join("d/f")).unwrap(), b"data\n");
    }
    // The views that ocifs makes up have files and directories alone.
    let made_up = |directory: &str, file: &str| {
        [
            ("d/f", file.to_owned()),
            ("d", directory.to_owned()),
            ("d/new", format!("{directory}/new")),
            ("d/f/below", format!("{file}/below")),
            ("d/new/below", format!("{directory}/new/below")),
        ]
    };
    for (directory, file) in [
        ("blobs/sha256", format!("blobs/sha256/{blob}")),
        (".ocifs", ".ocifs/status.json".to_owned()),
        (".", "manifest.json".to_owned()),
    ] {
        let names = made_up(directory, &file);
        let names: Vec<(&str, &str)> = names.iter().map(|(theirs, name)| (*theirs, name.as_str())).collect();
        // The top of a file system is another thing than a directory in it.
        let names: Vec<_> =
            names.into_iter().filter(|(theirs, _)| directory != "." || *theirs != "d").collect();
        let refused = compare(&trees.oracle, mount.dir(), &names, &mut wrong);
        assert!(refused > 50, "{directory}: {refused}");
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}
