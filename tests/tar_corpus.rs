//! The tar walker against the third-party archives of the corpus: same entries, same rejections, however it is fed.
//!
//! `expect.json` describes the tree after union; what only the union decides (missing parents, shared inodes, which entry
//! of a name wins) is applied here in its simplest form.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and says why on stderr"
)]

use std::collections::BTreeMap;

use ocifs::io::FaultClass;
use ocifs::layer::{FileContent, TableOfContents, TocEntry, TocEntryKind};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::tar_walk::{archives, chunked, corpus, ranged, whole};

/// Suites with one layer a case, made to test readers of archives.
const SUITES: [&str; 2] = ["go", "tar-rs"];

/// Rejections that are the union's business: the archive itself is fine. Case, reason.
const UNION_REJECTS: [(&str, &str); 0] = [];

#[test]
fn accepted_archives_have_exactly_the_expected_entries() {
    let Some(dir) = corpus() else { return };
    let mut cases = 0;
    for (name, bytes) in archives(&dir, &SUITES) {
        let expect = expectation(&dir.join(&name));
        if expect["expect"] == "accept" {
            let toc = whole(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
            compare(&name, &toc, &bytes, &expect);
            cases += 1;
        }
    }
    assert!(cases >= 40, "only {cases} cases");
}

#[test]
fn rejected_archives_are_errors_of_the_walker() {
    let Some(dir) = corpus() else { return };
    let mut cases = 0;
    for (name, bytes) in archives(&dir, &SUITES) {
        if expectation(&dir.join(&name))["expect"] == "reject" {
            let excused = UNION_REJECTS.iter().any(|(case, _)| *case == name);
            match whole(&bytes) {
                Ok(toc) => assert!(excused, "{name} was accepted with {} entries", toc.len()),
                Err(error) => {
                    assert!(!excused, "{name} is the walker's business: {error}");
                    assert!(
                        matches!(error.fault(), FaultClass::Malformed | FaultClass::Unsupported),
                        "{name}: {error}"
                    );
                    eprintln!("{name}: {error}");
                    cases += 1;
                }
            }
        }
    }
    assert!(cases >= 15, "only {cases} cases");
}

#[test]
fn every_way_of_feeding_gives_the_same_answer() {
    let Some(dir) = corpus() else { return };
    for (name, bytes) in archives(&dir, &["go", "tar-rs", "containerd", "umoci"]) {
        let answer = whole(&bytes);
        for chunk in [1, 7, 512, 513, 64 << 10] {
            assert_eq!(chunked(&bytes, chunk), answer, "{name} in chunks of {chunk}");
        }
        for ahead in [0, 1, 700, 1 << 20] {
            assert_eq!(ranged(&bytes, ahead).0, answer, "{name} with {ahead} bytes read ahead");
        }
    }
}

/// The suites of appliers are about the union: every archive of a case that they accept is a good archive.
#[test]
fn layers_of_accepted_images_are_walked() {
    let Some(dir) = corpus() else { return };
    for (name, bytes) in archives(&dir, &["containerd", "umoci"]) {
        if expectation(&dir.join(&name))["expect"] == "accept" {
            let toc = whole(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(!toc.is_empty(), "{name}");
        }
    }
}

fn expectation(case: &std::path::Path) -> Value {
    let text = std::fs::read_to_string(case.join("expect.json")).unwrap();
    serde_json::from_str(&escaped_bytes_as_private_use(&text)).unwrap()
}

/// Python writes byte 0x80+n of a name that is not UTF-8 as the lone surrogate U+DC80+n, which is not valid in JSON: here
/// it becomes U+E080+n, which no name of the corpus uses.
fn escaped_bytes_as_private_use(text: &str) -> String {
    let mut out = String::new();
    for (at, part) in text.split("\\udc").enumerate() {
        let before_is_high_surrogate =
            out.len() >= 6 && out[..].get(out.len() - 6..out.len() - 2) == Some("\\ud8");
        if at > 0 {
            out.push_str(if before_is_high_surrogate { "\\udc" } else { "\\ue0" });
        }
        out.push_str(part);
    }
    out
}

fn bytes_of(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for c in text.chars() {
        match u32::from(c) {
            code @ 0xe080..=0xe0ff => bytes.push((code - 0xe000) as u8),
            _ => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

fn clean(path: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> =
        path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    assert!(!parts.contains(&&b".."[..]), "these suites have no such names");
    parts.join(&b'/')
}

fn compare(case: &str, toc: &TableOfContents, archive: &[u8], expect: &Value) {
    let mut entries: BTreeMap<Vec<u8>, &TocEntry> = BTreeMap::new();
    let own: Vec<TocEntry> = toc.iter().map(|entry| entry.to_entry()).collect();
    for entry in &own {
        let path = clean(&entry.path);
        if path.is_empty() {
            assert_eq!(entry.kind, TocEntryKind::Directory, "{case}: the root is a directory");
        } else {
            entries.insert(path, entry);
        }
    }
    let groups: Vec<Vec<Vec<u8>>> = expect["hardlinks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| group.as_array().unwrap().iter().map(|name| bytes_of(name.as_str().unwrap())).collect())
        .collect();
    let tree = expect["tree"].as_object().unwrap();
    let mut matched = 0;
    for (path, node) in tree {
        let subject = format!("{case}: {path}");
        let path = bytes_of(path);
        let Some(entry) = entries.get(&path) else {
            let implied = (node["mode"].as_str(), node["uid"].as_u64(), node["gid"].as_u64());
            assert_eq!(implied, (Some("040755"), Some(0), Some(0)), "{subject} is not in the archive");
            let below = [&path[..], b"/"].concat();
            assert!(entries.keys().any(|other| other.starts_with(&below)), "{subject} is not in the archive");
            continue;
        };
        matched += 1;
        // The content of a hard link is its target's; its attributes are those of the group's last entry.
        let group = groups.iter().find(|group| group.contains(&path));
        let last = group.map_or(*entry, |group| {
            group.iter().map(|name| entries[name]).max_by_key(|entry| entry.header).unwrap()
        });
        let origin = match &entry.kind {
            TocEntryKind::HardLink(target) => {
                let target = clean(target);
                assert!(
                    group.is_some_and(|group| group.contains(&target)),
                    "{subject} links to another file"
                );
                entries[&target]
            }
            _ => entry,
        };
        compare_node(&subject, last, origin, archive, node);
    }
    assert_eq!(matched, entries.len(), "{case} has entries that are not expected: {:?}", entries.keys());
}

fn compare_node(subject: &str, entry: &TocEntry, origin: &TocEntry, archive: &[u8], node: &Value) {
    let kind = match &origin.kind {
        TocEntryKind::File(_) => "100",
        TocEntryKind::Directory => "040",
        TocEntryKind::Symlink(_) => "120",
        TocEntryKind::CharDevice(_) => "020",
        TocEntryKind::BlockDevice(_) => "060",
        TocEntryKind::Fifo => "010",
        TocEntryKind::HardLink(_) => panic!("{subject} is a link to a link"),
    };
    let mode = format!("{kind}{:03o}", entry.mode);
    // The reference made symbolic links on Linux, where their permission bits are always 0777.
    let mode = if kind == "120" { "120777".into() } else { mode };
    assert_eq!(node["mode"], mode, "{subject}: mode");
    assert_eq!(node["uid"], entry.uid, "{subject}: uid");
    assert_eq!(node["gid"], entry.gid, "{subject}: gid");
    if let Some(mtime) = node.get("mtime") {
        assert_eq!(*mtime, entry.mtime.secs, "{subject}: mtime");
    }
    let mut xattrs = BTreeMap::new();
    if let Some(recorded) = node.get("xattrs") {
        for (name, value) in recorded.as_object().unwrap() {
            xattrs.insert(bytes_of(name), value.as_str().unwrap().to_owned());
        }
    }
    let found: BTreeMap<Vec<u8>, String> =
        entry.xattrs.iter().map(|(name, value)| (name.clone(), hex(value))).collect();
    assert_eq!(found, xattrs, "{subject}: xattrs");
    match &origin.kind {
        TocEntryKind::File(content) => {
            assert_eq!(node["size"], content.size, "{subject}: size");
            if let Some(prefix) = node.get("sha256_prefix") {
                let digest = hex(&Sha256::digest(read(content, archive)));
                assert_eq!(*prefix, digest[..12], "{subject}: content");
            }
        }
        TocEntryKind::Symlink(target) => {
            assert_eq!(bytes_of(node["link"].as_str().unwrap()), *target, "{subject}: target");
        }
        TocEntryKind::CharDevice(device) | TocEntryKind::BlockDevice(device) => {
            assert_eq!(node["rdev"], device.major << 8 | device.minor, "{subject}: rdev");
        }
        _ => {}
    }
}

/// The bytes of a file, from the archive.
fn read(content: &FileContent, archive: &[u8]) -> Vec<u8> {
    let mut stored = &archive[content.offset as usize..][..content.stored() as usize];
    let Some(runs) = &content.runs else { return stored.to_vec() };
    let mut bytes = vec![0; content.size as usize];
    for run in runs {
        let (data, rest) = stored.split_at(run.len as usize);
        bytes[run.offset as usize..][..data.len()].copy_from_slice(data);
        stored = rest;
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
