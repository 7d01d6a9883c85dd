//! One layer of an image: its index, found or built once, and its uncompressed stream.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::cache::{BuildLock, Cache, Cached, State};
use crate::io::{
    BoxFuture, ByteRange, Delivery, Fault, Fetch, ReadAt, ReadError, Shared, Verified, read_vec,
};

use crate::oci::Digest;

use super::index::LayerIndex;
use super::pass;
use super::sniff::{Encoding, SNIFF_LEN, Sniffed, sniff};
use super::span::SpanMap;

/// How long another process may decode a layer before this one decodes it too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A stored layer that can be read as the archive it holds.
pub struct Layer {
    blob: Arc<Cached>,
    cache: Cache,
    stream: OnceLock<Shared>,
    state: Mutex<LayerState>,
    /// Stream bytes that the running pass has decoded.
    progress: Arc<AtomicU64>,
}

/// How far a layer is from being readable at random.
#[derive(Clone, Debug)]
pub enum LayerState {
    /// Nobody asked yet.
    Untouched,
    /// A pass over the stored bytes is running.
    Streaming,
    /// The index is known.
    Indexed {
        /// How the stream is stored.
        encoding: Encoding,
        /// Bytes of the uncompressed stream.
        stream_size: u64,
        /// How many places there are where decoding can start.
        spans: usize,
    },
    /// It can never be read; every later question gets the same answer.
    Failed(ReadError),
}

impl Layer {
    /// The layer stored in `blob`. Nothing is read here.
    pub fn new(blob: Arc<Cached>, cache: Cache) -> Self {
        Self {
            blob,
            cache,
            stream: OnceLock::new(),
            state: Mutex::new(LayerState::Untouched),
            progress: Arc::default(),
        }
    }

    /// How far this layer is.
    pub fn state(&self) -> LayerState {
        self.lock().clone()
    }

