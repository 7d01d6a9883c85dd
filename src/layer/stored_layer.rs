//! Layer of an image: its index, found or built once, and its uncompressed stream.
//!
//! The first index used decides for the life of the layer: offsets of a made-up stream have no meaning for another
//! index. A local index is trusted. A foreign index is a claim, which is compared with the stored bytes once they
//! are complete and verified.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::OnceCell;
use tokio::task::{JoinHandle, JoinSet};

use crate::cache::{BlockCache, CachedFile, LayerMetadata, StreamWriter, VerificationState, VerifyMode};
use crate::io::{
    BoxFuture, ByteRange, FaultClass, MEMORY, MemoryShare, ReadAt, ReadError, SharedReader, read_vec,
};
use crate::oci::{Digest, Hasher};

use super::chunk_verification;
use super::file_reader::StreamPrefetch;
use super::foreign::{self, ForeignIndex, IndexKind};
use super::guarded_stream::refuse_poisoned;
use super::index::LayerIndex;
use super::layer_options::{IndexPolicy, LayerOptions};
use super::peek;
use super::sniff::{SNIFF_LEN, SniffResult, StreamEncoding, sniff};
use super::span::SpanMap;
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
    /// Set once the stream has the digest in the hints.
    agreed: OnceCell<()>,
    /// Number of hidden extended attributes, once the names are known.
    unshown_xattrs: OnceLock<u64>,
}

/// State that a layer shares with its background tasks.
pub(super) struct LayerShared {
    pub(super) blob: Arc<CachedFile>,
    pub(super) cache: BlockCache,
    /// The form of the index: that of an archive, or that of a bare stream.
    pub(super) form: LayerMetadata,
    /// The hasher for the pass that decodes the stream; `None` without an expected digest.
    pub(super) hasher: Option<Hasher>,
    /// The stream digest that the pass computed.
    pub(super) hashed: OnceLock<Digest>,
    /// Stream bytes that the running pass has decoded.
    pub(super) progress: Arc<AtomicU64>,
    /// Problems that did not prevent reading the layer.
    warnings: Mutex<Vec<String>>,
    /// The reason why the claim is refuted.
    pub(super) refuted: OnceLock<ReadError>,
    /// Set once the claim was compared with the layer and is true.
    pub(super) confirmed: OnceLock<()>,
    /// Readahead tasks. Dropping the set aborts them.
    tasks: Mutex<JoinSet<()>>,
}

/// The index by which a layer is read.
#[derive(Clone)]
enum IndexSource {
    /// The layer's own index.
    Own,
    /// A foreign index.
    Claim(Arc<UntrustedClaim>),
}

/// A foreign index in use.
pub(super) struct UntrustedClaim {
    /// The index, with a large table of contents on disk.
    pub(super) foreign: ForeignIndex,
    /// Whether the index has a digest for every part of the layer.
    pub(super) is_rooted: bool,
    /// Share of its spans in the memory budget of all layers.
    _memory: MemoryShare,
}

impl UntrustedClaim {
    fn new(mut foreign: ForeignIndex, cache: &BlockCache) -> Result<Self, ReadError> {
        let is_rooted = chunk_verification::is_rooted(&foreign);
        foreign.index.toc = foreign.index.toc.spooled(cache)?;
        let mut memory = MEMORY.lasting();
        let grown = memory.grow(foreign.index.spans.heap_bytes());
        grown.map_err(|error| error.into_read(&format!("the {} index", foreign.kind)))?;
        Ok(Self { foreign, is_rooted, _memory: memory })
    }
}

/// The stream of a layer with a known index.
pub(super) struct OpenStream {
    pub(super) spans: SpanMap,
    pub(super) stream: SharedReader,
    /// The same for a reader that compares it and caches nothing.
    pub(super) served: SharedReader,
}

/// The task that waits for the layer to be complete. It ends with the layer.
struct AuditTask(JoinHandle<()>);

