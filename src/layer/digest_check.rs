//! Comparison of decoded or stored bytes with a digest of an index.

use crate::oci::Digest;

use super::indexer::PassError;
use super::span::ChunkDigest;

/// Maximum bytes under one digest: they are held in memory until they are compared.
pub(super) const MAX_SUM: u64 = 64 * 1024 * 1024;

/// Fails for more bytes than one digest may cover.
pub(super) fn within_limit(subject: &str, len: u64) -> Result<(), PassError> {
    if len > MAX_SUM {
        return Err(PassError::Digest { subject: subject.into(), len, limit: MAX_SUM });
    }
    Ok(())
}

/// Fails when `bytes` do not have the digest.
pub(super) fn compare_sha256(subject: String, bytes: &[u8], sum: &ChunkDigest) -> Result<(), PassError> {
    use std::fmt::Write as _;
    let mut expected = String::new();
    for byte in sum.sha256 {
        // Writing to a string does not fail.
        write!(expected, "{byte:02x}").ok();
    }
    let actual = Digest::sha256(bytes);
    if actual.encoded() == expected {
        return Ok(());
    }
    let expected = format!("sha256:{expected}");
    Err(PassError::Mismatch { subject, expected, actual: actual.to_string() })
}
