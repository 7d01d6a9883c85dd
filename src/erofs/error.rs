//! Why a tree has no EROFS image.

use crate::io::Fault;

/// Why a tree has no EROFS image.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErofsError {
    /// More blocks than the format can address.
    #[error("the files take {blocks} blocks of 4096 bytes, an EROFS image addresses {}", u32::MAX)]
    TooManyBlocks {
        /// Blocks of metadata and data.
        blocks: u64,
    },
    /// A file that is larger than the kernel's largest offset.
    #[error("inode {ino} has {size} bytes, a file of Linux has at most {}", i64::MAX)]
    FileTooLarge {
        /// The inode number in the tree.
        ino: u32,
        /// Bytes that readers would see.
        size: u64,
    },
    /// A directory that stands for another tree.
    #[error("inode {ino} is the root of another tree")]
    OtherTree {
        /// The inode number in the tree.
        ino: u32,
    },
}

impl ErofsError {
    /// Who is wrong.
    pub fn fault(&self) -> Fault {
        Fault::Unsupported
    }
}
