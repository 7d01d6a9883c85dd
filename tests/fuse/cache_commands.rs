//! `ocifs cache` and `--no-cache`: reports equal the files, and files that a mount uses are not touched.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::encode::Encoding;
use crate::fault_registry::FaultRegistry;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able, run, sh};
use crate::site::Site;
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const BODY: usize = 700_000;

/// An image of one gzip layer with one file; its reference with the digest, the layer's digest, and what the file holds.
struct Thing {
    reference: String,
    layer: String,
    body: Vec<u8>,
    /// A layout would be read where it lies.
    _registry: FaultRegistry,
}

fn thing(site: &Site, seed: u64) -> Thing {
    let dir = site.scratch().join(format!("layout-{seed}"));
    let mut layout = Layout::create(&dir);
    let body = noise(BODY, seed);
    let layer = Layer::of(&Tarball::new().file("f", &body).bytes(), Encoding::Gzip);
    let digest = layout.image("v1", std::slice::from_ref(&layer));
    let registry = FaultRegistry::of_layout(&dir, "a/b");
    let reference = format!("{}/a/b@{digest}", registry.host());
    Thing { reference, layer: layer.digest(), body, _registry: registry }
}

/// Mounts it, reads it, and takes the mount away.
fn fill(site: &Site, thing: &Thing) {
    let mount = site.mount(&thing.reference, &[]);
    assert!(fs::read(mount.join("merged/f")).unwrap() == thing.body);
    mount.unmount();
}

#[track_caller]
fn list(site: &Site) -> Vec<Value> {
    let output = site.ocifs(&["cache", "ls", "--format", "json"]).ok().text();
    let list: Value = serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"));
    assert_eq!(list["schemaVersion"], 1);
    list["contents"].as_array().unwrap().clone()
}

fn of<'a>(list: &'a [Value], kind: &str, digest: &str) -> Option<&'a Value> {
    list.iter().find(|item| item["kind"] == kind && item["digest"] == digest)
}

/// The file of a blob that everybody may read.
fn blob(site: &Site, digest: &str) -> PathBuf {
    site.cache().join("v1/blobs").join(digest.replace(':', "/"))
}

fn age(path: &Path) {
    run(Command::new("touch").args(["-d", "3 hours ago"]).arg(path)).ok();
}

#[test]
fn cache_list_shows_content_size_and_use() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    assert!(list(&site).is_empty() && !site.cache().exists(), "looking makes nothing");
    let thing = thing(&site, 1);
    let mount = site.mount(&thing.reference, &[]);
    assert!(fs::read(mount.join("merged/f")).unwrap() == thing.body);
    let used = list(&site);
    assert_eq!(of(&used, "stream", &thing.layer).unwrap()["inUse"], true, "{used:#?}");
    mount.unmount();
    let kept = list(&site);
    let stored = of(&kept, "blob", &thing.layer).unwrap();
    assert_eq!(
        (&stored["state"], &stored["inUse"], &stored["place"]),
        (&"verified".into(), &false.into(), &Value::Null)
    );
    assert_eq!(stored["size"].as_u64().unwrap(), fs::metadata(blob(&site, &thing.layer)).unwrap().len());
    assert!(stored["onDisk"].as_u64().unwrap() >= stored["size"].as_u64().unwrap());
    assert!(stored["lastUsed"].as_u64().unwrap() > 1_600_000_000);
    let text = site.ocifs(&["cache", "ls"]).ok().text();
    assert_eq!(text.lines().count(), kept.len() + 1, "{text}");
    assert!(text.contains("verified") && text.contains(&thing.layer), "{text}");

    let usage: Value =
        serde_json::from_str(&site.ocifs(&["cache", "du", "--format", "json"]).ok().text()).unwrap();
    let sum: u64 = kept.iter().map(|item| item["onDisk"].as_u64().unwrap()).sum();
    assert_eq!(usage["total"]["onDisk"].as_u64().unwrap(), sum);
    assert_eq!(usage["total"]["count"].as_u64().unwrap(), kept.len() as u64);
    assert!(site.ocifs(&["cache", "du"]).ok().text().contains("total"));
}

