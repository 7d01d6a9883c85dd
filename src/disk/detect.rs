//! From a manifest to disks: which packaging it is, and what its disks are made of.
//!
//! Never reads a blob. What is missing, doubtful or not supported becomes a [`Problem`], never a disk.

use std::collections::BTreeMap;
use std::fmt;

use crate::oci::Manifest;

use super::classify::{Class, classify_manifest};
use super::name::Names;
use super::parts::{Part, sequence};
use super::title::{Reading, Role, read};
use super::{Format, cocoon, plain};

/// The most parts that one disk has.
pub const MAX_PARTS: usize = 4096;

/// In which order parts are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PartOrder {
    /// Stable and bytewise by title, as epoch joins them. Where the numbers in the titles mean another order (`part10`
    /// sorts before `part9`), there is no disk: both orders are somebody's, and a disk in the wrong order is worse than
    /// none. Choosing one of the others says which it is.
    #[default]
    Epoch,
    /// By the number in the title.
    Natural,
    /// As the manifest lists them.
    Manifest,
}

/// What a manifest has of disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detection {
    /// The disks that can be presented.
    pub disks: Vec<DiskPlan>,
    /// What cannot, and why.
    pub problems: Vec<Problem>,
    /// What is presented, with a doubt.
    pub warnings: Vec<String>,
}

/// One disk: the parts that are joined to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// A file name: one component, not hidden, with an extension, unique in its [`Detection`].
    pub name: String,
    /// What the manifest calls it.
    pub label: Format,
    /// Which of the manifest's layers, in order.
    pub parts: Vec<usize>,
    /// Bytes of all parts. Invariant: `size < 2^63`, because that is where file offsets end.
    pub size: u64,
}

/// A disk that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The name, title or digest of what is absent.
    pub subject: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.reason)
    }
}

/// Finds the disks of a manifest. Container images have none here: a disk inside of their files is in their tree.
pub fn detect(manifest: &Manifest, order: PartOrder) -> Detection {
    match classify_manifest(manifest) {
        Class::Snapshot => cocoon::snapshot(manifest),
        Class::CloudImage => cocoon::cloud_image(manifest, order),
        _ if cocoon::has_disks(manifest) => cocoon::unclassified(manifest, order),
        _ if manifest.is_container_image() => Detection::default(),
        _ => plain::detect(manifest, order),
    }
}

/// A layer that is a disk or a part of one.
pub(super) struct Candidate<'a> {
    pub(super) index: usize,
    pub(super) title: &'a str,
    pub(super) label: Format,
    pub(super) role: Role,
}

impl Detection {
    /// A detection that found one reason.
    pub(super) fn problem(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        let problem = Problem { subject: subject.into(), reason: reason.into() };
        Self { problems: vec![problem], ..Self::default() }
    }

    fn report(&mut self, subject: &str, reason: impl Into<String>) {
        let subject = if subject.is_empty() { "disk" } else { subject };
        self.problems.push(Problem { subject: subject.into(), reason: reason.into() });
    }
}

/// Sorts candidates into disks: one for each stem and format.
pub(super) fn assemble(manifest: &Manifest, candidates: &[Candidate<'_>], order: PartOrder) -> Detection {
    let mut found = Detection::default();
    let mut names = Names::default();
    let untitled_parts = candidates.iter().any(|c| c.title.is_empty() && c.role == Role::Part);
    for ((stem, label), group) in groups(candidates) {
        // Parts that say nothing about themselves may belong to any disk of their format.
        if untitled_parts && candidates.iter().any(|c| !c.title.is_empty() && c.label == *label) {
            found.report(stem, "some parts have no title, so it is not known which disk they belong to");
            continue;
        }
        match join(manifest, &group, order) {
            Ok(joined) => {
                let (name, warning) = names.name(stem, label);
                found.warnings.extend(joined.warning.map(|warning| format!("{name}: {warning}")));
                found.warnings.extend(warning);
                let (parts, size) = (joined.parts, joined.size);
                found.disks.push(DiskPlan { name, label: label.clone(), parts, size });
            }
            Err(reason) => found.report(stem, reason),
        }
    }
    found
}

type Group<'a> = Vec<(&'a Candidate<'a>, Option<&'a str>)>;

