//! Own index of a layer: cached, or built by the pass that its encoding selects, with its memory and threads.

use std::sync::Mutex;

use crate::cache::{LayerMetadata, StreamWriter, VerificationState};
use crate::io::{ByteRange, FaultClass, MEMORY, ReadError};

use super::crew::PassInput;
use super::decode_step::WindowLimits;
use super::foreign;
use super::guarded_stream::refuse_poisoned;
use super::header_walk;
use super::index::LayerIndex;
use super::indexer::{self, PassStop};
use super::layer_shared::LayerShared;
use super::layer_state::{LayerState, PassGuard};
use super::peek;
use super::sniff::{SniffResult, StreamEncoding};

impl LayerShared {
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

    /// The index from one pass now, cached for the next mount.
    pub(super) async fn rebuilt(&self, state: &Mutex<LayerState>) -> Result<LayerIndex, ReadError> {
        let _running = PassGuard::start(state);
        let index = match self.build().await {
            Err(error)
                if error.fault() == FaultClass::Malformed
                    && self.blob.state() != VerificationState::Verified =>
            {
                // Only the digest shows whether the author or the source is at fault. Wrong bytes from the source
                // must not stay in the cache.
                self.blob.ensure(ByteRange::new(0, self.size())).await?;
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

    /// The index from one pass over the stored bytes, and the stream that the pass wrote.
    async fn pass(&self) -> Result<(LayerIndex, Option<StreamWriter>), ReadError> {
        match self.sniff(&*self.blob).await? {
            SniffResult::Stream(StreamEncoding::Plain) if self.form == LayerMetadata::Stream => {
                Ok((self.identity(), None))
            }
            SniffResult::Other(_) if self.form == LayerMetadata::Stream => Ok((self.identity(), None)),
            SniffResult::Stream(StreamEncoding::Plain) => {
                Ok((header_walk::walk(self.blob.clone(), Some(&self.cache)).await?, None))
            }
            SniffResult::Stream(encoding) => {
                let passed = match self.forward(encoding, WindowLimits::Common).await {
                    Err(PassStop::LargeWindow) => {
                        // Fetched first: a pass must not hold memory while it waits for a network.
                        self.blob.ensure(ByteRange::new(0, self.size())).await?;
                        let memory = MEMORY.take(1 << WindowLimits::Large.log()).await;
                        let _memory = memory.map_err(|error| error.into_read("a window of 128 MiB"))?;
                        self.forward(encoding, WindowLimits::Large).await
                    }
                    done => done,
                }
                .map_err(|stopped| match stopped {
                    PassStop::Failed(error) => error,
                    PassStop::LargeWindow => {
                        ReadError::new(FaultClass::Unsupported, "its window is too large")
                    }
                })?;
                if let Some(hashed) = passed.hashed {
                    self.hashed.set(hashed).ok();
                }
                Ok((passed.index, passed.kept))
            }
            SniffResult::Other(name) => Err(peek::not_an_archive(name)),
        }
    }

    /// One pass over the layer.
    async fn forward(
        &self,
        encoding: StreamEncoding,
        windows: WindowLimits,
    ) -> Result<indexer::PassResult, PassStop> {
        let is_here = self.blob.present(ByteRange::new(0, self.size()));
        let plan = indexer::IndexJob {
            encoding,
            input: if is_here { PassInput::Here } else { PassInput::Far },
            windows,
            is_archive: self.form == LayerMetadata::Archive,
            cache: Some(self.cache.clone()),
            writer: Some(self.cache.stream_writer(self.blob.digest())),
            hasher: self.hasher.clone(),
            progress: self.progress.clone(),
        };
        indexer::forward(self.blob.clone(), plan).await
    }
}
