//! Layer index: all results of one pass over a layer, in one value that is cached without expiry.
//!
//! On disk: a version byte, then the postcard encoding of [`LayerIndex`] in a zstd frame with a checksum. An
//! undecodable or inconsistent index counts as absent.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::ops::Deref;

use postcard::de_flavors::io::io::IOReader;
use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::cache::BlockCache;
use crate::io::{ByteRange, MEMORY, MemoryShare};

use super::decode_step::WindowLimits;
use super::packed_window::spooling_windows;
use super::span::{SpanMap, charged};
use super::stream_limit::most_sparse_stream;
use super::toc::{EntryRef, TableOfContents, TocEntryKind, TocReader, TocSeed};

/// Format version. It changes when stored bytes get another meaning. A new kind of encoding or start needs no new
/// version, because an older program cannot decode an unknown kind, and treats the index as absent.
const VERSION: u8 = 2;

/// Maximum size of an index, in bytes before compression: 5 million entries of some 200 bytes.
const MAX_DECODED_INDEX_BYTES: u64 = 1 << 30;

/// The largest zstd window of an index as a power of two: the most that RFC 8878 recommends to accept. Level 1 has 19.
const MAX_WINDOW_LOG: u32 = WindowLimits::Common.log();

/// Bytes of an index that are encoded or decoded at once, which bounds the longest byte string in the encoding.
const BUFFER: usize = 64 * 1024;

/// Bytes of an index that are charged at once to the memory budget.
const CHARGED_STEP_BYTES: u64 = 256 * 1024;

/// Stream bytes that one checksum of an index covers, except the last: a block of the cache.
pub const SUM_BLOCK: u64 = 256 * 1024;

/// Table of contents and span map of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerIndex {
    /// The spans: where stream bytes are stored.
    pub spans: SpanMap,
    /// Table of contents of the archive.
    pub toc: TableOfContents,
    /// blake3 of each [`SUM_BLOCK`] bytes of the stream, from a pass over verified stored bytes; empty without such
    /// a pass.
    pub blocks: Vec<[u8; 32]>,
    /// End of the stream bytes that the image author wants prefetched; they start at 0.
    pub prefetch: u64,
}

