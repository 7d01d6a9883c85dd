//! Selection walk: from the document of a reference down to everything selected.
//!
//! The walk reads documents. It checks the existence of blobs only if the options need it. An index is searched level
//! by level like for a mount, but all matching entries are taken instead of one. The index itself stays unchanged,
//! whatever part of it was selected.

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::io::concurrency::DOCUMENT_REQUESTS;
use crate::io::{BoxFuture, ByteRange, FaultClass};
use crate::oci::{
    self, Descriptor, Digest, EntryPurpose, INDEX_TYPE, ImageIndex, MANIFEST_TYPE, Manifest,
    ManifestDocument, Platform, PlatformCandidate, entry_kind, referrer_of,
};
use crate::source::{RootDocument, SourceError};

use super::super::index_walk::MAX_NESTING;
use super::super::open::{ImageOpener, parse};
use super::super::{ImageError, NetworkAccess};
use super::names::ArchiveName;
use super::select::{ArchiveOptions, ArchiveSelection, LeftOut, RunnableManifest, SelectedContent};

/// The annotation of an entry that refers to another one; containerd does not take such an entry for an image.
const SUBJECT: &str = "io.containerd.manifest.subject";

/// A manifest that was found.
struct FoundManifest {
    candidate: Option<PlatformCandidate>,
    image: Option<RunnableManifest>,
}

/// State of the walk.
struct ManifestWalk<'a> {
    opener: &'a ImageOpener<'a>,
    selected: &'a ArchiveOptions,
    pieces: Vec<SelectedContent>,
    seen: HashSet<Digest>,
    found: Vec<FoundManifest>,
    /// Manifests and indexes that may have referrers.
    subjects: Vec<Digest>,
    left_out: Vec<LeftOut>,
}

impl ImageOpener<'_> {
    /// Computes the selection of `selected` for the document that the reference names.
    pub(super) async fn select(
        &self,
        root: RootDocument,
        selected: &ArchiveOptions,
    ) -> Result<ArchiveSelection, ImageError> {
        let location = &self.options.location;
        let document = parse(&root)?;
        if !self.options.signed_by.is_empty() {
            // A signed document covers everything below it, since it refers to content by digest only.
            self.demand_whole(&root, selected.referrers).await?;
        }
        let pinned = location.pinned(&root.digest);
        let mut walk = ManifestWalk {
            opener: self,
            selected,
            pieces: Vec::new(),
            seen: HashSet::new(),
            found: Vec::new(),
            subjects: Vec::new(),
            left_out: Vec::new(),
        };
        let entry = walk.document(&root, &document);
        match &document {
            ManifestDocument::Manifest(manifest) => walk.manifest(None, &root.digest, manifest).await?,
            ManifestDocument::Index(index) => walk.index(index, &pinned).await?,
        }
        let docker = walk.docker();
        let referrers = if selected.referrers { walk.referrers().await? } else { Vec::new() };
        let ManifestWalk { pieces, left_out, .. } = walk;
        Ok(ArchiveSelection {
            name: ArchiveName::of(location, &root.digest),
            pinned,
            root: entry,
            pieces,
            docker,
            referrers,
            left_out,
            source: self.source.clone(),
            cache: self.cache.clone(),
            verify: self.options.verify,
        })
    }
}

