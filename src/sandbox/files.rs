//! Files out of reach, by Landlock.
//!
//! Says nothing about the network: a registry may be anywhere. The idea: everything that Landlock can tell apart is refused,
//! then each path of the policy gets back what its kind of use needs.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use super::{Applied, Policy};

/// The newest version of Landlock whose rights are refused. Older kernels refuse what they know.
const VERSION: ABI = ABI::V6;

/// Puts every file out of reach that `policy` does not name.
pub(super) fn restrict(policy: &Policy) -> Applied {
    match apply(policy) {
        Ok(RulesetStatus::FullyEnforced) => Applied::Whole,
        Ok(RulesetStatus::PartiallyEnforced) => {
            Applied::Part("this kernel's Landlock is older than what is asked of it".into())
        }
        Ok(RulesetStatus::NotEnforced) => Applied::No("this kernel has no Landlock".into()),
        Err(error) => Applied::No(error.to_string()),
    }
}

fn apply(policy: &Policy) -> Result<RulesetStatus, RulesetError> {
    let all = AccessFs::from_all(VERSION);
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Ruleset::default().handle_access(all)?.scope(Scope::Signal)?.create()?;
    for path in &policy.read {
        rules = allow(rules, path, reading)?;
    }
    for path in &policy.write {
        rules = allow(rules, path, all & !AccessFs::Execute)?;
    }
    for path in &policy.sockets {
        rules = allow(rules, path, AccessFs::MakeSock | AccessFs::RemoveFile)?;
    }
    rules = allow(rules, Path::new("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile)?;
    Ok(rules.restrict_self()?.ruleset)
}

/// Adds the rights to what is at `path` and below, if there is anything.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(there) = PathFd::new(path) else { return Ok(rules) };
    // The kernel refuses rights of directories on anything else.
    let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(VERSION) };
    if rights.is_empty() {
        return Ok(rules);
    }
    rules.add_rule(PathBeneath::new(there, rights))
}
