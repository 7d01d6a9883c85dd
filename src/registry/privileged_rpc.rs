//! RPC to the privileged process: credential helpers and DNS.
//!
//! A process that has dropped its privileges can neither run a helper nor resolve a name. Each request has a socket
//! of its own, so a slow one delays no other. The privileged process is this same program, and accepts requests from
//! this process only.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::helper;
use super::redact::RedactedSecret;
use super::user_credential::UserCredential;

/// Passes one end of a socket to the privileged process.
type RpcStart = fn(OwnedFd) -> std::io::Result<()>;

/// Set once, when this process drops its privileges.
static ELSEWHERE: OnceLock<RpcStart> = OnceLock::new();

/// Time limit for a response: that of a helper, and the round trip.
const PRIVILEGED_TIMEOUT: Duration = helper::HELPER_TIMEOUT.saturating_add(Duration::from_secs(5));
/// The longest request, in bytes.
const MAX_QUESTION: u64 = 64 * 1024;
/// The longest response, in bytes: JSON may take six bytes for one byte of a helper's output.
const MAX_ANSWER_BYTES: u64 = 6 * helper::MAX_HELPER_ANSWER_BYTES;
/// The most addresses returned for one name.
const MAX_ADDRESSES: usize = 64;

#[derive(Serialize, Deserialize)]
enum RpcQuestion {
    Credential { helper: String, server: String },
    Addresses { host: String },
}

#[derive(Serialize, Deserialize)]
enum RpcAnswer {
    Credential { user: String, secret: String },
    Nothing,
    Addresses(Vec<IpAddr>),
    Failed(String),
}

/// Sends helper runs and DNS lookups from now on to the process that `start` passes a socket to. That process answers
/// with [`serve_elsewhere`].
pub fn work_elsewhere(start: RpcStart) {
    // A second call would set the same function.
    ELSEWHERE.set(start).ok();
}

/// Answers one request from a socket.
pub fn serve_elsewhere(mut socket: UnixStream) -> std::io::Result<()> {
    let mut question = Vec::new();
    (&socket).take(MAX_QUESTION).read_to_end(&mut question)?;
    let told = match serde_json::from_slice::<RpcQuestion>(&question) {
        Ok(RpcQuestion::Credential { helper, server }) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            match runtime.block_on(helper::run_here(&helper, &server)) {
                Ok(Some(found)) => {
                    RpcAnswer::Credential { user: found.user, secret: found.secret.expose().to_owned() }
                }
                Ok(None) => RpcAnswer::Nothing,
                Err(reason) => RpcAnswer::Failed(reason),
            }
        }
        Ok(RpcQuestion::Addresses { host }) => match (host.as_str(), 0).to_socket_addrs() {
            Ok(found) => RpcAnswer::Addresses(found.map(|found| found.ip()).take(MAX_ADDRESSES).collect()),
            Err(error) => RpcAnswer::Failed(error.to_string()),
        },
        Err(error) => RpcAnswer::Failed(error.to_string()),
    };
    socket.write_all(&serde_json::to_vec(&told)?)
}

/// The credential of the helper `name` for `server`; `None` if this process runs helpers itself.
pub(super) async fn credential(name: &str, server: &str) -> Option<Result<Option<UserCredential>, String>> {
    let start = ELSEWHERE.get()?;
    let asked = RpcQuestion::Credential { helper: name.to_owned(), server: server.to_owned() };
    Some(match ask(*start, &asked).await {
        Ok(RpcAnswer::Credential { user, secret }) => {
            Ok(Some(UserCredential { user, secret: RedactedSecret::new(secret) }))
        }
        Ok(RpcAnswer::Nothing) => Ok(None),
        Ok(RpcAnswer::Failed(reason)) | Err(reason) => Err(reason),
        Ok(RpcAnswer::Addresses(_)) => Err(NO_ANSWER.into()),
    })
}

/// The addresses of `host`; `None` if this process resolves names itself.
pub(super) async fn addresses(host: &str) -> Option<Result<Vec<IpAddr>, String>> {
    let start = ELSEWHERE.get()?;
    Some(match ask(*start, &RpcQuestion::Addresses { host: host.to_owned() }).await {
        Ok(RpcAnswer::Addresses(found)) => Ok(found),
        Ok(RpcAnswer::Failed(reason)) | Err(reason) => Err(reason),
        Ok(RpcAnswer::Credential { .. } | RpcAnswer::Nothing) => Err(NO_ANSWER.into()),
    })
}

const NO_ANSWER: &str = "the monitor of the mount did not answer";

async fn ask(start: RpcStart, question: &RpcQuestion) -> Result<RpcAnswer, String> {
    let exchange = async {
        let (ours, theirs) = UnixStream::pair()?;
        // The other process may be busy unmounting, which takes a moment.
        tokio::task::spawn_blocking(move || start(theirs.into())).await.map_err(std::io::Error::other)??;
        ours.set_nonblocking(true)?;
        let mut ours = tokio::net::UnixStream::from_std(ours)?;
        ours.write_all(&serde_json::to_vec(question)?).await?;
        ours.shutdown().await?;
        let mut answer = Vec::new();
        ours.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = match tokio::time::timeout(PRIVILEGED_TIMEOUT, exchange).await {
        Ok(answer) => answer.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no answer in {} ms", PRIVILEGED_TIMEOUT.as_millis())),
    };
    serde_json::from_slice(&answer).map_err(|_| NO_ANSWER.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_resolved_over_a_socket_and_a_name_that_is_none_is_an_error() {
        fn start(socket: OwnedFd) -> std::io::Result<()> {
            std::thread::spawn(move || serve_elsewhere(socket.into()).ok());
            Ok(())
        }
        let addresses =
            async |host: &str| match ask(start, &RpcQuestion::Addresses { host: host.into() }).await {
                Ok(RpcAnswer::Addresses(found)) => Ok(found),
                Ok(RpcAnswer::Failed(reason)) | Err(reason) => Err(reason),
                Ok(_) => Err("another answer".into()),
            };
        assert_eq!(addresses("127.0.0.7").await, Ok(vec!["127.0.0.7".parse().unwrap()]));
        assert!(addresses("no such name").await.is_err());
    }

    #[tokio::test]
    async fn silent_rpc_peer_is_an_error_and_no_panic() {
        let question = RpcQuestion::Addresses { host: "x".into() };
        fn hangs_up(socket: OwnedFd) -> std::io::Result<()> {
            drop(socket);
            Ok(())
        }
        assert!(ask(hangs_up, &question).await.is_err());
        fn refuses(_: OwnedFd) -> std::io::Result<()> {
            Err(std::io::ErrorKind::NotConnected.into())
        }
        assert!(ask(refuses, &question).await.is_err());
    }
}
