//! Errors of disks that must not be served.

use crate::io::FaultClass;

/// An invalid or refused disk.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskError {
    /// The header violates its format.
    #[error("{format} header is malformed: {reason}")]
    Malformed {
        /// `qcow2` or `vmdk`.
        format: &'static str,
        /// The violation, with numbers.
        reason: String,
    },
    /// The disk is valid and refused.
    #[error("disk {disk} is refused: {reason}")]
    Refused {
        /// The name of the disk.
        disk: String,
        /// The reason, for users.
        reason: String,
    },
}

impl DiskError {
    /// The fault class of this error.
    pub fn fault(&self) -> FaultClass {
        match self {
            DiskError::Malformed { .. } => FaultClass::Malformed,
            DiskError::Refused { .. } => FaultClass::Denied,
        }
    }
}
