//! Image signatures in cosign's formats, checked with a plain public key.
//!
//! No content is fetched, and no certificate or transparency log is used: the key alone decides. A signature consists
//! of the signed bytes, the signature over them, and their statement about the image. The signed bytes are parsed
//! only after a key has verified them, so only the key's owner controls the parser's input. Formats: the simple
//! signing payload of the container signature format (`critical.image.docker-manifest-digest`), and the Sigstore
//! bundle 0.3. The bundle contains a DSSE envelope around an in-toto statement, or a signature over the document
//! itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{Descriptor, Digest, PublicKey};

/// Artifact type of referrers with signatures, one in each layer.
pub const SIGNATURE_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// Artifact type of referrers with a bundle, and media type of the bundle.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Media type of a simple signing payload.
pub const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation of a payload's layer: the signature, in base64.
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// Limit of a payload or bundle, in bytes. Payloads have some hundred bytes, bundles some kilobytes.
pub const MAX_SIGNED: u64 = 256 * 1024;
/// Limit of the signatures examined for one image.
pub const MAX_SIGNATURES: usize = 64;
/// Limit of a signature, in bytes: that of an RSA key of 8192 bits has 1024.
const MAX_SIGNATURE: usize = 4096;
/// Limit of a tag, in characters (distribution-spec, "Pulling manifests").
const MAX_TAG: usize = 128;

/// Declared type of a payload. Without this check a payload made for another purpose could count.
const PAYLOAD_TYPE: &str = "cosign container image signature";
/// Predicate type of an image signature's statement. Attestations are statements too, but not signatures.
const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
/// Payload type of an envelope around a statement.
const STATEMENT: &str = "application/vnd.in-toto+json";

/// The tag with the signatures of a document; `None` if the digest is too long for a tag.
pub fn signature_tag(digest: &Digest) -> Option<String> {
    let tag = format!("{}-{}.sig", digest.algorithm_name(), digest.encoded());
    (tag.len() <= MAX_TAG).then_some(tag)
}

/// A published signature, not verified yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedSignature {
    over: SignedBytes,
    signature: Vec<u8>,
}

/// The signed bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum SignedBytes {
    /// A simple signing payload.
    Payload(Vec<u8>),
    /// A statement in an envelope.
    Statement(Vec<u8>),
    /// The manifest or index itself.
    Document,
}

#[derive(Deserialize)]
struct CosignPayload {
    critical: CosignCritical,
}

#[derive(Deserialize)]
struct CosignCritical {
    image: CosignImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct CosignImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InTotoStatement {
    predicate_type: String,
    subject: Vec<StatementSubject>,
}

#[derive(Deserialize)]
struct StatementSubject {
    digest: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SigstoreBundle {
    media_type: String,
    message_signature: Option<MessageSignature>,
    dsse_envelope: Option<DsseEnvelope>,
}

#[derive(Deserialize)]
struct MessageSignature {
    signature: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DsseEnvelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

impl PublishedSignature {
    /// The signature of a layer with content `payload`; the error is the reason why there is none.
    pub fn of_layer(layer: &Descriptor, payload: &[u8]) -> Result<Self, String> {
        let text = layer.annotations.get(SIGNATURE).ok_or("a payload without a signature")?;
        Ok(Self { over: SignedBytes::Payload(limited(payload)?.to_vec()), signature: decoded(text)? })
    }

    /// The signatures of a bundle; the error is the reason why there are none.
    pub fn of_bundle(bytes: &[u8]) -> Result<Vec<Self>, String> {
        let bundle: SigstoreBundle = json("a bundle", limited(bytes)?)?;
        if bundle.media_type != BUNDLE {
            return Err(format!(
                "a bundle of the kind {}, which is not supported",
                quoted(&bundle.media_type)
            ));
        }
        match (bundle.message_signature, bundle.dsse_envelope) {
            (Some(message), None) => {
                Ok(vec![Self { over: SignedBytes::Document, signature: decoded(&message.signature)? }])
            }
            (None, Some(envelope)) => {
                if envelope.payload_type != STATEMENT {
                    return Err(format!("an envelope of the kind {}", quoted(&envelope.payload_type)));
                }
                let payload =
                    STANDARD.decode(&envelope.payload).map_err(|_| "an envelope that is not base64")?;
                let one = |signature: &EnvelopeSignature| {
                    Ok(Self {
                        over: SignedBytes::Statement(payload.clone()),
                        signature: decoded(&signature.sig)?,
                    })
                };
                // A statement is signed by one or two keys; each copy has the payload.
                envelope.signatures.iter().take(4).map(one).collect()
            }
            _ => Err("a bundle without exactly one content".into()),
        }
    }

