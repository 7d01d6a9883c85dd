//! Errors of building and walking a tree.
//!
//! Every name in a message is escaped and truncated: it comes from an untrusted archive.

use crate::io::{FaultClass, OverBudget};

use super::limits::{MAX_LINK_STEPS, MAX_NAME, MAX_PATH};
use crate::owner::MAX_LINKS;

/// Bytes of a name that a message shows.
const MAX_SHOWN_NAME_BYTES: usize = 200;

/// An error of building or walking a tree.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TreeError {
    /// An entry of a layer that no rule can place.
    #[error("layer {layer}: entry {entry} at stream offset {header}: {problem}")]
    Entry {
        /// The origin given to [`super::TreeBuilder::apply`].
        layer: u32,
        /// Offset of the entry's header in the uncompressed stream.
        header: u64,
        /// The entry's name as recorded, quoted and escaped.
        entry: String,
        /// The problem of this entry.
        problem: EntryProblem,
    },
    /// A synthetic entry that cannot be inserted.
    #[error("path {path} cannot be inserted: {problem}")]
    Insert {
        /// Quoted and escaped.
        path: String,
        /// The problem of this entry.
        problem: EntryProblem,
    },
    /// A path that names nothing.
    #[error("path {path} does not exist")]
    NotFound {
        /// Quoted and escaped.
        path: String,
    },
    /// A path with a component in the middle that is not a directory.
    #[error("path {path} goes through something that is not a directory")]
    NotADirectory {
        /// Quoted and escaped.
        path: String,
    },
    /// A path with too many symbolic links, such as a loop.
    #[error("path {path} goes through more than {MAX_LINKS} symbolic links")]
    TooManyLinks {
        /// Quoted and escaped.
        path: String,
    },
}

/// A problem of one entry.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryProblem {
    /// A component over the limit.
    #[error("a component of {len} bytes, the limit is {MAX_NAME}")]
    NameTooLong {
        /// Bytes of the component.
        len: usize,
    },
    /// A path over the limit, as recorded or where its links lead.
    #[error("a path of {len} bytes, the limit is {MAX_PATH}")]
    PathTooLong {
        /// Bytes of the cleaned path, without a leading slash.
        len: usize,
    },
    /// A whiteout of "", "." or "..".
    #[error("a whiteout that names no file")]
    WhiteoutOfNothing,
    /// An entry for the root that is not a directory.
    #[error("the root cannot be anything but a directory")]
    RootNotADirectory,
    /// A parent that is neither a directory nor a link to one.
    #[error("it lies below something that is not a directory")]
    BelowNonDirectory,
    /// A hard link whose target does not exist (yet).
    #[error("hard link to {target}, which does not exist at that point")]
    LinkToNothing {
        /// As recorded, quoted and escaped.
        target: String,
    },
    /// A hard link to a directory.
    #[error("hard link to {target}, which is a directory")]
    LinkToDirectory {
        /// As recorded, quoted and escaped.
        target: String,
    },
    /// An entry, or the target of a hard link, outside of the one directory that is shown.
    #[error("{what} lies outside of {below}, the directory that the archive should hold")]
    Outside {
        /// The path that is outside, quoted and escaped.
        what: String,
        /// The directory, quoted and escaped.
        below: String,
    },
    /// A synthetic name that is "", "." or "..", or contains NUL.
    #[error("a component is empty, \".\" or \"..\", or contains NUL")]
    BadName,
    /// A synthetic name that exists already.
    #[error("the name exists already")]
    Exists,
    /// More names than a tree may have.
    #[error("the tree would have more than {limit} names")]
    TooManyNames {
        /// Limit of names of a tree, replaced ones included.
        limit: u32,
    },
    /// More bytes of names and symbolic link targets than 32 bits can address.
    #[error("the tree would have more than {} bytes of names and link targets", u32::MAX)]
    TooManyBytes,
    /// More steps through symbolic links than the paths of a tree may take together.
    #[error("the paths of the tree would follow more than {MAX_LINK_STEPS} components of symbolic links")]
    TooManySteps,
    /// More memory than all trees may have.
    #[error("the tree is too large: {0}")]
    OverBudget(#[from] OverBudget),
}

impl TreeError {
    /// The party at fault.
    pub fn fault(&self) -> FaultClass {
        match self {
            TreeError::Entry { problem, .. } => problem.fault(),
            TreeError::Insert { problem, .. } => match problem.fault() {
                FaultClass::Unsupported => FaultClass::Unsupported,
                _ => FaultClass::Usage,
            },
            TreeError::NotFound { .. } | TreeError::NotADirectory { .. } => FaultClass::NotFound,
            TreeError::TooManyLinks { .. } => FaultClass::Malformed,
        }
    }
}

impl EntryProblem {
    /// The party at fault when an archive has this problem.
    fn fault(&self) -> FaultClass {
        match self {
            EntryProblem::NameTooLong { .. }
            | EntryProblem::PathTooLong { .. }
            | EntryProblem::WhiteoutOfNothing
            | EntryProblem::RootNotADirectory
            | EntryProblem::BelowNonDirectory
            | EntryProblem::LinkToNothing { .. }
            | EntryProblem::LinkToDirectory { .. }
            | EntryProblem::Outside { .. }
            | EntryProblem::BadName
            | EntryProblem::Exists => FaultClass::Malformed,
            EntryProblem::TooManyNames { .. }
            | EntryProblem::TooManyBytes
            | EntryProblem::TooManySteps
            | EntryProblem::OverBudget(_) => FaultClass::Unsupported,
        }
    }
}

/// Formats a name for a message: quoted, escaped, and at most [`MAX_SHOWN_NAME_BYTES`] bytes of it.
pub(super) fn shown(name: &[u8]) -> String {
    let head = &name[..name.len().min(MAX_SHOWN_NAME_BYTES)];
    let more = if name.len() > MAX_SHOWN_NAME_BYTES { "..." } else { "" };
    format!("{:?}{more}", String::from_utf8_lossy(head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_is_escaped_and_cut() {
        assert_eq!(shown(b"a\x1b[31m\n\xff"), "\"a\\u{1b}[31m\\n\u{fffd}\"");
        assert_eq!(shown(&[b'x'; 201]).len(), 200 + 2 + 3);
        assert_eq!(shown(&[b'x'; 200]).len(), 200 + 2);
    }

    #[test]
    fn entry_error_has_layer_offset_and_name() {
        let error = TreeError::Entry {
            layer: 3,
            header: 73728,
            entry: shown(b"etc/.wh."),
            problem: EntryProblem::WhiteoutOfNothing,
        };
        assert_eq!(
            error.to_string(),
            "layer 3: entry \"etc/.wh.\" at stream offset 73728: a whiteout that names no file"
        );
        assert_eq!(error.fault(), FaultClass::Malformed);
    }
}
