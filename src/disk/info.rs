//! The text of `disk/info.json`: what the disks of an artifact are made of, what they turned out to be, and why some are
//! not there.
//!
//! Never larger than [`info_size`] says before any blob byte is known. The idea: everything that comes from the manifest
//! is written in full, everything that comes from a disk is cut to a fixed room per disk, and the rest of the file is
//! spaces, so that `stat` costs nothing and stays true when the file is read.

use serde::Serialize;

use crate::oci::Manifest;

use super::{Detection, DiskPlan, Format, Inspection, Qcow2Header};

/// Bytes that the inspection of one disk takes at most: the sum of the limits below, and of names and numbers.
const ROOM: u64 = 8192;
/// Longest refusal, and longest file name from a header: bytes as JSON writes them.
const MAX_TEXT: usize = 1024;
/// Longest note.
const MAX_NOTE: usize = 320;
/// Most notes.
const MAX_NOTES: usize = 8;
/// Longest name of a format.
const MAX_FORMAT: usize = 64;

#[derive(Serialize)]
struct Info<'a> {
    disks: Vec<DiskInfo<'a>>,
    problems: Vec<ProblemInfo<'a>>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct DiskInfo<'a> {
    name: &'a str,
    label: String,
    size: u64,
    parts: Vec<PartInfo<'a>>,
    /// `null` until the first bytes of the disk are known.
    inspection: Option<InspectionInfo>,
}

#[derive(Serialize)]
struct PartInfo<'a> {
    title: Option<&'a str>,
    digest: &'a str,
    size: u64,
    offset: u64,
}

#[derive(Serialize)]
struct ProblemInfo<'a> {
    subject: &'a str,
    reason: &'a str,
}

