//! A reader of EROFS images, written from the format: it shares no code with what makes them, nor with the kernel.
//!
//! It is strict: whatever the kernel would refuse, or only take by chance, is an error. Knows uncompressed images alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use sha2::{Digest as _, Sha256};

use crate::byte_text::hex;
use crate::compare::{Entry, HASH_LIMIT, Tree};

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// What a hole has instead of an address.
const HOLE: u32 = u32::MAX;

/// The bytes of an image.
pub(crate) trait ImageBytes {
    /// Fills `to` with the bytes at `at`.
    fn fill(&self, at: u64, to: &mut [u8]) -> io::Result<()>;
    /// Bytes of the image.
    fn len(&self) -> u64;
}

impl ImageBytes for std::fs::File {
    fn fill(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, to, at)
    }
    fn len(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }
}

impl ImageBytes for Vec<u8> {
    fn fill(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        let from = self.get(at as usize..at as usize + to.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        to.copy_from_slice(from);
        Ok(())
    }
    fn len(&self) -> u64 {
        self.len() as u64
    }
}

/// An image whose superblock was read.
struct Reader<'a> {
    bytes: &'a dyn ImageBytes,
    shared: u64,
    root: u64,
    inodes: u64,
    chunks: bool,
    /// The largest file that is hashed.
    hash_limit: u64,
}

/// An inode.
struct Inode {
    nid: u64,
    layout: u16,
    mode: u32,
    size: u64,
    place: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
    nlink: u32,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What follows the attributes.
    behind: u64,
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Everything in an image, by path.
pub(crate) fn read_image(bytes: &dyn ImageBytes) -> io::Result<Tree> {
    read_image_within(bytes, HASH_LIMIT)
}

/// The same, with hashes of files of up to `hash_limit` bytes.
pub(crate) fn read_image_within(bytes: &dyn ImageBytes, hash_limit: u64) -> io::Result<Tree> {
    Reader { hash_limit, ..Reader::open(bytes)? }.tree()
}

impl<'a> Reader<'a> {
    /// Reads the superblock.
    fn open(bytes: &'a dyn ImageBytes) -> io::Result<Self> {
        let mut block = vec![0; BLOCK as usize];
        bytes.fill(0, &mut block)?;
        let (before, sb) = block.split_at(1024);
        if before.iter().any(|byte| *byte != 0) || u32_at(sb, 0) != 0xe0f5_e1e2 || sb[12] != 12 {
            return Err(wrong("no superblock with blocks of 4 KiB"));
        }
        let (compatible, incompatible) = (u32_at(sb, 8), u32_at(sb, 80));
        if compatible != 3 || incompatible & !4 != 0 {
            return Err(wrong(format!("features {compatible:#x} and {incompatible:#x}")));
        }
        // The checksum is that of the block with zeros in its place.
        let mut summed = sb.to_vec();
        summed[4..8].fill(0);
        if crc32c_table(&summed) != u32_at(sb, 4) {
            return Err(wrong("checksum of the superblock"));
        }
        let blocks = u64::from(u32_at(sb, 36));
        if blocks * BLOCK != bytes.len() {
            return Err(wrong(format!("{blocks} blocks in {} bytes", bytes.len())));
        }
        if sb[13] != 0 || sb[84..128].iter().any(|byte| *byte != 0) || u32_at(sb, 40) != 0 {
            return Err(wrong("superblock with fields that are not used"));
        }
        Ok(Self {
            bytes,
            shared: u64::from(u32_at(sb, 44)) * BLOCK,
            root: u64::from(u16_at(sb, 14)),
            inodes: u64_at(sb, 16),
            chunks: incompatible & 4 != 0,
            hash_limit: HASH_LIMIT,
        })
    }

    /// Walks everything.
    fn tree(&self) -> io::Result<Tree> {
        let mut tree = Tree::new();
        let mut names: BTreeMap<u64, (u32, u32, bool)> = BTreeMap::new();
        let mut todo = vec![(Vec::new(), self.root, self.root)];
        let mut directories = BTreeSet::new();
        while let Some((path, nid, parent)) = todo.pop() {
            let inode = self.inode(nid).map_err(|error| wrong(format!("nid {nid}: {error}")))?;
            let at = |error| wrong(format!("/{}: {error}", path.escape_ascii()));
            let (is_directory, before) =
                (inode.mode & 0o170_000 == 0o040_000, names.get(&nid).map_or(0, |n| n.1));
            names.insert(nid, (inode.nlink, before + 1, is_directory));
            if is_directory {
                if !directories.insert(nid) {
                    return Err(at(wrong("directory with two names")));
                }
                let mut below = 0;
                for (name, child, kind) in self.directory(&inode).map_err(at)? {
                    match &name[..] {
                        b"." if child != nid => return Err(at(wrong("'.' is another inode"))),
                        b".." if child != parent => return Err(at(wrong("'..' is another inode"))),
                        b"." | b".." if kind != 2 => return Err(at(wrong("dots are no directories"))),
                        b"." | b".." => continue,
                        _ => {}
                    }
                    let mode = self.inode(child).map_err(at)?.mode >> 12;
                    let types = [(8, 1), (4, 2), (2, 3), (6, 4), (1, 5), (12, 6), (10, 7)];
                    if !types.contains(&(mode, u32::from(kind))) {
                        return Err(at(wrong(format!("type {kind} in the entry of mode {mode:o}"))));
                    }
                    below += u32::from(mode == 4);
                    let mut full = path.clone();
                    if !full.is_empty() {
                        full.push(b'/');
                    }
                    full.extend_from_slice(&name);
                    todo.push((full, child, nid));
                }
                if inode.nlink != 2 + below {
                    return Err(at(wrong(format!("{} links of {below} subdirectories", inode.nlink))));
                }
            }
            let entry = self.entry(&inode).map_err(at)?;
            if tree.insert(path.clone(), entry).is_some() {
                return Err(at(wrong("listed twice")));
            }
        }
        if let Some((nid, (links, found, _))) =
            names.iter().find(|(_, (links, found, is_directory))| !is_directory && links != found)
        {
            return Err(wrong(format!("nid {nid} has {found} names and {links} links")));
        }
        if names.len() as u64 != self.inodes {
            return Err(wrong(format!("{} inodes instead of {}", names.len(), self.inodes)));
        }
        Ok(tree)
    }