#[test]
fn cache_rm_keeps_content_in_use_and_removes_the_rest() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (one, other) = (thing(&site, 2), thing(&site, 3));
    fill(&site, &other);
    let mount = site.mount(&one.reference, &[]);
    assert!(fs::read(mount.join("merged/f")).unwrap() == one.body);
    let held = list(&site);

    site.ocifs(&["cache", "rm", &one.layer]).refused(&[1], &["in use"]);
    site.ocifs(&["cache", "rm", &one.reference]).refused(&[1], &["in use"]);
    site.ocifs(&["cache", "prune", "--keep", "0"]).ok();
    let left = list(&site);
    assert!(of(&left, "blob", &other.layer).is_none() && of(&left, "stream", &other.layer).is_none());
    for item in held.iter().filter(|item| item["digest"] == one.layer.as_str()) {
        assert!(left.iter().any(|it| it["kind"] == item["kind"] && it["digest"] == item["digest"]), "{item}");
    }
    sh("echo 3 > /proc/sys/vm/drop_caches", &[]);
    assert!(fs::read(mount.join("merged/f")).unwrap() == one.body);
    mount.unmount();

    site.ocifs(&["cache", "rm", &one.reference]).ok();
    assert!(list(&site).is_empty(), "{:#?}", list(&site));
    site.ocifs(&["cache", "rm", &one.layer]).refused(&[3], &["no cached content matches"]);
    fill(&site, &one);
    assert!(of(&list(&site), "stream", &one.layer).is_some());
}

#[test]
fn a_reference_is_forgotten_by_its_tag_and_others_stay() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (one, other) = (thing(&site, 4), thing(&site, 5));
    fill(&site, &one);
    fill(&site, &other);
    let tag = format!("{}:v1", one.reference.split('@').next().unwrap());
    site.ocifs(&["cache", "rm", &tag]).ok();
    let left = list(&site);
    assert!(!left.iter().any(|item| item["digest"] == one.layer.as_str()), "{left:#?}");
    assert!(of(&left, "blob", &other.layer).is_some());
}

#[test]
fn prune_requires_an_age_or_a_size() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (old, young) = (thing(&site, 6), thing(&site, 7));
    fill(&site, &old);
    fill(&site, &young);
    site.ocifs(&["cache", "prune"]).refused(&[2], &["--older-than"]);
    site.ocifs(&["cache", "prune", "--older-than", "soon"]).refused(&[2], &["7d"]);
    let before = list(&site);
    site.ocifs(&["cache", "prune", "--older-than", "1d"]).ok();
    assert_eq!(list(&site).len(), before.len());
    // Long ago, by the sidecar.
    let map = PathBuf::from(format!("{}.map", blob(&site, &old.layer).display()));
    let map = fs::OpenOptions::new().write(true).open(map).unwrap();
    map.write_all_at(&1_600_000_000_u64.to_le_bytes(), 1032).unwrap();
    site.ocifs(&["cache", "prune", "--older-than", "1d"]).ok();
    let left = list(&site);
    assert!(of(&left, "blob", &old.layer).is_none() && of(&left, "blob", &young.layer).is_some());
    assert_eq!(left.len(), before.len() - 1);
    site.ocifs(&["cache", "prune", "--keep", "1G"]).ok();
    assert_eq!(list(&site).len(), left.len());
    site.ocifs(&["cache", "prune", "--keep", "800K"]).ok();
    let sum: u64 = list(&site).iter().map(|item| item["onDisk"].as_u64().unwrap()).sum();
    assert!(sum <= 800 << 10 && sum > 0, "{sum}");
}

#[test]
fn cache_verify_reports_damage_and_removes_it() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (one, other) = (thing(&site, 8), thing(&site, 9));
    fill(&site, &one);
    fill(&site, &other);
    site.ocifs(&["cache", "verify"]).ok();
    let file = fs::OpenOptions::new().write(true).open(blob(&site, &one.layer)).unwrap();
    file.write_all_at(b"not these bytes", 300_000).unwrap();
    site.ocifs(&["cache", "verify", &other.layer]).ok();
    let mount = site.mount(&other.reference, &[]);
    let found = site.ocifs(&["cache", "verify"]);
    found.refused(&[7], &["1 contents were damaged"]);
    assert!(found.text().contains("damaged (1 block; dropped): blob"), "{}", found.text());
    mount.unmount();
    site.ocifs(&["cache", "verify"]).ok();
    // It is still known what the block has to be.
    assert_eq!(of(&list(&site), "blob", &one.layer).unwrap()["state"], "verified");
    let all = site.ocifs(&["cat", &one.reference, &format!("blobs/{}", one.layer.replace(':', "/"))]).ok();
    assert_eq!(crate::byte_text::digest_of(&all.stdout), one.layer);
    site.ocifs(&["cache", "verify", &one.layer]).ok();
    // A document, and a sidecar.
    let manifest = one.reference.split("@sha256:").nth(1).unwrap();
    let documents = fs::read_dir(site.cache().join("v1/documents/sha256")).unwrap();
    let mut documents = documents.map(|entry| entry.unwrap().path());
    // The rest of the name is the place that it came from.
    let is_it = |path: &std::path::PathBuf| path.file_stem().is_some_and(|stem| stem == manifest);
    fs::write(documents.find(is_it).unwrap(), "{}").unwrap();
    let map = format!("{}.map", blob(&site, &one.layer).display());
    fs::OpenOptions::new().write(true).open(map).unwrap().write_all_at(b"x", 520).unwrap();
    site.ocifs(&["cache", "verify"]).refused(&[7], &["2 contents were damaged"]);
    site.ocifs(&["cache", "verify"]).ok();
    fill(&site, &one);
}

