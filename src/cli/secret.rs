//! Passing of the password from a command line to a long-running process.
//!
//! The arguments and the environment of a process can be read in /proc as long as it lives. So the process is started
//! anew without the password. It gets the password as its standard input, reads that to the end, and closes it.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use crate::sandbox::{CREDENTIALS_VARIABLE, STDIN_CREDENTIALS_VARIABLE};
use crate::source::ImageLocation;

use super::exit::CliError;
use super::threads;

/// Most bytes of user and password. A pipe holds as much without a reader (pipe(7)), so that writing does not block.
const MAX_CREDENTIAL_BYTES: u64 = 4096;

/// The standard input of the long-running process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecretInput {
    /// Empty, or the password.
    Ours,
    /// The archive to mount. A password cannot be passed then.
    Archive,
}

impl SecretInput {
    /// The standard input of a mount of `location`.
    pub(super) fn of(location: &ImageLocation) -> Self {
        if location.is_input() { SecretInput::Archive } else { SecretInput::Ours }
    }
}

/// This program with these arguments (without its name) for a long-running process: the password is moved to standard
/// input, and the allocator is limited.
pub(super) fn command(arguments: &[OsString], input: SecretInput) -> Result<Command, CliError> {
    let (kept, given) = split(arguments);
    let given = given.map(OsStr::to_owned).or_else(|| std::env::var_os(CREDENTIALS_VARIABLE));
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("ocifs")
        .args(kept)
        .env_remove(CREDENTIALS_VARIABLE)
        .env_remove(STDIN_CREDENTIALS_VARIABLE)
        .envs(threads::heap_limit())
        .stdin(Stdio::null());
    if input == SecretInput::Archive {
        command.stdin(Stdio::inherit());
    } else if let Some(creds) = given {
        command.env(STDIN_CREDENTIALS_VARIABLE, "1").stdin(filled(&creds)?);
    }
    Ok(command)
}

/// Executes the same program as [`command`] does. Returns only if that failed.
pub(super) fn become_clean(argv: &[OsString], input: SecretInput) -> CliError {
    match command(argv.get(1..).unwrap_or_default(), input) {
        Ok(mut command) => CliError::local("executing the program again", &command.exec()),
        Err(failure) => failure,
    }
}

/// The password passed to this process; `None` without one. Standard input is empty afterwards.
pub(super) fn take() -> Result<Option<String>, CliError> {
    if std::env::var_os(STDIN_CREDENTIALS_VARIABLE).is_none() {
        return Ok(None);
    }
    let failed = |error: std::io::Error| CliError::local("reading the password", &error);
    let mut creds = String::new();
    std::io::stdin().lock().take(MAX_CREDENTIAL_BYTES).read_to_string(&mut creds).map_err(failed)?;
    let null = OpenOptions::new().read(true).open("/dev/null").map_err(failed)?;
    nix::unistd::dup2_stdin(&null).map_err(|errno| failed(errno.into()))?;
    Ok(Some(creds))
}

/// Keeps passwords and tokens out of core dumps, and keeps other processes of the same user out of this one's memory.
pub(super) fn guard_memory() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::debug!(%error, "core dumps stay possible");
    }
}

fn filled(creds: &OsStr) -> Result<Stdio, CliError> {
    if creds.len() as u64 > MAX_CREDENTIAL_BYTES {
        return Err(CliError::usage(format!("--creds is longer than {MAX_CREDENTIAL_BYTES} bytes")));
    }
    let failed = |error: std::io::Error| CliError::local("handing the password over", &error);
    let (reader, mut writer) = std::io::pipe().map_err(failed)?;
    writer.write_all(creds.as_bytes()).map_err(failed)?;
    Ok(reader.into())
}

/// The arguments without the password, and the password.
pub(super) fn split(arguments: &[OsString]) -> (Vec<&OsStr>, Option<&OsStr>) {
    let (mut kept, mut creds) = (Vec::new(), None);
    let mut words = arguments.iter().map(OsString::as_os_str);
    while let Some(word) = words.next() {
        if word == "--" {
            // The rest belongs to a command.
            kept.push(word);
            kept.extend(words);
            break;
        } else if word == "--creds" {
            creds = words.next();
        } else if let Some(value) = word.as_bytes().strip_prefix(b"--creds=") {
            creds = Some(OsStr::from_bytes(value));
        } else {
            kept.push(word);
        }
    }
    (kept, creds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_leaves_the_arguments_in_both_forms_and_the_last_one_counts() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let argv = words("mount --creds a:b --creds=c:d=e ref dir");
        let (kept, creds) = split(&argv);
        assert_eq!(kept, ["mount", "ref", "dir"]);
        assert_eq!(creds, Some(OsStr::new("c:d=e")));
        assert_eq!(split(&words("mount ref dir")).1, None);
        let argv = words("run ref -- tool --creds a:b");
        assert_eq!(split(&argv), (argv.iter().map(OsString::as_os_str).collect(), None));
    }

    #[test]
    fn a_password_that_a_pipe_does_not_hold_is_refused() {
        assert!(filled(OsStr::new(&"x".repeat(MAX_CREDENTIAL_BYTES as usize))).is_ok());
        let failure = filled(OsStr::new(&"x".repeat(MAX_CREDENTIAL_BYTES as usize + 1))).unwrap_err();
        assert!(failure.to_string().contains("4096 bytes"));
    }

    #[test]
    fn memory_that_is_guarded_is_not_dumped() {
        guard_memory();
        assert_eq!(nix::sys::prctl::get_dumpable(), Ok(false));
        nix::sys::prctl::set_dumpable(true).unwrap();
    }
}
