//! `disk/info.json`: the parts of each disk, the result of its inspection, and the reasons for absent disks.
//!
//! The file has the size of [`info_size`], which is known before any blob byte. Facts from the manifest are written
//! in full, facts from a disk are cut to a fixed room per disk, and the rest is filled with spaces. So `stat` costs
//! nothing and is still right when the file is read.

use serde::Serialize;

use crate::oci::{Digest, Manifest};

use super::{
    DiskBody, DiskDetection, DiskFormat, DiskInspection, DiskPacking, DiskPlan, PartPlan, Qcow2Header,
};

/// Maximum bytes of the inspection of one disk: the sum of the limits below, and of names and numbers.
const ROOM: u64 = 8192;
/// Longest refusal, and longest file name from a header, in bytes as written in JSON.
const MAX_TEXT: usize = 1024;
/// Longest note, in bytes as written in JSON.
const MAX_NOTE: usize = 320;
/// Maximum number of notes.
const MAX_NOTES: usize = 8;
/// Longest name of a format, in bytes as written in JSON.
const MAX_FORMAT: usize = 64;

#[derive(Serialize)]
struct DiskInfoDocument<'a> {
    disks: Vec<DiskInfo<'a>>,
    problems: Vec<ProblemInfo<'a>>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct DiskInfo<'a> {
    name: &'a str,
    label: String,
    /// `null` where the manifest does not state it.
    size: Option<u64>,
    parts: Vec<PartInfo<'a>>,
    /// The path of a containerDisk in the merged tree; `null` for other disks.
    member: Option<&'a str>,
    /// The name of the raw form, even if the inspection finds that there is none; `null` for formats without one.
    raw: Option<String>,
    /// `null` until the first bytes of the disk are known.
    inspection: Option<InspectionInfo>,
}

#[derive(Serialize)]
struct PartInfo<'a> {
    title: Option<&'a str>,
    digest: &'a str,
    /// Bytes of the layer.
    size: u64,
    /// `stored` or `packed`.
    packing: &'static str,
    /// The offset of the part on the disk; `null` unless every earlier part has a known size.
    offset: Option<u64>,
    /// Bytes of the disk in the part; `null` when unknown.
    disk_size: Option<u64>,
    /// The digest of these bytes, as the manifest claims; `null` without a claim.
    content: Option<&'a str>,
}

#[derive(Serialize)]
struct ProblemInfo<'a> {
    subject: &'a str,
    reason: &'a str,
}

