//! One suite for every source: the same image in a registry, in an OCI layout and in archives of one gives the same answers, and
//! so do the streams, files and disks that are read through it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use ocifs::archive_source;
use ocifs::cache::BlockCache;
use ocifs::image::{ImageSet, NetworkAccess, OpenOptions};
use ocifs::io::{FaultClass, FetchAll, ReadAt as _};
use ocifs::oci::ManifestDocument;
use ocifs::registry::{RegistryClient, RegistryOptions};
use ocifs::source::{self, ImageLocation, ImageSource};
use ocifs::view::{MountNamespace, ViewScope};
use serde_json::json;

use crate::encode::Encoding;
use crate::fault_registry::{self, FaultRegistry};
use crate::layout::{self, CONFIG, Layer, Layout, MANIFEST};
use crate::read_at_suite;
use crate::tarball::{Tarball, noise};
use crate::web::{Ranges, Web};

const DISK: &str = "application/vnd.cocoonstack.disk.raw.part";

/// The same content twice.
struct Places {
    registry: FaultRegistry,
    directory: tempfile::TempDir,
    /// The archive, by range and only as a whole.
    web: [Web; 2],
    /// The location in each: the registry, the layout, and archives of it.
    locations: Vec<String>,
    /// A location of nothing in each.
    missing: Vec<String>,
    digest: String,
}

/// The compressed archives, by how their names end.
const PACKED: [&str; 4] = ["gz", "zst", "xz", "bz2"];

/// The bytes of the archive of a directory, its files in the order of their names.
fn archive_of(directory: &std::path::Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.mode(tar::HeaderMode::Deterministic);
    builder.append_dir_all(".", directory).unwrap();
    builder.into_inner().unwrap()
}

fn compressed(bytes: &[u8], how: &str) -> Vec<u8> {
    use std::io::Write as _;
    match how {
        "gz" => Encoding::GzipMembers.encode(bytes),
        "zst" => Encoding::Zstd.encode(bytes),
        "xz" => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        "bz2" => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        other => panic!("{other}"),
    }
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
        let web = [Web::serve(Ranges::Given), Web::serve(Ranges::Ignored)];
        let urls = web.each_ref().map(|web| web.url("a.tar"));
        let host = registry.host();
        let locations = vec![
            format!("{host}/a/b:v1"),
            format!("oci:{dir}:v1"),
            dir.clone(),
            format!("oci-archive:{dir}.tar:v1"),
            format!("{dir}.tar"),
            format!("{}#v1", urls[0]),
            urls[1].clone(),
        ];
        let missing = [
            format!("{host}/a/b:"),
            format!("oci:{dir}:"),
            format!("oci-archive:{dir}.tar:"),
            format!("{}#", urls[0]),
        ];
        let missing = missing.map(|place| place + "none").to_vec();
        let places = Self { registry, directory, web, locations, missing, digest };
        places.pack();
        places
    }

    /// Makes archives of the layout as it is now.
    fn pack(&self) {
        let archive = archive_of(&self.directory.path().join("layout"));
        std::fs::write(self.directory.path().join("layout.tar"), &archive).unwrap();
        for web in &self.web {
            web.put(archive.clone());
        }
    }

    fn open(&self, at: usize) -> Arc<dyn ImageSource> {
        self.source(&self.locations[at])
    }

    fn source(&self, text: &str) -> Arc<dyn ImageSource> {
        let cache = BlockCache::open(&self.directory.path().join("disk")).unwrap();
        archive_source::open(&text.parse::<ImageLocation>().unwrap(), &client(), &cache)
    }

    fn sources(&self) -> Vec<(String, Arc<dyn ImageSource>)> {
        self.locations.iter().map(|text| (text.clone(), self.source(text))).collect()
    }
}

