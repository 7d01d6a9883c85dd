//! Titles of layers that are parts of a disk: `win.qcow2.07.qcow2.part` is part 07 of `win.qcow2`.
//!
//! An ambiguous title is not decided alone: `ubuntu-22.04.qcow2.part` may be a whole disk or part 04 of `ubuntu-22`.
//! Such a number is not `sure`, and counts only if another layer has the same stem.

use super::DiskFormat;
use crate::oci::StreamEncoding;

/// The evidence that a layer is a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartEvidence {
    /// Its media type marks a part.
    Part,
    /// Its media type marks a whole disk.
    Whole,
    /// No media type; only the title.
    Unlabelled,
}

/// A parsed title.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ParsedTitle<'a> {
    /// The name of the disk, possibly without extension.
    pub(super) stem: &'a str,
    /// The number as written: decimal, hexadecimal, or letters as in `split`; `None` without one.
    pub(super) number: Option<&'a str>,
    /// Whether the number has no other reading.
    pub(super) sure: bool,
    /// The name of the disk if the number is not one.
    pub(super) whole: &'a str,
}

/// Maximum characters of a number: 18 letters fit a `u128`.
const MAX_NUMBER: usize = 18;

/// Suffixes of whole disks that look like the letters of `split` and are not numbers, beside those of compressions. For
/// a layer that is known to be a part they are numbers: `gz` is the 182nd suffix.
const SIDECARS: [&str; 11] = ["lz", "zip", "sig", "asc", "pem", "crt", "att", "txt", "log", "md", "sum"];

/// Parses a title.
pub(super) fn read(title: &str, role: PartEvidence) -> ParsedTitle<'_> {
    let marked = title.strip_suffix(".part");
    let body = marked.unwrap_or(title);
    let part = marked.is_some() || role == PartEvidence::Part;
    let numbered = |stem, number, sure| ParsedTitle { stem, number: Some(number), sure, whole: body };
    if let Some((stem, number)) = part_tail(body)
        && (part || is_disk_name(stem))
    {
        return numbered(stem, number, true);
    }
    if let Some((stem, last)) = body.rsplit_once('.')
        && is_number(last)
        && ((part && is_disk_name(stem)) || !is_word(last))
        && !stem.is_empty()
        && (part || is_disk_name(stem))
    {
        return numbered(stem, last, is_disk_name(stem));
    }
    if part
        && is_disk_name(body)
        && let Some((rest, _)) = body.rsplit_once('.')
    {
        if let Some((stem, number)) = part_tail(rest) {
            return numbered(stem, number, true);
        }
        if let Some((stem, last)) = rest.rsplit_once('.')
            && is_number(last)
            && (is_disk_name(stem) || !is_word(last))
            && !stem.is_empty()
        {
            return numbered(stem, last, is_disk_name(stem));
        }
    }
    ParsedTitle { stem: body, number: None, sure: true, whole: body }
}

/// Whether the name ends in the extension of a disk.
pub(super) fn is_disk_name(name: &str) -> bool {
    DiskFormat::by_extension(name).is_some()
}

/// `disk.qcow2.part9`, `disk-part-09`, `disk_part.9`: the stem and the digits.
fn part_tail(name: &str) -> Option<(&str, &str)> {
    const JOINT: [char; 3] = ['.', '-', '_'];
    let rest = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &name[rest.len()..];
    let rest = rest.strip_suffix(JOINT).unwrap_or(rest).strip_suffix("part")?;
    let stem = rest.strip_suffix(JOINT)?;
    (!stem.is_empty() && is_number(digits)).then_some((stem, digits))
}

/// Whether a text is a number: digits, or a suffix of `split` of two or more hexadecimal digits or letters.
fn is_number(text: &str) -> bool {
    if text.is_empty() || text.len() > MAX_NUMBER {
        return false;
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return true;
    }
    let letters = text.bytes().all(|byte| byte.is_ascii_lowercase());
    let hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let extension = DiskFormat::by_extension(&format!("x.{text}")).is_some();
    text.len() >= 2 && (letters || hex) && !extension
}

/// Letters that are more likely an extension or a word than a number. Runs of more than three are numbers only at the
/// start of `split -a 4`, and where `split` has widened its suffixes: `yz` is followed by `zaaa`.
fn is_word(text: &str) -> bool {
    let letters = text.bytes().all(|byte| byte.is_ascii_lowercase());
    let counts = text.starts_with('z') || text.starts_with("aa");
    let is_compression =
        StreamEncoding::in_titles().any(|it| it.names().extension.strip_prefix('.') == Some(text));
    is_compression || SIDECARS.contains(&text) || (letters && text.len() > 3 && !counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(title: &str, role: PartEvidence) -> (&str, Option<&str>, bool) {
        let reading = read(title, role);
        (reading.stem, reading.number, reading.sure)
    }

    #[test]
    fn numbers_are_found_where_builders_put_them() {
        for (title, stem, number) in [
            ("win.qcow2.00.qcow2.part", "win.qcow2", "00"),
            ("windows-11-25h2.qcow2.07.qcow2.part", "windows-11-25h2.qcow2", "07"),
            ("disk.qcow2.00", "disk.qcow2", "00"),
            ("disk.qcow2.00.part", "disk.qcow2", "00"),
            ("disk.qcow2.part9", "disk.qcow2", "9"),
            ("disk.qcow2.part.10", "disk.qcow2", "10"),
            ("disk.qcow2-part-10", "disk.qcow2", "10"),
            ("disk.img.aa", "disk.img", "aa"),
            ("disk.img.zaaa", "disk.img", "zaaa"),
            ("disk.img.0a", "disk.img", "0a"),
        ] {
            for role in [PartEvidence::Part, PartEvidence::Unlabelled] {
                assert_eq!(split(title, role), (stem, Some(number), true), "{title}");
            }
        }
        assert_eq!(split("disk.part1", PartEvidence::Part), ("disk", Some("1"), true));
        assert_eq!(split("disk.part1.qcow2", PartEvidence::Part), ("disk", Some("1"), true));
    }

    #[test]
    fn versions_and_partitions_are_no_numbers_of_parts() {
        for title in [
            "ubuntu-22.04.qcow2",
            "disk-part1.raw",
            "disk.qcow2.sig",
            "disk.img.gz",
            "disk.img.raw",
            "disk.qcow2.sha256",
            "notes.00",
            "my.disk.word",
        ] {
            assert_eq!(read(title, PartEvidence::Unlabelled).number, None, "{title}");
            assert_eq!(read("my.disk.word.part", PartEvidence::Part).number, None);
        }
        for number in ["gz", "abaa", "sig"] {
            let title = format!("disk.qcow2.{number}");
            assert_eq!(
                read(&title, PartEvidence::Part).number,
                Some(number),
                "the type says that it is a part"
            );
        }
        let reading = read("ubuntu-22.04.qcow2.part", PartEvidence::Part);
        assert_eq!((reading.number, reading.sure, reading.whole), (Some("04"), false, "ubuntu-22.04.qcow2"));
        assert_eq!(split("x.00.part", PartEvidence::Part), ("x", Some("00"), false));
    }

    #[test]
    fn a_title_without_a_number_is_a_stem() {
        assert_eq!(split("disk.qcow2.part", PartEvidence::Part), ("disk.qcow2", None, true));
        assert_eq!(split("", PartEvidence::Part), ("", None, true));
        assert_eq!(split(".part", PartEvidence::Part), ("", None, true));
        assert_eq!(split(".00", PartEvidence::Part), (".00", None, true));
        assert_eq!(read("d.qcow2.0000000000000000000", PartEvidence::Part).number, None);
    }
}
