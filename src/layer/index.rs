//! The layer index: everything that one pass over a layer teaches, in one value that is kept for ever.
//!
//! On disk it is a version byte, then the postcard encoding of [`LayerIndex`] compressed with zstd; the cache adds its own
//! checksum around it. Whatever does not decode, or cannot be true, is as good as absent.

use serde::{Deserialize, Serialize};

use crate::io::ByteRange;

use super::span::SpanMap;
use super::toc::{EntryKind, Toc};

/// The version this code reads and writes; any change of the types below is a new one.
const VERSION: u8 = 1;

/// The largest index that is decoded, in bytes before compression: 5 million entries of some 200 bytes.
const MAX_INDEX: usize = 1 << 30;

/// Table of contents and span map of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerIndex {
    /// Where stream bytes are stored.
    pub spans: SpanMap,
    /// What the archive contains.
    pub toc: Toc,
}

impl LayerIndex {
    /// The bytes to keep.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let plain = postcard::to_stdvec(self).map_err(|error| error.to_string())?;
        let mut bytes = vec![VERSION];
        // Level 1: an index is written while a reader waits.
        bytes.extend(zstd::bulk::compress(&plain, 1).map_err(|error| error.to_string())?);
        Ok(bytes)
    }

    /// Reads kept bytes for a layer of `stored_size` stored bytes. `None` means: build it again.
    pub fn from_bytes(bytes: &[u8], stored_size: u64) -> Option<Self> {
        let (&VERSION, compressed) = bytes.split_first()? else { return None };
        let plain = decompress(compressed)?;
        let index: Self = postcard::from_bytes(&plain).ok()?;
        (index.spans.is_sound() && index.spans.stored_size() == stored_size && index.is_inside())
            .then_some(index)
    }

    /// Whether every file lies inside the stream.
    fn is_inside(&self) -> bool {
        let stream = ByteRange::new(0, self.spans.stream_size());
        self.toc.entries.iter().all(|entry| match &entry.kind {
            EntryKind::File(content) => {
                let end = content.offset.checked_add(content.stored());
                end.is_some_and(|end| stream.contains(ByteRange::new(content.offset, end)))
            }
            _ => true,
        })
    }
}

/// Decodes what [`LayerIndex::to_bytes`] compressed; the frame's own declared size bounds the memory.
fn decompress(compressed: &[u8]) -> Option<Vec<u8>> {
    let size = zstd::zstd_safe::get_frame_content_size(compressed).ok()??;
    let size = usize::try_from(size).ok().filter(|&size| size <= MAX_INDEX)?;
    zstd::bulk::decompress(compressed, size).ok()
}

#[cfg(test)]
mod tests {
    use super::super::toc::{Content, Entry, Time};
    use super::*;

    fn index() -> LayerIndex {
        let entry = Entry {
            path: b"a/b".to_vec(),
            kind: EntryKind::File(Content { size: 5, offset: 512, runs: None }),
            mode: 0o644,
            uid: 1,
            gid: 2,
            mtime: Time { secs: -1, nanos: 5 },
            xattrs: vec![(b"user.a".to_vec(), vec![0, 255])],
            header: 0,
        };
        LayerIndex { spans: SpanMap::identity(2048), toc: Toc { entries: vec![entry] } }
    }

    #[test]
    fn an_index_survives_being_kept() {
        let bytes = index().to_bytes().unwrap();
        assert_eq!(LayerIndex::from_bytes(&bytes, 2048), Some(index()));
    }

    #[test]
    fn what_cannot_be_true_is_absent() {
        let bytes = index().to_bytes().unwrap();
        assert_eq!(LayerIndex::from_bytes(&bytes, 2047), None, "another layer's size");
        assert_eq!(LayerIndex::from_bytes(&bytes[..bytes.len() - 1], 2048), None, "cut");
        assert_eq!(
            LayerIndex::from_bytes(&[&[VERSION + 1], &bytes[1..]].concat(), 2048),
            None,
            "another version"
        );
        let mut outside = index();
        outside.toc.entries[0].kind = EntryKind::File(Content { size: 5, offset: 2046, runs: None });
        assert_eq!(LayerIndex::from_bytes(&outside.to_bytes().unwrap(), 2048), None, "file past the end");
    }
}
