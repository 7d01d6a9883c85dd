//! Tar entry: built from a header and the extended headers in front of it.
//!
//! Precedence is Go's: pax records over the header block, GNU long names over both, the name of a sparse file over
//! all. Paths stay uncleaned, and links are not followed.

use super::super::{DeviceNumber, FileContent, TocEntry, TocEntryKind, UnixTime};
use super::error::TarProblem;
use super::header::TarHeader;
use super::limits::TarLimits;
use super::pax::{PaxKey, PaxRecords};
use super::sparse::{self, SparseForm};

/// The extended headers in front of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PendingHeaders {
    /// The last extended header. It replaces an earlier one for the same entry as a whole, as in Go.
    pub(super) records: PaxRecords,
    /// The last GNU long name; empty without one.
    pub(super) name: Vec<u8>,
    /// The last GNU long link target; empty without one.
    pub(super) link: Vec<u8>,
}

impl PendingHeaders {
    /// The name of the entry that starts with `header`, for all but sparse files.
    pub(super) fn name<'a>(&'a self, header: &'a TarHeader) -> &'a [u8] {
        chosen(&self.name, self.records.get(PaxKey::Path), &header.name)
    }

    fn link<'a>(&'a self, header: &'a TarHeader) -> &'a [u8] {
        chosen(&self.link, self.records.get(PaxKey::Linkpath), &header.link)
    }
}

fn chosen<'a>(gnu: &'a [u8], pax: Option<&'a [u8]>, header: &'a [u8]) -> &'a [u8] {
    if gnu.is_empty() { pax.unwrap_or(header) } else { gnu }
}

/// An entry, and the content that the stream holds for it.
pub(super) struct DraftEntry {
    pub(super) entry: TocEntry,
    /// Content bytes after the header.
    pub(super) stored: u64,
    /// The real size of a sparse file whose map precedes its content, and whose `entry` is therefore incomplete.
    /// Else `None`.
    pub(super) map: Option<i64>,
}

/// The entry that starts with `header` at stream offset `start`; its content starts at `body`.
pub(super) fn draft(
    header: &TarHeader,
    pending: &PendingHeaders,
    (start, body): (u64, u64),
    limits: &TarLimits,
) -> Result<DraftEntry, TarProblem> {
    let records = &pending.records;
    let mut path = pending.name(header);
    let mut size = records.number(PaxKey::Size)?.unwrap_or(header.size);
    let mut kind = kind(header, pending, path)?;
    let stored = if matches!(kind, TocEntryKind::File(_)) { content_size(size)? } else { 0 };
    let mut map = None;
    if let Some(form) = SparseForm::of(records) {
        path = records.get(PaxKey::SparseName).unwrap_or(path);
        let real = match records.number(PaxKey::SparseSize)? {
            Some(real) => Some(real),
            None => records.number(PaxKey::SparseRealSize)?,
        };
        size = real.unwrap_or(size);
        let TocEntryKind::File(content) = &mut kind else {
            return Err(TarProblem::malformed("pax sparse records on something that is not a regular file"));
        };
        match form {
            SparseForm::InContent => map = Some(size),
            SparseForm::InHeader => {
                let (size, runs) = sparse::check(sparse::map_in_header(records)?, size, stored)?;
                *content = FileContent { size, offset: body, runs: Some(runs) };
            }
        }
    } else if let TocEntryKind::File(content) = &mut kind {
        *content = FileContent { size: stored, offset: body, runs: None };
    }
    for key in [PaxKey::Atime, PaxKey::Ctime] {
        records.time(key)?;
    }
    let entry = TocEntry {
        path: path.to_vec(),
        kind,
        mode: permissions(header.mode),
        uid: owner("uid", records.number(PaxKey::Uid)?.unwrap_or(header.uid))
            .map_err(TarProblem::unsupported)?,
        gid: owner("gid", records.number(PaxKey::Gid)?.unwrap_or(header.gid))
            .map_err(TarProblem::unsupported)?,
        mtime: records.time(PaxKey::Mtime)?.unwrap_or(UnixTime { secs: header.mtime, nanos: 0 }),
        xattrs: records.xattrs.clone(),
        header: start,
    };
    check_names(&entry, limits)?;
    Ok(DraftEntry { entry, stored, map })
}

/// Checks that the names in `entry` are valid.
pub(super) fn check_names(entry: &TocEntry, limits: &TarLimits) -> Result<(), TarProblem> {
    check_path(&entry.path, limits)?;
    check_target(&entry.kind, limits)?;
    let names = entry.xattrs.iter().map(|(name, _)| name.len() + 1).sum();
    let longest = entry.xattrs.iter().map(|(_, value)| value.len()).max();
    xattr_limits(names, longest.unwrap_or(0)).map_err(TarProblem::unsupported)?;
    for (name, _) in &entry.xattrs {
        // The kernel's limits for a name.
        if name.is_empty() || name.len() > 255 {
            return Err(TarProblem::unsupported(format!(
                "extended attribute has a name of {} bytes, not 1 to 255",
                name.len()
            )));
        }
    }
    Ok(())
}

