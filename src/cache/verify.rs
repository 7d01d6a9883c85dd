//! When content is compared with its digest.

/// When the bytes of a blob are compared with its digest, seen from who reads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verify {
    /// They are given out as they come; the whole is compared when it is here, and what is wrong is poisoned.
    #[default]
    Lazy,
    /// Nothing is given out before the whole was compared.
    Strict,
    /// Given out is only what was compared with a digest that the manifest vouches for: the whole blob, or a part of it that has
    /// a digest of its own.
    Toc,
}

/// When the blobs that a handle opens are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct When {
    pub(super) verify: Verify,
    /// Bytes up to which a blob is compared as a whole in every mode.
    pub(super) small: u64,
}

impl When {
    /// Whether nothing of a blob of `size` bytes is handed out before the whole was compared.
    pub(super) fn is_whole_first(self, size: u64) -> bool {
        self.verify == Verify::Strict || size <= self.small
    }
}