#[derive(Serialize)]
struct InspectionInfo {
    format: String,
    qcow2: Option<Qcow2Info>,
    refusal: Option<String>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Qcow2Info {
    version: u32,
    virtual_size: u64,
    cluster_size: u64,
    backing_file: Option<String>,
    data_file: Option<String>,
    incompatible_features: String,
    crypt_method: u32,
    snapshots: u32,
    compression_type: u8,
    extended_l2: bool,
}

/// The document, a line break at its end. `inspections` go with `detection.disks`; those that are missing are `null`.
pub fn info_json(manifest: &Manifest, detection: &Detection, inspections: &[Option<Inspection>]) -> String {
    let disks = detection.disks.iter().enumerate().map(|(i, plan)| {
        let inspection = inspections.get(i).and_then(Option::as_ref);
        DiskInfo::new(manifest, plan, inspection)
    });
    let problems = detection.problems.iter().map(|p| ProblemInfo { subject: &p.subject, reason: &p.reason });
    let info = Info { disks: disks.collect(), problems: problems.collect(), warnings: &detection.warnings };
    // Writing structs of strings and numbers to memory does not fail; an empty object would still be JSON.
    let mut text = serde_json::to_string_pretty(&info).unwrap_or_else(|_| "{}".into());
    text.push('\n');
    text
}

/// The size of [`info_padded`], from the manifest alone.
pub fn info_size(manifest: &Manifest, detection: &Detection) -> u64 {
    let bare = info_json(manifest, detection, &[]).len() as u64;
    bare + ROOM * detection.disks.len() as u64
}

/// [`info_json`] with spaces before its last line break, exactly [`info_size`] bytes.
pub fn info_padded(
    manifest: &Manifest,
    detection: &Detection,
    inspections: &[Option<Inspection>],
) -> Vec<u8> {
    let bare = info_json(manifest, detection, &[]);
    let size = bare.len() + ROOM as usize * detection.disks.len();
    let mut text = info_json(manifest, detection, inspections);
    if text.len() > size {
        // The limits add up to less than the room; if they ever do not, the size still holds.
        text = bare;
    }
    let mut bytes = text.into_bytes();
    bytes.pop();
    bytes.resize(size - 1, b' ');
    bytes.push(b'\n');
    bytes
}

impl<'a> DiskInfo<'a> {
    fn new(manifest: &'a Manifest, plan: &'a DiskPlan, inspection: Option<&Inspection>) -> Self {
        let mut offset = 0u64;
        let parts = plan.parts.iter().filter_map(|index| {
            let layer = manifest.layers.get(*index)?;
            let part =
                PartInfo { title: layer.title(), digest: layer.digest.as_str(), size: layer.size, offset };
            offset = offset.saturating_add(layer.size);
            Some(part)
        });
        let parts = parts.collect();
        Self {
            name: &plan.name,
            label: plan.label.to_string(),
            size: plan.size,
            parts,
            inspection: inspection.map(InspectionInfo::new),
        }
    }
}

impl InspectionInfo {
    fn new(inspection: &Inspection) -> Self {
        let format: &Format = &inspection.format;
        Self {
            format: fit(&format.to_string(), MAX_FORMAT),
            qcow2: inspection.qcow2.as_ref().map(Qcow2Info::new),
            refusal: inspection.refusal.as_deref().map(|text| fit(text, MAX_TEXT)),
            notes: inspection.notes.iter().take(MAX_NOTES).map(|note| fit(note, MAX_NOTE)).collect(),
        }
    }
}

impl Qcow2Info {
    fn new(header: &Qcow2Header) -> Self {
        let name = |name: &Vec<u8>| fit(&String::from_utf8_lossy(name), MAX_TEXT);
        Self {
            version: header.version,
            virtual_size: header.virtual_size,
            cluster_size: 1u64.checked_shl(header.cluster_bits).unwrap_or_default(),
            backing_file: header.backing_file.as_ref().map(name),
            data_file: header.data_file.as_ref().map(name),
            incompatible_features: format!("{:#x}", header.incompatible),
            crypt_method: header.crypt_method,
            snapshots: header.snapshots,
            compression_type: header.compression_type,
            extended_l2: header.extended_l2,
        }
    }
}

/// `text`, or as much of it as JSON writes in `limit` bytes, with an ellipsis.
fn fit(text: &str, limit: usize) -> String {
    const ELLIPSIS: char = '…';
    let whole: usize = text.chars().map(written).sum();
    if whole <= limit {
        return text.to_owned();
    }
    let mut left = limit - written(ELLIPSIS);
    let kept = text.chars().take_while(|c| {
        let fits = written(*c) <= left;
        left = left.saturating_sub(written(*c));
        fits
    });
    kept.chain([ELLIPSIS]).collect()
}

/// Bytes of a character in a JSON string as serde_json writes it.
fn written(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        other => other.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::*;
    use super::super::{PartOrder, detect, inspect};
    use super::*;

    fn sample() -> (Manifest, Detection) {
        let manifest = cloud(["a.qcow2.01", "a.qcow2.00", "b.qcow2", "c.qcow2.01", "c.qcow2.03"]);
        let detection = detect(&manifest, PartOrder::Epoch);
        (manifest, detection)
    }

    fn check_padded(
        manifest: &Manifest,
        detection: &Detection,
        inspections: &[Option<Inspection>],
    ) -> serde_json::Value {
        let bytes = info_padded(manifest, detection, inspections);
        assert_eq!(bytes.len() as u64, info_size(manifest, detection));
        assert_eq!(bytes.last(), Some(&b'\n'));
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn the_document_names_disks_parts_offsets_and_what_is_absent() {
        let (manifest, detection) = sample();
        let info = check_padded(&manifest, &detection, &[]);
        let disk = &info["disks"][0];
        assert_eq!(disk["name"], "a.qcow2");
        assert_eq!(disk["size"], 8);
        assert_eq!(disk["parts"][0]["title"], "a.qcow2.00");
        assert_eq!(disk["parts"][0]["digest"], manifest.layers[1].digest.as_str());
        assert_eq!(disk["parts"][1]["offset"], 4);
        assert!(disk["inspection"].is_null());
        assert_eq!(info["disks"].as_array().unwrap().len(), 2);
        assert_eq!(info["problems"][0]["subject"], "c.qcow2");
    }

    #[test]
    fn an_inspection_goes_to_its_disk() {
        let (manifest, detection) = sample();
        let head = Qcow2::new(3).backing(b"/etc/\"passwd\"").0;
        let seen = inspect(&head, SIZE, &Format::Qcow2);
        let info = check_padded(&manifest, &detection, &[None, Some(seen)]);
        assert!(info["disks"][0]["inspection"].is_null());
        let seen = &info["disks"][1]["inspection"];
        assert_eq!(seen["format"], "qcow2");
        assert_eq!(seen["qcow2"]["virtual_size"], 64 << 20);
        assert_eq!(seen["qcow2"]["cluster_size"], 65536);
        assert_eq!(seen["qcow2"]["backing_file"], "/etc/\"passwd\"");
        assert!(seen["refusal"].as_str().unwrap().contains("backing file"));
    }

    /// The largest inspection there can be must be written in full: the fallback of `info_padded` would show `null`.
    fn largest(filler: &str) -> Inspection {
        let long = filler.repeat(4000);
        let header = Qcow2Header {
            version: u32::MAX,
            virtual_size: u64::MAX,
            cluster_bits: 63,
            backing_file: Some(long.clone().into_bytes()),
            data_file: Some(long.clone().into_bytes()),
            incompatible: u64::MAX,
            crypt_method: u32::MAX,
            snapshots: u32::MAX,
            compression_type: u8::MAX,
            extended_l2: false,
        };
        Inspection {
            format: Format::Other(long.clone()),
            qcow2: Some(header),
            refusal: Some(long.clone()),
            notes: vec![long; 20],
        }
    }

    #[test]
    fn the_largest_inspection_fits_its_room() {
        let (manifest, detection) = sample();
        for filler in ["x", "\0", "\"", "\\", "ä", "𝄞", "\u{7f}", "\u{fffd}", "\n"] {
            let inspections = [Some(largest(filler)), Some(largest(filler))];
            let info = check_padded(&manifest, &detection, &inspections);
            let name = info["disks"][1]["inspection"]["qcow2"]["backing_file"].as_str().unwrap();
            assert!(name.starts_with(filler) && name.ends_with('…'));
        }
    }

    #[test]
    fn text_is_cut_at_the_limit_and_not_before() {
        assert_eq!(fit("abcdef", 6), "abcdef");
        assert_eq!(fit("abcdefg", 6), "abc…");
        assert_eq!(fit("\0\0", 12), "\0\0");
        assert_eq!(fit("\0\0\0", 12), "\0…");
    }

    #[test]
    fn the_document_is_deterministic() {
        let (manifest, detection) = sample();
        let seen = || vec![Some(largest("a"))];
        assert_eq!(info_padded(&manifest, &detection, &seen()), info_padded(&manifest, &detection, &seen()));
    }

    proptest! {
        #[test]
        fn whatever_a_header_says_the_size_holds_and_the_text_is_json(
            backing in prop::collection::vec(any::<u8>(), 0..1023),
            data in prop::collection::vec(any::<u8>(), 0..400),
            title in ".{0,40}",
            field in any::<u32>(),
        ) {
            let manifest = cloud([title.as_str()]);
            let detection = detect(&manifest, PartOrder::Epoch);
            let image = Qcow2::new(3).extension(0x4441_5441, &data).u32(60, field & 0xffff).backing(&backing);
            let seen = inspect(&image.0, SIZE, &Format::Qcow2);
            prop_assert!(seen.refusal.is_some());
            check_padded(&manifest, &detection, &[Some(seen)]);
        }
    }
}
