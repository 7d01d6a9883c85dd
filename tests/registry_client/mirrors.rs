//! Mirrors: order of requests, content that they decide, and the cost of a bad one.

use super::*;

/// A primary and a mirror with the same blob and manifest, and a client that knows of both.
pub(super) struct Mirrored {
    pub(super) primary: FaultRegistry,
    pub(super) mirror: FaultRegistry,
    pub(super) registry: RegistryClient,
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    pub(super) manifest: Digest,
    pub(super) home: tempfile::TempDir,
}

/// A document of this size.
fn document(marker: &str) -> Vec<u8> {
    format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","marker":"{marker}","layers":[]}}"#).into_bytes()
}

/// A client that reads `text` as its registries.conf, PRIMARY and MIRROR standing for the hosts.
pub(super) fn mirrored_with(text: &str, options: RegistryOptions) -> Mirrored {
    let (primary, mirror) = (FaultRegistry::start(), FaultRegistry::start());
    let home = tempfile::tempdir().unwrap();
    let text = text.replace("PRIMARY", &primary.host()).replace("MIRROR", &mirror.host());
    std::fs::write(home.path().join("registries.conf"), text).unwrap();
    let places = ConfigPaths { user: Some(home.path().into()), ..ConfigPaths::default() };
    let bytes = noise(10_000);
    let digest = primary.push_blob(bytes.clone());
    mirror.push_blob(bytes.clone());
    let manifest = primary.push_manifest("team/app", "v1", MANIFEST, &document("x"));
    mirror.push_manifest("team/app", "v1", MANIFEST, &document("x"));
    let registry = RegistryClient::new(RegistryOptions { places, ..options }).unwrap();
    Mirrored { primary, mirror, registry, bytes, digest, manifest, home }
}

pub(super) const ONE_MIRROR: &str = r#"
[[registry]]
prefix = "PRIMARY"
[[registry.mirror]]
location = "MIRROR"
"#;

fn mirrored() -> Mirrored {
    mirrored_with(ONE_MIRROR, options())
}

impl Mirrored {
    pub(super) fn blob(&self) -> Arc<dyn RangeFetch> {
        self.registry.blob(&reference(&self.primary), &descriptor(&self.digest, self.bytes.len() as u64))
    }

    async fn expect(&self, blob: &Arc<dyn RangeFetch>, start: u64, end: u64) {
        let read = read_vec(&FetchAll(blob.clone()), ByteRange::new(start, end)).await;
        let read = read.unwrap_or_else(|error| panic!("{}", error.chain()));
        assert!(read == self.bytes[start as usize..end as usize], "wrong bytes in {start}..{end}");
    }

    pub(super) async fn resolve(&self, selector: &ManifestSelector) -> Result<Digest, RegistryError> {
        Ok(self.registry.manifest(&reference(&self.primary), selector).await?.digest)
    }

    /// How many requests each has had: the primary, and the mirror.
    fn asked(&self) -> (usize, usize) {
        (self.primary.requests().len(), self.mirror.requests().len())
    }
}

#[tokio::test]
async fn a_mirror_that_has_everything_is_all_that_is_asked() {
    let scene = mirrored();
    assert_eq!(scene.resolve(&tag("v1")).await.unwrap(), scene.manifest);
    let blob = scene.blob();
    scene.expect(&blob, 0, 5000).await;
    scene.expect(&blob, 5000, 10_000).await;
    assert_eq!(scene.asked(), (0, 3));
}

#[tokio::test]
async fn a_mirror_that_fails_is_asked_once_and_then_left_alone() {
    let scene = mirrored();
    scene.mirror.set(Bad::Status { code: 503, times: u32::MAX, retry_after: None });
    let (first, second) = (scene.blob(), scene.blob());
    scene.expect(&first, 0, 5000).await;
    scene.expect(&second, 0, 5000).await;
    scene.resolve(&tag("v1")).await.unwrap();
    assert_eq!(scene.asked(), (3, 1));
}

