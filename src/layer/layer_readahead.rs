//! Readahead of one layer for the readers of its files.

use std::sync::Weak;

use crate::cache::CachedFile;
use crate::io::ByteRange;

use super::file_reader::FileReadahead;
use super::layer_shared::LayerShared;
use super::span::SpanMap;

/// The readahead of an opened layer, which may outlive the layer.
pub(super) struct LayerReadahead {
    pub(super) spans: SpanMap,
    /// The cached part of the stream; `None` where it is not cached.
    pub(super) stream: Option<Weak<CachedFile>>,
    pub(super) core: Weak<LayerShared>,
}

impl FileReadahead for LayerReadahead {
    fn start_fetching(&self, range: ByteRange) {
        let Some(core) = self.core.upgrade() else { return };
        // Chunks that are stored one after the other are one request.
        let mut joined: Option<ByteRange> = None;
        for stored in self.spans.likely_stored(range) {
            joined = Some(match joined {
                Some(before) if stored.start == before.end => ByteRange::new(before.start, stored.end),
                Some(before) => {
                    core.blob.start_readahead(before);
                    stored
                }
                None => stored,
            });
        }
        if let Some(stored) = joined {
            core.blob.start_readahead(stored);
        }
    }

    fn window(&self) -> u64 {
        let Some(core) = self.core.upgrade() else { return 0 };
        let stored = core.blob.readahead_window();
        let share =
            u128::from(stored) * u128::from(self.spans.stream_size()) / u128::from(core.size().max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    fn stored(&self, range: ByteRange) -> Option<ByteRange> {
        let runs = self.spans.likely_stored(range);
        let (start, end) = (runs.iter().map(|run| run.start).min()?, runs.iter().map(|run| run.end).max()?);
        Some(ByteRange::new(start, end))
    }

    fn stop_after(&self, file: ByteRange, stored: Option<ByteRange>) {
        if let Some(stream) = self.stream.as_ref().and_then(Weak::upgrade) {
            stream.stop_readahead_after(file);
        }
        if let (Some(stored), Some(core)) = (stored, self.core.upgrade()) {
            core.blob.stop_readahead_after(stored);
        }
    }

    fn close(&self, file: ByteRange, stored: Option<ByteRange>) {
        if let Some(stream) = self.stream.as_ref().and_then(Weak::upgrade) {
            stream.close_readahead(file);
        }
        if let (Some(stored), Some(core)) = (stored, self.core.upgrade()) {
            core.blob.close_readahead(stored);
        }
    }
}
