//! Why a path or a scope leads nowhere.

use crate::io::{Fault, ReadError};

/// Why a path or a scope leads nowhere.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// A view that there is not in this image.
    #[error("{reference} has no {view}/; it has {available}")]
    NoView {
        /// The pinned reference.
        reference: String,
        /// The name asked for.
        view: String,
        /// The names there are.
        available: String,
    },
    /// A view of a mount whose root shows no image.
    #[error(
        "{reference} is shown as a whole, and no image of it is the one for {view}/; name one, as in {example}"
    )]
    NoImage {
        /// The pinned reference.
        reference: String,
        /// The name asked for.
        view: String,
        /// What can be asked for instead.
        example: String,
    },
    /// A name that does not exist.
    #[error("{path}: no such file or directory")]
    NotFound {
        /// The path as asked for.
        path: String,
    },
    /// A name that is something else.
    #[error("{path}: not a {wanted}")]
    Wrong {
        /// The path as asked for.
        path: String,
        /// `directory` or `file`.
        wanted: &'static str,
    },
    /// A directory of several disks where one is meant.
    #[error("{path}: there is more than one disk, name one of {names}")]
    Several {
        /// The path as asked for.
        path: String,
        /// What there is, comma separated.
        names: String,
    },
    /// Too many symbolic links.
    #[error("{path}: too many levels of symbolic links")]
    Loop {
        /// The path as asked for.
        path: String,
    },
    /// The bytes behind it.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl ViewError {
    /// Who is wrong.
    pub fn fault(&self) -> Fault {
        match self {
            ViewError::NoView { .. } | ViewError::NoImage { .. } | ViewError::NotFound { .. } => {
                Fault::NotFound
            }
            ViewError::Wrong { .. } | ViewError::Several { .. } | ViewError::Loop { .. } => Fault::Usage,
            ViewError::Read(error) => error.fault(),
        }
    }
}
