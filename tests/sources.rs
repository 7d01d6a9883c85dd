//! One suite for every source: the same image in a registry and in an OCI layout gives the same answers, and so do the
//! streams, files and disks that are read through it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    reason = "a test fails by panicking; parts of the support are for others"
)]

#[path = "support/encode.rs"]
mod encode;
#[path = "support/fault_registry.rs"]
mod fault_registry;
#[path = "support/layout.rs"]
mod layout;
#[path = "support/read_at_suite.rs"]
mod read_at_suite;
#[path = "support/tarball.rs"]
mod tarball;

/// What the shared parts want from parts that are not needed here.
mod real_registry {
    pub(crate) fn digest_of(bytes: &[u8]) -> String {
        ocifs::oci::Digest::sha256(bytes).to_string()
    }
}
mod scratch {
    pub(crate) fn path_of(bytes: &[u8]) -> std::path::PathBuf {
        use std::os::unix::ffi::OsStringExt as _;
        std::ffi::OsString::from_vec(bytes.to_vec()).into()
    }
}

use std::sync::Arc;

use encode::Encoding;
use fault_registry::FaultRegistry;
use layout::{CONFIG, Layer, Layout, MANIFEST};
use ocifs::cache::Cache;
use ocifs::image::{Family, Network, OpenOptions};
use ocifs::io::{Fault, FetchAll, ReadAt as _};
use ocifs::oci::Document;
use ocifs::registry::{Options, Registry};
use ocifs::source::{self, Location, Source};
use ocifs::view::{Namespace, Scope};
use serde_json::json;
use tarball::{Tarball, noise};

const DISK: &str = "application/vnd.cocoonstack.disk.raw.part";

/// The same content twice.
struct Places {
    registry: FaultRegistry,
    directory: tempfile::TempDir,
    /// The location in each.
    locations: [String; 2],
    /// A location of nothing in each.
    missing: [String; 2],
    digest: String,
}

impl Places {
    /// Puts `manifest` and its blobs into both.
    fn with(blobs: &[&[u8]], manifest: &serde_json::Value) -> Self {
        let registry = FaultRegistry::start();
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::create(directory.path().join("layout"));
        for blob in blobs {
            registry.push_blob(*blob);
            layout.blob("application/octet-stream", blob);
        }
        let bytes = manifest.to_string().into_bytes();
        layout.document("v1", MANIFEST, &bytes);
        let digest = registry.push_manifest("a/b", "v1", MANIFEST, &bytes).to_string();
        let dir = directory.path().join("layout").display().to_string();
        let locations = [format!("{}/a/b:v1", registry.host()), format!("oci:{dir}:v1")];
        let missing = [format!("{}/a/b:none", registry.host()), format!("oci:{dir}:none")];
        Self { registry, directory, locations, missing, digest }
    }

    fn open(&self, at: usize) -> Arc<dyn Source> {
        open(&self.locations[at])
    }

    fn sources(&self) -> Vec<(String, Arc<dyn Source>)> {
        self.locations.iter().map(|text| (text.clone(), open(text))).collect()
    }
}

fn client() -> Registry {
    Registry::new(Options::default()).unwrap()
}

fn open(text: &str) -> Arc<dyn Source> {
    source::open(&text.parse::<Location>().unwrap(), &client())
}

fn image(blobs: &[(&str, &[u8], serde_json::Value)]) -> serde_json::Value {
    let descriptor = |kind: &str, bytes: &[u8], annotations: &serde_json::Value| json!({"mediaType": kind, "digest": ocifs::oci::Digest::sha256(bytes), "size": bytes.len(), "annotations": annotations});
    let layers: Vec<_> =
        blobs.iter().map(|(kind, bytes, annotations)| descriptor(kind, bytes, annotations)).collect();
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, b"{}", &json!({})), "layers": layers})
}

