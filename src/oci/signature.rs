//! Signatures of images in the forms that cosign writes, checked with a plain public key.
//!
//! Nothing is fetched here, no certificate and no transparency log is asked: who has the key decides. The idea: a signature is
//! three things, what was signed, by which bytes, and what those say of the image; the bytes are parsed only after a key has
//! verified them, so that nobody without the key chooses what the parser sees. Forms: the simple signing payload of the
//! container signature format (`critical.image.docker-manifest-digest`), and the Sigstore bundle 0.3, whose content is a DSSE
//! envelope around an in-toto statement or a signature over the document itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{Descriptor, Digest, PublicKey};

/// The kind of artifact that holds signatures as referrers, each layer one.
pub const SIGNATURE_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// The kind of artifact that holds a bundle, and the media type of the bundle.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The media type of a simple signing payload.
pub const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// On the layer of a payload: its signature, in base64.
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// The largest payload or bundle that is read, in bytes. Payloads have some hundred bytes, bundles some kilobytes.
pub const MAX_SIGNED: u64 = 256 * 1024;
/// The most signatures of one image that are looked at.
pub const MAX_SIGNATURES: usize = 64;
/// The most bytes of a signature: that of an RSA key of 8192 bits has 1024.
const MAX_SIGNATURE: usize = 4096;
/// The most characters of a tag (distribution-spec, "Pulling manifests").
const MAX_TAG: usize = 128;

/// What a payload says that it is; without it a payload made for something else could count.
const PAYLOAD_TYPE: &str = "cosign container image signature";
/// What the statement of an image's signature says that it is. Attestations are statements too, and no signatures.
const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
/// The type of an envelope around a statement.
const STATEMENT: &str = "application/vnd.in-toto+json";

/// The tag under which the signatures of a document lie; none for a digest that is longer than a tag.
pub fn signature_tag(digest: &Digest) -> Option<String> {
    let tag = format!("{}-{}.sig", digest.algorithm_name(), digest.encoded());
    (tag.len() <= MAX_TAG).then_some(tag)
}

/// A signature as somebody published it. Nothing about it is believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    over: Over,
    signature: Vec<u8>,
}

/// The bytes that were signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Over {
    /// A simple signing payload.
    Payload(Vec<u8>),
    /// A statement in an envelope.
    Statement(Vec<u8>),
    /// The manifest or index itself.
    Document,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    predicate_type: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    message_signature: Option<MessageSignature>,
    dsse_envelope: Option<Envelope>,
}

#[derive(Deserialize)]
struct MessageSignature {
    signature: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

impl Signature {
    /// The signature of a layer whose content is `payload`; an error says why it is none.
    pub fn of_layer(layer: &Descriptor, payload: &[u8]) -> Result<Self, String> {
        let text = layer.annotations.get(SIGNATURE).ok_or("a payload without a signature")?;
        Ok(Self { over: Over::Payload(limited(payload)?.to_vec()), signature: decoded(text)? })
    }

    /// The signatures of a bundle; an error says why there are none.
    pub fn of_bundle(bytes: &[u8]) -> Result<Vec<Self>, String> {
        let bundle: Bundle = json("a bundle", limited(bytes)?)?;
        if bundle.media_type != BUNDLE {
            return Err(format!(
                "a bundle of the kind {}, which is not supported",
                quoted(&bundle.media_type)
            ));
        }
        match (bundle.message_signature, bundle.dsse_envelope) {
            (Some(message), None) => {
                Ok(vec![Self { over: Over::Document, signature: decoded(&message.signature)? }])
            }
            (None, Some(envelope)) => {
                if envelope.payload_type != STATEMENT {
                    return Err(format!("an envelope of the kind {}", quoted(&envelope.payload_type)));
                }
                let payload =
                    STANDARD.decode(&envelope.payload).map_err(|_| "an envelope that is not base64")?;
                let one = |signature: &EnvelopeSignature| {
                    Ok(Self { over: Over::Statement(payload.clone()), signature: decoded(&signature.sig)? })
                };
                // A statement is signed by one or two keys; each copy has the payload.
                envelope.signatures.iter().take(4).map(one).collect()
            }
            _ => Err("a bundle without exactly one content".into()),
        }
    }

