//! A containerd of its own, below the directory of a test.
//!
//! Never touches one that runs on the machine, and starts no container. The idea: a root, a state and sockets that nobody else has;
//! images are kept as content, nothing that a test has not named is unpacked, and nothing is collected as garbage.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::process::{CONDITION_TIMEOUT, Finished, becomes_true, run, signal};
use crate::scratch::Scratch;

/// A running containerd.
pub(crate) struct Containerd {
    child: Child,
    socket: PathBuf,
    /// In a short path, because that of a socket has at most 107 bytes.
    _scratch: Scratch,
}

impl Containerd {
    /// Starts one and waits until it answers.
    pub(crate) fn start() -> Self {
        let scratch = Scratch::public();
        let dir = scratch.path().display().to_string();
        let config = format!(
            "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.overlayfs\"]\n\
             [grpc]\n  address = \"{dir}/c\"\n[ttrpc]\n  address = \"{dir}/t\"\n[debug]\n  address = \"{dir}/d\"\n\
             [plugins.\"io.containerd.gc.v1.scheduler\"]\n  schedule_delay = \"24h\"\n"
        );
        let config = scratch.file("config.toml", config);
        let mut command = Command::new("containerd");
        command.arg("-c").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("containerd is installed");
        let this = Self { child, socket: scratch.join("c"), _scratch: scratch };
        let is_up = || this.socket.exists() && this.run(&["version"]).code == Some(0);
        assert!(becomes_true(CONDITION_TIMEOUT, is_up), "containerd does not answer");
        this
    }

    /// Runs `ctr` with these arguments.
    pub(crate) fn run(&self, args: &[&str]) -> Finished {
        // The one snapshotter that works on every file system.
        run(Command::new("ctr")
            .env("CONTAINERD_SNAPSHOTTER", "native")
            .arg("-a")
            .arg(&self.socket)
            .args(args))
    }

    /// Runs `ctr` with these arguments, which must succeed.
    #[track_caller]
    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        self.run(args).ok().text()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        signal(self.child.id(), Signal::SIGKILL);
        self.child.wait().ok();
    }
}
