//! What of a reference goes into an archive, a layout or the cache: its documents and its blobs.
//!
//! Reads documents and no blob. The idea: what was selected is a list of descriptors, in which every digest stands once, and each
//! of them can be opened; where it is written is decided elsewhere.

use std::sync::Arc;

use bytes::Bytes;

use crate::cache::{Cache, Cached, Verify};
use crate::io::{BoxFuture, Deferred, Memory, ReadError, Shared};
use crate::oci::{Descriptor, Digest, Platform};
use crate::registry::Registry;
use crate::source::Source;

use super::super::open::{OpenOptions, Opener, Platforms, Referrers};
use super::super::trust::stored;
use super::super::{Family, ImageError};
use super::names::ArchiveName;

/// What of a reference is selected. The default is what containerd exports: of an index, the manifests for this machine and those
/// without a platform.
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

    /// Selects the manifests of an index for this platform, instead of those for this machine; beside those that were asked for
    /// before.
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

    /// Leaves out layers that their authors do not let others hand on.
    #[must_use]
    pub fn skip_nondistributable(mut self) -> Self {
        self.skip_nondistributable = true;
        self
    }

    /// Adds what says that it is about what was selected.
    #[must_use]
    pub fn with_referrers(mut self) -> Self {
        self.referrers = true;
        self
    }

    /// Leaves out manifests that are not there, and the blobs of a manifest of which one is not there; offline, there is what the
    /// cache has.
    #[must_use]
    pub fn skip_missing(mut self) -> Self {
        self.skip_missing = true;
        self
    }

    /// Another name than the reference has.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What a mount of these options shows.
    pub(super) fn shown(options: &OpenOptions) -> Self {
        let selected = Self { referrers: options.referrers == Referrers::Shown, ..Self::default() };
        match &options.platforms {
            Platforms::Host => selected,
            Platforms::One(platform) => selected.platform(platform.clone()),
            Platforms::All => selected.all_platforms(),
        }
    }
}

/// A document or a blob that was selected.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Its digest and its size, and what it is called.
    pub descriptor: Descriptor,
    /// Its bytes, where they are known already.
    pub(super) here: Option<Bytes>,
}

/// Something that was left out, as was asked for.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// Its digest.
    pub digest: Digest,
    /// Why.
    pub reason: String,
}

/// A manifest that Docker might run.
#[derive(Clone, Debug)]
pub(super) struct Runnable {
    pub(super) manifest: Digest,
    pub(super) config: Digest,
    pub(super) layers: Vec<Digest>,
    /// Whether the config is that of a container image.
    pub(super) is_image: bool,
}

/// What of one reference is selected.
pub struct Selection {
    pub(super) pinned: String,
    pub(super) name: ArchiveName,
    /// The document that the reference names.
    pub(super) root: Descriptor,
    pub(super) pieces: Vec<Piece>,
    pub(super) docker: Option<Runnable>,
    pub(super) referrers: Vec<Descriptor>,
    pub(super) left_out: Vec<LeftOut>,
    pub(super) source: Arc<dyn Source>,
    pub(super) cache: Cache,
    pub(super) verify: Verify,
}

impl Selection {
    /// Finds out what of a reference is selected by `selected`. Of `options` count the location, the network, what is said about
    /// verification and signatures, and the conditions on the entries of an index; which platforms, `selected` says.
    pub async fn open(
        options: &OpenOptions,
        registry: &Registry,
        cache: Cache,
        selected: &ArchiveOptions,
    ) -> Result<Self, ImageError> {
        let opener = Opener::new(options, registry, cache);
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

    /// The digest of that document.
    pub fn digest(&self) -> &Digest {
        &self.root.digest
    }

    /// What it is called in an archive.
    pub fn name(&self) -> &ArchiveName {
        &self.name
    }

    /// What was selected, each digest once.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// What was left out although a document names it.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// What Docker's manifest names.
    pub(super) fn docker(&self) -> Option<&Runnable> {
        self.docker.as_ref()
    }

    /// The same, if Docker could run it.
    pub(super) fn runnable(&self) -> Option<&Runnable> {
        self.docker.as_ref().filter(|image| image.is_image)
    }

    /// What `index.json` says of it.
    pub(super) fn entries(&self) -> impl Iterator<Item = Descriptor> {
        let root = Descriptor { annotations: self.name.annotations(), ..self.root.clone() };
        std::iter::once(root).chain(self.referrers.iter().cloned())
    }

    /// The bytes of a piece. A blob is opened when it is first read.
    pub fn bytes(&self, piece: &Piece) -> Shared {
        if let Some(here) = &piece.here {
            return Arc::new(Memory::new(here.clone()));
        }
        let (source, cache, verify) = (self.source.clone(), self.cache.clone(), self.verify);
        let descriptor = piece.descriptor.clone();
        let open = move || -> BoxFuture<'static, Result<Shared, ReadError>> {
            let opened = cache.blob(&descriptor.digest, source.blob(&descriptor));
            let opened = opened.map(|blob| stored(verify, &cache, blob)).map_err(ReadError::from);
            Box::pin(std::future::ready(opened))
        };
        Arc::new(Deferred::new(piece.descriptor.size, Box::new(open)))
    }

    /// How many bytes of content the cache holds at most.
    pub(in crate::image) fn capacity(&self) -> Option<u64> {
        self.cache.capacity()
    }

    /// A piece in the cache; `None` where there is nothing to fetch.
    pub(in crate::image) fn cached(&self, piece: &Piece) -> Result<Option<Arc<Cached>>, ReadError> {
        if piece.here.is_some() || piece.descriptor.size == 0 {
            return Ok(None);
        }
        let descriptor = &piece.descriptor;
        Ok(Some(self.cache.blob(&descriptor.digest, self.source.blob(descriptor))?))
    }
}

impl Family {
    /// What `selected` selects of the reference that was opened. Documents that opening did not read are read.
    pub async fn select(&self, selected: &ArchiveOptions) -> Result<Selection, ImageError> {
        let Some((root, opened)) = &self.root else {
            return Err(ImageError::NoArchive { place: self.pinned.clone() });
        };
        opened.opener().select(root.clone(), selected).await?.renamed(selected)
    }

    /// What a mount with the options that were opened has as an archive.
    pub async fn select_shown(&self) -> Result<Selection, ImageError> {
        match &self.root {
            Some((_, opened)) => self.select(&ArchiveOptions::shown(&opened.options)).await,
            None => Err(ImageError::NoArchive { place: self.pinned.clone() }),
        }
    }

    /// Whether there is an archive of it: there is none of a blob alone, nor of an index that is not signed where a signature is
    /// required and its manifest has one.
    pub fn has_archive(&self) -> bool {
        self.root.is_some()
    }
}
