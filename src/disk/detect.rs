//! Disk detection: from a manifest to its packaging and the parts of its disks.
//!
//! Reads no blob. A missing, doubtful or unsupported disk becomes a [`Problem`].

use std::collections::BTreeMap;
use std::fmt;

use crate::oci::{ArtifactKind, Digest, Manifest, classify_manifest};

use super::name::{UniqueNames, unused};
use super::parts::{DiskPart, sequence};
use super::title::{ParsedTitle, PartEvidence, read};
use super::{DiskFormat, by_title, cocoon, geranos, kubevirt, lume, nosi, podman_machine, tart, vetu, vmlab};

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

/// Finds the disks of a manifest. Container images have none here: a disk inside their files is found in their tree.
pub fn detect(manifest: &Manifest, order: PartOrder) -> DiskDetection {
    match classify_manifest(manifest) {
        ArtifactKind::Snapshot => cocoon::snapshot(manifest),
        ArtifactKind::CloudImage => cocoon::cloud_image(manifest, order),
        _ if cocoon::has_disks(manifest) => cocoon::unclassified(manifest, order),
        // These are identified by the types of their layers; some have the config of a container image as a stub.
        _ if tart::has_disks(manifest) => tart::detect(manifest),
        _ if vetu::has_disks(manifest) => vetu::detect(manifest),
        _ if lume::has_disks(manifest) => lume::detect(manifest),
        _ if geranos::has_segments(manifest) => geranos::detect(manifest),
        _ if vmlab::has_disks(manifest) => vmlab::detect(manifest),
        _ if kubevirt::has_disks(manifest) => kubevirt::detect(manifest, order),
        _ if nosi::has_disks(manifest) => nosi::detect(manifest, order),
        _ if manifest.is_container_image() => DiskDetection::default(),
        _ if podman_machine::has_disk(manifest) => podman_machine::detect(manifest, order),
        _ => by_title::detect(manifest, order),
    }
}

/// A layer that is a disk or a part of one.
pub(super) struct DiskCandidate<'a> {
    pub(super) index: usize,
    /// The title without the extension of a compression.
    pub(super) title: &'a str,
    pub(super) label: DiskFormat,
    pub(super) role: PartEvidence,
    pub(super) packing: DiskPacking,
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
        let mut taken: Vec<String> = self.disks.iter().map(|disk| disk.name.clone()).collect();
        let mut names = vec![None; self.disks.len()];
        // The raw form of a disk that may be raw yields its name to the raw form of a qcow2.
        for label in [DiskFormat::Qcow2, DiskFormat::Unlabelled] {
            for (plan, name) in self.disks.iter().zip(&mut names).filter(|(plan, _)| plan.label == label) {
                *name = raw_name(plan, &taken);
                taken.extend(name.clone());
            }
        }
        names
    }
}

