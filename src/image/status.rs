//! Status of an opened image: the content of `.ocifs/status.json`.

use serde::{Deserialize, Serialize};

use crate::cache::{ByteExtents, VerificationState};
use crate::io::{ByteRange, ReadAt as _, VerifiedLevel, lock};
use crate::layer::{LayerState, StoredLayer};
use crate::oci::{Descriptor, Digest, MediaType};

use super::OpenImage;

/// A snapshot of the state of a mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// Version of this format.
    pub schema_version: u32,
    /// The reference with its digest.
    pub reference: String,
    /// Artifact type; for a container image the media type of its config, for an index its own media type.
    pub kind: String,
    /// Whether the mount still waits for its registry. Until then only errors are known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waiting: bool,
    /// The mounted part, in the words of the command line; empty for the whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
    /// How the mount is served, where --kernel is on or auto; `None` otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_by: Option<String>,
    /// SHA-256 of the SubjectPublicKeyInfo of the key that signed it; `None` unless a signature was required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<Digest>,
    /// One entry per blob of the manifest.
    pub blobs: Vec<BlobStatus>,
    /// One entry per archive layer, and per unpacked part of a disk.
    pub layers: Vec<LayerStatus>,
    /// The first thousand paths where archives conflict.
    pub conflicts: Vec<String>,
    /// Deviations from the author's intent, with the reasons.
    pub warnings: Vec<String>,
    /// The last errors that readers received, oldest first.
    pub errors: Vec<String>,
    /// One entry per document that is shown in a directory of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberStatus>,
}

/// One document shown next to the root's image. The status of its content is in its own directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Its directory.
    pub directory: String,
    /// Its digest.
    pub digest: Digest,
    /// `shown`, `an index`, or the reason why it is not shown.
    pub state: String,
}

impl ImageStatus {
    /// The status of a mount that could not resolve `reference` yet, with the error of the last attempt.
    pub fn waiting(reference: String, scope: String, error: Option<String>) -> Self {
        let errors = error.into_iter().collect();
        Self { waiting: true, scope, errors, ..Self::empty(reference, None) }
    }

    /// The status of a reference whose root shows no image.
    pub(super) fn empty(reference: String, kind: Option<&MediaType>) -> Self {
        Self {
            schema_version: 1,
            reference,
            kind: kind.map(|kind| kind.as_written().to_owned()).unwrap_or_default(),
            waiting: false,
            scope: String::new(),
            served_by: None,
            signed_by: None,
            blobs: Vec::new(),
            layers: Vec::new(),
            conflicts: Vec::new(),
            warnings: Vec::new(),
            errors: Vec::new(),
            members: Vec::new(),
        }
    }
}

/// One blob.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlobStatus {
    /// Its digest.
    pub digest: Digest,
    /// Media type.
    pub media_type: String,
    /// Stored bytes.
    pub size: u64,
    /// Stored bytes that the cache has.
    pub cached: u64,
    /// Bytes that this process served to readers.
    pub served: u64,
    /// Bytes that this process received from the source.
    pub fetched: u64,
    /// How much of it was compared with its digest: none, partial, full.
    pub verified: String,
    /// `partial`, `complete`, `verified`, `poisoned`; or the reason why it is not served.
    pub state: String,
    /// The parts that are cached, and those that were read; `None` if the blob is embedded or cannot be opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extents: Option<ExtentsStatus>,
}

/// Parts of a blob, as `[start, end)` in bytes, in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExtentsStatus {
    /// Unit of the parts in bytes: a unit that is partly cached or partly read counts as a whole.
    pub unit: u64,
    /// Cached parts.
    pub cached: Vec<(u64, u64)>,
    /// Parts that this process served to readers.
    pub read: Vec<(u64, u64)>,
}

impl From<ByteExtents> for ExtentsStatus {
    fn from(extents: ByteExtents) -> Self {
        let pairs = |ranges: Vec<ByteRange>| ranges.iter().map(|range| (range.start, range.end)).collect();
        Self { unit: extents.unit, cached: pairs(extents.cached), read: pairs(extents.read) }
    }
}

