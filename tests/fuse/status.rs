//! Reports of mounts: `list`, `status`, and the HTML page.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::artifact::{Blob, Shape};
use crate::fault_registry::FaultRegistry;
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, signal};
use crate::served::Content;
use crate::site::{Site, daemons, unmounts};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

/// A reference to one file.
fn pushed(registry: &FaultRegistry, bytes: &[u8]) -> String {
    let blob = Blob::new("application/octet-stream", bytes).titled("file");
    Shape::artifact("application/x.things").layer(&blob).pack().push(registry, "some/thing", "v1");
    format!("{}/some/thing:v1", registry.host())
}

fn json(site: &Site, args: &[&str]) -> Value {
    serde_json::from_str(&site.ocifs(args).ok().text()).unwrap()
}

#[test]
fn mounts_are_listed_with_their_digests_and_the_dead_as_dead() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(31));
    content.push(&registry);
    let reference = content.reference(&registry);
    let (one, two) =
        (site.mount_at("one", &reference, &[]), site.mount_at("a two", &reference, &["--view=files"]));
    let state = |dir: &std::path::Path| {
        let listed = json(&site, &["list", "--format=json"]);
        let found =
            listed["mounts"].as_array().unwrap().iter().find(|it| it["directory"] == dir.to_str().unwrap());
        found.map(|it| {
            (it["reference"].as_str().unwrap().to_owned(), it["state"].as_str().unwrap().to_owned())
        })
    };
    // One that does not answer in time, on a busy machine, is listed as unknown and without its digest.
    for mount in [&one, &two] {
        let mut found = None;
        let is_listed = becomes_true(CONDITION_TIMEOUT, || {
            found = state(mount.dir());
            let (shown, state) = found.clone().expect("it is listed");
            shown.starts_with(&reference) && shown.contains("@sha256:") && state == "served"
        });
        assert!(is_listed, "{found:?}");
    }
    let mut text = String::new();
    let is_listed = becomes_true(CONDITION_TIMEOUT, || {
        text = site.ocifs(&["ps"]).ok().text();
        text.lines().any(|line| line.starts_with("served ") && line.contains("/a two  "))
    });
    assert!(is_listed, "{text}");
    for pid in daemons(two.dir()) {
        signal(pid, Signal::SIGKILL);
    }
    assert!(becomes_true(CONDITION_TIMEOUT, || state(two.dir()).is_some_and(|it| it.1 == "dead")));
    site.ocifs(&["status", two.dir().to_str().unwrap()]).refused(&[8], &["a two"]);
    unmounts(Command::new("umount").arg(two.dir()));
    two.forget();
    let dir = one.dir().to_owned();
    unmounts(site.command().arg("umount").arg(&dir));
    one.forget();
    assert!(state(&dir).is_none());
    site.ocifs(&["status", dir.to_str().unwrap()]).refused(&[8], &["not an ocifs mount"]);
    site.ocifs(&["status", "/no/such/dir"]).refused(&[8], &["/no/such/dir", "not an ocifs mount"]);
}

#[test]
fn hung_mount_is_listed_and_delays_no_command() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(33));
    content.push(&registry);
    // With a monitor it would be continued at once.
    let mount = site.mount(&content.reference(&registry), &["--sandbox=off"]);
    signal(mount.pid(), Signal::SIGSTOP);
    let listed = json(&site, &["list", "--format=json"]);
    let found = listed["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["directory"] == mount.dir().to_str().unwrap());
    assert_eq!(found.expect("it is listed")["state"], "unknown");
    let asked = site.ocifs(&["status", mount.dir().to_str().unwrap()]);
    asked.refused(&[8], &["does not answer"]);
    signal(mount.pid(), Signal::SIGCONT);
}

#[test]
fn status_of_a_single_view_equals_that_of_a_whole_mount() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(32));
    content.push(&registry);
    let reference = content.reference(&registry);
    let file = content.file(1);
    let whole = site.mount_at("whole", &reference, &["--passthrough=off"]);
    let read = fs::read(whole.join(&file.path)).unwrap();
    assert!(read == file.bytes);
    for view in [None, Some("files"), Some("merged"), Some("blobs")] {
        let options = view.map(|view| format!("--view={view}"));
        let Some(options) = options else {
            let status = json(&site, &["status", "--format=json", whole.dir().to_str().unwrap()]);
            let file: Value =
                serde_json::from_slice(&fs::read(whole.join(".ocifs/status.json")).unwrap()).unwrap();
            assert_eq!(status["reference"], file["reference"]);
            assert_eq!(status["blobs"].as_array().unwrap().len(), file["blobs"].as_array().unwrap().len());
            continue;
        };
        let mount = site.mount_at("view", &reference, &[&options, "--passthrough=off"]);
        let status = json(&site, &["status", "--format=json", mount.dir().to_str().unwrap()]);
        assert!(status["reference"].as_str().unwrap().contains("@sha256:"));
        // What the other mount fetched is cached, and was read by that one only.
        let blobs = status["blobs"].as_array().unwrap();
        assert!(blobs.iter().any(|blob| blob["cached"].as_u64().unwrap() > 0), "{status:#}");
        let listed = run(Command::new("getfattr").args(["-d", "-m", "-", mount.dir().to_str().unwrap()]));
        assert!(!listed.text().contains("status"), "it is not copied with the tree: {}", listed.text());
        drop(mount);
    }
}

