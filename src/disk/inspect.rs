//! Inspection of an assembled disk by its first bytes: format, warnings, and refusal of unsafe disks.
//!
//! Opens no file that a header names. A disk from a registry is untrusted, and the formats let its author name files
//! of the host, which `qemu-img convert` then copies into its output. So a disk that names other files is refused
//! whatever its label, because consumers that probe formats trust the content.

use super::qcow2::{CORRUPT, DATA_FILE, DIRTY, KNOWN};
use super::{DiskError, DiskFormat, Qcow2Header, vmdk};

/// Bytes of a disk that are inspected. Header, extensions and names of a qcow2 are in its first cluster, and 64 KiB
/// is QEMU's cluster size.
pub const HEAD: u64 = 64 * 1024;

/// The result of an inspection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInspection {
    /// The format by content.
    pub format: DiskFormat,
    /// The header of a valid qcow2; `None` for other disks.
    pub qcow2: Option<Qcow2Header>,
    /// Why the disk must not be served, for users; `None` when it may be.
    pub refusal: Option<String>,
    /// Warnings that refuse nothing.
    pub notes: Vec<String>,
    /// Why there is no raw form; `None` when the header permits one.
    pub raw: Option<String>,
    /// Bytes of the disk; `None` if only unpacking all parts would give them.
    pub size: Option<u64>,
    /// Compression of the parts, by their first bytes: `gzip`. Set by the unpacking caller; `None` for uncompressed
    /// parts.
    pub encoding: Option<String>,
}