    fn read(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        if at.checked_add(len).is_none_or(|end| end > self.bytes.len()) {
            return Err(wrong(format!("{len} bytes at {at} of {}", self.bytes.len())));
        }
        let mut to = vec![0; len as usize];
        self.bytes.fill(at, &mut to)?;
        Ok(to)
    }

    fn inode(&self, nid: u64) -> io::Result<Inode> {
        let at = nid.checked_mul(32).ok_or_else(|| wrong("nid past every image"))?;
        if at % BLOCK > BLOCK - 64 {
            return Err(wrong("inode that crosses a block"));
        }
        let raw = self.read(at, 64)?;
        let format = u16_at(&raw, 0);
        if format & 1 == 0 || format >> 4 != 0 || raw[6..8] != [0, 0] || raw[48..64] != [0; 16] {
            return Err(wrong(format!("inode format {format:#x}, or reserved bytes")));
        }
        let words = u64::from(u16_at(&raw, 2));
        let xattr_bytes = if words == 0 { 0 } else { 12 + (words - 1) * 4 };
        let inode = Inode {
            nid,
            layout: format >> 1,
            mode: u32::from(u16_at(&raw, 4)),
            size: u64_at(&raw, 8),
            place: u32_at(&raw, 16),
            uid: u32_at(&raw, 24),
            gid: u32_at(&raw, 28),
            mtime: (u64_at(&raw, 32) as i64, i64::from(u32_at(&raw, 40))),
            nlink: u32_at(&raw, 44),
            xattrs: self.xattrs(at + 64, xattr_bytes)?,
            behind: at + 64 + xattr_bytes,
        };
        if i64::try_from(inode.size).is_err() || !(0..1_000_000_000).contains(&inode.mtime.1) {
            return Err(wrong("size or time"));
        }
        Ok(inode)
    }

    fn xattrs(&self, at: u64, len: u64) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut xattrs = BTreeMap::new();
        if len == 0 {
            return Ok(xattrs);
        }
        let area = self.read(at, len)?;
        let shared = usize::from(area[4]);
        if area[..4] != [0; 4] || area[5..12] != [0; 7] || area.len() < 12 + shared * 4 {
            return Err(wrong("head of the attributes"));
        }
        let mut add = |bytes: &[u8]| -> io::Result<usize> {
            let head = bytes.get(..4).ok_or_else(|| wrong("attribute past its area"))?;
            let (name, value) = (usize::from(head[0]), usize::from(u16_at(head, 2)));
            let prefix: &[u8] = match head[1] {
                1 => b"user.",
                2 => b"system.posix_acl_access",
                3 => b"system.posix_acl_default",
                4 => b"trusted.",
                6 => b"security.",
                other => return Err(wrong(format!("prefix {other} of an attribute"))),
            };
            if (name == 0) != matches!(head[1], 2 | 3) || prefix.len() + name > 255 {
                return Err(wrong("name of an attribute"));
            }
            let body = bytes.get(4..4 + name + value).ok_or_else(|| wrong("attribute past its area"))?;
            let (name, value) = body.split_at(name);
            if xattrs.insert([prefix, name].concat(), value.to_vec()).is_some() {
                return Err(wrong("attribute that is there twice"));
            }
            Ok((4 + body.len()).next_multiple_of(4))
        };
        for place in area[12..12 + shared * 4].chunks(4) {
            let at = self.shared + u64::from(u32_at(place, 0)) * 4;
            let head = self.read(at, 4)?;
            add(&self.read(at, 4 + u64::from(head[0]) + u64::from(u16_at(&head, 2)))?)?;
        }
        let mut inline = &area[12 + shared * 4..];
        while !inline.is_empty() {
            let used = add(inline)?;
            inline = inline.get(used..).ok_or_else(|| wrong("attribute that is not padded"))?;
        }
        Ok(xattrs)
    }

