//! Readahead of one layer for the readers of its files.

use std::sync::Weak;

use crate::cache::CachedFile;
use crate::io::{ByteRange, proportion};

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
        for stored in self.spans.likely_stored(range) {
            core.blob.start_readahead(stored);
        }
    }

    fn window(&self) -> u64 {
        let Some(core) = self.core.upgrade() else { return 0 };
        proportion(core.blob.readahead_window(), core.size(), self.spans.stream_size())
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
