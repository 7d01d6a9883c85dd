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
mod failed_reads;
mod filesystem;
mod gate;
mod handles;
mod keeper;
mod kernel;
mod listed;
mod mountpoint;
mod overlay;
mod passthrough;
mod recent;
mod record;
mod session;
mod spare;
mod stale;
mod takeover;
mod waiting;

pub use checkup::{Finding, Health, checkup};
pub use keeper::{TEMPORARY, is_keeper, keep, start_keeper};
pub use kernel::{Access, Keep, MountFlags, MountOptions, Passthrough, is_on_overlay, may_pass_through};
pub use listed::{Listed, State, list, status};
pub use mountpoint::{MountError, Unmount, check, check_over_dead, reference_at, resolved, unmount};
pub use overlay::Overlay;
pub use record::Record;
pub use session::{Attached, Mounted, attach, mount};
pub use stale::{Filling, Standing, filling, standing};
pub use takeover::{Survivor, take_over};
