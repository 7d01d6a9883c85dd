//! Landlock rules: restricts access to files.
//!
//! The network is not restricted, because a registry may be anywhere. Every right that Landlock distinguishes is
//! denied, including signals and abstract sockets of other processes. Then each path of the policy gets the rights of
//! its kind of use.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, BitFlags, LandlockStatus, PathBeneath, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use super::{AppliedPart, SandboxPolicy};

/// The newest Landlock version with rights that are denied. Older kernels deny the rights that they know.
const VERSION: ABI = ABI::V6;

/// Denies access to every file outside `policy`.
pub(super) fn restrict(policy: &SandboxPolicy) -> AppliedPart {
    let ruleset = Ruleset::default();
    // The library treats every error as an old kernel; errno still holds the kernel's answer to its query.
    let answered = std::io::Error::last_os_error();
    match apply(ruleset, policy) {
        Ok(RestrictionStatus { ruleset: RulesetStatus::FullyEnforced, .. }) => AppliedPart::Whole,
        Ok(RestrictionStatus { ruleset: RulesetStatus::PartiallyEnforced, .. }) => {
            AppliedPart::Part("this kernel's Landlock lacks a part of the rules".into())
        }
        Ok(RestrictionStatus { landlock, .. }) => AppliedPart::No(absence(landlock, &answered)),
        Err(error) => AppliedPart::No(error.to_string()),
    }
}

/// Why Landlock is unavailable.
fn absence(status: LandlockStatus, answered: &std::io::Error) -> String {
    match (status, answered.kind()) {
        (LandlockStatus::NotEnabled, _) => {
            "Landlock is not active: the kernel's parameter lsm= leaves it out".into()
        }
        (_, std::io::ErrorKind::PermissionDenied) => {
            "the call of Landlock is refused by the filter of a service or a container".into()
        }
        _ => "this kernel has no Landlock".into(),
    }
}

fn apply(ruleset: Ruleset, policy: &SandboxPolicy) -> Result<RestrictionStatus, RulesetError> {
    let all = AccessFs::from_all(VERSION);
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = ruleset.handle_access(all)?.scope(Scope::from_all(VERSION))?.create()?;
    for path in &policy.read {
        rules = allow(rules, path, reading)?;
    }
    for path in &policy.write {
        rules = allow(rules, path, all & !AccessFs::Execute)?;
    }
    for path in &policy.sockets {
        rules = allow(rules, path, AccessFs::RemoveFile.into())?;
    }
    rules = allow(rules, Path::new("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile)?;
    rules.restrict_self()
}

/// Grants the rights on `path` and below, if it exists.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(there) = PathFd::new(path) else { return Ok(rules) };
    // The kernel rejects directory rights on anything else.
    let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(VERSION) };
    if rights.is_empty() {
        return Ok(rules);
    }
    rules.add_rule(PathBeneath::new(there, rights))
}
