//! Checksum lists of an artifact: `SHA256SUMS`, `NAME.sha256` and similar files.
//!
//! This module takes bytes and returns values. The lists are untrusted, so their size is limited. It reads the output
//! of `sha256sum` and similar programs, plain and tagged, and files with a single checksum of the file next to them.

use crate::oci::Digest;

/// Limit of a list, in bytes: some ten thousand names.
pub(super) const MAX_SUMS: u64 = 1024 * 1024;

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChecksumLine {
    /// Path of the file, relative to the top of the artifact.
    pub(super) path: String,
    /// Expected digest.
    pub(super) digest: Digest,
}

/// Whether the path is that of a checksum list.
pub(super) fn is_list(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    matches!(name.as_str(), "sha256sums" | "sha512sums" | "sha256sums.txt" | "sha512sums.txt")
        || [".sha256", ".sha512", ".sha256sum", ".sha512sum"]
            .iter()
            .any(|end| name.len() > end.len() && name.ends_with(end))
}

/// The lines of the list at `path` with a file and a checksum; other lines (signatures, comments) are skipped.
pub(super) fn parse(path: &str, bytes: &[u8]) -> Vec<ChecksumLine> {
    let text = String::from_utf8_lossy(bytes);
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let alone = path.rsplit_once('.').map(|(stem, _)| stem.to_owned());
    let mut lines = Vec::new();
    for line in text.lines() {
        let line = line.trim_end_matches('\r');
        if let Some(digest) = digest(line.trim()) {
            lines.extend(alone.clone().map(|path| ChecksumLine { path, digest }));
            continue;
        }
        let found = tagged(line).or_else(|| plain(line));
        let Some((name, digest)) = found else { continue };
        if let Some(path) = below(directory, &name) {
            lines.push(ChecksumLine { path, digest });
        }
    }
    lines
}

/// `HEX  NAME`, or `HEX *NAME`; a leading backslash marks an escaped name.
fn plain(line: &str) -> Option<(String, Digest)> {
    let (is_escaped, line) = line.strip_prefix('\\').map_or((false, line), |line| (true, line));
    let (hex, name) = line.split_once(' ')?;
    let name = name.strip_prefix([' ', '*']).unwrap_or(name);
    let name = if is_escaped { name.replace("\\n", "\n").replace("\\\\", "\\") } else { name.to_owned() };
    Some((name, digest(hex)?))
}

/// `SHA256 (NAME) = HEX`.
fn tagged(line: &str) -> Option<(String, Digest)> {
    let (kind, rest) = line.split_once(" (")?;
    let (name, hex) = rest.rsplit_once(") = ")?;
    matches!(kind, "SHA256" | "SHA512").then(|| Some((name.to_owned(), digest(hex.trim())?)))?
}

fn digest(hex: &str) -> Option<Digest> {
    let algorithm = match hex.len() {
        64 => "sha256",
        128 => "sha512",
        _ => return None,
    };
    format!("{algorithm}:{}", hex.to_ascii_lowercase()).parse().ok()
}

/// The path of `name` relative to `directory`; `None` if it leaves the artifact.
fn below(directory: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(path: &str, text: &str) -> Vec<String> {
        parse(path, text.as_bytes()).into_iter().map(|line| line.path).collect()
    }

    #[test]
    fn every_form_that_sha256sum_writes_is_read() {
        let hex = Digest::sha256(b"x").encoded().to_owned();
        let text = format!(
            "# made by hand\n{hex}  a.img\n{hex} *b.img\r\n{}  c/d.img\nSHA256 (e f.img) = {hex}\n\\{hex}  g\\\\h\nnothing\n",
            hex.to_uppercase()
        );
        assert_eq!(paths("SHA256SUMS", &text), ["a.img", "b.img", "c/d.img", "e f.img", "g\\h"]);
        assert_eq!(paths("sub/disk.img.sha256", &format!("{hex}\n")), ["sub/disk.img"]);
        assert_eq!(paths("sub/SHA256SUMS", &format!("{hex}  ./x\n{hex}  ../y\n")), ["sub/x", "y"]);
    }

    #[test]
    fn names_that_leave_the_artifact_and_checksums_of_other_lengths_are_no_lines() {
        let hex = Digest::sha256(b"x").encoded().to_owned();
        assert!(
            paths("SHA256SUMS", &format!("{hex}  ../../etc/passwd\n{}  short\n{hex}  .\n", &hex[1..]))
                .is_empty()
        );
        assert!(parse("SHA256SUMS", &[0xff; 4096]).is_empty());
    }

    #[test]
    fn lists_are_known_by_their_names() {
        for name in ["SHA256SUMS", "d/SHA512SUMS", "disk.qcow2.sha256", "Disk.SHA512", "x.sha256sum"] {
            assert!(is_list(name), "{name}");
        }
        for name in ["sha256", ".sha256", "SHA256SUMS.gpg", "disk.qcow2", "md5sums"] {
            assert!(!is_list(name), "{name}");
        }
    }
}
