//! Lazily opened image archive.
//!
//! Chooses no image. Cached content with a digest needs no archive, so a mount of content that was read before does
//! not open it. The first request opens the archive; concurrent requests wait for that.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::archive_bytes;
use super::docker::{self, DockerImages, json};
use super::member_index::MemberIndex;
use crate::cache::BlockCache;
use crate::io::{
    BoxFuture, ByteRange, FaultClass, FetchAll, FetchPart, LocalBytes, RangeDelivery, RangeFetch, ReadError,
    chain, read_vec,
};
use crate::oci::{Descriptor, Digest, Reference};
use crate::registry::RegistryClient;
use crate::source::{ArchiveLocation, ExpectedForm, LayoutFiles, LayoutImage, SourceError, listed_in};

/// The marker file of an OCI layout.
const MARKER: &str = "oci-layout";
const INDEX: &str = "index.json";

/// An archive of images.
pub(super) struct ImageArchive(Arc<ArchiveOpener>);

/// How to open the archive, and the opened state.
struct ArchiveOpener {
    at: ArchiveLocation,
    form: ExpectedForm,
    place: String,
    registry: RegistryClient,
    cache: BlockCache,
    opened: OnceCell<ArchiveContents>,
}

/// The content of an archive.
struct ArchiveContents {
    bytes: Arc<dyn RangeFetch>,
    images: Vec<LayoutImage>,
    /// Synthesized documents, which no file of the archive has.
    made: HashMap<Digest, Bytes>,
    blobs: HashMap<Digest, ByteRange>,
}

impl ImageArchive {
    pub(super) fn new(
        at: ArchiveLocation,
        form: ExpectedForm,
        place: String,
        registry: RegistryClient,
        cache: BlockCache,
    ) -> Self {
        Self(Arc::new(ArchiveOpener { at, form, place, registry, cache, opened: OnceCell::new() }))
    }
}

impl ArchiveOpener {
    async fn open(&self) -> Result<&ArchiveContents, SourceError> {
        self.opened
            .get_or_try_init(|| async {
                let bytes = archive_bytes::open(&self.at, &self.place, &self.registry, &self.cache).await?;
                let table = MemberIndex::read(&bytes, &self.place).await?;
                self.read(bytes, &table).await
            })
            .await
    }

    /// Finds the images. An OCI layout takes precedence over the list for older tools beside it.
    async fn read(
        &self,
        bytes: Arc<dyn RangeFetch>,
        table: &MemberIndex,
    ) -> Result<ArchiveContents, SourceError> {
        let is_layout = table.find(MARKER)?.is_some() && table.find(INDEX)?.is_some();
        let lacks = |files: &str| table.refused(format!("it is no archive of images: it has no {files}"));
        let is_docker = match self.form {
            ExpectedForm::Oci if is_layout => false,
            ExpectedForm::Oci => return Err(lacks("oci-layout and index.json")),
            ExpectedForm::Any if is_layout => false,
            ExpectedForm::Any if docker::is_here(table)? => true,
            ExpectedForm::Any => return Err(lacks("oci-layout and index.json, and no manifest.json")),
            ExpectedForm::Docker if docker::is_here(table)? => true,
            ExpectedForm::Docker => return Err(lacks(docker::LIST)),
        };
        if is_docker {
            let DockerImages { listed: images, made, blobs } = docker::images(&bytes, table).await?;
            return Ok(ArchiveContents { bytes, images, made, blobs });
        }
        let (marker, index) = (json(&bytes, table, MARKER).await?.1, json(&bytes, table, INDEX).await?.1);
        let images = listed_in(&self.place, &marker, &index)?;
        let mut blobs = HashMap::new();
        for name in table.below("blobs/") {
            // Files with other names are not blobs.
            let Ok(digest) = name.replacen('/', ":", 1).parse::<Digest>() else { continue };
            if let Some(range) = table.find(&format!("blobs/{name}"))? {
                blobs.insert(digest, range);
            }
        }
        Ok(ArchiveContents { bytes, images, made: HashMap::new(), blobs })
    }

