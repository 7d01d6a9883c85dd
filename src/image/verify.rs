//! Verification of everything that a reference names.
//!
//! Verification serves no bytes, and continues after a mismatch. Every claim of a document about other bytes is
//! checked: digests of documents and blobs, of uncompressed content, of parts, and the checksum lists of the
//! artifact. Cached content is hashed like any other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::Serialize;

use crate::artifact::FileBody;
use crate::disk::DiskBody;
use crate::io::{ByteRange, FaultClass, ReadAt as _, ReadError, SharedReader, compute, read_vec};
use crate::layer::{IndexPolicy, LayerOptions, StoredLayer};
use crate::oci::{Descriptor, Digest, HashAlgorithm, Hasher, ImageConfig, MAX_DOCUMENT};

use super::checksum_files::{self, MAX_SUMS};
use super::published_indexes::small_blob;
use super::{ImageSet, OpenImage};

/// Bytes hashed at once.
const VERIFY_READ_BYTES: u64 = 4 * 1024 * 1024;

/// One comparison.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyCheck {
    /// `document`, `blob`, `content` (uncompressed), `parts` (an index that the layer carries), `checksum` (of a list), or
    /// `referrers` (a list of them that cannot be read).
    pub kind: &'static str,
    /// Digest or path.
    pub subject: String,
    /// Result.
    pub result: CheckOutcome,
    /// The difference, or the reason why it could not be compared; `None` if it matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The party at fault; `None` if it matches or was skipped.
    #[serde(skip)]
    pub fault: Option<FaultClass>,
}

/// Result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckOutcome {
    /// It matches.
    Ok,
    /// It does not match.
    Mismatch,
    /// It could not be read.
    Unreadable,
    /// The comparison is impossible: a list names a missing file, or the algorithm is unknown.
    Skipped,
}

impl VerifyCheck {
    fn ok(kind: &'static str, subject: impl Into<String>) -> Self {
        Self { kind, subject: subject.into(), result: CheckOutcome::Ok, detail: None, fault: None }
    }

    fn differs(self, detail: String) -> Self {
        Self {
            result: CheckOutcome::Mismatch,
            detail: Some(detail),
            fault: Some(FaultClass::Mismatch),
            ..self
        }
    }

    fn skipped(self, detail: &str) -> Self {
        Self { result: CheckOutcome::Skipped, detail: Some(detail.into()), ..self }
    }

    fn failed(self, error: &ReadError) -> Self {
        if error.fault() == FaultClass::Mismatch {
            return self.differs(error.chain());
        }
        let (detail, fault) = (Some(error.chain()), Some(error.fault()));
        Self { result: CheckOutcome::Unreadable, detail, fault, ..self }
    }

    fn compared(self, expected: &Digest, actual: Option<&Digest>) -> Self {
        match actual {
            Some(actual) if actual == expected => self,
            Some(actual) => self.differs(format!("it hashes to {actual}, not to {expected}")),
            None => self.skipped("the algorithm of its digest cannot be checked"),
        }
    }
}

impl ImageSet {
    /// Compares everything, and passes each result to the callback.
    pub async fn verify(&self, report: &mut (dyn FnMut(VerifyCheck) + Send)) {
        if let Some(bytes) = &self.index {
            report(document(&self.digest, bytes));
        }
        for member in &self.members {
            if let Some(bytes) = &member.index {
                report(document(&member.digest, bytes));
            }
            if let (Some(failure), None) = (&member.failure, &member.image) {
                let error = ReadError::new(FaultClass::Unavailable, failure.clone());
                report(VerifyCheck::ok("document", member.digest.as_str()).failed(&error));
            }
        }
        for (subject, error) in &self.unlisted {
            report(VerifyCheck::ok("referrers", subject.as_str()).failed(error));
        }
        let mut seen = HashSet::new();
        for image in self.images() {
            image.verify(&mut seen, report).await;
        }
    }
}

fn document(digest: &Digest, bytes: &[u8]) -> VerifyCheck {
    VerifyCheck::ok("document", digest.as_str()).compared(digest, digest.same_algorithm(bytes).as_ref())
}