fn client() -> RegistryClient {
    RegistryClient::new(RegistryOptions::default()).unwrap()
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
    let archive = std::fs::read(places.directory.path().join("layout.tar")).unwrap();
    let packed = PACKED.map(|how| {
        let path = places.directory.path().join(format!("layout.tar.{how}"));
        std::fs::write(&path, compressed(&archive, how)).unwrap();
        let text = path.display().to_string();
        (text.clone(), places.source(&text))
    });
    for (name, source) in places.sources().into_iter().chain(packed) {
        let root = source.root().await.unwrap();
        assert_eq!(root.digest.as_str(), places.digest, "{name}");
        let ManifestDocument::Manifest(manifest) =
            ManifestDocument::parse(&root.bytes, root.content_type.as_deref()).unwrap()
        else {
            panic!("{name}: no manifest");
        };
        let fetch = source.blob(&manifest.layers[0]);
        assert_eq!(fetch.size(), blob.len() as u64, "{name}");
        read_at_suite::check(&name, &FetchAll(fetch), &blob).await;
    }
    for text in &places.missing {
        let error = places.source(text).root().await.unwrap_err();
        assert_eq!(error.fault(), FaultClass::NotFound, "{text}: {error}");
        assert!(error.to_string().contains("none"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_is_asked_for_as_it_is_and_no_tag_with_it() {
    let content = noise(1000, 3);
    let manifest =
        image(&[("application/octet-stream", &content, json!({"org.opencontainers.image.title": "f"}))]);
    let places = Places::with(&[b"{}", &content], &manifest);
    let host = places.registry.host();
    let digest = &places.digest;
    for (at, (text, asked)) in [
        (format!("{host}/a/b:v1"), "v1"),
        (format!("{host}/a/b@{digest}"), digest.as_str()),
        (format!("{host}/a/b:v1@{digest}"), digest),
        (format!("docker://{host}/a/b:other@{digest}"), digest),
    ]
    .into_iter()
    .enumerate()
    {
        places.registry.reset_counts();
        let names = namespace(&text, &places.directory.path().join(format!("cache{at}"))).await;
        check_file(&names, "files/f", &content).await;
        let paths: Vec<_> = places.registry.manifest_requests().iter().map(|one| one.path.clone()).collect();
        assert_eq!(paths, [format!("/v2/a/b/manifests/{asked}")], "{text}");
        let pinned = names.family().pinned();
        let written = text.trim_start_matches("docker://");
        let expected = if at == 0 { format!("{written}@{digest}") } else { written.to_owned() };
        assert_eq!(pinned, expected, "as it was written");
    }
}

#[tokio::test]
async fn a_blob_of_another_size_than_promised_is_an_error_everywhere() {
    let blob = noise(1000, 2);
    let places = Places::with(&[b"{}", &blob], &image(&[("application/octet-stream", &blob, json!({}))]));
    for (name, source) in places.sources() {
        let root = source.root().await.unwrap();
        let ManifestDocument::Manifest(manifest) = ManifestDocument::parse(&root.bytes, None).unwrap() else {
            panic!()
        };
        let mut lie = manifest.layers[0].clone();
        lie.size += 1;
        let read = ocifs::io::read_all(&FetchAll(source.blob(&lie))).await;
        assert!(read.is_err(), "{name}");
    }
}

/// Opens a file below the top and runs the suite on it.
async fn check_file(namespace: &MountNamespace, path: &str, expected: &[u8]) {
    let node = namespace.resolve(path.as_bytes()).await.unwrap();
    let opened = namespace.open_file(node).await.unwrap_or_else(|error| panic!("{path}: {}", error.chain()));
    read_at_suite::check(path, &opened.bytes, expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_reads_are_exact_random_access_from_every_source() {
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
        let cache = BlockCache::open(&places.directory.path().join(format!("cache{at}"))).unwrap();
        let options = OpenOptions::new(text.parse().unwrap());
        let image = Arc::new(ImageSet::open(&options, &client(), cache).await.unwrap());
        let namespace = MountNamespace::open(image, &ViewScope::default()).await.unwrap();
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
            let image = ImageSet::open(&options, &client(), BlockCache::open(&cache).unwrap()).await.unwrap();
            let namespace = MountNamespace::open(Arc::new(image), &ViewScope::default()).await.unwrap();
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
async fn namespace(location: &str, cache: &std::path::Path) -> MountNamespace {
    let options = OpenOptions::new(location.parse().unwrap());
    let image = ImageSet::open(&options, &client(), BlockCache::open(cache).unwrap()).await.unwrap();
    MountNamespace::open(Arc::new(image), &ViewScope::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn unverified_bytes_of_one_repository_never_reach_another() {
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
    let image = ImageSet::open(&options, &client(), BlockCache::open(&cache).unwrap()).await.unwrap();
    let evil = MountNamespace::open(Arc::new(image), &ViewScope::default()).await.unwrap();
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
async fn layer_cannot_declare_itself_verified() {
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
async fn indexes_of_wrong_bytes_are_removed_with_them() {
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
            _ => assert_eq!(found.unwrap_err().fault(), FaultClass::Mismatch),
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
    places.pack();
    // There is more than one image now, and some locations do not say which.
    assert_eq!(places.open(2).root().await.unwrap_err().fault(), FaultClass::Usage);
    assert_eq!(places.open(4).root().await.unwrap_err().fault(), FaultClass::Usage);

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
        assert_eq!(error.fault(), FaultClass::NotFound, "{name}: {error}");
    }

    // What does not hash to its name is nowhere believed.
    std::fs::write(layout.blob_path(digests[0].as_str()), "{}").unwrap();
    places.registry.push_manifest_as("a/b", digests[0].as_str(), MANIFEST, b"{}");
    places.pack();
    for (name, source) in places.sources() {
        assert_eq!(source.named(&digests[0]).await.unwrap_err().fault(), FaultClass::Mismatch, "{name}");
    }
    for at in 1..places.locations.len() {
        let found = places.open(at).referrers(&subject, Some(KIND)).await.unwrap();
        assert_eq!(found, [], "a broken document is about nothing");
    }
}

#[tokio::test]
async fn offline_referrers_are_unknown_and_reported() {
    let source = source::offline(&"example.org/a/b:v1".parse().unwrap());
    let digest = ocifs::oci::Digest::sha256(b"x");
    let error = source.referrers(&digest, None).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Unavailable);
    assert!(error.to_string().contains("list of referrers of sha256:"), "{error}");
    assert_eq!(source.named(&digest).await.unwrap_err().fault(), FaultClass::Unavailable);
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
        (&elsewhere, NetworkAccess::Online, FaultClass::NotFound),
        (&beside, NetworkAccess::Online, FaultClass::NotFound),
        (&elsewhere, NetworkAccess::Offline, FaultClass::Unavailable),
    ] {
        let options = OpenOptions { network, ..OpenOptions::new(location.parse().unwrap()) };
        let opened = ImageSet::open(&options, &client(), BlockCache::open(&cache).unwrap()).await.map(drop);
        assert_eq!(opened.unwrap_err().fault(), expected, "{location} {network:?}");
    }
    places.registry.go_down();
    check_file(&namespace(&pinned, &cache).await, "files/f", &content).await;
}

/// Opens what is expected to be refused, and gives the words.
async fn refused(location: &str, cache: &std::path::Path) -> (FaultClass, String) {
    let options = OpenOptions::new(location.parse().unwrap());
    let opened = ImageSet::open(&options, &client(), BlockCache::open(cache).unwrap()).await.map(drop);
    let error = opened.unwrap_err();
    (error.fault(), ocifs::io::chain(&error))
}

/// An image as `docker save` has it: the names in the archive of its config and layers.
struct Saved<'a> {
    config: Vec<u8>,
    names: &'a [&'a str],
    layers: Vec<(String, &'a [u8])>,
}

impl<'a> Saved<'a> {
    /// Of these layers, each a plain tar with the bytes as they are stored.
    fn new(names: &'a [&'a str], layers: &[(&str, &[u8], &'a [u8])]) -> Self {
        let ids: Vec<_> = layers.iter().map(|(_, tar, _)| ocifs::oci::Digest::sha256(tar)).collect();
        let rootfs = json!({"type": "layers", "diff_ids": ids});
        // No two images have the same config.
        let config = json!({"architecture": "amd64", "os": "linux", "author": names, "rootfs": rootfs});
        let layers = layers.iter().map(|(id, _, stored)| (format!("{id}/layer.tar"), *stored)).collect();
        Self { config: config.to_string().into_bytes(), names, layers }
    }

    fn config_name(&self) -> String {
        format!("{}.json", ocifs::oci::Digest::sha256(&self.config).encoded())
    }

    fn listed(&self) -> serde_json::Value {
        let layers: Vec<_> = self.layers.iter().map(|(name, _)| name).collect();
        json!({"Config": self.config_name(), "RepoTags": self.names, "Layers": layers})
    }
}

/// The archive of images; those of their layers that were there before are links to it, as docker 1.10 to 24 wrote them.
fn saved(images: &[Saved]) -> Vec<u8> {
    let mut tar = Tarball::new();
    let mut seen: Vec<(&[u8], String)> = Vec::new();
    for image in images {
        tar = tar.file(&image.config_name(), &image.config);
        for (name, stored) in &image.layers {
            match seen.iter().find(|(bytes, _)| bytes == stored) {
                Some((_, first)) if first == name => {}
                Some((_, first)) => tar = tar.symlink(name, &format!("../{first}")),
                None => {
                    tar = tar.file(name, stored);
                    seen.push((stored, name.clone()));
                }
            }
        }
    }
    let list: Vec<_> = images.iter().map(Saved::listed).collect();
    tar.file("manifest.json", json!(list).to_string().as_bytes()).bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_save_gives_the_pushed_image_and_a_stable_manifest() {
    let (first, second) = (noise(700_000, 30), noise(5000, 31));
    let base = Tarball::new().file("a", &first).bytes();
    let upper = Tarball::new().file("b", &second).bytes();
    let gz = Encoding::Gzip.encode(&upper);
    let images = [
        Saved::new(&["alpine:3", "h.example/x/y:1"], &[("one", &base, &base), ("two", &upper, &upper)]),
        Saved::new(&["other:1"], &[("three", &base, &base), ("four", &upper, &gz)]),
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("saved.tar");
    let bytes = saved(&images);
    std::fs::write(&file, &bytes).unwrap();
    std::fs::write(dir.path().join("saved.tar.gz"), compressed(&bytes, "gz")).unwrap();
    let path = file.display();
    let digest = |bytes: &[u8]| ocifs::oci::Digest::sha256(bytes).to_string();
    let made = |image: &Saved, last: &str, kind: &str, size: usize| {
        format!(
            concat!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","#,
                r#""config":{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"{}","size":{}}},"#,
                r#""layers":[{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar","digest":"{}","size":{}}},"#,
                r#"{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar{}","digest":"{}","size":{}}}]}}"#,
            ),
            digest(&image.config),
            image.config.len(),
            digest(&base),
            base.len(),
            kind,
            last,
            size,
        )
    };
    let manifests = [
        made(&images[0], &digest(&upper), "", upper.len()),
        made(&images[1], &digest(&gz), ".gzip", gz.len()),
    ];
    let pinned = format!("{path}@{}", digest(manifests[0].as_bytes()));
    for (location, number) in [
        (format!("docker-archive:{path}:alpine:3"), 0),
        (format!("docker-archive:{path}:docker.io/library/alpine:3"), 0),
        (format!("docker-archive:{path}:h.example/x/y:1"), 0),
        (format!("docker-archive:{path}:@1"), 1),
        (format!("docker-archive:{path}.gz:other:1"), 1),
        (pinned, 0),
    ] {
        let names = namespace(&location, &dir.path().join("cache")).await;
        check_file(&names, "merged/a", &first).await;
        check_file(&names, "merged/b", &second).await;
        check_file(&names, "manifest.json", manifests[number].as_bytes()).await;
    }
    // What names it in a registry holds the same files.
    let places = Places::with(
        &[b"{}", &base, &upper],
        &image(&[
            (Encoding::Plain.media_type(), &base, json!({})),
            (Encoding::Plain.media_type(), &upper, json!({})),
        ]),
    );
    let pushed = namespace(&places.locations[0], &dir.path().join("other")).await;
    check_file(&pushed, "merged/a", &first).await;
    check_file(&pushed, "merged/b", &second).await;

    let cache = dir.path().join("cache");
    let (fault, words) = refused(&path.to_string(), &cache).await;
    assert_eq!(fault, FaultClass::Usage);
    assert!(words.contains("alpine:3") && words.contains("other:1"), "{words}");
    let (fault, words) = refused(&format!("docker-archive:{path}:none:1"), &cache).await;
    assert_eq!(fault, FaultClass::NotFound);
    assert!(words.contains("none:1") && words.contains("other:1"), "{words}");
    assert_eq!(refused(&format!("docker-archive:{path}:@2"), &cache).await.0, FaultClass::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_with_keys_in_another_case_or_twice_is_read_as_docker_reads_it() {
    let tar = Tarball::new().file("a", b"content").bytes();
    let image = Saved::new(&["x:1"], &[("one", &tar, &tar)]);
    let dir = tempfile::tempdir().unwrap();
    let listed = image.listed().to_string();
    for (number, list) in [
        listed.replace("Config", "config").replace("RepoTags", "repoTags").replace("Layers", "LAYERS"),
        // The last of two counts.
        listed.replacen('{', r#"{"layers":["none"],"config":"none","#, 1),
        listed.replacen('{', r#"{"Parent":null,"LayerSources":null,"#, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let file = dir.path().join(format!("{number}.tar"));
        let archive = Tarball::new()
            .file(&image.config_name(), &image.config)
            .file("one/layer.tar", &tar)
            .file("manifest.json", format!("[{list}]").as_bytes());
        std::fs::write(&file, archive.bytes()).unwrap();
        let names =
            namespace(&format!("docker-archive:{}:x:1", file.display()), &dir.path().join("cache")).await;
        check_file(&names, "merged/a", b"content").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_both_forms_is_an_oci_layout_unless_it_is_called_otherwise() {
    let content = noise(5000, 32);
    let tar = Tarball::new().file("f", &content).bytes();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    let mut layout = Layout::create(&path);
    let digest = layout.image("v1", &[Layer::of(&tar, Encoding::Plain)]);
    let manifest = std::fs::read(layout.blob_path(&digest)).unwrap();
    let named = |at: &str| {
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let digest = manifest.pointer(at).unwrap().as_str().unwrap();
        format!("blobs/{}", digest.replace(':', "/"))
    };
    // As docker has written it since version 25.
    let list = json!([{"Config": named("/config/digest"), "RepoTags": ["a:v1"], "Layers": [named("/layers/0/digest")]}]);
    std::fs::write(path.join("manifest.json"), list.to_string()).unwrap();
    std::fs::write(path.join("repositories"), "{}").unwrap();
    let file = dir.path().join("both.tar");
    std::fs::write(&file, archive_of(&path)).unwrap();
    let file = file.display();
    for (location, is_same) in [
        (file.to_string(), true),
        (format!("oci-archive:{file}:v1"), true),
        (format!("docker-archive:{file}:a:v1"), false),
    ] {
        let names = namespace(&location, &dir.path().join("cache")).await;
        check_file(&names, "merged/f", &content).await;
        assert_eq!(names.family().digest().as_str() == digest, is_same, "{location}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_several_images_of_a_layout_is_an_error_that_distinguishes_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    let mut layout = Layout::create(&path);
    let layer = |name: &str| Layer::of(&Tarball::new().file(name, b"x").bytes(), Encoding::Plain);
    let [a, b] = ["a", "b"].map(|name| layout.image(name, &[layer(name)]));
    let list = |entries: serde_json::Value| {
        let file = path.join("index.json");
        let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        for (entry, new) in
            index["manifests"].as_array_mut().unwrap().iter_mut().zip(entries.as_array().unwrap())
        {
            for (key, value) in new.as_object().unwrap() {
                entry[key] = value.clone();
            }
        }
        std::fs::write(file, index.to_string()).unwrap();
    };
    let (cache, at) = (dir.path().join("cache"), path.display());
    let ref_name = "org.opencontainers.image.ref.name";
    // As docker has written them since version 25.
    let full = |name: &str| json!({"annotations": {ref_name: "1", "io.containerd.image.name": name}});
    list(json!([full("docker.io/library/a:1"), full("docker.io/library/b:1")]));
    for location in [format!("oci:{at}:1"), format!("oci:{at}")] {
        let (fault, message) = refused(&location, &cache).await;
        assert_eq!(fault, FaultClass::Usage, "{message}");
        assert!(message.ends_with(": docker.io/library/a:1, docker.io/library/b:1"), "{message}");
    }
    let names = namespace(&format!("oci:{at}:docker.io/library/b:1"), &cache).await;
    check_file(&names, "merged/b", b"x").await;
    // One name for two platforms.
    let of = |arch: &str| json!({"annotations": {ref_name: "t"}, "platform": {"os": "linux", "architecture": arch}});
    list(json!([of("arm64"), of("amd64")]));
    let (fault, message) = refused(&format!("oci:{at}:t"), &cache).await;
    assert_eq!(fault, FaultClass::Usage, "{message}");
    assert!(message.ends_with(&format!(": @{a} (linux/arm64), @{b} (linux/amd64)")), "{message}");
    let names = namespace(&format!("oci:{at}@{b}"), &cache).await;
    check_file(&names, "merged/b", b"x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lying_or_empty_archive_is_an_error_with_the_reason() {
    let tar = Tarball::new().file("a", b"x").bytes();
    let other = Tarball::new().file("evil", b"y").bytes();
    let dir = tempfile::tempdir().unwrap();
    let mut short = Saved::new(&["a:1"], &[("one", &tar, &tar)]);
    short.layers.clear();
    let mut gone = Saved::new(&["a:1"], &[("one", &tar, &tar)]);
    gone.layers[0].0 = "two/layer.tar".into();
    let gone = Tarball::new()
        .file(&gone.config_name(), &gone.config)
        .file("manifest.json", json!([gone.listed()]).to_string().as_bytes());
    let mut deep = Saved::new(&["a:1"], &[("one", &tar, &tar)]);
    deep.layers[0].0 = "../../etc/passwd".into();
    let deep = Tarball::new()
        .file(&deep.config_name(), &deep.config)
        .file("manifest.json", json!([deep.listed()]).to_string().as_bytes());
    let large = Tarball::new().file("manifest.json", &vec![b' '; (20 << 20) + 1]).bytes();
    let old = Tarball::new().file("repositories", b"{}").bytes();
    let layout = Tarball::new()
        .file("oci-layout", br#"{"imageLayoutVersion":"2.0.0"}"#)
        .file("index.json", b"{}")
        .bytes();
    let bomb = Encoding::Zstd.encode(&[vec![0; 512], vec![0; 80 << 20]].concat());
    let whole = saved(&[Saved::new(&["a:1"], &[("one", &tar, &tar)])]);
    let cut = whole[..whole.len() - 1600].to_vec();
    let mut half = Encoding::Gzip.encode(&whole);
    half.truncate(half.len() - 20);
    let rows: [(&str, Vec<u8>, FaultClass, &str); 12] = [
        ("layers", saved(&[short]), FaultClass::Malformed, "0 layers, and 1"),
        ("gone", gone.bytes(), FaultClass::Malformed, "no file two/layer.tar"),
        ("deep", deep.bytes(), FaultClass::Malformed, "outside"),
        ("large", large, FaultClass::Unsupported, "limit is 20971520"),
        ("old", old, FaultClass::Unsupported, "before 1.10"),
        ("version", layout, FaultClass::Malformed, "2.0.0, not 1.x"),
        ("nothing", Tarball::new().file("x", b"x").bytes(), FaultClass::Malformed, "no archive of images"),
        ("empty", Vec::new(), FaultClass::Malformed, "empty"),
        ("text", b"{}".to_vec(), FaultClass::Malformed, "JSON document"),
        ("bomb", bomb, FaultClass::Unsupported, "the limit for"),
        ("cut", cut, FaultClass::Malformed, "cut"),
        ("half", half, FaultClass::Malformed, "middle of a member"),
    ];
    for (name, bytes, expected, words) in rows {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let (fault, message) = refused(&path.display().to_string(), &dir.path().join("cache")).await;
        assert!(message.contains(words), "{name}: {message}");
        assert_eq!(fault, expected, "{name}: {message}");
    }
    // A layer that is not what its config says is found out when it is read.
    let wrong = saved(&[Saved::new(&["a:1"], &[("one", &tar, &other)])]);
    let path = dir.path().join("wrong");
    std::fs::write(&path, wrong).unwrap();
    let names = namespace(&path.display().to_string(), &dir.path().join("cache")).await;
    assert_eq!(names.resolve(b"merged/evil").await.unwrap_err().fault(), FaultClass::Mismatch);
    let none = dir.path().join("none").display().to_string();
    assert_eq!(refused(&none, &dir.path().join("cache")).await.0, FaultClass::NotFound);
    assert_eq!(
        refused(&format!("oci-archive:{}", dir.path().join("old").display()), &dir.path().join("cache"))
            .await
            .0,
        FaultClass::Malformed
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_on_the_web_is_read_by_range_and_one_that_changes_is_an_error() {
    let (large, small) = (noise(24 << 20, 40), noise(1000, 41));
    let title = |name: &str| json!({"org.opencontainers.image.title": name});
    let manifest = image(&[
        ("application/octet-stream", &large, title("large")),
        ("application/octet-stream", &small, title("small")),
    ]);
    let places = Places::with(&[b"{}", &large, &small], &manifest);
    let cache = places.directory.path().join("cache");
    let names = namespace(&places.locations[5], &cache).await;
    check_file(&names, "files/small", &small).await;
    let sent = places.web[0].sent();
    assert!(sent < 1 << 20, "{sent} bytes of an archive of {} were sent", large.len());
    let mut byte = [0; 1];
    let file = names.open_file(names.resolve(b"files/large").await.unwrap()).await.unwrap();
    file.bytes.read_at(0, &mut byte).await.unwrap();
    assert_eq!(byte[0], large[0]);

    // The same bytes under another version, and other bytes of the same size: neither is mixed with what was read before.
    let archive = std::fs::read(places.directory.path().join("layout.tar")).unwrap();
    places.web[0].put(archive.iter().map(|byte| byte ^ 1).collect());
    let error = file.bytes.read_at(large.len() as u64 - 1, &mut byte).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Mismatch, "{}", error.chain());
    assert!(error.chain().contains("another version"), "{}", error.chain());

    // Without ranges it comes once, and whole.
    let names = namespace(&places.locations[6], &places.directory.path().join("other")).await;
    check_file(&names, "files/small", &small).await;
    check_file(&names, "files/large", &large).await;
    assert_eq!(places.web[1].requests(), 1);

    // A download that breaks off begins anew.
    places.web[1].cut(2);
    let names = namespace(&places.locations[6], &places.directory.path().join("cut")).await;
    check_file(&names, "files/large", &large).await;
    assert_eq!(places.web[1].requests(), 4);
    places.web[1].cut(3);
    let (fault, words) = refused(&places.locations[6], &places.directory.path().join("cut again")).await;
    assert_eq!(fault, FaultClass::Unavailable, "{words}");
    assert_eq!(places.web[1].requests(), 7);

    let absent = format!("{}?sig=secret", places.web[0].url("none"));
    let (fault, words) = refused(&absent, &cache).await;
    assert_eq!(fault, FaultClass::NotFound);
    assert!(!words.contains("secret"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_a_content_store_is_not_fetched_and_a_wrong_one_is_not_served() {
    let (one, two) = (noise(9 << 20, 50), noise(300_000, 51));
    let title = |name: &str| json!({"org.opencontainers.image.title": name});
    let manifest = image(&[
        ("application/octet-stream", &one, title("one")),
        ("application/octet-stream", &two, title("two")),
    ]);
    let places = Places::with(&[b"{}", &one, &two], &manifest);
    let store = Layout::create(places.directory.path().join("store"));
    let opened = async |cache: &str, stores: Vec<std::path::PathBuf>| {
        let options =
            OpenOptions { content_stores: stores, ..OpenOptions::new(places.locations[0].parse().unwrap()) };
        let cache = BlockCache::open(&places.directory.path().join(cache)).unwrap();
        let image = ImageSet::open(&options, &client(), cache).await.unwrap();
        MountNamespace::open(Arc::new(image), &ViewScope::default()).await.unwrap()
    };
    let stores = || vec![places.directory.path().join("absent"), places.directory.path().join("store")];
    for bytes in [&one, &two] {
        store.blob("x", bytes);
    }
    let names = opened("first", stores()).await;
    check_file(&names, "files/one", &one).await;
    check_file(&names, "files/two", &two).await;
    assert_eq!(places.registry.blob_bytes(), 0, "every blob is in the store");

    // One is damaged, one was cut.
    let digest = |bytes: &[u8]| ocifs::oci::Digest::sha256(bytes).to_string();
    let mut damaged = one.clone();
    damaged[5 << 20] ^= 1;
    std::fs::write(store.blob_path(&digest(&one)), &damaged).unwrap();
    std::fs::write(store.blob_path(&digest(&two)), &two[1..]).unwrap();
    let names = opened("second", stores()).await;
    check_file(&names, "files/one", &one).await;
    check_file(&names, "files/two", &two).await;
    let fetched = places.registry.blob_bytes();
    assert!(fetched >= (one.len() + two.len()) as u64, "{fetched} bytes came from the registry");

    // One that is written into after it was compared is not used any more.
    std::fs::write(store.blob_path(&digest(&one)), &one).unwrap();
    let names = opened("third", stores()).await;
    let file = names.open_file(names.resolve(b"files/one").await.unwrap()).await.unwrap();
    let mut byte = [0; 1];
    file.bytes.read_at(0, &mut byte).await.unwrap();
    std::fs::write(store.blob_path(&digest(&one)), &damaged[..damaged.len() - 1]).unwrap();
    check_file(&names, "files/one", &one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_web_archive_opens_by_digest_without_its_server() {
    let content = noise(100_000, 60);
    let manifest =
        image(&[("application/octet-stream", &content, json!({"org.opencontainers.image.title": "f"}))]);
    let places = Places::with(&[b"{}", &content], &manifest);
    let cache = places.directory.path().join("cache");
    let place = places.web[0].url("a.tar");
    check_file(&namespace(&place, &cache).await, "files/f", &content).await;
    let requests = places.web[0].requests();
    let pinned = format!("{place}@{}", places.digest);
    check_file(&namespace(&pinned, &cache).await, "files/f", &content).await;
    let options =
        OpenOptions { network: NetworkAccess::Offline, ..OpenOptions::new(pinned.parse().unwrap()) };
    let image = ImageSet::open(&options, &client(), BlockCache::open(&cache).unwrap()).await.unwrap();
    let names = MountNamespace::open(Arc::new(image), &ViewScope::default()).await.unwrap();
    check_file(&names, "files/f", &content).await;
    assert_eq!(places.web[0].requests(), requests);
    // A file is no network.
    let options = OpenOptions {
        network: NetworkAccess::Offline,
        ..OpenOptions::new(places.locations[4].parse().unwrap())
    };
    let opened = ImageSet::open(&options, &client(), BlockCache::open(&cache).unwrap()).await;
    assert_eq!(opened.unwrap().digest().as_str(), places.digest);
}
