//! Artifacts that ocifs publishes for an image: indexes of its layers, and traces of reads.
//!
//! This module handles names and manifests; the content of blobs is not examined. A manifest is accepted as a whole
//! or refused. One that contradicts the image was made for another image, or is an attempt to make ocifs read wrong
//! bytes. The format is described in docs/formats/ocifs-index.md.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ArtifactManifest, Descriptor, Digest, InvalidDigest, MAX_DOCUMENT, Manifest, MediaType, OciError,
    WrittenDocument, fallback_tag,
};

/// Artifact type of a manifest with indexes of layers.
pub const INDEX_ARTIFACT: &str = "application/vnd.ocifs.index.v1";
/// Media type of the index of one layer.
pub const LAYER_INDEX: &str = "application/vnd.ocifs.layer-index.v1";
/// Media type of the index of one layer that is read as a bare stream: it has no names.
pub const STREAM_INDEX: &str = "application/vnd.ocifs.stream-index.v1";
/// Artifact type of a manifest with a trace, and media type of the trace.
pub const TRACE: &str = "application/vnd.ocifs.trace.v1+json";
/// Annotation of an index: digest of the stored layer it describes.
pub const LAYER_DIGEST: &str = "io.ocifs.layer.digest";
/// Annotation of an index: size of the stored layer in bytes, in decimal digits.
pub const LAYER_SIZE: &str = "io.ocifs.layer.size";
/// Limit of an index blob, in bytes: 1 % of a layer of 25 GB.
pub const MAX_INDEX_BLOB: u64 = 256 * 1024 * 1024;

/// A manifest to push, after the blobs that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedManifest {
    /// The manifest.
    pub manifest: WrittenDocument,
    /// Its blobs, the config included, each once.
    pub blobs: Vec<(Digest, Vec<u8>)>,
}

/// One published index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedIndex {
    /// Digest of the layer it describes.
    pub layer: Digest,
    /// The blob with the index, at most [`MAX_INDEX_BLOB`] bytes.
    pub blob: Descriptor,
}

/// Builds the manifest that publishes indexes: for each layer its descriptor in the image, and the bytes of its
/// index.
pub fn publish_indexes(
    subject: &Descriptor,
    indexes: Vec<(Descriptor, Vec<u8>)>,
) -> Result<PublishedManifest, OciError> {
    if indexes.is_empty() {
        return Err(broken("no index to publish".into()));
    }
    let mut layers = Vec::new();
    let mut blobs = Vec::new();
    for (layer, bytes) in indexes {
        let blob = index_blob(LAYER_INDEX, &layer, &bytes)?;
        blobs.push((blob.digest.clone(), bytes));
        layers.push((layer, blob));
    }
    let known: Vec<Descriptor> = layers.iter().map(|(layer, _)| layer.clone()).collect();
    let found = layers.iter().map(|(_, blob)| checked_index(blob, &known));
    all_different(&found.collect::<Result<Vec<_>, _>>()?)?;
    publish(INDEX_ARTIFACT, Some(subject), layers.into_iter().map(|(_, blob)| blob).collect(), blobs)
}

/// The tag of the manifest with the index of the layer, or the trace of the image, `digest` in an index repository.
pub fn layer_tag(digest: &Digest) -> String {
    fallback_tag(digest)
}

/// Builds the manifest with the index of one layer in an index repository: the descriptor of the layer, and the
/// bytes of its index, of type [`LAYER_INDEX`] or [`STREAM_INDEX`].
pub fn publish_layer_index(
    layer: &Descriptor,
    media_type: &str,
    bytes: Vec<u8>,
) -> Result<PublishedManifest, OciError> {
    let blob = index_blob(media_type, layer, &bytes)?;
    checked_index(&blob, std::slice::from_ref(layer))?;
    publish(INDEX_ARTIFACT, None, vec![blob.clone()], vec![(blob.digest, bytes)])
}

/// The index of `layer` in a manifest of an index repository.
///
/// Refuses a manifest of another type, and one without exactly one entry. Refuses an index of another layer or of a
/// layer of another size, and an index over [`MAX_INDEX_BLOB`].
pub fn read_layer_index(manifest: &Manifest, layer: &Descriptor) -> Result<PublishedIndex, OciError> {
    check_artifact(manifest, INDEX_ARTIFACT)?;
    match manifest.layers.as_slice() {
        [blob] => checked_index(blob, std::slice::from_ref(layer)),
        blobs => Err(broken(format!("it has {} entries, one is expected", blobs.len()))),
    }
}