/// Candidates by stem and format, each with its number.
fn groups<'a>(candidates: &'a [Candidate<'a>]) -> BTreeMap<(&'a str, &'a Format), Group<'a>> {
    let readings: Vec<(&Candidate<'_>, Reading<'_>)> =
        candidates.iter().map(|candidate| (candidate, read(candidate.title, candidate.role))).collect();
    let mut company: BTreeMap<(&str, &Format), usize> = BTreeMap::new();
    for (candidate, reading) in &readings {
        if reading.number.is_some() {
            *company.entry((reading.stem, &candidate.label)).or_default() += 1;
        }
    }
    let mut groups: BTreeMap<_, Group<'_>> = BTreeMap::new();
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

struct Joined {
    parts: Vec<usize>,
    size: u64,
    warning: Option<String>,
}

/// The parts of one disk in order, or why there is none.
fn join(manifest: &Manifest, group: &Group<'_>, order: PartOrder) -> Result<Joined, String> {
    if group.len() > MAX_PARTS {
        return Err(format!("{} parts are more than the limit of {MAX_PARTS}", group.len()));
    }
    let numbered: Vec<_> = group
        .iter()
        .filter_map(|(candidate, number)| {
            number.map(|number| Part { index: candidate.index, title: candidate.title, number })
        })
        .collect();
    let (parts, warning) = if numbered.len() == group.len() {
        sequence(numbered, order)?
    } else if numbered.is_empty() {
        unnumbered(manifest, group)?
    } else {
        return Err("some of its layers are numbered parts and some are not".into());
    };
    let mut size = 0u64;
    for index in &parts {
        let layer = &manifest.layers[*index];
        if layer.digest.algorithm().is_none() {
            return Err(format!("part {} has a digest that cannot be checked", layer.digest));
        }
        size = size
            .checked_add(layer.size)
            .filter(|size| *size <= i64::MAX as u64)
            .ok_or_else(|| "its parts have more than 2^63 - 1 bytes together".to_owned())?;
    }
    Ok(Joined { parts, size, warning })
}

/// Layers with one title and no number: parts are joined as they are listed, which is what a stable sort by title does;
/// whole disks are one disk only if they are the same one.
fn unnumbered(manifest: &Manifest, group: &Group<'_>) -> Result<(Vec<usize>, Option<String>), String> {
    let (first, _) = group[0];
    let mut indices: Vec<_> = group.iter().map(|(candidate, _)| candidate.index).collect();
    indices.sort_unstable();
    if group.len() == 1 {
        return Ok((indices, None));
    }
    if group.iter().all(|(c, _)| c.role == Role::Part && c.title == first.title) {
        let warning = format!("its {} parts have no numbers: joined as the manifest lists them", group.len());
        return Ok((indices, Some(warning)));
    }
    let digest = &manifest.layers[indices[0]].digest;
    if indices.iter().all(|index| manifest.layers[*index].digest == *digest) {
        indices.truncate(1);
        return Ok((indices, Some(format!("the manifest lists it {} times", group.len()))));
    }
    Err(format!("{} different layers have its name", group.len()))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::*;

    fn names(found: &Detection) -> Vec<(&str, &[usize])> {
        found.disks.iter().map(|disk| (disk.name.as_str(), &disk.parts[..])).collect()
    }

    fn reasons(found: &Detection) -> String {
        found.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn two_stems_are_two_disks() {
        let found = detect(
            &cloud(["b.qcow2.01.qcow2.part", "a.qcow2.00.qcow2.part", "b.qcow2.00.qcow2.part"]),
            PartOrder::Epoch,
        );
        assert_eq!(names(&found), [("a.qcow2", &[1][..]), ("b.qcow2", &[2, 0])]);
    }

    #[test]
    fn a_gap_in_one_disk_does_not_hide_the_other() {
        let found = detect(&cloud(["a.qcow2.00", "a.qcow2.01", "a.qcow2.03", "b.qcow2"]), PartOrder::Epoch);
        assert_eq!(names(&found), [("b.qcow2", &[3][..])]);
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
        assert_eq!(names(&found), [("debian-12.5.qcow2", &[1][..]), ("ubuntu-22.04.qcow2", &[0])]);
        let found = detect(&cloud(["x.02.part", "x.00.part", "x.01.part"]), PartOrder::Epoch);
        assert_eq!(names(&found), [("x.qcow2", &[1, 2, 0][..])]);
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
        assert_eq!(detect(&manifest, PartOrder::Epoch).disks[0].size, i64::MAX as u64);
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
        assert_eq!(at.disks[0].parts.len(), MAX_PARTS);
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
