//! Selection of the pass over a layer by its encoding, and its memory and threads.

use crate::cache::{LayerMetadata, StreamWriter};
use crate::io::{ByteRange, FaultClass, MEMORY, ReadError};

use super::crew::PassInput;
use super::decode_step::WindowLimits;
use super::index::LayerIndex;
use super::indexer::{self, PassStop};
use super::peek;
use super::sniff::{SniffResult, StreamEncoding};
use super::stored_layer::LayerShared;

impl LayerShared {
    /// The index from one pass over the stored bytes, and the stream that the pass wrote.
    pub(super) async fn pass(&self) -> Result<(LayerIndex, Option<StreamWriter>), ReadError> {
        match self.sniff(&*self.blob).await? {
            SniffResult::Stream(StreamEncoding::Plain) if self.form == LayerMetadata::Stream => {
                Ok((self.identity(), None))
            }
            SniffResult::Other(_) if self.form == LayerMetadata::Stream => Ok((self.identity(), None)),
            SniffResult::Stream(StreamEncoding::Plain) => Ok((indexer::walk(self.blob.clone()).await?, None)),
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
