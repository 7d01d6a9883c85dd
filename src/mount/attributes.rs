//! Conversion of attributes and inode numbers to the kernel's form.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, Generation, INodeNo};

use crate::layer::{DeviceNumber, UnixTime};
use crate::tree::InodeKind;
use crate::view::{AttributeLifetime, MountNamespace, NodeAttributes, NodeId};

/// TTL of immutable answers. The kernel clamps it to the range of its clock.
pub(super) const UNCHANGING_TTL: Duration = Duration::from_secs(u32::MAX as u64);

/// Blocks of `st_blocks`, in bytes.
const STAT_BLOCK: u64 = 512;

/// The TTL of an answer with this freshness.
pub(super) fn ttl(fresh: AttributeLifetime) -> Duration {
    match fresh {
        AttributeLifetime::Forever => UNCHANGING_TTL,
        AttributeLifetime::Now => Duration::ZERO,
    }
}

/// The inode number of `node`.
pub(super) fn number(namespace: &MountNamespace, node: NodeId) -> INodeNo {
    INodeNo(namespace.number(node))
}

/// The node with this inode number.
pub(super) fn node(namespace: &MountNamespace, number: INodeNo) -> NodeId {
    namespace.node(number.0)
}

/// The generation of a reply without an inode, and of inode numbers that mean the same file in every mount.
pub(super) const UNNUMBERED: Generation = Generation(0);

/// The generation of an inode number. It makes an NFS or `open_by_handle_at(2)` handle stale once another image is
/// mounted at the same place.
pub(super) fn generation(namespace: &MountNamespace, number: INodeNo) -> Generation {
    if NodeId::is_fixed(number.0) { UNNUMBERED } else { Generation(namespace.generation()) }
}

/// The reply to `stat`.
pub(super) fn file_attr(ino: INodeNo, attributes: &NodeAttributes) -> FileAttr {
    let time = system_time(attributes.mtime);
    FileAttr {
        ino,
        size: attributes.size,
        blocks: attributes.data.div_ceil(STAT_BLOCK),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attributes.kind),
        perm: attributes.mode,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: device(attributes.rdev),
        blksize: 4096,
        flags: 0,
    }
}

/// The attributes of a negative entry, which the kernel caches as "no such name".
pub(super) fn negative() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The type for directory entries.
pub(super) fn file_type(kind: InodeKind) -> FileType {
    match kind {
        InodeKind::File => FileType::RegularFile,
        InodeKind::Directory | InodeKind::Graft(_) => FileType::Directory,
        InodeKind::Symlink => FileType::Symlink,
        InodeKind::CharDevice => FileType::CharDevice,
        InodeKind::BlockDevice => FileType::BlockDevice,
        InodeKind::Fifo => FileType::NamedPipe,
    }
}

/// `makedev` as the kernel's `new_encode_dev` does it: 12 bits of major, 20 bits of minor.
fn device(device: DeviceNumber) -> u32 {
    device.minor & 0xff | (device.major & 0xfff) << 8 | (device.minor & 0xfff00) << 12
}

/// Times before 1970 are supported; a time out of the clock's range becomes 1970, plus its nanoseconds.
fn system_time(time: UnixTime) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    };
    base.and_then(|base| base.checked_add(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_fraction() {
        let time = system_time(UnixTime { secs: -2, nanos: 800_000_000 });
        assert_eq!(SystemTime::UNIX_EPOCH.duration_since(time).unwrap(), Duration::from_millis(1200));
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_decodes_them() {
        assert_eq!(device(DeviceNumber { major: 8, minor: 1 }), 0x801);
        assert_eq!(device(DeviceNumber { major: 1, minor: 0x12345 }), 0x45 | 1 << 8 | 0x12300 << 12);
    }
}