impl Drop for AuditTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Progress of a layer towards random access.
#[derive(Clone, Debug)]
pub enum LayerState {
    /// No index yet, and no pass is running.
    Untouched,
    /// A pass over the stored bytes is running.
    Streaming,
    /// The layer has its index.
    Indexed {
        /// The kind of the index.
        kind: IndexKind,
        /// The encoding of the stored bytes.
        encoding: StreamEncoding,
        /// Bytes of the uncompressed stream.
        stream_size: u64,
        /// The number of resume points.
        spans: usize,
    },
    /// A permanent error, returned by every later request.
    Failed(ReadError),
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
        let core = LayerShared {
            blob,
            cache,
            form,
            hasher: algorithm.map(Hasher::new),
            hashed: OnceLock::new(),
            progress: Arc::default(),
            warnings: Mutex::default(),
            refuted: OnceLock::new(),
            confirmed: OnceLock::new(),
            tasks: Mutex::default(),
        };
        Self {
            core: Arc::new(core),
            hints,
            choice: OnceCell::new(),
            opened: OnceLock::new(),
            state: Mutex::new(LayerState::Untouched),
            audit: Mutex::default(),
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
        lock(&self.core.warnings).clone()
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
        if policy != IndexPolicy::Off && matches!(self.core.find(), Ok(Some(_))) {
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

    /// A function from a range of the stream to the stored ranges that a read of it needs. It may outlive the
    /// layer.
    pub fn stored_ranges(&self) -> impl Fn(ByteRange) -> Vec<ByteRange> + Send + Sync + use<> {
        let spans = self.opened.get().map(|opened| opened.spans.clone());
        move |range| {
            let pieces = spans.iter().flat_map(|spans| spans.cover(range));
            pieces.map(|piece| piece.stored).collect()
        }
    }

    /// A function that starts readahead of stored bytes; `None` when all of them are verified.
    pub fn fetcher(&self) -> Option<StreamPrefetch> {
        if self.core.blob.state() == VerificationState::Verified {
            return None;
        }
        let (spans, core) = (self.opened.get()?.spans.clone(), Arc::downgrade(&self.core));
        Some(Arc::new(move |range| {
            let Some(core) = core.upgrade() else { return };
            for stored in spans.likely_stored(range) {
                core.start_fetching(stored);
            }
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

    async fn find_or_build(&self) -> Result<(LayerIndex, IndexKind), ReadError> {
        // A cached index came from verified bytes, so a poisoned blob does not invalidate it.
        refuse_poisoned(&self.core.blob)?;
        let mut found = None;
        let choice = self
            .choice
            .get_or_try_init(|| async {
                if self.hints.policy != IndexPolicy::Off {
                    found = self.core.kept().await?;
                }
                if found.is_some() || !self.hints.policy.takes_foreign() {
                    return Ok(IndexSource::Own);
                }
                let claim = untrusted_index::find(&self.core, &self.hints).await?;
                Ok::<_, ReadError>(match claim {
                    Some(claim) => {
                        IndexSource::Claim(Arc::new(UntrustedClaim::new(claim, self.core.cache())?))
                    }
                    None => IndexSource::Own,
                })
            })
            .await?;
        match choice {
            IndexSource::Own => {
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
                self.opened.get_or_init(|| self.core.open(&index));
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

/// Locks a mutex whose value is replaced as a whole, so that a panic cannot leave it half written.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl LayerShared {
    /// Fetches stored bytes in the background. The task ends with the layer.
    fn start_fetching(&self, stored: ByteRange) {
        let blob = self.blob.clone();
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            if let Err(error) = blob.ensure(stored).await {
                // The reader of these bytes gets the error.
                tracing::debug!(layer = %blob.digest(), error = error.chain(), "not fetched ahead");
            }
        });
    }

    pub(super) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    pub(super) fn warn(&self, warning: String) {
        tracing::warn!(layer = %self.blob.digest(), warning);
        let mut warnings = lock(&self.warnings);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// Stops serving bytes decoded by the claim, and records that no mount may use it again.
    fn refute(&self, claim: &ForeignIndex, why: &str) {
        let message = format!("its {} index contradicts the layer: {why}", claim.kind);
        tracing::error!(layer = %self.blob.digest(), message, "every read through it fails from now on");
        self.warn(message.clone());
        self.refuted.set(ReadError::new(FaultClass::Mismatch, message)).ok();
        untrusted_index::note_refuted(self, claim);
        self.cache.distrust(self.blob.digest());
    }

    /// Whether all stored bytes are verified before any of them are served.
    pub(super) fn is_proven_first(&self) -> bool {
        self.blob.is_proven_first()
    }

    /// Stored bytes.
    pub(super) fn size(&self) -> u64 {
        self.blob.size()
    }

    pub(super) async fn sniff(&self, bytes: &dyn ReadAt) -> Result<SniffResult, ReadError> {
        let head = ByteRange::new(0, bytes.size().min(SNIFF_LEN as u64));
        Ok(sniff(&read_vec(bytes, head).await?))
    }

    /// The encoding of the stream; `None` where the bytes are no stream.
    pub(super) async fn encoding(&self) -> Result<Option<StreamEncoding>, ReadError> {
        self.look_at_encoding(&*self.blob).await
    }

    /// As [`encoding`](Self::encoding), from these bytes of the blob.
    async fn look_at_encoding(&self, bytes: &dyn ReadAt) -> Result<Option<StreamEncoding>, ReadError> {
        Ok(match self.sniff(bytes).await? {
            SniffResult::Stream(encoding) => Some(encoding),
            SniffResult::Other(_) if self.form == LayerMetadata::Stream => Some(StreamEncoding::Plain),
            SniffResult::Other(_) => None,
        })
    }

    /// The layer's own index: cached, or built now.
    pub(super) async fn own_index(&self, state: &Mutex<LayerState>) -> Result<LayerIndex, ReadError> {
        refuse_poisoned(&self.blob)?;
        if let Some(index) = self.kept().await? {
            return Ok(index);
        }
        if self.form == LayerMetadata::Stream && self.encoding().await? == Some(StreamEncoding::Plain) {
            return Ok(self.identity());
        }
        let _lock = self.build_lock().await?;
        if let Some(index) = self.kept().await? {
            return Ok(index);
        }
        self.rebuilt(state).await
    }

    async fn rebuilt(&self, state: &Mutex<LayerState>) -> Result<LayerIndex, ReadError> {
        let _running = PassGuard::start(state);
        let index = match self.build().await {
            Err(error)
                if error.fault() == FaultClass::Malformed
                    && self.blob.state() != VerificationState::Verified =>
            {
                // Only the digest shows whether the author or the source is at fault. Wrong bytes from the source
                // must not stay in the cache.
                self.blob.ensure(ByteRange::new(0, self.blob.size())).await?;
                return Err(error);
            }
            built => built?,
        };
        let (index, stream) = index;
        self.keep(index, stream).await
    }

    async fn build(&self) -> Result<(LayerIndex, Option<StreamWriter>), ReadError> {
        let (mut index, stream) = self.pass().await?;
        if self.form == LayerMetadata::Archive
            && !foreign::shows_markers(&*self.blob, index.spans.encoding(), &index.toc).await?
        {
            index.toc = foreign::without_markers(&index.toc.whole().await?).spooled(&self.cache)?;
        }
        Ok((index, stream))
    }

    /// The index of an uncompressed stream.
    pub(super) fn identity(&self) -> LayerIndex {
        let spans = SpanMap::identity(self.size());
        LayerIndex { spans, toc: TableOfContents::default(), blocks: Vec::new(), prefetch: 0 }
    }
}

/// Marks a pass as running, until it is dropped with the future that drives the pass.
struct PassGuard<'a>(&'a Mutex<LayerState>);

impl<'a> PassGuard<'a> {
    fn start(state: &'a Mutex<LayerState>) -> Self {
        *lock(state) = LayerState::Streaming;
        Self(state)
    }
}

impl Drop for PassGuard<'_> {
    fn drop(&mut self) {
        let mut state = lock(self.0);
        if matches!(*state, LayerState::Streaming) {
            *state = LayerState::Untouched;
        }
    }
}