#[tokio::test]
async fn a_mirror_that_is_down_or_silent_is_no_error() {
    let scene = mirrored();
    scene.mirror.go_down();
    scene.expect(&scene.blob(), 0, 10_000).await;
    let scene = mirrored_with(ONE_MIRROR, impatient());
    scene.mirror.set(Bad::Silent);
    scene.expect(&scene.blob(), 0, 10_000).await;
    assert_eq!(scene.primary.blob_requests().len(), 1);
}

#[tokio::test]
async fn a_body_that_a_mirror_breaks_off_goes_on_at_the_registry() {
    let scene = mirrored();
    scene.mirror.set(Bad::TruncateAfter { bytes: 4000, times: u32::MAX });
    scene.expect(&scene.blob(), 0, 10_000).await;
    let ranges: Vec<_> = scene.primary.blob_requests().iter().map(|request| request.range).collect();
    assert_eq!((ranges, scene.mirror.requests().len()), (vec![Some((4000, 10_000))], 1));
}

#[tokio::test]
async fn a_blob_that_a_mirror_lacks_is_asked_for_there_once_and_others_still() {
    let scene = mirrored();
    let other = scene.primary.push_blob(noise(500));
    let lacking = scene.registry.blob(&reference(&scene.primary), &descriptor(&other, 500));
    for range in [ByteRange::new(0, 100), ByteRange::new(100, 500)] {
        read_vec(&FetchAll(lacking.clone()), range).await.unwrap();
    }
    assert_eq!(scene.asked(), (2, 1));
    scene.expect(&scene.blob(), 0, 10_000).await;
    assert_eq!(scene.asked(), (2, 2));
}

#[tokio::test]
async fn bytes_of_a_mirror_that_are_not_those_of_the_digest_are_fetched_from_the_registry() {
    let scene = mirrored();
    let forged = document("forged");
    scene.mirror.push_manifest_as("team/app", scene.manifest.as_str(), MANIFEST, &forged);
    let by_digest = ManifestSelector::Digest(scene.manifest.clone());
    assert_eq!(scene.resolve(&by_digest).await.unwrap(), scene.manifest);
    assert_eq!(scene.asked(), (1, 1));

    scene.mirror.push_blob_as(&scene.digest, noise(10_001)[1..].to_vec());
    let whole = descriptor(&scene.digest, 10_000);
    let document = scene.registry.document(&reference(&scene.primary), &whole).await.unwrap();
    assert!(document == scene.bytes);
    assert_eq!(scene.asked(), (2, 2));
}

#[tokio::test]
async fn digest_only_mirror_is_not_used_for_tags() {
    for text in [
        ONE_MIRROR.replace("PRIMARY\"", "PRIMARY\"\nmirror-by-digest-only = true"),
        format!("{ONE_MIRROR}pull-from-mirror = \"digest-only\"\n"),
    ] {
        let scene = mirrored_with(&text, options());
        scene.resolve(&tag("v1")).await.unwrap();
        assert_eq!(scene.asked(), (1, 0));
        scene.resolve(&ManifestSelector::Digest(scene.manifest.clone())).await.unwrap();
        scene.expect(&scene.blob(), 0, 10).await;
        assert_eq!(scene.asked(), (1, 2));
    }
}

#[tokio::test]
async fn a_mirror_for_tags_gives_no_bytes() {
    let scene = mirrored_with(&format!("{ONE_MIRROR}pull-from-mirror = \"tag-only\"\n"), options());
    scene.resolve(&tag("v1")).await.unwrap();
    assert_eq!(scene.asked(), (0, 1));
    scene.resolve(&ManifestSelector::Digest(scene.manifest.clone())).await.unwrap();
    scene.expect(&scene.blob(), 0, 10).await;
    assert_eq!(scene.asked(), (2, 1));
}

