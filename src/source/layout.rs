//! OCI image layout as a source (image-spec image-layout.md), in a directory or an archive.
//!
//! A layout is a list of images by name and a set of blobs by digest, and so is every archive of images. A type
//! with both is a source through [`LayoutFiles`]. Nothing is opened in this module. A missing or wrong blob is detected
//! when it is read: its size by the implementation, and its digest by the cache.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use crate::io::{BoxFuture, RangeFetch};
use crate::oci::go_json::document;
use crate::oci::{
    Descriptor, Digest, INDEX_TYPE, MAX_DOCUMENT, ManifestDocument, OciError, fallback_tag, is_of_kind,
    listed, referrer_of,
};

use super::{ImageSource, LayoutChoice, RootDocument, SourceError};

/// The annotations that name an image of a layout: OCI's tag, and containerd's full name.
const NAMES: [&str; 2] = [crate::oci::REF_NAME, crate::oci::IMAGE_NAME];

/// Maximum bytes of documents that are read to find the referrers of one: a layout has no list of them, only
/// documents that each name their subject.
const MAX_SEARCHED: u64 = 64 * 1024 * 1024;

/// A list of images and a set of blobs.
pub trait LayoutFiles: Send + Sync + 'static {
    /// Name of the directory or archive, for messages.
    fn place(&self) -> String;

    /// The images, in the order of the list.
    fn images(&self) -> BoxFuture<'_, Result<Vec<LayoutImage>, SourceError>>;

    /// Whether the user's `tag` means the image with this name in the list.
    fn is_called(&self, name: &str, tag: &str) -> bool {
        name == tag
    }

    /// The size of the blob `digest` in bytes.
    fn size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, SourceError>>;

    /// All bytes of the blob `digest`, at most [`MAX_DOCUMENT`]. The caller compares them with the digest.
    fn document<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, SourceError>>;

    /// A lazy blob; reads nothing.
    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn RangeFetch>;
}

/// An image in the list of a layout.
#[derive(Clone, Debug)]
pub struct LayoutImage {
    /// Its document.
    pub descriptor: Descriptor,
    /// Its names, possibly none.
    pub names: Vec<String>,
}

#[derive(Deserialize)]
struct LayoutMarker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// The images of a layout at `place`, from its two files `oci-layout` and `index.json`.
pub fn listed_in(place: &str, marker: &[u8], index: &[u8]) -> Result<Vec<LayoutImage>, SourceError> {
    let not_a_layout = |reason: String| SourceError::NotALayout { place: place.to_owned(), reason };
    let marker: LayoutMarker =
        document(marker).map_err(|error| not_a_layout(format!("file oci-layout: {error}")))?;
    if !marker.version.starts_with("1.") {
        return Err(not_a_layout(format!("its version is {}, not 1.x", marker.version)));
    }
    let index = ManifestDocument::parse(index, Some(INDEX_TYPE))
        .map_err(|error| not_a_layout(format!("file index.json: {error}")))?;
    let ManifestDocument::Index(index) = index else {
        return Err(not_a_layout("file index.json is no index".into()));
    };
    let listed = |descriptor: Descriptor| LayoutImage {
        names: NAMES.iter().filter_map(|name| descriptor.annotations.get(*name)).cloned().collect(),
        descriptor,
    };
    Ok(index.manifests.into_iter().map(listed).collect())
}

/// A layout, and the choice of one of its images.
pub struct LayoutSource<F> {
    files: F,
    choice: LayoutChoice,
}

impl<F: LayoutFiles> LayoutSource<F> {
    /// The image of `files` that `choice` names. Reads nothing.
    pub fn new(files: F, choice: LayoutChoice) -> Self {
        Self { files, choice }
    }

    /// A document of this layout, for messages.
    fn name_of(&self, digest: &Digest) -> String {
        format!("{digest} of {}", self.files.place())
    }

    /// The descriptor of the chosen image.
    async fn choose(&self) -> Result<Descriptor, SourceError> {
        let images = self.files.images().await?;
        let available = || match &images[..] {
            [] => "nothing".into(),
            images => labels(images, &Vec::from_iter(images)),
        };
        let missing = |wanted: String| SourceError::NotInLayout {
            place: self.files.place(),
            wanted,
            available: available(),
        };
        let found = match &self.choice {
            LayoutChoice::Tag(tag) => {
                let is_meant =
                    |image: &&LayoutImage| image.names.iter().any(|name| self.files.is_called(name, tag));
                let meant = Vec::from_iter(images.iter().filter(is_meant));
                let first = *meant.first().ok_or_else(|| missing(tag.clone()))?;
                if !are_one(&meant) {
                    let available = labels(&images, &meant);
                    return Err(SourceError::Ambiguous { place: self.files.place(), available });
                }
                first
            }
            LayoutChoice::Number(number) => {
                images.get(*number).ok_or_else(|| missing(format!("with number {number}")))?
            }
            LayoutChoice::Digest(digest) => {
                match images.iter().find(|image| image.descriptor.digest == *digest) {
                    Some(image) => image,
                    // A manifest below a nested index can be chosen by digest too.
                    None => return self.by_digest(digest).await.map_err(|_| missing(digest.to_string())),
                }
            }
            LayoutChoice::Only => match images.as_slice() {
                [] => return Err(missing("at all".into())),
                [first, ..] if are_one(&Vec::from_iter(&images)) => first,
                _ => {
                    return Err(SourceError::Ambiguous { place: self.files.place(), available: available() });
                }
            },
        };
        Ok(found.descriptor.clone())
    }

    /// A descriptor for a document known only by its digest.
    async fn by_digest(&self, digest: &Digest) -> Result<Descriptor, SourceError> {
        let size = self.files.size(digest).await?;
        Ok(Descriptor { digest: digest.clone(), size, ..Descriptor::of("", &[]) })
    }

