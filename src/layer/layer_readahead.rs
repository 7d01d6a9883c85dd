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
        for stored in self.spans.likely_stored(range) {
            core.start_fetching(stored);
        }
    }

    fn stop_after(&self, file: ByteRange) {
        if let Some(stream) = self.stream.as_ref().and_then(Weak::upgrade) {
            stream.stop_readahead_after(file);
        }
        let Some(core) = self.core.upgrade() else { return };
        let stored = self.spans.likely_stored(file);
        let (start, end) = (stored.iter().map(|run| run.start).min(), stored.iter().map(|run| run.end).max());
        if let (Some(start), Some(end)) = (start, end) {
            core.blob.stop_readahead_after(ByteRange::new(start, end));
        }
    }
}
