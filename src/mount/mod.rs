//! The kernel's side: mounting, unmounting, and the translation of FUSE requests to view calls.
//!
//! This is the only importer of `fuser`, and errnos are chosen in `errno.rs` alone. Metadata is answered on the FUSE thread
//! from memory; whatever must wait is moved to the async runtime together with its reply, so that FUSE threads never block
//! on the network.

mod attributes;
mod errno;
mod filesystem;
mod handles;
mod kernel;
mod mountpoint;
mod passthrough;
mod recent;
mod session;
mod spare;

pub use kernel::{Access, MountFlags, MountOptions, Passthrough};
pub use mountpoint::{MountError, Unmount, unmount};
pub use session::{Mounted, mount};
