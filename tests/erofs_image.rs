//! EROFS images of trees against three readers: one written from the format, Debian's erofs-utils, and the kernel.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it skips"
)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use ocifs::erofs::{ErofsError, ErofsImage};
use ocifs::layer::{FileContent, SparseRun, TableOfContents, TocEntry, TocEntryKind, UnixTime};
use ocifs::tree::{FrozenTree, NewKind, NewNode, TreeBuilder};

use crate::compare;
use crate::erofs_reader::{ImageBytes as _, read_image};
use crate::erofs_trees::{Made, random_tree};
use crate::random::Random;

/// Trees without `PROPTEST_CASES`.
const TREES: u64 = 150;
/// How many of them the kernel and erofs-utils read.
const MOUNTED: u64 = 60;

fn cases(otherwise: u64) -> u64 {
    std::env::var("PROPTEST_CASES").ok().map_or(otherwise, |cases| cases.parse().unwrap())
}

#[test]
fn the_reader_finds_every_path_and_byte_of_random_trees() {
    for seed in 1..=cases(TREES) {
        let made = Made::of(random_tree(&mut Random(seed)));
        let read = read_image(&made).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        same(&made.expected(), &read, seed);
    }
}

#[test]
fn the_same_tree_and_digest_are_the_same_bytes_and_anything_else_another_image() {
    let tree = || random_tree(&mut Random(77));
    let metadata = |tree: &FrozenTree, digest: &str| ErofsImage::of(tree, digest).unwrap().metadata().clone();
    assert_eq!(metadata(&tree(), "sha256:a"), metadata(&tree(), "sha256:a"));
    let uuid = |tree: &FrozenTree, digest: &str| metadata(tree, digest)[1024 + 48..1024 + 64].to_vec();
    assert_ne!(uuid(&tree(), "sha256:a"), uuid(&tree(), "sha256:b"));
    assert_ne!(uuid(&tree(), "sha256:a"), uuid(&random_tree(&mut Random(78)), "sha256:a"));
}

#[test]
fn a_file_of_terabytes_takes_only_the_blocks_of_its_data() {
    const TIB: u64 = 1 << 40;
    let runs = vec![SparseRun { offset: 0, len: 10 }, SparseRun { offset: 10 * TIB - 10, len: 10 }];
    let made = Made::of(tree_of(FileContent { size: 10 * TIB, offset: 512, runs: Some(runs) }));
    assert!(made.len() < 4 << 30, "{} bytes", made.len());
    same(&made.expected(), &read_image(&made).unwrap(), 0);
    let map = made.image.map();
    let data: u64 = std::iter::successors(map.next_data(0), |from| map.next_data(map.next_hole(*from)))
        .map(|from| map.next_hole(from) - from)
        .sum();
    assert!(data < 64 << 20, "{data} bytes are no hole");
}

#[test]
fn more_blocks_than_the_format_addresses_are_an_error_and_no_image() {
    let tree = tree_of(FileContent { size: 17 << 40, offset: 512, runs: None });
    assert!(matches!(ErofsImage::of(&tree, ""), Err(ErofsError::TooManyBlocks { .. })));
    let tree = tree_of(FileContent { size: u64::MAX, offset: 512, runs: None });
    assert!(matches!(ErofsImage::of(&tree, ""), Err(ErofsError::FileTooLarge { .. })));
    let mut builder = TreeBuilder::new();
    let node = NewNode { kind: NewKind::Graft(1), mode: 0o555, uid: 0, gid: 0, mtime: UnixTime::default() };
    builder.insert(b"other", node).unwrap();
    assert!(matches!(ErofsImage::of(&builder.freeze(), ""), Err(ErofsError::OtherTree { .. })));
}

#[test]
fn attributes_that_the_format_cannot_hold_are_left_out_and_named() {
    let mut toc = TableOfContents::default();
    toc.push(TocEntry {
        path: b"f".to_vec(),
        kind: TocEntryKind::Fifo,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: UnixTime::default(),
        xattrs: vec![
            (b"user.kept".to_vec(), b"1".to_vec()),
            (b"user.long".to_vec(), vec![0; 65_536]),
            (b"btrfs.compression".to_vec(), b"zlib".to_vec()),
            (b"system.posix_acl_access".to_vec(), b"no list".to_vec()),
        ],
        header: 0,
    });
    let mut builder = TreeBuilder::new();
    builder.apply(0, &toc).unwrap();
    let made = Made::of(builder.freeze());
    let read = read_image(&made).unwrap();
    assert_eq!(read[&b"f"[..]].xattrs.keys().collect::<Vec<_>>(), [b"user.kept"]);
    let omitted = made.image.omitted().join("\n");
    for name in ["user.long: ", "btrfs.compression: ", "posix_acl_access: "] {
        assert!(omitted.contains(name), "{omitted}");
    }
    assert_eq!(made.image.omitted().len(), 3);
}

