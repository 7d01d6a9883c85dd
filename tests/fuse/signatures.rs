//! Required signatures: signed content is shown, and no byte of other content is read.
//!
//! Keys and signatures are openssl's, in the documents that cosign writes. The idea: the fault registry counts, so that a refusal
//! is proven by the blobs that nobody asked for.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::byte_text::digest_of;
use crate::encode::Encoding;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::key_fixtures::Made;
use crate::layout::{CONFIG, INDEX, Layout, MANIFEST};
use crate::process::{Need, able};
use crate::site::Site;
use crate::tarball::Tarball;

const NEEDS: [Need<'_>; 3] = [Need::Root, Need::Fuse, Need::Tool("openssl")];
pub(crate) const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const UNTRUSTED: &[i32] = &[7];
const NETWORK: &[i32] = &[5];
const USAGE: &[i32] = &[2];

/// A registry with one image, whose repository is called `a`.
struct Place {
    site: Site,
    registry: FaultRegistry,
    manifest: String,
    layer: String,
    bytes: Vec<u8>,
}

impl Place {
    fn new() -> Self {
        let registry = FaultRegistry::start();
        let (manifest, layer, bytes) = push_image(&registry, "v1", b"signed");
        Self { site: Site::new(), registry, manifest, layer, bytes }
    }

    fn reference(&self) -> String {
        format!("{}/a:v1", self.registry.host())
    }

    /// The public key as a file.
    fn key(&self, made: &Made, name: &str) -> PathBuf {
        self.site.scratch().file(name, made.public())
    }

    /// The layer of a signature manifest: a payload about `digest`, signed.
    fn payload(&self, made: &Made, digest: &str) -> Value {
        self.payload_of(made, &simple(digest), &simple(digest))
    }

    /// `shown` with a signature over `signed`.
    fn payload_of(&self, made: &Made, signed: &[u8], shown: &[u8]) -> Value {
        self.registry.push_blob(shown);
        json!({"mediaType": PAYLOAD, "digest": digest_of(shown), "size": shown.len(),
               "annotations": {"dev.cosignproject.cosign/signature": STANDARD.encode(made.sign(signed))}})
    }

    /// A manifest of signatures, by the tag of `digest`.
    fn tag(&self, digest: &str, layers: &[Value]) {
        let tag = format!("{}.sig", digest.replace(':', "-"));
        let manifest = self.signatures(layers, None);
        self.registry.push_manifest("a", &tag, MANIFEST, &manifest);
    }

    fn signatures(&self, layers: &[Value], about: Option<(&str, &str)>) -> Vec<u8> {
        let config = self.config();
        let mut manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        if let Some((kind, subject)) = about {
            manifest["artifactType"] = json!(kind);
            manifest["subject"] = json!({"mediaType": MANIFEST, "digest": subject, "size": 1});
        }
        manifest.to_string().into_bytes()
    }

    fn config(&self) -> Value {
        self.registry.push_blob(*b"{}");
        json!({"mediaType": CONFIG, "digest": digest_of(b"{}"), "size": 2})
    }

    /// Mounts with this key, reads, and unmounts.
    #[track_caller]
    fn mounts(&self, reference: &str, key: &Path, more: &[&str]) {
        let key = key.to_str().unwrap();
        let mount = self.site.mount(reference, &[&["--require-signature", key], more].concat());
        assert_eq!(std::fs::read(mount.join("merged/f")).unwrap(), b"signed");
        assert!(mount.status().contains("\"signedBy\""), "{}", mount.status());
        mount.unmount();
    }

    /// Is refused, without having asked for a blob of the image.
    #[track_caller]
    fn refuses(&self, reference: &str, key: &Path, codes: &[i32], words: &[&str]) {
        self.registry.reset_counts();
        self.site.mount_refused(reference, &["--require-signature", key.to_str().unwrap()], codes, words);
        let asked = self.registry.blob_requests();
        assert!(asked.iter().all(|request| !request.path.contains(&self.layer)), "{asked:?}");
    }
}

pub(crate) fn simple(digest: &str) -> Vec<u8> {
    json!({"critical": {"identity": {"docker-reference": "registry.example/a"}, "image": {"docker-manifest-digest": digest},
           "type": "cosign container image signature"}, "optional": null})
    .to_string()
    .into_bytes()
}

/// Pushes an image with one layer, with the file `f` in it, to the repository `a`: the digests of manifest and layer, and the
/// manifest.
pub(crate) fn push_image(registry: &FaultRegistry, tag: &str, content: &[u8]) -> (String, String, Vec<u8>) {
    let layer = crate::layout::Layer::of(&Tarball::new().file("f", content).bytes(), Encoding::Gzip);
    registry.push_blob(layer.stored.clone());
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}});
    let config = config.to_string().into_bytes();
    registry.push_blob(config.clone());
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": digest_of(&config), "size": config.len()},
        "layers": [{"mediaType": layer.media_type, "digest": layer.digest(), "size": layer.stored.len()}]});
    let bytes = manifest.to_string().into_bytes();
    let digest = registry.push_manifest("a", tag, MANIFEST, &bytes);
    (digest.to_string(), layer.digest(), bytes)
}

