//! Pushes artifacts the way `oras push` does: blobs with titles and a manifest with an artifact type.

use serde_json::{Map, Value, json};

use crate::layout::{Layout, MANIFEST};
use crate::real_registry::{RealRegistry, digest_of};

/// The artifact type of a cocoon disk.
pub(crate) const OS_IMAGE: &str = "application/vnd.cocoonstack.os-image.v1+json";
/// One piece of a cut qcow2.
pub(crate) const QCOW2_PART: &str = "application/vnd.cocoonstack.disk.qcow2.part";
/// A whole qcow2.
pub(crate) const QCOW2: &str = "application/vnd.cocoonstack.disk.qcow2";
/// The config of an artifact that has none (image-spec, "Guidance for an empty descriptor").
pub(crate) const EMPTY: (&str, &[u8]) = ("application/vnd.oci.empty.v1+json", b"{}");

/// One file of an artifact.
pub(crate) struct Piece {
    /// `org.opencontainers.image.title`.
    pub(crate) title: String,
    /// The label.
    pub(crate) media_type: &'static str,
    /// The content.
    pub(crate) bytes: Vec<u8>,
}

impl Piece {
    /// A file with a title.
    pub(crate) fn new(title: &str, media_type: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { title: title.to_owned(), media_type, bytes: bytes.into() }
    }
}

/// The manifest of these pieces, in this order.
pub(crate) fn manifest(artifact_type: &str, pieces: &[Piece]) -> Vec<u8> {
    let layers: Vec<Value> = pieces.iter().map(descriptor).collect();
    let document = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": {"mediaType": EMPTY.0, "digest": digest_of(EMPTY.1), "size": EMPTY.1.len()},
        "layers": layers,
        "annotations": {"org.opencontainers.image.created": "2024-05-06T07:08:09Z"},
    });
    document.to_string().into_bytes()
}

/// Pushes them to a registry; the answer is the manifest's digest.
pub(crate) fn push(registry: &RealRegistry, repo: &str, tag: &str, kind: &str, pieces: &[Piece]) -> String {
    registry.push_blob(repo, EMPTY.1);
    for piece in pieces {
        registry.push_blob(repo, &piece.bytes);
    }
    registry.push_manifest(repo, tag, MANIFEST, &manifest(kind, pieces))
}

/// Writes them into a layout; the answer is the manifest's digest.
pub(crate) fn write(layout: &mut Layout, tag: &str, artifact_type: &str, pieces: &[Piece]) -> String {
    layout.blob(EMPTY.0, EMPTY.1);
    for piece in pieces {
        layout.blob(piece.media_type, &piece.bytes);
    }
    layout.document(tag, MANIFEST, &manifest(artifact_type, pieces))
}

fn descriptor(piece: &Piece) -> Value {
    let mut annotations = Map::new();
    if !piece.title.is_empty() {
        annotations.insert("org.opencontainers.image.title".into(), piece.title.as_str().into());
    }
    json!({
        "mediaType": piece.media_type,
        "digest": digest_of(&piece.bytes),
        "size": piece.bytes.len(),
        "annotations": annotations,
    })
}
