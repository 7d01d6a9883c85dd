//! Attributes of a node: the result of `stat`, and how long it is valid.

use crate::layer::{DeviceNumber, UnixTime};
use crate::tree::InodeKind;

/// How long an answer is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeLifetime {
    /// Forever: the content is behind a digest.
    Forever,
    /// At this moment only; it may change later.
    Now,
}

/// The result of `stat` for a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeAttributes {
    /// Type. A [`InodeKind::Graft`] never appears in it: it is replaced by the directory it stands for.
    pub kind: InodeKind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes that readers see.
    pub size: u64,
    /// Bytes that are data, not holes.
    pub data: u64,
    /// Modification time.
    pub mtime: UnixTime,
    /// Number of names.
    pub nlink: u32,
    /// Device number.
    pub rdev: DeviceNumber,
    /// Whether the attributes may be cached.
    pub fresh: AttributeLifetime,
}