#[test]
fn erofs_utils_and_the_kernel_agree_with_the_independent_reader() {
    let room = tempfile::tempdir().unwrap();
    let (file, dir) = (room.path().join("image.erofs"), room.path().join("mnt"));
    std::fs::create_dir(&dir).unwrap();
    let has_tools = Command::new("fsck.erofs").arg("-V").output().is_ok();
    let mounts = can_mount(room.path());
    if !has_tools || !mounts {
        assert!(std::env::var_os("CI").is_none(), "fsck.erofs: {has_tools}, mounting: {mounts}");
        eprintln!("skipped in part: fsck.erofs: {has_tools}, mounting EROFS: {mounts}");
    }
    for seed in 1..=cases(MOUNTED).min(500) {
        let made = Made::of(random_tree(&mut Random(seed)));
        write_image(&made, &file);
        if has_tools {
            let fsck = Command::new("fsck.erofs").arg(&file).output().unwrap();
            let output =
                String::from_utf8_lossy(&fsck.stdout).into_owned() + &String::from_utf8_lossy(&fsck.stderr);
            assert!(
                fsck.status.success() && !output.contains("<E>") && !output.contains("<W>"),
                "seed {seed}: {output}"
            );
        }
        if mounts {
            let mounted = Mounted::of(&file, &dir);
            let read = compare::read_tree(&dir).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            drop(mounted);
            same(&made.expected(), &read, seed);
        }
    }
}

/// The tree of one file.
fn tree_of(content: FileContent) -> FrozenTree {
    let mut toc = TableOfContents::default();
    toc.push(TocEntry {
        path: b"file".to_vec(),
        kind: TocEntryKind::File(content),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: UnixTime::default(),
        xattrs: Vec::new(),
        header: 0,
    });
    let mut builder = TreeBuilder::new();
    builder.apply(0, &toc).unwrap();
    builder.freeze()
}

#[track_caller]
fn same(expected: &compare::Tree, read: &compare::Tree, seed: u64) {
    let found = compare::differences(expected, read);
    let shown = found.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(found.is_empty(), "seed {seed}: {} differences:\n{shown}", found.len());
}

/// Writes an image whole, its holes as holes.
fn write_image(made: &Made, to: &Path) {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(to).unwrap();
    file.set_len(made.len()).unwrap();
    let map = made.image.map();
    let mut from = map.next_data(0);
    while let Some(start) = from {
        let end = map.next_hole(start);
        for at in (start..end).step_by(1 << 20) {
            let mut piece = vec![0; (end - at).min(1 << 20) as usize];
            made.fill(at, &mut piece).unwrap();
            file.write_all_at(&piece, at).unwrap();
        }
        from = map.next_data(end);
    }
}

/// An image that the kernel has mounted.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn of(file: &Path, dir: &'a Path) -> Self {
        let mount =
            Command::new("mount").args(["-t", "erofs", "-o", "ro"]).args([file, dir]).output().unwrap();
        assert!(mount.status.success(), "{}", String::from_utf8_lossy(&mount.stderr));
        Self(dir)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0).status().unwrap();
    }
}

/// Whether this process may mount, and the kernel knows EROFS on files.
fn can_mount(room: &Path) -> bool {
    let (file, dir) = (room.join("probe"), room.join("probe.d"));
    std::fs::create_dir(&dir).unwrap();
    write_image(&Made::of(tree_of(FileContent::default())), &file);
    let mounted = Command::new("mount").args(["-t", "erofs", "-o", "ro"]).args([&file, &dir]).output();
    let mounted = mounted.is_ok_and(|mount| mount.status.success());
    if mounted {
        Command::new("umount").arg(&dir).status().unwrap();
    }
    mounted
}
