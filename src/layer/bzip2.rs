//! bzip2 streams, one after the other.
//!
//! Decoding starts at streams only: blocks begin at any bit, and nothing but a search tells where. What lies far from the start of
//! its stream the pass writes into the cache.

use bzip2::{Decompress, Status};

use super::codec::{Place, Step};

/// The first bytes of a stream; a digit from 1 to 9 follows.
pub(super) const MAGIC: &[u8] = b"BZh";

/// The state of a bzip2 decoder.
pub(super) struct Bzip2 {
    /// What decodes the stream that passes.
    stream: Option<Decompress>,
}

impl Bzip2 {
    /// For the start of a stream.
    pub(super) fn new() -> Self {
        Self { stream: None }
    }

    /// What one step did, and where it ended.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<(Step, Place), String> {
        let stream = self.stream.get_or_insert_with(|| Decompress::new(false));
        let before = (stream.total_in(), stream.total_out());
        let status = stream.decompress(input, output).map_err(|error| error.to_string())?;
        // Both are at most the lengths of buffers.
        let step = Step {
            consumed: (stream.total_in() - before.0) as usize,
            produced: (stream.total_out() - before.1) as usize,
        };
        if status == Status::StreamEnd {
            self.stream = None;
            return Ok((step, Place::Unit));
        }
        Ok((step, Place::Inside))
    }
}
