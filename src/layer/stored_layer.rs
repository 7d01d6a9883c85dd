//! Layer of an image: its index, found or built once, and its uncompressed stream.
//!
//! The first index used decides for the life of the layer: offsets of a made-up stream have no meaning for another
//! index. A local index is trusted. A foreign index is a claim, which is compared with the stored bytes once they
//! are complete and verified.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use crate::cache::{BlockCache, CachedFile, LayerMetadata, VerificationState, VerifyMode};
use crate::io::{BoxFuture, ByteRange, FaultClass, ReadError, SharedReader, lock};
use crate::oci::{Digest, Hasher};

use super::chunk_verification;
use super::file_reader::FileReadahead;
use super::foreign::{self, FindError, ForeignLimits, IndexKind};
use super::guarded_stream::refuse_poisoned;
use super::index::LayerIndex;
use super::layer_options::{IndexPolicy, LayerOptions};
use super::layer_readahead::LayerReadahead;
use super::layer_shared::LayerShared;
use super::layer_state::LayerState;
use super::opened::{OpenStream, UntrustedClaim};
use super::peek;
use super::sniff::{SniffResult, StreamEncoding};
use super::toc::{TableOfContents, has_namespace};
use super::untrusted_index::{self, ClaimVerdict};

/// A stored layer, readable as an archive or only as its uncompressed bytes.
pub struct StoredLayer {
    pub(super) core: Arc<LayerShared>,
    pub(super) hints: LayerOptions,
    /// The selected index; empty before the first request.
    choice: OnceCell<IndexSource>,
    opened: OnceLock<OpenStream>,
    state: Mutex<LayerState>,
    audit: Mutex<Option<AuditTask>>,
    /// Set once its own index is known to come from verified bytes.
    proven_index: OnceLock<()>,
    /// Set once the stream has the digest in the hints.
    agreed: OnceCell<()>,
    /// Number of hidden extended attributes, once the names are known.
    unshown_xattrs: OnceLock<u64>,
}

/// The index by which a layer is read.
#[derive(Clone)]
pub(super) enum IndexSource {
    /// The layer's own index.
    Own,
    /// A foreign index.
    Claim(Arc<UntrustedClaim>),
}

/// The task that waits for the layer to be complete. It ends with the layer.
struct AuditTask(JoinHandle<()>);

impl Drop for AuditTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl StoredLayer {
    /// The layer stored in `blob`, an archive. Reads nothing.
    pub fn new(blob: Arc<CachedFile>, cache: BlockCache, hints: LayerOptions) -> Self {
        Self::read_as(LayerMetadata::Archive, blob, cache, hints)
    }

    /// The layer stored in `blob`, of any content, for its uncompressed bytes. Its table of contents is empty. An
    /// uncompressed blob is its own stream. Reads nothing.
    pub fn packed(blob: Arc<CachedFile>, cache: BlockCache, hints: LayerOptions) -> Self {
        Self::read_as(LayerMetadata::Stream, blob, cache, hints)
    }

    fn read_as(form: LayerMetadata, blob: Arc<CachedFile>, cache: BlockCache, hints: LayerOptions) -> Self {
        let algorithm = hints.content.as_ref().and_then(Digest::algorithm);
        let core = LayerShared::new(form, blob, cache, algorithm.map(Hasher::new));
        Self {
            core: Arc::new(core),
            hints,
            choice: OnceCell::new(),
            opened: OnceLock::new(),
            state: Mutex::new(LayerState::Untouched),
            audit: Mutex::default(),
            proven_index: OnceLock::new(),
            agreed: OnceCell::new(),
            unshown_xattrs: OnceLock::new(),
        }
    }

    /// Counts the hidden extended attributes in its table of contents, once.
    pub fn count_xattrs(&self, toc: &TableOfContents) {
        self.unshown_xattrs.get_or_init(|| unshown_xattrs(toc));
    }

    /// Number of extended attributes of its entries that are hidden, because Linux lacks their namespace; 0 before
    /// its names are known.
    pub fn unshown_xattrs(&self) -> u64 {
        self.unshown_xattrs.get().copied().unwrap_or_default()
    }

