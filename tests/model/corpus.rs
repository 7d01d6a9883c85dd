//! The corpus: real archives, read by the `tar` crate, applied by `ocifs::tree`, compared with the recorded answers.
//!
//! Only what the `tar` crate reads as Go's reader does can be judged here; the rest is the parser's own test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

use ocifs::layer::{DeviceNumber, FileContent, TableOfContents, TocEntry, TocEntryKind, UnixTime};
use ocifs::tree::{FrozenTree, InodeKind, TreeBuilder};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Cases of the `go` and `tar-rs` suites that the `tar` crate or `serde_json` cannot read as the answer needs.
const UNREADABLE: &[(&str, &str)] = &[
    ("gnu-long-nul.tar", "the tar crate does not end a long name at its NUL"),
    ("gnu-multi-hdrs.tar", "the tar crate wants one long name for an entry"),
    ("gnu-not-utf8.tar", "serde_json refuses the lone surrogates of its expect.json"),
    ("invalid-go17.tar", "the tar crate joins prefix and name of a header that has none"),
    ("pax-multi-hdrs.tar", "the tar crate wants one pax header for an entry"),
    ("pax-nil-sparse-data.tar", "the tar crate knows no pax sparse files"),
    ("pax-nil-sparse-hole.tar", "the tar crate knows no pax sparse files"),
    ("pax-path-hdr.tar", "the tar crate wants an entry after a pax header"),
    ("pax-sparse-big.tar", "the tar crate knows no pax sparse files"),
];

#[test]
fn containerd_archives_give_the_recorded_trees() {
    suite("containerd", 33, Rejects::Judged);
}

#[test]
fn umoci_archives_give_the_recorded_trees() {
    suite("umoci", 31, Rejects::Judged);
}

#[test]
fn go_archives_give_the_recorded_trees() {
    suite("go", 42, Rejects::LeftToTheParser);
}

#[test]
fn tar_rs_archives_give_the_recorded_trees() {
    suite("tar-rs", 19, Rejects::LeftToTheParser);
}

/// Whether the cases that must be rejected are malformed trees or malformed archives.
#[derive(PartialEq)]
enum Rejects {
    Judged,
    LeftToTheParser,
}