impl LayerIndex {
    /// The serialized index.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        self.encode(Vec::new())
    }

    /// The same with its share of the memory budget, for which it blocks its thread.
    pub(super) fn to_charged_bytes(&self) -> Result<ChargedBytes, String> {
        self.encode(ChargedBytes { bytes: Vec::new(), memory: MEMORY.passing() })
    }

    fn encode<W: Write>(&self, mut into: W) -> Result<W, String> {
        into.write_all(&[VERSION]).map_err(|error| error.to_string())?;
        // Level 1, because a reader waits. Compressed while it is encoded, so that a large index is not in memory
        // twice.
        let mut encoder = zstd::Encoder::new(into, 1).map_err(|error| error.to_string())?;
        // The checksum detects flipped bits in windows, block checksums and names.
        encoder.include_checksum(true).map_err(|error| error.to_string())?;
        let encoded = postcard::to_io(self, BufWriter::with_capacity(BUFFER, encoder));
        let encoder = encoded.map_err(|error| error.to_string())?.into_inner();
        encoder.map_err(|error| error.to_string())?.finish().map_err(|error| error.to_string())
    }

    /// Parses cached bytes for a layer of `stored_size` stored bytes. `None` means: build the index again.
    pub fn from_bytes(bytes: &[u8], stored_size: u64) -> Option<Self> {
        Self::within(bytes, stored_size, MAX_DECODED_INDEX_BYTES, None)
    }

    /// As [`from_bytes`](Self::from_bytes), from a file that is not in memory as a whole, with a large table of contents
    /// on the disk of `cache`.
    pub(super) fn from_kept(kept: impl Read, stored_size: u64, cache: &BlockCache) -> Option<Self> {
        let kept = BufReader::with_capacity(BUFFER, kept);
        Self::within(kept, stored_size, MAX_DECODED_INDEX_BYTES, Some(cache))
    }

    /// Reads an untrusted index. Real ones compress to a third, and a bomb must not exhaust memory. A large table of
    /// contents and windows go to the disk of `cache`.
    pub fn from_foreign_bytes(bytes: &[u8], stored_size: u64, cache: &BlockCache) -> Option<Self> {
        /// The most decoded bytes for one of the index, beside a floor for small ones.
        const MAX_EXPANSION: u64 = 32;
        const MIN_DECODED_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
        let limit =
            (bytes.len() as u64).saturating_mul(MAX_EXPANSION).saturating_add(MIN_DECODED_LIMIT_BYTES);
        Self::within(bytes, stored_size, limit.min(MAX_DECODED_INDEX_BYTES), Some(cache))
    }

    /// Whether the first of its stored bytes is that of this version.
    pub(super) fn is_of_version(mut kept: impl Read) -> bool {
        let mut version = [0];
        kept.read_exact(&mut version).is_ok_and(|()| version == [VERSION])
    }

    fn within(
        mut kept: impl BufRead,
        stored_size: u64,
        limit: u64,
        cache: Option<&BlockCache>,
    ) -> Option<Self> {
        if !Self::is_of_version(&mut kept) {
            return None;
        }
        let mut plain = zstd::Decoder::with_buffer(kept).ok()?;
        plain.window_log_max(MAX_WINDOW_LOG).ok()?;
        let plain = BufReader::with_capacity(BUFFER, plain.take(limit));
        let mut longest = vec![0; BUFFER];
        let mut decoder = postcard::Deserializer::from_flavor(IOReader::new(plain, &mut longest[..]));
        let index =
            spooling_windows(cache, || IndexSeed { cache, stored_size }.deserialize(&mut decoder)).ok()?;
        let (mut rest, _) = decoder.finalize().ok()?;
        // A truncated or extended frame is not a stored index.
        if rest.read(&mut [0]).ok()? != 0 {
            return None;
        }
        (index.spans.is_sound() && index.spans.stored_size() == stored_size && index.blocks_fit())
            .then_some(index)
    }

    /// Whether every block has a checksum, or none has.
    fn blocks_fit(&self) -> bool {
        self.blocks.is_empty() || self.blocks.len() as u64 == self.spans.stream_size().div_ceil(SUM_BLOCK)
    }

    /// Whether every file lies inside the stream.
    pub(super) fn is_inside(&self) -> bool {
        let stream = ByteRange::new(0, self.spans.stream_size());
        self.toc.iter().all(|entry| is_inside(stream, &entry))
    }
}

fn is_inside(stream: ByteRange, entry: &EntryRef<'_>) -> bool {
    match &entry.kind {
        TocEntryKind::File(content) => {
            let end = content.offset.checked_add(content.stored());
            end.is_some_and(|end| stream.contains(ByteRange::new(content.offset, end)))
        }
        _ => true,
    }
}

/// Checksums of blocks, read as far as there is memory for them.
#[derive(Deserialize)]
struct ChargedSums(#[serde(deserialize_with = "charged")] Vec<[u8; 32]>);

/// Bytes that are charged to the memory budget before they are written.
pub(super) struct ChargedBytes {
    bytes: Vec<u8>,
    memory: MemoryShare,
}

impl Write for ChargedBytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A vector that grows is there twice for a moment.
        let needed = 2 * (self.bytes.len() + bytes.len()) as u64;
        if needed > self.memory.bytes() {
            let step = (needed - self.memory.bytes()).max(CHARGED_STEP_BYTES);
            self.memory.grow(step).map_err(io::Error::other)?;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Deref for ChargedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Deserializes an index. With a cache, its table of contents is never in memory as a whole.
struct IndexSeed<'a> {
    cache: Option<&'a BlockCache>,
    /// Bytes of the layer.
    stored_size: u64,
}

impl<'de> DeserializeSeed<'de> for IndexSeed<'_> {
    type Value = LayerIndex;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<LayerIndex, D::Error> {
        deserializer.deserialize_struct("LayerIndex", &["spans", "toc", "blocks", "prefetch"], self)
    }
}

