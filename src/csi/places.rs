//! Places for mounts that are being made: a share for each registry in each namespace.
//!
//! Starts nothing. The idea: a mount whose registry is slow holds its place for as long as it is waited for. A
//! namespace and a registry have a share each, and a wait before anything is started holds no place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::CsiError;

/// Mounts of one registry for one namespace that are made at once: a pod of a handful of volumes starts in one go.
const PER_SHARE: usize = 4;
/// Mounts for one namespace that are made at once.
const PER_NAMESPACE: usize = 16;
/// Mounts that are made at once: processes of about 10 MiB.
pub(super) const PER_NODE: usize = 64;

/// A namespace, or a registry for a namespace.
type ShareKey = (String, Option<String>);

/// The places of a node.
pub(super) struct Places {
    /// By namespace, and by namespace with registry; only shares that are held or waited for.
    shares: Mutex<HashMap<ShareKey, Weak<Semaphore>>>,
    node: Arc<Semaphore>,
}

/// A place, given back when it is dropped.
pub(super) struct MountPlace {
    _permits: [OwnedSemaphorePermit; 3],
    /// A share is there for as long as one of its places is held.
    _shares: [Arc<Semaphore>; 2],
}

impl Default for Places {
    fn default() -> Self {
        Self { shares: Mutex::default(), node: Arc::new(Semaphore::new(PER_NODE)) }
    }
}

impl Places {
    /// Waits for a place. The narrowest share comes first: who waits for it holds no wider one.
    pub(super) async fn take(&self, namespace: &str, registry: &str) -> Result<MountPlace, CsiError> {
        let share = self.share((namespace.to_owned(), Some(registry.to_owned())), PER_SHARE);
        let own = permit(&share).await?;
        let space = self.share((namespace.to_owned(), None), PER_NAMESPACE);
        let wider = permit(&space).await?;
        let widest = permit(&self.node).await?;
        Ok(MountPlace { _permits: [own, wider, widest], _shares: [share, space] })
    }

    fn share(&self, key: (String, Option<String>), size: usize) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
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
        let places = Places::default();
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