    /// Whether this is a signature of the document `digest` with exactly these bytes, by one of `keys`: the number of the key,
    /// or why not. `document` must hash to `digest`.
    pub fn check(&self, digest: &Digest, document: &[u8], keys: &[PublicKey]) -> Result<usize, String> {
        let envelope;
        let message = match &self.over {
            Over::Payload(payload) => payload,
            Over::Statement(statement) => {
                envelope = pre_authentication(STATEMENT, statement);
                &envelope
            }
            Over::Document => document,
        };
        let made_with = |key: &PublicKey| key.verifies(message, &self.signature);
        let key = keys.iter().position(made_with).ok_or("a signature that was not made with the key")?;
        match &self.over {
            Over::Payload(payload) => {
                let payload: Payload = json("a signed payload", payload)?;
                let (kind, about) = (payload.critical.kind, payload.critical.image.digest);
                if kind != PAYLOAD_TYPE {
                    return Err(format!("a signature of something else: {}", quoted(&kind)));
                }
                if about != digest.as_str() {
                    return Err(format!("a signature of another image: {}", quoted(&about)));
                }
            }
            Over::Statement(statement) => {
                let statement: Statement = json("a signed statement", statement)?;
                if statement.predicate_type != PREDICATE {
                    return Err(format!(
                        "a statement that is no signature: {}",
                        quoted(&statement.predicate_type)
                    ));
                }
                let is_about = |subject: &Subject| {
                    subject.digest.get(digest.algorithm_name()).is_some_and(|hex| hex == digest.encoded())
                };
                if !statement.subject.iter().any(is_about) {
                    return Err("a signature of another image".into());
                }
            }
            Over::Document => {}
        }
        Ok(key)
    }

    /// Signatures as they are kept.
    pub fn pack(signatures: &[Self]) -> Vec<u8> {
        // No value of these types is one that the format cannot hold.
        postcard::to_stdvec(signatures).unwrap_or_default()
    }

    /// What [`pack`](Self::pack) made; nothing of anything else.
    pub fn unpack(bytes: &[u8]) -> Vec<Self> {
        postcard::from_bytes(bytes).unwrap_or_default()
    }
}

/// Parses JSON, which is UTF-8 also where nobody looks (RFC 8259 section 8.1).
fn json<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, String> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| format!("{what} that is malformed: it is not UTF-8"))?;
    serde_json::from_str(text).map_err(|error| format!("{what} that is malformed: {error}"))
}

/// What is signed of an envelope (DSSE 1.0, "PAE").
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

/// Foreign text for a message: its beginning, with nothing that a terminal would obey.
fn quoted(text: &str) -> String {
    const SHOWN: usize = 100;
    format!("{:?}", text.chars().take(SHOWN).collect::<String>())
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
            let signature = Signature::of_layer(&layer(&made.sign(&payload)), &payload).unwrap();
            assert_eq!(signature.check(&digest, DOCUMENT, &[wrong.clone(), good.clone()]), Ok(1), "{kind}");
            assert!(signature.check(&digest, DOCUMENT, &[wrong]).unwrap_err().contains("not made with"));
            assert!(signature.check(&digest, DOCUMENT, &[]).is_err());
            let elsewhere = signature.check(&Digest::sha256(b"other"), b"other", &[good]).unwrap_err();
            assert!(elsewhere.contains("another image"), "{elsewhere}");
            let kept = Signature::unpack(&Signature::pack(std::slice::from_ref(&signature)));
            assert_eq!(kept, [signature]);
        }
    }

    #[test]
    fn signed_bytes_that_say_something_else_do_not_count() {
        let Some(made) = Made::key("p256") else { return };
        let keys = [PublicKey::parse("k", made.public().as_bytes()).unwrap()];
        let digest = Digest::sha256(DOCUMENT);
        let refused = |signed: &[u8], shown: &[u8], words: &str| {
            let signature = Signature::of_layer(&layer(&made.sign(signed)), shown).unwrap();
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
    fn what_a_layer_says_is_limited() {
        let none = Descriptor::of(SIMPLE_SIGNING, b"");
        assert!(Signature::of_layer(&none, b"{}").unwrap_err().contains("without a signature"));
        let mut odd = none.clone();
        odd.annotations.insert(SIGNATURE.into(), "not base64!".into());
        assert!(Signature::of_layer(&odd, b"{}").unwrap_err().contains("base64"));
        odd.annotations.insert(SIGNATURE.into(), "A".repeat(MAX_SIGNATURE));
        assert!(Signature::of_layer(&odd, b"{}").is_ok());
        odd.annotations.insert(SIGNATURE.into(), "A".repeat(MAX_SIGNATURE + 4));
        assert!(Signature::of_layer(&odd, b"{}").unwrap_err().contains("limit is 4096"));
        let most = vec![b' '; MAX_SIGNED as usize];
        assert!(Signature::of_layer(&layer(b"s"), &most).is_ok());
        let more = vec![b' '; MAX_SIGNED as usize + 1];
        assert!(Signature::of_layer(&layer(b"s"), &more).unwrap_err().contains("limit is 262144"));
        assert!(Signature::of_bundle(&more).unwrap_err().contains("limit is 262144"));
    }

    #[test]
    fn bundles_count_by_statement_or_by_the_document_itself() {
        let Some(made) = Made::key("p256") else { return };
        let keys = [PublicKey::parse("k", made.public().as_bytes()).unwrap()];
        let digest = Digest::sha256(DOCUMENT);
        let check = |bundle: &[u8]| match Signature::of_bundle(bundle)?.first() {
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
    fn what_was_kept_and_is_damaged_is_no_signature() {
        assert!(Signature::unpack(b"").is_empty());
        assert!(Signature::unpack(&[0xff; 40]).is_empty());
    }
}