impl<'de> Visitor<'de> for IndexSeed<'_> {
    type Value = LayerIndex;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an index")
    }

    /// Reads the fields in declaration order.
    fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<LayerIndex, A::Error> {
        let missing = |at| move || A::Error::invalid_length(at, &"an index of four fields");
        let spans: SpanMap = fields.next_element()?.ok_or_else(missing(0))?;
        if spans.stream_size() > most_sparse_stream(self.stored_size) {
            return Err(A::Error::custom("a stream over the limit of a pass"));
        }
        let stream = ByteRange::new(0, spans.stream_size());
        let check = |entry: &EntryRef<'_>| is_inside(stream, entry);
        let toc = TocSeed(TocReader::spooling(self.cache, &check));
        let toc = fields.next_element_seed(toc)?.ok_or_else(missing(1))?;
        let ChargedSums(blocks) = fields.next_element()?.ok_or_else(missing(2))?;
        let prefetch = fields.next_element()?.ok_or_else(missing(3))?;
        Ok(LayerIndex { spans, toc, blocks, prefetch })
    }
}

#[cfg(test)]
mod tests {
    use super::super::sniff::StreamEncoding;
    use super::super::span_recorder::SpanRecorder;
    use super::super::toc::{FileContent, TocEntry, UnixTime};
    use super::*;
    use crate::cache::LayerMetadata;

    fn index() -> LayerIndex {
        let entry = TocEntry {
            path: b"a/b".to_vec(),
            kind: TocEntryKind::File(FileContent { size: 5, offset: 512, runs: None }),
            mode: 0o644,
            uid: 1,
            gid: 2,
            mtime: UnixTime { secs: -1, nanos: 5 },
            xattrs: vec![(b"user.a".to_vec(), vec![0, 255])],
            header: 0,
        };
        LayerIndex {
            spans: SpanMap::identity(2048),
            toc: [entry].into_iter().collect(),
            blocks: vec![[7; 32]],
            prefetch: 0,
        }
    }

    #[test]
    fn an_index_survives_being_kept() {
        let bytes = index().to_bytes().unwrap();
        assert_eq!(LayerIndex::from_bytes(&bytes, 2048), Some(index()));
    }

    #[test]
    fn a_kept_index_is_charged_before_it_is_in_memory() {
        let large = LayerIndex { blocks: vec![[7; 32]; 1000], ..index() };
        let charged = large.to_charged_bytes().unwrap();
        assert_eq!(*charged, *large.to_bytes().unwrap());
        assert!(charged.memory.bytes() >= 2 * charged.len() as u64);
    }

