//! Errors of building an EROFS image.

use crate::io::{FaultClass, OverBudget};

/// A reason why a tree cannot become an EROFS image.
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
    /// A directory whose content is another tree.
    #[error("inode {ino} is the root of another tree")]
    OtherTree {
        /// The inode number in the tree.
        ino: u32,
    },
    /// More memory than all layers may have.
    #[error("the metadata is too large: {0}")]
    OverBudget(#[from] OverBudget),
}

impl ErofsError {
    /// The party at fault: always a limit of ocifs or of the format.
    pub fn fault(&self) -> FaultClass {
        FaultClass::Unsupported
    }
}
