//! FUSE side: mounting, unmounting, and the translation of FUSE requests to calls of the views.
//!
//! This is the only importer of `fuser`, and errnos are chosen in `errno.rs` alone. Metadata is answered on the FUSE
//! thread from memory. A request that must wait moves to the async runtime together with its reply, so FUSE threads
//! do not block on the network.

mod attributes;
mod caller;
mod checkup;
mod distrust;
mod errno;
mod error;
mod failed_reads;
mod filesystem;
mod gate;
mod handles;
mod keeper;
mod kernel;
mod listed;
mod mount_table;
mod mountpoint;
mod options;
mod overlay;
mod passthrough;
mod privileged;
mod recent;
mod record;
mod session;
mod spare;
mod stale;
mod takeover;
mod waiting;

pub use checkup::{CheckedFact, FactHealth, checkup};
pub use error::{MountError, UnmountMode};
pub use keeper::{TEMPORARY, is_keeper, keep, start_keeper};
pub use kernel::{is_on_overlay, may_pass_through};
pub use listed::{ListedMount, MountState, list, status};
pub use mountpoint::{check, check_over_dead, reference_at, resolved};
pub use options::{MountAccess, MountFlags, MountOptions, MountPersistence, PassthroughMode};
pub use overlay::WritableOverlay;
pub use privileged::unmount;
pub use record::HandoverJournal;
pub use session::{AttachedMount, ServedMount, attach, mount};
pub use stale::{DirectoryMount, FilesystemUsage, filling, standing};
pub use takeover::{SurvivingMount, take_over};