    /// Names, numbers and types, in order.
    fn directory(&self, inode: &Inode) -> io::Result<Vec<(Vec<u8>, u64, u8)>> {
        let mut entries: Vec<(Vec<u8>, u64, u8)> = Vec::new();
        for at in (0..inode.size).step_by(BLOCK as usize) {
            let block = self.content(inode, at, BLOCK.min(inode.size - at))?;
            let first = usize::from(u16_at(&block, 8));
            if first == 0 || first % 12 != 0 || first > block.len() {
                return Err(wrong("directory block without entries"));
            }
            let count = first / 12;
            for nth in 0..count {
                let record = &block[nth * 12..nth * 12 + 12];
                let start = usize::from(u16_at(record, 8));
                let end =
                    if nth + 1 < count { usize::from(u16_at(&block, nth * 12 + 20)) } else { block.len() };
                let name = block.get(start..end).ok_or_else(|| wrong("name past its block"))?;
                // The last name of a block that is not the last ends at a NUL.
                let is_last = nth + 1 == count;
                let name =
                    if is_last { name.split(|byte| *byte == 0).next().unwrap_or_default() } else { name };
                if name.is_empty()
                    || name.len() > 255
                    || name.contains(&0)
                    || name.contains(&b'/')
                    || record[11] != 0
                {
                    return Err(wrong(format!("name {}", name.escape_ascii())));
                }
                if entries.last().is_some_and(|(last, _, _)| last.as_slice() >= name) {
                    return Err(wrong(format!("name {} out of order", name.escape_ascii())));
                }
                entries.push((name.to_vec(), u64_at(record, 0), record[10]));
            }
        }
        for dot in [&b"."[..], b".."] {
            if !entries.iter().any(|(name, _, _)| name == dot) {
                return Err(wrong("directory without its dots"));
            }
        }
        Ok(entries)
    }

    /// Bytes of an inode's content, which do not cross a block of directories or a chunk of files more often than the layout says.
    fn content(&self, inode: &Inode, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len as usize);
        while (bytes.len() as u64) < len {
            let from = at + bytes.len() as u64;
            let left = len - bytes.len() as u64;
            let tail = inode.size - inode.size % BLOCK;
            match inode.layout {
                0 => bytes.append(&mut self.read(u64::from(inode.place) * BLOCK + from, left)?),
                2 if from >= tail => {
                    let behind = inode.behind + (from - tail);
                    if inode.behind % BLOCK + inode.size % BLOCK > BLOCK {
                        return Err(wrong("tail that crosses a block"));
                    }
                    // The kernel wants a link, and all before it, in one block.
                    if inode.mode & 0o170_000 == 0o120_000 && inode.nid * 32 / BLOCK != inode.behind / BLOCK {
                        return Err(wrong("link that crosses a block"));
                    }
                    bytes.append(&mut self.read(behind, left)?);
                }
                2 => {
                    let step = left.min(tail - from);
                    bytes.append(&mut self.read(u64::from(inode.place) * BLOCK + from, step)?);
                }
                4 if self.chunks && inode.place < 32 => {
                    let chunk = BLOCK << inode.place;
                    let step = left.min(chunk - from % chunk);
                    let entry = self.read(inode.behind.next_multiple_of(4) + from / chunk * 4, 4)?;
                    match u32_at(&entry, 0) {
                        HOLE => bytes.resize(bytes.len() + step as usize, 0),
                        block => bytes.append(&mut self.read(u64::from(block) * BLOCK + from % chunk, step)?),
                    }
                }
                other => return Err(wrong(format!("layout {other}"))),
            }
        }
        Ok(bytes)
    }

    fn entry(&self, inode: &Inode) -> io::Result<Entry> {
        let kind = inode.mode & 0o170_000;
        let is_file = kind == 0o100_000;
        let sha256 = if is_file && inode.size <= self.hash_limit {
            let mut hasher = Sha256::new();
            for at in (0..inode.size).step_by(1 << 20) {
                hasher.update(self.content(inode, at, (1 << 20).min(inode.size - at))?);
            }
            Some(hex(&hasher.finalize()))
        } else {
            None
        };
        let rdev = if matches!(kind, 0o020_000 | 0o060_000) {
            let (major, minor) =
                (u64::from(inode.place) >> 8 & 0xfff, inode.place & 0xff | inode.place >> 12 & 0xfff00);
            // As `makedev` of the C library has it, for small majors.
            major << 8 | u64::from(minor & 0xff) | u64::from(minor & !0xff) << 12
        } else {
            0
        };
        let link = if kind == 0o120_000 { Some(self.content(inode, 0, inode.size)?) } else { None };
        Ok(Entry {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            size: if is_file { inode.size } else { 0 },
            mtime: inode.mtime,
            rdev,
            link,
            sha256,
            xattrs: inode.xattrs.clone(),
            inode: (0, inode.nid),
        })
    }
}

/// CRC-32C by a table, started with all ones and not inverted.
fn crc32c_table(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256u32)
        .map(|byte| {
            let mut value = byte;
            for _ in 0..8 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
            }
            value
        })
        .collect();
    bytes.iter().fold(u32::MAX, |crc, byte| table[usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}
