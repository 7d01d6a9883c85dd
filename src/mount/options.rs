//! Options of a mount: access, flags, source, passthrough and lifetime.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::io::is_unprintable;

use super::handover::HandoverJournal;

/// Users that may access the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountAccess {
    /// The user that mounted it.
    #[default]
    Owner,
    /// All users, as the modes allow.
    Everyone,
}

/// Flags of a mount; all are off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFlags {
    /// Honour set-user-id and set-group-id bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Refuse to run programs.
    pub noexec: bool,
    /// Have the kernel check modes even when only the owner has access.
    pub default_permissions: bool,
    /// Accept a non-empty mount point.
    pub nonempty: bool,
    /// Mount over a dead mount of ours, which stays below.
    pub over_dead: bool,
}

/// Whether the kernel may read whole cached files by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PassthroughMode {
    /// Every read goes through this process.
    #[default]
    Off,
    /// Passed through if the kernel allows it.
    Auto {
        /// The cache directory: its file system decides the stack depth that the kernel has to know.
        cache: PathBuf,
    },
}

/// Whether a mount outlives its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountPersistence {
    /// The mount ends with the process.
    #[default]
    No,
    /// A service manager stores the descriptors for the next process. Disables passthrough.
    ByManager,
}

/// Options of a mount.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// Users that may access the mount.
    pub access: MountAccess,
    /// Flags that the kernel enforces.
    pub flags: MountFlags,
    /// The source in `findmnt`: the reference as written, by which mount(8) recognises a line of fstab.
    pub source: String,
    /// Whether the kernel may read complete cached files by itself.
    pub passthrough: PassthroughMode,
    /// Whether the mount outlives this process.
    pub keep: MountPersistence,
    /// Journal for a process that may take the mount over; `None` when there is none.
    pub record: Option<Arc<HandoverJournal>>,
}

impl MountOptions {
    /// The source without characters that have a meaning in mount tables and option strings.
    pub(super) fn safe_source(&self) -> String {
        let safe =
            |c: char| if c == ',' || c == '\\' || c.is_whitespace() || is_unprintable(c) { '_' } else { c };
        self.source.chars().map(safe).collect()
    }

    /// The kernel checks modes whenever other users have access.
    pub(super) fn checks_modes(&self) -> bool {
        self.flags.default_permissions || self.access == MountAccess::Everyone
    }
}
