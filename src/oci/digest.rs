//! Digests: the only names of content that may become file names or URLs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::sha::{HashAlgorithm, ShaState};

/// A validated digest `algorithm:encoded`: lower-case hex of the right length for the registered algorithms, and the
/// grammar of image-spec descriptor.md for others.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    text: Box<str>,
    /// Position of the colon. Invariant: `text.as_bytes()[colon] == b':'`.
    colon: u16,
}

impl Digest {
    /// The sha256 of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(HashAlgorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Hashes `bytes` with the algorithm of this digest; `None` if the algorithm is not supported.
    pub fn same_algorithm(&self, bytes: &[u8]) -> Option<Digest> {
        let mut hasher = Hasher::new(self.algorithm()?);
        hasher.update(bytes);
        Some(hasher.finish())
    }

    /// The algorithm; `None` if ocifs does not serve its content.
    pub fn algorithm(&self) -> Option<HashAlgorithm> {
        match self.algorithm_name() {
            "sha256" => Some(HashAlgorithm::Sha256),
            "sha512" => Some(HashAlgorithm::Sha512),
            _ => None,
        }
    }

    /// The part before the colon.
    pub fn algorithm_name(&self) -> &str {
        &self.text[..self.colon as usize]
    }

    /// The part after the colon.
    pub fn encoded(&self) -> &str {
        &self.text[self.colon as usize + 1..]
    }

    /// The first 12 characters of the encoded part, for display.
    pub fn short(&self) -> &str {
        let encoded = self.encoded();
        &encoded[..encoded.len().min(12)]
    }

    /// `algorithm:encoded`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// A digest that violates the grammar, from the user or a document.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("digest {digest:?} is not of the form algorithm:hex")]
pub struct InvalidDigest {
    /// The digest, as found; its first 200 characters.
    pub digest: String,
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let bad = || InvalidDigest { digest: text.chars().take(200).collect() };
        let (algorithm, encoded) = text.split_once(':').ok_or_else(bad)?;
        let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let valid = match algorithm {
            "sha256" => encoded.len() == 64 && encoded.bytes().all(lower_hex),
            "sha512" => encoded.len() == 128 && encoded.bytes().all(lower_hex),
            _ => {
                let component = |part: &str| {
                    !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                };
                text.len() <= 512
                    && algorithm.split(['+', '.', '_', '-']).all(component)
                    && !encoded.is_empty()
                    && encoded.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'))
            }
        };
        if !valid {
            return Err(bad());
        }
        let colon = u16::try_from(algorithm.len()).map_err(|_| bad())?;
        Ok(Self { text: text.into(), colon })
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;
    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.text.into()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Incremental hashing.
#[derive(Clone)]
pub struct Hasher {
    algorithm: HashAlgorithm,
    state: ShaState,
}

impl Hasher {
    /// A hasher without input.
    pub fn new(algorithm: HashAlgorithm) -> Self {
        Self { algorithm, state: ShaState::new(algorithm) }
    }

    /// Appends `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    /// The digest of all appended bytes.
    pub fn finish(self) -> Digest {
        use fmt::Write as _;
        let (name, hash) = (self.algorithm.name(), self.state.finish());
        let mut text = String::with_capacity(name.len() + 1 + 2 * hash.len());
        text.push_str(name);
        text.push(':');
        for byte in hash {
            // Writing to a String cannot fail.
            _ = write!(text, "{byte:02x}");
        }
        // "sha256" and "sha512" are 6 bytes long.
        Digest { text: text.into(), colon: 6 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_of_nothing_is_the_known_one() {
        let digest = Digest::sha256(b"");
        assert_eq!(
            digest.as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(digest.as_str().parse::<Digest>().unwrap(), digest);
        assert_eq!(digest.short(), "e3b0c44298fc");
    }

    #[test]
    fn a_digest_that_could_escape_a_path_is_refused() {
        let upper = "A".repeat(64);
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:ab",
            "sha256:../../etc/passwd",
            &format!("sha256:{upper}"),
            "a b:cd",
            "x:a/b",
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert!(
            "multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8"
                .parse::<Digest>()
                .unwrap()
                .algorithm()
                .is_none()
        );
    }
}
