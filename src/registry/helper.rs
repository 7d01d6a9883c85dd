//! Credential helpers: programs named `docker-credential-NAME` that store credentials outside of files.
//!
//! A helper is an external program in the path of a read. So it has a time limit and a bounded answer, and it is
//! killed if the future is dropped.
//! Protocol: docker-credential-helpers README (`get`, the server on stdin, JSON on stdout).

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::oci::go_json;
use crate::sandbox::PRIVATE_VARIABLES;

use super::RegistryError;
use super::redact::{RedactedSecret, sanitised};
use super::user_credential::UserCredential;

/// Time limit for a helper; some of them ask a cloud service.
pub(super) const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer, in bytes.
pub(super) const MAX_HELPER_ANSWER_BYTES: u64 = 64 * 1024;
/// The most of a helper's standard error that is used, in bytes.
const MAX_COMPLAINT: usize = 4 * 1024;
/// Time limit for standard error to close once the helper has ended.
const HELPER_STDERR_TIMEOUT: Duration = Duration::from_millis(500);
/// The message of helpers without a credential (docker-credential-helpers, credentials/error.go).
const NOT_FOUND_MESSAGE: &str = "credentials not found";

/// Runs the helper as a child of this process.
pub(super) async fn run_here(name: &str, server: &str) -> Result<Option<UserCredential>, String> {
    // A name with a slash would run a program outside of the search path.
    if name.contains(['/', '\0']) {
        return Err("not the name of a helper".into());
    }
    ask_program(&format!("docker-credential-{name}"), server, HELPER_TIMEOUT).await
}

/// The error of a helper; `place` is the file that names it.
pub(super) fn failure(program: &str, place: &str, reason: &str) -> RegistryError {
    RegistryError::Helper { program: sanitised(program), place: place.to_owned(), reason: sanitised(reason) }
}

async fn ask_program(program: &str, server: &str, limit: Duration) -> Result<Option<UserCredential>, String> {
    let HelperOutcome { success, answer, complaint } =
        match tokio::time::timeout(limit, run(program, server)).await {
            Ok(result) => result.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("no answer in {} ms", limit.as_millis())),
        };
    if answer.len() as u64 > MAX_HELPER_ANSWER_BYTES {
        return Err(format!("its answer is longer than {MAX_HELPER_ANSWER_BYTES} bytes"));
    }
    if !success {
        // On failure stdout holds the message, not the secret; many helpers explain the failure on standard error.
        let words = [answer, complaint].map(|words| String::from_utf8_lossy(&words).trim().to_owned());
        let message = words.iter().filter(|words| !words.is_empty()).cloned().collect::<Vec<_>>().join("; ");
        return match message {
            message if message.contains(NOT_FOUND_MESSAGE) => Ok(None),
            message if message.is_empty() => Err("it failed without a message".into()),
            message => Err(message),
        };
    }
    let (user, secret) = parse(&answer).ok_or("its answer is not a credential")?;
    if !complaint.is_empty() {
        let complaint = sanitised(&String::from_utf8_lossy(&complaint));
        tracing::info!(program, complaint, "message of the credential helper");
    }
    Ok((!secret.is_empty()).then(|| UserCredential { user, secret: RedactedSecret::new(secret) }))
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    secret: String,
}

/// User and secret of an answer.
fn parse(answer: &[u8]) -> Option<(String, String)> {
    let HelperAnswer { username, secret } = go_json::answer(answer).ok()?;
    Some((username, secret))
}

/// The result of a helper's run.
struct HelperOutcome {
    success: bool,
    /// Standard output, at most one byte more than the limit.
    answer: Vec<u8>,
    /// The beginning of standard error.
    complaint: Vec<u8>,
}

/// Reads to the end, so that the writer does not block, and returns the beginning.
async fn beginning(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let room = MAX_COMPLAINT - kept.len();
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
    kept
}

/// Runs the program to its end.
async fn run(program: &str, server: &str) -> std::io::Result<HelperOutcome> {
    let mut command = Command::new(program);
    PRIVATE_VARIABLES.iter().for_each(|variable| {
        command.env_remove(variable);
    });
    let mut child = command
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let complaint = child.stderr.take().map(|stderr| tokio::spawn(beginning(stderr)));
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(server.as_bytes()).await {
            // A helper may ignore its input.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error),
            _ => drop(stdin),
        }
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_HELPER_ANSWER_BYTES + 1).read_to_end(&mut answer).await?;
    }
    if answer.len() as u64 > MAX_HELPER_ANSWER_BYTES {
        child.kill().await?;
        return Ok(HelperOutcome { success: false, answer, complaint: Vec::new() });
    }
    let success = child.wait().await?.success();
    // A child of the helper may hold standard error open.
    let complaint = match complaint {
        Some(complaint) => {
            tokio::time::timeout(HELPER_STDERR_TIMEOUT, complaint).await.ok().and_then(Result::ok)
        }
        None => None,
    };
    Ok(HelperOutcome { success, answer, complaint: complaint.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a helper with this body.
    async fn with_script(body: &str) -> Result<Option<UserCredential>, RegistryError> {
        limited(body, HELPER_TIMEOUT).await
    }

    async fn limited(body: &str, limit: Duration) -> Result<Option<UserCredential>, RegistryError> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("docker-credential-test");
        // Written by another process: a child that another test forks would hold the script open for writing (ETXTBSY).
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\"; chmod 700 \"$0\"";
        let mut writer = std::process::Command::new("sh");
        assert!(writer.args(["-c", write]).arg(&program).arg(body).status().unwrap().success());
        let program = program.to_str().unwrap();
        let answer = ask_program(program, "r.example", limit).await;
        answer.map_err(|reason| failure(program, "config.json", &reason))
    }

    #[tokio::test]
    async fn a_helper_gets_the_server_and_gives_a_credential() {
        let body = r#"[ "$1" = get ] || exit 1; read server; printf '{"ServerURL":"x","Username":"u","Secret":"%s!"}' "$server""#;
        let found = with_script(body).await.unwrap().unwrap();
        assert_eq!((found.user.as_str(), found.secret.expose()), ("u", "r.example!"));
    }

    #[tokio::test]
    async fn an_answer_is_the_first_value_with_names_in_any_case() {
        for body in [
            r#"echo '{"username":"u","SECRET":"s"}'"#,
            r#"echo '{"Username":"u","Secret":"s"}'; echo 'A new version is available'"#,
            r#"echo warning >&2; printf '{\r\n "Username": "u",\r\n "Secret": "s"\r\n}\r\n'"#,
        ] {
            let found = with_script(body).await.unwrap().unwrap();
            assert_eq!((found.user.as_str(), found.secret.expose()), ("u", "s"), "{body}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_has_nothing_is_no_error() {
        let found = with_script("echo credentials not found in native keychain; exit 1").await.unwrap();
        assert_eq!(found, None);
    }

    #[tokio::test]
    async fn a_helper_that_fails_or_hangs_or_babbles_is_an_error() {
        for (body, reason) in [
            ("echo locked; exit 1", "locked"),
            ("echo run aws sso login >&2; exit 1", "aws sso login"),
            ("head -c 100000 /dev/zero >&2; echo locked; exit 1", "locked"),
            ("exit 1", "without a message"),
            ("echo not json", "not a credential"),
            ("head -c 100000 /dev/zero", "longer than"),
        ] {
            let error = with_script(body).await.unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("config.json"), "{body}: {error}");
        }
        let error = limited("sleep 600", Duration::from_millis(300)).await.unwrap_err().to_string();
        assert!(error.contains("no answer in 300 ms") && error.contains("config.json"), "{error}");
    }
}