/// The indexes that `manifest` publishes for the image with digest `subject` and these `layers`.
///
/// Refuses a manifest of another type or for another image. Refuses an index of an unknown layer or of a layer with
/// another size, two indexes of one layer, and an index over [`MAX_INDEX_BLOB`].
pub fn read_indexes(
    manifest: &Manifest,
    subject: &Digest,
    layers: &[Descriptor],
) -> Result<Vec<PublishedIndex>, OciError> {
    check_kind(manifest, INDEX_ARTIFACT, subject)?;
    let found = manifest.layers.iter().map(|blob| {
        check_type(blob, LAYER_INDEX)?;
        checked_index(blob, layers)
    });
    let found = found.collect::<Result<Vec<_>, _>>()?;
    all_different(&found)?;
    Ok(found)
}

/// Builds the manifest that publishes a trace of at most [`MAX_DOCUMENT`] bytes.
pub fn publish_trace(subject: &Descriptor, trace: Vec<u8>) -> Result<PublishedManifest, OciError> {
    let blob = Descriptor::of(TRACE, &trace);
    check_size(&blob, MAX_DOCUMENT)?;
    publish(TRACE, Some(subject), vec![blob.clone()], vec![(blob.digest, trace)])
}

/// The blob with the trace that `manifest` publishes for the image with digest `subject`.
pub fn read_trace(manifest: &Manifest, subject: &Digest) -> Result<Descriptor, OciError> {
    check_kind(manifest, TRACE, subject)?;
    read_stored_trace(manifest)
}

/// Builds the manifest of a trace in an index repository. It has no subject: the trace names its image.
pub fn publish_stored_trace(trace: Vec<u8>) -> Result<PublishedManifest, OciError> {
    let blob = Descriptor::of(TRACE, &trace);
    check_size(&blob, MAX_DOCUMENT)?;
    publish(TRACE, None, vec![blob.clone()], vec![(blob.digest, trace)])
}

/// The blob with the trace in a manifest of an index repository.
pub fn read_stored_trace(manifest: &Manifest) -> Result<Descriptor, OciError> {
    check_artifact(manifest, TRACE)?;
    let [blob] = manifest.layers.as_slice() else {
        return Err(broken(format!("a trace has one blob, not {}", manifest.layers.len())));
    };
    check_type(blob, TRACE)?;
    check_size(blob, MAX_DOCUMENT)?;
    Ok(blob.clone())
}

fn publish(
    artifact_type: &str,
    subject: Option<&Descriptor>,
    layers: Vec<Descriptor>,
    mut blobs: Vec<(Digest, Vec<u8>)>,
) -> Result<PublishedManifest, OciError> {
    let artifact = ArtifactManifest {
        artifact_type: artifact_type.into(),
        layers,
        subject: subject.map(Descriptor::bare),
        annotations: BTreeMap::new(),
    };
    let manifest = artifact.write()?;
    blobs.push((Digest::sha256(super::EMPTY), super::EMPTY.to_vec()));
    // Different layers may have equal indexes.
    let mut seen = BTreeSet::new();
    blobs.retain(|(digest, _)| seen.insert(digest.clone()));
    Ok(PublishedManifest { manifest, blobs })
}

fn broken(reason: String) -> OciError {
    OciError::Malformed { what: "published manifest", reason }
}

/// The descriptor of an index, with the annotations that name its layer.
fn index_blob(media_type: &str, layer: &Descriptor, bytes: &[u8]) -> Result<Descriptor, OciError> {
    let mut blob = Descriptor::of(media_type, bytes);
    blob.annotations.insert(LAYER_DIGEST.to_owned(), layer.digest.to_string());
    blob.annotations.insert(LAYER_SIZE.to_owned(), layer.size.to_string());
    check_size(&blob, MAX_INDEX_BLOB)?;
    Ok(blob)
}

fn check_artifact(manifest: &Manifest, artifact_type: &str) -> Result<(), OciError> {
    if manifest.kind() == Some(&MediaType::from(artifact_type)) {
        return Ok(());
    }
    let kind = manifest.kind().map_or("nothing", MediaType::as_written);
    Err(broken(format!("its type is {kind}, not {artifact_type}")))
}

fn check_kind(manifest: &Manifest, artifact_type: &str, subject: &Digest) -> Result<(), OciError> {
    check_artifact(manifest, artifact_type)?;
    match &manifest.subject {
        Some(about) if about.digest == *subject => Ok(()),
        Some(about) => Err(broken(format!("its subject is {}, not {subject}", about.digest))),
        None => Err(broken(format!("it has no subject, expected {subject}"))),
    }
}

fn check_type(blob: &Descriptor, media_type: &str) -> Result<(), OciError> {
    if blob.media_type == MediaType::from(media_type) {
        return Ok(());
    }
    Err(broken(format!("blob {} is {}, not {media_type}", blob.digest, blob.media_type)))
}

