//! Publishing indexes and traces of an image in its repository, for other machines.
//!
//! Only results of verified bytes are published. Each is an artifact whose subject is the image's manifest, so it is
//! found by the mounted digest, whatever the tags.

use bytes::Bytes;

use crate::io::{FaultClass, ReadError, compute};
use crate::layer::{LayerIndex, StreamEncoding};
use crate::oci::published::{self, PublishedManifest};
use crate::oci::{Descriptor, Digest, MANIFEST_TYPE, ManifestSelector, OciError, Reference};
use crate::registry::{RegistryClient, RegistryError};

use super::OpenImage;

/// The repository where artifacts about an image are published.
pub(super) struct IndexPublisher {
    pub(super) registry: RegistryClient,
    pub(super) reference: Reference,
}

/// The index of one layer, ready to be published.
pub struct BuiltIndex {
    /// Digest of the layer.
    pub digest: Digest,
    /// Stored bytes of the layer.
    pub stored: u64,
    /// Encoding of the layer.
    pub encoding: StreamEncoding,
    /// Encoded index.
    pub bytes: Vec<u8>,
}

impl OpenImage {
    /// Builds the index of every archive layer from its own bytes, unless it is cached, and returns all of them.
    pub async fn build_indexes(&self) -> Result<Vec<BuiltIndex>, ReadError> {
        let mut built: Vec<BuiltIndex> = Vec::new();
        for (at, layer) in self.archives() {
            let descriptor = &self.manifest().layers[at];
            if built.iter().any(|other| other.digest == descriptor.digest) {
                continue;
            }
            let index: LayerIndex = layer.own_index().await?;
            let encoding = index.spans.encoding();
            let bytes = compute(move || {
                index
                    .to_bytes()
                    .map_err(|error| ReadError::new(FaultClass::Io, format!("writing the index: {error}")))
            });
            let (digest, stored) = (descriptor.digest.clone(), descriptor.size);
            built.push(BuiltIndex { digest, stored, encoding, bytes: bytes.await? });
        }
        Ok(built)
    }

    /// Publishes indexes of the image; returns the digest of the manifest that lists them.
    pub async fn push_indexes(&self, built: &[BuiltIndex]) -> Result<Digest, ReadError> {
        let of = |index: &BuiltIndex| {
            let layer = self.manifest().layers.iter().find(|layer| layer.digest == index.digest);
            layer.map(|layer| (layer.clone(), index.bytes.clone()))
        };
        // An index of an uncompressed archive would cost more than it saves: its headers can be read in place.
        let worth_it = built.iter().filter(|index| index.encoding != StreamEncoding::Plain);
        let publication = published::publish_indexes(&self.subject(), worth_it.filter_map(of).collect());
        self.publish(publication).await
    }

    /// Publishes a trace of the image; returns the digest of the manifest that holds it.
    pub async fn push_trace(&self, json: Vec<u8>) -> Result<Digest, ReadError> {
        self.publish(published::publish_trace(&self.subject(), json)).await
    }

    /// Fails if artifacts about this image cannot be published; call it before the expensive work.
    pub fn check_publishable(&self) -> Result<(), ReadError> {
        self.publisher().map(|_| ())
    }

    fn publisher(&self) -> Result<&IndexPublisher, ReadError> {
        let publisher = self.publisher.as_ref().filter(|_| self.manifest_bytes().is_some());
        publisher.ok_or_else(|| {
            let message =
                format!("{}: an index can only be published for an image in a registry", self.pinned());
            ReadError::new(FaultClass::Usage, message)
        })
    }

    fn subject(&self) -> Descriptor {
        let written = self.manifest().media_type.as_written();
        let media_type = if written.is_empty() { MANIFEST_TYPE } else { written };
        Descriptor::of(media_type, self.manifest_bytes().map_or(&[], |bytes| bytes))
    }

    async fn publish(&self, publication: Result<PublishedManifest, OciError>) -> Result<Digest, ReadError> {
        let publication =
            publication.map_err(|error| ReadError::caused(error.fault(), "nothing to publish", error))?;
        let IndexPublisher { registry, reference } = self.publisher()?;
        let failed = |error: RegistryError| ReadError::caused(error.fault(), "publishing", error);
        for (digest, bytes) in publication.blobs {
            registry.push_blob(reference, &digest, Bytes::from(bytes)).await.map_err(failed)?;
        }
        let manifest = publication.manifest;
        let selector = ManifestSelector::Digest(manifest.digest.clone());
        registry
            .push_manifest(reference, &selector, manifest.media_type, Bytes::from(manifest.bytes))
            .await
            .map_err(failed)?;
        Ok(manifest.digest)
    }
}
