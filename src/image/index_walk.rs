//! Members of an index: search of an index, of nested indexes and of referrers, for the image to mount and those
//! shown next to it.
//!
//! Only documents are read. Indexes are searched level by level, several documents concurrently. The result is a list
//! in the order of the documents, so the same reference with the same options always gives the same list.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt as _;

use crate::io::concurrency::DOCUMENT_REQUESTS;
use crate::io::{BoxFuture, ReadError, chain};
use crate::oci::{
    self, Descriptor, Digest, EntryPurpose, ImageIndex, ManifestDocument, OciError, Platform,
    PlatformCandidate, entry_kind, referrer_directory,
};
use crate::source::RootDocument;

use super::image_set::{ImageSet, SetMember};
use super::open::{ImageOpener, LayerFilter, MAX_DOCUMENTS, parse};
use super::{ImageError, OpenImage};

/// Nesting limit of indexes; real ones are one or two levels deep.
pub(super) const MAX_NESTING: usize = 4;

/// An entry of an index, or of a nested index.
pub(super) struct IndexEntry {
    directory: Vec<String>,
    candidate: PlatformCandidate,
    kind: EntryPurpose,
    what: EntryContent,
}

enum EntryContent {
    Manifest,
    Index(bytes::Bytes),
    Failed(String),
}

/// An index to be searched.
struct IndexLevel {
    directory: Vec<String>,
    above: Option<PlatformCandidate>,
    index: ImageIndex,
}

