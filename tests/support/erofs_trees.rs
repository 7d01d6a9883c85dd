//! Random trees with made-up content, and their images as bytes.
//!
//! The content of a file follows from its layer and its place in the stream, so that nothing is kept.

use std::collections::BTreeMap;
use std::io;

use ocifs::erofs::{ErofsError, ErofsImage, ImageSpan};
use ocifs::io::ByteRange;
use ocifs::layer::{DeviceNumber, FileContent, SparseRun, TableOfContents, TocEntry, TocEntryKind, UnixTime};
use ocifs::tree::{FrozenTree, InodeKind, InodeNumber, TreeBuilder};
use sha2::{Digest as _, Sha256};

use crate::byte_text::hex;
use crate::compare;
use crate::erofs_reader::ImageBytes;
use crate::random::Random;

/// A tree, and its image.
pub(crate) struct Made {
    pub(crate) tree: FrozenTree,
    pub(crate) image: ErofsImage,
}

impl Made {
    pub(crate) fn of(tree: FrozenTree) -> Self {
        Self::of_any(tree).expect("the tree has an image")
    }

    /// The image of a tree that may have none.
    pub(crate) fn of_any(tree: FrozenTree) -> Result<Self, ErofsError> {
        let image = ErofsImage::of(&tree, "sha256:made")?;
        Ok(Self { tree, image })
    }

    /// The content of a file at `offset`.
    fn file(&self, ino: InodeNumber, offset: u64, to: &mut [u8]) {
        let file = self.tree.file(ino).expect("a file");
        let Some(runs) = file.runs else {
            return stream(file.origin, file.offset + offset, to);
        };
        to.fill(0);
        let (mut stored, end) = (file.offset, offset + to.len() as u64);
        for run in runs.iter() {
            let (from, until) = (run.offset.max(offset), (run.offset + run.len).min(end));
            if from < until {
                let part = &mut to[(from - offset) as usize..(until - offset) as usize];
                stream(file.origin, stored + (from - run.offset), part);
            }
            stored += run.len;
        }
    }

    /// What a reader of the image has to find.
    pub(crate) fn expected(&self) -> compare::Tree {
        self.expected_within(compare::HASH_LIMIT)
    }

    /// The same, with hashes of files of up to `hash_limit` bytes.
    pub(crate) fn expected_within(&self, hash_limit: u64) -> compare::Tree {
        let mut expected: compare::Tree =
            self.tree.walk().map(|(path, ino)| (path, self.entry(ino, hash_limit))).collect();
        expected.insert(Vec::new(), self.entry(FrozenTree::ROOT, hash_limit));
        expected
    }