impl DiskInspection {
    /// Rejects the disk `name` if it is refused.
    pub fn allow(&self, name: &str) -> Result<(), DiskError> {
        match &self.refusal {
            Some(reason) => Err(DiskError::Refused { disk: name.into(), reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// The header of a qcow2 that [`Qcow2Raw`](super::Qcow2Raw) can present, or why there is none, for users.
    pub fn raw_header(&self) -> Result<&Qcow2Header, String> {
        if let Some(reason) = &self.refusal {
            return Err(reason.clone());
        }
        let header = self.qcow2.as_ref().ok_or_else(|| format!("it is {}, not qcow2", self.format))?;
        header.raw_reason().map(|()| header)
    }
}

/// Inspects a disk of `size` bytes. `head` is its first [`HEAD`] bytes, or all when it is smaller; `label` is the
/// format that the manifest claims.
pub fn inspect(head: &[u8], size: u64, label: &DiskFormat) -> DiskInspection {
    let format = DiskFormat::sniff(head, size);
    let label = match (label, &format) {
        // An unlabelled qcow2 is treated as one with its label.
        (DiskFormat::Unlabelled, DiskFormat::Qcow2) => &DiskFormat::Qcow2,
        (label, _) => label,
    };
    let mut seen = DiskInspection {
        format,
        qcow2: None,
        refusal: None,
        notes: Vec::new(),
        raw: None,
        size: Some(size),
        encoding: None,
    };
    match seen.format.clone() {
        DiskFormat::Qcow2 => inspect_qcow2(&mut seen, head, size, label),
        DiskFormat::Vmdk => match vmdk::references(head) {
            Ok(None) => {}
            Ok(Some(reason)) => seen.refusal = Some(format!("{reason}, which a hypervisor would open")),
            Err(error) => seen.refusal = Some(error.to_string()),
        },
        DiskFormat::Vhd if head.get(60..64) == Some(&4u32.to_be_bytes()) => {
            seen.refusal = Some("it is a differencing vhd, whose parent is another file".into());
        }
        DiskFormat::Vdi if head.get(0x4c..0x50) == Some(&4u32.to_le_bytes()) => {
            seen.refusal = Some("it is a differencing vdi, whose parent is another file".into());
        }
        DiskFormat::Vhdx => seen.notes.push("the start of a vhdx does not record a parent".into()),
        DiskFormat::Other(name) if name == "qed" && names_qed_backing(head) => {
            seen.refusal = Some("qed header names a backing file, which a hypervisor would open".into());
        }
        _ => {}
    }
    compare_label(&mut seen, size, label);
    seen.raw = no_raw_form(&seen, label);
    seen
}

/// Why a disk has no raw form, by its label and its header.
fn no_raw_form(seen: &DiskInspection, label: &DiskFormat) -> Option<String> {
    if let Some(refusal) = &seen.refusal {
        return Some(format!("the disk is refused: {refusal}"));
    }
    let header = match &seen.qcow2 {
        Some(header) if *label == DiskFormat::Qcow2 => header,
        _ => return Some("only a qcow2 under its own label or none has a raw form".into()),
    };
    header.raw_reason().err().map(|reason| format!("qcow2 has no raw form: {reason}"))
}

fn inspect_qcow2(seen: &mut DiskInspection, head: &[u8], size: u64, label: &DiskFormat) {
    let header = match Qcow2Header::parse(head, size) {
        Ok(header) => header,
        Err(error) => {
            // Also with a raw label: an unchecked header may name files.
            seen.refusal = Some(error.to_string());
            return;
        }
    };
    let mut reasons = Vec::new();
    if let Some(name) = &header.backing_file {
        reasons.push(format!(
            "qcow2 header names the backing file {:?}, which a hypervisor would open",
            String::from_utf8_lossy(name)
        ));
    }
    match &header.data_file {
        Some(name) => reasons.push(format!(
            "qcow2 header names the external data file {:?}, which a hypervisor would open",
            String::from_utf8_lossy(name)
        )),
        None if header.incompatible & DATA_FILE != 0 => {
            reasons.push("qcow2 header refers to an external data file".into());
        }
        None => {}
    }
    if header.crypt_method != 0 {
        let method = match header.crypt_method {
            1 => "aes".to_owned(),
            2 => "luks".to_owned(),
            other => format!("unknown method {other}"),
        };
        let text = format!("qcow2 is encrypted ({method})");
        // With a raw label the bytes are served as they are: nothing is decrypted, and no file is named.
        if *label == DiskFormat::Raw { seen.notes.push(text) } else { reasons.push(text) }
    }
    if !reasons.is_empty() {
        seen.refusal = Some(reasons.join("; "));
    }
    if header.incompatible & DIRTY != 0 {
        seen.notes.push("qcow2 was not closed cleanly (dirty bit)".into());
    }
    if header.incompatible & CORRUPT != 0 {
        seen.notes.push("qcow2 is marked corrupt".into());
    }
    if header.incompatible & !KNOWN != 0 {
        let bits = header.incompatible & !KNOWN;
        seen.notes.push(format!("qcow2 has incompatible features {bits:#x}, which are unknown"));
    }
    if !header.compression_agrees() {
        let kind = header.compression_type;
        seen.notes.push(format!("qcow2 compression type {kind} contradicts its feature bits"));
    }
    if header.snapshots > 0 {
        seen.notes.push(format!("qcow2 has {} internal snapshots", header.snapshots));
    }
    seen.qcow2 = Some(header);
}

/// Bit 0 of the features is `QED_F_BACKING_FILE` (QEMU `docs/interop/qed_spec.rst`). A truncated header counts as
/// set.
fn names_qed_backing(head: &[u8]) -> bool {
    head.get(16).is_none_or(|features| features & 1 != 0)
}

/// Compares the label with the content.
fn compare_label(seen: &mut DiskInspection, size: u64, label: &DiskFormat) {
    if seen.format == *label {
        return;
    }
    if *label == DiskFormat::Unlabelled {
        if let DiskFormat::Foreign(_) = seen.format {
            seen.notes.push(format!("its content is {}", seen.format));
        }
        return;
    }
    let content = match &seen.format {
        DiskFormat::Raw if size < 4 => format!("it has only {size} bytes"),
        DiskFormat::Raw => "its content has no signature of that format".into(),
        other => format!("its content is {other}"),
    };
    let text = format!("labelled {label}, but {content}");
    if *label == DiskFormat::Qcow2 {
        // Joined to the earlier refusal, because both matter.
        seen.refusal = Some(match seen.refusal.take() {
            Some(earlier) => format!("{text}; {earlier}"),
            None => text,
        });
    } else if seen.format == DiskFormat::Raw && *label == DiskFormat::Vhd {
        seen.notes.push("labelled vhd without a header at its start: a fixed vhd, or raw".into());
    } else {
        seen.notes.push(text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::{Qcow2, SIZE};
    use super::*;

    #[test]
    fn a_plain_qcow2_is_allowed() {
        let seen = inspect(&Qcow2::new(3).0, SIZE, &DiskFormat::Qcow2);
        assert_eq!((&seen.format, &seen.refusal, seen.notes.len()), (&DiskFormat::Qcow2, &None, 0));
        assert_eq!(seen.allow("a.qcow2"), Ok(()));
    }

    #[test]
    fn a_qcow2_that_names_a_file_is_refused_under_any_label() {
        let head = Qcow2::new(3).backing(b"/etc/passwd").0;
        for label in [DiskFormat::Qcow2, DiskFormat::Raw, DiskFormat::Vmdk] {
            let seen = inspect(&head, SIZE, &label);
            assert!(seen.refusal.as_ref().unwrap().contains("\"/etc/passwd\""), "{label}");
            let error = seen.allow("a.qcow2").unwrap_err();
            assert!(error.to_string().starts_with("disk a.qcow2 is refused: "));
            assert_eq!(error.fault(), crate::io::FaultClass::Denied);
        }
    }

    #[test]
    fn a_harmless_qcow2_under_a_raw_label_is_only_noted() {
        let seen = inspect(&Qcow2::new(2).0, SIZE, &DiskFormat::Raw);
        assert_eq!(seen.refusal, None);
        assert_eq!(seen.notes, ["labelled raw, but its content is qcow2"]);
    }

    #[test]
    fn the_content_decides_where_there_is_no_label() {
        let seen = |image: &Qcow2| inspect(&image.0, SIZE, &DiskFormat::Unlabelled);
        let plain = seen(&Qcow2::new(3));
        assert_eq!((&plain.refusal, &plain.raw, plain.notes.len()), (&None, &None, 0));
        assert!(seen(&Qcow2::new(3).backing(b"/etc/passwd")).refusal.is_some());
        assert!(seen(&Qcow2::new(3).u32(32, 2)).refusal.unwrap().contains("encrypted"));
        let raw = inspect(&[0; 512], 512, &DiskFormat::Unlabelled);
        assert_eq!((&raw.format, &raw.refusal, raw.notes.len()), (&DiskFormat::Raw, &None, 0));
        assert!(raw.raw.is_some());
        assert_eq!(inspect(b"<html>404", 9, &DiskFormat::Unlabelled).notes, ["its content is html"]);
    }

    #[test]
    fn a_qcow2_that_cannot_be_checked_is_refused_under_a_raw_label() {
        let head = Qcow2::new(3).u32(20, 21).u64(40, 0).u64(8, 1 << 20).u32(16, 11).0;
        let refusal = inspect(&head, SIZE, &DiskFormat::Raw).refusal.unwrap();
        assert!(refusal.starts_with("qcow2 header is malformed: "), "{refusal}");
    }

    #[test]
    fn encryption_is_refused_as_qcow2_and_noted_as_raw() {
        let head = Qcow2::new(3).u32(32, 2).0;
        assert_eq!(
            inspect(&head, SIZE, &DiskFormat::Qcow2).refusal.as_deref(),
            Some("qcow2 is encrypted (luks)")
        );
        assert_eq!(inspect(&head, SIZE, &DiskFormat::Raw).refusal, None);
    }

    #[test]
    fn content_other_than_the_labelled_qcow2_is_named() {
        for (head, name) in [
            (&b"<html>404"[..], "html"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"\xfd7zXZ\0", "xz"),
            (b"BZh91", "bzip2"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"PK\x03\x04", "zip"),
            (b"7z\xbc\xaf\x27\x1c", "7z"),
            (b"\x04\x22\x4d\x18", "lz4"),
            (b"bv41", "lz4 (Apple)"),
            (b"vhdxfile", "vhdx"),
        ] {
            let refusal = inspect(head, 99, &DiskFormat::Qcow2).refusal.unwrap();
            assert_eq!(refusal, format!("labelled qcow2, but its content is {name}"));
        }
        let tiny = inspect(b"QFI", 3, &DiskFormat::Qcow2).refusal.unwrap();
        assert_eq!(tiny, "labelled qcow2, but it has only 3 bytes");
        assert!(inspect(&[0; 512], 512, &DiskFormat::Qcow2).refusal.unwrap().contains("no signature"));
    }

    #[test]
    fn a_descriptor_in_a_raw_disk_is_refused() {
        let text = b"# Disk DescriptorFile\nversion=1\nRW 1 FLAT \"/etc/passwd\" 0\n";
        assert!(inspect(text, 60, &DiskFormat::Raw).refusal.unwrap().contains("other files"));
        assert!(inspect(b"QED\0", 4, &DiskFormat::Raw).refusal.unwrap().contains("backing file"));
    }

    #[test]
    fn differencing_disks_are_refused() {
        let mut vhd = b"conectix".to_vec();
        vhd.resize(1024, 0);
        let mut vdi = vec![0; 512];
        vdi[0x40..0x44].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
        assert_eq!(inspect(&vhd, 9999, &DiskFormat::Vhd).refusal, None);
        assert_eq!(inspect(&vdi, 9999, &DiskFormat::Vdi).refusal, None);
        vhd[63] = 4;
        vdi[0x4c] = 4;
        assert!(inspect(&vhd, 9999, &DiskFormat::Vhd).refusal.unwrap().contains("parent"));
        assert!(inspect(&vdi, 9999, &DiskFormat::Raw).refusal.unwrap().contains("parent"));
    }

    #[test]
    fn a_raw_form_is_there_or_has_a_reason() {
        let raw = |image: &Qcow2, label| inspect(&image.0, SIZE, &label).raw;
        for version in [2, 3] {
            assert_eq!(raw(&Qcow2::new(version), DiskFormat::Qcow2), None);
        }
        let reason = |image: &Qcow2, label| raw(image, label).unwrap_or_default();
        assert!(reason(&Qcow2::new(3), DiskFormat::Raw).contains("only a qcow2 under its own label"));
        assert!(reason(&Qcow2::new(3).backing(b"/x"), DiskFormat::Qcow2).contains("is refused"));
        assert!(reason(&Qcow2::new(3).u64(72, 1 << 40), DiskFormat::Qcow2).contains("0x10000000000"));
        assert!(reason(&Qcow2::new(3).u64(72, 8), DiskFormat::Qcow2).contains("contradicts"));
        assert_eq!(raw(&Qcow2::new(3).u64(72, DIRTY), DiskFormat::Qcow2), None);
        assert!(reason(&Qcow2::new(3).u64(72, CORRUPT), DiskFormat::Qcow2).contains("marked corrupt"));
        assert!(reason(&Qcow2::new(3).u64(24, 0), DiskFormat::Qcow2).contains("virtual size is 0"));
        assert!(inspect(&[0; 512], 512, &DiskFormat::Raw).raw.is_some());
    }

    #[test]
    fn features_are_noted() {
        let head = Qcow2::new(3).u64(72, 1 << 40 | CORRUPT | DIRTY).u32(60, 2).0;
        let notes = inspect(&head, SIZE, &DiskFormat::Qcow2).notes.join("\n");
        for word in ["dirty", "corrupt", "0x10000000000", "2 internal snapshots"] {
            assert!(notes.contains(word), "{word} in {notes}");
        }
    }

    proptest! {
        #[test]
        fn inspecting_arbitrary_bytes_never_panics(
            magic in prop::sample::select(vec![&b""[..], b"QFI\xfb\0\0\0\x02", b"QFI\xfb\0\0\0\x03", b"KDMV", b"QED\0"]),
            tail in prop::collection::vec(any::<u8>(), 0..2048),
            size in any::<u64>(),
            raw in any::<bool>(),
        ) {
            let head = [magic, &tail].concat();
            inspect(&head, size, if raw { &DiskFormat::Raw } else { &DiskFormat::Qcow2 });
        }

        /// Random bytes die at the first check; a valid header with a few wild fields comes further.
        #[test]
        fn wild_fields_never_panic_and_a_backing_file_is_never_allowed(
            fields in prop::collection::vec((0usize..32, prop_oneof![any::<u32>(), 0u32..2048]), 0..4),
            bits in 9u32..=21,
        ) {
            let mut image = Qcow2::new(3).u32(20, bits);
            for (at, value) in fields {
                image = image.u32(8 + 4 * at, value);
            }
            let seen = inspect(&image.0, SIZE, &DiskFormat::Qcow2);
            prop_assert!(image.0[8..16] == [0; 8] || seen.refusal.is_some());
        }
    }
}
