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

pub use checkup::{Finding, Health, checkup};
pub use error::{MountError, Unmount};
pub use keeper::{TEMPORARY, is_keeper, keep, start_keeper};
pub use kernel::{is_on_overlay, may_pass_through};
pub use listed::{Listed, State, list, status};
pub use mountpoint::{check, check_over_dead, reference_at, resolved};
pub use options::{Access, Keep, MountFlags, MountOptions, Passthrough};
pub use overlay::Overlay;
pub use privileged::unmount;
pub use record::Record;
pub use session::{Attached, Mounted, attach, mount};
pub use stale::{Filling, Standing, filling, standing};
pub use takeover::{Survivor, take_over};
