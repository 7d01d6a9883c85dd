//! Diagnostics: checks that this machine can mount, for `ocifs doctor`.
//!
//! Read-only. Each finding is one fact, its health, and a hint.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::kernel::{self, MountRight};
use super::kernel_mount::{kernel_obstacle, version};
use super::mount_table::FS_TYPE;

/// The health of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FactHealth {
    /// Works as intended.
    Good,
    /// Mounts work, with reduced function.
    Limited,
    /// Mounts do not work.
    Bad,
}

/// One fact about the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedFact {
    /// The subject, in a word or two.
    pub subject: &'static str,
    /// Its health.
    pub health: FactHealth,
    /// The fact itself.
    pub detail: String,
    /// How to improve it; `None` for a good finding.
    pub hint: Option<String>,
}

impl CheckedFact {
    /// A finding without a problem.
    pub fn good(subject: &'static str, detail: impl Into<String>) -> Self {
        Self { subject, health: FactHealth::Good, detail: detail.into(), hint: None }
    }

    /// A finding with reduced function.
    pub fn limited(subject: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { subject, health: FactHealth::Limited, detail: detail.into(), hint: Some(hint.into()) }
    }

    /// A finding that makes mounts impossible.
    pub fn bad(subject: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { subject, health: FactHealth::Bad, detail: detail.into(), hint: Some(hint.into()) }
    }
}

/// Optional kernel features, with the first kernel version that has each.
const FEATURES: [(u32, u32, &str); 3] = [
    (5, 13, "Landlock, which keeps a mount away from files"),
    (6, 9, "FUSE passthrough, by which the kernel reads cached files itself"),
    (6, 9, "takeover of a served mount after a crash, with its waiting requests"),
];

/// Runs all checks.
pub fn checkup() -> Vec<CheckedFact> {
    let is_root = nix::unistd::geteuid().is_root();
    let mut findings = vec![device(is_root)];
    let has_proc = fs::exists("/proc/self/mountinfo").unwrap_or(false);
    if !has_proc {
        findings.push(CheckedFact::bad("proc", "/proc is not mounted", "mount -t proc proc /proc"));
    }
    if !is_root {
        findings.extend([helper(), others()]);
    }
    findings.push(release());
    if is_root && has_proc {
        findings.push(rights());
        findings.push(kernel_mounts());
    }
    findings.push(landlock());
    findings.push(files());
    findings.extend(updatedb(Path::new("/")));
    findings
}

fn kernel_mounts() -> CheckedFact {
    match kernel_obstacle() {
        None => CheckedFact::good("erofs", "mount --kernel=on has the kernel's EROFS serve merged/"),
        Some(obstacle) => {
            CheckedFact::limited("erofs", obstacle.to_string(), "mounts work here without --kernel=on")
        }
    }
}

fn rights() -> CheckedFact {
    let hint = "give the container the right and the device: --cap-add SYS_ADMIN --device /dev/fuse; \
                \"ocifs ls\", \"ocifs cat\" and \"ocifs export\" need no mount";
    match kernel::mount_right() {
        Ok(MountRight::Machine) => CheckedFact::good(
            "rights",
            "root of the machine; with --passthrough=on the kernel reads cached files itself",
        ),
        Ok(MountRight::Namespace) => CheckedFact::limited(
            "rights",
            "root of a user namespace",
            "mounts work, without passthrough of cached files",
        ),
        Ok(MountRight::Helper) if helper().health == FactHealth::Good => {
            CheckedFact::limited("rights", "root without CAP_SYS_ADMIN: fusermount3 has to mount", hint)
        }
        Ok(MountRight::Helper | MountRight::Absent) => {
            CheckedFact::bad("rights", "root without CAP_SYS_ADMIN cannot mount", hint)
        }
        Err(error) => CheckedFact::limited("rights", format!("unknown: {error}"), hint),
    }
}

/// The config of updatedb, the nightly index of file names, below `root`; PRUNEFS in it excludes file systems.
const UPDATEDB: &str = "etc/updatedb.conf";
/// Drop-ins for plocate's service with the same exclusion, as our package installs.
const UPDATEDB_UNITS: [&str; 2] = [
    "usr/lib/systemd/system/plocate-updatedb.service.d/ocifs.conf",
    "etc/systemd/system/plocate-updatedb.service.d/ocifs.conf",
];

/// Checks whether updatedb walks mounts, which would fetch every image in full. `None` without updatedb.
fn updatedb(root: &Path) -> Option<CheckedFact> {
    let settings = fs::read_to_string(root.join(UPDATEDB)).ok()?;
    let names_us = |text: &str| {
        text.lines().filter(|line| !line.trim_start().starts_with('#')).any(|line| line.contains(FS_TYPE))
    };
    let by_service = UPDATEDB_UNITS
        .iter()
        .any(|unit| fs::read_to_string(root.join(unit)).is_ok_and(|text| names_us(&text)));
    Some(match (names_us(&settings), by_service) {
        (true, _) => CheckedFact::good("updatedb", "it leaves mounts of ocifs out"),
        (false, true) => CheckedFact::good("updatedb", "its service leaves mounts of ocifs out"),
        (false, false) => CheckedFact::limited(
            "updatedb",
            "it walks mounts of ocifs every night, which fetches all of every image",
            format!("add {FS_TYPE} to PRUNEFS in /{UPDATEDB}"),
        ),
    })
}

