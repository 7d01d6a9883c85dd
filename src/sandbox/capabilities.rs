//! The rights of root: all of them go, but what is needed to go on.
//!
//! Never gives a right back. The idea: what is needed is not guessed but tried, before and after the rights are laid down and
//! before they are thrown away: a cache below the home of another user is in reach of root only by the right to pass over file modes.

use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use super::{Applied, Policy};

/// Lays down every capability that `policy` does not need.
pub(super) fn drop_all_but(policy: &Policy) -> Applied {
    match reduce(policy) {
        Ok(kept) if kept.is_empty() => Applied::Whole,
        Ok(kept) => Applied::Part(format!("kept {}", kept.join(", "))),
        Err(error) => Applied::No(error.to_string()),
    }
}

/// Gives the names of what was kept without having been asked for.
fn reduce(policy: &Policy) -> Result<Vec<String>, caps::errors::CapsError> {
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
        unasked.push(format!("{modes}, because what is needed belongs to another user"));
    }
    if caps::has_cap(None, CapSet::Permitted, Capability::CAP_SETPCAP)? {
        // What is not in this set cannot come back with a program either; removing from it takes a right of its own.
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

/// What of it is in reach of this process now, one answer for each path.
fn reachable(policy: &Policy) -> Vec<bool> {
    let ask = |path: &Path, wanted: AccessFlags| {
        // What is not there is not missed.
        !matches!(
            faccessat(AT_FDCWD, path, wanted, AtFlags::AT_EACCESS),
            Err(nix::errno::Errno::EACCES | nix::errno::Errno::EPERM)
        )
    };
    let writable = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
    let read = policy.read.iter().map(|path| ask(path, AccessFlags::R_OK));
    read.chain(policy.write.iter().chain(&policy.sockets).map(|path| ask(path, writable))).collect()
}
