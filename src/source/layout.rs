//! An OCI image layout directory as a source (image-spec image-layout.md).
//!
//! The only file names built here come from validated digests. Blobs may be missing or wrong: that is found when they are
//! read, by size here and by digest in the cache.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use crate::io::{BoxFuture, ByteRange, Delivery, Fault, Fetch, ReadError};
use crate::oci::{
    Descriptor, Digest, Document, Index, MAX_DOCUMENT, OciError, fallback_tag, is_of_kind, listed,
    referrer_of,
};

use super::{LayoutChoice, Root, Source, SourceError};

/// Bytes read from a file at once.
const CHUNK: u64 = 1024 * 1024;

/// The annotations that name an image of a layout: OCI's tag, and containerd's full name.
const NAMES: [&str; 2] = [crate::oci::REF_NAME, "io.containerd.image.name"];

/// The most bytes of documents that are read to find the referrers of one: a layout has no list of them, only documents that
/// each name their subject.
const MAX_SEARCHED: u64 = 64 * 1024 * 1024;

/// One layout directory, and which of its images.
#[derive(Clone)]
pub(super) struct LayoutSource {
    directory: PathBuf,
    choice: LayoutChoice,
}

#[derive(Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl LayoutSource {
    pub(super) fn new(directory: PathBuf, choice: LayoutChoice) -> Self {
        Self { directory, choice }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs").join(digest.algorithm_name()).join(digest.encoded())
    }

    /// A document of this layout, for messages.
    fn place(&self, digest: &Digest) -> String {
        format!("{digest} of {}", self.directory.display())
    }

    /// What the layout says it holds.
    fn index(&self) -> Result<Index, SourceError> {
        let not_a_layout =
            |reason: String| SourceError::NotALayout { directory: self.directory.clone(), reason };
        let required = |name: &str| {
            let path = self.directory.join(name);
            match std::fs::metadata(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    Err(not_a_layout(format!("there is no file {name}")))
                }
                _ => read_document(&path),
            }
        };
        match std::fs::metadata(&self.directory) {
            Err(source) => return Err(SourceError::Io { path: self.directory.clone(), source }),
            Ok(meta) if !meta.is_dir() => return Err(not_a_layout("it is not a directory".into())),
            Ok(_) => {}
        }
        let marker: Marker = serde_json::from_slice(&required("oci-layout")?)
            .map_err(|error| not_a_layout(format!("file oci-layout: {error}")))?;
        if !marker.version.starts_with("1.") {
            return Err(not_a_layout(format!("its version is {}, not 1.x", marker.version)));
        }
        let index =
            Document::parse(&required("index.json")?, Some("application/vnd.oci.image.index.v1+json"))
                .map_err(|error| not_a_layout(format!("file index.json: {error}")))?;
        match index {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => Err(not_a_layout("file index.json is no index".into())),
        }
    }

    /// The descriptor in `index.json` that the choice names.
    fn choose(&self) -> Result<Descriptor, SourceError> {
        let index = self.index()?;
        let available = || {
            let list: Vec<_> = index
                .manifests
                .iter()
                .map(|entry| names(entry).into_iter().next().unwrap_or_else(|| format!("@{}", entry.digest)))
                .collect();
            if list.is_empty() { "nothing".into() } else { list.join(", ") }
        };
        let missing = |wanted: String| SourceError::NotInLayout {
            directory: self.directory.clone(),
            wanted,
            available: available(),
        };
        match &self.choice {
            LayoutChoice::Tag(tag) => {
                let mut found = index.manifests.iter().filter(|entry| names(entry).contains(tag));
                found.next().cloned().ok_or_else(|| missing(tag.clone()))
            }
            LayoutChoice::Digest(digest) => {
                if let Some(entry) = index.manifests.iter().find(|entry| entry.digest == *digest) {
                    return Ok(entry.clone());
                }
                // A manifest below a nested index is named by digest too.
                self.by_digest(digest).map_err(|_| missing(digest.to_string()))
            }
            LayoutChoice::Only => match index.manifests.as_slice() {
                [only] => Ok(only.clone()),
                [] => Err(missing("at all".into())),
                _ => {
                    Err(SourceError::Ambiguous { directory: self.directory.clone(), available: available() })
                }
            },
        }
    }

    /// A descriptor for a document of which only the digest is known.
    fn by_digest(&self, digest: &Digest) -> Result<Descriptor, SourceError> {
        let path = self.blob_path(digest);
        let size = std::fs::metadata(&path).map_err(|source| SourceError::Io { path, source })?.len();
        Ok(Descriptor { digest: digest.clone(), size, ..Descriptor::of("", &[]) })
    }

    /// Documents of `index.json`, and of the list that a fallback tag may name there, whose bytes say that they are about
    /// `subject`. A document that is missing or broken is about nothing.
    fn search(&self, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<Descriptor>, SourceError> {
        let mut candidates = self.index()?.manifests;
        let tag = fallback_tag(subject);
        let lists: Vec<_> = candidates.iter().filter(|entry| names(entry).contains(&tag)).cloned().collect();
        let mut left = MAX_SEARCHED;
        let mut read = |entry: &Descriptor| {
            left = left.checked_sub(entry.size).ok_or_else(|| SourceError::Document {
                place: format!("referrers of {}", self.place(subject)),
                source: OciError::Unsupported {
                    what: "search",
                    reason: format!("the documents have more than {MAX_SEARCHED} bytes"),
                },
            })?;
            Ok::<_, SourceError>(match self.read(entry) {
                Ok(root) => Some(root),
                Err(error) => {
                    tracing::debug!(digest = %entry.digest, %error, "no referrer");
                    None
                }
            })
        };
        for list in lists {
            if let Some(root) = read(&list)?
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
            let Some(root) = read(entry)? else { continue };
            let Ok(document) = Document::parse(&root.bytes, root.content_type.as_deref()) else { continue };
            if document.subject().is_some_and(|about| about.digest == *subject) {
                let media_type = document.media_type().as_written();
                let referrer = referrer_of(&document, media_type, &root.bytes);
                found.push(Descriptor { digest: root.digest, ..referrer });
            }
        }
        found.retain(|entry| is_of_kind(entry, artifact_type));
        Ok(found)
    }

    fn read(&self, descriptor: &Descriptor) -> Result<Root, SourceError> {
        let path = self.blob_path(&descriptor.digest);
        if descriptor.size > MAX_DOCUMENT {
            let reason = format!("{} bytes are more than the limit of {MAX_DOCUMENT}", descriptor.size);
            let source = OciError::Malformed { what: "document", reason };
            return Err(SourceError::Document { place: self.place(&descriptor.digest), source });
        }
        let bytes = read_document(&path)?;
        descriptor
            .check("manifest", &bytes)
            .map_err(|source| SourceError::Document { place: self.place(&descriptor.digest), source })?;
        let content_type =
            Some(descriptor.media_type.as_written().to_owned()).filter(|kind| !kind.is_empty());
        Ok(Root { bytes: bytes.into(), digest: descriptor.digest.clone(), content_type })
    }
}

