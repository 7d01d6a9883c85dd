//! Small qcow2 images made by hand, with every kind of cluster; their disks, and the invariants of any image.

use std::io::Write as _;
use std::sync::Arc;

use ocifs::disk::{DiskFormat, HEAD, Qcow2Raw, inspect};
use ocifs::io::{ByteRange, FaultClass, MemoryReader, ReadAt as _, SharedReader, read_vec};

/// What an image is like.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub version: u32,
    /// A cluster has `1 << bits` bytes.
    pub bits: u32,
    pub zstd: bool,
    pub extended: bool,
}

/// One of each.
pub const KINDS: [Kind; 5] = [
    Kind { version: 2, bits: 9, zstd: false, extended: false },
    Kind { version: 3, bits: 9, zstd: false, extended: false },
    Kind { version: 3, bits: 12, zstd: true, extended: false },
    Kind { version: 3, bits: 14, zstd: false, extended: true },
    Kind { version: 3, bits: 14, zstd: true, extended: true },
];

/// Where the tables and the data of an image are, in clusters.
pub const L1: usize = 1;
pub const L2: usize = 2;
const DATA: usize = 3;
const PACKED: usize = 6;

impl Kind {
    pub fn cluster(self) -> usize {
        1 << self.bits
    }

    pub fn entry_size(self) -> usize {
        if self.extended { 16 } else { 8 }
    }

    /// The image, and its disk of ten clusters and a sector: stored, stored, nothing, zeros (or nothing), compressed,
    /// compressed, stored, and then nothing.
    pub fn make(self) -> (Vec<u8>, Vec<u8>) {
        let cluster = self.cluster();
        let mut image = vec![0; PACKED * cluster];
        let mut disk = vec![0; 10 * cluster + 512];
        image[..4].copy_from_slice(b"QFI\xfb");
        put(&mut image, 4, self.version, 4);
        put(&mut image, 20, self.bits, 4);
        put(&mut image, 24, disk.len() as u64, 8);
        put(&mut image, 36, 1u32, 4);
        put(&mut image, 40, (L1 * cluster) as u64, 8);
        if self.version == 3 {
            put(&mut image, 72, u64::from(self.zstd) << 3 | u64::from(self.extended) << 4, 8);
            put(&mut image, 96, 4u32, 4);
            put(&mut image, 100, 112u32, 4);
            image[104] = u8::from(self.zstd);
        }
        put(&mut image, L1 * cluster, 1 << 63 | (L2 * cluster) as u64, 8);
        for (guest, host) in [(0, DATA), (1, DATA + 1), (6, DATA + 2)] {
            let plain: Vec<u8> = (0..cluster).map(|at| (at * 7 + at / 256 + guest * 31) as u8 | 1).collect();
            image[host * cluster..][..cluster].copy_from_slice(&plain);
            disk[guest * cluster..][..cluster].copy_from_slice(&plain);
            self.entry(&mut image, guest, 1 << 63 | (host * cluster) as u64);
            if self.extended {
                // The first eight subclusters are allocated, the next four say zeros, and the others nothing.
                let at = L2 * cluster + guest * 16 + 8;
                put(&mut image, at, 0x0f00_0000_00ff_u64, 8);
                disk[guest * cluster..][..cluster][8 * cluster / 32..].fill(0);
            }
        }
        if self.version == 3 && !self.extended {
            self.entry(&mut image, 3, 1);
        }
        for guest in [4, 5] {
            let plain = vec![guest as u8; cluster];
            let stored = if self.zstd { zstd::bulk::compress(&plain, 1).unwrap() } else { deflate(&plain) };
            let (start, end) = (image.len(), image.len() + stored.len());
            let more = (end - 1) / 512 - start / 512;
            self.entry(&mut image, guest, 1 << 62 | (more as u64) << (70 - self.bits) | start as u64);
            image.extend(stored);
            disk[guest * cluster..][..cluster].copy_from_slice(&plain);
        }
        (image, disk)
    }

    /// Writes the L2 entry of a cluster of the disk.
    pub fn entry(self, image: &mut [u8], guest: usize, value: u64) {
        put(image, L2 * self.cluster() + guest * self.entry_size(), value, 8);
    }
}

/// Writes the last `len` bytes of a big-endian number.
pub fn put(image: &mut [u8], at: usize, value: impl Into<u64>, len: usize) {
    image[at..at + len].copy_from_slice(&value.into().to_be_bytes()[8 - len..]);
}

fn deflate(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// The raw disk of this image, or why there is none.
pub fn raw(image: &[u8], file: SharedReader) -> Result<Qcow2Raw, String> {
    let head = &image[..image.len().min(HEAD as usize)];
    let seen = inspect(head, image.len() as u64, &DiskFormat::Qcow2);
    Ok(Qcow2Raw::open(file, seen.raw_header()?).unwrap())
}

/// The raw disk of this image, read from memory.
pub fn raw_in_memory(image: &[u8]) -> Result<Qcow2Raw, String> {
    raw(image, Arc::new(MemoryReader::new(image.to_vec())))
}

/// Reads everything in pieces, by both ways, and the map; only malformed bytes may be the reason of an error.
pub async fn survives(image: &[u8]) {
    let Ok(view) = raw_in_memory(image) else { return };
    view.prepare_map().await.unwrap();
    let end = view.size().min(1 << 18);
    let last = view.size().saturating_sub(700).max(end);
    let pieces = (0..end).step_by(5000).map(|at| ByteRange::at(at, 5000.min(end - at)));
    for range in pieces.chain([ByteRange::new(last, view.size())]) {
        let read = read_vec(&view, range).await;
        let mut buf = vec![0xee; range.len() as usize];
        match (&read, view.read_ready(range.start, &mut buf)) {
            (Ok(bytes), Ok(true)) => assert!(*bytes == buf),
            (Ok(_), Ok(false)) => {}
            (Err(error), again) => {
                assert_eq!(error.fault(), FaultClass::Malformed, "{}", error.chain());
                assert!(again.map_or(true, |ready| !ready));
            }
            (Ok(_), Err(error)) => panic!("read, and then not: {}", error.chain()),
        }
        if let Ok(bytes) = read
            && view.next_data(range.start).is_none_or(|data| data >= range.end)
        {
            assert!(bytes.iter().all(|byte| *byte == 0), "a hole with bytes in it: {range}");
        }
    }
}
