//! Selection: the documents and blobs of a reference that go into an archive, a layout or the cache.
//!
//! Selecting reads documents and no blob. A selection is a list of descriptors in which every digest appears once,
//! and each can be opened. The caller decides where they are written.

use std::sync::Arc;

use bytes::Bytes;

use crate::cache::{BlockCache, CachedFile, VerifyMode};
use crate::io::{BoxFuture, DeferredReader, MemoryReader, ReadError, SharedReader};
use crate::oci::{Descriptor, Digest, Platform};
use crate::registry::RegistryClient;
use crate::source::ImageSource;

use super::super::open::ImageOpener;
use super::super::verify_policy::stored;
use super::super::{ImageError, ImageSet, OpenOptions, PlatformScope, ReferrerScope};
use super::names::ArchiveName;

/// Options of a selection. The default matches an export of containerd: of an index, the manifests for this machine
/// and those without a platform.
#[derive(Clone, Debug, Default)]
pub struct ArchiveOptions {
    pub(super) platforms: Vec<Platform>,
    pub(super) all_platforms: bool,
    pub(super) skip_nondistributable: bool,
    pub(super) referrers: bool,
    pub(super) skip_missing: bool,
    name: Option<String>,
}

impl ArchiveOptions {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Selects the manifests of an index for this platform instead of those for this machine. Repeated calls add
    /// platforms.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platforms.push(platform);
        self
    }

    /// Selects every manifest of an index.
    #[must_use]
    pub fn all_platforms(mut self) -> Self {
        self.all_platforms = true;
        self
    }

    /// Omits layers whose licence does not allow distribution.
    #[must_use]
    pub fn skip_nondistributable(mut self) -> Self {
        self.skip_nondistributable = true;
        self
    }

    /// Adds the referrers of the selected documents.
    #[must_use]
    pub fn with_referrers(mut self) -> Self {
        self.referrers = true;
        self
    }

    /// Omits unavailable manifests, and all blobs of a manifest of which one is unavailable. Offline, only cached
    /// content is available.
    #[must_use]
    pub fn skip_missing(mut self) -> Self {
        self.skip_missing = true;
        self
    }

    /// Replaces the name of the reference.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The selection that a mount with these options shows.
    pub(super) fn shown(options: &OpenOptions) -> Self {
        let selected = Self { referrers: options.referrers == ReferrerScope::Shown, ..Self::default() };
        match &options.platforms {
            PlatformScope::Host => selected,
            PlatformScope::One(platform) => selected.platform(platform.clone()),
            PlatformScope::All => selected.all_platforms(),
        }
    }
}

/// A selected document or blob.
#[derive(Clone, Debug)]
pub struct SelectedContent {
    /// Digest, size and media type.
    pub descriptor: Descriptor,
    /// Content, if it is in memory already; `None` if it must be read.
    pub(super) here: Option<Bytes>,
}

/// Content that was omitted because of the options.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// Its digest.
    pub digest: Digest,
    /// Reason.
    pub reason: String,
}

/// A manifest that Docker may be able to run.
#[derive(Clone, Debug)]
pub(super) struct RunnableManifest {
    pub(super) manifest: Digest,
    pub(super) config: Digest,
    pub(super) layers: Vec<Digest>,
    /// Whether the config is that of a container image.
    pub(super) is_image: bool,
}

/// The selected content of one reference.
pub struct ArchiveSelection {
    pub(super) pinned: String,
    pub(super) name: ArchiveName,
    /// The document that the reference names.
    pub(super) root: Descriptor,
    pub(super) pieces: Vec<SelectedContent>,
    pub(super) docker: Option<RunnableManifest>,
    pub(super) referrers: Vec<Descriptor>,
    pub(super) left_out: Vec<LeftOut>,
    pub(super) source: Arc<dyn ImageSource>,
    pub(super) cache: BlockCache,
    pub(super) verify: VerifyMode,
}

impl ArchiveSelection {
    /// Computes the selection of `selected` for a reference. From `options` it uses the location, the network,
    /// verification, signatures, and the conditions on entries of an index. Platforms come from `selected`.
    pub async fn open(
        options: &OpenOptions,
        registry: &RegistryClient,
        cache: BlockCache,
        selected: &ArchiveOptions,
    ) -> Result<Self, ImageError> {
        let opener = ImageOpener::new(options, registry, cache);
        let root = opener.root(options.location.digest()).await?;
        opener.select(root, selected).await?.renamed(selected)
    }

