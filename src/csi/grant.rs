//! Access check: the registry decides whether a caller's login may see the image.
//!
//! All pods share one cache, and a digest is no secret. So before a volume appears, its registry is asked once, with
//! the login of the volume. Nothing is mounted or stored.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::error::CsiError;
use crate::oci::{ManifestSelector, Reference};
use crate::registry::{RegistryClient, RegistryError};
use crate::source::ImageLocation;

/// Time limit for the registry's answer. kubelet gives up after two minutes, and the mount still has to be made.
const GRANT_TIMEOUT: Duration = Duration::from_secs(60);

/// The policy for a cached image whose registry does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnreachablePolicy {
    /// Refuse the volume: the right to see the image is unknown.
    Refuse,
    /// Show the image to every pod that names its digest.
    Show,
}

/// Makes the client of a volume with this credential file, as the volume's mount makes its own.
pub type MakeClient = dyn Fn(Option<&Path>) -> Result<RegistryClient, String> + Send + Sync;

/// Makes the clients of volumes and words their errors.
#[derive(Clone)]
pub struct VolumeClients {
    /// Makes one client.
    pub make: Arc<MakeClient>,
    /// Maps an error to the exit code and the message of a mount that meets it.
    pub explain: fn(RegistryError) -> (u8, String),
}

impl fmt::Debug for VolumeClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clients(..)")
    }
}

/// The repository of a volume's reference, which was parsed when the request came.
pub(super) fn named(reference: &str) -> Result<Reference, CsiError> {
    match reference.parse::<ImageLocation>() {
        Ok(ImageLocation::Registry(reference)) => Ok(reference),
        _ => Err(CsiError::Invalid(format!("{reference:?} is not in a registry"))),
    }
}

/// Asks the registry of a reference whether the holder of a credential file may see the image.
pub(super) async fn ask(
    clients: &VolumeClients,
    policy: UnreachablePolicy,
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
            // The digest may be that of a blob.
            (Err(error), ManifestSelector::Digest(digest)) if error.is_no_document() => {
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
    if is_unanswered && policy == UnreachablePolicy::Show && reference.digest().is_some() {
        tracing::warn!(%reference, "registry does not answer; showing the cached image");
        return Ok(());
    }
    match error {
        Some(error) => {
            let (exit, message) = (clients.explain)(error);
            Err(CsiError::Mount { exit: Some(exit.into()), message: format!("{reference}: {message}") })
        }
        None => Err(CsiError::Late(format!(
            "{reference}: its registry did not answer in {} s",
            GRANT_TIMEOUT.as_secs()
        ))),
    }
}