impl ImageOpener<'_> {
    /// The chosen manifest of `index`, through all levels.
    pub(super) async fn one(
        &self,
        index: &ImageIndex,
        wanted: Option<&Platform>,
        pinned: String,
    ) -> Result<OpenImage, ImageError> {
        let mut index = index.clone();
        let mut above = None;
        for _ in 0..MAX_NESTING {
            let chosen = self.chosen(&index, above.as_ref(), wanted, &pinned).await?;
            let root = self.document(&chosen.entry).await?;
            match parse(&root)? {
                ManifestDocument::Manifest(manifest) => {
                    return self.image(root, manifest, pinned, LayerFilter::Layers).await;
                }
                // The entry does not declare it as an index.
                ManifestDocument::Index(inner) => (index, above) = (inner, Some(chosen)),
            }
        }
        Err(ImageError::Nesting { place: pinned, limit: MAX_NESTING })
    }

    /// The chosen entry of `index` or of a nested index. The document it names is not read.
    pub(super) async fn chosen(
        &self,
        index: &ImageIndex,
        above: Option<&PlatformCandidate>,
        wanted: Option<&Platform>,
        pinned: &str,
    ) -> Result<PlatformCandidate, ImageError> {
        let candidates = self.candidates(self.search(index, above).await?)?;
        let chosen = oci::choose(&candidates, &self.options.select, wanted);
        chosen.cloned().map_err(|source| ImageError::Choice { place: pinned.to_owned(), source })
    }

    /// The entries to choose from. An index that cannot be read is an error, since it may hide the right entry.
    fn candidates(&self, found: Vec<IndexEntry>) -> Result<Vec<PlatformCandidate>, ImageError> {
        let mut candidates = Vec::new();
        for found in found {
            match found.what {
                EntryContent::Manifest => candidates.push(found.candidate),
                EntryContent::Index(_) => {}
                EntryContent::Failed(reason) => {
                    let reason = format!("{}: {reason}", found.candidate.entry.digest);
                    let source = OciError::Malformed { what: "nested index", reason };
                    return Err(ImageError::Choice { place: self.options.location.to_string(), source });
                }
            }
        }
        Ok(candidates)
    }

    /// The entries of `outer` and of nested indexes. `above` is the entry that names `outer`, if there is one.
    pub(super) async fn search(
        &self,
        outer: &ImageIndex,
        above: Option<&PlatformCandidate>,
    ) -> Result<Vec<IndexEntry>, ImageError> {
        let mut found: Vec<IndexEntry> = Vec::new();
        let mut level =
            vec![IndexLevel { directory: Vec::new(), above: above.cloned(), index: outer.clone() }];
        for depth in 1.. {
            let mut nested: Vec<usize> = Vec::new();
            for index in &level {
                for entry in self.entries(index) {
                    if entry.kind == EntryPurpose::Image && entry.candidate.entry.media_type.is_index() {
                        nested.push(found.len());
                    }
                    found.push(entry);
                }
            }
            if nested.is_empty() {
                break;
            }
            if depth == MAX_NESTING {
                let place = self.options.location.to_string();
                return Err(ImageError::Nesting { place, limit: MAX_NESTING });
            }
            if nested.len() > MAX_DOCUMENTS {
                return Err(self.too_many());
            }
            let asked: Vec<BoxFuture<'_, Result<RootDocument, ImageError>>> = nested
                .iter()
                .map(|at| -> BoxFuture<'_, _> { Box::pin(self.document(&found[*at].candidate.entry)) })
                .collect();
            let roots: Vec<_> = futures_util::stream::iter(asked).buffered(DOCUMENT_REQUESTS).collect().await;
            level = Vec::new();
            for (at, root) in nested.into_iter().zip(roots) {
                let root = match root {
                    Err(error @ ImageError::TooMany { .. }) => return Err(error),
                    Err(error) if self.may_pass(error.fault()) => return Err(error),
                    root => root.and_then(|root| Ok((parse(&root)?, root.bytes))),
                };
                found[at].what = match root {
                    Ok((ManifestDocument::Index(index), bytes)) => {
                        let directory = found[at].directory.clone();
                        level.push(IndexLevel { directory, above: Some(found[at].candidate.clone()), index });
                        EntryContent::Index(bytes)
                    }
                    Ok((ManifestDocument::Manifest(_), _)) => EntryContent::Manifest,
                    Err(error) => EntryContent::Failed(chain(&error)),
                };
            }
        }
        Ok(found)
    }

    /// The entries of one index with their directories.
    fn entries(&self, level: &IndexLevel) -> Vec<IndexEntry> {
        let under = |name: &str, below: &str| {
            let names = level.directory.iter().cloned();
            names.chain([below.to_owned(), name.to_owned()]).collect::<Vec<_>>()
        };
        let found = |entry: &Descriptor, kind, directory| IndexEntry {
            directory,
            candidate: PlatformCandidate::of(entry, level.above.as_ref(), &self.options.select),
            kind,
            what: EntryContent::Manifest,
        };
        let of =
            |kind: EntryPurpose| level.index.manifests.iter().filter(move |entry| entry_kind(entry) == kind);
        let images = oci::member_names(of(EntryPurpose::Image));
        let images = images
            .into_iter()
            .map(|named| found(named.entry, EntryPurpose::Image, under(&named.name, "platforms")));
        let mut seen = HashSet::new();
        let attestations = of(EntryPurpose::Attestation).filter(|entry| seen.insert(entry.digest.short()));
        let attestations = attestations.map(|entry| {
            found(entry, EntryPurpose::Attestation, under(entry.digest.short(), "attestations"))
        });
        images.chain(attestations.collect::<Vec<_>>()).collect()
    }

    /// Opens all found entries, and shows the one for this machine at the root as well.
    pub(super) async fn all(&self, family: &mut ImageSet, found: Vec<IndexEntry>) -> Result<(), ImageError> {
        let place = family.pinned.clone();
        let candidates: Vec<PlatformCandidate> = found
            .iter()
            .filter(|one| matches!(one.what, EntryContent::Manifest))
            .map(|one| one.candidate.clone())
            .collect();
        let main = match oci::choose(&candidates, &self.options.select, None) {
            Ok(chosen) => Some(chosen.entry.digest.clone()),
            Err(source @ OciError::NoEntry { .. }) => return Err(ImageError::Choice { place, source }),
            Err(error) => {
                tracing::debug!(%error, "the root shows no image");
                None
            }
        };
        let directories: Vec<Vec<String>> = found
            .iter()
            .filter(|one| !matches!(one.what, EntryContent::Index(_)) && self.is_wanted(one))
            .map(|one| one.directory.clone())
            .collect();
        // An index is shown only if one of its entries is.
        let mut shown = found;
        shown.retain(|one| match one.what {
            EntryContent::Index(_) => directories.iter().any(|below| below.starts_with(&one.directory)),
            EntryContent::Manifest | EntryContent::Failed(_) => self.is_wanted(one),
        });
        if shown.len() > MAX_DOCUMENTS {
            return Err(self.too_many());
        }
        self.open_members(family, shown).await?;
        if let Some(digest) = main {
            let mut images = family.members.iter().filter(|member| member.digest == digest);
            family.main = images.find_map(|member| member.image.clone());
        }
        Ok(())
    }

    /// Whether an entry is shown: attestations only without conditions.
    fn is_wanted(&self, found: &IndexEntry) -> bool {
        match found.kind {
            EntryPurpose::Image => found.candidate.is_selected(),
            EntryPurpose::Attestation | EntryPurpose::Soci => self.options.select.is_empty(),
        }
    }

    /// Opens the referrers of the root's image and of the index that the reference names.
    pub(super) async fn referrers(&self, family: &mut ImageSet) -> Result<(), ImageError> {
        let image = family.main.as_ref().map(|image| image.manifest_digest().clone());
        let mut subjects = vec![family.digest.clone()];
        subjects.extend(image.filter(|digest| *digest != family.digest));
        let mut found: Vec<(Descriptor, Digest)> = Vec::new();
        for subject in subjects {
            match self.source.referrers(&subject, None).await {
                Ok(listed) => found.extend(listed.into_iter().map(|entry| (entry, subject.clone()))),
                Err(error) => {
                    let error = ImageError::from(error);
                    let error = ReadError::new(error.fault(), chain(&error));
                    let warning = format!("referrers of {subject} cannot be listed: {}", error.chain());
                    family.warnings.push(warning);
                    family.unlisted.push((subject, error));
                }
            }
        }
        let directory = |entry: &Descriptor| {
            let [kind, digest] = referrer_directory(entry);
            vec!["referrers".to_owned(), kind, digest]
        };
        let mut found: Vec<_> =
            found.into_iter().map(|(entry, subject)| (directory(&entry), entry, subject)).collect();
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found.dedup_by(|one, other| one.0 == other.0);
        if family.members.len() + found.len() > MAX_DOCUMENTS {
            return Err(self.too_many());
        }
        let opened: Vec<BoxFuture<'_, Result<Vec<SetMember>, ImageError>>> = found
            .iter()
            .map(|(directory, entry, subject)| -> BoxFuture<'_, _> {
                Box::pin(self.referrer(directory.clone(), entry, subject))
            })
            .collect();
        let opened: Vec<_> = futures_util::stream::iter(opened).buffered(DOCUMENT_REQUESTS).collect().await;
        for members in opened {
            family.members.extend(members?);
        }
        if family.members.len() > MAX_DOCUMENTS {
            return Err(self.too_many());
        }
        Ok(())
    }

    /// One manifest or index that is listed as a referrer of `subject`; shown only if its own `subject` field
    /// confirms that.
    async fn referrer(
        &self,
        directory: Vec<String>,
        entry: &Descriptor,
        subject: &Digest,
    ) -> Result<Vec<SetMember>, ImageError> {
        let failed = |failure: String| vec![SetMember::failed(directory.clone(), &entry.digest, failure)];
        let read = match self.document(entry).await {
            Err(error @ ImageError::TooMany { .. }) => return Err(error),
            read => read.and_then(|root| Ok((parse(&root)?, root))),
        };
        let (document, root) = match read {
            Ok(read) => read,
            Err(error) => return Ok(failed(chain(&error))),
        };
        if document.subject().is_none_or(|about| about.digest != *subject) {
            return Ok(failed(format!("it is listed as a referrer of {subject}, which is not its subject")));
        }
        match document {
            ManifestDocument::Manifest(manifest) => {
                let pinned = self.options.location.pinned(&root.digest);
                Ok(match self.image(root, manifest, pinned, LayerFilter::Everything).await {
                    Ok(image) => vec![SetMember::image(directory, image)],
                    Err(error) => failed(chain(&error)),
                })
            }
            // Its entries are not searched; only the document itself is shown.
            ManifestDocument::Index(_) => Ok(vec![SetMember::index(directory, root.digest, root.bytes)]),
        }
    }

    /// Opens documents concurrently, in their order.
    async fn open_members(&self, family: &mut ImageSet, found: Vec<IndexEntry>) -> Result<(), ImageError> {
        let opened: Vec<BoxFuture<'_, Result<SetMember, ImageError>>> =
            found.into_iter().map(|found| -> BoxFuture<'_, _> { Box::pin(self.member(found)) }).collect();
        let opened: Vec<_> = futures_util::stream::iter(opened).buffered(DOCUMENT_REQUESTS).collect().await;
        for member in opened {
            family.members.push(member?);
        }
        Ok(())
    }

    async fn member(&self, found: IndexEntry) -> Result<SetMember, ImageError> {
        let IndexEntry { directory, candidate, kind, what } = found;
        let entry = candidate.entry;
        match what {
            EntryContent::Failed(failure) => return Ok(SetMember::failed(directory, &entry.digest, failure)),
            EntryContent::Index(bytes) => return Ok(SetMember::index(directory, entry.digest, bytes)),
            EntryContent::Manifest => {}
        }
        let select = match kind {
            EntryPurpose::Image => LayerFilter::Layers,
            EntryPurpose::Attestation | EntryPurpose::Soci => LayerFilter::Everything,
        };
        let opened = async {
            let root = self.document(&entry).await?;
            match parse(&root)? {
                ManifestDocument::Manifest(manifest) => {
                    let pinned = self.options.location.pinned(&root.digest);
                    Ok(SetMember::image(directory.clone(), self.image(root, manifest, pinned, select).await?))
                }
                ManifestDocument::Index(_) => {
                    let failure = "it is an index, and its entry has another media type".to_owned();
                    Ok(SetMember::failed(directory.clone(), &entry.digest, failure))
                }
            }
        };
        match opened.await {
            Err(error @ (ImageError::TooMany { .. } | ImageError::Cache(_))) => Err(error),
            Err(error) if self.may_pass(error.fault()) => Err(error),
            Err(error) => Ok(SetMember::failed(directory.clone(), &entry.digest, chain(&error))),
            Ok(member) => Ok(member),
        }
    }

    fn too_many(&self) -> ImageError {
        ImageError::TooMany { place: self.options.location.to_string(), limit: MAX_DOCUMENTS }
    }
}

impl SetMember {
    fn image(directory: Vec<String>, image: OpenImage) -> Self {
        let digest = image.manifest_digest().clone();
        Self { directory, digest, index: None, image: Some(Arc::new(image)), failure: None }
    }

    fn index(directory: Vec<String>, digest: Digest, bytes: bytes::Bytes) -> Self {
        Self { directory, digest, index: Some(bytes), image: None, failure: None }
    }

    fn failed(directory: Vec<String>, digest: &Digest, failure: String) -> Self {
        Self { directory, digest: digest.clone(), index: None, image: None, failure: Some(failure) }
    }
}