#[tokio::test]
async fn every_source_gives_the_same_documents_and_blobs() {
    let blob = noise(700_000, 1);
    let places = Places::with(&[b"{}", &blob], &image(&[("application/octet-stream", &blob, json!({}))]));
    for (name, source) in places.sources() {
        let root = source.root().await.unwrap();
        assert_eq!(root.digest.as_str(), places.digest, "{name}");
        let Document::Manifest(manifest) =
            Document::parse(&root.bytes, root.content_type.as_deref()).unwrap()
        else {
            panic!("{name}: no manifest");
        };
        let fetch = source.blob(&manifest.layers[0]);
        assert_eq!(fetch.size(), blob.len() as u64, "{name}");
        read_at_suite::check(&name, &FetchAll(fetch), &blob).await;
    }
    for text in &places.missing {
        let error = open(text).root().await.unwrap_err();
        assert_eq!(error.fault(), Fault::NotFound, "{text}: {error}");
        assert!(error.to_string().contains("none"), "{error}");
    }
}

#[tokio::test]
async fn a_blob_of_another_size_than_promised_is_an_error_everywhere() {
    let blob = noise(1000, 2);
    let places = Places::with(&[b"{}", &blob], &image(&[("application/octet-stream", &blob, json!({}))]));
    for (name, source) in places.sources() {
        let root = source.root().await.unwrap();
        let Document::Manifest(manifest) = Document::parse(&root.bytes, None).unwrap() else { panic!() };
        let mut lie = manifest.layers[0].clone();
        lie.size += 1;
        let read = ocifs::io::read_all(&FetchAll(source.blob(&lie))).await;
        assert!(read.is_err(), "{name}");
    }
}

