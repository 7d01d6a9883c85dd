//! SHA-2 by the faster of two implementations.
//!
//! sha2 uses the SHA extensions of a processor, and is as fast as ring there. Without them ring's assembly is twice as
//! fast. The choice is made once, when the process hashes for the first time.

use std::sync::LazyLock;

use sha2::Digest as _;

/// Hash functions for which ocifs serves content. Others are valid in a manifest and are listed, but not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HashAlgorithm {
    /// SHA-256, 64 hex digits.
    Sha256,
    /// SHA-512, 128 hex digits.
    Sha512,
}

impl HashAlgorithm {
    /// The registered name.
    pub fn name(self) -> &'static str {
        match self {
            HashAlgorithm::Sha256 => "sha256",
            HashAlgorithm::Sha512 => "sha512",
        }
    }
}

/// The implementation for each algorithm on this processor.
static BACKENDS: LazyLock<[HashBackend; 2]> =
    LazyLock::new(|| [HashAlgorithm::Sha256, HashAlgorithm::Sha512].map(HashBackend::fastest));

/// An implementation of SHA-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HashBackend {
    /// The crate sha2, for processors with SHA extensions.
    Sha2,
    /// The crate ring, for all others.
    Ring,
}

impl HashBackend {
    /// The faster implementation of `algorithm` on this processor.
    fn fastest(algorithm: HashAlgorithm) -> Self {
        if has_extension(algorithm) { HashBackend::Sha2 } else { HashBackend::Ring }
    }

    /// The implementation chosen at the start.
    fn chosen(algorithm: HashAlgorithm) -> Self {
        let [sha256, sha512] = *BACKENDS;
        match algorithm {
            HashAlgorithm::Sha256 => sha256,
            HashAlgorithm::Sha512 => sha512,
        }
    }
}

/// Whether the processor has the instructions for `algorithm` that sha2 uses.
#[cfg(target_arch = "x86_64")]
fn has_extension(algorithm: HashAlgorithm) -> bool {
    match algorithm {
        HashAlgorithm::Sha256 => {
            std::arch::is_x86_feature_detected!("sha")
                && std::arch::is_x86_feature_detected!("ssse3")
                && std::arch::is_x86_feature_detected!("sse4.1")
        }
        // sha2 has no code for the extension of SHA-512.
        HashAlgorithm::Sha512 => false,
    }
}

/// Whether the processor has the instructions for `algorithm` that sha2 uses.
#[cfg(target_arch = "aarch64")]
fn has_extension(algorithm: HashAlgorithm) -> bool {
    match algorithm {
        HashAlgorithm::Sha256 => std::arch::is_aarch64_feature_detected!("sha2"),
        HashAlgorithm::Sha512 => std::arch::is_aarch64_feature_detected!("sha3"),
    }
}

/// Other processors have none that sha2 detects.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_extension(_: HashAlgorithm) -> bool {
    false
}

/// The state of a hash, in one of the implementations.
#[derive(Clone)]
pub(super) enum ShaState {
    /// SHA-256 of sha2.
    Sha256(sha2::Sha256),
    /// SHA-512 of sha2.
    Sha512(sha2::Sha512),
    /// Either of ring.
    Ring(ring::digest::Context),
}

impl ShaState {
    /// A state without input.
    pub(super) fn new(algorithm: HashAlgorithm) -> Self {
        Self::with(HashBackend::chosen(algorithm), algorithm)
    }

    fn with(backend: HashBackend, algorithm: HashAlgorithm) -> Self {
        let ring = |algorithm| ShaState::Ring(ring::digest::Context::new(algorithm));
        match (backend, algorithm) {
            (HashBackend::Sha2, HashAlgorithm::Sha256) => ShaState::Sha256(sha2::Sha256::new()),
            (HashBackend::Sha2, HashAlgorithm::Sha512) => ShaState::Sha512(sha2::Sha512::new()),
            (HashBackend::Ring, HashAlgorithm::Sha256) => ring(&ring::digest::SHA256),
            (HashBackend::Ring, HashAlgorithm::Sha512) => ring(&ring::digest::SHA512),
        }
    }

    /// Appends `bytes`.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            ShaState::Sha256(state) => state.update(bytes),
            ShaState::Sha512(state) => state.update(bytes),
            ShaState::Ring(state) => state.update(bytes),
        }
    }

    /// The hash of all appended bytes.
    pub(super) fn finish(self) -> Vec<u8> {
        match self {
            ShaState::Sha256(state) => state.finalize().to_vec(),
            ShaState::Sha512(state) => state.finalize().to_vec(),
            ShaState::Ring(state) => state.finish().as_ref().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_implementations_agree_on_every_length_and_cut() {
        let bytes: Vec<u8> = (0..70_000u32).map(|at| (at.wrapping_mul(at) >> 3) as u8).collect();
        for algorithm in [HashAlgorithm::Sha256, HashAlgorithm::Sha512] {
            for len in (0..300).chain([4095, 4096, 4097, 69_999, 70_000]) {
                for cut in [1, 63, 64, 65, 777] {
                    if len / cut > 2000 {
                        continue;
                    }
                    let by = |backend| {
                        let mut hasher = ShaState::with(backend, algorithm);
                        bytes[..len].chunks(cut).for_each(|chunk| hasher.update(chunk));
                        hasher.finish()
                    };
                    assert_eq!(by(HashBackend::Sha2), by(HashBackend::Ring), "{algorithm:?} {len} {cut}");
                }
            }
        }
    }

    #[test]
    fn a_clone_goes_on_from_the_same_input() {
        for algorithm in [HashAlgorithm::Sha256, HashAlgorithm::Sha512] {
            for backend in [HashBackend::Sha2, HashBackend::Ring] {
                let mut one = ShaState::with(backend, algorithm);
                one.update(b"ab");
                let mut other = one.clone();
                one.update(b"c");
                other.update(b"c");
                let mut whole = ShaState::new(algorithm);
                whole.update(b"abc");
                let whole = whole.finish();
                assert_eq!((one.finish(), other.finish()), (whole.clone(), whole));
            }
        }
    }

    #[test]
    fn the_choice_follows_the_processor() {
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let has_sha =
            if cfg!(target_arch = "x86_64") { flags.contains(&"sha_ni") } else { flags.contains(&"sha2") };
        let expected = if has_sha { HashBackend::Sha2 } else { HashBackend::Ring };
        assert_eq!(HashBackend::chosen(HashAlgorithm::Sha256), expected);
    }
}