#[test]
fn gc_collects_unreferenced_files_and_reports_foreign_ones() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let one = thing(&site, 10);
    fill(&site, &one);
    let before = list(&site);
    let root = site.cache().join("v1");
    let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let verified = one.layer.strip_prefix("sha256:").unwrap();
    let stale = root.join("tmp/1-2-3");
    let young = root.join("tmp/4-5-6");
    let lock = root.join("locks/sha256").join(hex);
    let half = root.join(format!("streams/sha256/{hex}.map"));
    let claim = root.join(format!("blobs/sha256/{verified}.0123456789abcdef"));
    let claim_map = root.join(format!("blobs/sha256/{verified}.0123456789abcdef.map"));
    for path in [&stale, &young, &lock, &half, &claim, &claim_map] {
        fs::write(path, "x").unwrap();
    }
    age(&stale);
    let strangers = [
        root.join("mine"),
        root.join("blobs/sha256/mine"),
        root.join("locks/sha256/mine"),
        site.cache().join("v2"),
    ];
    for path in &strangers {
        fs::write(path, "x").unwrap();
        age(path);
    }
    let output = site.ocifs(&["cache", "gc"]).ok();
    for path in [&stale, &lock, &half, &claim, &claim_map] {
        assert!(!path.exists(), "{} is left: {}", path.display(), output.text());
    }
    assert!(young.exists());
    for path in &strangers {
        assert!(path.exists(), "{}", path.display());
        let named = output.stderr.contains(&path.display().to_string());
        assert_eq!(named, path.starts_with(&root), "{}: {}", path.display(), output.stderr);
    }
    assert_eq!(list(&site).len(), before.len());
    let mount = site.mount(&one.reference, &[]);
    assert!(fs::read(mount.join("merged/f")).unwrap() == one.body);
}

#[test]
fn a_mount_that_keeps_nothing_leaves_nothing() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let one = thing(&site, 11);
    let private = site.cache().join("v1/private");
    let left = || fs::read_dir(&private).map_or(0, Iterator::count);
    let mount = site.mount(&one.reference, &["--no-cache"]);
    assert!(fs::read(mount.join("merged/f")).unwrap() == one.body);
    assert_eq!(left(), 1);
    site.ocifs(&["cache", "gc"]).ok();
    assert_eq!(left(), 1, "it is in use");
    mount.unmount();
    assert_eq!(left(), 0);
    assert!(list(&site).is_empty());

    // Also after an error, and for a command.
    site.ocifs(&["cat", "--no-cache", &one.reference, "merged/nothing"]).refused(&[3], &["nothing"]);
    site.mount_refused(&one.reference, &["--no-cache", "--subdir", "none"], &[3], &["none"]);
    assert!(site.ocifs(&["cat", "--no-cache", &one.reference, "merged/f"]).ok().stdout == one.body);
    assert_eq!(left(), 0);

    site.ocifs(&["ls", "--no-cache", "--offline", &one.reference]).refused(&[2], &["--offline"]);
    site.ocifs(&["ls", "--no-cache", "--cache-dir", "x", &one.reference]).refused(&[2], &["--cache-dir"]);

    let mount = site.mount(&one.reference, &["--no-cache"]);
    assert!(fs::read(mount.join("merged/f")).unwrap() == one.body);
    mount.kill();
    assert_eq!(left(), 1);
    fill(&site, &one);
    assert_eq!(left(), 1, "nothing is cleaned on the way to a mount");
    let output = site.ocifs(&["cache", "gc"]).ok().text();
    assert!(output.contains("killed"), "{output}");
    assert_eq!(left(), 0);
}