impl Source for LayoutSource {
    fn root(&self) -> BoxFuture<'_, Result<Root, SourceError>> {
        Box::pin(async move {
            let chosen = self.choose()?;
            let is_listed = !chosen.media_type.is_empty();
            match (self.read(&chosen), &self.choice) {
                // A digest that no document of the layout may name can be that of a blob.
                (read, LayoutChoice::Digest(digest)) if !is_listed => match read {
                    Ok(root) if Document::parse(&root.bytes, None).is_ok() => Ok(root),
                    Err(error @ SourceError::Io { .. }) => Err(error),
                    Ok(_) | Err(_) => Err(SourceError::NotADocument { place: self.place(digest) }),
                },
                (read, _) => read,
            }
        })
    }

    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Root, SourceError>> {
        Box::pin(async move { self.read(descriptor) })
    }

    fn named<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Root, SourceError>> {
        Box::pin(async move { self.read(&self.by_digest(digest)?) })
    }

    fn tagged<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Option<Root>, SourceError>> {
        Box::pin(async move {
            let entries = self.index()?.manifests;
            let found = entries.iter().find(|entry| names(entry).iter().any(|name| name == tag));
            found.map(|entry| self.read(entry)).transpose()
        })
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>> {
        let (layout, subject, artifact_type) =
            (self.clone(), subject.clone(), artifact_type.map(str::to_owned));
        Box::pin(async move {
            // Every document is read: too much for a thread that others wait for.
            let search =
                tokio::task::spawn_blocking(move || layout.search(&subject, artifact_type.as_deref()));
            let directory = || self.directory.clone();
            search.await.map_err(|error| SourceError::Io { path: directory(), source: error.into() })?
        })
    }

    fn blob_size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, SourceError>> {
        Box::pin(async move { Ok(self.by_digest(digest)?.size) })
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Fetch> {
        Arc::new(LayoutBlob { path: self.blob_path(&descriptor.digest), size: descriptor.size })
    }
}

/// The names that `index.json` gives to an entry.
fn names(entry: &Descriptor) -> Vec<String> {
    NAMES.iter().filter_map(|name| entry.annotations.get(*name)).cloned().collect()
}

/// Opens a regular file. A pipe or a device in a layout, which may be somebody else's archive, must not hold us up.
fn open_file(path: &Path) -> std::io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file"))
}

/// Reads a small file whole, but never more than a document may have.
fn read_document(path: &Path) -> Result<Vec<u8>, SourceError> {
    let io = |source| SourceError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = open_file(path).map_err(io)?;
    // One byte more than allowed, so that the parser sees that it is too much.
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// A blob file.
struct LayoutBlob {
    path: PathBuf,
    size: u64,
}

impl LayoutBlob {
    fn open(&self) -> Result<File, ReadError> {
        let io = |error: std::io::Error| {
            let fault =
                if error.kind() == std::io::ErrorKind::NotFound { Fault::NotFound } else { Fault::Io };
            ReadError::caused(fault, format!("reading {}", self.path.display()), error)
        };
        let file = open_file(&self.path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        if size != self.size {
            let message =
                format!("{} has {size} bytes, its descriptor says {}", self.path.display(), self.size);
            return Err(ReadError::new(Fault::Mismatch, message));
        }
        Ok(file)
    }
}

impl Fetch for LayoutBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<Delivery, ReadError>> {
        Box::pin(async move {
            let file = Arc::new(self.open()?);
            let path: Arc<Path> = self.path.as_path().into();
            let body = futures_util::stream::try_unfold(range.start, move |at| {
                let (file, path) = (file.clone(), path.clone());
                async move {
                    if at == range.end {
                        return Ok(None);
                    }
                    let len = (range.end - at).min(CHUNK);
                    let read = tokio::task::spawn_blocking(move || {
                        let mut buf = vec![0; len as usize];
                        file.read_exact_at(&mut buf, at).map(|()| buf)
                    });
                    let failed = |error: std::io::Error| {
                        ReadError::caused(Fault::Io, format!("reading {} at {at}", path.display()), error)
                    };
                    let buf = read.await.map_err(|error| failed(error.into()))?.map_err(failed)?;
                    Ok(Some((Bytes::from(buf), at + len)))
                }
            });
            Ok(Delivery { range, body: Box::pin(body) })
        })
    }
}