impl OpenImage {
    async fn verify(
        self: &Arc<Self>,
        seen: &mut HashSet<Digest>,
        report: &mut (dyn FnMut(VerifyCheck) + Send),
    ) {
        if let Some(bytes) = &self.manifest_bytes {
            report(document(&self.manifest_digest, bytes));
        }
        let mut broken = HashSet::new();
        for descriptor in self.manifest.blobs() {
            if !seen.insert(descriptor.digest.clone()) {
                continue;
            }
            let check = self.verify_blob(descriptor).await;
            if check.result != CheckOutcome::Ok {
                broken.insert(descriptor.digest.clone());
            }
            report(check);
        }
        // Content derived from wrong stored bytes is wrong as well.
        let is_whole = |at: usize| !broken.contains(&self.manifest.layers[at].digest);
        let mut done = HashSet::new();
        for (at, expected) in self.expected_contents(report).await {
            if is_whole(at) && done.insert((at, expected.clone())) {
                report(self.verify_content(at, &expected).await);
            }
        }
        let compared: HashSet<usize> = done.into_iter().map(|(at, _)| at).collect();
        for (at, layer) in self.every_archive().filter(|(at, _)| !compared.contains(at)) {
            if is_whole(at) && matches!(layer.compression().await, Ok(None)) {
                // Its uncompressed bytes are the stored ones.
                continue;
            }
            let reason = match is_whole(at) {
                true => "no document names the digest of its uncompressed bytes",
                false => "its stored bytes are not those of its digest",
            };
            report(self.content_check(at).skipped(reason));
        }
        for (at, layer) in self.every_archive().filter(|(at, _)| is_whole(*at)) {
            let subject = format!("layer {at} ({})", self.manifest.layers[at].digest);
            match layer.check_carried().await {
                Ok(None) => {}
                Ok(Some(verdict)) => {
                    let check = VerifyCheck::ok("parts", subject);
                    report(match verdict {
                        Ok(()) => check,
                        Err(why) => check.differs(why),
                    });
                }
                Err(error) => report(VerifyCheck::ok("parts", subject).failed(&error)),
            }
        }
        self.verify_lists(report).await;
    }

    async fn verify_blob(&self, descriptor: &Descriptor) -> VerifyCheck {
        let check = VerifyCheck::ok("blob", descriptor.digest.as_str());
        if let Some(data) = &descriptor.data {
            let data: &[u8] = data.as_ref();
            return check.compared(&descriptor.digest, descriptor.digest.same_algorithm(data).as_ref());
        }
        let Some(algorithm) = descriptor.digest.algorithm() else {
            return check.compared(&descriptor.digest, None);
        };
        let hashed = async {
            let blob = self.cached(descriptor)?;
            // Fetches ranges concurrently, where sequential reads would wait for each.
            blob.ensure(ByteRange::new(0, blob.size())).await?;
            hash(&(blob as SharedReader), algorithm).await
        };
        match hashed.await {
            Ok(actual) => check.compared(&descriptor.digest, Some(&actual)),
            Err(error) => check.failed(&error),
        }
    }

    /// Expected digests of the layers' uncompressed bytes: from the config of a container image, and from artifacts.
    async fn expected_contents(&self, report: &mut (dyn FnMut(VerifyCheck) + Send)) -> Vec<(usize, Digest)> {
        let mut expected = Vec::new();
        if let Some(config) =
            self.manifest.config.as_ref().filter(|config| config.media_type.is_image_config())
        {
            let check = VerifyCheck::ok("content", format!("config {}", config.digest));
            match small_blob(&self.cache, &*self.source, config, MAX_DOCUMENT).await {
                Ok(bytes) => match ImageConfig::parse(&bytes) {
                    Ok(parsed) => {
                        let (ids, layers) = (parsed.diff_ids.len(), self.manifest.layers.len());
                        if ids == layers {
                            expected.extend(parsed.diff_ids.into_iter().enumerate());
                        } else if ids > 0 {
                            report(check.differs(format!(
                                "it names the content of {ids} layers, the manifest has {layers}"
                            )));
                        }
                    }
                    // An artifact may have an empty config of that type.
                    Err(error) => report(check.skipped(&error.to_string())),
                },
                Err(error) => report(check.failed(&error)),
            }
        }
        for file in &self.contents.files {
            if let FileBody::Tree(tree) = &file.body
                && let Some(content) = &tree.content
            {
                expected.push((tree.layer, content.clone()));
            }
        }
        for plan in &self.detection().disks {
            if let DiskBody::Parts(parts) = &plan.body {
                expected.extend(parts.iter().filter_map(|part| Some((part.layer, part.content.clone()?))));
            }
        }
        expected
    }

    fn content_check(&self, at: usize) -> VerifyCheck {
        VerifyCheck::ok("content", format!("layer {at} ({})", self.manifest.layers[at].digest))
    }

    /// Compares the stream that readers of the layer receive: the cached part, and the rest as it is decoded now.
    async fn verify_content(&self, at: usize, expected: &Digest) -> VerifyCheck {
        let descriptor = &self.manifest.layers[at];
        let check = self.content_check(at);
        let Some(algorithm) = expected.algorithm() else { return check.compared(expected, None) };
        let hashed = async {
            let hints = LayerOptions {
                policy: IndexPolicy::Local,
                annotations: descriptor.annotations.clone(),
                ..LayerOptions::default()
            };
            let (blob, cache) = (self.cached(descriptor)?, self.cache.clone());
            let layer = match self.archive(at) {
                Some(_) => StoredLayer::new(blob, cache, hints),
                None => StoredLayer::packed(blob, cache, hints),
            };
            layer.index().await?;
            let served = layer.as_served();
            hash(
                &served.ok_or_else(|| ReadError::new(FaultClass::Io, "a layer without a stream"))?,
                algorithm,
            )
            .await
        };
        match hashed.await {
            Ok(actual) => check.compared(expected, Some(&actual)),
            Err(error) => check.failed(&error),
        }
    }

