//! The compression of an archive as a whole, by its first bytes.

use crate::io::Fault;
use crate::layer::{Encoding, Sniffed, sniff};
use crate::source::SourceError;

/// The encoding of an archive with these first bytes.
pub(super) fn encoding(head: &[u8], place: &str) -> Result<Encoding, SourceError> {
    let wrong = |reason: String| {
        Err(SourceError::Archive { place: place.to_owned(), reason, fault: Fault::Malformed })
    };
    match sniff(head) {
        Sniffed::Stream(_) if head.is_empty() => wrong("it is empty, and no archive".into()),
        Sniffed::Stream(encoding) => Ok(encoding),
        Sniffed::Other(name) => wrong(format!("its content is {name}, and no tar archive")),
    }
}