#[tokio::test]
async fn mirrors_are_asked_in_their_order_and_the_registry_last() {
    let second = FaultRegistry::start();
    let text = format!("{ONE_MIRROR}[[registry.mirror]]\nlocation = \"{}\"\n", second.host());
    let scene = mirrored_with(&text, options());
    let other = scene.primary.push_manifest("team/app", "only-here", MANIFEST, &document("y"));
    assert_eq!(scene.resolve(&tag("only-here")).await.unwrap(), other);
    assert_eq!((scene.asked(), second.requests().len()), ((1, 1), 1));
    let missing = scene.resolve(&tag("nowhere")).await.unwrap_err();
    assert_eq!((missing.fault(), scene.asked(), second.requests().len()), (FaultClass::NotFound, (2, 2), 2));
    assert!(missing.to_string().contains(&scene.primary.host()), "{missing}");
}

#[tokio::test]
async fn a_password_that_was_given_for_the_registry_is_not_for_its_mirror() {
    let scene = mirrored_with(ONE_MIRROR, with_password());
    for server in [&scene.primary, &scene.mirror] {
        server.set(Bad::RequireBasic { user: "user".into(), pass: PASSWORD.into() });
    }
    scene.expect(&scene.blob(), 0, 10_000).await;
    assert_eq!(statuses(&scene.primary.requests()), [401, 200]);
    assert!(scene.mirror.requests().iter().all(|request| !request.authorization));
}

#[tokio::test]
async fn each_host_gets_its_own_credential() {
    let scene = mirrored_with(ONE_MIRROR, RegistryOptions { anonymous: false, ..options() });
    let authfile = scene.home.path().join("auth.json");
    let (mirror, primary) = (scene.mirror.host(), scene.primary.host());
    let text = format!(
        r#"{{"auths":{{"{mirror}":{{"username":"m","password":"1"}},"{primary}":{{"username":"p","password":"2"}}}}}}"#
    );
    std::fs::write(&authfile, text).unwrap();
    let places = ConfigPaths { user: Some(scene.home.path().into()), ..ConfigPaths::default() };
    let options = RegistryOptions { anonymous: false, authfile: Some(authfile), places, ..options() };
    let registry = RegistryClient::new(options).unwrap();
    scene.mirror.set(Bad::RequireBasic { user: "m".into(), pass: "1".into() });
    scene.primary.set(Bad::RequireBasic { user: "p".into(), pass: "2".into() });
    registry.manifest(&reference(&scene.primary), &tag("v1")).await.unwrap();
    assert_eq!((statuses(&scene.mirror.requests()), scene.asked()), (vec![401, 200], (0, 2)));
    scene.mirror.go_down();
    registry.manifest(&reference(&scene.primary), &tag("v1")).await.unwrap();
    assert_eq!(statuses(&scene.primary.requests()), [401, 200]);
}

#[tokio::test]
async fn referrers_fall_back_from_the_mirror_to_the_registry() {
    let scene = mirrored();
    scene.primary.set(Bad::ReferrersApi { page: 10 });
    let subject = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","artifactType":"a/b","layers":[],"subject":{{"mediaType":"{MANIFEST}","digest":"{}","size":1}},"config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}}}}"#,
        scene.manifest
    );
    let referrer = scene.primary.push_manifest("team/app", "r", MANIFEST, subject.as_bytes());
    let found = scene.registry.referrers(&reference(&scene.primary), &scene.manifest, None).await.unwrap();
    assert_eq!(found.iter().map(|entry| &entry.digest).collect::<Vec<_>>(), [&referrer]);
    // The mirror was asked in both ways.
    assert_eq!(statuses(&scene.mirror.requests()), [404, 404]);
    scene.primary.go_down();
    assert!(
        scene.registry.referrers(&reference(&scene.primary), &scene.manifest, None).await.unwrap().is_empty()
    );
}

#[tokio::test]
async fn push_goes_to_the_registry_and_no_mirror() {
    let scene = mirrored();
    let bytes = noise(300);
    let digest = Digest::sha256(&bytes);
    scene.registry.push_blob(&reference(&scene.primary), &digest, bytes.into()).await.unwrap();
    assert_eq!(scene.mirror.requests().len(), 0);
}
