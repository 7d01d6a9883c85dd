//! What shared parts of the tests want of `real_registry`, where nothing else of it is needed.

/// `sha256:...` of these bytes.
#[allow(dead_code, reason = "each test binary uses a part")]
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    ocifs::oci::Digest::sha256(bytes).to_string()
}

/// The bytes in hex.
#[allow(dead_code, reason = "each test binary uses a part")]
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
