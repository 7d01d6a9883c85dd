//! The parts of a tree that have power on the machine that it is written to.
//!
//! Decides per name, and writes nothing. An image author chooses modes, devices and attributes; on a host they run programs as other
//! users, reach disks, and steer overlays and security modules. They are written only when they are asked for.

use crate::tree::Kind;
use crate::view::Attributes;

/// Set-user-ID and set-group-ID.
const SET_ID: u16 = 0o6000;

/// Which of them are written. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preserve {
    /// Set-user-ID and set-group-ID bits of files.
    pub set_id: bool,
    /// Character and block devices.
    pub devices: bool,
    /// Attributes `trusted.*`, which overlays obey.
    pub trusted: bool,
    /// Attributes `security.*`: capabilities of programs, and labels.
    pub security: bool,
}

impl Preserve {
    /// All of them.
    pub fn everything() -> Self {
        Self { set_id: true, devices: true, trusted: true, security: true }
    }

    /// The mode that a name gets.
    pub(super) fn mode(self, attributes: &Attributes) -> u16 {
        let has_power = matches!(attributes.kind, Kind::File) && !self.set_id;
        if has_power { attributes.mode & !SET_ID } else { attributes.mode }
    }

    /// Whether a thing of this kind is made.
    pub(super) fn makes(self, kind: Kind) -> bool {
        self.devices || !matches!(kind, Kind::CharDevice | Kind::BlockDevice)
    }

    /// Whether an attribute of this name is set.
    pub(super) fn sets(self, name: &[u8]) -> bool {
        (self.trusted || !name.starts_with(b"trusted.")) && (self.security || !name.starts_with(b"security."))
    }
}

/// How much was left out, because it was not asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Withheld {
    /// Files that lost their set-user-ID or set-group-ID bit.
    pub set_id: u64,
    /// Devices.
    pub devices: u64,
    /// Attributes `trusted.*`.
    pub trusted: u64,
    /// Attributes `security.*`.
    pub security: u64,
}

impl Withheld {
    pub(super) fn note_attribute(&mut self, name: &[u8]) {
        if name.starts_with(b"trusted.") { self.trusted += 1 } else { self.security += 1 }
    }
}
