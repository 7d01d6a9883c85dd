//! State of a layer: its progress towards random access.

use std::sync::Mutex;

use crate::io::{ReadError, lock};

use super::foreign::IndexKind;
use super::sniff::StreamEncoding;

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

/// Marks a pass as running, until it is dropped with the future that drives the pass.
pub(super) struct PassGuard<'a>(&'a Mutex<LayerState>);

impl<'a> PassGuard<'a> {
    pub(super) fn start(state: &'a Mutex<LayerState>) -> Self {
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