#[derive(Serialize)]
struct InspectionInfo {
    /// `null` if only unpacking all parts would give it.
    size: Option<u64>,
    encoding: Option<String>,
    format: String,
    qcow2: Option<Qcow2Info>,
    refusal: Option<String>,
    notes: Vec<String>,
    /// Why there is no raw form; `null` if there is one.
    no_raw: Option<String>,
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

/// The document, with a final line break. `inspections` go with `detection.disks`; missing ones are `null`.
pub fn info_json(
    manifest: &Manifest,
    detection: &DiskDetection,
    inspections: &[Option<DiskInspection>],
) -> String {
    let disks = detection.disks.iter().zip(detection.raw_names()).enumerate().map(|(i, (plan, raw))| {
        let inspection = inspections.get(i).and_then(Option::as_ref);
        DiskInfo::new(manifest, plan, raw, inspection)
    });
    let problems = detection.problems.iter().map(|p| ProblemInfo { subject: &p.subject, reason: &p.reason });
    let info = DiskInfoDocument {
        disks: disks.collect(),
        problems: problems.collect(),
        warnings: &detection.warnings,
    };
    // Serializing strings and numbers to memory does not fail; an empty object would still be JSON.
    let mut text = serde_json::to_string_pretty(&info).unwrap_or_else(|_| "{}".into());
    text.push('\n');
    text
}

/// The size of [`info_padded`], from the manifest alone.
pub fn info_size(manifest: &Manifest, detection: &DiskDetection) -> u64 {
    let bare = info_json(manifest, detection, &[]).len() as u64;
    bare + ROOM * detection.disks.len() as u64
}

/// [`info_json`] with spaces before its last line break, exactly [`info_size`] bytes.
pub fn info_padded(
    manifest: &Manifest,
    detection: &DiskDetection,
    inspections: &[Option<DiskInspection>],
) -> Vec<u8> {
    let bare = info_json(manifest, detection, &[]);
    let size = bare.len() + ROOM as usize * detection.disks.len();
    let mut text = info_json(manifest, detection, inspections);
    if text.len() > size {
        // The limits add up to less than the room. Should they not, the size still holds.
        text = bare;
    }
    let mut bytes = text.into_bytes();
    bytes.pop();
    bytes.resize(size - 1, b' ');
    bytes.push(b'\n');
    bytes
}

impl<'a> DiskInfo<'a> {
    fn new(
        manifest: &'a Manifest,
        plan: &'a DiskPlan,
        raw: Option<String>,
        inspection: Option<&DiskInspection>,
    ) -> Self {
        let (parts, member) = match &plan.body {
            DiskBody::Parts(parts) => (&parts[..], None),
            DiskBody::Member { path } => (&[][..], Some(path.as_str())),
            DiskBody::File { .. } => (&[][..], None),
        };
        let mut offset = Some(0u64);
        let parts = parts.iter().filter_map(|part| {
            let info = PartInfo::new(manifest, part, offset)?;
            offset = offset.zip(part.size).and_then(|(offset, size)| offset.checked_add(size));
            Some(info)
        });
        Self {
            name: &plan.name,
            label: plan.label.to_string(),
            size: plan.size,
            parts: parts.collect(),
            member,
            raw,
            inspection: inspection.map(InspectionInfo::new),
        }
    }
}

impl<'a> PartInfo<'a> {
    fn new(manifest: &'a Manifest, part: &'a PartPlan, offset: Option<u64>) -> Option<Self> {
        let layer = manifest.layers.get(part.layer)?;
        let packing = match part.packing {
            DiskPacking::Stored => "stored",
            DiskPacking::Packed => "packed",
        };
        Some(Self {
            title: layer.title(),
            digest: layer.digest.as_str(),
            size: layer.size,
            packing,
            offset,
            disk_size: part.size,
            content: part.content.as_ref().map(Digest::as_str),
        })
    }
}

impl InspectionInfo {
    fn new(inspection: &DiskInspection) -> Self {
        let format: &DiskFormat = &inspection.format;
        Self {
            size: inspection.size,
            encoding: inspection.encoding.as_deref().map(|name| fit(name, MAX_FORMAT)),
            format: fit(&format.to_string(), MAX_FORMAT),
            qcow2: inspection.qcow2.as_ref().map(Qcow2Info::new),
            refusal: inspection.refusal.as_deref().map(|text| fit(text, MAX_TEXT)),
            notes: inspection.notes.iter().take(MAX_NOTES).map(|note| fit(note, MAX_NOTE)).collect(),
            no_raw: inspection.raw.as_deref().map(|text| fit(text, MAX_TEXT)),
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

/// `text`, or as much of it as fits into `limit` bytes of JSON, with an ellipsis.
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

/// Bytes of a character in a JSON string of serde_json.
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

    fn sample() -> (Manifest, DiskDetection) {
        let manifest = cloud(["a.qcow2.01", "a.qcow2.00", "b.qcow2", "c.qcow2.01", "c.qcow2.03"]);
        let detection = detect(&manifest, PartOrder::Epoch);
        (manifest, detection)
    }

    fn check_padded(
        manifest: &Manifest,
        detection: &DiskDetection,
        inspections: &[Option<DiskInspection>],
    ) -> serde_json::Value {
        let bytes = info_padded(manifest, detection, inspections);
        assert_eq!(bytes.len() as u64, info_size(manifest, detection));
        assert_eq!(bytes.last(), Some(&b'\n'));
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn disk_info_lists_disks_parts_offsets_and_absent_fields() {
        let (manifest, detection) = sample();
        let info = check_padded(&manifest, &detection, &[]);
        let disk = &info["disks"][0];
        assert_eq!(disk["name"], "a.qcow2");
        assert_eq!(disk["size"], 8);
        assert_eq!(disk["parts"][0]["title"], "a.qcow2.00");
        assert_eq!(disk["parts"][0]["digest"], manifest.layers[1].digest.as_str());
        assert_eq!(disk["parts"][1]["offset"], 4);
        assert_eq!((&disk["parts"][0]["packing"], &disk["raw"]), (&"stored".into(), &"a.raw".into()));
        assert!(disk["inspection"].is_null());
        assert_eq!(info["disks"].as_array().unwrap().len(), 2);
        assert_eq!(info["problems"][0]["subject"], "c.qcow2");
    }

    #[test]
    fn unknown_fields_of_a_packed_disk_are_null_until_unpacked() {
        let manifest = artifact(["d.qcow2.00.gz", "d.qcow2.01.gz", "e.raw"]);
        let mut detection = detect(&manifest, PartOrder::Epoch);
        let info = check_padded(&manifest, &detection, &[]);
        let disk = &info["disks"][0];
        assert!(disk["size"].is_null() && disk["member"].is_null());
        assert_eq!((&disk["raw"], &info["disks"][1]["raw"]), (&"d.raw".into(), &serde_json::Value::Null));
        assert_eq!(
            (&disk["parts"][0]["packing"], &disk["parts"][0]["offset"]),
            (&"packed".into(), &0.into())
        );
        assert!(disk["parts"][1]["offset"].is_null() && disk["parts"][1]["disk_size"].is_null());

        let DiskBody::Parts(parts) = &mut detection.disks[0].body else { unreachable!("it has parts") };
        parts[0].size = Some(1000);
        parts[0].content = Some(manifest.layers[2].digest.clone());
        let mut seen = inspect(&Qcow2::new(3).0, SIZE, &DiskFormat::Qcow2);
        seen.encoding = Some("gzip".into());
        let info = check_padded(&manifest, &detection, &[Some(seen)]);
        let disk = &info["disks"][0];
        assert_eq!(
            (&disk["parts"][1]["offset"], &disk["parts"][0]["disk_size"]),
            (&1000.into(), &1000.into())
        );
        assert_eq!(disk["parts"][0]["content"], manifest.layers[2].digest.as_str());
        assert_eq!(
            (&disk["inspection"]["encoding"], &disk["inspection"]["size"]),
            (&"gzip".into(), &SIZE.into())
        );
        assert!(disk["inspection"]["no_raw"].is_null());
    }

    #[test]
    fn a_disk_inside_of_an_image_names_its_path() {
        let member = crate::disk::DiskMember { path: "disk/a.img".into(), size: 9, format: None };
        let info =
            check_padded(&artifact([]), &crate::disk::member_disks(&[member].into_iter().collect()), &[]);
        assert_eq!(
            (&info["disks"][0]["member"], &info["disks"][0]["size"]),
            (&"disk/a.img".into(), &9.into())
        );
    }

    #[test]
    fn an_inspection_goes_to_its_disk() {
        let (manifest, detection) = sample();
        let head = Qcow2::new(3).backing(b"/etc/\"passwd\"").0;
        let seen = inspect(&head, SIZE, &DiskFormat::Qcow2);
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
    fn largest(filler: &str) -> DiskInspection {
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
            l1: crate::io::ByteRange::at(0x30000, 8),
        };
        DiskInspection {
            format: DiskFormat::Other(long.clone()),
            qcow2: Some(header),
            refusal: Some(long.clone()),
            notes: vec![long.clone(); 20],
            raw: Some(long.clone()),
            size: Some(u64::MAX),
            encoding: Some(long),
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
        fn disk_info_of_hostile_headers_is_bounded_json(
            backing in prop::collection::vec(any::<u8>(), 0..1023),
            data in prop::collection::vec(any::<u8>(), 0..400),
            title in ".{0,40}",
            field in any::<u32>(),
        ) {
            let manifest = cloud([title.as_str()]);
            let detection = detect(&manifest, PartOrder::Epoch);
            let image = Qcow2::new(3).extension(0x4441_5441, &data).u32(60, field & 0xffff).backing(&backing);
            let seen = inspect(&image.0, SIZE, &DiskFormat::Qcow2);
            prop_assert!(seen.refusal.is_some());
            check_padded(&manifest, &detection, &[Some(seen)]);
        }
    }
}
