//! Bytes that lie in a file of this machine already, and need no copy.
//!
//! A producer hands over the open file that holds its bytes. A cache keeps checksums instead of a copy, and compares the
//! size and times of the file with those at its opening.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::ByteRange;

/// An open file that other processes may change.
pub trait FileBytes: Send + Sync + 'static {
    /// Fills `buf` from `offset`. The bytes count only if [`is_unchanged`](Self::is_unchanged) holds afterwards.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()>;

    /// Whether size and times of the file are those that it had when it was opened.
    fn is_unchanged(&self) -> bool;

    /// Bytes of the file when it was opened.
    fn size(&self) -> u64;

    /// Numbers that no other file and no other content of this file has.
    fn version(&self) -> [u64; 7];

    /// A descriptor that cannot write, for a reader that looks at no checksum; `None` where other users may write to the file.
    fn descriptor(&self) -> Option<OwnedFd>;
}

/// A run of an open file.
#[derive(Clone)]
pub struct LocalBytes {
    file: Arc<dyn FileBytes>,
    /// Invariant: `range.end <= file.size()`.
    range: ByteRange,
}

impl LocalBytes {
    /// All of a file.
    pub fn of(file: Arc<dyn FileBytes>) -> Self {
        let range = ByteRange::new(0, file.size());
        Self { file, range }
    }

    /// A run of these bytes; `None` when it passes their end.
    #[must_use]
    pub fn part(&self, part: ByteRange) -> Option<Self> {
        let start = self.range.start.checked_add(part.start)?;
        let end = self.range.start.checked_add(part.end)?;
        (end <= self.range.end).then(|| Self { file: self.file.clone(), range: ByteRange::new(start, end) })
    }

    /// How many bytes there are.
    pub fn size(&self) -> u64 {
        self.range.len()
    }

    /// Fills `buf` from `offset` of these bytes; see [`FileBytes::read_exact_at`].
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size()) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buf, self.range.start + offset)
    }

    /// Whether the size and times of the file equal those at its opening.
    pub fn is_unchanged(&self) -> bool {
        self.file.is_unchanged()
    }

    /// A hash that no other bytes of this machine have.
    pub fn identity(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for part in self.file.version().into_iter().chain([self.range.start, self.range.end]) {
            hasher.update(&part.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// A descriptor of a file that holds these bytes and nothing else; `None` where they are a part of a file, where the file has
    /// changed, and where other users may change it.
    pub fn whole_file(&self) -> Option<OwnedFd> {
        let is_whole = self.range.start == 0 && self.range.end == self.file.size() && !self.range.is_empty();
        let descriptor = is_whole.then(|| self.file.descriptor())?;
        descriptor.filter(|_| self.file.is_unchanged())
    }
}