    #[test]
    fn a_large_table_of_contents_of_a_kept_index_stays_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlockCache::open(dir.path()).unwrap();
        let entry = |number: usize| TocEntry {
            path: format!("{number:0200}").into_bytes(),
            kind: TocEntryKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: UnixTime { secs: 0, nanos: 0 },
            xattrs: Vec::new(),
            header: 0,
        };
        let large = LayerIndex { toc: (0..20_000).map(entry).collect(), ..index() };
        let digest = crate::oci::Digest::sha256(b"layer");
        cache.put_learnt(LayerMetadata::Archive, &digest, &large.to_bytes().unwrap()).unwrap();
        let kept = cache.learnt_file(LayerMetadata::Archive, &digest).unwrap().unwrap();
        let read = LayerIndex::from_kept(kept, 2048, &cache).unwrap();
        assert!(read.toc.is_spooled() && read.toc.len() == 20_000);
        let path = dir.path().join("v1/indexes/sha256").join(digest.encoded());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(cache.learnt_file(LayerMetadata::Archive, &digest).unwrap().is_none());
        assert!(!path.exists(), "a damaged one is removed");
    }

    #[test]
    fn no_bit_can_flip_unseen() {
        let bytes = index().to_bytes().unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Some bits of a frame's header mean nothing.
            let found = LayerIndex::from_bytes(&flipped, 2048);
            assert!(found.is_none() || found == Some(index()), "bit {bit}");
        }
    }

    #[test]
    fn small_foreign_index_that_decodes_to_too_much_is_refused() {
        let bomb =
            LayerIndex { spans: SpanMap::identity(1 << 36), blocks: vec![[0; 32]; 1 << 18], ..index() };
        let bytes = bomb.to_bytes().unwrap();
        assert!(bytes.len() < 100_000, "{} bytes", bytes.len());
        let dir = tempfile::tempdir().unwrap();
        let cache = BlockCache::open(dir.path()).unwrap();
        assert_eq!(LayerIndex::from_foreign_bytes(&bytes, 1 << 36, &cache), None);
        assert_eq!(
            LayerIndex::from_bytes(&bytes, 1 << 36),
            Some(bomb),
            "what was made here is as large as it is"
        );
        let bytes = index().to_bytes().unwrap();
        assert_eq!(LayerIndex::from_foreign_bytes(&bytes, 2048, &cache), Some(index()));
    }

    #[test]
    fn contradictory_index_is_absent() {
        let bytes = index().to_bytes().unwrap();
        assert_eq!(LayerIndex::from_bytes(&bytes, 2047), None, "another layer's size");
        assert_eq!(LayerIndex::from_bytes(&bytes[..bytes.len() - 1], 2048), None, "cut");
        assert_eq!(
            LayerIndex::from_bytes(&[&[VERSION + 1], &bytes[1..]].concat(), 2048),
            None,
            "another version"
        );
        let mut outside = index();
        let kind = TocEntryKind::File(FileContent { size: 5, offset: 2046, runs: None });
        outside.toc =
            outside.toc.iter().map(|entry| TocEntry { kind: kind.clone(), ..entry.to_entry() }).collect();
        assert_eq!(LayerIndex::from_bytes(&outside.to_bytes().unwrap(), 2048), None, "file past the end");
        let fewer = LayerIndex { blocks: vec![[7; 32]; 2], ..index() };
        assert_eq!(LayerIndex::from_bytes(&fewer.to_bytes().unwrap(), 2048), None, "a checksum for no block");
    }

    #[test]
    fn starts_that_stand_still_are_refused_at_the_second() {
        use super::super::sniff::StreamEncoding;
        use super::super::span::{ResumePoint, SpanStart};
        let start = |stored, stream| SpanStart { stored, stream, resume: ResumePoint::Unit };
        let with = |starts| LayerIndex {
            spans: SpanMap::ordered(StreamEncoding::Gzip, 2048, 2048, starts),
            ..index()
        };
        let right = with(vec![start(0, 0), start(100, 1024)]);
        assert_eq!(LayerIndex::from_bytes(&right.to_bytes().unwrap(), 2048), Some(right));
        let still = with(vec![start(0, 0); 1_000_000]).to_bytes().unwrap();
        assert!(still.len() < 1000, "{} bytes", still.len());
        let plain = zstd::stream::decode_all(&still[1..]).unwrap();
        let (mut rest, mut buffer) = (&plain[..], vec![0; BUFFER]);
        assert!(postcard::from_io::<LayerIndex, _>((&mut rest, &mut buffer[..])).is_err());
        assert!(plain.len() - rest.len() < 100, "{} bytes were read of them", plain.len() - rest.len());
    }

    #[test]
    fn a_list_of_starts_ends_where_the_memory_does() {
        use super::super::sniff::StreamEncoding;
        use super::super::span::{ResumePoint, SpanStart};
        let dir = tempfile::tempdir().unwrap();
        let cache = BlockCache::open(dir.path()).unwrap();
        let read = |count: u64| {
            let start = |at| SpanStart { stored: at, stream: at * 300_000, resume: ResumePoint::Unit };
            let spans = SpanMap::ordered(
                StreamEncoding::Gzip,
                count,
                count * 300_000,
                (0..count).map(start).collect(),
            );
            let bytes = LayerIndex { spans, blocks: Vec::new(), ..index() }.to_bytes().unwrap();
            (bytes.len(), LayerIndex::from_foreign_bytes(&bytes, count, &cache))
        };
        assert!(read(10_000).1.is_some());
        let (stored, bomb) = read(3_000_000);
        assert!(bomb.is_none(), "{stored} bytes became more than the memory of all layers");
    }

    #[test]
    fn an_index_of_a_stream_over_the_limit_of_a_pass_is_no_index() {
        let most = most_sparse_stream(1000);
        let of = |stream: u64| {
            let spans = SpanRecorder::new(StreamEncoding::Zstd).finish(1000, stream);
            let index =
                LayerIndex { spans, toc: TableOfContents::default(), blocks: Vec::new(), prefetch: 0 };
            LayerIndex::from_bytes(&index.to_bytes().unwrap(), 1000)
        };
        assert!(of(most).is_some());
        assert_eq!(of(most + 1), None);
    }
}
