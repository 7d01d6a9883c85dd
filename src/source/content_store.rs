//! Content stores of other tools: a source whose blobs are looked up locally first.
//!
//! A store is a directory with `blobs/sha256/HEX`, as in containerd's and every OCI layout. A blob in a store needs
//! no request. It is compared with its digest as a whole before its first byte is served. A wrong blob gives a
//! warning, and is fetched from the source instead. Nothing is written.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::OnceCell;

use crate::io::{
    BoxFuture, BoxStream, ByteRange, FetchPart, LinkEstimate, LocalBytes, RangeDelivery, RangeFetch,
    ReadError, lock,
};
use crate::oci::{Descriptor, Digest, Hasher};

use super::ImageSource;
use super::directory::{blob_path, open_inside};
use super::file::{HeldFile, LocalFile};
use super::wrapped::{BlobWrapper, WrappedSource};

/// Default directory of containerd's blobs.
const CONTAINERD: &str = "/var/lib/containerd/io.containerd.content.v1.content";

/// The default stores: containerd's, where this user may read it.
pub fn usual_stores() -> Vec<PathBuf> {
    let readable = |path: &&str| std::fs::read_dir(Path::new(path).join("blobs")).is_ok();
    Some(CONTAINERD).filter(|path| readable(path)).map(PathBuf::from).into_iter().collect()
}

/// Wraps `source`: blobs are read from the content stores in `stores` where they exist.
pub fn holding(source: Arc<dyn ImageSource>, stores: &[PathBuf]) -> Arc<dyn ImageSource> {
    if stores.is_empty() {
        return source;
    }
    Arc::new(WrappedSource { source, wrapper: ContentStores(stores.into()) })
}

/// The content stores in which blobs are looked up.
struct ContentStores(Arc<[PathBuf]>);

impl BlobWrapper for ContentStores {
    fn wrap(&self, descriptor: &Descriptor, blob: Arc<dyn RangeFetch>) -> Arc<dyn RangeFetch> {
        Arc::new(HeldBlob {
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            stores: self.0.clone(),
            found: OnceCell::new(),
            changed: AtomicBool::new(false),
            source: blob,
        })
    }
}

/// A blob that a store may have.
struct HeldBlob {
    digest: Digest,
    size: u64,
    stores: Arc<[PathBuf]>,
    /// The file in a store, `None` if no store has it; empty before the first read.
    found: OnceCell<Option<StoreFile>>,
    /// Whether the file was changed since it was compared.
    changed: AtomicBool,
    source: Arc<dyn RangeFetch>,
}

/// A compared file of a store, which is open only while a reader holds it: an artifact may have more blobs than a
/// process may have descriptors.
struct StoreFile {
    /// The number of the store.
    store: usize,
    /// The version that was compared.
    version: [u64; 7],
    open: Mutex<HeldFile>,
}

impl HeldBlob {
    /// The file of the first store that has a matching one, and the number of that store.
    async fn find(&self) -> Option<(usize, LocalFile)> {
        for (number, store) in self.stores.iter().enumerate() {
            let below = blob_path(&self.digest);
            let path = store.join(&below);
            // A missing file is normal, and not reported.
            let Ok(file) = LocalFile::opened(open_inside(store, &below), &path) else { continue };
            if file.size() != self.size {
                tracing::warn!(path = %path.display(), expected = self.size, size = file.size(), "a blob of a content store has a wrong size, and is not used");
                continue;
            }
            match self.digest_of(&file).await {
                Ok(Some(actual)) if actual == self.digest => {
                    tracing::info!(digest = %self.digest, path = %path.display(), "a blob is read from a content store");
                    return Some((number, file));
                }
                Ok(Some(actual)) => {
                    tracing::warn!(path = %path.display(), %actual, "a blob of a content store does not match its digest, and is not used");
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(
                        error = error.chain(),
                        "a blob of a content store cannot be read, and is not used"
                    );
                }
            }
        }
        None
    }

    /// The digest of the content of a file; `None` for an unsupported algorithm.
    async fn digest_of(&self, file: &LocalFile) -> Result<Option<Digest>, ReadError> {
        let Some(algorithm) = self.digest.algorithm() else { return Ok(None) };
        let mut hasher = Hasher::new(algorithm);
        if self.size > 0 {
            let mut body = file.fetch(ByteRange::new(0, self.size)).await?.body;
            while let Some(chunk) = body.next().await {
                let chunk = chunk?;
                hasher = crate::io::compute(move || {
                    hasher.update(&chunk);
                    Ok::<_, ReadError>(hasher)
                })
                .await?;
            }
        }
        Ok(Some(hasher.finish()))
    }

    /// The file, as long as it is unchanged since it was compared.
    async fn held(&self) -> Option<LocalFile> {
        let mut compared = None;
        let find = async {
            let (store, file) = self.find().await?;
            let (version, open) = (file.version(), Mutex::new(HeldFile::of(&file)));
            compared = Some(file);
            Some(StoreFile { store, version, open })
        };
        let found = self.found.get_or_init(|| find).await.as_ref()?;
        let mut open = lock(&found.open);
        let file = match compared.or_else(|| open.file()) {
            Some(file) => file,
            None => {
                let (store, below) = (self.stores.get(found.store)?, blob_path(&self.digest));
                let opened = LocalFile::opened(open_inside(store, &below), &store.join(&below));
                // A blob that is gone, or a shortage of descriptors, is no change.
                let file = opened.inspect_err(note_unreadable).ok()?;
                *open = HeldFile::of(&file);
                file
            }
        };
        let is_it = file.is_unchanged() && file.version() == found.version;
        if !is_it && !self.changed.swap(true, Ordering::Relaxed) {
            tracing::warn!(digest = %self.digest, "a blob of a content store was changed, and is not used any more");
        }
        (!self.changed.load(Ordering::Relaxed)).then_some(file)
    }

