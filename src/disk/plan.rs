//! Disk plans: the disks of a manifest, their parts, names and sizes, and the disks that cannot be presented.

use std::fmt;

use crate::oci::{Digest, Manifest};

use super::DiskFormat;
use super::name::UniqueNames;

/// Maximum parts of one disk.
pub const MAX_PARTS: usize = 4096;

/// The order in which parts are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PartOrder {
    /// Stable and bytewise by title, as epoch joins them. If the numbers in the titles imply another order (`part10`
    /// sorts before `part9`), there is no disk. Publishers use both orders, and a disk in the wrong order is worse
    /// than none. Another variant of this enum resolves the conflict.
    #[default]
    Epoch,
    /// By the number in the title.
    Natural,
    /// As listed in the manifest.
    Manifest,
}

/// The disks of a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskDetection {
    /// The disks that can be presented.
    pub disks: Vec<DiskPlan>,
    /// Disks that cannot be presented, and why.
    pub problems: Vec<DiskProblem>,
    /// Doubts about disks that are presented.
    pub warnings: Vec<String>,
}

/// One disk and its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// A file name: one component, not hidden, with an extension, unique in its [`DiskDetection`].
    pub name: String,
    /// The format that the manifest claims.
    pub label: DiskFormat,
    /// The bytes of the disk.
    pub body: DiskBody,
    /// Bytes of the disk if the manifest states them exactly; `None` until the parts are unpacked. Invariant: `size <
    /// 2^63`, the limit of file offsets.
    pub size: Option<u64>,
}

impl DiskPlan {
    /// The layers of the disk, in order.
    pub fn layers(&self) -> impl Iterator<Item = usize> {
        let (parts, file) = match &self.body {
            DiskBody::Parts(parts) => (&parts[..], None),
            DiskBody::File { layer } => (&[][..], Some(*layer)),
            DiskBody::Member { .. } => (&[][..], None),
        };
        parts.iter().map(|part| part.layer).chain(file)
    }
}

/// The source of a disk's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskBody {
    /// Layers, each unpacked on its own, concatenated.
    Parts(Vec<PartPlan>),
    /// The file of a layer in `files/`, with its holes restored.
    File {
        /// Index into the manifest's layers.
        layer: usize,
    },
    /// A file inside the only archive of the image: KubeVirt's containerDisk.
    Member {
        /// Its path in the merged tree.
        path: String,
    },
}

/// One part of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartPlan {
    /// Index into the manifest's layers.
    pub layer: usize,
    /// The encoding of the disk's bytes in the layer.
    pub packing: DiskPacking,
    /// Bytes of the disk in this part. For a packed part it is the manifest's claim: it gives the offset of the next
    /// part without unpacking, and another unpacked size is an error. For a stored part it is the size of the layer.
    /// `None` when not claimed.
    pub size: Option<u64>,
    /// The digest of the unpacked bytes; `None` when the manifest has none.
    pub content: Option<Digest>,
}

/// The encoding of a disk's bytes in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskPacking {
    /// Not encoded.
    Stored,
    /// Compressed by its label; the first bytes decide whether and how.
    Packed,
}

/// A disk that is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskProblem {
    /// The name, title or digest of the absent disk.
    pub subject: String,
    /// The reason.
    pub reason: String,
}

impl fmt::Display for DiskProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.reason)
    }
}

impl PartPlan {
    /// A part without claims.
    pub(super) fn bare(manifest: &Manifest, layer: usize, packing: DiskPacking) -> Self {
        let size = match packing {
            DiskPacking::Stored => manifest.layers.get(layer).map(|layer| layer.size),
            DiskPacking::Packed => None,
        };
        Self { layer, packing, size, content: None }
    }
}

impl DiskDetection {
    /// A detection with one problem and no disk.
    pub(super) fn problem(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        let problem = DiskProblem { subject: subject.into(), reason: reason.into() };
        Self { problems: vec![problem], ..Self::default() }
    }

    pub(super) fn report(&mut self, subject: &str, reason: impl Into<String>) {
        let subject = if subject.is_empty() { "disk" } else { subject };
        self.problems.push(DiskProblem { subject: subject.into(), reason: reason.into() });
    }

    /// Adds the disk of these parts, or the problem with them.
    pub(super) fn add(
        &mut self,
        manifest: &Manifest,
        names: &mut UniqueNames,
        (stem, label): (&str, &DiskFormat),
        parts: Result<Vec<PartPlan>, String>,
    ) {
        let checked = parts.and_then(|parts| total(manifest, &parts).map(|size| (parts, size)));
        match checked {
            Ok((parts, size)) => {
                let (name, warning) = names.name(stem, label);
                self.warnings.extend(warning);
                self.disks.push(DiskPlan { name, label: label.clone(), body: DiskBody::Parts(parts), size });
            }
            Err(reason) => self.report(stem, reason),
        }
    }

    /// Sets the sizes of disks that are files of `files/`, and removes those without a file.
    #[must_use]
    pub fn with_file_sizes(mut self, size: impl Fn(usize) -> Option<u64>) -> Self {
        self.disks.retain_mut(|disk| {
            let DiskBody::File { layer } = disk.body else { return true };
            disk.size = size(layer);
            disk.size.is_some()
        });
        self
    }

    /// The name of each disk's raw form; `None` for a format that has none.
    pub fn raw_names(&self) -> Vec<Option<String>> {
        let mut unique = UniqueNames::taken(self.disks.iter().map(|disk| disk.name.clone()));
        let mut names = vec![None; self.disks.len()];
        // The raw form of a disk that may be raw yields its name to the raw form of a qcow2.
        for label in [DiskFormat::Qcow2, DiskFormat::Unlabelled] {
            for (plan, name) in self.disks.iter().zip(&mut names).filter(|(plan, _)| plan.label == label) {
                *name = Some(unique.allocate(&raw_name(plan)));
            }
        }
        names
    }
}

/// The wanted name of a disk's raw form: `x.raw` for `x.qcow2`.
fn raw_name(plan: &DiskPlan) -> String {
    let stem = plan.name.rsplit_once('.').map_or(plan.name.as_str(), |(stem, _)| stem);
    format!("{stem}.raw")
}

/// Bytes of a disk of these parts, as far as they are known; or why they form no disk.
fn total(manifest: &Manifest, parts: &[PartPlan]) -> Result<Option<u64>, String> {
    if parts.len() > MAX_PARTS {
        return Err(format!("{} parts are more than the limit of {MAX_PARTS}", parts.len()));
    }
    let (mut size, mut known) = (0u64, true);
    for part in parts {
        let layer = manifest.layers.get(part.layer).ok_or("one of its parts is no layer")?;
        if layer.digest.algorithm().is_none() {
            return Err(format!("part {} has a digest that cannot be checked", layer.digest));
        }
        known &= part.size.is_some();
        size = size
            .checked_add(part.size.unwrap_or_default())
            .filter(|size| *size <= i64::MAX as u64)
            .ok_or_else(|| "its parts have more than 2^63 - 1 bytes together".to_owned())?;
    }
    Ok(known.then_some(size))
}