    /// The state of this layer.
    pub fn state(&self) -> LayerState {
        match self.core.refuted.get() {
            Some(error) => LayerState::Failed(error.clone()),
            None => self.lock().clone(),
        }
    }

    /// Problems that did not prevent reading the layer: unused indexes, with the reasons.
    pub fn warnings(&self) -> Vec<String> {
        self.core.warnings()
    }

    /// Stream bytes decoded by the running pass.
    pub fn decoded(&self) -> u64 {
        self.core.progress.load(Ordering::Relaxed)
    }

    /// The kind of index by which the layer is read; `None` if it is unknown without reading a blob.
    pub fn known_index(&self) -> Option<IndexKind> {
        if let LayerState::Indexed { kind, .. } = self.state() {
            return Some(kind);
        }
        let policy = self.hints.policy;
        if policy != IndexPolicy::Off && self.core.has_kept() {
            return Some(IndexKind::Local);
        }
        let is_used = policy.takes_foreign() && self.core.form == LayerMetadata::Archive;
        foreign::announced(&self.hints.annotations).filter(|_| is_used)
    }

    /// The size of the cached index, if it exists and would be used. Reads nothing.
    pub fn kept_index_len(&self) -> Option<u64> {
        let is_used = self.hints.policy != IndexPolicy::Off;
        self.core.cache.learnt_len(self.core.form, self.core.blob.digest()).filter(|_| is_used)
    }

    /// The format of the stored bytes, by one small read.
    pub async fn sniff(&self) -> Result<SniffResult, ReadError> {
        self.core.sniff(&*self.core.blob.looked_at()).await
    }

    /// The first `len` bytes of the uncompressed stream, or all of a shorter one. Decodes only the stored bytes
    /// needed. Bytes that are not compressed are returned unchanged, archive or not. An index is neither needed nor
    /// made.
    pub async fn peek(&self, len: u64) -> Result<Vec<u8>, ReadError> {
        let peek = async {
            refuse_poisoned(&self.core.blob)?;
            let looked_at = self.core.blob.looked_at();
            let encoding = self.core.look_at_encoding(&*looked_at).await?.unwrap_or(StreamEncoding::Plain);
            let head = peek::read(&*looked_at, encoding, len).await?;
            refuse_poisoned(&self.core.blob)?;
            Ok(head)
        };
        peek.await.map_err(|error| self.subject(error))
    }