    /// Checks that this is a signature of exactly the document `digest`, by one of `keys`. Returns the index of the
    /// key, or the reason of the failure. `document` must hash to `digest`.
    pub fn check(&self, digest: &Digest, document: &[u8], keys: &[PublicKey]) -> Result<usize, String> {
        let envelope;
        let message = match &self.over {
            SignedBytes::Payload(payload) => payload,
            SignedBytes::Statement(statement) => {
                envelope = pre_authentication(STATEMENT, statement);
                &envelope
            }
            SignedBytes::Document => document,
        };
        let made_with = |key: &PublicKey| key.verifies(message, &self.signature);
        let key = keys.iter().position(made_with).ok_or("a signature that was not made with the key")?;
        match &self.over {
            SignedBytes::Payload(payload) => {
                let payload: CosignPayload = json("a signed payload", payload)?;
                let (kind, about) = (payload.critical.kind, payload.critical.image.digest);
                if kind != PAYLOAD_TYPE {
                    return Err(format!("a signature of something else: {}", quoted(&kind)));
                }
                if about != digest.as_str() {
                    return Err(format!("a signature of another image: {}", quoted(&about)));
                }
            }
            SignedBytes::Statement(statement) => {
                let statement: InTotoStatement = json("a signed statement", statement)?;
                if statement.predicate_type != PREDICATE {
                    return Err(format!(
                        "a statement that is no signature: {}",
                        quoted(&statement.predicate_type)
                    ));
                }
                let is_about = |subject: &StatementSubject| {
                    subject.digest.get(digest.algorithm_name()).is_some_and(|hex| hex == digest.encoded())
                };
                if !statement.subject.iter().any(is_about) {
                    return Err("a signature of another image".into());
                }
            }
            SignedBytes::Document => {}
        }
        Ok(key)
    }

    /// Encodes signatures for the cache.
    pub fn pack(signatures: &[Self]) -> Vec<u8> {
        // Cannot fail: the format can encode every value of these types.
        postcard::to_stdvec(signatures).unwrap_or_default()
    }

    /// Decodes the output of [`pack`](Self::pack); other input gives an empty list.
    pub fn unpack(bytes: &[u8]) -> Vec<Self> {
        postcard::from_bytes(bytes).unwrap_or_default()
    }
}

/// Parses JSON after checking all of it as UTF-8 (RFC 8259 section 8.1), skipped values included.
fn json<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, String> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| format!("{what} that is malformed: it is not UTF-8"))?;
    serde_json::from_str(text).map_err(|error| format!("{what} that is malformed: {error}"))
}

/// The bytes that an envelope's signature covers (DSSE 1.0, "PAE").
fn pre_authentication(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

fn limited(bytes: &[u8]) -> Result<&[u8], String> {
    match bytes.len() as u64 {
        len if len > MAX_SIGNED => Err(format!("a signature of {len} bytes, the limit is {MAX_SIGNED}")),
        _ => Ok(bytes),
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, String> {
    if text.len() > MAX_SIGNATURE {
        return Err(format!("a signature of {} characters, the limit is {MAX_SIGNATURE}", text.len()));
    }
    STANDARD.decode(text.trim()).map_err(|_| "a signature that is not base64".into())
}

/// Quotes untrusted text for a message: truncated, and without terminal control characters.
fn quoted(text: &str) -> String {
    const MAX_SHOWN_SIGNATURE_CHARS: usize = 100;
    format!("{:?}", text.chars().take(MAX_SHOWN_SIGNATURE_CHARS).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::key_fixtures::Made;
    use super::*;

    const DOCUMENT: &[u8] = br#"{"schemaVersion":2,"layers":[]}"#;

    fn payload(digest: &str, kind: &str) -> Vec<u8> {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"example.org/a"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"{kind}"}},"optional":null}}"#
        )
        .into_bytes()
    }

