//! FUSE side: mounting, unmounting, and the translation of FUSE requests to calls of the views.
//!
//! This is the only importer of `fuser`, and errnos are chosen in `errno.rs` alone. Metadata is answered on the FUSE
//! thread from memory. A request that must wait moves to the async runtime together with its reply, so FUSE threads
//! do not block on the network.

mod attributes;
mod buffer_pool;
mod caller;
mod dead_mount;
mod diagnostics;
mod errno;
mod error;
mod failed_reads;
mod filesystem;
mod gate;
mod handles;
mod handover;
mod image_file;
mod image_session;
mod invalidate;
mod kernel;
mod kernel_mount;
mod list;
mod monitor;
mod mount_record;
mod mount_table;
mod mountpoint;
mod open_file_cache;
mod options;
mod overlay;
mod passthrough;
mod privileged;
mod replies;
mod session;
mod status_socket;
mod takeover;
mod waiting;

pub use dead_mount::{DirectoryMount, FilesystemUsage, filling, standing};
pub use diagnostics::{CheckedFact, FactHealth, checkup};
pub use error::{MountError, UnmountMode};
pub use handover::HandoverJournal;
pub use image_session::{mount_image, take_over_image};
pub use kernel::{is_on_overlay, may_pass_through};
pub use kernel_mount::{KernelObstacle, kernel_obstacle};
pub use list::{ListedMount, MountState, list, list_at, status};
pub use monitor::{is_monitor, keep, start_monitor};
pub use mountpoint::{check, check_over_dead, reference_at, resolved};
pub use options::{MountAccess, MountFlags, MountOptions, MountPersistence, PassthroughMode};
pub use overlay::WritableOverlay;
pub use privileged::unmount;
pub use session::{AttachedMount, ServedMount, attach, mount};
pub use takeover::{SurvivingMount, take_over};
