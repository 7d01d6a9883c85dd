//! The shared corpus of third-party layer archives with the answer each must give.
//!
//! Never copied into the project: it is found through `OCIFS_CORPUS`, else beside the work tree. The idea: the answer is
//! data written by others, so a test of it cannot repeat a mistake of ours.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::byte_text::hex;
use crate::compare::{Entry, REGULAR, TYPE, Tree, hard_links};

/// One case.
pub(crate) struct Case {
    /// `suite/name`.
    pub(crate) name: String,
    /// The layers' tars, lowest first.
    pub(crate) layers: Vec<Vec<u8>>,
    /// The exact tree, or `None` when the layers must be rejected.
    pub(crate) tree: Option<Value>,
    links: BTreeSet<BTreeSet<Vec<u8>>>,
}

/// Where the corpus should be.
pub(crate) fn directory() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    std::env::var_os("OCIFS_CORPUS").map_or_else(beside, PathBuf::from)
}

/// All cases, in the order of their names.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for suite in sorted(&directory()).iter().filter(|path| path.is_dir()) {
        cases.extend(sorted(suite).iter().map(|dir| read_case(dir)));
    }
    cases
}

impl Case {
    /// Every way in which `tree` is not the expected one.
    pub(crate) fn differences(&self, tree: &Tree) -> Vec<String> {
        let expected = self.tree.as_ref().and_then(Value::as_object).expect("an accepted case has a tree");
        let mut found = Vec::new();
        let mut named = BTreeSet::new();
        for (escaped, want) in expected {
            let name = raw_name(escaped);
            match tree.get(&name) {
                Some(entry) => {
                    found.extend(wrong(want, entry).into_iter().map(|what| format!("{escaped}: {what}")))
                }
                None => found.push(format!("{escaped}: missing")),
            }
            named.insert(name);
        }
        for name in tree.keys().filter(|name| !name.is_empty() && !named.contains(*name)) {
            found.push(format!("{}: not expected", String::from_utf8_lossy(name)));
        }
        // The answers list the links between regular files only.
        let regular = |(_, entry): &(&Vec<u8>, &Entry)| entry.mode & TYPE == REGULAR;
        let links = hard_links(
            &tree.iter().filter(regular).map(|(name, entry)| (name.clone(), entry.clone())).collect(),
        );
        if links != self.links {
            found.push(format!("hard links {links:?} instead of {:?}", self.links));
        }
        found
    }
}

fn wrong(want: &Value, entry: &Entry) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |field: &str, is: Value| {
        if want.get(field).is_some_and(|expected| *expected != is) {
            found.push(format!("{field} is {is} instead of {}", want[field]));
        }
    };
    check("mode", format!("{:06o}", entry.mode).into());
    check("uid", entry.uid.into());
    check("gid", entry.gid.into());
    check("mtime", entry.mtime.0.into());
    check("rdev", entry.rdev.into());
    if entry.mode & TYPE == REGULAR {
        check("size", entry.size.into());
    }
    if let Some(sha256) = &entry.sha256 {
        check("sha256_prefix", sha256[..12].into());
    }
    check("link", entry.link.as_ref().map(|link| String::from_utf8_lossy(link).into_owned()).into());
    let xattrs = entry
        .xattrs
        .iter()
        .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), hex(value).into()));
    let is = Value::Object(xattrs.collect());
    if is != want.get("xattrs").cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new())) {
        found.push(format!("xattrs are {is} instead of {:?}", want.get("xattrs")));
    }
    found
}

fn read_case(dir: &Path) -> Case {
    let text = fs::read_to_string(dir.join("expect.json")).expect("every case has an answer");
    let answer: Value = serde_json::from_str(&shelter(&text)).expect("the answer is JSON");
    let count = answer["layers"].as_u64().expect("a number of layers");
    let layers = (0..count).map(|n| fs::read(dir.join(format!("l{n}.tar"))).expect("the layers are there"));
    let accepted = match answer["expect"].as_str() {
        Some("accept") => true,
        Some("reject") => false,
        other => panic!("{dir:?} expects {other:?}"),
    };
    let groups = answer["hardlinks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let links = groups.iter().map(|group| group.as_array().expect("a list").iter().map(name_of).collect());
    Case {
        name: format!(
            "{}/{}",
            answer["suite"].as_str().expect("text"),
            answer["name"].as_str().expect("text")
        ),
        layers: layers.collect(),
        links: links.collect(),
        tree: accepted.then(|| answer["tree"].clone()),
    }
}

fn name_of(value: &Value) -> Vec<u8> {
    raw_name(value.as_str().expect("a name"))
}

/// Bytes that are not text are written as lone surrogates (`\udc80` for 0x80), which JSON readers refuse: they are moved
/// to the private use area, where no name of the corpus lies, and back by [`raw_name`].
fn shelter(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(r"\udc") {
        let (before, tail) = rest.split_at(at);
        let high = before.len().checked_sub(6).and_then(|start| before.get(start..));
        let paired = high
            .is_some_and(|unit| [r"\ud8", r"\ud9", r"\uda", r"\udb"].iter().any(|it| unit.starts_with(it)));
        out.push_str(before);
        out.push_str(if paired { r"\udc" } else { r"\uf7" });
        rest = &tail[4..];
    }
    out.push_str(rest);
    out
}

fn raw_name(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match u32::from(c) {
            code @ 0xf780..=0xf7ff => bytes.push((code & 0xff) as u8),
            _ => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

fn sorted(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{dir:?}: {error}"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    paths
}
