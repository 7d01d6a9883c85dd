//! Pushes and lists against Debian's registry, which has no list of referrers: stored bytes equal pushed bytes.

use super::*;
use crate::real_registry::{PASSWORD as REAL_PASSWORD, RealRegistry, USER};
use ocifs::oci::published::{self, INDEX_ARTIFACT};
use ocifs::oci::{ManifestDocument, fallback_tag};

/// Pushes an image of two layers and gives its descriptor and theirs.
async fn push_image(registry: &RegistryClient, at: &Reference) -> (Descriptor, Vec<Descriptor>) {
    let layers: Vec<Vec<u8>> = vec![noise(300_000), noise(10)];
    for bytes in layers.iter().chain([&b"{}".to_vec()]) {
        let digest = Digest::sha256(bytes);
        assert_eq!(registry.push_blob(at, &digest, bytes.clone().into()).await.unwrap(), PushOutcome::Stored);
        assert_eq!(
            registry.push_blob(at, &digest, bytes.clone().into()).await.unwrap(),
            PushOutcome::WasThere
        );
    }
    let layers: Vec<Descriptor> =
        layers.iter().map(|bytes| Descriptor::of("application/vnd.oci.image.layer.v1.tar", bytes)).collect();
    let image = ocifs::oci::ArtifactManifest {
        artifact_type: "application/vnd.test".into(),
        layers: layers.clone(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    let image = image.write().unwrap();
    for expected in [PushOutcome::Stored, PushOutcome::WasThere] {
        let pushed = registry.push_manifest(at, &tag("v1"), MANIFEST, image.bytes.clone().into()).await;
        assert_eq!(pushed.unwrap(), expected);
    }
    (Descriptor::of(MANIFEST, &image.bytes), layers)
}

async fn publish(registry: &RegistryClient, at: &Reference, publication: &published::PublishedManifest) {
    for (digest, bytes) in &publication.blobs {
        registry.push_blob(at, digest, bytes.clone().into()).await.unwrap();
    }
    let selector = ManifestSelector::Digest(publication.manifest.digest.clone());
    let bytes = publication.manifest.bytes.clone().into();
    registry.push_manifest(at, &selector, publication.manifest.media_type, bytes).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn published_index_is_found_by_another_client() {
    let mut server = RealRegistry::with_password();
    let at: Reference = server.reference("team/app:v1").parse().unwrap();
    let options = || {
        let creds = UserCredential { user: USER.into(), secret: RedactedSecret::new(REAL_PASSWORD) };
        RegistryOptions {
            anonymous: false,
            creds: Some(creds),
            stall_timeout: Duration::from_secs(10),
            ..options()
        }
    };
    let registry = RegistryClient::new(options()).unwrap();
    let (image, layers) = push_image(&registry, &at).await;
    let nothing = registry.referrers(&at, &image.digest, None).await.unwrap();
    assert_eq!(nothing, []);

    let indexes = vec![(layers[0].clone(), noise(5_000)), (layers[1].clone(), b"index".to_vec())];
    let publication = published::publish_indexes(&image, indexes).unwrap();
    publish(&registry, &at, &publication).await;
    let trace = published::publish_trace(&image, b"{\"reads\":[]}".to_vec()).unwrap();
    publish(&registry, &at, &trace).await;
    publish(&registry, &at, &publication).await;

    // Another machine.
    let registry = RegistryClient::new(options()).unwrap();
    assert_eq!(registry.referrers(&at, &image.digest, None).await.unwrap().len(), 2);
    let found = registry.referrers(&at, &image.digest, Some(INDEX_ARTIFACT)).await.unwrap();
    let [entry] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(entry.digest, publication.manifest.digest);
    let selector = ManifestSelector::Digest(entry.digest.clone());
    let document = registry.manifest(&at, &selector).await.unwrap();
    let ManifestDocument::Manifest(manifest) = ManifestDocument::parse(&document.bytes, None).unwrap() else {
        panic!()
    };
    let read = published::read_indexes(&manifest, &image.digest, &layers).unwrap();
    let bytes = registry.document(&at, &read[0].blob).await.unwrap();
    assert!(read[0].layer == layers[0].digest && bytes == noise(5_000));
    let list = registry.manifest(&at, &ManifestSelector::Tag(fallback_tag(&image.digest))).await.unwrap();
    let tagged = ocifs::oci::listed(&list.bytes, list.content_type.as_deref()).unwrap();
    assert_eq!(tagged.len(), 2, "an entry that is there is not added again");
    // Each blob was sent once: three of the image, two indexes and a trace.
    let hits = server.requests();
    let puts = hits.iter().filter(|hit| hit.method == "PUT" && hit.path.contains("/blobs/uploads/"));
    assert_eq!(puts.count(), 6, "{hits:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_without_a_password_is_denied() {
    let server = RealRegistry::with_password();
    let at: Reference = server.reference("team/app:v1").parse().unwrap();
    let digest = Digest::sha256(b"x");
    let error = client().push_blob(&at, &digest, b"x"[..].into()).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Denied, "{}", everything(&error));
    assert!(everything(&error).contains("no credential was found"), "{}", everything(&error));
}