    fn missing(&self, digest: &Digest) -> SourceError {
        SourceError::Archive {
            place: self.place.clone(),
            reason: format!("the blob {digest} is missing"),
            fault: FaultClass::NotFound,
        }
    }
}

impl ArchiveContents {
    fn range(&self, digest: &Digest) -> Option<ByteRange> {
        self.blobs.get(digest).copied()
    }
}

impl LayoutFiles for ImageArchive {
    fn place(&self) -> String {
        self.0.place.clone()
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<LayoutImage>, SourceError>> {
        Box::pin(async move { Ok(self.0.open().await?.images.clone()) })
    }

    /// Names of `docker save` may be short or in full, with the same meaning.
    fn is_called(&self, name: &str, tag: &str) -> bool {
        let full = |text: &str| text.parse::<Reference>().ok().map(|reference| reference.to_string());
        name == tag
            || self.0.form != ExpectedForm::Oci && full(name).is_some_and(|name| full(tag) == Some(name))
    }

    fn size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, SourceError>> {
        Box::pin(async move {
            let opened = self.0.open().await?;
            let made = opened.made.get(digest).map(|bytes| bytes.len() as u64);
            let size = made.or_else(|| opened.range(digest).map(ByteRange::len));
            size.ok_or_else(|| self.0.missing(digest))
        })
    }

    fn document<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, SourceError>> {
        Box::pin(async move {
            let opened = self.0.open().await?;
            if let Some(bytes) = opened.made.get(digest) {
                return Ok(bytes.clone());
            }
            let range = opened.range(digest).ok_or_else(|| self.0.missing(digest))?;
            // The caller has checked the document's declared size, which may differ from that of this file.
            let range = ByteRange::at(range.start, range.len().min(crate::oci::MAX_DOCUMENT + 1));
            Ok(read_vec(&FetchAll(opened.bytes.clone()), range).await?.into())
        })
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn RangeFetch> {
        let (digest, size) = (descriptor.digest.clone(), descriptor.size);
        Arc::new(ArchiveBlob { archive: self.0.clone(), digest, size })
    }
}

/// A blob of an archive, opened on the first read.
struct ArchiveBlob {
    archive: Arc<ArchiveOpener>,
    digest: Digest,
    size: u64,
}

impl ArchiveBlob {
    async fn find(&self) -> Result<Arc<dyn RangeFetch>, ReadError> {
        let in_it = |error: SourceError| ReadError::new(error.fault(), chain(&error));
        let opened = self.archive.open().await.map_err(in_it)?;
        if let Some(made) = opened.made.get(&self.digest) {
            return Ok(Arc::new(BuiltDocument(made.clone())));
        }
        let range = opened.range(&self.digest).ok_or_else(|| in_it(self.archive.missing(&self.digest)))?;
        Ok(Arc::new(FetchPart::new(opened.bytes.clone(), range)?))
    }
}

impl RangeFetch for ArchiveBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn may_be_local(&self) -> bool {
        // Cached blobs of an archive on the web are read without opening the archive.
        !matches!(self.archive.at, ArchiveLocation::Web(_))
    }

    fn local(&self) -> BoxFuture<'_, Option<LocalBytes>> {
        Box::pin(async move {
            // A read gets the error.
            let found = self.find().await.ok().filter(|found| found.size() == self.size)?;
            found.local().await
        })
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        Box::pin(async move {
            let found = self.find().await?;
            if found.size() != self.size {
                let message = format!(
                    "{} of {} has {} bytes, its descriptor states {}",
                    self.digest,
                    self.archive.place,
                    found.size(),
                    self.size
                );
                return Err(ReadError::new(FaultClass::Mismatch, message));
            }
            found.fetch(range).await
        })
    }
}

/// A synthesized document.
struct BuiltDocument(Bytes);

impl RangeFetch for BuiltDocument {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        Box::pin(async move {
            // No document is larger than memory.
            let body = self.0.slice(range.start as usize..range.end as usize);
            Ok(RangeDelivery { range, body: Box::pin(futures_util::stream::iter([Ok(body)])) })
        })
    }
}
