//! Daily work: check laziness before a mount, complete a mount, follow a tag, require laziness.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::artifact::{Blob, Shape};
use crate::encode::Encoding;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::layout::{Layer, Layout};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, signal};
use crate::scratch::mounted_at;
use crate::served::Content;
use crate::site::{Site, daemons, unmounts};
use crate::tarball::{Tarball, noise};
use crate::wedge::waits;

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

/// What `doctor` found, by subject.
fn findings(site: &Site, args: &[&str]) -> Vec<(String, String, String)> {
    let finished = site.ocifs(&[&["doctor", "--format=json"], args].concat());
    let report: Value =
        serde_json::from_str(&finished.text()).unwrap_or_else(|_| panic!("{}", finished.stderr));
    let word = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let findings: Vec<_> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (word(it, "subject"), word(it, "health"), word(it, "told")))
        .collect();
    let is_bad = findings.iter().any(|finding| finding.1 == "bad");
    assert_eq!(finished.code, Some(i32::from(is_bad)), "{findings:?}");
    findings
}

fn health(findings: &[(String, String, String)], subject: &str) -> String {
    findings
        .iter()
        .find(|finding| finding.0 == subject)
        .unwrap_or_else(|| panic!("no {subject}: {findings:?}"))
        .1
        .clone()
}

#[test]
fn the_doctor_finds_a_machine_that_can_mount_and_a_registry_that_can_do_all() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(41));
    content.push(&registry);
    let machine = findings(&site, &[]);
    for subject in ["fuse", "cache"] {
        assert_eq!(health(&machine, subject), "good", "{machine:?}");
    }
    assert!(!machine.iter().any(|finding| finding.0 == "reference"));
    let reference = content.reference(&registry);
    let all = findings(&site, &[&reference]);
    assert_eq!(health(&all, "reference"), "good");
    assert_eq!(health(&all, "ranges"), "good");
    // One of its layers is an archive in gzip that nobody has an index of.
    assert_eq!(health(&all, "laziness"), "limited", "{all:?}");
    site.ocifs(&["index", "build", &reference]).ok();
    assert_eq!(health(&findings(&site, &[&reference]), "laziness"), "good");
    let text = site.ocifs(&["doctor", &reference]).ok().text();
    assert!(text.contains("good    ranges") && !text.contains('\x1b'), "{text}");
}

#[test]
fn doctor_reports_problems_with_hints() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(42));
    content.push(&registry);
    let reference = content.reference(&registry);
    registry.set(Fault::IgnoreRange);
    assert_eq!(health(&findings(&site, &[&reference]), "ranges"), "limited");
    registry.clear();
    let missing = format!("{}/no/such:tag", registry.host());
    assert_eq!(health(&findings(&site, &[&missing]), "reference"), "bad");
    fs::write(site.scratch().join("file"), "").unwrap();
    let cache = format!("--cache-dir={}", site.scratch().join("file/below").display());
    assert_eq!(health(&findings(&site, &[&cache]), "cache"), "bad");
    let text = site.ocifs(&["doctor", &missing]).text();
    assert!(text.contains("bad     reference") && text.contains("no/such"), "{text}");
}

#[test]
fn a_completed_mount_needs_no_registry_any_more() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(43));
    content.push(&registry);
    // A first failure does not keep it from being completed.
    let mount = site.mount(&content.reference(&registry), &["--complete", "--passthrough=off"]);
    let complete = || {
        let status: Value =
            serde_json::from_slice(&fs::read(mount.join(".ocifs/status.json")).unwrap()).unwrap();
        status["blobs"].as_array().unwrap().iter().all(|blob| blob["verified"] == "full")
    };
    assert!(becomes_true(CONDITION_TIMEOUT, complete));
    registry.go_down();
    for file in content.files() {
        assert!(fs::read(mount.join(&file.path)).unwrap() == file.bytes, "{}", file.path);
    }
    site.mount_refused(
        "x.invalid/a:b",
        &["--complete", "--prefetch=none"],
        &[2],
        &["--complete", "--prefetch"],
    );
}

