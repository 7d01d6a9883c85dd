//! Public keys from files: one PEM block with a SubjectPublicKeyInfo.
//!
//! The caller decides which documents need a signature; private keys are refused. A key is checked when it is parsed.
//! So a key that cannot verify any signature is reported as the user's error, and not as an untrusted image.

use std::fmt;

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use spki::SubjectPublicKeyInfo;
use spki::der::asn1::{BitStringRef, ObjectIdentifier, UintRef};
use spki::der::pem::decode_vec;
use spki::der::{AnyRef, Decode as _, Reader as _, SliceReader};

use super::{Digest, OciError};

/// Limit of a key file, in bytes: an RSA key of 8192 bits has less than 2 KiB.
pub const MAX_KEY_FILE: u64 = 64 * 1024;

/// rsaEncryption (RFC 8017 appendix A).
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// id-ecPublicKey (RFC 5480).
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
/// id-Ed25519 (RFC 8410).
const EDWARDS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Accepted sizes of RSA keys, in bits: shorter ones are broken, longer ones verify slowly and are not in use.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The type of a key, which determines its signature algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyAlgorithm {
    P256,
    P384,
    Rsa,
    Ed25519,
}

/// A public key for checking signatures.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    kind: KeyAlgorithm,
    /// In ring's format: a point, the 32 bytes, or a PKCS #1 RSAPublicKey.
    bytes: Vec<u8>,
    /// SHA-256 of the whole SubjectPublicKeyInfo, which other tools use as well.
    fingerprint: Digest,
}

impl PublicKey {
    /// Parses the only PEM block of a file. `name` is the file's name for errors.
    pub fn parse(name: &str, file: &[u8]) -> Result<Self, OciError> {
        let bad = |reason: &str| OciError::Key { key: name.to_owned(), reason: reason.to_owned() };
        if file.len() as u64 > MAX_KEY_FILE {
            return Err(bad(&format!("it has more than {MAX_KEY_FILE} bytes")));
        }
        // Text before the first block is a comment (RFC 7468 section 2).
        let text = std::str::from_utf8(file).map_err(|_| bad("it is not PEM"))?;
        let block = text.find("-----BEGIN ").map(|at| &text[at..]).ok_or_else(|| bad("it is not PEM"))?;
        if block.matches("-----BEGIN ").count() > 1 {
            return Err(bad("it has more than one PEM block; name a file for each key"));
        }
        if block.contains("PRIVATE KEY-----") {
            return Err(bad("it is a private key; name the file with the public key"));
        }
        let (label, der) = decode_vec(block.trim_end().as_bytes())
            .map_err(|error| bad(&format!("its PEM is not valid: {error}")))?;
        if label != "PUBLIC KEY" {
            let wanted = "PUBLIC KEY (openssl pkey -pubout writes one)";
            return Err(bad(&format!("it holds a {label:?}, not a {wanted}")));
        }
        let info = SubjectPublicKeyInfo::<AnyRef<'_>, BitStringRef<'_>>::from_der(&der)
            .map_err(|error| bad(&format!("it is not a SubjectPublicKeyInfo: {error}")))?;
        let bytes = info.subject_public_key.as_bytes().ok_or_else(|| bad("its key is not whole bytes"))?;
        let curve = || info.algorithm.parameters_oid().ok();
        let kind = match info.algorithm.oid {
            EC if curve() == Some(P256) => KeyAlgorithm::P256,
            EC if curve() == Some(P384) => KeyAlgorithm::P384,
            EDWARDS => KeyAlgorithm::Ed25519,
            RSA => KeyAlgorithm::Rsa,
            _ => return Err(bad("it is not an ECDSA key on P-256 or P-384, an Ed25519 or an RSA key")),
        };
        let is_sound = match kind {
            // The first byte 4 marks an uncompressed point (SEC 1 section 2.3.3).
            KeyAlgorithm::P256 => bytes.len() == 65 && bytes[0] == 4,
            KeyAlgorithm::P384 => bytes.len() == 97 && bytes[0] == 4,
            KeyAlgorithm::Ed25519 => bytes.len() == 32,
            KeyAlgorithm::Rsa => rsa_bits(bytes).is_some_and(|bits| RSA_BITS.contains(&bits)),
        };
        if !is_sound {
            return Err(bad(match kind {
                KeyAlgorithm::Rsa => "its RSA key is not of 2048 to 8192 bits",
                _ => "its key has another length, or is a compressed point",
            }));
        }
        Ok(Self { kind, bytes: bytes.to_vec(), fingerprint: Digest::sha256(&der) })
    }

