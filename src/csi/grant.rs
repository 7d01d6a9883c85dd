//! The registry's word on a volume: whether a caller's login may see the image now.
//!
//! Mounts nothing and keeps nothing. The idea: what one pod's login has fetched lies in a cache that all pods share, and a digest
//! is no secret; so before a volume appears its registry is asked once, with the login that the volume came with.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::error::CsiError;
use crate::oci::{Reference, Selector};
use crate::registry::{Registry, RegistryError};
use crate::source::Location;

/// How long a registry may take to say it. kubelet gives up after two minutes, and the mount still has to be made.
const GRANT_TIMEOUT: Duration = Duration::from_secs(60);

/// What happens with an image in the cache whose registry does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// It is not shown: the right to see it is not known.
    Refuse,
    /// It is shown to every pod that names its digest.
    Show,
}

/// Makes the client of a volume: as its mount makes one, with this credential file.
pub type MakeClient = dyn Fn(Option<&Path>) -> Result<Registry, String> + Send + Sync;

/// How the client of a volume is made, and how its errors are worded.
#[derive(Clone)]
pub struct Clients {
    /// Makes one.
    pub make: Arc<MakeClient>,
    /// The exit code and the message of a mount that meets an error.
    pub explain: fn(RegistryError) -> (u8, String),
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clients(..)")
    }
}

/// The repository that a volume names. It was parsed when the request came.
pub(super) fn named(reference: &str) -> Result<Reference, CsiError> {
    match reference.parse::<Location>() {
        Ok(Location::Registry(reference)) => Ok(reference),
        _ => Err(CsiError::Invalid(format!("{reference:?} is not in a registry"))),
    }
}

/// Asks the registry of a reference whether the holder of a credential file may see it.
pub(super) async fn ask(
    clients: &Clients,
    policy: Unreachable,
    reference: &str,
    authfile: Option<&Path>,
) -> Result<(), CsiError> {
    let reference = named(reference)?;
    let registry = (clients.make)(authfile).map_err(CsiError::Internal)?;
    let asked = async {
        let reference = registry.expand(&reference)?;
        let selector = reference.selector();
        match (registry.head(&reference, &selector).await, &selector) {
            (Ok(_), _) => Ok(()),
            // A digest may be that of a blob.
            (Err(error), Selector::Digest(digest)) if error.is_no_document() => {
                registry.blob_size(&reference, digest).await.map(drop).map_err(|_| error)
            }
            (Err(error), _) => Err(error),
        }
    };
    let error = match tokio::time::timeout(GRANT_TIMEOUT, asked).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => Some(error),
        Err(_) => None,
    };
    let is_unanswered = error.as_ref().is_none_or(RegistryError::is_unanswered);
    if is_unanswered && policy == Unreachable::Show && reference.digest().is_some() {
        tracing::warn!(%reference, "its registry does not answer, the cache decides");
        return Ok(());
    }
    match error {
        Some(error) => {
            let (exit, said) = (clients.explain)(error);
            Err(CsiError::Mount { exit: Some(exit.into()), said: format!("{reference}: {said}") })
        }
        None => Err(CsiError::Late(format!(
            "{reference}: its registry did not answer in {} s",
            GRANT_TIMEOUT.as_secs()
        ))),
    }
}
