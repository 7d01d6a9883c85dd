//! Publishing indexes and traces of an image in its repository, for other machines.
//!
//! Only results of verified bytes are published. Each is an artifact whose subject is the image's manifest, so it is
//! found by the mounted digest, whatever the tags.

use bytes::Bytes;

use crate::io::{FaultClass, ReadError, compute};
use crate::layer::{LayerIndex, StoredLayer, StreamEncoding};
use crate::oci::published::{self, LAYER_INDEX, PublishedIndex, PublishedManifest, STREAM_INDEX};
use crate::oci::{Descriptor, Digest, MANIFEST_TYPE, ManifestSelector, OciError, Reference};
use crate::registry::{PushOutcome, RegistryClient, RegistryError};

use super::index_repositories::parse_manifest;
use super::{OpenImage, ReadTrace};

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

/// The index of one layer, as an index repository has it now.
#[derive(Clone, Debug)]
pub struct StoredIndex {
    /// Digest of the layer.
    pub layer: Digest,
    /// Stored bytes of the layer.
    pub stored: u64,
    /// Bytes of the index.
    pub bytes: u64,
    /// Whether this call uploaded it.
    pub outcome: PushOutcome,
}

impl OpenImage {
    /// Puts the index of every archive layer and of every compressed part of a disk into the repository `to`. A layer
    /// whose index is there costs one request. The other indexes are built from the layer's own bytes, unless they are
    /// cached.
    pub async fn store_indexes(&self, to: &Reference) -> Result<Vec<StoredIndex>, ReadError> {
        let registry = self.registry.beside(self.host.as_deref(), to);
        let mut stored: Vec<StoredIndex> = Vec::new();
        for (at, layer) in self.every_archive() {
            let descriptor = &self.manifest().layers[at];
            if stored.iter().all(|other| other.layer != descriptor.digest) {
                stored.push(store_index(&registry, to, descriptor, layer, LAYER_INDEX).await?);
            }
        }
        for part in self.packed_parts() {
            let descriptor = &self.manifest().layers[part.layer];
            let layer = self.packed_part(part)?;
            let is_new = stored.iter().all(|other| other.layer != descriptor.digest);
            if is_new && layer.compression().await?.is_some() {
                stored.push(store_index(&registry, to, descriptor, &layer, STREAM_INDEX).await?);
            }
        }
        Ok(stored)
    }

    /// Builds the index of every archive layer from its own bytes, unless it is cached, and returns all of them.
    pub async fn build_indexes(&self) -> Result<Vec<BuiltIndex>, ReadError> {
        let mut built: Vec<BuiltIndex> = Vec::new();
        for (at, layer) in self.archives() {
            let descriptor = &self.manifest().layers[at];
            if built.iter().any(|other| other.digest == descriptor.digest) {
                continue;
            }
            let (encoding, bytes) = encoded(layer.own_index().await?).await?;
            let (digest, stored) = (descriptor.digest.clone(), descriptor.size);
            built.push(BuiltIndex { digest, stored, encoding, bytes });
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

    /// Puts the recorded trace of the image, if this machine has one, into the repository `to`, in the place of an
    /// earlier one. Returns its bytes.
    pub async fn store_trace(&self, to: &Reference) -> Result<Option<u64>, ReadError> {
        let Some(json) = self.cache.trace(&self.manifest_digest)? else { return Ok(None) };
        ReadTrace::parse(&json)?;
        let registry = self.registry.beside(self.host.as_deref(), to);
        let tag = ManifestSelector::Tag(published::layer_tag(&self.manifest_digest));
        let bytes = json.len() as u64;
        push(&registry, to, published::publish_stored_trace(json.to_vec()), Some(tag)).await?;
        Ok(Some(bytes))
    }

    /// Fails if artifacts about this image cannot be published; call it before the expensive work.
    pub fn check_publishable(&self) -> Result<(), ReadError> {
        self.publisher().map(|_| ())
    }

    fn publisher(&self) -> Result<&Reference, ReadError> {
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
        let reference = self.publisher()?;
        push(&self.registry, reference, publication, None).await
    }
}

/// An index in the form that is published, and the encoding of its layer.
async fn encoded(index: LayerIndex) -> Result<(StreamEncoding, Vec<u8>), ReadError> {
    let encoding = index.spans.encoding();
    let bytes = compute(move || {
        index
            .to_bytes()
            .map_err(|error| ReadError::new(FaultClass::Io, format!("writing the index: {error}")))
    });
    Ok((encoding, bytes.await?))
}

/// Puts the index of one layer into the repository `to`, unless it is there.
async fn store_index(
    registry: &RegistryClient,
    to: &Reference,
    descriptor: &Descriptor,
    layer: &StoredLayer,
    media_type: &str,
) -> Result<StoredIndex, ReadError> {
    let one = |bytes, outcome| {
        let (layer, stored) = (descriptor.digest.clone(), descriptor.size);
        StoredIndex { layer, stored, bytes, outcome }
    };
    // The index of an archive serves its bare stream too.
    let present = present(registry, to, descriptor).await?;
    let serves =
        |index: &PublishedIndex| media_type == STREAM_INDEX || index.blob.media_type == LAYER_INDEX.into();
    if let Some(index) = present.filter(serves) {
        return Ok(one(index.blob.size, PushOutcome::WasThere));
    }
    let (_, bytes) = encoded(layer.own_index().await?).await?;
    let len = bytes.len() as u64;
    let publication = published::publish_layer_index(descriptor, media_type, bytes);
    let tag = ManifestSelector::Tag(published::layer_tag(&descriptor.digest));
    push(registry, to, publication, Some(tag)).await?;
    Ok(one(len, PushOutcome::Stored))
}

/// The index of `layer` that the repository has; `None` for one that no reader takes.
async fn present(
    registry: &RegistryClient,
    repository: &Reference,
    layer: &Descriptor,
) -> Result<Option<PublishedIndex>, ReadError> {
    let tag = ManifestSelector::Tag(published::layer_tag(&layer.digest));
    let found = match registry.manifest(repository, &tag).await {
        Ok(found) => found,
        Err(error) if matches!(error.last(), RegistryError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(ReadError::caused(error.fault(), "looking for a published index", error)),
    };
    Ok(parse_manifest(&found).ok().and_then(|manifest| published::read_layer_index(&manifest, layer).ok()))
}

/// Pushes blobs and then the manifest that names them, by its digest unless `selector` names another way.
async fn push(
    registry: &RegistryClient,
    reference: &Reference,
    publication: Result<PublishedManifest, OciError>,
    selector: Option<ManifestSelector>,
) -> Result<Digest, ReadError> {
    let PublishedManifest { manifest, blobs } =
        publication.map_err(|error| ReadError::caused(error.fault(), "nothing to publish", error))?;
    let failed = |error: RegistryError| ReadError::caused(error.fault(), "publishing", error);
    for (digest, bytes) in blobs {
        registry.push_blob(reference, &digest, Bytes::from(bytes)).await.map_err(failed)?;
    }
    let selector = selector.unwrap_or_else(|| ManifestSelector::Digest(manifest.digest.clone()));
    registry
        .push_manifest(reference, &selector, manifest.media_type, Bytes::from(manifest.bytes))
        .await
        .map_err(failed)?;
    Ok(manifest.digest)
}