    fn entry(&self, ino: InodeNumber, hash_limit: u64) -> compare::Entry {
        let attr = self.tree.attr(ino).expect("an inode");
        let kind = match attr.kind {
            InodeKind::File => 0o100_000,
            InodeKind::Directory | InodeKind::Graft(_) => 0o040_000,
            InodeKind::Symlink => 0o120_000,
            InodeKind::CharDevice => 0o020_000,
            InodeKind::BlockDevice => 0o060_000,
            InodeKind::Fifo => 0o010_000,
        };
        let sha256 = (attr.kind == InodeKind::File && attr.size <= hash_limit).then(|| {
            let (mut hasher, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
            for at in (0..attr.size).step_by(1 << 20) {
                let len = (attr.size - at).min(1 << 20) as usize;
                self.file(ino, at, &mut piece[..len]);
                hasher.update(&piece[..len]);
            }
            hex(&hasher.finalize())
        });
        // What Linux has of a device number: 12 and 20 bits.
        let (major, minor) = (u64::from(attr.rdev.major & 0xfff), u64::from(attr.rdev.minor & 0xf_ffff));
        let is_device = matches!(attr.kind, InodeKind::CharDevice | InodeKind::BlockDevice);
        let mut xattrs = BTreeMap::new();
        for (name, value) in self.tree.xattrs(ino) {
            if holds(name, value) {
                xattrs.entry(name.to_vec()).or_insert_with(|| value.to_vec());
            }
        }
        compare::Entry {
            mode: kind | u32::from(attr.mode),
            uid: attr.uid,
            gid: attr.gid,
            size: if attr.kind == InodeKind::File { attr.size } else { 0 },
            mtime: (attr.mtime.secs, i64::from(attr.mtime.nanos)),
            rdev: if is_device { major << 8 | minor & 0xff | (minor & !0xff) << 12 } else { 0 },
            link: self.tree.link(ino).map(<[u8]>::to_vec),
            sha256,
            xattrs,
            inode: (0, u64::from(ino)),
        }
    }
}

/// Whether the format holds such an attribute.
fn holds(name: &[u8], value: &[u8]) -> bool {
    let known = [&b"user."[..], b"trusted.", b"security."]
        .iter()
        .any(|prefix| name.starts_with(prefix) && name.len() > prefix.len());
    known && name.len() <= 255 && value.len() < 65_536 && !name.starts_with(b"user.ocifs.")
}

impl ImageBytes for Made {
    fn fill(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        for (range, span) in self.image.map().spans(ByteRange::at(at, to.len() as u64)) {
            let part = &mut to[(range.start - at) as usize..(range.end - at) as usize];
            match span {
                ImageSpan::Metadata => {
                    let from = range.start as usize;
                    part.copy_from_slice(&self.image.metadata()[from..from + part.len()]);
                }
                ImageSpan::File { ino, offset } => self.file(ino, offset, part),
                ImageSpan::Zeros => part.fill(0),
            }
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.image.map().size()
    }
}

/// The bytes of a stream from `at` on.
fn stream(origin: u32, at: u64, to: &mut [u8]) {
    for (byte, at) in to.iter_mut().zip(at..) {
        let mixed = (at ^ u64::from(origin) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Never zero, so that a hole or a gap is seen.
        *byte = (mixed >> 56) as u8 | 1;
    }
}

/// A tree of up to three layers with everything that a layer can hold.
pub(crate) fn random_tree(random: &mut Random) -> FrozenTree {
    let mut builder = TreeBuilder::new();
    let layers = 1 + random.below(3) as u32;
    for origin in 0..layers {
        let toc = random_layer(random);
        // What was applied before an entry that no rule can place is a tree as well.
        if builder.apply(origin, &toc).is_err() {
            break;
        }
    }
    builder.freeze()
}

fn random_layer(random: &mut Random) -> TableOfContents {
    let mut toc = TableOfContents::default();
    let crowd = random.below(40) == 0;
    let count = if crowd { 400 + random.below(800) } else { random.below(60) };
    let (mut files, mut offset) = (Vec::new(), 512);
    for nth in 0..count {
        let path = random_path(random, if crowd { Some(nth) } else { None });
        let kind = match random.below(20) {
            0..4 => TocEntryKind::Directory,
            4..7 => TocEntryKind::Symlink(random_bytes(random, &[1, 20, 300, 2000, 4000, 4095])),
            7 => TocEntryKind::CharDevice(device(random)),
            8 => TocEntryKind::BlockDevice(device(random)),
            9 => TocEntryKind::Fifo,
            10 if !files.is_empty() => TocEntryKind::HardLink(random.pick::<Vec<u8>>(&files).clone()),
            11..13 => TocEntryKind::File(sparse(random, offset)),
            _ => {
                let size = *random.pick(&[0, 1, 100, 4095, 4096, 4097, 20_000, 300_000]);
                TocEntryKind::File(FileContent { size, offset, runs: None })
            }
        };
        if let TocEntryKind::File(content) = &kind {
            offset += content.stored() + random.below(2000);
            files.push(path.clone());
        }
        let mut xattrs = random_xattrs(random);
        if !matches!(kind, TocEntryKind::File(_) | TocEntryKind::Directory) {
            // Linux lists such an attribute of anything else, and gives it to no reader.
            xattrs.retain(|(name, _)| !name.starts_with(b"user."));
        }
        let secs = *random.pick(&[0, 1, -1, 1_700_000_000, -62_135_596_800, 253_402_300_799, 1 << 40]);
        toc.push(TocEntry {
            path,
            kind,
            mode: random.below(0o10_000) as u16,
            uid: *random.pick(&[0, 1000, 65_535, 65_536, u32::MAX - 1]),
            gid: *random.pick(&[0, 100, 70_000]),
            mtime: UnixTime { secs, nanos: random.below(1_000_000_000) as u32 },
            xattrs,
            header: 0,
        });
    }
    toc
}

fn random_path(random: &mut Random, crowd: Option<u64>) -> Vec<u8> {
    if let Some(nth) = crowd {
        let mut path = format!("crowd/{}", nth * 7919 % 1009).into_bytes();
        path.resize(path.len() + random.index(200), b'x');
        return path;
    }
    const NAMES: [&[u8]; 12] = [
        b"a",
        b"b",
        b"usr",
        b"!before-dots",
        b".hidden",
        b"..more",
        b"\xff\xfe",
        b"-x",
        b"name with space",
        b"z",
        b"a.b",
        b"A",
    ];
    let depth = 1 + random.index(4);
    let names: Vec<&[u8]> = (0..depth).map(|_| *random.pick(&NAMES)).collect();
    names.join(&b'/')
}

fn device(random: &mut Random) -> DeviceNumber {
    DeviceNumber { major: random.below(4096) as u32, minor: random.below(1 << 20) as u32 }
}

fn random_bytes(random: &mut Random, lens: &[usize]) -> Vec<u8> {
    let len = *random.pick(lens);
    (0..len).map(|_| 1 + random.below(255) as u8).collect()
}

fn sparse(random: &mut Random, offset: u64) -> FileContent {
    let (mut runs, mut end) = (Vec::new(), 0);
    let step = *random.pick(&[100, 5000, 100_000, 1_000_000]);
    for _ in 0..random.below(6) {
        let from = end + random.below(step);
        let len = random.below(9000);
        runs.push(SparseRun { offset: from, len });
        end = from + len;
    }
    FileContent { size: end + random.below(step), offset, runs: Some(runs) }
}

fn random_xattrs(random: &mut Random) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    if random.below(3) == 0 {
        xattrs.push((b"security.selinux".to_vec(), b"system_u:object_r:usr_t:s0\0".to_vec()));
    }
    if random.below(6) == 0 {
        for name in [&b"user.a"[..], b"trusted.b", b"system.unknown", b"user.ocifs.digest", b"user."] {
            if name != b"user." && random.below(2) == 0 {
                let value = random_bytes(random, &[0, 1, 5, 500, 600, 5000]);
                xattrs.push((name.to_vec(), value));
            }
        }
    }
    if random.below(60) == 0 {
        for nth in 0..random.below(300) {
            xattrs.push((format!("user.many{nth}").into_bytes(), random_bytes(random, &[3, 700])));
        }
    }
    if random.below(200) == 0 {
        xattrs.push((b"user.long".to_vec(), random_bytes(random, &[65_535, 65_536])));
    }
    xattrs
}
