//! Errors of calls, and their gRPC codes.
//!
//! One table maps the exit codes of `ocifs mount` to gRPC codes. Messages hold no secret, because they reach kubelet,
//! its events and the log.

use std::io;
use std::path::PathBuf;

use tonic::{Code, Status};

use crate::io::chain;
use crate::mount::MountError;

/// A failed call, or a plugin that could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CsiError {
    /// The request is malformed or asks for something unsupported.
    #[error("{0}")]
    Invalid(String),
    /// The volume or the pull secret does not exist.
    #[error("{0}")]
    Absent(String),
    /// Another volume or mount is at the target.
    #[error("{0}")]
    Exists(String),
    /// The node lacks a prerequisite, such as `/dev/fuse`.
    #[error("{0}")]
    Unready(String),
    /// A time limit passed.
    #[error("{0}")]
    Late(String),
    /// The mount process failed.
    #[error("{message}")]
    Mount {
        /// Its exit code; `None` if a signal ended it.
        exit: Option<i32>,
        /// Its message.
        message: String,
    },
    /// An operation on a file or directory of this machine failed.
    #[error("{what} {}", path.display())]
    File {
        /// The operation, as in "reading".
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A mount could not be inspected or unmounted.
    #[error(transparent)]
    Mounted(#[from] MountError),
    /// A task or thread of this program ended too early.
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

/// The gRPC code for an exit code of `ocifs mount`.
fn code(exit: Option<i32>) -> Code {
    match exit {
        Some(2) => Code::InvalidArgument,
        Some(3) => Code::NotFound,
        Some(4) => Code::Unauthenticated,
        Some(5) => Code::Unavailable,
        _ => Code::Internal,
    }
}

/// The name of the gRPC code for a mount's exit code, for the table of exit codes.
pub fn code_name(exit: u8) -> String {
    format!("{:?}", code(Some(exit.into())))
}
