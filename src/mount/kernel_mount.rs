//! System calls of a kernel-served mount: a detached FUSE mount with one file, and EROFS on that file.
//!
//! The FUSE mount is in no tree (`fsmount(2)` without `move_mount(2)`). EROFS opens the file below it, and only the
//! EROFS mount is moved to the mount point. When that is unmounted, the kernel closes the file, the FUSE mount ends
//! with its last user, and so does the session of its process.

use std::fs::{self, DirBuilder};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Advice, AtFlags, CWD, Mode, OFlags, StatxFlags, fadvise, openat, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use serde::{Deserialize, Serialize};

use super::kernel::{MountRight, READAHEAD_KIB, mount_right};
use super::mount_record::{self, EROFS_TYPE, MountRecord, RECORD_DIRECTORY};
use super::mount_table;
use super::options::MountFlags;

/// The name of the only file of the FUSE mount.
pub(super) const IMAGE_NAME: &str = "image";
/// The first kernel whose EROFS mounts a file without a loop device.
const FIRST_KERNEL: (u32, u32) = (6, 12);
/// Longest source of a mount, in bytes: the kernel limits a string of fsconfig(2) to 256 with its NUL.
const MAX_SOURCE_BYTES: usize = 255;
/// Longest component of a path, in bytes.
const MAX_NAME_BYTES: usize = 255;
/// The source of a mount whose reference cannot be a path.
const PLAIN_SOURCE: &str = "ocifs";
/// Where the kernel lists the readahead of file systems.
const BDI_DIRECTORY: &str = "/sys/class/bdi";

/// Reason why this process cannot have the kernel serve a mount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelObstacle {
    /// The process is not root.
    #[error("only root can mount EROFS")]
    NotRoot,
    /// Root lacks the right to mount on this machine.
    #[error("mounting EROFS takes CAP_SYS_ADMIN of the machine, which a user namespace or a container lacks")]
    NotAdmin,
    /// The kernel is too old.
    #[error("mounting EROFS from a file takes Linux 6.12, and this is Linux {release}")]
    OldKernel {
        /// The release, as `uname -r` prints it.
        release: String,
    },
    /// The kernel lacks EROFS.
    #[error("this kernel has no EROFS (CONFIG_EROFS_FS)")]
    NoErofs,
}

/// Why the kernel can serve no mount of this process; `None` if it can.
pub fn kernel_obstacle() -> Option<KernelObstacle> {
    if !nix::unistd::geteuid().is_root() {
        return Some(KernelObstacle::NotRoot);
    }
    if !mount_right().is_ok_and(|right| right == MountRight::Machine) {
        return Some(KernelObstacle::NotAdmin);
    }
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    if version(&release).is_none_or(|version| version < FIRST_KERNEL) {
        return Some(KernelObstacle::OldKernel { release });
    }
    // This loads the module.
    fsopen(EROFS_TYPE, FsOpenFlags::FSOPEN_CLOEXEC).is_err().then_some(KernelObstacle::NoErofs)
}

/// Major and minor number of a release.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Parameters of an EROFS mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ImageTerms {
    /// The reference, for the mount table.
    pub(super) reference: String,
    /// Bytes of metadata at the start of the image, which are read ahead.
    pub(super) metadata_bytes: u64,
}

/// An EROFS mount at its place in the tree.
pub(super) struct PlacedImage {
    /// Its device number.
    pub(super) number: (u32, u32),
    /// Listens at the socket of its record.
    pub(super) listener: UnixListener,
    pub(super) record: MountRecord,
}

/// Makes a FUSE mount that is in no tree. Returns its device and the mount.
pub(super) fn connect() -> io::Result<(OwnedFd, OwnedFd)> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let number = device.as_raw_fd().to_string();
    for (key, value) in [
        ("source", PLAIN_SOURCE),
        ("fd", &number),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    // The readers of the EROFS mount may be any user; the modes in the image decide.
    fsconfig_set_flag(context.as_fd(), "allow_other")?;
    fsconfig_set_flag(context.as_fd(), "ro")?;
    fsconfig_create(context.as_fd())?;
    let denied = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, denied)?;
    Ok((device, mount))
}