    fn layer(signature: &[u8]) -> Descriptor {
        let mut layer = Descriptor::of(SIMPLE_SIGNING, b"");
        layer.annotations.insert(SIGNATURE.into(), STANDARD.encode(signature));
        layer
    }

    fn bundle(content: &str) -> Vec<u8> {
        format!(
            r#"{{"mediaType":"{BUNDLE}","verificationMaterial":{{"publicKey":{{"hint":"x"}}}},{content}}}"#
        )
        .into_bytes()
    }

    fn envelope(made: &Made, kind: &str, statement: &str) -> Vec<u8> {
        let signature = made.sign(&pre_authentication(kind, statement.as_bytes()));
        let (payload, signature) = (STANDARD.encode(statement), STANDARD.encode(signature));
        bundle(&format!(
            r#""dsseEnvelope":{{"payload":"{payload}","payloadType":"{kind}","signatures":[{{"sig":"{signature}"}}]}}"#
        ))
    }

    fn statement(hex: &str, predicate: &str) -> String {
        format!(
            r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"digest":{{"sha256":"{hex}"}}}}],"predicateType":"{predicate}","predicate":{{}}}}"#
        )
    }

    #[test]
    fn a_payload_counts_for_the_image_that_it_names_and_by_the_key_that_made_it() {
        let digest = Digest::sha256(DOCUMENT);
        for kind in ["p256", "p384", "rsa2048", "ed25519"] {
            let (Some(made), Some(other)) = (Made::key(kind), Made::key(kind)) else { return };
            let key = |made: &Made| PublicKey::parse("k", made.public().as_bytes()).unwrap();
            let (good, wrong) = (key(&made), key(&other));
            let payload = payload(digest.as_str(), PAYLOAD_TYPE);
            let signature = PublishedSignature::of_layer(&layer(&made.sign(&payload)), &payload).unwrap();
            assert_eq!(signature.check(&digest, DOCUMENT, &[wrong.clone(), good.clone()]), Ok(1), "{kind}");
            assert!(signature.check(&digest, DOCUMENT, &[wrong]).unwrap_err().contains("not made with"));
            assert!(signature.check(&digest, DOCUMENT, &[]).is_err());
            let elsewhere = signature.check(&Digest::sha256(b"other"), b"other", &[good]).unwrap_err();
            assert!(elsewhere.contains("another image"), "{elsewhere}");
            let kept =
                PublishedSignature::unpack(&PublishedSignature::pack(std::slice::from_ref(&signature)));
            assert_eq!(kept, [signature]);
        }
    }

    #[test]
    fn signed_payload_of_another_statement_is_refused() {
        let Some(made) = Made::key("p256") else { return };
        let keys = [PublicKey::parse("k", made.public().as_bytes()).unwrap()];
        let digest = Digest::sha256(DOCUMENT);
        let refused = |signed: &[u8], shown: &[u8], words: &str| {
            let signature = PublishedSignature::of_layer(&layer(&made.sign(signed)), shown).unwrap();
            let reason = signature.check(&digest, DOCUMENT, &keys).unwrap_err();
            assert!(reason.contains(words), "{reason}");
        };
        let good = payload(digest.as_str(), PAYLOAD_TYPE);
        refused(b"other bytes", &good, "not made with the key");
        let attestation = payload(digest.as_str(), "cosign attestation");
        refused(&attestation, &attestation, "something else");
        let other = payload("sha256:00", PAYLOAD_TYPE);
        refused(&other, &other, "another image");
        refused(b"{}", b"{}", "malformed");
        let twice = [&good[..good.len() - 1], br#","critical":{}}"#].concat();
        refused(&twice, &twice, "malformed");
        let foul = [&b"{\"unknown\":\"\xff\","[..], &good[1..]].concat();
        refused(&foul, &foul, "not UTF-8");
        let deep = b"[".repeat(100_000);
        refused(&deep, &deep, "malformed");
        // What a key never verified is not even parsed.
        refused(b"", &deep, "not made with the key");
    }

    #[test]
    fn signature_fields_of_a_layer_are_limited() {
        let none = Descriptor::of(SIMPLE_SIGNING, b"");
        assert!(PublishedSignature::of_layer(&none, b"{}").unwrap_err().contains("without a signature"));
        let mut odd = none.clone();
        odd.annotations.insert(SIGNATURE.into(), "not base64!".into());
        assert!(PublishedSignature::of_layer(&odd, b"{}").unwrap_err().contains("base64"));
        odd.annotations.insert(SIGNATURE.into(), "A".repeat(MAX_SIGNATURE));
        assert!(PublishedSignature::of_layer(&odd, b"{}").is_ok());
        odd.annotations.insert(SIGNATURE.into(), "A".repeat(MAX_SIGNATURE + 4));
        assert!(PublishedSignature::of_layer(&odd, b"{}").unwrap_err().contains("limit is 4096"));
        let most = vec![b' '; MAX_SIGNED as usize];
        assert!(PublishedSignature::of_layer(&layer(b"s"), &most).is_ok());
        let more = vec![b' '; MAX_SIGNED as usize + 1];
        assert!(PublishedSignature::of_layer(&layer(b"s"), &more).unwrap_err().contains("limit is 262144"));
        assert!(PublishedSignature::of_bundle(&more).unwrap_err().contains("limit is 262144"));
    }

    #[test]
    fn bundles_count_by_statement_or_by_the_document_itself() {
        let Some(made) = Made::key("p256") else { return };
        let keys = [PublicKey::parse("k", made.public().as_bytes()).unwrap()];
        let digest = Digest::sha256(DOCUMENT);
        let check = |bundle: &[u8]| match PublishedSignature::of_bundle(bundle)?.first() {
            Some(signature) => signature.check(&digest, DOCUMENT, &keys),
            None => Err("nothing".into()),
        };
        assert_eq!(check(&envelope(&made, STATEMENT, &statement(digest.encoded(), PREDICATE))), Ok(0));
        let by_bytes = |over: &[u8]| {
            let signature = STANDARD.encode(made.sign(over));
            bundle(&format!(r#""messageSignature":{{"signature":"{signature}"}}"#))
        };
        assert_eq!(check(&by_bytes(DOCUMENT)), Ok(0));

        let refused = |bundle: &[u8], words: &str| {
            let reason = check(bundle).unwrap_err();
            assert!(reason.contains(words), "{reason}");
        };
        refused(&by_bytes(b"another document"), "not made with the key");
        let provenance = statement(digest.encoded(), "https://slsa.dev/provenance/v1");
        refused(&envelope(&made, STATEMENT, &provenance), "no signature");
        let elsewhere = statement(&"0".repeat(64), PREDICATE);
        refused(&envelope(&made, STATEMENT, &elsewhere), "another image");
        let good = statement(digest.encoded(), PREDICATE);
        refused(&envelope(&made, "text/plain", &good), "envelope of the kind");
        refused(&bundle(r#""dsseEnvelope":null"#), "exactly one content");
        refused(b"{}", "malformed");
        let old = String::from_utf8(by_bytes(DOCUMENT)).unwrap().replace("v0.3", "v0.9");
        refused(old.as_bytes(), "not supported");
    }

    #[test]
    fn signatures_of_a_digest_that_fits_have_a_tag() {
        let hex = "0".repeat(64);
        let tag = |digest: &str| signature_tag(&digest.parse().unwrap());
        assert_eq!(tag(&format!("sha256:{hex}")), Some(format!("sha256-{hex}.sig")));
        assert_eq!(tag(&format!("sha512:{hex}{hex}")), None);
    }

    #[test]
    fn damaged_cached_signature_is_refused() {
        assert!(PublishedSignature::unpack(b"").is_empty());
        assert!(PublishedSignature::unpack(&[0xff; 40]).is_empty());
    }
}
