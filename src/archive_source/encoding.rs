//! The compression of an archive as a whole, by its first bytes.

use crate::io::FaultClass;
use crate::layer::{SniffResult, StreamEncoding, sniff};
use crate::source::SourceError;

/// The encoding of an archive with these first bytes.
pub(super) fn encoding(head: &[u8], place: &str) -> Result<StreamEncoding, SourceError> {
    let wrong = |reason: String| {
        Err(SourceError::Archive { place: place.to_owned(), reason, fault: FaultClass::Malformed })
    };
    match sniff(head) {
        SniffResult::Stream(_) if head.is_empty() => wrong("it is empty, and no archive".into()),
        SniffResult::Stream(encoding) => Ok(encoding),
        SniffResult::Other(name) => wrong(format!("its content is {name}, and no tar archive")),
    }
}