fn key(kind: &'static str) -> Made {
    Made::key(kind).expect("openssl was asked for")
}

#[test]
fn an_image_signed_by_tag_is_mounted_with_any_kind_of_key() {
    if !able(&NEEDS) {
        return;
    }
    for kind in ["p256", "p384", "rsa2048", "ed25519"] {
        let place = Place::new();
        let made = key(kind);
        let file = place.key(&made, "cosign.pub");
        place.refuses(
            &place.reference(),
            &file,
            UNTRUSTED,
            &[&place.manifest, "no signature found", "hint:"],
        );
        place.tag(
            &place.manifest,
            &[place.payload(&key(kind), &place.manifest), place.payload(&made, &place.manifest)],
        );
        place.mounts(&place.reference(), &file, &[]);
    }
}

#[test]
fn a_signature_that_proves_nothing_about_the_image_is_refused() {
    if !able(&NEEDS) {
        return;
    }
    let place = Place::new();
    let (made, other) = (key("p256"), key("p256"));
    let file = place.key(&made, "cosign.pub");
    let refused = |layers: &[Value], word: &str| {
        place.tag(&place.manifest, layers);
        place.refuses(&place.reference(), &file, UNTRUSTED, &[&place.manifest, word]);
    };
    let (replayed, ..) = push_image(&place.registry, "v2", b"another image");
    refused(&[place.payload(&other, &place.manifest)], "not made with the key");
    refused(&[place.payload(&made, &replayed)], "another image");
    refused(&[place.payload_of(&made, b"something", &simple(&place.manifest))], "not made with the key");
    refused(&[], "no signature found");
    let mut unsigned = place.payload(&made, &place.manifest);
    unsigned["annotations"] = json!({});
    refused(&[unsigned], "without a signature");
    let mut swapped = place.payload(&made, &place.manifest);
    swapped["digest"] = json!(digest_of(b"nobody has this"));
    refused(&[swapped], &digest_of(b"nobody has this"));
}

#[test]
fn a_referrer_signs_as_layers_or_as_a_bundle() {
    if !able(&NEEDS) {
        return;
    }
    for form in ["layers", "statement", "document"] {
        let place = Place::new();
        place.registry.set(Fault::ReferrersApi { page: 2 });
        let made = key("p256");
        let file = place.key(&made, "cosign.pub");
        let (kind, layers) = match form {
            "layers" => (ARTIFACT, vec![place.payload(&made, &place.manifest)]),
            _ => (BUNDLE, vec![bundle(&place, &made, form)]),
        };
        let manifest = place.signatures(&layers, Some((kind, &place.manifest)));
        place.registry.push_manifest("a", "referrer", MANIFEST, &manifest);
        place.mounts(&place.reference(), &file, &[]);
        place.refuses(
            &place.reference(),
            &place.key(&key("p256"), "other.pub"),
            UNTRUSTED,
            &["not made with the key"],
        );
    }
}

fn bundle(place: &Place, made: &Made, form: &str) -> Value {
    let content = match form {
        "statement" => {
            let statement = json!({"_type": "https://in-toto.io/Statement/v1", "predicate": {},
                "predicateType": "https://sigstore.dev/cosign/sign/v1",
                "subject": [{"digest": {"sha256": place.manifest.trim_start_matches("sha256:")}}]});
            let (kind, statement) = ("application/vnd.in-toto+json", statement.to_string());
            let signed = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
            json!({"dsseEnvelope": {"payloadType": kind, "payload": STANDARD.encode(&statement),
                   "signatures": [{"sig": STANDARD.encode(made.sign(signed.as_bytes()))}]}})
        }
        _ => json!({"messageSignature": {"signature": STANDARD.encode(made.sign(&place.bytes))}}),
    };
    let mut bundle = json!({"mediaType": BUNDLE, "verificationMaterial": {"publicKey": {"hint": "x"}}});
    bundle.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
    let bytes = bundle.to_string().into_bytes();
    place.registry.push_blob(bytes.clone());
    json!({"mediaType": BUNDLE, "digest": digest_of(&bytes), "size": bytes.len()})
}