/// One archive layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerStatus {
    /// Its number in the manifest.
    pub layer: usize,
    /// Its digest.
    pub digest: Digest,
    /// `untouched`, `streaming`, `indexed`, `failed`.
    pub mode: String,
    /// Explanation of the mode, or the error.
    pub why: String,
    /// Kind of its index; `None` until it is indexed.
    pub index: Option<String>,
    /// Encoding; `None` until it is known, and for an uncompressed part of a disk.
    pub encoding: Option<String>,
    /// Bytes of the uncompressed stream: all of them when indexed, those so far when streaming.
    pub stream_bytes: Option<u64>,
    /// Number of extended attributes that are omitted, because Linux has no such namespace.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unshown_xattrs: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl OpenImage {
    /// Takes a snapshot. Reads nothing.
    pub fn status(&self) -> ImageStatus {
        ImageStatus {
            blobs: self.manifest().blobs().map(|descriptor| self.blob_status(descriptor)).collect(),
            layers: self.layer_statuses(),
            conflicts: self.conflicts().map(|conflicts| conflicts.paths.clone()).unwrap_or_default(),
            warnings: self.warnings(),
            errors: self.errors(),
            ..ImageStatus::empty(self.pinned().to_owned(), self.manifest().kind())
        }
    }

    /// The last errors that readers received, oldest first.
    pub(super) fn errors(&self) -> Vec<String> {
        lock(&self.errors).iter().cloned().collect()
    }

    /// Archives, and opened parts of disks.
    fn layer_statuses(&self) -> Vec<LayerStatus> {
        let digest = |at: usize| &self.manifest().layers[at].digest;
        let mut layers: Vec<_> = self
            .every_archive()
            .map(|(at, layer)| layer_status(at, digest(at), layer, LayerHolds::Archive))
            .collect();
        let unpacking = self.unpacking();
        layers.extend(
            unpacking.iter().map(|(at, layer)| layer_status(*at, digest(*at), layer, LayerHolds::Disk)),
        );
        layers
    }

    fn blob_status(&self, descriptor: &Descriptor) -> BlobStatus {
        let mut extents = None;
        let (cached, served, fetched, verified, state) = if descriptor.data.is_some() {
            (descriptor.size, 0, 0, VerifiedLevel::Full, "embedded in the manifest".to_owned())
        } else {
            match self.cached(descriptor) {
                Ok(blob) => {
                    extents = Some(blob.extents().into());
                    let state = state(blob.state()).to_owned();
                    (blob.bytes_present(), blob.served(), blob.fetched(), blob.verified(), state)
                }
                Err(error) => (0, 0, 0, VerifiedLevel::None, error.chain()),
            }
        };
        BlobStatus {
            digest: descriptor.digest.clone(),
            media_type: descriptor.media_type.as_written().to_owned(),
            size: descriptor.size,
            cached,
            served,
            fetched,
            verified: verified.to_string(),
            state,
            extents,
        }
    }

    /// All deviations from the author's intent.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        warnings.extend(self.incomplete.get().cloned());
        warnings.extend(self.contents().reports.iter().cloned());
        warnings.extend(self.detection().problems.iter().map(ToString::to_string));
        warnings.extend(self.detection().warnings.iter().cloned());
        warnings.extend(lock(&self.left_out).iter().cloned());
        warnings.extend(self.repositories.iter().flat_map(|repositories| repositories.warnings()));
        if let Some(conflicts) = self.conflicts() {
            let left_out = &conflicts.left_out;
            if conflicts.count > 0 {
                let number = conflicts.number();
                warnings.push(format!(
                    "several archives have different files at {number}, and the later is shown"
                ));
            }
            warnings.extend(
                left_out.iter().map(|path| format!("{path}: a hard link without a target is not in merged/")),
            );
        }
        let unpacking = self.unpacking();
        for (at, layer) in self.every_archive().chain(unpacking.iter().map(|(at, layer)| (*at, &**layer))) {
            warnings.extend(layer.warnings().into_iter().map(|warning| format!("layer {at}: {warning}")));
        }
        let blobs = lock(&self.blobs);
        let mut poisoned: Vec<_> =
            blobs.values().filter(|blob| blob.state() == VerificationState::Poisoned).collect();
        poisoned.sort_unstable_by_key(|blob| blob.digest().as_str());
        warnings.extend(poisoned.iter().map(|blob| {
            format!("blob {}: its bytes differ from its digest, reads of it fail", blob.digest())
        }));
        drop(blobs);
        for at in 0..self.detection().disks.len() {
            if let Some(refusal) = self.inspected(at).and_then(|inspection| inspection.refusal.as_ref()) {
                warnings.push(format!("disk {}: {refusal}", self.detection().disks[at].name));
            }
        }
        warnings
    }
}

fn state(state: VerificationState) -> &'static str {
    match state {
        VerificationState::Partial => "partial",
        VerificationState::Complete => "complete",
        VerificationState::Verified => "verified",
        VerificationState::Poisoned => "poisoned",
    }
}

/// The content that is packed in a layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LayerHolds {
    Archive,
    Disk,
}

fn layer_status(layer: usize, digest: &Digest, opened: &StoredLayer, holds: LayerHolds) -> LayerStatus {
    let status = |mode: &str, why: String, encoding: Option<String>, stream_bytes| LayerStatus {
        layer,
        digest: digest.clone(),
        mode: mode.to_owned(),
        why,
        index: match opened.state() {
            LayerState::Indexed { kind, .. } => Some(kind.to_string()),
            LayerState::Untouched | LayerState::Streaming | LayerState::Failed(_) => None,
        },
        encoding,
        stream_bytes,
        unshown_xattrs: opened.unshown_xattrs(),
    };
    match opened.state() {
        LayerState::Untouched => {
            let why = match holds {
                LayerHolds::Archive => "its table of contents is read when its first name is needed",
                LayerHolds::Disk => "it is unpacked when its size or its bytes are needed",
            };
            status("untouched", why.into(), None, None)
        }
        LayerState::Streaming => {
            let why =
                "one pass over its stored bytes is running; lookups of unknown names wait for its end".into();
            status("streaming", why, None, Some(opened.decoded()))
        }
        LayerState::Indexed { encoding, stream_size, spans, .. } => {
            let why = match spans {
                1 if encoding == crate::layer::StreamEncoding::Plain => "stored uncompressed: a read fetches just its blocks".into(),
                1 => "one compressed unit: decoded once into the cache, and again from its start if that is lost".to_owned(),
                spans => format!("{spans} places where decoding can start"),
            };
            let encoding = match holds {
                LayerHolds::Archive => Some(encoding.to_string()),
                LayerHolds::Disk => encoding.compression().map(str::to_owned),
            };
            status("indexed", why, encoding, Some(stream_size))
        }
        LayerState::Failed(error) => status("failed", error.chain(), None, None),
    }
}
