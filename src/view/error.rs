//! Errors of resolving a path or a scope in a mount.

use crate::io::{FaultClass, ReadError};

/// A reason why a path or a scope cannot be resolved.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// A view that this image does not have.
    #[error("{reference} has no {view}/; it has {available}")]
    NoView {
        /// The pinned reference.
        reference: String,
        /// The requested view.
        view: String,
        /// The views of the image, comma separated.
        available: String,
    },
    /// A view of a mount whose root shows no image.
    #[error(
        "{reference} is shown as a whole, and no image of it is the one for {view}/; name one, as in {example}"
    )]
    NoImage {
        /// The pinned reference.
        reference: String,
        /// The requested view.
        view: String,
        /// Options that select a view of one image.
        example: String,
    },
    /// A name that does not exist.
    #[error("{path}: no such file or directory")]
    NotFound {
        /// The requested path.
        path: String,
    },
    /// A name of another type.
    #[error("{path}: not a {wanted}")]
    Wrong {
        /// The requested path.
        path: String,
        /// `directory` or `file`.
        wanted: &'static str,
    },
    /// A directory of several disks where one disk is required.
    #[error("{path}: several disks; name one of {names}")]
    Several {
        /// The requested path.
        path: String,
        /// Names of the disks, comma separated.
        names: String,
    },
    /// Too many symbolic links.
    #[error("{path}: too many levels of symbolic links")]
    Loop {
        /// The requested path.
        path: String,
    },
    /// An error of reading the content.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl ViewError {
    /// The party at fault.
    pub fn fault(&self) -> FaultClass {
        match self {
            ViewError::NoView { .. } | ViewError::NoImage { .. } | ViewError::NotFound { .. } => {
                FaultClass::NotFound
            }
            ViewError::Wrong { .. } | ViewError::Several { .. } | ViewError::Loop { .. } => FaultClass::Usage,
            ViewError::Read(error) => error.fault(),
        }
    }
}
