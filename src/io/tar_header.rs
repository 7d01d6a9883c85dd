//! Writer of tar headers: one form for every entry, the same on every machine.
//!
//! Reads no archive and holds no file content. `tar::Header` lays out the fields. An entry is USTAR as far as USTAR can express it, and a pax record in
//! front holds the rest. So equal entries have equal bytes, and every tar reader accepts them.

use std::collections::BTreeMap;

use tar::{EntryType, Header};

/// Block size of an archive.
const TAR_BLOCK_BYTES: usize = 512;

/// Bytes of zeros at the end of an archive.
pub const TAR_END: usize = 2 * TAR_BLOCK_BYTES;

/// Bytes of the name and of the link target of a header.
const NAME_BYTES: usize = 100;

/// Bytes of the directory part of a header.
const PREFIX_BYTES: usize = 155;

/// Numbers of this many bits fit the fields of owners.
const OWNER_BITS: u32 = 21;

/// Numbers of this many bits fit the fields of sizes and times.
const SIZE_BITS: u32 = 33;

/// The type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TarKind<'a> {
    /// A file of this size; its content follows the header and is padded by [`tar_padding`].
    File(u64),
    /// A directory; its name ends with a slash.
    Directory,
    /// A symbolic link with its target.
    Symlink(&'a [u8]),
    /// Another name of an earlier entry.
    HardLink(&'a [u8]),
    /// A character device with major and minor number.
    CharDevice(u32, u32),
    /// A block device with major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One entry of an archive.
#[derive(Clone, Debug)]
pub struct TarEntry<'a> {
    /// The path.
    pub name: &'a [u8],
    /// The type.
    pub kind: TarKind<'a>,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds, rounded down, and the nanoseconds after that.
    pub mtime: (i64, u32),
    /// Extended attributes: names and values.
    pub xattrs: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> TarEntry<'a> {
    /// An entry owned by root, with the time 1970-01-01.
    pub fn new(name: &'a [u8], kind: TarKind<'a>, mode: u16) -> Self {
        Self { name, kind, mode, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
    }

    /// The bytes in front of its content.
    pub fn header(&self) -> Vec<u8> {
        let (kind, link, size) = match self.kind {
            TarKind::File(size) => (EntryType::Regular, &b""[..], size),
            TarKind::HardLink(target) => (EntryType::Link, target, 0),
            TarKind::Symlink(target) => (EntryType::Symlink, target, 0),
            TarKind::CharDevice(..) => (EntryType::Char, &b""[..], 0),
            TarKind::BlockDevice(..) => (EntryType::Block, &b""[..], 0),
            TarKind::Directory => (EntryType::Directory, &b""[..], 0),
            TarKind::Fifo => (EntryType::Fifo, &b""[..], 0),
        };
        let mut header = UstarFields::new(kind);
        let mut records: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        match split(self.name) {
            Some((prefix, name)) => header.path(prefix, name),
            None => {
                header.path(b"", &ascii(self.name));
                records.insert(b"path".to_vec(), self.name.to_vec());
            }
        }
        header.link(&ascii(link));
        if link.len() > NAME_BYTES || !link.is_ascii() {
            records.insert(b"linkpath".to_vec(), link.to_vec());
        }
        header.0.set_mode(u32::from(self.mode));
        // A number that does not fit is 0 in the header and right in the record.
        let mut number = |key: &str, value: u64, bits: u32| {
            let fits = value >> bits == 0;
            if !fits {
                records.insert(key.as_bytes().to_vec(), value.to_string().into_bytes());
            }
            if fits { value } else { 0 }
        };
        header.0.set_uid(number("uid", self.uid.into(), OWNER_BITS));
        header.0.set_gid(number("gid", self.gid.into(), OWNER_BITS));
        header.0.set_size(number("size", size, SIZE_BITS));
        let (secs, nanos) = self.mtime;
        let whole = u64::try_from(secs).ok().filter(|secs| secs >> SIZE_BITS == 0);
        header.0.set_mtime(whole.unwrap_or_default());
        if whole.is_none() || nanos != 0 {
            records.insert(b"mtime".to_vec(), decimal(secs, nanos).into_bytes());
        }
        header.device(match self.kind {
            TarKind::CharDevice(major, minor) | TarKind::BlockDevice(major, minor) => (major, minor),
            _ => (0, 0),
        });
        for (name, value) in &self.xattrs {
            records.insert([b"SCHILY.xattr.", *name].concat(), value.to_vec());
        }
        let mut bytes = if records.is_empty() { Vec::new() } else { self.pax(&records) };
        bytes.extend_from_slice(&header.sealed());
        bytes
    }

    /// A pax entry with `records` for the next entry.
    fn pax(&self, records: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
        let mut body = Vec::new();
        for (key, value) in records {
            // The length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let mut len = rest + rest.to_string().len();
            len = rest + len.to_string().len();
            body.extend_from_slice(len.to_string().as_bytes());
            body.push(b' ');
            body.extend_from_slice(key);
            body.push(b'=');
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        let cut = self.name.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (directory, name) = self.name.split_at(cut);
        let mut name = ascii(&[directory, b"PaxHeaders.0/", name].concat());
        name.truncate(NAME_BYTES);
        while name.last() == Some(&b'/') {
            name.pop();
        }
        let mut header = UstarFields::new(EntryType::XHeader);
        header.path(b"", &name);
        header.0.set_mode(0);
        header.0.set_uid(0);
        header.0.set_gid(0);
        header.0.set_size(body.len() as u64);
        let padding = tar_padding(body.len() as u64);
        let mut header = header.sealed().to_vec();
        header.append(&mut body);
        header.resize(header.len() + padding, 0);
        header
    }
}

/// The fields of a USTAR header. Names are bytes here: those of images are no paths of this machine.
struct UstarFields(Header);

impl UstarFields {
    /// An empty header with the time 1970-01-01.
    fn new(kind: EntryType) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        Self(header)
    }

    /// Sets the path, as much of each part as fits.
    fn path(&mut self, prefix: &[u8], name: &[u8]) {
        if let Some(fields) = self.0.as_ustar_mut() {
            text(&mut fields.name, name);
            text(&mut fields.prefix, prefix);
        }
    }

    /// Sets the link target, as much of it as fits.
    fn link(&mut self, target: &[u8]) {
        if let Some(fields) = self.0.as_ustar_mut() {
            text(&mut fields.linkname, target);
        }
    }

    /// Sets the device number; every one of Linux fits.
    fn device(&mut self, (major, minor): (u32, u32)) {
        if let Some(fields) = self.0.as_ustar_mut() {
            fields.set_device_major(major);
            fields.set_device_minor(minor);
        }
    }

    /// The bytes with the checksum: six digits, NUL and a space, as Go and GNU tar write it.
    fn sealed(mut self) -> [u8; TAR_BLOCK_BYTES] {
        self.0.set_cksum();
        let sum = self.0.cksum().unwrap_or_default();
        text(&mut self.0.as_old_mut().cksum, format!("{sum:06o}\0 ").as_bytes());
        *self.0.as_bytes()
    }
}

/// Bytes of zeros behind a content of `size` bytes.
pub fn tar_padding(size: u64) -> usize {
    let block = TAR_BLOCK_BYTES as u64;
    ((block - size % block) % block) as usize
}

/// Splits a name into the two fields of a header, at a slash; `None` if it does not fit.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if !name.is_ascii() {
        return None;
    }
    if name.len() <= NAME_BYTES {
        return Some((b"", name));
    }
    let most = name.len().min(PREFIX_BYTES + 1);
    // The trailing slash of a directory is no separator.
    let most = if most == name.len() && name.ends_with(b"/") { most - 1 } else { most };
    let slash = name[..most].iter().rposition(|byte| *byte == b'/').filter(|slash| *slash > 0)?;
    let (prefix, rest) = (&name[..slash], &name[slash + 1..]);
    (rest.len() <= NAME_BYTES && !rest.is_empty()).then_some((prefix, rest))
}

