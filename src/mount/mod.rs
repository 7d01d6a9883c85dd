//! The kernel's side: mounting, unmounting, and the translation of FUSE requests to view calls.
//!
//! This is the only importer of `fuser`, and errnos are chosen in `errno.rs` alone. Metadata is answered on the FUSE thread
//! from memory; whatever must wait is moved to the async runtime together with its reply, so that FUSE threads never block
//! on the network.

mod attributes;
mod distrust;
mod errno;
mod filesystem;
mod handles;
mod keeper;
mod kernel;
mod mountpoint;
mod passthrough;
mod recent;
mod record;
mod session;
mod spare;
mod stale;
mod takeover;

pub use keeper::{is_keeper, keep, start_keeper};
pub use kernel::{Access, MountFlags, MountOptions, Passthrough, may_pass_through};
pub use mountpoint::{MountError, Unmount, check, reference_at, unmount};
pub use record::Record;
pub use session::{Mounted, mount};
pub use takeover::{Survivor, take_over};
