//! The process of a volume's mount: this same program, started as `ocifs mount`.
//!
//! Each mount runs in a background process of its own, as after a manual start, so it outlives the plugin. Until the
//! mount answers, the process ends with the plugin: a mount without a record would be lost. Passwords travel in
//! files, not in arguments or variables, and every wait has a time limit.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use crate::sandbox::{OWNER_VARIABLE, PRIVATE_VARIABLES, SERVICE_VARIABLES};

use super::error::CsiError;
use super::grant::UnreachablePolicy;
use super::volume::VolumeAttributes;

/// Time limit for a mount to come up. kubelet gives up after two minutes.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(100);
/// Time limit for the rest of stderr once the process has ended.
const STDERR_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest message that is forwarded, in bytes.
const MAX_STDERR_BYTES: u64 = 8 * 1024;

/// Starts mount processes.
pub(super) struct MountStarter {
    /// The program: the plugin's own executable.
    pub(super) program: PathBuf,
    /// Options for every mount.
    pub(super) options: Vec<OsString>,
    /// The policy for repositories whose registry does not answer.
    pub(super) unreachable: UnreachablePolicy,
}

impl MountStarter {
    /// Mounts `reference` at `target`. Returns when the mount answers or has failed.
    pub(super) async fn mount(
        &self,
        reference: &str,
        attributes: &VolumeAttributes,
        authfile: Option<&Path>,
        target: &Path,
    ) -> Result<(), CsiError> {
        let mut command = Command::new(&self.program);
        command.arg0("ocifs").args(arguments(self, reference, attributes, authfile, target));
        for name in PRIVATE_VARIABLES.iter().chain(&SERVICE_VARIABLES) {
            command.env_remove(name);
        }
        // The mount process ends with the plugin unless it has mounted by then.
        command.env(OWNER_VARIABLE, std::process::id().to_string());
        // A process group of its own: Ctrl-C at the plugin's terminal must not end the mounts.
        command.process_group(0).kill_on_drop(true).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(CsiError::file("starting", &self.program))?;
        let output = tokio::spawn(words(child.stderr.take()));
        let Ok(ended) = tokio::time::timeout(MOUNT_TIMEOUT, child.wait()).await else {
            // The background process ends with its parent.
            child.kill().await.map_err(CsiError::file("ending", &self.program))?;
            return Err(CsiError::Late(format!(
                "{reference} was not mounted within {} seconds; is its registry slow?",
                MOUNT_TIMEOUT.as_secs()
            )));
        };
        let status = ended.map_err(CsiError::file("waiting for", &self.program))?;
        if status.success() {
            return Ok(());
        }
        let output = tokio::time::timeout(STDERR_TIMEOUT, output).await;
        let output = output.ok().and_then(Result::ok).unwrap_or_default();
        let message = match message(&output) {
            message if message.is_empty() => format!("mounting {reference} ended with {status}"),
            message => message,
        };
        Err(CsiError::Mount { exit: status.code(), message })
    }
}

fn arguments(
    starter: &MountStarter,
    reference: &str,
    attributes: &VolumeAttributes,
    authfile: Option<&Path>,
    target: &Path,
) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["mount".into()];
    words.extend_from_slice(&starter.options);
    // All pods share one cache, and a digest is no secret.
    let sharing = match starter.unreachable {
        UnreachablePolicy::Refuse => "--share-blobs=proven",
        UnreachablePolicy::Show => "--share-blobs=proven-or-silent",
    };
    words.extend(["--allow-other", "--over-dead", sharing].map(OsString::from));
    let named = [
        ("--view=", &attributes.view),
        ("--subdir=", &attributes.subdir),
        ("--platform=", &attributes.platform),
        ("--kernel=", &attributes.kernel),
    ];
    for (option, value) in named {
        words.extend(value.as_ref().map(|value| format!("{option}{value}").into()));
    }
    if attributes.noexec {
        words.push("--noexec".into());
    }
    if let Some(authfile) = authfile {
        let mut word = OsString::from("--authfile=");
        word.push(authfile);
        words.push(word);
    }
    words.extend(["--".into(), reference.into(), target.into()]);
    words
}

async fn words(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut output = Vec::new();
    if let Some(from) = from {
        // After a read error, the bytes read so far are the message.
        from.take(MAX_STDERR_BYTES).read_to_end(&mut output).await.ok();
    }
    String::from_utf8_lossy(&output).into_owned()
}

/// The message and the hint of a failed command, as one line. Log lines before them are left out.
fn message(output: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for line in output.lines().map(str::trim) {
        match line.strip_prefix("ocifs: ") {
            Some(message) => parts = vec![message],
            None if !parts.is_empty() && !line.is_empty() => parts.push(line),
            None => {}
        }
    }
    if parts.is_empty() {
        parts = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_words_after_their_option_and_names_stand_after_the_last() {
        let attributes = VolumeAttributes {
            reference: "r.example/a:v1".into(),
            view: Some("--rw".into()),
            subdir: Some("a b".into()),
            platform: Some("linux/arm64".into()),
            kernel: Some("on".into()),
            pull_secret: None,
            noexec: true,
        };
        let words = arguments(
            &MountStarter {
                program: PathBuf::new(),
                options: vec!["--cache-dir=/c".into()],
                unreachable: UnreachablePolicy::Refuse,
            },
            "r.example/a@sha256:0",
            &attributes,
            Some(Path::new("/s/config.json")),
            Path::new("/t"),
        );
        let expected = [
            "mount",
            "--cache-dir=/c",
            "--allow-other",
            "--over-dead",
            "--share-blobs=proven",
            "--view=--rw",
            "--subdir=a b",
            "--platform=linux/arm64",
            "--kernel=on",
            "--noexec",
            "--authfile=/s/config.json",
            "--",
            "r.example/a@sha256:0",
            "/t",
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn command_error_is_one_line_without_its_log() {
        let output = "2026 WARN ocifs: x\nocifs: r.example/a: not found\nhint: look again\n";
        assert_eq!(message(output), "r.example/a: not found; hint: look again");
        assert_eq!(message("error: bad\n\nusage: x\n"), "error: bad; usage: x");
        assert_eq!(message(""), "");
    }
}