#[test]
fn the_status_shows_which_parts_are_cached_and_which_were_read() {
    if !able(&NEEDS) {
        return;
    }
    const MIB: usize = 1024 * 1024;
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let bytes = crate::tarball::noise(64 * MIB, 5);
    let reference = pushed(&registry, &bytes);
    let mount = site.mount(&reference, &["--passthrough=off"]);
    let dir = mount.dir().to_str().unwrap().to_owned();
    let mut part = vec![0; 4096];
    let file = fs::File::open(mount.join("files/file")).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut part, 40 * MIB as u64).unwrap();
    assert!(part == bytes[40 * MIB..40 * MIB + 4096]);
    let status = json(&site, &["status", "--format=json", &dir]);
    let blob = status["blobs"].as_array().unwrap().iter().find(|it| it["size"] == 64 * MIB).unwrap();
    let ranges =
        |what: &str| -> Vec<(u64, u64)> { serde_json::from_value(blob["extents"][what].clone()).unwrap() };
    let at = 40 * MIB as u64;
    let holds = |ranges: &[(u64, u64)], at: u64| ranges.iter().any(|range| range.0 <= at && at < range.1);
    for what in ["cached", "read"] {
        let ranges = ranges(what);
        assert!(
            holds(&ranges, at) && !holds(&ranges, 0) && !holds(&ranges, 60 * MIB as u64),
            "{what}: {ranges:?}"
        );
        assert!(ranges.is_sorted() && ranges.iter().all(|range| range.1 <= 64 * MIB as u64));
    }
    let text = site.ocifs(&["status", &dir]).ok().text();
    let bar = text
        .lines()
        .find(|line| line.contains('#') && line.contains(" [."))
        .unwrap_or_else(|| panic!("{text}"));
    assert!(bar.contains(".#"), "{bar}");
    assert!(text.contains("64.0 MiB") && text.contains("partial"), "{text}");
}

#[test]
fn the_page_opens_in_a_browser_and_its_picture_is_to_scale() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("chromium-headless-shell")]) {
        return;
    }
    const MIB: usize = 1024 * 1024;
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let bytes = crate::tarball::noise(32 * MIB, 6);
    let reference = pushed(&registry, &bytes);
    let mount = site.mount(&reference, &["--passthrough=off"]);
    let mut part = vec![0; 4096];
    let file = fs::File::open(mount.join("files/file")).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut part, 16 * MIB as u64).unwrap();
    let html = site.ocifs(&["status", "--html", mount.dir().to_str().unwrap()]).ok().text();
    let page = site.scratch().join("status.html");
    fs::write(&page, &html).unwrap();
    let picture = site.scratch().join("status.png");
    let browser = |args: &[&str]| {
        let mut command = Command::new("chromium-headless-shell");
        command.args(["--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,900"]);
        command
            .env("HOME", site.scratch().subdir("browser"))
            .args(args)
            .arg(format!("file://{}", page.display()));
        run(&mut command)
    };
    let dom = browser(&["--dump-dom"]).ok().text();
    assert!(
        dom.contains("<svg") && dom.contains("class=\"read\"") && dom.contains("fetched by this mount"),
        "{dom}"
    );
    let shot = format!("--screenshot={}", picture.display());
    browser(&[&shot]).ok();
    let png = fs::read(&picture).unwrap();
    assert!(png.starts_with(b"\x89PNG") && png.len() > 5000, "{} bytes", png.len());
    // The one read is in the middle of its bar, as far as a block and read-ahead let it be.
    let read =
        html.lines().find_map(|line| line.split("<rect class=\"read\" x=\"").nth(1)).expect("what was read");
    let x: f64 = read.split('"').next().unwrap().parse().unwrap();
    assert!((450.0..=500.0).contains(&x), "{x}");
    if let Some(keep) = std::env::var_os("OCIFS_KEEP_PICTURE") {
        fs::copy(&picture, keep).unwrap();
    }
}