    /// Stream bytes decoded by the running pass.
    pub fn decoded(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Whether the cache has the index, so that no pass is needed.
    pub fn is_indexed(&self) -> bool {
        let kept = || find(&self.cache, self.blob.digest(), self.blob.size());
        matches!(self.state(), LayerState::Indexed { .. }) || matches!(kept(), Ok(Some(_)))
    }

    /// What the stored bytes are, by one small read.
    pub async fn sniff(&self) -> Result<Sniffed, ReadError> {
        let head = ByteRange::new(0, self.blob.size().min(SNIFF_LEN as u64));
        Ok(sniff(&read_vec(&*self.blob, head).await?))
    }

    /// The index: from the cache, or by one pass over the stored bytes. Content errors are for ever, others may pass.
    pub async fn index(&self) -> Result<LayerIndex, ReadError> {
        if let LayerState::Failed(error) = self.state() {
            return Err(error);
        }
        match self.find_or_build().await {
            Ok(index) => {
                self.stream.get_or_init(|| self.open_stream(&index.spans));
                *self.lock() = LayerState::Indexed {
                    encoding: index.spans.encoding(),
                    stream_size: index.spans.stream_size(),
                    spans: index.spans.spans(),
                };
                Ok(index)
            }
            Err(error) => {
                let error = error.within(format!("layer {}", self.blob.digest()));
                *self.lock() = match error.fault() {
                    Fault::Malformed | Fault::Unsupported | Fault::Mismatch => {
                        LayerState::Failed(error.clone())
                    }
                    _ => LayerState::Untouched,
                };
                Err(error)
            }
        }
    }

    /// The uncompressed stream; there is one as soon as the index was asked for with success.
    pub fn stream(&self) -> Option<Shared> {
        self.stream.get().cloned()
    }

    async fn find_or_build(&self) -> Result<LayerIndex, ReadError> {
        // An index that is there was learnt from the right bytes, whatever this place has sent: it stays.
        refuse_poisoned(&self.blob)?;
        if let Some(index) = self.find().await? {
            return Ok(index);
        }
        let _lock = self.build_lock().await?;
        if let Some(index) = self.find().await? {
            return Ok(index);
        }
        let _running = Running::start(self);
        let index = match self.build().await {
            Err(error) if error.fault() == Fault::Malformed && self.blob.state() != State::Verified => {
                // Whose fault it is, the author's or that of whoever sent the bytes, only the digest tells; and bytes that
                // were sent wrong must not stay.
                self.blob.ensure(ByteRange::new(0, self.blob.size())).await?;
                return Err(error);
            }
            built => built?,
        };
        self.keep(index).await
    }

    async fn build(&self) -> Result<LayerIndex, ReadError> {
        match self.sniff().await? {
            Sniffed::Stream(Encoding::Plain) => pass::walk(self.blob.clone()).await,
            Sniffed::Stream(encoding) => {
                let writer = match self.cache.stream_writer(self.blob.digest()) {
                    Ok(writer) => Some(writer),
                    Err(error) if error.is_disk() => {
                        tracing::warn!(layer = %self.blob.digest(), %error, "decoding without keeping the stream");
                        None
                    }
                    Err(error) => return Err(error.into()),
                };
                pass::forward(self.blob.clone(), encoding, writer, self.progress.clone()).await
            }
            Sniffed::Other(name) => {
                let message = format!("its content is {name}, not a tar archive (plain, gzip or zstd)");
                Err(ReadError::new(Fault::Malformed, message))
            }
        }
    }

    /// One process decodes a layer; the others find its index when the lock is theirs. A holder that has stopped, or a disk
    /// that takes no lock, must not stop the rest: decoding twice costs time only.
    async fn build_lock(&self) -> Result<Option<BuildLock>, ReadError> {
        match tokio::time::timeout(PATIENCE, self.cache.build_lock(self.blob.digest())).await {
            Ok(Ok(lock)) => Ok(Some(lock)),
            Ok(Err(error)) if error.is_disk() => Ok(None),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => {
                tracing::warn!(layer = %self.blob.digest(), "another process decodes it for long, decoding it here too");
                Ok(None)
            }
        }
    }

    /// Keeps the index for other mounts. Only of a blob that is what its digest says: an index outlives the bytes it was
    /// built from.
    async fn keep(&self, index: LayerIndex) -> Result<LayerIndex, ReadError> {
        if self.blob.state() != State::Verified {
            return Ok(index);
        }
        let (cache, digest) = (self.cache.clone(), self.blob.digest().clone());
        // Encoded, written and synced on a blocking thread.
        let kept = tokio::task::spawn_blocking(move || {
            let kept = index.to_bytes().and_then(|bytes| {
                // The index last: it says that the stream belongs to a verified blob.
                let kept = cache.promote_stream(&digest).and_then(|()| cache.put_index(&digest, &bytes));
                kept.map_err(|error| error.to_string())
            });
            if let Err(error) = kept {
                // The index serves this mount all the same; the next one builds it again.
                tracing::warn!(layer = %digest, error, "index not kept");
            }
            index
        });
        kept.await.map_err(|error| ReadError::caused(Fault::Io, "keeping the index", error))
    }

    async fn find(&self) -> Result<Option<LayerIndex>, ReadError> {
        let (cache, digest, size) = (self.cache.clone(), self.blob.digest().clone(), self.blob.size());
        let found = tokio::task::spawn_blocking(move || find(&cache, &digest, size)).await;
        found.map_err(|error| ReadError::caused(Fault::Io, "reading the kept index", error))?
    }

    fn open_stream(&self, spans: &SpanMap) -> Shared {
        if spans.encoding() == Encoding::Plain {
            return self.blob.clone();
        }
        let fetch = Arc::new(Spans { blob: self.blob.clone(), map: spans.clone() });
        match self.cache.stream(self.blob.digest(), fetch.clone()) {
            Ok(stream) => Arc::new(Decoded { stream, blob: self.blob.clone() }),
            Err(error) => {
                tracing::warn!(layer = %self.blob.digest(), %error, "decoded stream is not cached");
                Arc::new(crate::io::FetchAll(fetch))
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LayerState> {
        // The guarded value is replaced whole, so that a panic cannot leave it half written.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn find(cache: &Cache, digest: &Digest, size: u64) -> Result<Option<LayerIndex>, ReadError> {
    let Some(bytes) = cache.index(digest)? else { return Ok(None) };
    let index = LayerIndex::from_bytes(&bytes, size);
    if index.is_none() {
        tracing::warn!(layer = %digest, "kept index is not usable, building it again");
    }
    Ok(index)
}

/// Says that a pass is running, until it is dropped with the future that drives the pass.
struct Running<'a>(&'a Layer);

impl<'a> Running<'a> {
    fn start(layer: &'a Layer) -> Self {
        *layer.lock() = LayerState::Streaming;
        Self(layer)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if matches!(*state, LayerState::Streaming) {
            *state = LayerState::Untouched;
        }
    }
}

/// What was decoded from bytes that turned out to be wrong is as wrong as they are.
fn refuse_poisoned(blob: &Cached) -> Result<(), ReadError> {
    if blob.state() == State::Poisoned {
        let message = format!("blob {} does not match its digest", blob.digest());
        return Err(ReadError::new(Fault::Mismatch, message));
    }
    Ok(())
}

/// The decoder as a producer: what the decoded stream's cache asks when it has lost a block.
struct Spans {
    blob: Arc<Cached>,
    map: SpanMap,
}

impl Fetch for Spans {
    fn size(&self) -> u64 {
        self.map.stream_size()
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<Delivery, ReadError>> {
        Box::pin(async move {
            let span = self.map.cover(range);
            let mut decoded = pass::spans(self.blob.clone(), self.map.encoding(), span.stored, span.stream);
            let body = futures_util::stream::poll_fn(move |context| decoded.poll_recv(context));
            Ok(Delivery { range: span.stream, body: Box::pin(body) })
        })
    }
}

/// A decoded stream: as trustworthy as the stored bytes it was decoded from.
struct Decoded {
    stream: Arc<Cached>,
    blob: Arc<Cached>,
}

impl ReadAt for Decoded {
    fn size(&self) -> u64 {
        self.stream.size()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            refuse_poisoned(&self.blob)?;
            self.stream.read_at(offset, buf).await
        })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        refuse_poisoned(&self.blob)?;
        self.stream.read_ready(offset, buf)
    }

    fn verified(&self) -> Verified {
        self.blob.verified()
    }
}
