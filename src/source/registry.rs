//! Registry as a source of images.

use std::sync::Arc;

use crate::io::{BoxFuture, FaultClass, RangeFetch};
use crate::oci::{Descriptor, Digest, ManifestSelector, Reference};
use crate::registry::RegistryClient;

use super::{ImageSource, RootDocument, SourceError};

/// A repository of a registry.
pub(super) struct RegistrySource {
    reference: Reference,
    registry: RegistryClient,
}

impl RegistrySource {
    pub(super) fn new(reference: Reference, registry: RegistryClient) -> Self {
        Self { reference, registry }
    }

    async fn get(&self, selector: &ManifestSelector) -> Result<RootDocument, SourceError> {
        let fetched = self.registry.manifest(&self.reference, selector).await?;
        Ok(RootDocument { bytes: fetched.bytes, digest: fetched.digest, content_type: fetched.content_type })
    }
}

impl ImageSource for RegistrySource {
    fn root(&self) -> BoxFuture<'_, Result<RootDocument, SourceError>> {
        Box::pin(async move { self.get(&self.reference.selector()).await })
    }

    fn document<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> BoxFuture<'a, Result<RootDocument, SourceError>> {
        Box::pin(async move {
            let root = self.get(&ManifestSelector::Digest(descriptor.digest.clone())).await?;
            descriptor.check("manifest", &root.bytes).map_err(|source| SourceError::Document {
                place: format!("{} of {}", descriptor.digest, self.reference.registry()),
                source,
            })?;
            Ok(root)
        })
    }

    fn named<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<RootDocument, SourceError>> {
        // The registry client compares the bytes with the requested digest.
        Box::pin(async move { self.get(&ManifestSelector::Digest(digest.clone())).await })
    }

    fn tagged<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Option<RootDocument>, SourceError>> {
        Box::pin(async move {
            match self.get(&ManifestSelector::Tag(tag.to_owned())).await {
                Ok(root) => Ok(Some(root)),
                Err(error) if error.fault() == FaultClass::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>> {
        Box::pin(async move { Ok(self.registry.referrers(&self.reference, subject, artifact_type).await?) })
    }

    fn blob_size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, SourceError>> {
        Box::pin(async move { Ok(self.registry.blob_size(&self.reference, digest).await?) })
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn RangeFetch> {
        self.registry.blob(&self.reference, descriptor)
    }
}