    /// The compression of its bytes, by the first of them; `None` for uncompressed bytes.
    pub async fn compression(&self) -> Result<Option<&'static str>, ReadError> {
        let encoding = self.core.look_at_encoding(&*self.core.blob.looked_at()).await;
        Ok(encoding.map_err(|error| self.subject(error))?.and_then(StreamEncoding::compression))
    }

    /// The size of the uncompressed stream, if it is known without decoding all of it. `None` means that only
    /// [`index`](Self::index) can determine it.
    pub async fn quick_size(&self) -> Result<Option<u64>, ReadError> {
        let size = async {
            refuse_poisoned(&self.core.blob)?;
            if let Some(opened) = self.opened.get().filter(|opened| !opened.spans.is_made_up()) {
                return Ok(Some(opened.spans.stream_size()));
            }
            if self.hints.policy != IndexPolicy::Off
                && let Some(kept) = self.core.kept().await?
            {
                return Ok(Some(kept.spans.stream_size()));
            }
            if self.hints.repositories.is_some()
                && self.hints.policy.takes_foreign()
                && let IndexSource::Claim(claim) = self.choose(&mut None).await?
                && !claim.foreign.index.spans.is_made_up()
            {
                return Ok(Some(claim.foreign.index.spans.stream_size()));
            }
            let looked_at = self.core.blob.looked_at();
            let encoding = self.core.look_at_encoding(&*looked_at).await?.unwrap_or(StreamEncoding::Plain);
            let is_here = self.core.blob.present(ByteRange::new(0, self.core.size()));
            peek::size(&*looked_at, encoding, is_here).await
        };
        size.await.map_err(|error| self.subject(error))
    }

    /// Adds the layer's digest to an error.
    fn subject(&self, error: ReadError) -> ReadError {
        error.within(format!("layer {}", self.core.blob.digest()))
    }

    /// The index: cached, carried by the image, stored beside it, or built by one pass over the stored bytes.
    /// Content errors are permanent unless the blob will be fetched again; others may be temporary. A large table
    /// of contents is on disk.
    pub async fn index(&self) -> Result<LayerIndex, ReadError> {
        if let LayerState::Failed(error) = self.state() {
            return Err(error);
        }
        self.core.blob.try_again();
        match self.find_or_build().await {
            Ok((index, kind)) => {
                *self.lock() = LayerState::Indexed {
                    kind,
                    encoding: index.spans.encoding(),
                    stream_size: index.spans.stream_size(),
                    spans: index.spans.spans(),
                };
                Ok(index)
            }
            Err(error) => {
                let error = self.subject(error);
                *self.lock() = match error.fault() {
                    // The next request reads other bytes.
                    _ if self.core.blob.is_rejected() => LayerState::Untouched,
                    FaultClass::Malformed | FaultClass::Unsupported | FaultClass::Mismatch => {
                        LayerState::Failed(error.clone())
                    }
                    _ => LayerState::Untouched,
                };
                Err(error)
            }
        }
    }

    /// The index from the layer's own bytes, cached or built now, even if a foreign index is in use.
    pub async fn own_index(&self) -> Result<LayerIndex, ReadError> {
        let own = self.core.own_index(&self.state).await;
        own.map_err(|error| self.subject(error))
    }

    /// The uncompressed stream as readers get it now, for a reader that compares all of it and caches nothing.
    /// `None` without an index.
    pub fn as_served(&self) -> Option<SharedReader> {
        self.opened.get().map(|opened| opened.served.clone())
    }

    /// The uncompressed stream; `None` before [`index`](Self::index) has succeeded.
    pub fn stream(&self) -> Option<SharedReader> {
        self.opened.get().map(|opened| opened.stream.clone())
    }

    /// Whether every byte of the stream is compared before a read returns it: with the checksums of a pass over verified
    /// bytes, with chunk digests that the manifest covers, or with the digest of the whole blob. `false` before
    /// [`index`](Self::index) has succeeded, and once the content is known to be wrong.
    pub fn compares_reads(&self) -> bool {
        let (Some(choice), Some(opened)) = (self.choice.get(), self.opened.get()) else { return false };
        let blob = &self.core.blob;
        if self.core.refuted.get().is_some() || blob.state() == VerificationState::Poisoned {
            return false;
        }
        match choice {
            IndexSource::Own if opened.has_checksums && self.proven_index.get().is_some() => true,
            IndexSource::Own => blob.is_proven_first(),
            IndexSource::Claim(claim) if claim.is_rooted && opened.spans.is_made_up() => true,
            IndexSource::Claim(_) => {
                self.core.confirmed.get().is_some() && blob.state() == VerificationState::Verified
            }
        }
    }

    /// Makes [`compares_reads`](Self::compares_reads) true: if need be, fetches the whole blob, compares it with its
    /// digest, and compares a foreign index with it.
    pub async fn compare_all(&self) -> Result<(), ReadError> {
        // An index that is in use is not read again.
        if self.compares_reads() {
            return Ok(());
        }
        self.index().await?;
        if self.compares_reads() {
            return Ok(());
        }
        let core = &self.core;
        core.blob.ensure(ByteRange::new(0, core.size())).await.map_err(|error| self.subject(error))?;
        if let Some(IndexSource::Claim(claim)) = self.choice.get()
            && core.confirmed.get().is_none()
        {
            let claim = &claim.foreign;
            match untrusted_index::audit(core, claim).await.map_err(|error| self.subject(error))? {
                ClaimVerdict::True => drop(core.confirmed.set(())),
                ClaimVerdict::False(why) => core.refute(claim, &why),
            }
        }
        if core.blob.state() == VerificationState::Verified {
            self.proven_index.get_or_init(|| ());
        }
        if self.compares_reads() {
            return Ok(());
        }
        let refuted = core.refuted.get().cloned();
        Err(refuted.unwrap_or_else(|| {
            let message = "it cannot be compared with its digest, because the cache does not hold all of it";
            self.subject(ReadError::new(FaultClass::Unsupported, message))
        }))
    }

    /// Stored bytes that are cached, and all of them: the progress of [`compare_all`](Self::compare_all).
    pub fn stored_bytes(&self) -> (u64, u64) {
        (self.core.blob.bytes_present(), self.core.size())
    }

    /// A function from a range of the stream to the stored ranges that a read of it needs. It may outlive the
    /// layer.
    pub fn stored_ranges(&self) -> impl Fn(ByteRange) -> Vec<ByteRange> + Send + Sync + use<> {
        let spans = self.opened.get().map(|opened| opened.spans.clone());
        move |range| {
            let pieces = spans.iter().flat_map(|spans| spans.cover(range));
            pieces.map(|piece| piece.stored).collect()
        }
    }

    /// The readahead of stored bytes; `None` when all of them are verified.
    pub fn readahead(&self) -> Option<Arc<dyn FileReadahead>> {
        if self.core.blob.state() == VerificationState::Verified {
            return None;
        }
        let opened = self.opened.get()?;
        Some(Arc::new(LayerReadahead {
            spans: opened.spans.clone(),
            stream: opened.cached.as_ref().map(Arc::downgrade),
            core: Arc::downgrade(&self.core),
        }))
    }

    /// Fetches the stored bytes of `range` of the stream that are not cached.
    pub fn fetching(&self, range: ByteRange) -> BoxFuture<'static, Result<(), ReadError>> {
        let (wanted, blob) = (self.stored_ranges()(range), self.core.blob.clone());
        Box::pin(async move {
            for stored in wanted {
                blob.ensure(stored).await?;
            }
            Ok(())
        })
    }

    /// Compares the index that the layer carries with the layer, whatever index is in use. `None` when the layer
    /// carries no index, `Err` with the first difference. Fetches all of the layer.
    pub async fn check_carried(&self) -> Result<Option<Result<(), String>>, ReadError> {
        let core = &self.core;
        let Some(encoding @ (StreamEncoding::Gzip | StreamEncoding::Zstd)) = core.encoding().await? else {
            return Ok(None);
        };
        let annotations = &self.hints.annotations;
        match foreign::find_foreign(&*core.blob, encoding, annotations, ForeignLimits::default()).await {
            Ok(None) => Ok(None),
            Ok(Some(found)) => match untrusted_index::audit(core, &found).await? {
                ClaimVerdict::True => Ok(Some(Ok(()))),
                ClaimVerdict::False(why) => Ok(Some(Err(why))),
            },
            Err(FindError::Index(error)) => Ok(Some(Err(error.to_string()))),
            Err(FindError::Read(error)) => Err(error),
        }
    }

    /// The selected index, chosen on first use; `found` is set to the cached one where that decided.
    pub(super) async fn choose(&self, found: &mut Option<LayerIndex>) -> Result<&IndexSource, ReadError> {
        let choice = self.choice.get_or_try_init(|| async {
            if self.hints.policy != IndexPolicy::Off {
                *found = self.core.kept().await?;
            }
            if found.is_some() || !self.hints.policy.takes_foreign() {
                return Ok(IndexSource::Own);
            }
            let claim = untrusted_index::find(&self.core, &self.hints).await?;
            Ok::<_, ReadError>(match claim {
                Some(claim) => IndexSource::Claim(Arc::new(UntrustedClaim::new(claim, self.core.cache())?)),
                None => IndexSource::Own,
            })
        });
        choice.await
    }

    async fn find_or_build(&self) -> Result<(LayerIndex, IndexKind), ReadError> {
        // A cached index came from verified bytes, so a poisoned blob does not invalidate it.
        refuse_poisoned(&self.core.blob)?;
        let mut found = None;
        match self.choose(&mut found).await? {
            IndexSource::Own => {
                if found.is_some() {
                    self.proven_index.get_or_init(|| ());
                }
                let index = match found {
                    Some(index) => index,
                    None if self.hints.policy == IndexPolicy::Off && self.opened.get().is_none() => {
                        self.core.rebuilt(&self.state).await?
                    }
                    None => self.core.own_index(&self.state).await?,
                };
                if self.hints.verify == VerifyMode::Toc
                    && index.blocks.is_empty()
                    && !self.core.is_proven_first()
                {
                    return Err(chunk_verification::no_parts("it was not compared as a whole either"));
                }
                self.agree(&index, IndexKind::Local).await?;
                if self.opened.get().is_none() {
                    let opened = self.core.open(&index)?;
                    self.opened.get_or_init(|| opened);
                }
                Ok((index, IndexKind::Local))
            }
            IndexSource::Claim(claim) => {
                self.agree(&claim.foreign.index, claim.foreign.kind).await?;
                // The stream of a claim is named after the copy.
                self.core.blob.locate().await;
                self.opened.get_or_init(|| self.core.open_claim(claim));
                self.start_audit(claim);
                Ok((claim.foreign.index.clone(), claim.foreign.kind))
            }
        }
    }

    /// Compares the stream with its digest in the hints, once.
    async fn agree(&self, index: &LayerIndex, kind: IndexKind) -> Result<(), ReadError> {
        let Some(expected) = &self.hints.content else { return Ok(()) };
        let compare = || self.core.compare_content(expected, index, kind, &self.state);
        self.agreed.get_or_try_init(compare).await.map(|_| ())
    }

    /// Starts a task that waits until the stored bytes are verified, and then audits the claim.
    fn start_audit(&self, claim: &Arc<UntrustedClaim>) {
        let mut audit = lock(&self.audit);
        if audit.is_some() || self.core.confirmed.get().is_some() {
            return;
        }
        let (core, claim) = (Arc::downgrade(&self.core), claim.clone());
        let verified = self.core.blob.until_verified();
        *audit = Some(AuditTask(tokio::spawn(async move {
            if verified.await != Some(VerificationState::Verified) {
                return;
            }
            let Some(core) = core.upgrade() else { return };
            let claim = &claim.foreign;
            match untrusted_index::audit(&core, claim).await {
                Ok(ClaimVerdict::True) => {
                    core.confirmed.set(()).ok();
                }
                Ok(ClaimVerdict::False(why)) => core.refute(claim, &why),
                Err(error) => {
                    core.warn(format!("its {} index could not be checked: {}", claim.kind, error.chain()));
                }
            }
        })));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LayerState> {
        lock(&self.state)
    }
}

