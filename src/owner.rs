//! Ownership checks: only names controlled by this user or root are trusted.
//!
//! Read-only. Another user with write access to a directory can redirect a name in it at any moment. These are the
//! rules for links and directories on the way to a file.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Most symbolic links followed for one path: `MAXSYMLINKS` of Linux. The 41st is too many.
pub(crate) const MAX_LINKS: usize = 40;

/// Owner, group and mode of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOwner {
    /// User id of the owner.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The mode, including the file type.
    pub mode: u32,
}

impl From<&Metadata> for FileOwner {
    fn from(found: &Metadata) -> Self {
        Self { uid: found.uid(), gid: found.gid(), mode: found.mode() }
    }
}

impl From<&rustix::fs::Stat> for FileOwner {
    fn from(found: &rustix::fs::Stat) -> Self {
        Self { uid: found.st_uid, gid: found.st_gid, mode: found.st_mode }
    }
}

/// The user that follows a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkFollower {
    /// Root: only links of its own.
    Root,
    /// The user with this id: links of its own and of root, and others by the kernel's rules.
    User(u32),
}

impl FileOwner {
    /// Whether only this user and root can change it. With the sticky bit of a directory that holds for our names in
    /// it.
    pub fn is_trusted(self) -> bool {
        is_trusted_user(self.uid) && (self.mode & 0o022 == 0 || self.mode & 0o1000 != 0)
    }

    /// Whether a link with this owner in `directory` may be followed. Root follows links of root alone. Other users
    /// follow the links that `fs.protected_symlinks` (proc_sys_fs(5)) permits, whether or not it is enabled: in a
    /// world-writable sticky directory, links of their own, of root, and of the directory's owner.
    pub fn may_be_followed(self, directory: FileOwner) -> bool {
        let user = nix::unistd::geteuid();
        let follower = if user.is_root() { LinkFollower::Root } else { LinkFollower::User(user.as_raw()) };
        is_trusted_user(self.uid) || self.is_followed_by(follower, directory)
    }

    fn is_followed_by(self, follower: LinkFollower, directory: FileOwner) -> bool {
        let is_shared = directory.mode & 0o1002 == 0o1002;
        match follower {
            LinkFollower::Root => false,
            LinkFollower::User(user) => self.uid == user || !is_shared || self.uid == directory.uid,
        }
    }
}

/// The first directory or link on the way to `path` by which another user could redirect it. The file at the end of
/// `path` is not checked, but a link there is. A group may have write access if it is root's or the primary group of
/// this user, as in systems with one group per user.
pub fn untrusted_above(path: &Path) -> std::io::Result<Option<(PathBuf, FileOwner)>> {
    let path = std::path::absolute(path)?;
    let names = |path: &Path| -> Vec<OsString> {
        path.components().rev().map(|name| name.as_os_str().to_owned()).collect()
    };
    let (mut here, mut todo, mut links) = (PathBuf::new(), names(&path), 0);
    let own_group = nix::unistd::getegid().as_raw();
    while let Some(name) = todo.pop() {
        here.push(name);
        let found = std::fs::symlink_metadata(&here)?;
        let owner = FileOwner::from(&found);
        if found.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(std::io::Error::other("too many levels of symbolic links"));
            }
            if !is_trusted_user(owner.uid) {
                return Ok(Some((here, owner)));
            }
            let target = std::fs::read_link(&here)?;
            here.pop();
            todo.extend(names(&target));
            continue;
        }
        let is_group_fine = owner.gid == 0 || owner.gid == own_group;
        let mode = if is_group_fine { owner.mode & !0o020 } else { owner.mode };
        if !todo.is_empty() && !(FileOwner { mode, ..owner }).is_trusted() {
            return Ok(Some((here, owner)));
        }
    }
    Ok(None)
}

/// Whether files of this user are trusted: this user and root.
pub fn is_trusted_user(uid: u32) -> bool {
    uid == nix::unistd::geteuid().as_raw() || uid == 0 || is_unmapped(uid)
}

/// Whether this uid is how root of the machine appears in a user namespace without a mapping for it. Other unmapped
/// users look the same; none of them is in the namespace.
fn is_unmapped(uid: u32) -> bool {
    /// The kernel's uid for unmapped users, unless the machine configures another.
    const OVERFLOW_UID: u32 = 65_534;
    static IS_PARTIAL: OnceLock<bool> = OnceLock::new();
    let is_partial = || {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let mapped: u64 =
            map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum();
        mapped > 0 && mapped < u64::from(u32::MAX)
    };
    uid == OVERFLOW_UID && *IS_PARTIAL.get_or_init(is_partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_other_users_are_followed_by_the_rules_of_the_kernel_and_not_by_root() {
        let owner = |uid: u32, mode: u32| FileOwner { uid, gid: uid, mode };
        let (tmp, shared, home) = (owner(0, 0o41777), owner(7, 0o41777), owner(7, 0o40755));
        let link = |uid| owner(uid, 0o120777);
        let user = LinkFollower::User(5);
        for (uid, directory, follower, expected) in [
            (5, tmp, user, true),
            (7, tmp, user, false),
            (7, shared, user, true),
            (8, shared, user, false),
            (7, home, user, true),
            (7, home, LinkFollower::Root, false),
            (7, tmp, LinkFollower::Root, false),
        ] {
            let followed = link(uid).is_followed_by(follower, directory);
            assert_eq!(followed, expected, "{uid} in {directory:?} for {follower:?}");
        }
        let us = nix::unistd::geteuid().as_raw();
        assert!(link(us).may_be_followed(tmp) && link(0).may_be_followed(tmp));
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_trusted_with_the_sticky_bit_alone() {
        let owner = |uid: u32, mode: u32| FileOwner { uid, gid: uid, mode };
        assert!(owner(0, 0o40755).is_trusted() && owner(0, 0o41777).is_trusted());
        assert!(!owner(0, 0o40777).is_trusted() && !owner(0, 0o40775).is_trusted());
        assert!(!owner(54_321, 0o40755).is_trusted() && !owner(54_321, 0o41777).is_trusted());
    }
    #[test]
    fn every_directory_and_link_on_the_way_is_looked_at() {
        use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let above = |path: &str| {
            let found = untrusted_above(&dir.path().join(path)).unwrap();
            found.map(|(above, _)| above.strip_prefix(dir.path()).unwrap().to_owned())
        };
        std::fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        symlink("a/b", dir.path().join("link")).unwrap();
        assert_eq!((above("a/b/c"), above("link/c")), (None, None));
        std::fs::set_permissions(dir.path().join("a"), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!((above("a/b/c"), above("link/c")), (Some("a".into()), Some("a".into())));
        assert_eq!(above("a"), None, "the directory itself is for its reader to check");
        std::fs::set_permissions(dir.path().join("a"), std::fs::Permissions::from_mode(0o755)).unwrap();
        if nix::unistd::geteuid().is_root() {
            lchown(dir.path().join("link"), Some(12_345), None).unwrap();
            assert_eq!(above("link/c"), Some("link".into()));
            lchown(dir.path().join("a/b"), Some(12_345), None).unwrap();
            assert_eq!(above("a/b/c"), Some("a/b".into()));
        }
    }
}
