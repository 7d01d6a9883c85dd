//! How an artifact packs a disk image: which layers are its parts and in which order, what the assembled bytes are, and
//! whether a hypervisor may be given them.
//!
//! Nothing here reads a blob, follows a name that stands in a disk header, or guesses: whatever is not certain becomes a
//! [`Problem`] instead of a disk, because a disk with wrong bytes is worse than none. The idea: a manifest becomes plans
//! (names, parts, sizes) by [`detect`], the first bytes of an assembled disk become a verdict by [`inspect`], and both
//! become the text of `disk/info.json`, whose size is known before any blob byte is.
//!
//! A packaging is one file and one arm of [`detect`].

mod chunks;
mod cocoon;
mod compressed;
mod container;
mod detect;
mod error;
mod format;
mod geranos;
mod info;
mod inspect;
mod kubevirt;
mod lume;
mod machine;
mod name;
mod nosi;
mod parts;
mod plain;
mod qcow2;
mod tart;
mod title;
mod vetu;
mod vmdk;
mod vmlab;

pub use container::{
    Member, container_disk_layer, container_disks, is_member, may_be_container_disk, member_disks,
};
pub use detect::{Body, Detection, DiskPlan, MAX_PARTS, Packing, PartOrder, PartPlan, Problem, detect};
pub use error::DiskError;
pub use format::{Format, Signature};
pub use info::{info_json, info_padded, info_size};
pub use inspect::{HEAD, Inspection, inspect};
pub use qcow2::{Qcow2Header, Qcow2Raw};

#[cfg(test)]
mod fixtures;
