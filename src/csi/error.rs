//! Why a call failed, and which code of gRPC says so.
//!
//! Never holds a secret: what is put into a message here goes to kubelet, to its events and to the log. The idea: the classes of
//! faults that a mount has become codes by one table.

use std::io;
use std::path::PathBuf;

use tonic::{Code, Status};

use crate::io::chain;
use crate::mount::MountError;

/// Why a call could not be answered as asked, or the plugin not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CsiError {
    /// The request asks for something that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// There is no such volume, or no such secret.
    #[error("{0}")]
    Absent(String),
    /// Something else is there already.
    #[error("{0}")]
    Exists(String),
    /// The node is not fit for it.
    #[error("{0}")]
    Unready(String),
    /// It took too long.
    #[error("{0}")]
    Late(String),
    /// The process that was to mount refused, and said why.
    #[error("{said}")]
    Mount {
        /// Its exit code.
        exit: Option<i32>,
        /// What it said.
        said: String,
    },
    /// A file or directory of this machine.
    #[error("{what} {}", path.display())]
    File {
        /// What was done with it.
        what: &'static str,
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A mount could not be looked at or taken away.
    #[error(transparent)]
    Mounted(#[from] MountError),
    /// Part of this program ended too early.
    #[error("{0}")]
    Internal(String),
}

impl CsiError {
    pub(super) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| CsiError::File { what, path, source }
    }

    fn code(&self) -> Code {
        match self {
            CsiError::Invalid(_) => Code::InvalidArgument,
            CsiError::Absent(_) => Code::NotFound,
            CsiError::Exists(_) => Code::AlreadyExists,
            CsiError::Unready(_) => Code::FailedPrecondition,
            CsiError::Late(_) => Code::DeadlineExceeded,
            CsiError::Mount { exit, .. } => code(*exit),
            CsiError::File { .. } | CsiError::Mounted(_) | CsiError::Internal(_) => Code::Internal,
        }
    }
}

impl From<CsiError> for Status {
    fn from(error: CsiError) -> Self {
        Status::new(error.code(), chain(&error))
    }
}

/// What the exit code of `ocifs mount` means to who asked for a volume.
fn code(exit: Option<i32>) -> Code {
    match exit {
        Some(2) => Code::InvalidArgument,
        Some(3) => Code::NotFound,
        Some(4) => Code::Unauthenticated,
        Some(5) => Code::Unavailable,
        _ => Code::Internal,
    }
}

/// The name of the code with which a mount's exit code is answered, for whoever decides about exit codes.
pub fn code_name(exit: u8) -> String {
    format!("{:?}", code(Some(exit.into())))
}