fn suite(name: &str, cases: usize, rejects: Rejects) {
    let Some(root) = corpus() else { return };
    let mut failures = Vec::new();
    let mut seen = 0;
    let mut dirs: Vec<PathBuf> =
        fs::read_dir(root.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    for dir in dirs {
        seen += 1;
        let case = dir.file_name().unwrap().to_str().unwrap().to_owned();
        if let Some((_, reason)) = UNREADABLE.iter().find(|(name, _)| *name == case) {
            eprintln!("{name}/{case} not judged: {reason}");
            continue;
        }
        let expect: Value = serde_json::from_slice(&fs::read(dir.join("expect.json")).unwrap()).unwrap();
        let accepted = expect["expect"] == "accept";
        if !accepted && rejects == Rejects::LeftToTheParser {
            continue;
        }
        let layers: Vec<Vec<u8>> = (0..expect["layers"].as_u64().unwrap())
            .map(|number| fs::read(dir.join(format!("l{number}.tar"))).unwrap())
            .collect();
        match (apply(&layers), accepted) {
            (Err(error), true) => failures.push(format!("{case}: rejected: {error}")),
            (Ok(_), false) => failures.push(format!("{case}: accepted, but {}", expect["why"])),
            (Err(_), false) => {}
            (Ok(tree), true) => {
                for difference in differences(&tree, &layers, &expect) {
                    failures.push(format!("{case}: {difference}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
    assert_eq!(seen, cases, "cases of {name}");
}

fn corpus() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    let root = env::var_os("OCIFS_CORPUS").map_or_else(beside, PathBuf::from);
    if root.is_dir() {
        return Some(root);
    }
    assert!(env::var_os("CI").is_none(), "no corpus at {} (set OCIFS_CORPUS)", root.display());
    eprintln!("skipped: no corpus at {} (set OCIFS_CORPUS)", root.display());
    None
}

fn apply(layers: &[Vec<u8>]) -> Result<FrozenTree, String> {
    let mut builder = TreeBuilder::new();
    for (origin, layer) in layers.iter().enumerate() {
        let toc = toc(layer).map_err(|error| format!("the tar crate: {error}"))?;
        builder.apply(origin as u32, &toc).map_err(|error| error.to_string())?;
    }
    Ok(builder.freeze())
}

fn toc(archive: &[u8]) -> std::io::Result<TableOfContents> {
    let mut toc = TableOfContents::default();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let mut xattrs = Vec::new();
        // Go's reader, like the pax specification, lets a record override what the header says.
        let mut records = BTreeMap::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                match extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                    Some(name) => xattrs.push((name.to_vec(), extension.value_bytes().to_vec())),
                    None => {
                        records.insert(extension.key_bytes().to_vec(), extension.value_bytes().to_vec());
                    }
                }
            }
        }
        let header = entry.header();
        let link = || entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
        let device = || -> std::io::Result<DeviceNumber> {
            Ok(DeviceNumber {
                major: header.device_major()?.unwrap_or(0),
                minor: header.device_minor()?.unwrap_or(0),
            })
        };
        let kind = match header.entry_type().as_byte() {
            b'g' => continue,
            b'5' => TocEntryKind::Directory,
            // A V7 archive marks a directory with nothing but the slash.
            b'0' | 0 if entry.path_bytes().ends_with(b"/") => TocEntryKind::Directory,
            b'0' | 0 => TocEntryKind::File(FileContent {
                size: entry.size(),
                offset: entry.raw_file_position(),
                runs: None,
            }),
            b'1' => TocEntryKind::HardLink(link()),
            b'2' => TocEntryKind::Symlink(link()),
            b'3' => TocEntryKind::CharDevice(device()?),
            b'4' => TocEntryKind::BlockDevice(device()?),
            b'6' => TocEntryKind::Fifo,
            flag => return Err(std::io::Error::other(format!("typeflag {flag:#x}"))),
        };
        let record = |name: &str| {
            records.get(name.as_bytes()).map(|value| String::from_utf8_lossy(value).into_owned())
        };
        let number = |name: &str, field: &[u8]| -> std::io::Result<u64> {
            record(name).map_or_else(|| numeric(field), |value| value.parse().map_err(std::io::Error::other))
        };
        let mtime = record("mtime").map(|value| value.parse::<f64>().unwrap().floor() as i64);
        toc.push(TocEntry {
            path: entry.path_bytes().into_owned(),
            kind,
            mode: (numeric(&header.as_old().mode)? & 0o7777) as u16,
            uid: number("uid", &header.as_old().uid)? as u32,
            gid: number("gid", &header.as_old().gid)? as u32,
            mtime: UnixTime {
                secs: mtime.map_or_else(|| header.mtime().map(|mtime| mtime as i64), Ok)?,
                nanos: 0,
            },
            xattrs,
            header: entry.raw_header_position(),
        });
    }
    Ok(toc)
}

/// A number of a header: octal, or base-256 when the first bit is set. Nothing is zero, as for Go's reader.
fn numeric(field: &[u8]) -> std::io::Result<u64> {
    if field[0] & 0x80 != 0 {
        return Ok(field[1..]
            .iter()
            .fold(u64::from(field[0] & 0x7f), |sum, &byte| sum << 8 | u64::from(byte)));
    }
    let digits = String::from_utf8_lossy(field);
    let digits = digits.trim_matches([' ', '\0']);
    if digits.is_empty() { Ok(0) } else { u64::from_str_radix(digits, 8).map_err(std::io::Error::other) }
}

fn differences(tree: &FrozenTree, layers: &[Vec<u8>], expect: &Value) -> Vec<String> {
    let mut wanted: BTreeMap<&str, &Value> =
        expect["tree"].as_object().unwrap().iter().map(|(path, node)| (path.as_str(), node)).collect();
    let mut differences = Vec::new();
    let mut groups: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for (path, ino) in tree.walk() {
        let path = String::from_utf8_lossy(&path).into_owned();
        // The answers were recorded without the groups of names of symbolic links.
        if tree.attr(ino).unwrap().nlink > 1 && tree.file(ino).is_some() {
            groups.entry(ino).or_default().insert(path.clone());
        }
        let Some(wanted) = wanted.remove(path.as_str()) else {
            differences.push(format!("{path} is too much"));
            continue;
        };
        let actual = describe(tree, ino, layers, wanted);
        if actual != *wanted {
            differences.push(format!("{path}: expected {wanted}, got {actual}"));
        }
    }
    differences.extend(wanted.keys().map(|path| format!("{path} is missing")));
    let groups: BTreeSet<BTreeSet<String>> = groups.into_values().collect();
    let expected: BTreeSet<BTreeSet<String>> = serde_json::from_value(expect["hardlinks"].clone()).unwrap();
    if groups != expected {
        differences.push(format!("hard links: expected {expected:?}, got {groups:?}"));
    }
    differences
}

/// The node as `expect.json` tells it; what `wanted` does not compare is left out.
fn describe(tree: &FrozenTree, ino: u32, layers: &[Vec<u8>], wanted: &Value) -> Value {
    let attr = tree.attr(ino).unwrap();
    let kind = match attr.kind {
        InodeKind::File => "100",
        InodeKind::Directory => "040",
        InodeKind::Symlink => "120",
        InodeKind::CharDevice => "020",
        InodeKind::BlockDevice => "060",
        InodeKind::Fifo => "010",
        InodeKind::Graft(_) => panic!("a layer has no grafts"),
    };
    // Set-id and sticky bits share the octal digit before the permissions with nothing of the type.
    let mut node = serde_json::json!({
        "mode": format!("{}{:03o}", &kind, attr.mode),
        "uid": attr.uid,
        "gid": attr.gid,
    });
    if attr.mode > 0o777 {
        node["mode"] = format!("{}{:04o}", &kind[..2], attr.mode).into();
    }
    if let Some(file) = tree.file(ino) {
        node["size"] = attr.size.into();
        if wanted.get("mtime").is_some() {
            node["mtime"] = attr.mtime.secs.into();
        }
        if wanted.get("sha256_prefix").is_some() {
            let content = &layers[file.origin as usize][file.offset as usize..][..file.size as usize];
            node["sha256_prefix"] = hex(&Sha256::digest(content))[..12].into();
        }
    }
    if let Some(link) = tree.link(ino) {
        node["link"] = String::from_utf8_lossy(link).into();
    }
    if matches!(attr.kind, InodeKind::CharDevice | InodeKind::BlockDevice) {
        // As `stat` shows it, for numbers below 256.
        node["rdev"] = (attr.rdev.major << 8 | attr.rdev.minor).into();
    }
    let xattrs: serde_json::Map<String, Value> = tree
        .xattrs(ino)
        .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), hex(value).into()))
        .collect();
    if !xattrs.is_empty() {
        node["xattrs"] = xattrs.into();
    }
    node
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
