//! Why the bytes of a disk are not given out.

use crate::io::Fault;

/// What is wrong with a disk, by who is wrong.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskError {
    /// The author of the header wrote something its format does not allow.
    #[error("{format} header is malformed: {reason}")]
    Malformed {
        /// `qcow2` or `vmdk`.
        format: &'static str,
        /// What is wrong, with the numbers.
        reason: String,
    },
    /// The disk is what it says, and still not given out.
    #[error("disk {disk} is refused: {reason}")]
    Refused {
        /// The name of the disk.
        disk: String,
        /// Text for people.
        reason: String,
    },
}

impl DiskError {
    /// Who is wrong.
    pub fn fault(&self) -> Fault {
        match self {
            DiskError::Malformed { .. } => Fault::Malformed,
            DiskError::Refused { .. } => Fault::Denied,
        }
    }
}