    /// Whether `signature` over `message` was made with this key.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        // Cosign's signatures use SHA-256 for every curve; newer tools use the hash that matches the curve.
        let algorithms: &[&'static dyn VerificationAlgorithm] = match self.kind {
            KeyAlgorithm::P256 => &[&ECDSA_P256_SHA256_ASN1],
            KeyAlgorithm::P384 => &[&ECDSA_P384_SHA256_ASN1, &ECDSA_P384_SHA384_ASN1],
            KeyAlgorithm::Rsa => &[&RSA_PKCS1_2048_8192_SHA256],
            KeyAlgorithm::Ed25519 => &[&ED25519],
        };
        algorithms.iter().any(|algorithm| {
            UnparsedPublicKey::new(*algorithm, &self.bytes).verify(message, signature).is_ok()
        })
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub fn fingerprint(&self) -> &Digest {
        &self.fingerprint
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?} {})", self.kind, self.fingerprint)
    }
}

/// Number of bits in the modulus of a PKCS #1 RSAPublicKey.
fn rsa_bits(der: &[u8]) -> Option<usize> {
    let mut reader = SliceReader::new(der).ok()?;
    let modulus = reader
        .sequence(|inner| {
            let modulus = UintRef::decode(inner)?;
            UintRef::decode(inner)?;
            Ok::<_, spki::der::Error>(modulus.as_bytes().to_vec())
        })
        .ok()?;
    let first = modulus.first()?;
    Some(modulus.len() * 8 - first.leading_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::key_fixtures::{Made, openssl};

    #[test]
    fn keys_of_every_kind_verify_openssl_signatures_and_no_others() {
        for kind in ["p256", "p384", "rsa2048", "ed25519"] {
            let Some(made) = Made::key(kind) else { return };
            let key = PublicKey::parse("k", made.public().as_bytes()).unwrap();
            let signature = made.sign(b"message");
            assert!(key.verifies(b"message", &signature), "{kind}");
            assert!(!key.verifies(b"massage", &signature), "{kind}");
            assert!(!key.verifies(b"message", &signature[1..]), "{kind}");
            assert!(!key.verifies(b"message", b""), "{kind}");
            let other = PublicKey::parse("k", Made::key(kind).unwrap().public().as_bytes()).unwrap();
            assert!(!other.verifies(b"message", &signature), "{kind}");
            assert_ne!(key.fingerprint(), other.fingerprint());
        }
    }

    #[test]
    fn malformed_key_is_refused_with_the_reason() {
        let Some(made) = Made::key("p256") else { return };
        let good = made.public();
        let refused = |file: &[u8], words: &str| {
            let error = PublicKey::parse("cosign.pub", file).unwrap_err().to_string();
            assert!(error.contains("cosign.pub") && error.contains(words), "{error}");
        };
        refused(b"", "not PEM");
        refused(b"\xff", "not PEM");
        refused(format!("{good}{good}").as_bytes(), "more than one");
        refused(made.private().as_bytes(), "private key");
        refused(good.replace("PUBLIC KEY", "CERTIFICATE").as_bytes(), "CERTIFICATE");
        refused(good.replace("MF", "MG").as_bytes(), "");
        refused(&vec![b' '; MAX_KEY_FILE as usize + 1], "more than 65536 bytes");
        refused(Made::key("rsa1024").unwrap().public().as_bytes(), "2048 to 8192");
        refused(Made::key("secp256k1").unwrap().public().as_bytes(), "P-256 or P-384");
        let compressed = openssl(&["ec", "-pubin", "-pubout", "-conv_form", "compressed"], good.as_bytes());
        refused(&compressed, "compressed point");
        // A comment before the block is nothing.
        PublicKey::parse("k", format!("key of the team\n{good}\n\n").as_bytes()).unwrap();
    }
}