    fn renamed(mut self, selected: &ArchiveOptions) -> Result<Self, ImageError> {
        if let Some(name) = &selected.name {
            let failed = |source| ImageError::Choice { place: self.pinned.clone(), source };
            self.name = ArchiveName::given(name).map_err(failed)?;
        }
        Ok(self)
    }

    /// The reference with the digest of the document that it names.
    pub fn pinned(&self) -> &str {
        &self.pinned
    }

    /// The digest of the document that the reference names.
    pub fn digest(&self) -> &Digest {
        &self.root.digest
    }

    /// The name of the image in an archive.
    pub fn name(&self) -> &ArchiveName {
        &self.name
    }

    /// The selected documents and blobs, each digest once.
    pub fn pieces(&self) -> &[SelectedContent] {
        &self.pieces
    }

    /// Content that was omitted although a document names it.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// The manifest for Docker's `manifest.json`, if any.
    pub(super) fn docker(&self) -> Option<&RunnableManifest> {
        self.docker.as_ref()
    }

    /// Like `docker`, but only if it is a container image.
    pub(super) fn runnable(&self) -> Option<&RunnableManifest> {
        self.docker.as_ref().filter(|image| image.is_image)
    }

    /// The entries for `index.json`: the document, and its referrers.
    pub(super) fn entries(&self) -> impl Iterator<Item = Descriptor> {
        let root = Descriptor { annotations: self.name.annotations(), ..self.root.clone() };
        std::iter::once(root).chain(self.referrers.iter().cloned())
    }

    /// The bytes of a piece. A blob is opened when it is first read.
    pub fn bytes(&self, piece: &SelectedContent) -> SharedReader {
        if let Some(here) = &piece.here {
            return Arc::new(MemoryReader::new(here.clone()));
        }
        let (source, cache, verify) = (self.source.clone(), self.cache.clone(), self.verify);
        let descriptor = piece.descriptor.clone();
        let open = move || -> BoxFuture<'static, Result<SharedReader, ReadError>> {
            let opened = cache.blob(&descriptor.digest, source.blob(&descriptor));
            let opened = opened.map(|blob| stored(verify, &cache, blob)).map_err(ReadError::from);
            Box::pin(std::future::ready(opened))
        };
        Arc::new(DeferredReader::new(piece.descriptor.size, Box::new(open)))
    }

    /// Limit of the cache's content, in bytes; `None` without a limit.
    pub(in crate::image) fn capacity(&self) -> Option<u64> {
        self.cache.capacity()
    }

    /// A piece in the cache; `None` if there is nothing to fetch.
    pub(in crate::image) fn cached(
        &self,
        piece: &SelectedContent,
    ) -> Result<Option<Arc<CachedFile>>, ReadError> {
        if piece.here.is_some() || piece.descriptor.size == 0 {
            return Ok(None);
        }
        let descriptor = &piece.descriptor;
        Ok(Some(self.cache.blob(&descriptor.digest, self.source.blob(descriptor))?))
    }
}

impl ImageSet {
    /// The selection of `selected` for the opened reference. Reads the documents that opening did not need.
    pub async fn select(&self, selected: &ArchiveOptions) -> Result<ArchiveSelection, ImageError> {
        let Some((root, opened)) = &self.root else {
            return Err(ImageError::NoArchive { place: self.pinned.clone() });
        };
        opened.opener().select(root.clone(), selected).await?.renamed(selected)
    }

    /// The selection that a mount with the options of `open` shows.
    pub async fn select_shown(&self) -> Result<ArchiveSelection, ImageError> {
        match &self.root {
            Some((_, opened)) => self.select(&ArchiveOptions::shown(&opened.options)).await,
            None => Err(ImageError::NoArchive { place: self.pinned.clone() }),
        }
    }

    /// Whether the reference can be archived. A bare blob cannot. Neither can an unsigned index if a signature is
    /// required and only its manifest has one.
    pub fn has_archive(&self) -> bool {
        self.root.is_some()
    }
}
