//! Concurrency limits for mounts that are coming up: one share per namespace and registry.
//!
//! A mount with a slow registry holds its permits for as long as it takes. So each namespace has a share, and each
//! registry within a namespace. The registry check runs before a permit is taken. Nothing is started here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::CsiError;
use crate::io::lock;

/// Concurrent mounts of one registry for one namespace: the handful of volumes of a pod starts at once.
const PER_SHARE: usize = 4;
/// Concurrent mounts for one namespace.
const PER_NAMESPACE: usize = 16;
/// Concurrent mounts on the node: processes of about 10 MiB each.
pub(super) const PER_NODE: usize = 64;

/// A namespace, or a namespace with a registry.
type ShareKey = (String, Option<String>);

/// The permits of a node.
pub(super) struct PlacePool {
    /// By namespace, and by namespace with registry. Holds only shares in use or with waiters.
    shares: Mutex<HashMap<ShareKey, Weak<Semaphore>>>,
    node: Arc<Semaphore>,
}

/// Permits for one mount, released on drop.
pub(super) struct MountPlace {
    _permits: [OwnedSemaphorePermit; 3],
    /// Keeps the shares alive while a permit is held.
    _shares: [Arc<Semaphore>; 2],
}

impl Default for PlacePool {
    fn default() -> Self {
        Self { shares: Mutex::default(), node: Arc::new(Semaphore::new(PER_NODE)) }
    }
}

impl PlacePool {
    /// Waits for permits. The narrowest share comes first, so that a waiter holds no wider one.
    pub(super) async fn take(&self, namespace: &str, registry: &str) -> Result<MountPlace, CsiError> {
        let share = self.share((namespace.to_owned(), Some(registry.to_owned())), PER_SHARE);
        let own = permit(&share).await?;
        let space = self.share((namespace.to_owned(), None), PER_NAMESPACE);
        let wider = permit(&space).await?;
        let widest = permit(&self.node).await?;
        Ok(MountPlace { _permits: [own, wider, widest], _shares: [share, space] })
    }

    fn share(&self, key: (String, Option<String>), size: usize) -> Arc<Semaphore> {
        let mut shares = lock(&self.shares);
        shares.retain(|_, share| share.strong_count() > 0);
        if let Some(share) = shares.get(&key).and_then(Weak::upgrade) {
            return share;
        }
        let share = Arc::new(Semaphore::new(size));
        shares.insert(key, Arc::downgrade(&share));
        share
    }
}

async fn permit(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, CsiError> {
    places.clone().acquire_owned().await.map_err(|error| CsiError::Internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_share_that_is_full_leaves_places_for_every_other_namespace_and_registry() {
        let places = PlacePool::default();
        let taken = |namespace: &str, registry: &str| {
            let (namespace, registry) = (namespace.to_owned(), registry.to_owned());
            places.take(&namespace, &registry).now_or_never().and_then(Result::ok)
        };
        let mut held: Vec<MountPlace> = (0..PER_SHARE).filter_map(|_| taken("a", "slow.example")).collect();
        assert_eq!(held.len(), PER_SHARE);
        assert!(taken("a", "slow.example").is_none());
        assert!(taken("a", "r.example").is_some());
        assert!(taken("b", "slow.example").is_some());
        for number in 0..PER_NAMESPACE {
            held.extend(taken("a", &format!("r{number}.example")));
        }
        assert_eq!(held.len(), PER_NAMESPACE);
        assert!(taken("a", "r.example").is_none());
        assert!(taken("b", "r.example").is_some());
        held.clear();
        assert!(taken("a", "slow.example").is_some());
        drop(taken("c", "x"));
        assert_eq!(
            places.shares.lock().unwrap().values().filter(|share| share.strong_count() > 0).count(),
            0
        );
    }
}
