//! `--preserve`: entries with power on this machine, written to a directory only if they are named.

use clap::{Args, ValueEnum};

use crate::export::{PreservedMetadata, WithheldCounts};

/// Which of them are written.
#[derive(Args, Debug)]
pub(super) struct PreserveArgs {
    /// Write entries with power on this machine, which are left out of a directory otherwise. May be repeated, or a list with commas.
    #[arg(long, value_name = "WHAT", value_delimiter = ',', help_heading = "Output")]
    preserve: Vec<PreservedRight>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PreservedRight {
    /// Set-user-ID and set-group-ID bits of files.
    #[value(alias = "setuid", alias = "set-id", alias = "setid")]
    Suid,
    /// Character and block devices.
    #[value(alias = "device", alias = "dev")]
    Devices,
    /// Attributes trusted.*, which overlays obey.
    Trusted,
    /// Attributes security.*: capabilities of programs, and labels.
    Security,
    /// Attributes trusted.* and security.*.
    #[value(alias = "xattr")]
    Xattrs,
    /// Everything that is recorded.
    All,
}

impl PreserveArgs {
    /// Whether the option is given.
    pub(super) fn is_given(&self) -> bool {
        !self.preserve.is_empty()
    }

    /// The entries to write.
    pub(super) fn chosen(&self) -> PreservedMetadata {
        let has = |powers: &[PreservedRight]| {
            self.preserve.iter().any(|power| *power == PreservedRight::All || powers.contains(power))
        };
        PreservedMetadata {
            set_id: has(&[PreservedRight::Suid]),
            devices: has(&[PreservedRight::Devices]),
            trusted: has(&[PreservedRight::Trusted, PreservedRight::Xattrs]),
            security: has(&[PreservedRight::Security, PreservedRight::Xattrs]),
        }
    }
}

/// One line about entries that were left out; `None` if there were none.
pub(super) fn left_out(withheld: &WithheldCounts) -> Option<String> {
    let parts = [
        (withheld.set_id, "suid", "files lost their set-user-ID or set-group-ID bit"),
        (withheld.devices, "devices", "devices"),
        (withheld.trusted, "trusted", "attributes trusted.*"),
        (withheld.security, "security", "attributes security.*"),
    ];
    let parts: Vec<_> = parts.iter().filter(|(count, ..)| *count > 0).collect();
    if parts.is_empty() {
        return None;
    }
    let counted: Vec<_> = parts.iter().map(|(count, _, words)| format!("{count} {words}")).collect();
    let names: Vec<_> = parts.iter().map(|(_, name, _)| *name).collect();
    Some(format!("left out: {}; --preserve={} writes them", counted.join(", "), names.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_named_one_by_one_or_all() {
        let chosen = |preserve: &[PreservedRight]| PreserveArgs { preserve: preserve.to_vec() }.chosen();
        assert_eq!(chosen(&[]), PreservedMetadata::default());
        assert_eq!(chosen(&[PreservedRight::All]), PreservedMetadata::everything());
        assert_eq!(
            chosen(&[PreservedRight::Xattrs, PreservedRight::Devices]),
            PreservedMetadata { set_id: false, ..PreservedMetadata::everything() }
        );
        let withheld = WithheldCounts { set_id: 2, security: 1, ..WithheldCounts::default() };
        let line = left_out(&withheld).unwrap();
        assert!(line.contains("2 files") && line.ends_with("--preserve=suid,security writes them"), "{line}");
        assert_eq!(left_out(&WithheldCounts::default()), None);
    }
}