    /// Compares files and disks with the checksum lists in `files/`.
    async fn verify_lists(self: &Arc<Self>, report: &mut (dyn FnMut(VerifyCheck) + Send)) {
        // A list may name a file several times, and several lists may name the same file.
        let mut hashes: HashMap<(String, &'static str), Result<Digest, ReadError>> = HashMap::new();
        for at in 0..self.contents.files.len() {
            let path = self.contents.files[at].path.clone();
            if !checksum_files::is_list(&path) {
                continue;
            }
            let check = VerifyCheck::ok("checksum", format!("files/{path}"));
            let bytes = match self.list(at).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    report(check.failed(&error));
                    continue;
                }
            };
            for line in checksum_files::parse(&path, &bytes) {
                let named = self.named(&line.path);
                if named.is_empty() {
                    report(
                        VerifyCheck::ok("checksum", line.path.clone())
                            .skipped(&format!("{path} names it, and it is missing")),
                    );
                }
                let (algorithm, label) = match line.digest.algorithm() {
                    Some(HashAlgorithm::Sha512) => (HashAlgorithm::Sha512, "sha512"),
                    _ => (HashAlgorithm::Sha256, "sha256"),
                };
                for target in named {
                    let shown = target.shown(self);
                    let key = (shown.clone(), label);
                    let actual = match hashes.get(&key) {
                        Some(known) => known.clone(),
                        None => {
                            let hashed = async { hash(&target.open(self).await?, algorithm).await };
                            let hashed = hashed.await;
                            hashes.insert(key, hashed.clone());
                            hashed
                        }
                    };
                    let check = VerifyCheck::ok("checksum", format!("{shown} (by {path})"));
                    report(match actual {
                        Ok(actual) => check.compared(&line.digest, Some(&actual)),
                        Err(error) => check.failed(&error),
                    });
                }
            }
        }
    }

    async fn list(self: &Arc<Self>, at: usize) -> Result<Vec<u8>, ReadError> {
        let bytes = ChecksumTarget::File(at).open(self).await?;
        if bytes.size() > MAX_SUMS {
            let message = format!("it has {} bytes, the limit is {MAX_SUMS}", bytes.size());
            return Err(ReadError::new(FaultClass::Unsupported, message));
        }
        read_vec(&*bytes, ByteRange::new(0, bytes.size())).await
    }

    /// The file at that path, and the disk of that name unless it is the same file.
    fn named(&self, path: &str) -> Vec<ChecksumTarget> {
        let is_file = |body: &FileBody| !matches!(body, FileBody::Tree(_));
        let file = self.contents.files.iter().position(|file| file.path == path && is_file(&file.body));
        let name = path.rsplit('/').next().unwrap_or_default();
        let is_it = |body: &DiskBody| match (body, file.map(|at| &self.contents.files[at].body)) {
            (DiskBody::File { layer }, Some(FileBody::Layer(of) | FileBody::Sparse { layer: of, .. })) => {
                layer == of
            }
            _ => false,
        };
        let disk = self.detection().disks.iter().position(|plan| plan.name == name && !is_it(&plan.body));
        file.map(ChecksumTarget::File).into_iter().chain(disk.map(ChecksumTarget::Disk)).collect()
    }
}

/// The file or disk that a line of a list names.
#[derive(Clone, Copy)]
enum ChecksumTarget {
    File(usize),
    Disk(usize),
}

impl ChecksumTarget {
    fn shown(self, image: &OpenImage) -> String {
        match self {
            ChecksumTarget::File(at) => format!("files/{}", image.contents.files[at].path),
            ChecksumTarget::Disk(at) => format!("disk/{}", image.detection().disks[at].name),
        }
    }

    async fn open(self, image: &Arc<OpenImage>) -> Result<SharedReader, ReadError> {
        let at = match self {
            ChecksumTarget::Disk(at) => return image.disk(at).await,
            ChecksumTarget::File(at) => at,
        };
        match (&image.contents.files[at].body, &image.manifest.config) {
            (FileBody::Layer(layer), _) => image.blob(&image.manifest.layers[*layer]),
            (FileBody::Config, Some(config)) => image.blob(config),
            _ => image.artifact_file(at),
        }
    }
}

/// The digest of all of `bytes`.
async fn hash(bytes: &SharedReader, algorithm: HashAlgorithm) -> Result<Digest, ReadError> {
    let mut hasher = Hasher::new(algorithm);
    let mut at = 0;
    while at < bytes.size() {
        let range = ByteRange::new(at, bytes.size().min(at.saturating_add(VERIFY_READ_BYTES)));
        let step = read_vec(&**bytes, range).await?;
        hasher = compute(move || {
            hasher.update(&step);
            Ok(hasher)
        })
        .await?;
        at = range.end;
    }
    Ok(hasher.finish())
}
