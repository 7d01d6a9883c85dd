//! Checkpoint windows: packed, the first of a layer in memory, the others on the disk of the cache.
//!
//! A layer has one window for each MiB of its stream, and each takes some KiB. Reading a window is a small part of
//! decoding from it. So memory holds only as many as a layer of common size has.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::sync::Arc;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cache::{BlockCache, SpooledBytes};

/// Maximum window bytes that deflate refers to (RFC 1951).
pub const WINDOW: usize = 32 * 1024;

/// Packed bytes of the windows of one layer that stay in memory: those of a stream of some 100 MB.
const MAX_HELD_BYTES: usize = 1024 * 1024;

/// The last stream bytes before a checkpoint, at most [`WINDOW`], compressed with zstd. Unreferenced bytes are
/// zeroed.
#[derive(Clone, Debug)]
pub struct PackedWindow(PackedBytes);

#[derive(Clone, Debug)]
enum PackedBytes {
    Held(Box<[u8]>),
    OnDisk { file: Arc<SpooledBytes>, at: u64, len: u32 },
}

impl PackedWindow {
    /// Compresses `window`.
    pub fn pack(window: &[u8]) -> Self {
        debug_assert!(window.len() <= WINDOW, "deflate refers to {WINDOW} bytes");
        if window.is_empty() {
            return Self::default();
        }
        // An encoder in memory fails only when its output buffer is too small, and this one grows.
        let packed = zstd::bulk::compress(window, 3).unwrap_or_default();
        Self(PackedBytes::Held(packed.into()))
    }

    /// The bytes, as many as were packed; `None` for an invalid or unreadable window.
    pub fn unpack(&self) -> Option<Vec<u8>> {
        let packed = self.packed().ok()?;
        if packed.is_empty() {
            return Some(Vec::new());
        }
        zstd::bulk::decompress(&packed, WINDOW).ok()
    }

    /// Bytes of the window as packed.
    pub(super) fn packed_len(&self) -> u64 {
        match &self.0 {
            PackedBytes::Held(bytes) => bytes.len() as u64,
            PackedBytes::OnDisk { len, .. } => u64::from(*len),
        }
    }

    /// Bytes of memory used.
    pub(super) fn heap_bytes(&self) -> usize {
        match &self.0 {
            PackedBytes::Held(bytes) => bytes.len(),
            PackedBytes::OnDisk { .. } => 0,
        }
    }

    fn packed(&self) -> io::Result<Cow<'_, [u8]>> {
        match &self.0 {
            PackedBytes::Held(bytes) => Ok(Cow::Borrowed(bytes)),
            PackedBytes::OnDisk { file, at, len } => {
                let mut bytes = vec![0; *len as usize];
                file.read_at(*at, &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }
}

impl Default for PackedWindow {
    fn default() -> Self {
        Self(PackedBytes::Held(Box::default()))
    }
}

impl PartialEq for PackedWindow {
    fn eq(&self, other: &Self) -> bool {
        matches!((self.packed(), other.packed()), (Ok(one), Ok(other)) if one == other)
    }
}

impl Eq for PackedWindow {}

impl Serialize for PackedWindow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.packed().map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for PackedWindow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As one byte string that is copied once: an index has megabytes of windows, and a reader waits.
        deserializer.deserialize_byte_buf(WindowVisitor)
    }
}

struct WindowVisitor;

impl Visitor<'_> for WindowVisitor {
    type Value = PackedWindow;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a packed window")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<PackedWindow, E> {
        let spooled = READING.with_borrow_mut(|spool| spool.as_mut().map(|spool| spool.put(bytes)));
        match spooled {
            Some(window) => window.map_err(E::custom),
            None => Ok(PackedWindow(PackedBytes::Held(bytes.into()))),
        }
    }
}

thread_local! {
    /// The spool for the windows of the index that this thread reads; `None` outside of [`spooling_windows`].
    static READING: RefCell<Option<WindowSpool>> = const { RefCell::new(None) };
}

/// Runs `read`, which reads an index. Windows over the memory limit are spooled to the disk of `cache`.
pub(super) fn spooling_windows<T>(cache: Option<&BlockCache>, read: impl FnOnce() -> T) -> T {
    READING.set(cache.map(|cache| WindowSpool::new(Some(cache.clone()))));
    let done = read();
    READING.set(None);
    done
}

/// Distributes the windows of one layer between memory and disk.
#[derive(Default)]
pub(super) struct WindowSpool {
    /// The cache with the disk; `None` where all windows stay in memory.
    cache: Option<BlockCache>,
    file: Option<Arc<SpooledBytes>>,
    held: usize,
}

impl WindowSpool {
    pub(super) fn new(cache: Option<BlockCache>) -> Self {
        Self { cache, ..Self::default() }
    }

    /// Stores a packed window in memory or on disk.
    fn put(&mut self, packed: &[u8]) -> io::Result<PackedWindow> {
        let file = match (&mut self.file, &self.cache) {
            (Some(file), _) => file,
            (none, Some(cache)) if self.held + packed.len() > MAX_HELD_BYTES => {
                none.insert(Arc::new(cache.spooled().map_err(io::Error::other)?))
            }
            _ => {
                self.held += packed.len();
                return Ok(PackedWindow(PackedBytes::Held(packed.into())));
            }
        };
        // Far below 4 GiB: a window has 32 KiB before packing.
        let len = packed.len() as u32;
        Ok(PackedWindow(PackedBytes::OnDisk { file: file.clone(), at: file.append(packed)?, len }))
    }

    /// Moves a window to the disk if the memory limit is reached.
    pub(super) fn keep(&mut self, window: PackedWindow) -> io::Result<PackedWindow> {
        match &window.0 {
            PackedBytes::Held(packed) => self.put(packed),
            PackedBytes::OnDisk { .. } => Ok(window),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_on_disk_equal_packed_ones_and_use_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlockCache::open(dir.path()).unwrap();
        let mut spool = WindowSpool::new(Some(cache.clone()));
        let plain: Vec<Vec<u8>> = (0..60_u32)
            .map(|seed| {
                let mut noise = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
                let mut window = vec![0; WINDOW];
                noise.fill(&mut window);
                window
            })
            .collect();
        let packed: Vec<PackedWindow> = plain.iter().map(|window| PackedWindow::pack(window)).collect();
        let kept: Vec<PackedWindow> =
            packed.iter().map(|window| spool.keep(window.clone()).unwrap()).collect();
        assert!(kept.iter().map(PackedWindow::heap_bytes).sum::<usize>() <= MAX_HELD_BYTES);
        assert!(kept.last().is_some_and(|window| window.heap_bytes() == 0));
        assert_eq!(kept, packed);
        let unpacked: Vec<Vec<u8>> = kept.iter().map(|window| window.unpack().unwrap()).collect();
        assert_eq!(unpacked, plain);
        // And when they are read.
        let bytes = postcard::to_stdvec(&kept).unwrap();
        let read: Vec<PackedWindow> =
            spooling_windows(Some(&cache), || postcard::from_bytes(&bytes).unwrap());
        assert!(read.iter().map(PackedWindow::heap_bytes).sum::<usize>() <= MAX_HELD_BYTES);
        assert_eq!(read, packed);
    }

    #[test]
    fn malformed_window_is_refused() {
        for window in [&b""[..], b"before", &[7; WINDOW]] {
            assert_eq!(PackedWindow::pack(window).unpack().unwrap(), window);
        }
        assert_eq!(PackedWindow(PackedBytes::Held(vec![1, 2, 3].into())).unpack(), None);
    }
}