/// Maximum value of an extended attribute, and maximum list of their names, that the kernel returns
/// (`XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of `linux/limits.h`).
const MAX_XATTR_BYTES: usize = 64 * 1024;

/// Refuses attributes that no kernel can return. `names` are the bytes of all names, each with its NUL; `longest`
/// are those of the longest value.
pub(in super::super) fn xattr_limits(names: usize, longest: usize) -> Result<(), String> {
    if longest > MAX_XATTR_BYTES {
        return Err(format!(
            "an extended attribute has {longest} bytes, the kernel allows {MAX_XATTR_BYTES}"
        ));
    }
    if names > MAX_XATTR_BYTES {
        return Err(format!(
            "the names of its extended attributes have {names} bytes, the kernel allows {MAX_XATTR_BYTES}"
        ));
    }
    Ok(())
}

/// A size field that gives the number of content bytes after the header.
pub(super) fn content_size(size: i64) -> Result<u64, TarProblem> {
    u64::try_from(size).map_err(|_| TarProblem::malformed(format!("size is {size}")))
}

/// The type, with links and devices. The caller fills in the content of a file.
fn kind(header: &TarHeader, pending: &PendingHeaders, path: &[u8]) -> Result<TocEntryKind, TarProblem> {
    let link = || pending.link(header).to_vec();
    Ok(match header.flag {
        // Before directories had a type, a trailing slash marked them.
        0 if path.ends_with(b"/") => TocEntryKind::Directory,
        0 | b'0' => TocEntryKind::File(FileContent::default()),
        b'1' => TocEntryKind::HardLink(link()),
        b'2' => TocEntryKind::Symlink(link()),
        b'3' => TocEntryKind::CharDevice(device(header)?),
        b'4' => TocEntryKind::BlockDevice(device(header)?),
        b'5' => TocEntryKind::Directory,
        b'6' => TocEntryKind::Fifo,
        flag => return Err(refused(flag)),
    })
}

fn refused(flag: u8) -> TarProblem {
    let what = match flag {
        b'7' => " (contiguous file)",
        b'S' => " (old GNU sparse file)",
        b'D' => " (GNU dumpdir)",
        b'M' => " (GNU multivolume continuation)",
        b'V' => " (GNU volume header)",
        _ => "",
    };
    TarProblem::unsupported(format!("entry type '{}'{what} has no place in a layer", flag.escape_ascii()))
}

fn device(header: &TarHeader) -> Result<DeviceNumber, TarProblem> {
    let part = |name: &str, value: i64| {
        u32::try_from(value).map_err(|_| {
            TarProblem::unsupported(format!("device {name} number {value} is not in 0 to {}", u32::MAX))
        })
    };
    Ok(DeviceNumber { major: part("major", header.major)?, minor: part("minor", header.minor)? })
}

/// The owner as the kernel interprets the number. Appliers pass it to lchown(2), where a negative number is counted
/// down from 2^32. With -1 the owner, root, stays.
pub(in super::super) fn owner(name: &str, value: i64) -> Result<u32, String> {
    let owner = match i32::try_from(value) {
        Ok(negative @ i32::MIN..0) => negative.cast_unsigned(),
        _ => u32::try_from(value)
            .map_err(|_| format!("{name} {value} is not in {} to {}", i32::MIN, u32::MAX))?,
    };
    Ok(if owner == u32::MAX { 0 } else { owner })
}

fn permissions(mode: i64) -> u16 {
    (mode & 0o7777) as u16
}

/// Checks a path: bounded length, and no NUL (only the name of a sparse file can hold one).
fn check_path(path: &[u8], limits: &TarLimits) -> Result<(), TarProblem> {
    if path.contains(&0) {
        return Err(TarProblem::malformed("name holds a NUL"));
    }
    if path.len() > limits.path {
        let (len, limit) = (path.len(), limits.path);
        return Err(TarProblem::unsupported(format!("name of {len} bytes is over the limit of {limit}")));
    }
    if let Some(long) = path.split(|&byte| byte == b'/').find(|part| part.len() > limits.component) {
        let (len, limit) = (long.len(), limits.component);
        return Err(TarProblem::unsupported(format!(
            "name with a component of {len} bytes is over the limit of {limit}"
        )));
    }
    Ok(())
}

/// Checks a link target: the kernel makes no link without a target, and none longer than a path.
fn check_target(kind: &TocEntryKind, limits: &TarLimits) -> Result<(), TarProblem> {
    let (TocEntryKind::Symlink(target) | TocEntryKind::HardLink(target)) = kind else { return Ok(()) };
    if target.is_empty() {
        return Err(TarProblem::malformed("link has no target"));
    }
    // PATH_MAX counts the NUL at the end: the kernel neither makes nor reads a longer symbolic link.
    let limit = if matches!(kind, TocEntryKind::Symlink(_)) { limits.path - 1 } else { limits.path };
    if target.len() > limit {
        let len = target.len();
        return Err(TarProblem::unsupported(format!(
            "link target of {len} bytes is over the limit of {limit}"
        )));
    }
    Ok(())
}
