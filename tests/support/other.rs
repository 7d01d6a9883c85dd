//! Ordinary user: runs ocifs without root.

use std::path::PathBuf;
use std::process::Command;

use crate::process::{Finished, run};
use crate::scratch::Scratch;
use crate::site::copy_binary;

/// Runs the binary as somebody who is not root, or as root of a namespace of users, in a public directory.
pub(crate) struct Other {
    /// A directory that everybody can look into.
    pub(crate) room: Scratch,
    /// Their home.
    pub(crate) home: PathBuf,
    /// A directory of theirs to mount on.
    pub(crate) dir: PathBuf,
}

impl Other {
    /// A new one.
    pub(crate) fn new() -> Self {
        let room = Scratch::public();
        copy_binary(&room.join("ocifs"));
        let (home, dir) = (room.subdir("home"), room.subdir("mnt"));
        for owned in [&home, &dir] {
            std::os::unix::fs::chown(owned, Some(65_534), Some(65_534)).unwrap();
        }
        Self { room, home, dir }
    }

    /// A shell script as that user, with the binary as $1 and the mount point as $2.
    pub(crate) fn runs(&self, namespace: &[&str], script: &str, more: &[&str]) -> Finished {
        // The device is for root alone on some machines; in this namespace it is for everybody.
        let device = self.room.join("fuse");
        let open = "test -e $0 || mknod -m 666 $0 c 10 229; mount --bind $0 /dev/fuse; exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-euc", open]).arg(device).arg("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).args(namespace);
        command.args(["bash", "-euc", script, "sh"]).arg(self.room.join("ocifs")).arg(&self.dir).args(more);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", &self.home);
        run(command.env("OCIFS_LOG", "ocifs=info").current_dir("/"))
    }
}
