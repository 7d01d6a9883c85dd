//! Status of a kernel-served mount, which no extended attribute of its root can hold: it changes.
//!
//! Every connection gets the packed status and nothing else. The socket is closed with the session, so that a dead
//! mount is known by a refused connection.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::runtime::Handle;

use crate::view::{MountNamespace, STATUS};

use super::invalidate::SessionEnd;

/// Pause after a failed accept.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Answers every connection with the status of `namespace` until the session has ended.
pub(super) fn answer(
    listener: UnixListener,
    namespace: &Arc<MountNamespace>,
    mut ended: SessionEnd,
    runtime: &Handle,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let _entered = runtime.enter();
    let listener = tokio::net::UnixListener::from_std(listener)?;
    // Nothing else holds the namespace: the image that the kernel reads holds its layers alone.
    let namespace = Arc::clone(namespace);
    runtime.spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = ended.wait_for(Option::is_some) => return,
            };
            match accepted {
                Ok((socket, _)) => drop(tokio::spawn(send(socket, namespace.clone()))),
                // Mostly for too many open files.
                Err(_) => tokio::time::sleep(ACCEPT_RETRY_DELAY).await,
            }
        }
    });
    Ok(())
}

async fn send(mut socket: UnixStream, namespace: Arc<MountNamespace>) {
    let status = namespace.xattr(namespace.root(), STATUS);
    // The peer may be gone.
    socket.write_all(&status.unwrap_or_default()).await.ok();
    socket.shutdown().await.ok();
}