    /// The documents whose bytes name `subject` as their subject. Candidates are the entries of `index.json`,
    /// and those of a list under the fallback tag. A missing or broken document has no subject.
    async fn search(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, SourceError> {
        let images = self.files.images().await?;
        let tag = fallback_tag(subject);
        let lists = images.iter().filter(|image| image.names.contains(&tag));
        let lists: Vec<_> = lists.map(|image| image.descriptor.clone()).collect();
        let mut candidates: Vec<_> = images.into_iter().map(|image| image.descriptor).collect();
        let mut left = MAX_SEARCHED;
        let mut read = async |entry: &Descriptor| {
            left = left.checked_sub(entry.size).ok_or_else(|| SourceError::Document {
                place: format!("referrers of {}", self.name_of(subject)),
                source: OciError::Unsupported {
                    what: "search",
                    reason: format!("the documents have more than {MAX_SEARCHED} bytes"),
                },
            })?;
            Ok::<_, SourceError>(match self.read(entry).await {
                Ok(root) => Some(root),
                Err(error) => {
                    tracing::debug!(digest = %entry.digest, %error, "no referrer");
                    None
                }
            })
        };
        for list in lists {
            if let Some(root) = read(&list).await?
                && let Ok(entries) = listed(&root.bytes, root.content_type.as_deref())
            {
                candidates.extend(entries);
            }
        }
        let mut seen = HashSet::from([subject.clone()]);
        let mut found = Vec::new();
        for entry in candidates.iter().filter(|entry| entry.size <= MAX_DOCUMENT) {
            if !seen.insert(entry.digest.clone()) {
                continue;
            }
            let Some(root) = read(entry).await? else { continue };
            let Ok(document) = ManifestDocument::parse(&root.bytes, root.content_type.as_deref()) else {
                continue;
            };
            if document.subject().is_some_and(|about| about.digest == *subject) {
                let media_type = document.media_type().as_written();
                let referrer = referrer_of(&document, media_type, &root.bytes);
                found.push(Descriptor { digest: root.digest, ..referrer });
            }
        }
        found.retain(|entry| is_of_kind(entry, artifact_type));
        Ok(found)
    }

    async fn read(&self, descriptor: &Descriptor) -> Result<RootDocument, SourceError> {
        if descriptor.size > MAX_DOCUMENT {
            let reason = format!("{} bytes are more than the limit of {MAX_DOCUMENT}", descriptor.size);
            let source = OciError::Malformed { what: "document", reason };
            return Err(SourceError::Document { place: self.name_of(&descriptor.digest), source });
        }
        let bytes = self.files.document(&descriptor.digest).await?;
        descriptor
            .check("manifest", &bytes)
            .map_err(|source| SourceError::Document { place: self.name_of(&descriptor.digest), source })?;
        let content_type =
            Some(descriptor.media_type.as_written().to_owned()).filter(|kind| !kind.is_empty());
        Ok(RootDocument { bytes, digest: descriptor.digest.clone(), content_type })
    }
}

/// Whether these are one image under several names.
fn are_one(images: &[&LayoutImage]) -> bool {
    images.windows(2).all(|pair| pair[0].descriptor.digest == pair[1].descriptor.digest)
}

/// Names that distinguish `some` of `images`, comma separated: a name that no other image has, else the digest.
fn labels(images: &[LayoutImage], some: &[&LayoutImage]) -> String {
    let label = |image: &&LayoutImage| {
        let is_other = |other: &&LayoutImage| other.descriptor.digest != image.descriptor.digest;
        let is_unique =
            |name: &&String| !images.iter().filter(is_other).any(|other| other.names.contains(name));
        let platform = || match &image.descriptor.platform {
            Some(platform) => format!(" ({platform})"),
            None => String::new(),
        };
        let digest = || format!("@{}{}", image.descriptor.digest, platform());
        image.names.iter().find(is_unique).cloned().unwrap_or_else(digest)
    };
    let mut labels = Vec::from_iter(some.iter().map(label));
    labels.dedup();
    labels.join(", ")
}

impl<F: LayoutFiles> ImageSource for LayoutSource<F> {
    fn root(&self) -> BoxFuture<'_, Result<RootDocument, SourceError>> {
        Box::pin(async move {
            let chosen = self.choose().await?;
            let is_listed = !chosen.media_type.is_empty();
            match (self.read(&chosen).await, &self.choice) {
                // A digest without a document in the list can be that of a blob.
                (read, LayoutChoice::Digest(digest)) if !is_listed => match read {
                    Ok(root) if ManifestDocument::parse(&root.bytes, None).is_ok() => Ok(root),
                    Err(error @ (SourceError::Io { .. } | SourceError::Read(_))) => Err(error),
                    Ok(_) | Err(_) => Err(SourceError::NotADocument { place: self.name_of(digest) }),
                },
                (read, _) => read,
            }
        })
    }

    fn document<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> BoxFuture<'a, Result<RootDocument, SourceError>> {
        Box::pin(self.read(descriptor))
    }

    fn named<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<RootDocument, SourceError>> {
        Box::pin(async move { self.read(&self.by_digest(digest).await?).await })
    }

    fn tagged<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Option<RootDocument>, SourceError>> {
        Box::pin(async move {
            let images = self.files.images().await?;
            match images.iter().find(|image| image.names.iter().any(|name| name == tag)) {
                Some(image) => self.read(&image.descriptor).await.map(Some),
                None => Ok(None),
            }
        })
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>> {
        Box::pin(self.search(subject, artifact_type))
    }

    fn blob_size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, SourceError>> {
        self.files.size(digest)
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn RangeFetch> {
        self.files.blob(descriptor)
    }
}