#[test]
fn an_index_vouches_for_its_manifests_and_a_manifest_for_itself() {
    if !able(&NEEDS) {
        return;
    }
    for signed in ["index", "manifest", "nothing"] {
        let place = Place::new();
        let made = key("ed25519");
        let file = place.key(&made, "cosign.pub");
        let platforms = ["amd64", "arm64"].map(|arch| {
            json!({"mediaType": MANIFEST, "digest": place.manifest, "size": place.bytes.len(),
                   "platform": {"os": "linux", "architecture": arch}})
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": platforms}).to_string();
        let index = place.registry.push_manifest("a", "multi", INDEX, index.as_bytes()).to_string();
        let reference = format!("{}/a:multi", place.registry.host());
        let all = ["--require-signature", file.to_str().unwrap(), "--platform", "all"];
        match signed {
            "index" => {
                place.tag(&index, &[place.payload(&made, &index)]);
                place.mounts(&reference, &file, &["--platform", "linux/arm64"]);
                place.site.mount(&reference, &all).unmount();
            }
            "manifest" => {
                place.tag(&place.manifest, &[place.payload(&made, &place.manifest)]);
                place.mounts(&reference, &file, &["--platform", "linux/amd64"]);
                // The entries of an index that nobody signed are anybody's choice.
                place.site.mount_refused(&reference, &all, UNTRUSTED, &[&index]);
            }
            _ => place.refuses(&reference, &file, UNTRUSTED, &[&index, &place.manifest]),
        }
    }
}

#[test]
fn a_registry_that_cannot_be_asked_is_no_consent() {
    if !able(&NEEDS) {
        return;
    }
    let place = Place::new();
    let made = key("p256");
    let file = place.key(&made, "cosign.pub");
    place.tag(&place.manifest, &[place.payload(&made, &place.manifest)]);
    // The manifest is in the cache, so that only the signature has to be asked for.
    place.site.mount(&place.reference(), &[]).unmount();
    let pinned = format!("{}/a@{}", place.registry.host(), place.manifest);
    let required = ["--require-signature", file.to_str().unwrap()];
    let offline = [&required[..], &["--offline"]].concat();
    place.site.mount_refused(&pinned, &offline, NETWORK, &[&place.manifest, "offline"]);
    place.registry.go_down();
    place.refuses(&pinned, &file, NETWORK, &[&place.manifest, "cannot be searched"]);
    place.registry.come_up();
    place.mounts(&pinned, &file, &[]);
    // What was found good is kept, and verified again.
    place.registry.go_down();
    place.mounts(&pinned, &file, &["--offline"]);
    place.mounts(&pinned, &file, &[]);
    let other = place.key(&key("p256"), "other.pub");
    place.site.mount_refused(
        &pinned,
        &["--require-signature", other.to_str().unwrap(), "--offline"],
        NETWORK,
        &[],
    );
    let kept = std::fs::read_dir(place.site.cache().join("v1/signatures/sha256")).unwrap();
    let kept: Vec<_> = kept.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    crate::real_registry::flip_a_byte(&kept[0]);
    place.site.mount_refused(&pinned, &offline, NETWORK, &[]);
}

#[test]
fn keys_that_cannot_be_read_are_errors_and_one_of_several_is_enough() {
    if !able(&NEEDS) {
        return;
    }
    let place = Place::new();
    let (made, other) = (key("p256"), key("rsa2048"));
    let (file, second) = (place.key(&made, "cosign.pub"), place.key(&other, "second.pub"));
    place.tag(&place.manifest, &[place.payload(&made, &place.manifest)]);
    place.mounts(&place.reference(), &second, &["--require-signature", file.to_str().unwrap()]);
    place.refuses(&place.reference(), Path::new("/no/such/key"), &[1], &["/no/such/key"]);
    place.refuses(
        &place.reference(),
        &place.site.scratch().file("cosign.key", made.private()),
        USAGE,
        &["private key"],
    );
    place.refuses(&place.reference(), &place.site.scratch().file("empty", ""), USAGE, &["not PEM"]);
    let required = ["--require-signature", file.to_str().unwrap(), "--referrers"];
    place.site.mount_refused(&place.reference(), &required, USAGE, &["referrers"]);
    // The same holds for every command that reads.
    for command in [["cat", "merged/f"], ["ls", "merged"]] {
        let (name, path) = (command[0], command[1]);
        let options = ["--require-signature", second.to_str().unwrap()];
        let finished = place.site.ocifs(&[&[name], &options[..], &[&place.reference(), path]].concat());
        finished.refused(UNTRUSTED, &["not made with the key"]);
    }
    let blob = format!("{}/a@{}", place.registry.host(), place.layer);
    place.refuses(&blob, &file, UNTRUSTED, &["only manifests and indexes"]);
}

#[test]
fn floods_of_signatures_end_and_the_newest_are_looked_at() {
    if !able(&NEEDS) {
        return;
    }
    let place = Place::new();
    let (made, other) = (key("p256"), key("p256"));
    let file = place.key(&made, "cosign.pub");
    let (good, wrong) = (place.payload(&made, &place.manifest), place.payload(&other, &place.manifest));
    let flood = vec![wrong.clone(); 3000];
    place.tag(&place.manifest, &[std::slice::from_ref(&good), &flood[..]].concat());
    place.refuses(&place.reference(), &file, UNTRUSTED, &["more than 64 signatures"]);
    place.tag(&place.manifest, &[&flood[..], &[good]].concat());
    place.mounts(&place.reference(), &file, &[]);

    // Too many to be a list at all, and each of them a document that would have to be read.
    let place = Place::new();
    let file = place.key(&made, "cosign.pub");
    let entry = json!({"mediaType": MANIFEST, "artifactType": ARTIFACT, "size": 2});
    let entries: Vec<Value> = (0..10_000)
        .map(|number| {
            let mut entry = entry.clone();
            entry["digest"] = json!(digest_of(format!("{number}").as_bytes()));
            entry
        })
        .collect();
    let list = |count: usize| {
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries[..count]}).to_string()
    };
    let tag = place.manifest.replace(':', "-");
    place.registry.push_manifest("a", &tag, INDEX, list(4000).as_bytes());
    place.refuses(&place.reference(), &file, UNTRUSTED, &["more than 64 signatures"]);
    assert!(place.registry.requests().len() < 100, "{} requests", place.registry.requests().len());
    place.registry.push_manifest("a", &tag, INDEX, list(10_000).as_bytes());
    place.refuses(&place.reference(), &file, &[5, 6, 7], &[&place.manifest]);

    // One that is too large to be a payload is not fetched.
    let huge = vec![b' '; 300 << 10];
    let digest = place.registry.push_blob(huge.clone());
    place.tag(
        &place.manifest,
        &[json!({"mediaType": PAYLOAD, "digest": digest.to_string(), "size": huge.len()})],
    );
    place.refuses(&place.reference(), &file, &[5, 6, 7], &[&place.manifest]);
    assert!(place.registry.blob_requests().iter().all(|request| !request.path.contains(digest.as_str())));
}

#[test]
fn a_layout_has_its_signatures_beside_the_image() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let made = key("p256");
    let file = site.scratch().file("cosign.pub", made.public());
    let required = ["--require-signature", file.to_str().unwrap()];
    let mut layout = Layout::create(site.scratch().join("layout"));
    let layer = crate::layout::Layer::of(&Tarball::new().file("f", b"x").bytes(), Encoding::Plain);
    let digest = layout.image("v1", &[layer]);
    site.mount_refused(&layout.reference("v1"), &required, UNTRUSTED, &["no signature found"]);
    let mut payload = layout.blob(PAYLOAD, &simple(&digest));
    payload["annotations"] =
        json!({"dev.cosignproject.cosign/signature": STANDARD.encode(made.sign(&simple(&digest)))});
    let config = layout.blob(CONFIG, b"{}");
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [payload]});
    layout.document(&format!("{}.sig", digest.replace(':', "-")), MANIFEST, manifest.to_string().as_bytes());
    site.mount(&layout.reference("v1"), &required).unmount();
}