/// Mounts the file below `connection` as EROFS at `dir`.
pub(super) fn place(
    connection: &OwnedFd,
    dir: &Path,
    terms: &ImageTerms,
    flags: MountFlags,
) -> io::Result<PlacedImage> {
    mount_record::create_directory()?;
    prune_records();
    let file = openat(connection, IMAGE_NAME, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    read_ahead(&file, terms.metadata_bytes);
    let source = source_name(&terms.reference);
    let mount = detached_erofs(&file, &source, flags)?;
    let found = statx(&mount, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    let number = (found.stx_dev_major, found.stx_dev_minor);
    let record = MountRecord::of(number.0, number.1, &source);
    // Before the mount is in the tree, where other processes look for its record.
    let listener = record.listen()?;
    let moved = move_mount(mount.as_fd(), "", CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    if let Err(errno) = moved {
        record.file_number().into_iter().for_each(|file| record.remove(file));
        return Err(errno.into());
    }
    Ok(PlacedImage { number, listener, record })
}

/// Starts to read the first `len` bytes of the image: EROFS reads metadata page by page, and pages that are there cost
/// no request.
fn read_ahead(file: &OwnedFd, len: u64) {
    /// Bytes that one call reads: the readahead of a FUSE mount that was not raised. The kernel ignores what exceeds it.
    const STEP: NonZeroU64 = NonZeroU64::new(128 * 1024).unwrap();
    for start in (0..len).step_by(STEP.get() as usize) {
        if let Err(error) = fadvise(file, start, Some(STEP), Advice::WillNeed) {
            tracing::debug!(%error, "the metadata is not read ahead");
            return;
        }
    }
}

/// Listens again at the record of the mount at `dir`, if that is a kernel-served mount with this number.
pub(super) fn resume(dir: &Path, number: (u32, u32)) -> io::Result<PlacedImage> {
    let absent = || io::Error::from(io::ErrorKind::NotFound);
    let entry = mount_table::find(dir).map_err(io::Error::other)?.ok_or_else(absent)?;
    let record = entry.record().filter(|_| (entry.major, entry.minor) == number).ok_or_else(absent)?;
    Ok(PlacedImage { number, listener: record.listen()?, record })
}

/// Removes `record` at the end of its process, unless the mount is still in the tree. A dead mount is known by it.
pub(super) fn forget(record: &MountRecord, file_number: u64) {
    if !is_mounted(record) {
        record.remove(file_number);
    }
}

fn is_mounted(record: &MountRecord) -> bool {
    let table = mount_table::table().unwrap_or_default();
    table.iter().any(|entry| entry.record().as_ref() == Some(record))
}

fn prune_records() {
    let Ok(table) = mount_table::table() else { return };
    mount_record::prune(|record| table.iter().any(|entry| entry.record().as_ref() == Some(record)));
}

/// Makes an EROFS mount of `file` that is in no tree.
fn detached_erofs(file: &OwnedFd, source: &str, flags: MountFlags) -> io::Result<OwnedFd> {
    let (target, source) = (format!("/proc/self/fd/{}", file.as_raw_fd()), source.to_owned());
    // The kernel opens the source as a path and shows it in the mount table. A relative path that begins in a
    // directory of its own shows the reference. The working directory is that of a thread alone.
    let working = std::thread::Builder::new().name("source".into()).spawn(move || {
        unshare(CloneFlags::CLONE_FS)?;
        let room = SourceRoom::create()?;
        std::env::set_current_dir(&room.0)?;
        if let Some(parent) = Path::new(&source).parent() {
            fs::create_dir_all(parent)?;
        }
        std::os::unix::fs::symlink(&target, &source)?;
        mount_source(&source, flags)
    })?;
    working.join().map_err(|_| io::Error::other("the thread that mounts ended early"))?
}

fn mount_source(source: &str, flags: MountFlags) -> io::Result<OwnedFd> {
    let before = erofs_readaheads();
    let context = fsopen(EROFS_TYPE, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", source)?;
    fsconfig_set_flag(context.as_fd(), "ro")?;
    fsconfig_create(context.as_fd())?;
    let mut denied = MountAttrFlags::MOUNT_ATTR_RDONLY;
    denied.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !flags.suid);
    denied.set(MountAttrFlags::MOUNT_ATTR_NODEV, !flags.dev);
    denied.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, flags.noexec);
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, denied)?;
    // The kernel does not report which of them is that of this mount. With another one beside it, both are raised.
    for new in erofs_readaheads().into_iter().filter(|found| !before.contains(found)) {
        if let Err(error) = fs::write(new.join("read_ahead_kb"), READAHEAD_KIB.to_string()) {
            tracing::debug!(%error, "readahead stays at the kernel's default");
        }
    }
    Ok(mount)
}

/// Directories with the readahead of every EROFS mount of a file.
fn erofs_readaheads() -> Vec<PathBuf> {
    let listed = fs::read_dir(BDI_DIRECTORY).into_iter().flatten().flatten();
    let names = listed.filter(|entry| entry.file_name().to_string_lossy().starts_with(EROFS_TYPE));
    names.map(|entry| entry.path()).collect()
}

/// A directory for the source of one mount. Removed on drop: the mount table keeps the name.
struct SourceRoom(PathBuf);

impl SourceRoom {
    fn create() -> io::Result<Self> {
        let path = Path::new(RECORD_DIRECTORY).join(format!(".source-{}", std::process::id()));
        match fs::remove_dir_all(&path) {
            // Left by a process with the same number.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for SourceRoom {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// The source of a mount of `reference`: the reference itself, if it can be a relative path.
fn source_name(reference: &str) -> String {
    let relative = match reference.starts_with('/') {
        true => format!(".{reference}"),
        false => reference.to_owned(),
    };
    let relative = relative.trim_end_matches('/');
    let fits = |part: &str| part != ".." && part.len() <= MAX_NAME_BYTES;
    let ends_in_name = relative.rsplit('/').next().is_some_and(|last| !matches!(last, "" | "."));
    let is_path = ends_in_name && relative.len() <= MAX_SOURCE_BYTES && relative.split('/').all(fits);
    if is_path && !relative.contains('\0') { relative.to_owned() } else { PLAIN_SOURCE.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_the_reference_and_leads_nowhere_else() {
        for same in ["ghcr.io/a/b:v1", "oci:/srv/layout:v1", "https://host/a.tar", "a@sha256:12"] {
            assert_eq!(source_name(same), same);
        }
        assert_eq!(source_name("/srv/archive.tar"), "./srv/archive.tar");
        assert_eq!(source_name("./layout/"), "./layout");
        for other in ["../layout:v1", "oci:/a/../b", "", "/", ".", "a/.", &"x".repeat(256), "a\0b"] {
            assert_eq!(source_name(other), PLAIN_SOURCE, "{other:?}");
        }
    }

    #[test]
    fn kernels_before_mounts_of_files_are_known_by_their_release() {
        assert_eq!(version("6.12.0-1-cloud"), Some((6, 12)));
        assert!(version("6.11.9").unwrap() < FIRST_KERNEL && version("7.0").unwrap() > FIRST_KERNEL);
        assert_eq!(version("odd"), None);
    }
}