fn device(is_root: bool) -> CheckedFact {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => CheckedFact::good("fuse", "/dev/fuse opens"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && !is_root => CheckedFact::bad(
            "fuse",
            "/dev/fuse is not for this user",
            "chmod 666 /dev/fuse, as udev has it, or mount as root; \"ocifs ls\" and \"ocifs cat\" need no mount",
        ),
        Err(error) => CheckedFact::bad(
            "fuse",
            format!("/dev/fuse does not open: {error}"),
            "modprobe fuse; a container needs --device /dev/fuse --cap-add SYS_ADMIN; \"ocifs ls\" and \"ocifs cat\" need no mount",
        ),
    }
}

fn helper() -> CheckedFact {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found: Option<PathBuf> =
        std::env::split_paths(&path).map(|dir| dir.join("fusermount3")).find(|file| file.exists());
    match found {
        None => CheckedFact::bad(
            "fusermount3",
            "not found in PATH",
            "install the package fuse3, or mount as root",
        ),
        Some(file) => {
            let is_setuid = fs::metadata(&file).is_ok_and(|meta| meta.permissions().mode() & 0o4000 != 0);
            if is_setuid {
                CheckedFact::good("fusermount3", format!("{} mounts for ordinary users", file.display()))
            } else {
                CheckedFact::bad(
                    "fusermount3",
                    format!("{} is not set-user-id", file.display()),
                    format!("chmod u+s {}, or mount as root", file.display()),
                )
            }
        }
    }
}

fn others() -> CheckedFact {
    let allowed = fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"));
    if allowed {
        CheckedFact::good("allow_other", "/etc/fuse.conf lets users show their mounts to others")
    } else {
        CheckedFact::limited(
            "allow_other",
            "only this user can look into this user's mounts",
            "add the line user_allow_other to /etc/fuse.conf for -o allow_other",
        )
    }
}

fn release() -> CheckedFact {
    let text = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let Some(version) = version(&text) else {
        return CheckedFact::limited("kernel", format!("release {text:?}"), "its version is not understood");
    };
    let missing: Vec<_> = FEATURES
        .iter()
        .filter(|(major, minor, _)| version < (*major, *minor))
        .map(|(major, minor, what)| format!("{what} ({major}.{minor})"))
        .collect();
    if missing.is_empty() {
        CheckedFact::good("kernel", text)
    } else {
        CheckedFact::limited("kernel", text, format!("a newer one has {}", missing.join("; ")))
    }
}

fn landlock() -> CheckedFact {
    match fs::read_to_string("/sys/kernel/security/lsm") {
        Ok(modules) if modules.trim().split(',').any(|module| module == "landlock") => {
            CheckedFact::good("landlock", "a mount is kept away from files that it does not need")
        }
        Ok(_) => CheckedFact::limited(
            "landlock",
            "not active in this kernel",
            "add landlock to the parameter lsm= of the kernel; mounts work, with a weaker sandbox",
        ),
        Err(_) => CheckedFact::limited(
            "landlock",
            "unknown: /sys/kernel/security is not mounted",
            "a mount logs what its sandbox holds, with OCIFS_LOG=ocifs=debug",
        ),
    }
}

fn files() -> CheckedFact {
    /// An image of many layers has four files open for each layer.
    const ENOUGH: u64 = 4096;
    use nix::sys::resource::{Resource, getrlimit};
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < ENOUGH => CheckedFact::limited(
            "open files",
            format!("at most {hard}"),
            format!("ulimit -Hn {ENOUGH}, or LimitNOFILE= of a service, for images of many layers"),
        ),
        Ok((_, hard)) => CheckedFact::good("open files", format!("at most {hard}")),
        Err(errno) => {
            CheckedFact::limited("open files", format!("no limit can be read: {errno}"), "see getrlimit(2)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_kernels_are_compared_by_number() {
        assert_eq!(version("6.18.2-amd64"), Some((6, 18)));
        assert_eq!(version("6.9.0"), Some((6, 9)));
        assert!(version("6.18") > version("6.9"));
        assert_eq!(version("6"), None);
        assert_eq!(version("x.y"), None);
    }

    #[test]
    fn updatedb_is_named_where_it_would_walk_mounts() {
        let room = tempfile::tempdir().unwrap();
        let health = || updatedb(room.path()).map(|finding| finding.health);
        assert_eq!(health(), None);
        fs::create_dir(room.path().join("etc")).unwrap();
        let settings = room.path().join(UPDATEDB);
        fs::write(&settings, "# fuse.ocifs\nPRUNEFS=\"NFS fuse.sshfs\"\n").unwrap();
        assert_eq!(health(), Some(FactHealth::Limited));
        let unit = room.path().join(UPDATEDB_UNITS[0]);
        fs::create_dir_all(unit.parent().unwrap()).unwrap();
        fs::write(&unit, "ExecStart=/usr/sbin/updatedb --add-prunefs fuse.ocifs\n").unwrap();
        assert_eq!(health(), Some(FactHealth::Good));
        fs::remove_file(&unit).unwrap();
        fs::write(&settings, "PRUNEFS=\"NFS fuse.ocifs\"\n").unwrap();
        assert_eq!(health(), Some(FactHealth::Good));
    }

    #[test]
    fn every_finding_with_a_problem_has_a_hint() {
        for finding in checkup() {
            assert_eq!(finding.hint.is_some(), finding.health != FactHealth::Good, "{finding:?}");
        }
    }
}
