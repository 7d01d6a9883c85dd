//! Assembly of disks: groups candidate layers by stem and format, and orders the parts of each group.

use std::collections::BTreeMap;

use crate::oci::Manifest;

use super::name::UniqueNames;
use super::parts::{DiskPart, sequence};
use super::title::{ParsedTitle, PartEvidence, read};
use super::{DiskDetection, DiskFormat, DiskPacking, MAX_PARTS, PartOrder, PartPlan};

/// A layer that is a disk or a part of one.
pub(super) struct DiskCandidate<'a> {
    pub(super) index: usize,
    /// The title without the extension of a compression.
    pub(super) title: &'a str,
    pub(super) label: DiskFormat,
    pub(super) role: PartEvidence,
    pub(super) packing: DiskPacking,
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
