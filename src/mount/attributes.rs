//! Attributes and numbers in the kernel's form.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, Generation, INodeNo};

use crate::layer::{Device, Time};
use crate::tree::Kind;
use crate::view::{Attributes, Freshness, Namespace, NodeId};

/// How long the kernel may remember what never changes. The kernel clamps it to what its clock can hold.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Blocks of `st_blocks`, in bytes.
const STAT_BLOCK: u64 = 512;

/// How long what has this freshness may be remembered.
pub(super) fn ttl(fresh: Freshness) -> Duration {
    match fresh {
        Freshness::Forever => FOREVER,
        Freshness::Now => Duration::ZERO,
    }
}

/// The kernel's number of a node.
pub(super) fn number(namespace: &Namespace, node: NodeId) -> INodeNo {
    INodeNo(namespace.number(node))
}

/// The node with this number.
pub(super) fn node(namespace: &Namespace, number: INodeNo) -> NodeId {
    namespace.node(number.0)
}

/// The generation of what has no number of its own, or one that means the same in every mount.
pub(super) const UNNUMBERED: Generation = Generation(0);

/// The generation of a number: a handle that a program kept of a file of another image, once mounted at the same place, is stale.
pub(super) fn generation(namespace: &Namespace, number: INodeNo) -> Generation {
    if NodeId::is_fixed(number.0) { UNNUMBERED } else { Generation(namespace.generation()) }
}

/// What `stat` says.
pub(super) fn file_attr(ino: INodeNo, attributes: &Attributes) -> FileAttr {
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

/// The attributes that make a negative entry, which the kernel remembers as "no such name".
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
pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory | Kind::Graft(_) => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
    }
}

/// `makedev` as the kernel's `new_encode_dev` does it: 12 bits of major, 20 bits of minor.
fn device(device: Device) -> u32 {
    device.minor & 0xff | (device.major & 0xfff) << 8 | (device.minor & 0xfff00) << 12
}

/// Time before 1970 included; out of the clock's range it stops at the nearest it can hold.
fn system_time(time: Time) -> SystemTime {
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
        let time = system_time(Time { secs: -2, nanos: 800_000_000 });
        assert_eq!(SystemTime::UNIX_EPOCH.duration_since(time).unwrap(), Duration::from_millis(1200));
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_decodes_them() {
        assert_eq!(device(Device { major: 8, minor: 1 }), 0x801);
        assert_eq!(device(Device { major: 1, minor: 0x12345 }), 0x45 | 1 << 8 | 0x12300 << 12);
    }
}
