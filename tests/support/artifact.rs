//! Pushes artifacts the way `oras push` does: blobs with titles and a manifest with an artifact type.

use serde_json::{Map, Value, json};

use crate::byte_text::digest_of;
use crate::fault_registry::FaultRegistry;
use crate::layout::{INDEX, Layout, MANIFEST};
use crate::real_registry::RealRegistry;

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

/// A blob as a manifest names it.
#[derive(Clone)]
pub(crate) struct Blob {
    /// The label, which may lie.
    pub(crate) media_type: String,
    /// The stored bytes.
    pub(crate) bytes: Vec<u8>,
    annotations: Map<String, Value>,
    fields: Map<String, Value>,
}

impl Blob {
    /// A blob without a title.
    pub(crate) fn new(media_type: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let (annotations, fields) = (Map::new(), Map::new());
        Self { media_type: media_type.to_owned(), bytes: bytes.into(), annotations, fields }
    }

    /// With `org.opencontainers.image.title`.
    pub(crate) fn titled(self, title: &str) -> Self {
        self.note("org.opencontainers.image.title", title)
    }

    /// With an annotation.
    pub(crate) fn note(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// With a property of the descriptor that the specification does not know.
    pub(crate) fn field(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(key.to_owned(), value.into());
        self
    }

    /// `sha256:...`.
    pub(crate) fn digest(&self) -> String {
        digest_of(&self.bytes)
    }

    /// The start of the digest that names of ours have.
    pub(crate) fn short(&self) -> String {
        short(&self.bytes)
    }

    /// The size of the stored bytes.
    pub(crate) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn descriptor(&self) -> Value {
        let mut descriptor =
            json!({"mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len()});
        if !self.annotations.is_empty() {
            descriptor["annotations"] = Value::Object(self.annotations.clone());
        }
        for (key, value) in &self.fields {
            descriptor[key] = value.clone();
        }
        descriptor
    }
}

/// Twelve hex digits of a digest.
pub(crate) fn short(bytes: &[u8]) -> String {
    digest_of(bytes)["sha256:".len()..][..12].to_owned()
}

/// The media type of docker's manifests.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A manifest that is being written.
#[derive(Clone)]
pub(crate) struct Shape {
    media_type: &'static str,
    written_type: bool,
    artifact_type: Option<String>,
    config: Blob,
    layers: Vec<Blob>,
    annotations: Map<String, Value>,
    subject: Option<Value>,
}

impl Shape {
    /// What `oras push --artifact-type KIND` makes: an empty config.
    pub(crate) fn artifact(kind: &str) -> Self {
        let mut shape = Self::of(EMPTY.0, EMPTY.1);
        shape.artifact_type = Some(kind.to_owned());
        shape
    }

    /// A manifest with a config that says what it is.
    pub(crate) fn of(config_type: &str, config: impl Into<Vec<u8>>) -> Self {
        Self {
            media_type: MANIFEST,
            written_type: true,
            artifact_type: None,
            config: Blob::new(config_type, config),
            layers: Vec::new(),
            annotations: Map::new(),
            subject: None,
        }
    }

    /// One more layer.
    pub(crate) fn layer(mut self, layer: &Blob) -> Self {
        self.layers.push(layer.clone());
        self
    }

    /// More layers.
    pub(crate) fn layers<'a>(mut self, layers: impl IntoIterator<Item = &'a Blob>) -> Self {
        self.layers.extend(layers.into_iter().cloned());
        self
    }

    /// With an annotation of the manifest.
    pub(crate) fn note(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// With an artifact type beside the config.
    pub(crate) fn kind(mut self, kind: &str) -> Self {
        self.artifact_type = Some(kind.to_owned());
        self
    }

    /// With a title on the config.
    pub(crate) fn config_titled(mut self, title: &str) -> Self {
        self.config = self.config.titled(title);
        self
    }

    /// About another manifest.
    pub(crate) fn about(mut self, subject: &Packed) -> Self {
        self.subject = Some(subject.descriptor());
        self
    }

    /// In docker's form.
    pub(crate) fn docker(mut self) -> Self {
        self.media_type = DOCKER_MANIFEST;
        self
    }

    /// Without `mediaType`, as image-spec allows: only the registry says what it is.
    pub(crate) fn untyped(mut self) -> Self {
        self.written_type = false;
        self
    }

    /// The document and its blobs.
    pub(crate) fn pack(self) -> Packed {
        let mut document = json!({"schemaVersion": 2});
        if self.written_type {
            document["mediaType"] = self.media_type.into();
        }
        if let Some(kind) = self.artifact_type {
            document["artifactType"] = kind.into();
        }
        document["config"] = self.config.descriptor();
        document["layers"] = self.layers.iter().map(Blob::descriptor).collect();
        if let Some(subject) = self.subject {
            document["subject"] = subject;
        }
        if !self.annotations.is_empty() {
            document["annotations"] = Value::Object(self.annotations);
        }
        Packed {
            media_type: self.media_type,
            bytes: document.to_string().into_bytes(),
            blobs: std::iter::once(self.config).chain(self.layers).collect(),
            below: Vec::new(),
            has_config: true,
        }
    }
}

/// An index that is being written.
#[derive(Default)]
pub(crate) struct Bundle {
    entries: Vec<Value>,
    below: Vec<Packed>,
    kind: Option<String>,
    untyped: bool,
}

impl Bundle {
    /// One more entry; `more` are the properties that its descriptor has beside the usual ones: `platform`, `annotations`.
    pub(crate) fn entry(mut self, document: &Packed, more: Value) -> Self {
        let mut descriptor = document.descriptor();
        for (key, value) in more.as_object().into_iter().flatten() {
            descriptor[key] = value.clone();
        }
        self.entries.push(descriptor);
        self.below.push(document.clone());
        self
    }

    /// An entry that names what need not be there.
    pub(crate) fn raw_entry(mut self, descriptor: Value) -> Self {
        self.entries.push(descriptor);
        self
    }

    /// With an artifact type.
    pub(crate) fn kind(mut self, kind: &str) -> Self {
        self.kind = Some(kind.to_owned());
        self
    }

    /// Without `mediaType`.
    pub(crate) fn untyped(mut self) -> Self {
        self.untyped = true;
        self
    }

    /// The document and everything below it.
    pub(crate) fn pack(self) -> Packed {
        let mut document = json!({"schemaVersion": 2});
        if !self.untyped {
            document["mediaType"] = INDEX.into();
        }
        if let Some(kind) = self.kind {
            document["artifactType"] = kind.into();
        }
        document["manifests"] = self.entries.into();
        Packed {
            media_type: INDEX,
            bytes: document.to_string().into_bytes(),
            blobs: Vec::new(),
            below: self.below,
            has_config: false,
        }
    }
}

/// A document with everything that it names.
#[derive(Clone)]
pub(crate) struct Packed {
    /// What the registry says it is.
    pub(crate) media_type: &'static str,
    /// The document.
    pub(crate) bytes: Vec<u8>,
    /// Its blobs, the config first.
    pub(crate) blobs: Vec<Blob>,
    below: Vec<Packed>,
    has_config: bool,
}

impl Packed {
    /// `sha256:...`.
    pub(crate) fn digest(&self) -> String {
        digest_of(&self.bytes)
    }

    /// As an index or a subject names it.
    pub(crate) fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len()})
    }

