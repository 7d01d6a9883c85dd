//! Sharing of verified blobs between origins.

/// The origins that a verified blob of another origin serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlobSharing {
    /// All of them: one user reads all origins.
    #[default]
    Always,
    /// Those that proved to have the blob.
    Proven,
    /// Those that proved to have the blob, and those that do not answer.
    ProvenOrSilent,
}
