//! Writes small tars entry by entry.
//!
//! Never used as an oracle for reading: what was put in is what a test expects to see.

use std::io;
use std::path::Path;

use tar::{Builder, EntryType, Header};

use crate::byte_text::path_of;
use crate::random::Random;

/// The mtime of entries that are not about mtimes.
pub(crate) const MTIME: u64 = 1_600_000_000;

/// A tar that is being written.
pub(crate) struct Tarball {
    builder: Builder<Vec<u8>>,
}

impl Tarball {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { builder: Builder::new(Vec::new()) }
    }

    /// A directory.
    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(name.as_bytes(), EntryType::Directory, 0o755, &[])
    }

    /// A directory with the given mode bits, whose name is written as it is: `./` is the root.
    pub(crate) fn dir_with_mode(mut self, name: &str, mode: u32) -> Self {
        let mut header = header(EntryType::Directory, mode, 0);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        self.builder.append(&header, io::empty()).expect("memory takes everything");
        self
    }

    /// A regular file, 0644.
    pub(crate) fn file(self, name: &str, body: &[u8]) -> Self {
        self.entry(name.as_bytes(), EntryType::Regular, 0o644, body)
    }

    /// A regular file whose name need not be text.
    pub(crate) fn file_named(self, name: &[u8], body: &[u8]) -> Self {
        self.entry(name, EntryType::Regular, 0o644, body)
    }

    /// A regular file with the given mode bits.
    pub(crate) fn file_with_mode(self, name: &str, mode: u32, body: &[u8]) -> Self {
        self.entry(name.as_bytes(), EntryType::Regular, mode, body)
    }

    /// A symbolic link.
    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(name, EntryType::Symlink, target, 0o777)
    }

    /// A hard link, which carries metadata of its own.
    pub(crate) fn hard_link(self, name: &str, target: &str, mode: u32) -> Self {
        self.link(name, EntryType::Link, target, mode)
    }

    /// A character device.
    pub(crate) fn char_device(mut self, name: &str, major: u32, minor: u32) -> Self {
        let mut header = header(EntryType::Char, 0o600, 0);
        header.set_device_major(major).expect("a GNU header");
        header.set_device_minor(minor).expect("a GNU header");
        self.builder.append_data(&mut header, name, io::empty()).expect("memory takes everything");
        self
    }

    /// Pax records for the entry that follows.
    pub(crate) fn pax<'a>(mut self, records: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        self.builder.append_pax_extensions(records).expect("memory takes everything");
        self
    }

    /// The bytes, with the end-of-archive blocks.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.builder.into_inner().expect("memory takes everything")
    }

    fn entry(mut self, name: &[u8], kind: EntryType, mode: u32, body: &[u8]) -> Self {
        let mut header = header(kind, mode, body.len());
        self.builder.append_data(&mut header, path_of(name), body).expect("memory takes everything");
        self
    }

    fn link(mut self, name: &str, kind: EntryType, target: &str, mode: u32) -> Self {
        let mut header = header(kind, mode, 0);
        self.builder.append_link(&mut header, name, Path::new(target)).expect("memory takes everything");
        self
    }
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME);
    header.set_size(size as u64);
    header
}

/// Bytes that do not compress and are the same in every run.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    Random::of(seed).bytes(length)
}
