//! The mount table of this process, and the attributes by which a mount of ours names its content.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::view::unpack_status;

use super::error::{MountError, TABLE};
use super::mount_record::{EROFS_TYPE, MountRecord};

/// The type of our mounts in the mount table.
pub(super) const FS_TYPE: &str = "fuse.ocifs";

/// The extended attribute of a mount's root that holds its reference with the digest.
pub(super) const REFERENCE: &str = "user.ocifs.reference";
/// The extended attribute of the root while the image is not resolved.
pub(super) const WAITING: &str = "user.ocifs.waiting";
/// The longest value of an extended attribute (xattr(7)).
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountEntry {
    pub(super) dir: PathBuf,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) fs_type: String,
    pub(super) source: String,
}

impl MountEntry {
    /// Whether it is a mount of ours: of our type, or an EROFS mount with a record.
    pub(super) fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE || self.record().is_some_and(|record| record.exists())
    }

    /// The record that it has if it is a kernel-served mount of ours; `None` for another type.
    pub(super) fn record(&self) -> Option<MountRecord> {
        (self.fs_type == EROFS_TYPE).then(|| MountRecord::of(self.major, self.minor, &self.source))
    }

    /// Whether it is a kernel-served mount of ours whose process is gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.record().is_some_and(|record| record.is_abandoned())
    }
}

/// The topmost mount at exactly `dir`.
pub(super) fn find(dir: &Path) -> Result<Option<MountEntry>, MountError> {
    Ok(table()?.into_iter().rfind(|entry| entry.dir == dir))
}

/// Every mount that this process sees; an upper mount comes after the lower one.
pub(super) fn table() -> Result<Vec<MountEntry>, MountError> {
    let table = fs::read(TABLE).map_err(|source| MountError::Table { source })?;
    Ok(parse(&table))
}

/// The mount table as an open file, so that it can be read without a free descriptor.
#[derive(Debug)]
pub(super) struct MountTable(fs::File);

impl MountTable {
    pub(super) fn open() -> Result<Self, MountError> {
        fs::File::open(TABLE).map(Self).map_err(|source| MountError::Table { source })
    }

    /// The topmost mount at exactly `dir`, now.
    pub(super) fn find(&self, dir: &Path) -> Result<Option<MountEntry>, MountError> {
        use std::os::unix::fs::FileExt as _;
        let (mut table, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
        loop {
            match self.0.read_at(&mut piece, table.len() as u64) {
                Ok(0) => return Ok(parse(&table).into_iter().rfind(|entry| entry.dir == dir)),
                Ok(len) => table.extend_from_slice(&piece[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(MountError::Table { source }),
            }
        }
    }
}

/// The reference with the digest, from the mount itself. Blocks until the mount answers.
pub(super) fn pinned_at(entry: &MountEntry) -> Option<String> {
    let dir = &entry.dir;
    if let Some(record) = entry.record() {
        let status = record.ask_status().and_then(|packed| unpack_status(&packed));
        return status.ok().map(|status| status.reference);
    }
    let mut value = Vec::with_capacity(MAX_VALUE_BYTES);
    rustix::fs::getxattr(dir, REFERENCE, rustix::buffer::spare_capacity(&mut value)).ok()?;
    String::from_utf8(value).ok()
}

/// Whether the mount waits for its registry. Blocks until the mount answers.
pub(super) fn is_waiting(dir: &Path) -> bool {
    rustix::fs::getxattr(dir, WAITING, &mut [0; 1]).is_ok()
}

/// The name of a mount at `dir` in the kernel's table.
pub(super) fn name_of(dir: &Path) -> Result<PathBuf, MountError> {
    absolute(dir).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => MountError::NotMounted { dir: dir.to_owned() },
        _ => MountError::Unmount { dir: dir.to_owned(), source },
    })
}

/// The name of `dir` in the mount table, for a dead mount too.
pub(super) fn absolute(dir: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(dir) {
        Ok(dir) => Ok(dir),
        Err(_) => {
            let dir = std::path::absolute(dir)?;
            match (dir.parent(), dir.file_name()) {
                (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
                _ => Ok(dir),
            }
        }
    }
}

/// Parses proc_pid_mountinfo(5). Lines of another form are skipped.
fn parse(table: &[u8]) -> Vec<MountEntry> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut fields = line.split(|&byte| byte == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let dir = std::ffi::OsString::from_vec(unescape(fields.nth(1)?)).into();
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    Some(MountEntry { dir, major: major.parse().ok()?, minor: minor.parse().ok()?, fs_type, source })
}

/// Undoes the kernel's `\040` escapes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits =
            tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(code) = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(code);
            rest = &tail[3..];
        } else {
            plain.push(byte);
            rest = tail;
        }
    }
    plain
}

/// The name in the table of the mount at `dir`; an error unless it is one of ours. Only the parent is resolved: access
/// to a dead mount fails.
pub(super) fn ours(dir: &Path) -> Result<PathBuf, MountError> {
    let dir = name_of(dir)?;
    match find(&dir)? {
        Some(entry) if entry.is_ours() => Ok(dir),
        _ => Err(MountError::NotMounted { dir }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_with_its_escapes() {
        let table =
            b"36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - fuse.ocifs ghcr.io/a/b@sha256:1 ro\n\
                      37 35 0:5 / /x rw - ext4 /dev/x rw\nnot a line\n";
        let entries = parse(table);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].dir, Path::new("/mnt/a b"));
        assert_eq!((entries[0].major, entries[0].minor), (98, 0));
        assert_eq!(
            (entries[0].fs_type.as_str(), entries[0].source.as_str()),
            ("fuse.ocifs", "ghcr.io/a/b@sha256:1")
        );
        assert_eq!(entries[1].fs_type, "ext4");
    }

    #[test]
    fn a_table_that_is_held_open_is_the_table_of_every_moment_it_is_asked() {
        let table = MountTable::open().unwrap();
        for _ in 0..2 {
            let proc = table.find(Path::new("/proc")).unwrap();
            assert_eq!(proc, find(Path::new("/proc")).unwrap());
            assert!(proc.is_some_and(|entry| entry.fs_type == "proc"));
        }
        assert_eq!(table.find(Path::new("/no/such/mount")).unwrap(), None);
    }
}
