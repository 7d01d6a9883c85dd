//! What shared parts of the tests want of `real_registry`, where nothing else of it is needed.

/// `sha256:...` of these bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    ocifs::oci::Digest::sha256(bytes).to_string()
}