fn unshown_xattrs(toc: &TableOfContents) -> u64 {
    let names = toc.iter().flat_map(|entry| entry.xattrs);
    names.filter(|(name, _)| !has_namespace(name)).count() as u64
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use bytes::Bytes;
    use futures_util::StreamExt as _;

    use super::*;
    use crate::io::{RangeDelivery, RangeFetch};

    struct Held(Bytes);

    impl RangeFetch for Held {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
            let bytes = self.0.slice(range.start as usize..range.end as usize);
            Box::pin(async move {
                Ok(RangeDelivery { range, body: futures_util::stream::iter([Ok(bytes)]).boxed() })
            })
        }
    }

    fn archive() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o644);
        tar.append_data(&mut header, "a", &b"abc"[..]).unwrap();
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(&tar.into_inner().unwrap()).unwrap();
        packer.finish().unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_index_in_use_is_not_read_again_to_compare_its_layer() {
        let dir = tempfile::tempdir().unwrap();
        let stored = Bytes::from(archive());
        let digest = Digest::sha256(&stored);
        let kept = dir.path().join("v1/indexes/sha256").join(digest.encoded());
        let layer = || {
            let cache = BlockCache::open(dir.path()).unwrap();
            let blob = cache.blob(&digest, Arc::new(Held(stored.clone()))).unwrap();
            StoredLayer::new(blob, cache, LayerOptions::default())
        };
        layer().index().await.unwrap();
        let next = layer();
        assert_eq!(next.known_index(), Some(IndexKind::Local));
        next.index().await.unwrap();
        std::fs::remove_file(&kept).unwrap();
        next.compare_all().await.unwrap();
        assert!(next.compares_reads());
        assert!(!kept.exists(), "a missing index that is read again is made again");
        let other = next.core.cache().put_learnt(LayerMetadata::Archive, &digest, b"\xffof another version");
        other.unwrap();
        assert_eq!(layer().known_index(), None);
    }
}
