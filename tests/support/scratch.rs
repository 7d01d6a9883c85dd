//! A directory that a test may fill and mount in, gone when the test ends.
//!
//! Never leaves a mount behind, not even after a panic: a forgotten FUSE mount below it would hang whatever removes the
//! directory. The idea: ask the kernel what is mounted below, unmount it innermost first, lazily if it must be.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A directory below cargo's directory for test files, so that it lies on a disk with xattrs.
pub(crate) struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// An empty directory of its own.
    pub(crate) fn new() -> Self {
        Self::below(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    /// An empty directory that every user can reach, for tests that run as somebody else.
    pub(crate) fn public() -> Self {
        let scratch = Self::below(&std::env::temp_dir());
        fs::set_permissions(scratch.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("a directory of ours");
        scratch
    }

    fn below(parent: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("ocifs-test-").tempdir_in(parent).expect("a directory");
        Self { dir }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path below it, which may or may not exist.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// An existing directory below it.
    pub(crate) fn subdir(&self, name: impl AsRef<Path>) -> PathBuf {
        let dir = self.join(name);
        fs::create_dir_all(&dir).expect("a directory below ours");
        dir
    }

    /// A file below it with these bytes.
    pub(crate) fn file(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, bytes).expect("a file below ours");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut below: Vec<_> = mounts().into_iter().filter(|it| it.dir.starts_with(self.path())).collect();
        below.reverse();
        for mount in below {
            if !umount(&mount.dir, &[]) {
                umount(&mount.dir, &["-l"]);
            }
        }
    }
}

fn umount(dir: &Path, flags: &[&str]) -> bool {
    let mut command = Command::new("umount");
    command.args(flags).arg(dir).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// One line of the kernel's mount table.
#[derive(Clone, Debug)]
pub(crate) struct MountLine {
    /// Where it is mounted.
    pub(crate) dir: PathBuf,
    /// The per-mount options, `ro,nosuid,nodev,...`.
    pub(crate) options: String,
    /// The filesystem type, `fuse.ocifs`.
    pub(crate) fstype: String,
    /// What is mounted.
    pub(crate) source: String,
}

/// What is mounted at exactly `dir`, topmost first.
pub(crate) fn mounted_at(dir: &Path) -> Option<MountLine> {
    mounts().into_iter().rev().find(|it| it.dir == dir)
}

/// The kernel's mount table (proc_pid_mountinfo(5)) as this thread sees it, oldest first.
pub(crate) fn mounts() -> Vec<MountLine> {
    let table = fs::read("/proc/thread-self/mountinfo").expect("the kernel lists mounts");
    let lines = table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| parse(line).expect("a line of mountinfo")).collect()
}

fn parse(line: &[u8]) -> io::Result<MountLine> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let odd = || io::Error::other(String::from_utf8_lossy(line).into_owned());
    let dash = fields.iter().position(|field| *field == b"-").ok_or_else(odd)?;
    let at = |index: usize| fields.get(index).copied().ok_or_else(odd);
    Ok(MountLine {
        dir: PathBuf::from(unescaped(at(4)?)),
        options: String::from_utf8_lossy(at(5)?).into_owned(),
        fstype: String::from_utf8_lossy(at(dash + 1)?).into_owned(),
        source: unescaped(at(dash + 2)?).to_string_lossy().into_owned(),
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescaped(field: &[u8]) -> OsString {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}