impl ManifestWalk<'_> {
    /// Adds a document, and returns its descriptor.
    fn document(&mut self, root: &RootDocument, document: &ManifestDocument) -> Descriptor {
        let written = document.media_type();
        let media_type = match document {
            _ if !written.is_empty() => written.clone(),
            ManifestDocument::Manifest(_) => MANIFEST_TYPE.into(),
            ManifestDocument::Index(_) => INDEX_TYPE.into(),
        };
        let size = root.bytes.len() as u64;
        let descriptor =
            Descriptor { digest: root.digest.clone(), size, ..Descriptor::of(media_type.as_written(), b"") };
        self.add(&descriptor, Some(root.bytes.clone()));
        self.subjects.push(root.digest.clone());
        descriptor
    }

    fn add(&mut self, descriptor: &Descriptor, here: Option<Bytes>) {
        if self.seen.insert(descriptor.digest.clone()) {
            let here = here.or_else(|| descriptor.data.clone().map(Bytes::from));
            self.pieces.push(SelectedContent { descriptor: descriptor.clone(), here });
        }
    }

    /// Adds the config and the layers of a manifest.
    async fn manifest(
        &mut self,
        candidate: Option<PlatformCandidate>,
        digest: &Digest,
        manifest: &Manifest,
    ) -> Result<(), ImageError> {
        let image = manifest.config.as_ref().map(|config| RunnableManifest {
            manifest: digest.clone(),
            config: config.digest.clone(),
            layers: manifest.layers.iter().map(|layer| layer.digest.clone()).collect(),
            is_image: config.media_type.is_image_config(),
        });
        self.found.push(FoundManifest { candidate, image });
        let mut blobs: Vec<&Descriptor> = Vec::new();
        for blob in manifest.blobs() {
            if self.selected.skip_nondistributable && blob.media_type.is_nondistributable() {
                let reason = format!("it is {}", blob.media_type.as_written());
                self.left_out.push(LeftOut { digest: blob.digest.clone(), reason });
            } else {
                blobs.push(blob);
            }
        }
        if self.selected.skip_missing
            && let Some(missing) = self.missing(&blobs).await?
        {
            let reason = format!("the manifest {digest} is present without its blob {missing}");
            self.left_out.push(LeftOut { digest: digest.clone(), reason });
            return Ok(());
        }
        for blob in blobs {
            self.add(blob, None);
        }
        Ok(())
    }

    /// The first of `blobs` that is unavailable.
    async fn missing(&self, blobs: &[&Descriptor]) -> Result<Option<Digest>, ImageError> {
        let wanted: Vec<&Descriptor> = blobs
            .iter()
            .filter(|blob| blob.data.is_none() && blob.size > 0 && !self.seen.contains(&blob.digest))
            .copied()
            .collect();
        let asked: Vec<BoxFuture<'_, Result<bool, ImageError>>> =
            wanted.iter().map(|blob| -> BoxFuture<'_, _> { Box::pin(self.is_there(blob)) }).collect();
        let answers: Vec<_> = futures_util::stream::iter(asked).buffered(DOCUMENT_REQUESTS).collect().await;
        for (blob, answer) in wanted.into_iter().zip(answers) {
            if !answer? {
                return Ok(Some(blob.digest.clone()));
            }
        }
        Ok(None)
    }

    async fn is_there(&self, blob: &Descriptor) -> Result<bool, ImageError> {
        let ImageOpener { source, cache, options, .. } = self.opener;
        let fetch = source.blob(blob);
        let may_be_local = fetch.may_be_local();
        if cache.blob(&blob.digest, fetch)?.present(ByteRange::new(0, blob.size)) {
            return Ok(true);
        }
        if options.network == NetworkAccess::Offline && !may_be_local {
            return Ok(false);
        }
        match source.blob_size(&blob.digest).await {
            Ok(_) => Ok(true),
            Err(error) if error.fault() == FaultClass::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Adds the selected entries of an index and of nested indexes.
    async fn index(&mut self, outer: &ImageIndex, pinned: &str) -> Result<(), ImageError> {
        let mut level: Vec<(Option<PlatformCandidate>, ImageIndex)> = vec![(None, outer.clone())];
        let mut others: Vec<PlatformCandidate> = Vec::new();
        for depth in 0.. {
            let mut wanted: Vec<PlatformCandidate> = Vec::new();
            for (above, index) in &level {
                for entry in &index.manifests {
                    let candidate = PlatformCandidate::of(entry, above.as_ref(), &self.opener.options.select);
                    if self.fits(&candidate) {
                        wanted.push(candidate);
                    } else if !entry.media_type.is_index() {
                        others.push(candidate);
                    }
                }
            }
            if wanted.is_empty() {
                break;
            }
            if depth == MAX_NESTING {
                return Err(ImageError::Nesting { place: pinned.to_owned(), limit: MAX_NESTING });
            }
            level = self.fetch(wanted).await?;
        }
        for candidate in self.nearest(others, pinned)? {
            self.fetch(vec![candidate]).await?;
        }
        Ok(())
    }

    /// Reads and adds documents, and returns the indexes among them.
    async fn fetch(
        &mut self,
        wanted: Vec<PlatformCandidate>,
    ) -> Result<Vec<(Option<PlatformCandidate>, ImageIndex)>, ImageError> {
        let mut digests = HashSet::new();
        let wanted: Vec<PlatformCandidate> = wanted
            .into_iter()
            .filter(|one| !self.seen.contains(&one.entry.digest) && digests.insert(one.entry.digest.clone()))
            .collect();
        let opener = self.opener;
        let asked: Vec<BoxFuture<'_, Result<RootDocument, ImageError>>> =
            wanted.iter().map(|one| -> BoxFuture<'_, _> { Box::pin(opener.document(&one.entry)) }).collect();
        let roots: Vec<_> = futures_util::stream::iter(asked).buffered(DOCUMENT_REQUESTS).collect().await;
        let mut indexes = Vec::new();
        for (candidate, root) in wanted.into_iter().zip(roots) {
            let root = match root {
                Err(error) if self.selected.skip_missing && is_missing(&error) => {
                    let digest = candidate.entry.digest.clone();
                    self.left_out.push(LeftOut { digest, reason: "it is missing".to_owned() });
                    continue;
                }
                root => root?,
            };
            let document = parse(&root)?;
            self.document(&root, &document);
            match document {
                ManifestDocument::Manifest(manifest) => {
                    self.manifest(Some(candidate), &root.digest, &manifest).await?;
                }
                ManifestDocument::Index(index) => indexes.push((Some(candidate), index)),
            }
        }
        Ok(indexes)
    }

    /// Whether an entry is selected. Like in containerd, an entry without a platform always is.
    fn fits(&self, candidate: &PlatformCandidate) -> bool {
        let (selected, select) = (self.selected, &self.opener.options.select);
        if !candidate.is_selected() && !candidate.entry.media_type.is_index() {
            return false;
        }
        if selected.all_platforms {
            return select.is_empty() || entry_kind(&candidate.entry) == EntryPurpose::Image;
        }
        match &candidate.platform {
            None => entry_kind(&candidate.entry) == EntryPurpose::Image,
            Some(platform) if selected.platforms.is_empty() => platform.is(&Platform::host()),
            Some(platform) => selected.platforms.iter().any(|wanted| platform.is(wanted)),
        }
    }

    /// Entries for requested platforms without an exact match: the ones that a mount would choose.
    fn nearest(
        &self,
        others: Vec<PlatformCandidate>,
        pinned: &str,
    ) -> Result<Vec<PlatformCandidate>, ImageError> {
        if self.selected.all_platforms || self.found.iter().any(|found| found.is_for(None)) {
            return Ok(Vec::new());
        }
        let asked: Vec<Option<&Platform>> = match &self.selected.platforms[..] {
            [] => vec![None],
            platforms => platforms.iter().map(Some).collect(),
        };
        let host = Platform::host();
        let mut chosen: Vec<PlatformCandidate> = Vec::new();
        for wanted in asked {
            let is_found = self.found.iter().any(|found| found.is_for(Some(wanted.unwrap_or(&host))));
            if !is_found && self.left_out.is_empty() {
                let one = oci::choose(&others, &self.opener.options.select, wanted)
                    .map_err(|source| ImageError::Choice { place: pinned.to_owned(), source })?;
                chosen.push(one.clone());
            }
        }
        Ok(chosen)
    }

    /// The image for Docker's `manifest.json`: that of the first requested platform.
    fn docker(&self) -> Option<RunnableManifest> {
        let host = [Platform::host()];
        let wanted = match &self.selected.platforms[..] {
            [] => &host[..],
            platforms => platforms,
        };
        let images = || self.found.iter().filter(|found| found.image.is_some() && found.is_image());
        let exact = wanted.iter().find_map(|platform| images().find(|found| found.is_for(Some(platform))));
        let unnamed = || images().find(|found| found.is_for(None));
        let any = || images().next().filter(|_| !self.selected.all_platforms);
        exact.or_else(unnamed).or_else(any)?.image.clone()
    }

    /// Adds the referrers of all found documents, and returns entries for them.
    async fn referrers(&mut self) -> Result<Vec<Descriptor>, ImageError> {
        let mut entries = Vec::new();
        for subject in self.subjects.clone() {
            for listed in self.opener.source.referrers(&subject, None).await? {
                if self.seen.contains(&listed.digest) {
                    continue;
                }
                let root = self.opener.document(&listed).await?;
                let document = parse(&root)?;
                if document.subject().is_none_or(|about| about.digest != subject) {
                    let reason = format!("it is listed as a referrer of {subject}, which is not its subject");
                    self.left_out.push(LeftOut { digest: root.digest, reason });
                    continue;
                }
                let named = self.document(&root, &document);
                let mut entry = referrer_of(&document, named.media_type.as_written(), &root.bytes);
                entry.digest = root.digest.clone();
                entry.annotations.insert(SUBJECT.to_owned(), subject.to_string());
                entries.push(entry);
                if let ManifestDocument::Manifest(manifest) = &document {
                    let blobs: Vec<_> = manifest.blobs().cloned().collect();
                    for blob in blobs {
                        self.add(&blob, None);
                    }
                }
            }
        }
        Ok(entries)
    }
}

impl FoundManifest {
    fn platform(&self) -> Option<&Platform> {
        self.candidate.as_ref()?.platform.as_ref()
    }

    /// Whether it is for the platform `wanted`; with `None`, whether it has no platform.
    fn is_for(&self, wanted: Option<&Platform>) -> bool {
        match (self.platform(), wanted) {
            (None, None) => true,
            (Some(platform), Some(wanted)) => platform.is(wanted),
            _ => false,
        }
    }

    fn is_image(&self) -> bool {
        self.candidate.as_ref().is_none_or(|candidate| entry_kind(&candidate.entry) == EntryPurpose::Image)
    }
}

/// Whether a document does not exist, or is not cached while offline.
fn is_missing(error: &ImageError) -> bool {
    matches!(error, ImageError::Source(SourceError::Offline { .. })) || error.fault() == FaultClass::NotFound
}
