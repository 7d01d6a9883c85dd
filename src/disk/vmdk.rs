//! VMDK safety check: finds references to other files.
//!
//! Opens no extent. Only a self-contained sparse extent is harmless; a descriptor that names extents or a parent
//! makes a hypervisor open files of its host.

use super::DiskError;

const SECTOR: u64 = 512;
/// Kinds whose only extent is the file itself (VMware "Virtual Disk Format 5.0", "The Extent Description").
const SELF_CONTAINED: [&str; 2] = ["monolithicSparse", "streamOptimized"];

/// Whether a probing hypervisor would take `head` for a VMDK: a sparse extent, or a text descriptor, which starts
/// with its version after any number of comments and blank lines (the probe of QEMU `block/vmdk.c`).
pub(super) fn probe(head: &[u8]) -> bool {
    if head.starts_with(b"KDMV") || head.starts_with(b"COWD") || head.starts_with(b"# Disk DescriptorFile") {
        return true;
    }
    head.split(|byte| *byte == b'\n')
        .map(|line| line.trim_ascii())
        .find(|line| !line.is_empty() && line[0] != b'#')
        .is_some_and(|line| [&b"version=1"[..], b"version=2", b"version=3"].contains(&line))
}

/// The bytes that QEMU searches for a parent, whatever the header records: 20 sectors from the second one
/// (`block/vmdk.c`: `desc_offset` of both kinds of sparse extent, `DESC_SIZE`).
const PARENT_SEARCH: std::ops::Range<usize> = 0x200..0x200 + 20 * 512;
/// The text that stands before the name of a parent. QEMU takes it anywhere, also in the middle of a line.
const PARENT_KEY: &[u8] = b"parentFileNameHint";

/// The other files that a hypervisor would open for the disk, in words; `None` when there are none.
pub(super) fn references(head: &[u8]) -> Result<Option<String>, DiskError> {
    let malformed = |reason: String| DiskError::Malformed { format: "vmdk", reason };
    let is_cowd = head.starts_with(b"COWD");
    if !is_cowd && !head.starts_with(b"KDMV") {
        return Ok(Some("it is a vmdk descriptor, whose extents are other files".into()));
    }
    let searched = head.get(PARENT_SEARCH.start..PARENT_SEARCH.end.min(head.len())).unwrap_or_default();
    if let Some(at) = find_parent(searched) {
        return Ok(Some(format!("its parent is {:?}", parent_value(&searched[at..]))));
    }
    if is_cowd {
        return Ok(None);
    }
    let field = |at: usize| -> Result<u64, DiskError> {
        let bytes = head.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_le_bytes).ok_or_else(|| malformed(format!("it ends at byte {}", head.len())))
    };
    let (capacity, sector, sectors) = (field(12)?, field(28)?, field(36)?);
    if capacity == 0 {
        return Ok(Some("its descriptor names other files as extents (its own capacity is 0)".into()));
    }
    if sector == 0 {
        return Ok(None);
    }
    let range = sector.checked_mul(SECTOR).zip(sectors.checked_mul(SECTOR)).and_then(|(start, len)| {
        Some(usize::try_from(start).ok()?..usize::try_from(start.checked_add(len)?).ok()?)
    });
    let Some(text) = range.and_then(|range| head.get(range)) else {
        return Err(malformed(format!(
            "its descriptor of {sectors} sectors at {sector} is not at its start"
        )));
    };
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    if let Some(at) = find_parent(text) {
        return Ok(Some(format!("its parent is {:?}", parent_value(&text[at..]))));
    }
    let text = String::from_utf8_lossy(text);
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = value.trim().trim_matches('"');
        if key.trim().eq_ignore_ascii_case("createType") && !SELF_CONTAINED.contains(&value) {
            return Ok(Some(format!("its type is {value:?}, whose extents are other files")));
        }
    }
    Ok(None)
}

/// The offset of [`PARENT_KEY`] in `text`, in any case of its letters.
fn find_parent(text: &[u8]) -> Option<usize> {
    text.windows(PARENT_KEY.len()).position(|key| key.eq_ignore_ascii_case(PARENT_KEY))
}

/// The value of the line that starts with [`PARENT_KEY`], for messages.
fn parent_value(line: &[u8]) -> String {
    let line = line.split(|byte| matches!(byte, b'\n' | b'\r' | 0)).next().unwrap_or_default();
    let value = line.get(PARENT_KEY.len()..).unwrap_or_default();
    String::from_utf8_lossy(value).trim_start_matches([' ', '\t', '=']).trim().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(descriptor: &str) -> Vec<u8> {
        let mut head = b"KDMV\x01\0\0\0\x03\0\0\0".to_vec();
        for field in [16384u64, 128, 1, 20] {
            head.extend(field.to_le_bytes());
        }
        head.resize(512, 0);
        head.extend(descriptor.as_bytes());
        head.resize(512 * 21, 0);
        head
    }

    #[test]
    fn a_descriptor_is_seen_behind_comments_and_blank_lines() {
        assert!(probe(b"# hello\n\n  \nversion=1\nCID=1\n"));
        assert!(probe(b"version=3\r\n"));
        assert!(!probe(b"version=4\n"));
        assert!(!probe(b"#!/bin/sh\necho version=1\n"));
        assert!(!probe(b""));
    }

    #[test]
    fn a_sparse_extent_with_a_parent_is_no_longer_self_contained() {
        let plain = "createType=\"monolithicSparse\"\nparentCID=ffffffff\n";
        assert_eq!(references(&sparse(plain)), Ok(None));
        let child = format!("{plain}parentFileNameHint=\"/etc/passwd\"\n");
        assert!(references(&sparse(&child)).unwrap().unwrap().contains("/etc/passwd"));
        assert!(references(&sparse("createType=\"vmfs\"\n")).unwrap().unwrap().contains("vmfs"));
    }

    #[test]
    fn a_parent_is_found_where_a_hypervisor_searches_whatever_the_header_records() {
        let hint = "parentFileNameHint=\"/etc/passwd\"\n";
        let mut cowd = sparse(hint);
        cowd[..4].copy_from_slice(b"COWD");
        let mut without_descriptor = sparse(hint);
        without_descriptor[28..36].fill(0);
        let mut elsewhere = sparse(hint);
        elsewhere[28..36].copy_from_slice(&40u64.to_le_bytes());
        elsewhere.resize(512 * 60, 0);
        elsewhere[512 * 40..512 * 40 + 30].copy_from_slice(b"createType=\"monolithicSparse\"\n");
        let in_a_line = sparse(&format!("x=1 {hint}"));
        let mut last = sparse("");
        last[512 * 21 - hint.len()..].copy_from_slice(hint.as_bytes());
        last[28..36].fill(0);
        let mut behind_a_zero = sparse("");
        behind_a_zero[600..600 + hint.len()].copy_from_slice(hint.as_bytes());
        for head in [cowd, without_descriptor, elsewhere, in_a_line, last, behind_a_zero] {
            assert!(references(&head).unwrap().unwrap().contains("\"/etc/passwd\""));
        }
        let mut plain = sparse("");
        plain[..4].copy_from_slice(b"COWD");
        assert_eq!(references(&plain), Ok(None));
        assert_eq!(references(b"COWD"), Ok(None));
    }

    #[test]
    fn a_descriptor_that_cannot_be_seen_is_malformed() {
        let mut head = sparse("");
        head[28..36].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(references(&head).unwrap_err().to_string().contains("not at its start"));
        assert!(references(b"KDMV\x01").unwrap_err().to_string().contains("ends at byte 5"));
    }
}