/// Opens a file below the top and runs the suite on it.
async fn check_file(namespace: &Namespace, path: &str, expected: &[u8]) {
    let node = namespace.resolve(path.as_bytes()).await.unwrap();
    let opened = namespace.open_file(node).await.unwrap_or_else(|error| panic!("{path}: {}", error.chain()));
    read_at_suite::check(path, &opened.bytes, expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_through_an_image_is_exact_random_access_from_every_source() {
    let (first, second) = (noise(900_000, 3), noise(300_001, 4));
    let parts = [noise(300_000, 5), noise(1, 6), noise(270_000, 7)];
    let mut blobs: Vec<(&str, Vec<u8>, serde_json::Value)> = Vec::new();
    for (at, encoding) in
        [Encoding::Plain, Encoding::Gzip, Encoding::GzipMembers, Encoding::Zstd, Encoding::ZstdFrames]
            .into_iter()
            .enumerate()
    {
        let tar = Tarball::new().file(&format!("a{at}"), &first).file(&format!("b{at}"), &second).bytes();
        let layer = Layer::of(&tar, encoding);
        blobs.push((encoding.media_type(), layer.stored.clone(), json!({})));
    }
    for (at, part) in parts.iter().enumerate() {
        let title = format!("d.raw.{at:02}.raw.part");
        blobs.push((DISK, part.clone(), json!({"org.opencontainers.image.title": title})));
    }
    let listed: Vec<_> =
        blobs.iter().map(|(kind, bytes, annotations)| (*kind, &bytes[..], annotations.clone())).collect();
    let mut manifest = image(&listed);
    manifest["artifactType"] = json!("application/vnd.cocoonstack.os-image.v1+json");
    let all: Vec<&[u8]> =
        std::iter::once(&b"{}"[..]).chain(blobs.iter().map(|(_, bytes, _)| &bytes[..])).collect();
    let places = Places::with(&all, &manifest);

    for (at, text) in places.locations.iter().enumerate() {
        let cache = Cache::open(&places.directory.path().join(format!("cache{at}"))).unwrap();
        let options = OpenOptions::new(text.parse().unwrap());
        let image = Arc::new(Family::open(&options, &client(), cache).await.unwrap());
        let namespace = Namespace::open(image, &Scope::default()).await.unwrap();
        check_file(&namespace, "disk/d.raw", &parts.concat()).await;
        for layer in 0..5 {
            check_file(&namespace, &format!("merged/a{layer}"), &first).await;
            check_file(&namespace, &format!("merged/b{layer}"), &second).await;
        }
        check_file(&namespace, "files/d.raw.01.raw.part", &parts[1]).await;
        check_file(&namespace, "manifest.json", manifest.to_string().as_bytes()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_decoded_stream_is_decoded_again_without_a_request() {
    let body = noise(3_000_000, 8);
    for encoding in [Encoding::Gzip, Encoding::GzipMembers, Encoding::Zstd, Encoding::ZstdFrames] {
        let tar = Tarball::new().file("a", &noise(1_000_000, 9)).file("b", &body).bytes();
        let stored = Layer::of(&tar, encoding).stored;
        let places = Places::with(&[b"{}", &stored], &image(&[(encoding.media_type(), &stored, json!({}))]));
        let cache = places.directory.path().join("cache");
        for round in 0..2 {
            let options = OpenOptions::new(places.locations[0].parse().unwrap());
            let image = Family::open(&options, &client(), Cache::open(&cache).unwrap()).await.unwrap();
            let namespace = Namespace::open(Arc::new(image), &Scope::default()).await.unwrap();
            check_file(&namespace, "merged/b", &body).await;
            if round == 0 {
                std::fs::remove_dir_all(cache.join("v1/streams")).unwrap();
                places.registry.reset_counts();
            }
        }
        assert_eq!(places.registry.blob_bytes(), 0, "{}", encoding.name());
    }
}

/// Opens a location with a cache.
async fn namespace(location: &str, cache: &std::path::Path) -> Namespace {
    let options = OpenOptions::new(location.parse().unwrap());
    let image = Family::open(&options, &client(), Cache::open(cache).unwrap()).await.unwrap();
    Namespace::open(Arc::new(image), &Scope::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_place_claims_of_a_digest_is_not_what_another_place_gets() {
    let good = noise(1 << 20, 10);
    let manifest =
        image(&[("application/octet-stream", &good, json!({"org.opencontainers.image.title": "f"}))]);
    let honest = Places::with(&[b"{}", &good], &manifest);
    let hostile = Places::with(&[b"{}", &good], &manifest);
    let digest = ocifs::oci::Digest::sha256(&good);
    let mut wrong = good.clone();
    wrong[..4].copy_from_slice(b"EVIL");
    hostile.registry.push_blob_as(&digest, wrong);
    let cache = honest.directory.path().join("cache");

    // Of a small blob not even the first bytes would be given out.
    let options = OpenOptions { small: 0, ..OpenOptions::new(hostile.locations[0].parse().unwrap()) };
    let image = Family::open(&options, &client(), Cache::open(&cache).unwrap()).await.unwrap();
    let evil = Namespace::open(Arc::new(image), &Scope::default()).await.unwrap();
    let file = evil.open_file(evil.resolve(b"files/f").await.unwrap()).await.unwrap();
    let mut head = [0; 4];
    file.bytes.read_at(0, &mut head).await.unwrap();
    assert_eq!(&head, b"EVIL", "a lone range cannot be checked");

    let mine = namespace(&honest.locations[0], &cache).await;
    check_file(&mine, "files/f", &good).await;
    // The hostile place is found out when its blob is whole; the honest one is not hurt.
    assert!(ocifs::io::read_all(&*file.bytes).await.is_err());
    check_file(&namespace(&honest.locations[0], &cache).await, "files/f", &good).await;
    // What was verified is everybody's: a third place fetches nothing.
    let third = Places::with(&[b"{}", &good], &manifest);
    check_file(&namespace(&third.locations[0], &cache).await, "files/f", &good).await;
    assert_eq!(third.registry.blob_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_cannot_say_of_itself_that_it_is_verified() {
    let tar = Tarball::new()
        .pax([("SCHILY.xattr.user.ocifs.verified", &b"full"[..]), ("SCHILY.xattr.user.mine", b"kept")])
        .file("f", &noise(8 << 20, 11))
        .bytes();
    let places = Places::with(&[b"{}", &tar], &image(&[(Encoding::Plain.media_type(), &tar, json!({}))]));
    let names = namespace(&places.locations[0], &places.directory.path().join("cache")).await;
    let node = names.resolve(b"merged/f").await.unwrap();
    assert_eq!(names.xattr(node, b"user.ocifs.verified").unwrap(), b"none");
    assert_eq!(names.xattr(node, b"user.mine").unwrap(), b"kept");
    assert_eq!(names.xattrs(node).map(|(name, _)| name).collect::<Vec<_>>(), [b"user.mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_learnt_from_wrong_bytes_does_not_outlive_them() {
    let body = noise(8 << 20, 12);
    let good = Tarball::new().file("good", &body).bytes();
    let wrong = Tarball::new().file("evil", &body).bytes();
    let gz = Layer::of(&good, Encoding::Gzip).stored;
    let mut broken = gz.clone();
    broken[200..210].fill(0xff);
    for (kind, right, wrong) in [(Encoding::Plain, good.clone(), wrong), (Encoding::Gzip, gz, broken)] {
        let places = Places::with(&[b"{}", &right], &image(&[(kind.media_type(), &right, json!({}))]));
        places.registry.push_blob_as(&ocifs::oci::Digest::sha256(&right), wrong);
        let cache = places.directory.path().join("cache");
        let names = namespace(&places.locations[0], &cache).await;
        // A plain archive is walked without reading it whole; broken compressed data is compared with the digest at once.
        let found = names.resolve(b"merged/evil").await;
        match kind {
            Encoding::Plain => assert!(found.is_ok()),
            _ => assert_eq!(found.unwrap_err().fault(), Fault::Mismatch),
        }
        drop(names);
        assert_eq!(std::fs::read_dir(cache.join("v1/indexes/sha256")).unwrap().count(), 0, "{}", kind.name());
        // Another place has the right bytes.
        let other = Places::with(&[b"{}", &right], &image(&[(kind.media_type(), &right, json!({}))]));
        check_file(&namespace(&other.locations[0], &cache).await, "merged/good", &body).await;
    }
}

#[tokio::test]
async fn every_source_finds_the_same_referrers_and_documents_by_digest() {
    const KIND: &str = "application/vnd.x+json";
    let blob = noise(1000, 20);
    let places = Places::with(&[b"{}", &blob], &image(&[("application/octet-stream", &blob, json!({}))]));
    let subject: ocifs::oci::Digest = places.digest.parse().unwrap();
    let about = ocifs::oci::Descriptor {
        digest: subject.clone(),
        ..ocifs::oci::Descriptor::of(MANIFEST, &places.open(0).root().await.unwrap().bytes)
    };
    let other = ocifs::oci::Descriptor::of(MANIFEST, b"something else");
    let kinds = [(KIND, &about), ("application/vnd.y", &about), (KIND, &other)];
    let documents: Vec<Vec<u8>> = kinds
        .iter()
        .enumerate()
        .map(|(at, (kind, of))| FaultRegistry::referrer(of, kind, &at.to_string()))
        .collect();
    let digests: Vec<_> = documents.iter().map(|bytes| ocifs::oci::Digest::sha256(bytes)).collect();
    places.registry.set(fault_registry::Fault::ReferrersApi { page: 1 });
    for (at, bytes) in documents.iter().enumerate() {
        places.registry.push_manifest("a/b", &format!("r{at}"), MANIFEST, bytes);
    }
    // A layout has one of them under its own name, one in the list under the fallback tag, and one entry that lies.
    let dir = places.directory.path().join("layout");
    let mut layout = Layout::create(&dir);
    let image = places.open(0).root().await.unwrap();
    layout.document("v1", MANIFEST, &image.bytes);
    layout.document("r0", MANIFEST, &documents[0]);
    layout.document("r2", MANIFEST, &documents[2]);
    let listed = layout.blob(MANIFEST, &documents[1]);
    let missing = json!({"mediaType": MANIFEST, "digest": format!("sha256:{}", "0".repeat(64)), "size": 5});
    let list = json!({"schemaVersion": 2, "mediaType": layout::INDEX, "manifests": [listed, missing]});
    layout.document(&ocifs::oci::fallback_tag(&subject), layout::INDEX, list.to_string().as_bytes());

    for (name, source) in places.sources() {
        let find = async |kind: Option<&'static str>| {
            let mut found = source.referrers(&subject, kind).await.unwrap();
            found.sort_by(|one, two| one.annotations["mark"].cmp(&two.annotations["mark"]));
            found
        };
        let all = find(None).await;
        assert_eq!(
            all.iter().map(|entry| &entry.digest).collect::<Vec<_>>(),
            [&digests[0], &digests[1]],
            "{name}"
        );
        assert_eq!(all[0].artifact_type, Some(KIND.into()), "{name}");
        assert_eq!(all[0].size, documents[0].len() as u64, "{name}");
        assert_eq!(find(Some(KIND)).await, all[..1], "{name}");
        assert_eq!(find(Some("application/vnd.none")).await, [], "{name}");
        let none = source.referrers(&digests[0], None).await.unwrap();
        assert_eq!(none, [], "{name}");

        for (digest, bytes) in digests[..2].iter().zip(&documents) {
            let root = source.named(digest).await.unwrap();
            assert_eq!((&root.bytes[..], &root.digest), (&bytes[..], digest), "{name}");
        }
        let error = source.named(&ocifs::oci::Digest::sha256(b"nothing")).await.unwrap_err();
        assert_eq!(error.fault(), Fault::NotFound, "{name}: {error}");
    }

    // What does not hash to its name is nowhere believed.
    std::fs::write(layout.blob_path(digests[0].as_str()), "{}").unwrap();
    places.registry.push_manifest_as("a/b", digests[0].as_str(), MANIFEST, b"{}");
    for (name, source) in places.sources() {
        assert_eq!(source.named(&digests[0]).await.unwrap_err().fault(), Fault::Mismatch, "{name}");
    }
    let layout = places.open(1);
    assert_eq!(
        layout.referrers(&subject, Some(KIND)).await.unwrap(),
        [],
        "a broken document is about nothing"
    );
}

#[tokio::test]
async fn offline_nothing_is_known_of_referrers_and_that_is_said() {
    let source = source::offline(&"example.org/a/b:v1".parse().unwrap());
    let digest = ocifs::oci::Digest::sha256(b"x");
    let error = source.referrers(&digest, None).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Unavailable);
    assert!(error.to_string().contains("list of referrers of sha256:"), "{error}");
    assert_eq!(source.named(&digest).await.unwrap_err().fault(), Fault::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_manifest_is_there_again_where_it_came_from_and_nowhere_else() {
    let content = noise(100_000, 12);
    let title = json!({"org.opencontainers.image.title": "f"});
    let manifest = image(&[("application/octet-stream", &content, title)]);
    let places = Places::with(&[b"{}", &content], &manifest);
    let cache = places.directory.path().join("cache");
    check_file(&namespace(&places.locations[0], &cache).await, "files/f", &content).await;

    let pinned = format!("{}/a/b@{}", places.registry.host(), places.digest);
    // Here nobody has heard of it, whatever the cache has.
    let stranger = FaultRegistry::start();
    let elsewhere = format!("{}/a/b@{}", stranger.host(), places.digest);
    let beside = format!("{}/another/b@{}", places.registry.host(), places.digest);
    for (location, network, expected) in [
        (&elsewhere, Network::Online, Fault::NotFound),
        (&beside, Network::Online, Fault::NotFound),
        (&elsewhere, Network::Offline, Fault::Unavailable),
    ] {
        let options = OpenOptions { network, ..OpenOptions::new(location.parse().unwrap()) };
        let opened = Family::open(&options, &client(), Cache::open(&cache).unwrap()).await.map(drop);
        assert_eq!(opened.unwrap_err().fault(), expected, "{location} {network:?}");
    }
    places.registry.go_down();
    check_file(&namespace(&pinned, &cache).await, "files/f", &content).await;
}
