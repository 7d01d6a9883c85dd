//! Verification modes: when content is compared with its digest.

/// When the bytes of a blob are compared with its digest, as its reader sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum VerifyMode {
    /// Bytes are served as they come; the whole is compared once all blocks are present, and a wrong blob is
    /// poisoned.
    #[default]
    Lazy,
    /// No byte is served before the whole was compared.
    Strict,
    /// Only bytes compared with a digest that the manifest vouches for are served: the whole blob, or a part of it
    /// that has a digest of its own.
    Toc,
}

/// When the blobs that a handle opens are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct VerifyPolicy {
    pub(super) verify: VerifyMode,
    /// Bytes up to which a blob is compared as a whole in every mode.
    pub(super) small: u64,
}

impl VerifyPolicy {
    /// Whether a blob of `size` bytes is compared as a whole before any of it is handed out.
    pub(super) fn is_whole_first(self, size: u64) -> bool {
        self.verify == VerifyMode::Strict || size <= self.small
    }
}
