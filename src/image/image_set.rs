//! Image set: everything that a reference names, which is one image and the others shown next to it.
//!
//! No blob is read in this module. Every image is self-contained, so a mount of several is a list of images and their
//! directories. An image that cannot be opened is a line in the status and does not affect the others.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::broadcast;

use crate::cache::BlockCache;
use crate::io::ReadError;
use crate::oci::{Digest, ManifestDocument};
use crate::registry::RegistryClient;
use crate::source::{ImageSource, RootDocument};

use super::{ImageStatus, MemberStatus, OpenImage, OpenOptions};

/// An opened reference.
pub struct ImageSet {
    pub(super) pinned: String,
    pub(super) digest: Digest,
    pub(super) document: ManifestDocument,
    pub(super) index: Option<Bytes>,
    pub(super) main: Option<Arc<OpenImage>>,
    pub(super) members: Vec<SetMember>,
    pub(super) warnings: Vec<String>,
    /// Subjects whose referrers could not be listed, and why.
    pub(super) unlisted: Vec<(Digest, ReadError)>,
    pub(super) signed_by: Option<Digest>,
    /// The document, and the options and source it was opened with; `None` if it must not be archived.
    pub(super) root: Option<(RootDocument, OpenContext)>,
}

/// The inputs of an opened reference, for reading more of it later.
pub(super) struct OpenContext {
    pub(super) options: OpenOptions,
    pub(super) registry: RegistryClient,
    pub(super) source: Arc<dyn ImageSource>,
    pub(super) cache: BlockCache,
}

/// A document that is shown in a directory of its own.
pub struct SetMember {
    /// Its directory, relative to the root: plain components.
    pub directory: Vec<String>,
    /// The digest of the document.
    pub digest: Digest,
    /// Content of the document, if it is an index.
    pub index: Option<Bytes>,
    /// The image, if the document is a manifest.
    pub image: Option<Arc<OpenImage>>,
    /// Error, if it could not be opened and is therefore not shown.
    pub failure: Option<String>,
}

impl SetMember {
    /// Whether it has any content to show.
    pub fn is_shown(&self) -> bool {
        self.image.is_some() || self.index.is_some()
    }
}

impl ImageSet {
    /// The reference with the digest of the document it named when it was opened.
    pub fn pinned(&self) -> &str {
        &self.pinned
    }

    /// The digest of the document that the reference named: of the index if there is one.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The document that the reference named, parsed.
    pub fn document(&self) -> &ManifestDocument {
        &self.document
    }

    /// The bytes of the index, if the reference named one.
    pub fn index_bytes(&self) -> Option<&Bytes> {
        self.index.as_ref()
    }

    /// The image at the root. It exists unless all platforms were requested and none is for this machine.
    pub fn main(&self) -> Option<&Arc<OpenImage>> {
        self.main.as_ref()
    }

    /// The documents shown next to it, always in the same order. A nested index comes before its entries.
    pub fn members(&self) -> &[SetMember] {
        &self.members
    }

    /// All images, the root's first, and each once.
    pub fn images(&self) -> impl Iterator<Item = &Arc<OpenImage>> {
        self.main.iter().chain(self.members.iter().filter_map(|member| self.beside(member)))
    }

    /// The image of a member, unless it is the one that the root shows.
    fn beside<'a>(&self, member: &'a SetMember) -> Option<&'a Arc<OpenImage>> {
        let is_main =
            |image: &Arc<OpenImage>| self.main.as_ref().is_some_and(|main| Arc::ptr_eq(main, image));
        member.image.as_ref().filter(|image| !is_main(image))
    }

    /// Seconds since 1970 of the `org.opencontainers.image.created` annotation of the root's document, or 0.
    pub fn created(&self) -> i64 {
        match (&self.main, &self.document) {
            (Some(image), _) => image.created(),
            (None, ManifestDocument::Manifest(manifest)) => super::created(&manifest.annotations),
            (None, ManifestDocument::Index(index)) => super::created(&index.annotations),
        }
    }

    /// Stored bytes of all blobs of all images.
    pub fn stored_bytes(&self) -> u64 {
        let blobs = self.images().flat_map(|image| image.manifest().blobs());
        blobs.map(|blob| blob.size).fold(0, u64::saturating_add)
    }

    /// Deviations from the author's intent, with the reasons; those of members with their directories.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.main.as_ref().map(|image| image.warnings()).unwrap_or_default();
        warnings.extend(self.warnings.iter().cloned());
        for member in &self.members {
            let directory = member.directory.join("/");
            let own = self.beside(member).map(|image| image.warnings()).unwrap_or_default();
            let all = member.failure.iter().cloned().chain(own);
            warnings.extend(all.map(|warning| format!("{directory}: {warning}")));
        }
        warnings
    }

    /// Reports, from now on, the digest of every blob of which wrong bytes may have been served; `None` when no image
    /// is shown.
    pub fn distrusted(&self) -> Option<broadcast::Receiver<Digest>> {
        // All images share one cache.
        self.images().next().map(|image| image.cache.distrusted())
    }

    /// The digests of all blobs of all images.
    pub fn blobs(&self) -> Vec<Digest> {
        let blobs = self.images().flat_map(|image| image.manifest().blobs());
        let digests: BTreeSet<_> = blobs.map(|blob| blob.digest.clone()).collect();
        digests.into_iter().collect()
    }

    /// Takes a snapshot of the whole. Reads nothing.
    pub fn status(&self) -> ImageStatus {
        let mut status = match &self.main {
            Some(image) => image.status(),
            None => ImageStatus::empty(self.pinned.clone(), self.document.kind()),
        };
        status.reference = self.pinned.clone();
        status.warnings = self.warnings();
        status.signed_by.clone_from(&self.signed_by);
        for member in &self.members {
            let directory = member.directory.join("/");
            if let Some(image) = self.beside(member) {
                status.errors.extend(image.errors().into_iter().map(|error| format!("{directory}: {error}")));
            }
            let state = match (&member.failure, &member.image) {
                (Some(failure), _) => failure.clone(),
                (None, Some(_)) => "shown".to_owned(),
                (None, None) => "an index".to_owned(),
            };
            status.members.push(MemberStatus { directory, digest: member.digest.clone(), state });
        }
        status
    }
}
