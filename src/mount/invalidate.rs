//! Page-cache invalidation after a digest mismatch.
//!
//! Decides nothing about bytes: the cache reports which blob is poisoned, and the views list the files that show it.
//! Reads that reach this process fail by then. Pages that the kernel cached before are invalidated here, so the next
//! read reaches this process.

use std::sync::{Arc, Weak};

use fuser::Notifier;
use tokio::runtime::Handle;
use tokio::sync::broadcast::error::RecvError;

use crate::oci::Digest;
use crate::view::MountNamespace;

use super::attributes::number;

/// The end of a session: `None` while it runs, then its result.
pub(super) type SessionEnd = tokio::sync::watch::Receiver<Option<Result<(), String>>>;

/// Invalidates pages of poisoned blobs until the mount has ended.
pub(super) fn listen(
    namespace: &Arc<MountNamespace>,
    notifier: Notifier,
    mut ended: SessionEnd,
    runtime: &Handle,
) {
    let Some(mut news) = namespace.family().distrusted() else { return };
    let (namespace, notifier) = (Arc::downgrade(namespace), Arc::new(notifier));
    runtime.spawn(async move {
        loop {
            let heard = tokio::select! {
                heard = news.recv() => heard,
                _ = ended.wait_for(Option::is_some) => return,
            };
            match heard {
                Ok(blob) => take_back(&namespace, &notifier, vec![blob]),
                Err(RecvError::Lagged(_)) => {
                    // The lagged digests are lost. Invalidating every blob costs only re-reading.
                    let all = namespace.upgrade().map(|namespace| namespace.family().blobs());
                    take_back(&namespace, &notifier, all.unwrap_or_default());
                }
                Err(RecvError::Closed) => return,
            }
        }
    });
}

/// Runs on a thread of its own that is never joined. The kernel completes an invalidation only when no page of the
/// file is being read, and such a read may be waiting for a reply of this process.
fn take_back(namespace: &Weak<MountNamespace>, notifier: &Arc<Notifier>, blobs: Vec<Digest>) {
    let (namespace, notifier) = (namespace.clone(), notifier.clone());
    let work = move || {
        let Some(namespace) = namespace.upgrade() else { return };
        for blob in blobs {
            let nodes = namespace.shown_of(&blob);
            tracing::error!(
                digest = %blob,
                files = nodes.len(),
                "wrong bytes may have been read; invalidating the kernel's pages of these files"
            );
            for node in nodes {
                let inode = number(&namespace, node);
                if let Err(error) = notifier.inval_inode(inode, 0, 0) {
                    tracing::warn!(inode = inode.0, %error, "cannot invalidate the kernel's pages of a file");
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("distrust".into()).spawn(work) {
        tracing::error!(%error, "no thread to invalidate the kernel's pages");
    }
}