fn ascii(name: &[u8]) -> Vec<u8> {
    name.iter().copied().filter(u8::is_ascii).collect()
}

/// Writes as much of `bytes` as fits.
fn text(field: &mut [u8], bytes: &[u8]) {
    let len = field.len().min(bytes.len());
    field[..len].copy_from_slice(&bytes[..len]);
}

/// Seconds with their fraction, also before 1970.
fn decimal(secs: i64, nanos: u32) -> String {
    let text = match (secs < 0, nanos) {
        (_, 0) => return secs.to_string(),
        (true, nanos) => format!("-{}.{:09}", (secs + 1).unsigned_abs(), 1_000_000_000 - nanos),
        (false, nanos) => format!("{secs}.{nanos:09}"),
    };
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    type Records = Vec<(String, Vec<u8>)>;

    /// The entry as the tar crate reads it: path, link, size, and the pax records.
    fn read(entry: &TarEntry<'_>) -> (Vec<u8>, Vec<u8>, u64, Records) {
        let mut archive = entry.header();
        if let TarKind::File(size @ ..1_000_000) = entry.kind {
            archive.resize(archive.len() + size as usize + tar_padding(size), b'x');
        }
        archive.resize(archive.len() + TAR_END, 0);
        let mut archive = tar::Archive::new(&archive[..]);
        let mut found = archive.entries().unwrap().next().unwrap().unwrap();
        let records = found.pax_extensions().unwrap().map(|records| {
            let record = |record: std::io::Result<tar::PaxExtension<'_>>| {
                let record = record.unwrap();
                (record.key().unwrap().to_owned(), record.value_bytes().to_vec())
            };
            records.map(record).collect()
        });
        let link = found.link_name_bytes().map(|link| link.to_vec()).unwrap_or_default();
        (found.path_bytes().to_vec(), link, found.size(), records.unwrap_or_default())
    }

    #[test]
    fn a_plain_entry_is_one_header_of_ustar_byte_by_byte() {
        let header = TarEntry::new(b"oci-layout", TarKind::File(30), 0o444).header();
        assert_eq!(header.len(), 512);
        assert_eq!(&header[..12], b"oci-layout\0\0");
        assert_eq!(&header[100..148], b"0000444\x000000000\x000000000\x0000000000036\x0000000000000\0");
        assert_eq!(&header[156..265], &[&b"0"[..], &[0; 100], b"ustar\x0000"].concat()[..]);
        assert_eq!(&header[329..345], b"0000000\x000000000\0");
        let mut parsed = tar::Header::new_ustar();
        parsed.as_mut_bytes().copy_from_slice(&header);
        let sum = parsed.cksum().unwrap();
        parsed.set_cksum();
        assert_eq!(parsed.cksum().unwrap(), sum);
    }

    #[test]
    fn fields_beyond_ustar_round_trip_through_pax() {
        let long = [&b"a/"[..], &[b'b'; 200]].concat();
        let deep = [&[b'd'; 120][..], b"/", &[b'e'; 90]].concat();
        let directory = [&[b'd'; 100][..], b"/"].concat();
        for (name, records) in [
            (&b"a/b"[..], 0),
            (&deep, 0),
            (&long, 1),
            (&directory, 1),
            ("a/\u{e4}".as_bytes(), 1),
            (b"a/\xff", 1),
        ] {
            let (path, _, _, found) = read(&TarEntry::new(name, TarKind::File(3), 0o644));
            assert_eq!((&path[..], found.len()), (name, records));
        }
        let target = [b't'; 150];
        let (_, link, _, _) = read(&TarEntry::new(b"l", TarKind::Symlink(&target), 0o777));
        assert_eq!(link, target);
        let large = 8 << 30;
        let entry = TarEntry::new(b"large", TarKind::File(large), 0o444);
        assert_eq!(entry.header().len(), 3 * 512);
        assert_eq!(read(&entry).2, large);
        assert_eq!(TarEntry::new(b"large", TarKind::File(large - 1), 0o444).header().len(), 512);
    }

    #[test]
    fn times_owners_and_attributes_are_kept() {
        let entry = TarEntry {
            uid: 3_000_000,
            mtime: (-2, 250_000_000),
            xattrs: vec![(b"user.a", b"b\0c"), (b"security.capability", b"=x")],
            ..TarEntry::new(b"f", TarKind::Fifo, 0o4755)
        };
        let (_, _, _, records) = read(&entry);
        let expected: [(&str, &[u8]); 4] = [
            ("SCHILY.xattr.security.capability", b"=x"),
            ("SCHILY.xattr.user.a", b"b\0c"),
            ("mtime", b"-1.75"),
            ("uid", b"3000000"),
        ];
        let expected: Vec<_> =
            expected.iter().map(|(key, value)| ((*key).to_owned(), value.to_vec())).collect();
        assert_eq!(records, expected);
        assert_eq!(decimal(5, 0), "5");
        assert_eq!(decimal(5, 100_000_000), "5.1");
        assert_eq!(decimal(-5, 0), "-5");
    }

    #[test]
    fn gnu_tar_reads_written_headers() {
        let mut archive = Vec::new();
        let body = [b'y'; 700];
        let name = [&b"dir/"[..], &[b'n'; 180]].concat();
        for (entry, body) in [
            (TarEntry::new(b"dir/", TarKind::Directory, 0o755), &b""[..]),
            (TarEntry::new(&name, TarKind::File(700), 0o600), &body),
            (TarEntry::new(b"dir/hard", TarKind::HardLink(&name), 0o600), b""),
            (TarEntry::new(b"dir/soft", TarKind::Symlink(b"hard"), 0o777), b""),
        ] {
            archive.extend(entry.header());
            archive.extend_from_slice(body);
            archive.resize(archive.len() + tar_padding(body.len() as u64), 0);
        }
        archive.resize(archive.len() + TAR_END, 0);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.tar");
        std::fs::write(&file, archive).unwrap();
        let status =
            std::process::Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(dir.path()).status();
        assert!(status.unwrap().success());
        let mut text = String::new();
        std::fs::File::open(dir.path().join("dir/soft")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text.as_bytes(), body);
    }
}
