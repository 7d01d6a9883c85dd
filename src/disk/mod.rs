//! Disk images in artifacts: the layers of a disk and their order, the format of the assembled bytes, and whether a
//! hypervisor may open them.
//!
//! This module reads no blob, follows no name in a disk header, and does not guess. An uncertain disk becomes a
//! [`DiskProblem`], because a disk with wrong bytes is worse than none. [`detect()`] converts a manifest to plans (names,
//! parts, sizes), and [`inspect()`] converts the first bytes of an assembled disk to a verdict. Both go into
//! `disk/info.json`, whose size is known before any blob byte.
//!
//! A packaging of chunks is a row of `chunk_rules`; any other one is a file. Each is one arm of [`detect()`].

mod assemble;
mod by_title;
mod chunk_rules;
mod chunks;
mod cocoon;
mod compressed;
mod container_disk;
mod detect;
mod error;
mod format;
mod info;
mod inspect;
mod kubevirt;
mod lume;
mod name;
mod nosi;
mod parts;
mod plan;
mod podman_machine;
mod qcow2;
mod sardinecake;
mod title;
mod vmdk;

pub use container_disk::{
    DiskMember, DiskMembers, container_disk_layer, container_disks, is_member, may_be_container_disk,
    member_disks,
};
pub use detect::detect;
pub use error::DiskError;
pub use format::{DiskFormat, ForeignSignature};
pub use info::{info_json, info_padded, info_size};
pub use inspect::{DiskInspection, HEAD, inspect};
pub use plan::{DiskBody, DiskDetection, DiskPacking, DiskPlan, DiskProblem, MAX_PARTS, PartOrder, PartPlan};
pub use qcow2::{Qcow2Header, Qcow2Raw};

#[cfg(test)]
mod fixtures;