#[test]
fn a_mount_that_must_be_lazy_is_refused_where_a_layer_has_to_be_read_whole() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let tar = Tarball::new().file("f", &noise(50_000, 1)).bytes();
    layout.image("gzip", &[Layer::of(&tar, Encoding::Gzip)]);
    let packed = layout.reference("gzip");
    layout.image("plain", &[Layer::of(&Tarball::new().file("f", b"plain").bytes(), Encoding::Plain)]);
    site.mount_refused(&packed, &["--require-lazy"], &[6], &["layer 0", "one pass", "ocifs index build"]);
    // Its bytes as they are stored can be read lazily, and so can layers that are not packed.
    drop(site.mount(&packed, &["--require-lazy", "--view=blobs"]));
    drop(site.mount_at("plain", &layout.reference("plain"), &["-o", "require_lazy"]));
    site.ocifs(&["index", "build", &packed]).ok();
    let mount = site.mount_at("indexed", &packed, &["--require-lazy"]);
    assert!(fs::read(mount.join("merged/f")).unwrap() == noise(50_000, 1));
}

#[test]
fn a_mount_follows_its_tag_when_it_is_refreshed_and_stays_when_the_tag_has_not_moved() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let push = |text: &str| {
        let blob = Blob::new("text/plain", text).titled("file");
        Shape::artifact("application/x.things").layer(&blob).pack().push(&registry, "some/thing", "v1");
    };
    push("one");
    let reference = format!("{}/some/thing:v1", registry.host());
    let mount = site.mount(&reference, &["--refresh"]);
    let dir = mount.dir().to_owned();
    let first = daemons(&dir);
    let refresh = || site.ocifs(&["mount", "--refresh", &reference, dir.to_str().unwrap()]);
    let output = refresh().ok().text();
    assert!(output.contains("already"), "{output}");
    assert_eq!(daemons(&dir), first, "it is the same mount");
    let open = fs::File::open(dir.join("files/file")).unwrap();
    push("two");
    assert_eq!(fs::read_to_string(dir.join("files/file")).unwrap(), "one", "a mount never changes");
    let output = refresh().ok().text();
    assert!(output.contains(" mounted at "), "{output}");
    assert_eq!(fs::read_to_string(dir.join("files/file")).unwrap(), "two");
    let mut old = [0; 3];
    std::os::unix::fs::FileExt::read_exact_at(&open, &mut old, 0).unwrap();
    assert_eq!(&old, b"one", "who had it open reads on");
    drop(open);
    // What is asked for otherwise is mounted otherwise, and what cannot be mounted costs nobody the mount that is there.
    let view =
        |view: &str| site.ocifs(&["mount", "--refresh", "--view", view, &reference, dir.to_str().unwrap()]);
    view("merged").refused(&[3], &["merged"]);
    assert_eq!(fs::read_to_string(dir.join("files/file")).unwrap(), "two");
    assert!(view("files").ok().text().contains(" mounted at "));
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "two");
    let output = view("files").ok().text();
    assert!(output.contains("already"), "{output}");
    assert!(refresh().ok().text().contains(" mounted at "));
    let missing = format!("{}/some/thing:none", registry.host());
    site.ocifs(&["mount", "--refresh", &missing, dir.to_str().unwrap()]).refused(&[3], &["none"]);
    assert_eq!(fs::read_to_string(dir.join("files/file")).unwrap(), "two");
    unmounts(site.command().arg("umount").arg(&dir));
    assert!(mounted_at(&dir).is_none());
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()));
    mount.forget();
}

#[test]
fn a_mount_that_ends_late_leaves_the_next_one_of_its_number_alone() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[Layer::of(&Tarball::new().file("f", b"data").bytes(), Encoding::Gzip)]);
    let reference = layout.reference("v1");
    // Mounts of other tests may take the number that is free.
    for _ in 0..50 {
        // Without a monitor a process that was stopped stays so.
        let old = site.mount(&reference, &["--sandbox=off"]);
        let number = |dir: &Path| fs::metadata(dir).unwrap().dev();
        let first = number(old.dir());
        signal(old.pid(), Signal::SIGSTOP);
        // umount(8) would look at it, and wait.
        nix::mount::umount(old.dir()).unwrap();
        let dir = old.dir().to_owned();
        let finished = site.ocifs(&["mount", "--sandbox=off", &reference, dir.to_str().unwrap()]);
        let second = number(&dir);
        signal(old.pid(), Signal::SIGCONT);
        finished.ok();
        assert!(becomes_true(CONDITION_TIMEOUT, || !daemons(&dir).contains(&old.pid())));
        old.forget();
        assert_eq!(fs::read(dir.join("merged/f")).unwrap(), b"data");
        unmounts(site.command().arg("umount").arg(&dir));
        assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()));
        if first == second {
            return;
        }
    }
    panic!("the kernel never gave a number again");
}