fn check_size(blob: &Descriptor, limit: u64) -> Result<(), OciError> {
    if blob.size <= limit {
        return Ok(());
    }
    Err(broken(format!("blob {} has {} bytes, the limit is {limit}", blob.digest, blob.size)))
}

/// Validates an index whose annotations name one of `layers`.
fn checked_index(blob: &Descriptor, layers: &[Descriptor]) -> Result<PublishedIndex, OciError> {
    if blob.media_type != MediaType::from(STREAM_INDEX) {
        check_type(blob, LAYER_INDEX)?;
    }
    check_size(blob, MAX_INDEX_BLOB)?;
    let annotation = |name: &str| {
        let value = blob.annotations.get(name);
        value.ok_or_else(|| broken(format!("index {} has no annotation {name}", blob.digest)))
    };
    let digest: Digest = annotation(LAYER_DIGEST)?
        .parse()
        .map_err(|error: InvalidDigest| broken(format!("annotation {LAYER_DIGEST}: {error}")))?;
    let size = annotation(LAYER_SIZE)?;
    let layer = layers.iter().find(|layer| layer.digest == digest);
    let layer =
        layer.ok_or_else(|| broken(format!("index {} is for {digest}, which is no layer", blob.digest)))?;
    // Compared as text: there is one way to write a size.
    if *size != layer.size.to_string() {
        let size: String = size.chars().take(32).collect();
        return Err(broken(format!(
            "index {} is for {digest} of {size:?} bytes, the layer has {}",
            blob.digest, layer.size
        )));
    }
    Ok(PublishedIndex { layer: digest, blob: blob.clone() })
}