    /// The config of a manifest.
    pub(crate) fn config(&self) -> Option<&Blob> {
        self.blobs.first().filter(|_| self.has_config)
    }

    /// Stores everything, what is named first.
    pub(crate) fn push(&self, store: &dyn Store, repo: &str, tag: &str) {
        for below in &self.below {
            below.push(store, repo, &below.digest());
        }
        for blob in &self.blobs {
            store.put_blob(repo, &blob.bytes);
        }
        store.put_document(repo, tag, self.media_type, &self.bytes);
    }
}

/// Where artifacts are pushed to.
pub(crate) trait Store {
    /// Stores a blob.
    fn put_blob(&self, repo: &str, bytes: &[u8]);
    /// Stores a document under a tag or its digest.
    fn put_document(&self, repo: &str, tag: &str, media_type: &str, bytes: &[u8]);
}

impl Store for RealRegistry {
    fn put_blob(&self, repo: &str, bytes: &[u8]) {
        self.push_blob(repo, bytes);
    }

    fn put_document(&self, repo: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        self.push_manifest(repo, tag, media_type, bytes);
    }
}

impl Store for FaultRegistry {
    fn put_blob(&self, _repo: &str, bytes: &[u8]) {
        self.push_blob(bytes);
    }

    fn put_document(&self, repo: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        self.push_manifest(repo, tag, media_type, bytes);
    }
}
