//! Traces: the stored bytes of an image that were read, in the order of first reading.
//!
//! A trace names ranges of blobs, not files or offsets of a decoded stream. So it fits every index of the layers, and
//! replaying it only fetches ranges. While a trace is recorded, opened files are wrapped in a [`RecordingReader`], which
//! records the blocks of each read.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::io::{
    BoxFuture, ByteRange, FaultClass, ReadAt, ReadError, SharedReader, forward_reads, lock, plain_reads,
};
use crate::oci::Digest;

/// Unit of a trace, in bytes: the smallest fetch of the cache.
const TRACE_BLOCK_BYTES: u64 = 256 * 1024;

/// Limit of a trace, in bytes: half a million reads.
pub const MAX_TRACE: usize = 64 * 1024 * 1024;

/// The recorded reads of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadTrace {
    /// Version of this format.
    pub schema_version: u32,
    /// The reference with its digest.
    pub reference: String,
    /// Digest of the manifest that lists the blobs.
    pub manifest: String,
    /// Ranges of stored bytes, in the order in which they were first read.
    pub reads: Vec<TraceRead>,
}

/// One range of one blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRead {
    /// The blob's digest.
    pub blob: String,
    /// Offset of the first byte.
    pub start: u64,
    /// Offset after the last byte.
    pub end: u64,
}

impl ReadTrace {
    /// Parses the JSON form.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReadError> {
        let malformed = |reason: String| ReadError::new(FaultClass::Malformed, format!("trace: {reason}"));
        if bytes.len() > MAX_TRACE {
            return Err(malformed(format!("{} bytes, over the limit of {MAX_TRACE}", bytes.len())));
        }
        let trace: Self = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if trace.schema_version != 1 {
            let message = format!("trace of version {}; this program reads version 1", trace.schema_version);
            return Err(ReadError::new(FaultClass::Unsupported, message));
        }
        match trace.reads.iter().find(|read| read.start >= read.end) {
            Some(read) => Err(malformed(format!("range {}-{} of {}", read.start, read.end, read.blob))),
            None => Ok(trace),
        }
    }

    /// The JSON form.
    pub fn to_json(&self) -> Vec<u8> {
        // Cannot fail: strings and numbers only.
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

/// Records reads of all threads.
#[derive(Debug, Default)]
pub(super) struct TraceRecorder(Mutex<RecordedReads>);

#[derive(Debug, Default)]
struct RecordedReads {
    blobs: Vec<Digest>,
    seen: HashSet<(usize, u64)>,
    /// Index of the blob in `blobs`, number of the block.
    order: Vec<(usize, u64)>,
}

impl TraceRecorder {
    fn note(&self, blob: &Digest, range: ByteRange) {
        let mut noted = lock(&self.0);
        let number = match noted.blobs.iter().position(|known| known == blob) {
            Some(number) => number,
            None => {
                noted.blobs.push(blob.clone());
                noted.blobs.len() - 1
            }
        };
        for block in range.start / TRACE_BLOCK_BYTES..range.end.div_ceil(TRACE_BLOCK_BYTES) {
            if noted.seen.insert((number, block)) {
                noted.order.push((number, block));
            }
        }
    }

    /// The recorded reads; consecutive reads of neighbouring blocks are joined to one range.
    pub(super) fn reads(&self, size_of: impl Fn(&Digest) -> Option<u64>) -> Vec<TraceRead> {
        let noted = lock(&self.0);
        let mut reads: Vec<TraceRead> = Vec::new();
        for &(number, block) in &noted.order {
            let blob = &noted.blobs[number];
            let Some(size) = size_of(blob) else { continue };
            let (start, end) = (block * TRACE_BLOCK_BYTES, ((block + 1) * TRACE_BLOCK_BYTES).min(size));
            match reads.last_mut() {
                Some(last) if last.blob == blob.as_str() && last.end == start => last.end = end,
                _ => reads.push(TraceRead { blob: blob.to_string(), start, end }),
            }
        }
        reads
    }
}

/// Maps a read of a range to the stored bytes it needs.
pub(super) type StoredRanges = Arc<dyn Fn(ByteRange) -> Vec<ByteRange> + Send + Sync>;

/// Bytes whose reads are recorded.
pub(super) struct RecordingReader {
    pub(super) bytes: SharedReader,
    pub(super) blob: Digest,
    pub(super) stored: StoredRanges,
    pub(super) recorder: Arc<TraceRecorder>,
}

impl RecordingReader {
    fn note(&self, offset: u64, len: usize) {
        for stored in (self.stored)(ByteRange::at(offset, len as u64)) {
            self.recorder.note(&self.blob, stored);
        }
    }
}

impl ReadAt for RecordingReader {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        self.note(offset, buf.len());
        self.bytes.read_at(offset, buf)
    }

    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        self.note(offset, buf.len());
        self.bytes.read_exactly(offset, buf)
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        self.note(offset, buf.len());
        self.bytes.read_ready(offset, buf)
    }

    forward_reads!(bytes: size, next_data, next_hole, learn_holes, verified);

    // The kernel's own reads of a file could not be recorded.
    plain_reads!(backing);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: &[u8]) -> Digest {
        Digest::sha256(of)
    }

    #[test]
    fn neighbours_join_in_the_order_of_first_reading() {
        let recorder = TraceRecorder::default();
        let (a, b) = (digest(b"a"), digest(b"b"));
        recorder.note(&a, ByteRange::new(TRACE_BLOCK_BYTES + 5, TRACE_BLOCK_BYTES + 6));
        recorder.note(&a, ByteRange::new(TRACE_BLOCK_BYTES, 3 * TRACE_BLOCK_BYTES));
        recorder.note(&b, ByteRange::new(0, 1));
        recorder.note(&a, ByteRange::new(0, 4 * TRACE_BLOCK_BYTES));
        let reads = recorder.reads(|_| Some(3 * TRACE_BLOCK_BYTES + 10));
        let read = |blob: &Digest, start, end| TraceRead { blob: blob.to_string(), start, end };
        assert_eq!(
            reads,
            [
                read(&a, TRACE_BLOCK_BYTES, 3 * TRACE_BLOCK_BYTES),
                read(&b, 0, TRACE_BLOCK_BYTES),
                read(&a, 0, TRACE_BLOCK_BYTES),
                read(&a, 3 * TRACE_BLOCK_BYTES, 3 * TRACE_BLOCK_BYTES + 10),
            ]
        );
    }

    #[test]
    fn a_trace_survives_its_json_and_nonsense_is_refused() {
        let reads = vec![TraceRead { blob: digest(b"x").to_string(), start: 0, end: 5 }];
        let trace =
            ReadTrace { schema_version: 1, reference: "r".into(), manifest: digest(b"m").to_string(), reads };
        assert_eq!(ReadTrace::parse(&trace.to_json()).unwrap(), trace);
        let other = ReadTrace { schema_version: 2, ..trace.clone() };
        assert_eq!(ReadTrace::parse(&other.to_json()).unwrap_err().fault(), FaultClass::Unsupported);
        let mut empty = trace;
        empty.reads[0].end = 0;
        assert_eq!(ReadTrace::parse(&empty.to_json()).unwrap_err().fault(), FaultClass::Malformed);
        assert_eq!(ReadTrace::parse(b"{").unwrap_err().fault(), FaultClass::Malformed);
    }
}
