//! Taking back what the kernel keeps of bytes that turned out to be wrong.
//!
//! Decides nothing about bytes: the cache says which blob is not to be believed, the views say which files show it. The idea: every
//! read that comes to us is an error by then, so what is left are pages that the kernel read before; it drops them when it is told,
//! and the next reader comes to us.

use std::sync::{Arc, Weak};

use fuser::Notifier;
use tokio::runtime::Handle;
use tokio::sync::broadcast::error::RecvError;

use crate::oci::Digest;
use crate::view::Namespace;

use super::attributes::number;
use super::session::Ended;

/// Listens until the mount has ended.
pub(super) fn listen(namespace: &Arc<Namespace>, notifier: Notifier, mut ended: Ended, runtime: &Handle) {
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
                    // Which ones are not known any more; taking back too much costs only reading it again.
                    let all = namespace.upgrade().map(|namespace| namespace.family().blobs());
                    take_back(&namespace, &notifier, all.unwrap_or_default());
                }
                Err(RecvError::Closed) => return,
            }
        }
    });
}

/// On a thread of its own, which nobody waits for: the kernel answers only when no page of the file is being read, and the answer to
/// such a read is ours to give.
fn take_back(namespace: &Weak<Namespace>, notifier: &Arc<Notifier>, blobs: Vec<Digest>) {
    let (namespace, notifier) = (namespace.clone(), notifier.clone());
    let work = move || {
        let Some(namespace) = namespace.upgrade() else { return };
        for blob in blobs {
            let nodes = namespace.shown_of(&blob);
            tracing::error!(
                digest = %blob,
                files = nodes.len(),
                "wrong bytes may have been read: what the kernel keeps of these files is taken back"
            );
            for node in nodes {
                let inode = number(&namespace, node);
                if let Err(error) = notifier.inval_inode(inode, 0, 0) {
                    tracing::warn!(inode = inode.0, %error, "the kernel keeps pages of a file");
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("distrust".into()).spawn(work) {
        tracing::error!(%error, "no thread to tell the kernel that it keeps wrong bytes");
    }
}
