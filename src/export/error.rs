//! Why something was not written whole.

use std::path::{Path, PathBuf};

use crate::io::{Fault, ReadError};
use crate::view::ViewError;

/// Why something was not written whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// There is no such name, or its bytes cannot be had.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Bytes that cannot be had or are wrong.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The other side of a stream took no more.
    #[error("writing {what}")]
    Write {
        /// What was written.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that could not be made or written.
    #[error("writing {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A place where nothing can be written.
    #[error("{} {reason}", path.display())]
    Place {
        /// The place.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ExportError {
    /// Who is wrong.
    pub fn fault(&self) -> Fault {
        match self {
            ExportError::View(error) => error.fault(),
            ExportError::Read(error) => error.fault(),
            ExportError::Write { .. } | ExportError::File { .. } => Fault::Io,
            ExportError::Place { .. } => Fault::Usage,
        }
    }

    /// Whether whoever read what was written went away.
    pub fn is_closed_pipe(&self) -> bool {
        match self {
            ExportError::Write { source, .. } | ExportError::File { source, .. } => {
                source.kind() == std::io::ErrorKind::BrokenPipe
            }
            _ => false,
        }
    }

    pub(super) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| ExportError::File { path, source }
    }

    pub(super) fn place(path: &Path, reason: impl Into<String>) -> Self {
        ExportError::Place { path: path.to_owned(), reason: reason.into() }
    }
}
