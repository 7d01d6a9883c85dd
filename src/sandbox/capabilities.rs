//! Capabilities: drops all that the policy does not need.
//!
//! A dropped capability does not come back. The needed ones are determined by trial: access is checked with and
//! without the capabilities, before they are dropped for good. A cache below the home of another user, for example,
//! is accessible to root only by the right to override file modes.

use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use super::{AppliedPart, SandboxPolicy};

/// Drops every capability that `policy` does not need.
pub(super) fn drop_all_but(policy: &SandboxPolicy) -> AppliedPart {
    match reduce(policy) {
        Ok(kept) if kept.is_empty() => AppliedPart::Whole,
        Ok(kept) => AppliedPart::Part(format!("kept {}", kept.join(", "))),
        Err(error) => AppliedPart::No(error.to_string()),
    }
}

/// Returns the names of capabilities that are still held without having been requested.
fn reduce(policy: &SandboxPolicy) -> Result<Vec<String>, caps::errors::CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    if permitted.is_empty() {
        return Ok(Vec::new());
    }
    let mut kept = CapsHashSet::new();
    if policy.stay_admin {
        kept.insert(Capability::CAP_SYS_ADMIN);
    }
    kept.retain(|capability| permitted.contains(capability));
    let before = reachable(policy);
    caps::set(None, CapSet::Effective, &kept)?;
    let mut unasked = Vec::new();
    let modes = Capability::CAP_DAC_OVERRIDE;
    if permitted.contains(&modes) && reachable(policy) != before {
        kept.insert(modes);
        unasked.push(format!("{modes}, because files that it needs belong to another user"));
    }
    if caps::has_cap(None, CapSet::Permitted, Capability::CAP_SETPCAP)? {
        // A capability outside the bounding set cannot be regained by executing a program. Removing one from the set
        // needs a capability of its own.
        let mut needed = kept.clone();
        needed.insert(Capability::CAP_SETPCAP);
        caps::set(None, CapSet::Effective, &needed)?;
        for capability in permitted.iter().filter(|capability| !kept.contains(capability)) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::set(None, CapSet::Effective, &kept)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(unasked)
}

/// The current access of this process to the policy's paths, one answer for each.
fn reachable(policy: &SandboxPolicy) -> Vec<bool> {
    let ask = |path: &Path, wanted: AccessFlags| {
        // A path that does not exist counts as accessible.
        !matches!(
            faccessat(AT_FDCWD, path, wanted, AtFlags::AT_EACCESS),
            Err(nix::errno::Errno::EACCES | nix::errno::Errno::EPERM)
        )
    };
    let writable = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
    let read = policy.read.iter().map(|path| ask(path, AccessFlags::R_OK));
    read.chain(policy.write.iter().chain(&policy.sockets).map(|path| ask(path, writable))).collect()
}