/// The name of a disk's raw form: `x.raw` for `x.qcow2`, numbered when it is in `taken`. `None` for the labels of
/// other formats.
fn raw_name(plan: &DiskPlan, taken: &[String]) -> Option<String> {
    if !matches!(plan.label, DiskFormat::Qcow2 | DiskFormat::Unlabelled) {
        return None;
    }
    let stem = plan.name.rsplit_once('.').map_or(plan.name.as_str(), |(stem, _)| stem);
    Some(unused(&format!("{stem}.raw"), |name| taken.iter().any(|taken| taken == name), taken.len()))
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

/// Assembles candidates into disks: one for each stem and format.
pub(super) fn assemble(
    manifest: &Manifest,
    candidates: &[DiskCandidate<'_>],
    order: PartOrder,
) -> DiskDetection {
    let mut found = DiskDetection::default();
    let mut names = UniqueNames::default();
    let untitled_parts = candidates.iter().any(|c| c.title.is_empty() && c.role == PartEvidence::Part);
    for ((stem, label), group) in groups(candidates) {
        // Parts without a title may belong to any disk of their format.
        if untitled_parts && candidates.iter().any(|c| !c.title.is_empty() && c.label == *label) {
            found.report(stem, "some parts have no title, so it is not known which disk they belong to");
            continue;
        }
        let joined = join(manifest, &group, order);
        let (parts, warning) = match joined {
            Ok((parts, warning)) => (Ok(parts), warning),
            Err(reason) => (Err(reason), None),
        };
        let before = found.disks.len();
        found.add(manifest, &mut names, (stem, label), parts);
        if let (Some(warning), Some(disk)) = (warning, found.disks.get(before)) {
            found.warnings.push(format!("{}: {warning}", disk.name));
        }
    }
    found
}

type PartGroup<'a> = Vec<(&'a DiskCandidate<'a>, Option<&'a str>)>;

/// Candidates by stem and format, each with its number.
fn groups<'a>(candidates: &'a [DiskCandidate<'a>]) -> BTreeMap<(&'a str, &'a DiskFormat), PartGroup<'a>> {
    let readings: Vec<(&DiskCandidate<'_>, ParsedTitle<'_>)> =
        candidates.iter().map(|candidate| (candidate, read(candidate.title, candidate.role))).collect();
    let mut company: BTreeMap<(&str, &DiskFormat), usize> = BTreeMap::new();
    for (candidate, reading) in &readings {
        if reading.number.is_some() {
            *company.entry((reading.stem, &candidate.label)).or_default() += 1;
        }
    }
    let mut groups: BTreeMap<_, PartGroup<'_>> = BTreeMap::new();
    for (candidate, reading) in readings {
        let alone = company.get(&(reading.stem, &candidate.label)).is_none_or(|count| *count < 2);
        let (stem, number) = match reading.number {
            Some(_) if alone && !reading.sure => (reading.whole, None),
            number => (reading.stem, number),
        };
        groups.entry((stem, &candidate.label)).or_default().push((candidate, number));
    }
    groups
}

/// The parts of one disk in order, or why there is none.
fn join(
    manifest: &Manifest,
    group: &PartGroup<'_>,
    order: PartOrder,
) -> Result<(Vec<PartPlan>, Option<String>), String> {
    if group.len() > MAX_PARTS {
        return Err(format!("{} parts are more than the limit of {MAX_PARTS}", group.len()));
    }
    let numbered: Vec<_> = group
        .iter()
        .filter_map(|(candidate, number)| {
            number.map(|number| DiskPart { index: candidate.index, title: candidate.title, number })
        })
        .collect();
    let (indices, warning) = if numbered.len() == group.len() {
        sequence(numbered, order)?
    } else if numbered.is_empty() {
        unnumbered(manifest, group)?
    } else {
        return Err("some of its layers are numbered parts and some are not".into());
    };
    let packings: BTreeMap<usize, DiskPacking> =
        group.iter().map(|(candidate, _)| (candidate.index, candidate.packing)).collect();
    let part = |index: usize| {
        PartPlan::bare(manifest, index, packings.get(&index).copied().unwrap_or(DiskPacking::Stored))
    };
    Ok((indices.into_iter().map(part).collect(), warning))
}

/// Orders layers with one title and no number. Parts are joined in manifest order, as a stable sort by title does.
/// Several whole disks are one disk only if they are identical.
fn unnumbered(manifest: &Manifest, group: &PartGroup<'_>) -> Result<(Vec<usize>, Option<String>), String> {
    let (first, _) = group[0];
    let mut indices: Vec<_> = group.iter().map(|(candidate, _)| candidate.index).collect();
    indices.sort_unstable();
    if group.len() == 1 {
        return Ok((indices, None));
    }
    if group.iter().all(|(c, _)| c.role == PartEvidence::Part && c.title == first.title) {
        let warning = format!("its {} parts have no numbers: joined as the manifest lists them", group.len());
        return Ok((indices, Some(warning)));
    }
    let digest = &manifest.layers[indices[0]].digest;
    if indices.iter().all(|index| manifest.layers[*index].digest == *digest) {
        indices.truncate(1);
        return Ok((indices, Some(format!("the manifest lists it {} times", group.len()))));
    }
    let titles: Vec<_> = indices.iter().take(4).map(|index| manifest.layers[*index].title()).collect();
    let titles: Vec<_> = titles.into_iter().map(|title| title.unwrap_or("without a title")).collect();
    Err(format!(
        "{} different layers have its name ({}): choose one of them with --title or --layer",
        group.len(),
        titles.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::*;

    fn names(found: &DiskDetection) -> Vec<(&str, Vec<usize>)> {
        found.disks.iter().map(|disk| (disk.name.as_str(), layers(disk))).collect()
    }

    fn reasons(found: &DiskDetection) -> String {
        found.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_disk_that_may_be_raw_takes_no_name_from_a_qcow2() {
        let found = detect(&artifact(["a.img", "a.qcow2", "b.img", "c.raw"]), PartOrder::Epoch);
        let names: Vec<_> =
            found.disks.iter().map(|disk| disk.name.as_str()).zip(found.raw_names()).collect();
        let raw = |name: &str| Some(name.to_owned());
        let expected =
            [("a.qcow2", raw("a.raw")), ("a.img", raw("a-2.raw")), ("b.img", raw("b.raw")), ("c.raw", None)];
        assert_eq!(names.len(), 4);
        assert!(expected.iter().all(|row| names.contains(row)), "{names:?}");
    }

    #[test]
    fn two_stems_are_two_disks() {
        let found = detect(
            &cloud(["b.qcow2.01.qcow2.part", "a.qcow2.00.qcow2.part", "b.qcow2.00.qcow2.part"]),
            PartOrder::Epoch,
        );
        assert_eq!(names(&found), [("a.qcow2", vec![1]), ("b.qcow2", vec![2, 0])]);
    }

    #[test]
    fn a_gap_in_one_disk_does_not_hide_the_other() {
        let found = detect(&cloud(["a.qcow2.00", "a.qcow2.01", "a.qcow2.03", "b.qcow2"]), PartOrder::Epoch);
        assert_eq!(names(&found), [("b.qcow2", vec![3])]);
        assert_eq!(reasons(&found), r#"a.qcow2: a part is missing between "a.qcow2.01" and "a.qcow2.03""#);
    }

    #[test]
    fn numbered_and_unnumbered_layers_of_one_name_are_no_disk() {
        let found = detect(&cloud(["a.qcow2", "a.qcow2.01"]), PartOrder::Epoch);
        assert!(found.disks.is_empty());
        assert!(reasons(&found).contains("some are not"));
    }

    #[test]
    fn a_version_in_a_title_is_a_number_only_in_company() {
        let found = detect(&cloud(["ubuntu-22.04.qcow2.part", "debian-12.5.qcow2.part"]), PartOrder::Epoch);
        assert_eq!(names(&found), [("debian-12.5.qcow2", vec![1]), ("ubuntu-22.04.qcow2", vec![0])]);
        let found = detect(&cloud(["x.02.part", "x.00.part", "x.01.part"]), PartOrder::Epoch);
        assert_eq!(names(&found), [("x.qcow2", vec![1, 2, 0])]);
    }

    #[test]
    fn untitled_parts_beside_titled_ones_are_no_disk() {
        let mut manifest = cloud(["a.qcow2.00", "a.qcow2.01", "x"]);
        manifest.layers[2].annotations.clear();
        let found = detect(&manifest, PartOrder::Epoch);
        assert!(found.disks.is_empty(), "{found:?}");
        assert!(reasons(&found).contains("no title"));
    }

    #[test]
    fn sizes_add_up_to_the_limit_and_no_further() {
        let mut manifest = cloud(["a.qcow2.00", "a.qcow2.01", "a.qcow2.02"]);
        manifest.layers[0].size = 0;
        manifest.layers[1].size = 1;
        manifest.layers[2].size = i64::MAX as u64 - 1;
        assert_eq!(detect(&manifest, PartOrder::Epoch).disks[0].size, Some(i64::MAX as u64));
        for size in [i64::MAX as u64, u64::MAX] {
            manifest.layers[2].size = size;
            let found = detect(&manifest, PartOrder::Epoch);
            assert!(found.disks.is_empty() && reasons(&found).contains("2^63 - 1"));
        }
    }

    #[test]
    fn parts_count_to_the_limit_and_no_further() {
        let titles: Vec<_> = (0..=MAX_PARTS).map(|n| format!("a.qcow2.{n:04}")).collect();
        let at = detect(&cloud(titles[..MAX_PARTS].iter().map(String::as_str)), PartOrder::Epoch);
        assert_eq!(layers(&at.disks[0]).len(), MAX_PARTS);
        let past = detect(&cloud(titles.iter().map(String::as_str)), PartOrder::Epoch);
        assert!(past.disks.is_empty() && reasons(&past).contains("more than the limit of 4096"));
    }

    #[test]
    fn a_digest_that_cannot_be_checked_is_no_disk() {
        let mut manifest = cloud(["a.qcow2"]);
        manifest.layers[0].digest = "blake3:af1349b9".parse().unwrap();
        assert!(reasons(&detect(&manifest, PartOrder::Epoch)).contains("blake3:af1349b9"));
    }
}
