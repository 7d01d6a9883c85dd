//! A virtual machine and its monitor. One that never runs shows what qemu does with a drive, without waiting for a
//! system.
//!
//! Never left behind: it is killed on drop, and ends with the test if that is killed. The idea: qemu's own monitor reads
//! from the drive, so what is tested is the block layer that a guest would use.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// No single answer takes so long.
const PATIENCE: Duration = Duration::from_secs(300);

/// A qemu.
pub(crate) struct Machine {
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
    lines: Vec<String>,
    commands: usize,
}

impl Machine {
    /// One whose processor stands still, with a virtio disk from a drive with these options (`file=...,format=...`).
    #[track_caller]
    pub(crate) fn with(drive: &str) -> Self {
        Self::start(&mut command(drive))
    }

    /// What this command starts, which has its monitor on standard input and output.
    #[track_caller]
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("qemu-system-x86_64 and setpriv are installed");
        let stdout = child.stdout.take().expect("it is piped");
        let input = child.stdin.take().expect("it is piped");
        let (send, output) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut machine = Self { child, input, output, lines: Vec::new(), commands: 0 };
        machine.ask("qmp_capabilities", &json!({}));
        machine
    }

    /// Has the drive do what `qemu-io` would (`read -P 7 0 64k`); whether it went well is known at the [`Self::end`].
    #[track_caller]
    pub(crate) fn io(&mut self, what: &str) {
        self.commands += 1;
        self.ask("human-monitor-command", &json!({"command-line": format!("qemu-io disk \"{what}\"")}));
    }

    /// `running`, `io-error`, `shutdown`, ...
    #[track_caller]
    pub(crate) fn status(&mut self) -> String {
        let answer = self.ask("query-status", &json!({}));
        answer["return"]["status"].as_str().expect("a status has a name").to_owned()
    }

    /// Has a machine that stopped go on.
    #[track_caller]
    pub(crate) fn go_on(&mut self) {
        self.ask("cont", &json!({}));
    }

    /// Switches it off; everything that was asked of the drive must have been done, and every pattern been found.
    #[track_caller]
    pub(crate) fn end(mut self) {
        self.ask("quit", &json!({}));
        // The drive's words come when qemu ends, as it prints them into a buffer.
        while let Ok(line) = self.output.recv_timeout(PATIENCE) {
            self.lines.push(line);
        }
        let status = self.child.wait().expect("a child of ours");
        let lines = self.lines.join("\n");
        assert!(status.success(), "qemu ended with {status}: {lines}");
        let done = self.lines.iter().filter(|line| line.contains(" bytes at offset ")).count();
        assert_eq!(done, self.commands, "{lines}");
        assert!(!lines.to_lowercase().contains("failed"), "{lines}");
    }

    #[track_caller]
    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        // In one piece: qemu quits when it has the closing brace, and does not wait for the end of the line.
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.input.write_all(line.as_bytes()).expect("qemu reads its commands");
        loop {
            let line = self.output.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("{command}: {error}: {:?}", self.lines));
            let answer: Value = serde_json::from_str(&line).unwrap_or_default();
            assert!(answer.get("error").is_none(), "{command}: {line}");
            self.lines.push(line);
            if answer.get("return").is_some() {
                return answer;
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The command that starts a machine whose processor stands still.
pub(crate) fn command(drive: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-S", "-accel", "tcg", "-nodefaults"]);
    command.args(["-display", "none", "-qmp", "stdio", "-drive", &format!("if=none,id=disk,{drive}")]);
    command.args(["-device", "virtio-blk-pci,drive=disk"]);
    command
}