fn all_different(indexes: &[PublishedIndex]) -> Result<(), OciError> {
    let mut seen = BTreeSet::new();
    match indexes.iter().find(|index| !seen.insert(&index.layer)) {
        Some(twice) => Err(broken(format!("two indexes are for {}", twice.layer))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MANIFEST_TYPE, ManifestDocument};
    use super::*;

    fn image() -> (Descriptor, Vec<Descriptor>) {
        let subject = Descriptor::of(MANIFEST_TYPE, b"the image");
        (subject, vec![Descriptor::of("a/tar", b"one layer"), Descriptor::of("a/tar", b"another")])
    }

    fn published() -> PublishedManifest {
        let (subject, layers) = image();
        let mut listed = subject;
        listed.annotations.insert("noise".into(), "of a list".into());
        let indexes = layers.into_iter().zip([b"index 1".to_vec(), b"index 2".to_vec()]).collect();
        publish_indexes(&listed, indexes).unwrap()
    }

    fn parse(bytes: &[u8]) -> Manifest {
        let ManifestDocument::Manifest(manifest) = ManifestDocument::parse(bytes, None).unwrap() else {
            panic!()
        };
        manifest
    }

    #[test]
    fn published_index_is_read_back_equal() {
        let (subject, layers) = image();
        let publication = published();
        let manifest = parse(&publication.manifest.bytes);
        let read = read_indexes(&manifest, &subject.digest, &layers).unwrap();
        assert_eq!(read.len(), 2);
        for (at, content) in [b"index 1", b"index 2"].iter().enumerate() {
            assert_eq!(read[at].layer, layers[at].digest);
            assert_eq!(read[at].blob.digest, Digest::sha256(*content));
        }
        // What is named is there to be pushed: two indexes and the config.
        let named: Vec<&Digest> = manifest.blobs().map(|blob| &blob.digest).collect();
        assert_eq!(publication.blobs.len(), 3);
        assert!(
            publication
                .blobs
                .iter()
                .all(|(digest, bytes)| { named.contains(&digest) && *digest == Digest::sha256(bytes) })
        );
        assert_eq!(manifest.subject, Some(subject), "what only a list says stays out of the manifest");
        assert_eq!(publication, published(), "the same indexes are the same artifact");
    }

    #[test]
    fn a_manifest_that_contradicts_the_image_is_refused_whole() {
        let (subject, layers) = image();
        let good = parse(&published().manifest.bytes);
        type Spoil = fn(&mut Manifest);
        let cases: [(Spoil, &str); 10] = [
            (|it| it.artifact_type = Some(TRACE.into()), "its type is"),
            (|it| it.subject = None, "it has no subject"),
            (|it| it.subject.as_mut().unwrap().digest = Digest::sha256(b"x"), "its subject is sha256:"),
            (|it| it.layers[1].media_type = "a/b".into(), "is a/b, not"),
            (|it| it.layers[1].size = MAX_INDEX_BLOB + 1, "the limit is"),
            (|it| drop(it.layers[1].annotations.remove(LAYER_DIGEST)), "no annotation io.ocifs.layer.digest"),
            (|it| drop(it.layers[1].annotations.remove(LAYER_SIZE)), "no annotation io.ocifs.layer.size"),
            (
                |it| drop(it.layers[1].annotations.insert(LAYER_DIGEST.into(), "sha256:../..".into())),
                "is not of the form",
            ),
            (|it| drop(it.layers[1].annotations.insert(LAYER_SIZE.into(), "+7".into())), "the layer has 7"),
            (|it| it.layers[1] = it.layers[0].clone(), "two indexes are for"),
        ];
        for (spoil, words) in cases {
            let mut manifest = good.clone();
            spoil(&mut manifest);
            let error = read_indexes(&manifest, &subject.digest, &layers).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        let error = read_indexes(&good, &subject.digest, &layers[..1]).unwrap_err().to_string();
        assert!(error.contains("which is no layer"), "{error}");
        let mut at_limit = good;
        at_limit.layers[1].size = MAX_INDEX_BLOB;
        assert!(read_indexes(&at_limit, &subject.digest, &layers).is_ok());
    }

    #[test]
    fn the_index_of_a_layer_is_found_by_its_digest_alone() {
        let (_, layers) = image();
        assert_eq!(layer_tag(&layers[0].digest), format!("sha256-{}", layers[0].digest.encoded()));
        for kind in [LAYER_INDEX, STREAM_INDEX] {
            let publication = publish_layer_index(&layers[0], kind, b"index".to_vec()).unwrap();
            let manifest = parse(&publication.manifest.bytes);
            assert_eq!((manifest.subject.as_ref(), publication.blobs.len()), (None, 2));
            let read = read_layer_index(&manifest, &layers[0]).unwrap();
            assert_eq!((&read.layer, read.blob.media_type), (&layers[0].digest, kind.into()));
            let refused = |layer: &Descriptor| read_layer_index(&manifest, layer).unwrap_err().to_string();
            assert!(refused(&layers[1]).contains("which is no layer"));
            let longer = Descriptor { size: layers[0].size + 1, ..layers[0].clone() };
            assert!(refused(&longer).contains("the layer has"));
        }
        let publication = publish_layer_index(&layers[0], LAYER_INDEX, b"index".to_vec()).unwrap();
        let mut two = parse(&publication.manifest.bytes);
        two.layers.push(two.layers[0].clone());
        assert!(read_layer_index(&two, &layers[0]).unwrap_err().to_string().contains("2 entries"));
        two.layers.pop();
        two.artifact_type = Some(TRACE.into());
        assert!(read_layer_index(&two, &layers[0]).unwrap_err().to_string().contains("its type is"));
        let mut beside = parse(&published().manifest.bytes);
        beside.layers[0].media_type = STREAM_INDEX.into();
        let (subject, layers) = image();
        assert!(read_indexes(&beside, &subject.digest, &layers).is_err(), "names are needed there");
    }

    #[test]
    fn nothing_inconsistent_is_published() {
        let (subject, layers) = image();
        assert!(publish_indexes(&subject, Vec::new()).is_err());
        let twice = vec![(layers[0].clone(), vec![1]), (layers[0].clone(), vec![2])];
        assert!(publish_indexes(&subject, twice).unwrap_err().to_string().contains("two indexes"));
        // Equal indexes of different layers are one blob.
        let same = vec![(layers[0].clone(), vec![1]), (layers[1].clone(), vec![1])];
        assert_eq!(publish_indexes(&subject, same).unwrap().blobs.len(), 2);
    }

    #[test]
    fn a_trace_is_one_blob_of_its_kind() {
        let (subject, _) = image();
        let publication = publish_trace(&subject, b"{\"reads\":[]}".to_vec()).unwrap();
        let mut manifest = parse(&publication.manifest.bytes);
        let blob = read_trace(&manifest, &subject.digest).unwrap();
        assert_eq!(blob.digest, Digest::sha256(b"{\"reads\":[]}"));
        assert!(read_trace(&manifest, &Digest::sha256(b"other")).is_err());
        assert!(read_indexes(&manifest, &subject.digest, &[]).is_err());
        manifest.layers.push(blob);
        assert!(read_trace(&manifest, &subject.digest).unwrap_err().to_string().contains("one blob, not 2"));
        assert!(publish_trace(&subject, vec![b' '; MAX_DOCUMENT as usize]).is_ok());
        assert!(publish_trace(&subject, vec![b' '; MAX_DOCUMENT as usize + 1]).is_err());
    }
}
