//! JSON table of contents of eStargz and zstd:chunked: parsed entry by entry, hashed on the way.
//!
//! A counting reader bounds the memory: it limits the bytes since the last entry, and the parser holds at most one
//! entry. The assembler interprets the entries.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::oci::{Digest, HashAlgorithm, Hasher};

use super::assembler::IndexAssembler;
use super::foreign_index::{ForeignError, ForeignLimits, broken};
use super::raw_entry::RawEntry;

/// Bytes decoded ahead of the parser.
const BUFFER: usize = 64 * 1024;

/// The hashes of the bytes of a document.
#[derive(Debug)]
pub(super) struct DocumentDigests {
    pub(super) sha256: Digest,
    pub(super) blake3: [u8; 32],
}

/// Reads the document, the first `size` bytes of `decoded`, into `assembler`. If the manifest names its digest
/// (`expected`), that is compared before any other error is reported.
pub(super) fn read(
    decoded: impl Read,
    size: u64,
    expected: Option<&Digest>,
    limits: &ForeignLimits,
    assembler: &mut IndexAssembler,
) -> Result<DocumentDigests, ForeignError> {
    let format = assembler.format();
    ForeignLimits::check(format, size, limits.decoded, "a table of contents")?;
    let pending = Rc::new(Cell::new(0));
    let bounded = BoundedHasher {
        inner: decoded.take(size),
        read: 0,
        pending: pending.clone(),
        limit: limits.entry,
        over: Rc::new(Cell::new(false)),
        sha256: Hasher::new(HashAlgorithm::Sha256),
        blake3: blake3::Hasher::new(),
    };
    let over = bounded.over.clone();
    let mut reader = BufReader::with_capacity(BUFFER, bounded);
    let mut parser = serde_json::Deserializer::from_reader(&mut reader);
    let parsed = TocDocument { assembler, pending: &pending, limits }
        .deserialize(&mut parser)
        .and_then(|()| parser.end())
        .map_err(|error| error.to_string());
    if over.get() {
        let (what, limit) = (format!("an entry of more than {} bytes", limits.entry), limits.entry);
        return Err(ForeignError::TooLarge { format, what, limit });
    }
    // The digest covers the rest too, even after a parse error.
    let mut rest = reader.into_inner();
    rest.limit = u64::MAX;
    let drained = io::copy(&mut rest, &mut io::sink());
    let hashes = DocumentDigests { sha256: rest.sha256.finish(), blake3: *rest.blake3.finalize().as_bytes() };
    if let Err(error) = drained {
        return Err(broken(format, format!("its table of contents cannot be decoded: {error}")));
    }
    if rest.read != size {
        let read = rest.read;
        return Err(broken(format, format!("its table of contents has {read} of {size} bytes")));
    }
    if let Some(expected) = expected {
        check_digest(format, expected, &hashes.sha256)?;
    }
    // The assembler's error is more specific than the parser's "refused".
    assembler.failure()?;
    parsed.map_err(|reason| broken(format, format!("its table of contents: {reason}")))?;
    Ok(hashes)
}

/// Compares the digest of the index with the one in the manifest.
pub(super) fn check_digest(
    format: &'static str,
    expected: &Digest,
    actual: &Digest,
) -> Result<(), ForeignError> {
    if expected != actual {
        let (expected, actual) = (expected.to_string(), actual.to_string());
        return Err(ForeignError::Digest { format, expected, actual });
    }
    Ok(())
}

/// Counts and hashes the bytes read.
struct BoundedHasher<R> {
    inner: R,
    read: u64,
    /// Bytes since the last complete entry.
    pending: Rc<Cell<u64>>,
    limit: u64,
    /// Whether the pending bytes exceeded the limit.
    over: Rc<Cell<bool>>,
    sha256: Hasher,
    blake3: blake3::Hasher,
}

impl<R: Read> Read for BoundedHasher<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // The parser reads on only after it has consumed all bytes so far, so the pending bytes belong to one
        // entry.
        if self.pending.get() > self.limit {
            self.over.set(true);
            return Err(io::Error::other("an entry is too large"));
        }
        let len = self.inner.read(buf)?;
        let bytes = &buf[..len];
        self.sha256.update(bytes);
        self.blake3.update(bytes);
        self.read += len as u64;
        self.pending.set(self.pending.get().saturating_add(len as u64));
        Ok(len)
    }
}

/// The whole document: `version` and `entries`.
struct TocDocument<'a> {
    assembler: &'a mut IndexAssembler,
    pending: &'a Cell<u64>,
    limits: &'a ForeignLimits,
}

impl<'de> DeserializeSeed<'de> for TocDocument<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TocDocument<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with version and entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut version, mut entries) = (None, false);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" if version.is_none() => version = Some(map.next_value::<i64>()?),
                "entries" if !entries => {
                    let seed = TocEntries {
                        assembler: &mut *self.assembler,
                        pending: self.pending,
                        limits: self.limits,
                    };
                    map.next_value_seed(seed)?;
                    entries = true;
                }
                "version" | "entries" => return Err(A::Error::custom(format!("{key} occurs twice"))),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        match version {
            Some(1) if entries => Ok(()),
            Some(1) => Err(A::Error::custom("it has no entries")),
            Some(version) => Err(A::Error::custom(format!("its version is {version}, not 1"))),
            None => Err(A::Error::custom("it has no version")),
        }
    }
}

/// The list of entries; `null` is an empty one, as Go writes it.
struct TocEntries<'a> {
    assembler: &'a mut IndexAssembler,
    pending: &'a Cell<u64>,
    limits: &'a ForeignLimits,
}

impl<'de> DeserializeSeed<'de> for TocEntries<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TocEntries<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(entry) = seq.next_element::<RawEntry>()? {
            self.pending.set(0);
            if !self.assembler.push(entry, self.limits) {
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}