#[test]
fn a_mount_may_be_there_before_its_registry_is() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(45));
    content.push(&registry);
    registry.go_down();
    let mount = site.mount(&content.reference(&registry), &["-o", "delay_connect,timeout=1"]);
    assert!(mount.printed().contains("to be opened when its registry answers"), "{}", mount.printed());
    let mut reader = Command::new("cat");
    let reader = reader.arg(mount.join(&content.file(1).path)).stdout(Stdio::piped()).spawn().unwrap();
    assert!(becomes_true(CONDITION_TIMEOUT, || waits(reader.id())), "the reader does not wait");
    registry.come_up();
    assert!(reader.wait_with_output().unwrap().stdout == content.file(1).bytes);
    drop(mount);

    // While it waits, it can be taken away in every way.
    registry.go_down();
    let reference = content.reference(&registry);
    for how in ["umount", "signal", "outside"] {
        let mount = site.mount_at(how, &reference, &["--delay-connect", "--timeout=1"]);
        let dir = mount.dir().to_owned();
        match how {
            "umount" => unmounts(site.command().arg("umount").arg(&dir)),
            "signal" => signal(daemons(&dir)[0], Signal::SIGTERM),
            _ => unmounts(Command::new("umount").arg("-c").arg(&dir)),
        }
        assert!(
            becomes_true(CONDITION_TIMEOUT, || mounted_at(&dir).is_none() && daemons(&dir).is_empty()),
            "{how}"
        );
        mount.forget();
    }

    // One that was taken away leaves the next one at its place alone.
    let first = site.mount_at("twice", &reference, &["--delay-connect", "--timeout=1"]);
    unmounts(site.command().arg("umount").arg(first.dir()));
    let dir = first.dir().to_owned();
    assert!(becomes_true(CONDITION_TIMEOUT, || daemons(&dir).is_empty()));
    first.forget();
    let second = site.mount_at("twice", &reference, &["--delay-connect", "--timeout=1"]);
    registry.come_up();
    assert!(fs::read(second.join(&content.file(1).path)).unwrap() == content.file(1).bytes);
    drop(second);

    // What will never be there is not waited for.
    let missing = format!("{}/no/such:tag", registry.host());
    registry.go_down();
    let mount = site.mount_at("never", &missing, &["--delay-connect", "--timeout=1"]);
    registry.come_up();
    let dir = mount.dir().to_owned();
    assert!(becomes_true(CONDITION_TIMEOUT, || mounted_at(&dir).is_none() && daemons(&dir).is_empty()));
    mount.forget();
}

#[test]
fn cache_directory_is_option_then_variable_then_home() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry, content) = (Site::new(), FaultRegistry::start(), Content::new(46));
    content.push(&registry);
    let place = |name: &str| site.scratch().join(name);
    let pulls = |variables: &[(&str, &str)], options: &[&str]| {
        let mut command = site.command();
        command.env_remove("OCIFS_CACHE_DIR").env("HOME", place("home"));
        for (name, dir) in variables {
            command.env(name, place(dir));
        }
        run(command.args(["pull", "-q"]).args(options).arg(content.reference(&registry))).ok();
    };
    let flag = format!("--cache-dir={}", place("flag").display());
    let (variable, xdg) = (("OCIFS_CACHE_DIR", "variable"), ("XDG_CACHE_HOME", "xdg"));
    for (variables, options, made) in [
        (&[][..], &[][..], "home/.cache/ocifs"),
        (&[xdg], &[], "xdg/ocifs"),
        (&[xdg, variable], &[], "variable"),
        (&[xdg, variable], &[flag.as_str()], "flag"),
    ] {
        assert!(!place(made).exists());
        pulls(variables, options);
        assert!(place(made).join("v1").is_dir(), "{made}");
    }
    // What one command brought, another finds, under whatever name it asks for it.
    registry.reset_counts();
    let mount = site.mount(&content.pinned(&registry), &[&flag, "--passthrough=off"]);
    for file in content.files() {
        assert!(fs::read(mount.join(&file.path)).unwrap() == file.bytes);
    }
    assert!(registry.blob_requests().is_empty(), "{:?}", registry.blob_requests());
}