    /// Fetches from the source instead, after an error of the file.
    async fn instead(&self, error: &ReadError, range: ByteRange) -> Result<RangeDelivery, ReadError> {
        note_unreadable(error);
        self.source.fetch(range).await
    }
}

fn note_unreadable(error: &ReadError) {
    tracing::warn!(
        error = error.chain(),
        "cannot read a blob of a content store; fetching it from the registry"
    );
}

/// A delivery from a file that may fail midway.
struct FileDelivery {
    body: BoxStream<'static, Result<Bytes, ReadError>>,
    /// The next byte. Invariant: `at <= end`.
    at: u64,
    end: u64,
    /// The source of the rest when the file fails; `None` once that happened.
    instead: Option<Arc<dyn RangeFetch>>,
}

impl FileDelivery {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, ReadError> {
        loop {
            match (self.body.next().await, self.instead.take()) {
                (Some(Ok(chunk)), instead) => {
                    self.at += chunk.len() as u64;
                    self.instead = instead;
                    return Ok(Some((chunk, self)));
                }
                (None, _) => return Ok(None),
                (Some(Err(error)), None) => return Err(error),
                (Some(Err(error)), Some(instead)) => {
                    note_unreadable(&error);
                    let rest = FetchPart::new(instead, ByteRange::new(self.at, self.end))?;
                    self.body = rest.fetch(ByteRange::new(0, self.end - self.at)).await?.body;
                }
            }
        }
    }
}

impl RangeFetch for HeldBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn may_be_local(&self) -> bool {
        true
    }

    fn local(&self) -> BoxFuture<'_, Option<LocalBytes>> {
        Box::pin(async move {
            match self.held().await {
                Some(file) => file.local().await,
                None => self.source.local().await,
            }
        })
    }

    fn link(&self) -> Option<Arc<LinkEstimate>> {
        self.source.link()
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        Box::pin(async move {
            let Some(file) = self.held().await else { return self.source.fetch(range).await };
            let body = match file.fetch(range).await {
                Ok(delivery) => delivery.body,
                Err(error) => return self.instead(&error, range).await,
            };
            let state =
                FileDelivery { body, at: range.start, end: range.end, instead: Some(self.source.clone()) };
            let body = futures_util::stream::try_unfold(state, FileDelivery::next);
            Ok(RangeDelivery { range, body: body.boxed() })
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::io::{FaultClass, FetchAll, read_all};

    use super::*;

    /// Delivers `bytes`, and an error after the first `good` of a delivery.
    struct Failing {
        bytes: Vec<u8>,
        good: usize,
    }

    impl RangeFetch for Failing {
        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
            let asked = &self.bytes[range.start as usize..range.end as usize];
            let mut pieces: Vec<_> =
                asked.iter().take(self.good).map(|byte| Ok(Bytes::from(vec![*byte]))).collect();
            if pieces.len() < asked.len() {
                pieces.push(Err(ReadError::new(FaultClass::Io, "it fails")));
            }
            Box::pin(
                async move { Ok(RangeDelivery { range, body: futures_util::stream::iter(pieces).boxed() }) },
            )
        }
    }

    #[test]
    fn a_blob_that_no_store_has_shares_the_link_of_its_source() {
        struct OnLink(Arc<LinkEstimate>);
        impl RangeFetch for OnLink {
            fn size(&self) -> u64 {
                0
            }
            fn link(&self) -> Option<Arc<LinkEstimate>> {
                Some(Arc::clone(&self.0))
            }
            fn fetch(&self, _: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
                Box::pin(async { Err(ReadError::new(FaultClass::Io, "not read")) })
            }
        }
        let link = Arc::new(LinkEstimate::default());
        let blob = HeldBlob {
            digest: Digest::sha256(b""),
            size: 0,
            stores: Arc::new([]),
            found: OnceCell::new(),
            changed: AtomicBool::new(false),
            source: Arc::new(OnLink(Arc::clone(&link))),
        };
        assert!(blob.link().is_some_and(|shared| Arc::ptr_eq(&shared, &link)));
    }

    #[tokio::test]
    async fn the_rest_of_a_range_comes_from_the_source_when_a_file_fails_in_the_middle() {
        let bytes: Vec<u8> = (0..50).collect();
        for (good, works) in [(50, true), (0, false)] {
            for from_file in 0..50 {
                let source: Arc<dyn RangeFetch> = Arc::new(Failing { bytes: bytes.clone(), good });
                let file = Failing { bytes: bytes.clone(), good: from_file };
                let body = file.fetch(ByteRange::new(3, 50)).await.unwrap().body;
                let state = FileDelivery { body, at: 3, end: 50, instead: Some(source) };
                let mut body = futures_util::stream::try_unfold(state, FileDelivery::next).boxed();
                let mut came = Vec::new();
                let mut failed = false;
                while let Some(chunk) = body.next().await {
                    match chunk {
                        Ok(chunk) => came.extend_from_slice(&chunk),
                        Err(_) => failed = true,
                    }
                }
                assert_eq!(failed, !works && from_file < 47, "{from_file}");
                assert!(bytes[3..].starts_with(&came));
                assert_eq!(came.len() == 47, !failed);
            }
        }
        let whole = FetchAll(Arc::new(Failing { bytes: bytes.clone(), good: 50 }));
        assert_eq!(read_all(&whole).await.unwrap(), bytes);
    }
}
