//! Privileged metadata of a tree: set-ID bits, devices, and `trusted.*` and `security.*` attributes.
//!
//! An image author chooses modes, devices and attributes. On a host they run programs as other users, reach disks,
//! and steer overlays and security modules. So they are written only on request. This file decides per name, and
//! writes nothing.

use crate::tree::InodeKind;
use crate::view::NodeAttributes;

/// Set-user-ID and set-group-ID.
const SET_ID: u16 = 0o6000;

/// Selects the privileged metadata to write. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PreservedMetadata {
    /// Set-user-ID and set-group-ID bits of files.
    pub set_id: bool,
    /// Character and block devices.
    pub devices: bool,
    /// Attributes `trusted.*`, which overlays obey.
    pub trusted: bool,
    /// Attributes `security.*`: capabilities of programs, and labels.
    pub security: bool,
}

impl PreservedMetadata {
    /// Select everything.
    pub fn everything() -> Self {
        Self { set_id: true, devices: true, trusted: true, security: true }
    }

    /// The mode of an exported file, without set-ID bits unless selected.
    pub(super) fn mode(self, attributes: &NodeAttributes) -> u16 {
        let has_power = matches!(attributes.kind, InodeKind::File) && !self.set_id;
        if has_power { attributes.mode & !SET_ID } else { attributes.mode }
    }

    /// Whether files of this kind are created.
    pub(super) fn makes(self, kind: InodeKind) -> bool {
        self.devices || !matches!(kind, InodeKind::CharDevice | InodeKind::BlockDevice)
    }

    /// Whether an attribute of this name is set.
    pub(super) fn sets(self, name: &[u8]) -> bool {
        (self.trusted || !name.starts_with(b"trusted.")) && (self.security || !name.starts_with(b"security."))
    }
}

/// Counts of the metadata left out because it was not selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithheldCounts {
    /// Files that lost their set-user-ID or set-group-ID bit.
    pub set_id: u64,
    /// Devices.
    pub devices: u64,
    /// Attributes `trusted.*`.
    pub trusted: u64,
    /// Attributes `security.*`.
    pub security: u64,
}

impl WithheldCounts {
    pub(super) fn note_attribute(&mut self, name: &[u8]) {
        if name.starts_with(b"trusted.") { self.trusted += 1 } else { self.security += 1 }
    }
}
