//! Content of artifacts as producers pack it: small archives, disks and their compressed forms.
//!
//! Never random: the same bytes, and so the same digests, in every run. The idea: a few MiB of disk with data at both ends
//! and a hole between them are enough for every packaging.

use std::fs;
use std::path::PathBuf;

use crate::artifact::Blob;
use crate::encode::gzip;
use crate::golden::Entries;
use crate::process::sh;
use crate::scratch::Scratch;
use crate::tarball::{Tarball, noise};

/// Bytes of [`raw_disk`].
pub(crate) const DISK_SIZE: usize = 2 << 20;

/// A tar of these entries; a link's bytes are its target.
pub(crate) fn tar(entries: Entries<'_>) -> Vec<u8> {
    let mut tar = Tarball::new();
    for (name, bytes) in entries {
        tar = if let Some(name) = name.strip_suffix('/') {
            tar.dir(name)
        } else if let Some(name) = name.strip_suffix('@') {
            tar.symlink(name, &String::from_utf8_lossy(bytes))
        } else {
            tar.file(name, bytes)
        };
    }
    tar.bytes()
}

/// A gzipped tar of these entries.
pub(crate) fn tgz(media_type: &str, entries: Entries<'_>) -> Blob {
    Blob::new(media_type, gzip(&tar(entries)))
}

/// A raw disk: data in the first and in the last quarter, zeros between.
pub(crate) fn raw_disk(seed: u64) -> Vec<u8> {
    let mut disk = vec![0; DISK_SIZE];
    disk[..160 << 10].copy_from_slice(&noise(160 << 10, seed));
    let tail = DISK_SIZE - (96 << 10);
    disk[tail..].copy_from_slice(&noise(96 << 10, seed + 1));
    disk
}

/// Whether there are runs of zeros where [`raw_disk`] has them.
pub(crate) fn hole() -> std::ops::Range<usize> {
    160 << 10..DISK_SIZE - (96 << 10)
}

/// `raw` as `qemu-img convert -O qcow2` with these options writes it.
pub(crate) fn qcow2(scratch: &Scratch, raw: &[u8], options: &str) -> Vec<u8> {
    let from = scratch.file("shape.raw", raw);
    let to = scratch.join("shape.qcow2");
    sh(&format!("qemu-img convert -q -f raw -O qcow2 {options} $1 $2"), &[&from, &to]);
    fs::read(to).expect("qemu-img wrote it")
}

/// What a program makes of these bytes: `xz -T2 -c`, `zstd -q -c`.
pub(crate) fn through(scratch: &Scratch, program: &str, bytes: &[u8]) -> Vec<u8> {
    let from: PathBuf = scratch.file("shape.plain", bytes);
    sh(&format!("{program} < $1"), &[&from]).stdout
}

/// One zstd frame that says how large its content is.
pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("level 3 exists");
    encoder.set_pledged_src_size(Some(bytes.len() as u64)).expect("nothing is written yet");
    encoder.include_contentsize(true).expect("nothing is written yet");
    encoder.write_all(bytes).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

/// `HEX  NAME` as sha256sum writes it.
pub(crate) fn sum_line(name: &str, bytes: &[u8]) -> String {
    let digest = crate::byte_text::digest_of(bytes);
    format!("{}  {name}\n", &digest["sha256:".len()..])
}
