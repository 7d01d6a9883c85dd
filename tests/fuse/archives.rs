//! Archives of images, mounted where they lie: files, standard input and the web; and blobs that another tool has already.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use serde_json::json;

use crate::byte_text::digest_of;
use crate::compare::assert_same;
use crate::encode::{Encoding, gzip};
use crate::fault_registry::FaultRegistry;
use crate::layout::{CONFIG, Layer, Layout, MANIFEST};
use crate::process::{Need, able, becomes_true, run};
use crate::site::{Mount, Site, binary};
use crate::tarball::{Tarball, noise};
use crate::web::{Ranges, Web};

/// What is told after a read, or removed after a write, is so in an instant.
const PATIENCE: Duration = Duration::from_secs(30);

const NEEDS: [Need<'_>; 3] = [Need::Root, Need::Fuse, Need::Tool("skopeo")];

/// A container image of two layers in a layout, and its manifest.
fn image(site: &Site) -> (Layout, Vec<u8>) {
    let base = Tarball::new().dir("etc").file("etc/name", b"base\n").file("big", &noise(1_500_000, 70));
    let top = Tarball::new().dir("etc").file("etc/name", b"top\n").symlink("link", "etc/name");
    let mut layout = Layout::create(site.scratch().join("layout"));
    let layers = [Layer::of(&base.bytes(), Encoding::Gzip), Layer::of(&top.bytes(), Encoding::Plain)];
    let digest = layout.image("v1", &layers);
    let manifest = fs::read(layout.blob_path(&digest)).unwrap();
    (layout, manifest)
}

/// A registry with everything of a layout.
fn registry(site: &Site, manifest: &[u8]) -> FaultRegistry {
    let registry = FaultRegistry::start();
    for blob in fs::read_dir(site.scratch().join("layout/blobs/sha256")).unwrap() {
        registry.push_blob(fs::read(blob.unwrap().path()).unwrap());
    }
    registry.push_manifest("a/b", "v1", MANIFEST, manifest);
    registry
}

/// What skopeo writes of the image.
fn skopeo(site: &Site, to: &str, options: &[&str]) {
    let from = format!("oci:{}:v1", site.scratch().join("layout").display());
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--insecure-policy"]).args(options).args([&from, to]);
    run(command.env("TMPDIR", site.scratch().path())).ok();
}

/// The binary with these arguments, and a file as its standard input: by itself or through a pipe.
fn fed(site: &Site, script: &str, file: &Path, args: &[&str]) -> Command {
    let mut command = site.tool("bash");
    command.args(["-c", script, "sh"]).arg(file).arg(binary()).args(args);
    command
}

const REDIRECTED: &str = r#"file=$1; shift; exec "$@" < "$file""#;
const PIPED: &str = r#"file=$1; shift; cat "$file" | "$@""#;

#[test]
fn archives_of_skopeo_mount_like_their_registry_image() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let (_, manifest) = image(&site);
    let registry = registry(&site, &manifest);
    let pushed = site.mount_at("pushed", &format!("{}/a/b:v1", registry.host()), &[]);
    let at = |name: &str| site.scratch().join(name).display().to_string();
    skopeo(&site, &format!("oci-archive:{}:v1", at("oci.tar")), &["--preserve-digests"]);
    skopeo(&site, &format!("docker-archive:{}:h.example/a/b:v1", at("docker.tar")), &[]);
    for name in ["oci.tar", "docker.tar"] {
        fs::write(at(&format!("{name}.gz")), gzip(&fs::read(at(name)).unwrap())).unwrap();
    }
    let web = [Web::serve(Ranges::Given), Web::serve(Ranges::Ignored)];
    for web in &web {
        web.put(fs::read(at("oci.tar")).unwrap());
    }
    let same = [
        format!("oci-archive:{}:v1", at("oci.tar")),
        at("oci.tar"),
        "./oci.tar.gz".into(),
        "./layout".into(),
        web[0].url("oci.tar"),
        web[1].url("oci.tar"),
    ];
    for location in same {
        let mount = site.mount(&location, &[]);
        assert_eq!(mount.digest(), digest_of(&manifest), "{location}");
        assert_same(&mount.join("merged"), &pushed.join("merged"));
        mount.unmount();
    }
    for location in [
        format!("docker-archive:{}", at("docker.tar")),
        format!("docker-archive:{}:h.example/a/b:v1", at("docker.tar")),
        at("docker.tar.gz"),
    ] {
        let mount = site.mount(&location, &[]);
        assert_same(&mount.join("merged"), &pushed.join("merged"));
        // What is printed can be mounted again.
        let (pinned, _) = mount.printed().split_once(" mounted at ").unwrap();
        let (pinned, printed) = (pinned.to_owned(), mount.digest());
        mount.unmount();
        let again = site.mount(&pinned, &[]);
        assert_eq!(again.digest(), printed, "{pinned}");
        again.unmount();
    }
}

#[test]
fn an_archive_on_standard_input_is_mounted_in_the_background_and_leaves_nothing() {
    if !able(&[Need::Root, Need::Fuse]) {
        return;
    }
    let site = Site::new();
    let (_, manifest) = image(&site);
    run(Command::new("tar")
        .arg("-C")
        .arg(site.scratch().join("layout"))
        .args(["-cf"])
        .arg(site.scratch().join("i.tar"))
        .arg("."))
    .ok();
    let file = site.scratch().join("i.tar");
    let packed = site.scratch().file("i.tar.gz", gzip(&fs::read(&file).unwrap()));
    for (at, (script, file)) in [(REDIRECTED, &file), (PIPED, &packed)].into_iter().enumerate() {
        let dir = site.mount_point(&format!("mnt{at}"));
        let target = dir.display().to_string();
        let mut command = fed(&site, script, file, &["mount", "-", &target]);
        // A password for nobody must not take the place of the archive.
        let mount = Mount::up(command.env("OCIFS_CREDS", "user:word"), dir);
        assert_eq!(mount.digest(), digest_of(&manifest));
        assert_eq!(fs::read(mount.join("merged/etc/name")).unwrap(), b"top\n");
        assert_eq!(fs::read(mount.join("merged/big")).unwrap(), noise(1_500_000, 70));
        // What a document is written to has a name for a moment.
        let is_empty = || fs::read_dir(site.cache().join("v1/tmp")).unwrap().next().is_none();
        assert!(becomes_true(PATIENCE, is_empty), "the archive has no name on the disk");
        mount.unmount();
    }
    let printed = run(&mut fed(&site, PIPED, &file, &["ls", "oci-archive:-:v1", "merged/etc"])).ok().text();
    assert_eq!(printed, "name\n");
    site.mount_refused("-", &["--no-cache"], &[2], &["--no-cache", "standard input"]);
    site.mount_refused("-", &[], &[6], &["empty"]);
}

#[test]
fn unmountable_archives_are_refused_with_the_exit_code_of_the_fault() {
    if !able(&[Need::Root, Need::Fuse]) {
        return;
    }
    let site = Site::new();
    let (mut layout, manifest) = image(&site);
    layout.document("v2", MANIFEST, &[&manifest[..], b"\n"].concat());
    let at = |name: &str| site.scratch().join(name).display().to_string();
    let tar = Tarball::new().file("x", b"x").bytes();
    site.scratch().file("other.tar", tar);
    site.scratch().file("text", b"some text\n");
    let web = Web::serve(Ranges::Given);
    web.put(b"no archive".to_vec());
    let rows: Vec<(String, i32, &str)> = vec![
        (at("missing.tar"), 3, "missing.tar"),
        (at("other.tar"), 6, "no archive of images"),
        (format!("docker-archive:{}", at("other.tar")), 6, "manifest.json"),
        (at("text"), 6, "no tar archive"),
        (at("layout"), 2, "v1, v2"),
        (format!("oci:{}:v3", at("layout")), 3, "v1, v2"),
        (site.scratch().path().display().to_string(), 6, "oci-layout"),
        (web.url("text"), 6, "no tar archive"),
        (web.url("none"), 3, "404"),
        ("http://127.0.0.1:1/a.tar".into(), 5, "127.0.0.1:1"),
        ("docker-daemon:x".into(), 2, "not supported"),
        (".x".into(), 2, "./"),
    ];
    for (location, code, words) in rows {
        let words = if code == 3 && words == "404" { "none" } else { words };
        site.ocifs(&["ls", "--timeout", "1", &location]).refused(&[code], &[words]);
    }
    // A name is never looked for among the files, but who meant one is told.
    site.ocifs(&["ls", "--offline", "other.tar"]).refused(&[5], &["./other.tar"]);
    site.mount_refused(&at("other.tar"), &[], &[6], &["no archive of images"]);
    // Its own mount would hide it.
    let dir = site.mount_point("over");
    let inside = dir.join("i.tar").display().to_string();
    site.ocifs(&["mount", &inside, &dir.display().to_string()]).refused(&[2], &["would hide it"]);
}

/// A layout with one file of this content, as an archive at `i.tar`.
fn with_file(site: &Site, content: &[u8]) -> std::path::PathBuf {
    let mut layout = Layout::create(site.scratch().join("one"));
    let mut layer = layout.blob("application/octet-stream", content);
    layer["annotations"] = json!({"org.opencontainers.image.title": "f"});
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": layout.blob(CONFIG, b"{}"), "layers": [layer]});
    layout.document("v1", MANIFEST, manifest.to_string().as_bytes());
    let file = site.scratch().join("i.tar");
    run(Command::new("tar").arg("-C").arg(site.scratch().join("one")).arg("-cf").arg(&file).arg(".")).ok();
    file
}

#[test]
fn an_archive_that_is_written_into_while_it_is_mounted_gives_errors_and_no_other_bytes() {
    if !able(&[Need::Root, Need::Fuse]) {
        return;
    }
    let site = Site::new();
    let content = noise(32 << 20, 71);
    let archive = with_file(&site, &content);
    let mount = site.mount(&archive.display().to_string(), &[]);
    let file = fs::File::open(mount.join("files/f")).unwrap();
    let mut byte = [0; 1];
    file.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte[0], content[0]);

    let written = fs::OpenOptions::new().write(true).open(&archive).unwrap();
    let size = written.metadata().unwrap().len();
    written.write_all_at(&vec![0; size as usize], 0).unwrap();
    written.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
    let error = file.read_exact_at(&mut byte, content.len() as u64 - 1).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::EIO as i32));
    let is_reported = || mount.status().contains("changed after it was opened");
    assert!(becomes_true(PATIENCE, is_reported), "{}", mount.status());
    drop(file);
    mount.unmount();
}

#[test]
fn cached_web_archive_mounts_again_without_its_server() {
    if !able(&[Need::Root, Need::Fuse]) {
        return;
    }
    let site = Site::new();
    let content = noise(600_000, 72);
    let archive = with_file(&site, &content);
    let web = Web::serve(Ranges::Given);
    web.put(fs::read(&archive).unwrap());
    let location = web.url("i.tar?sig=secret");
    let mount = site.mount(&location, &[]);
    assert_eq!(fs::read(mount.join("files/f")).unwrap(), content);
    let (digest, printed) = (mount.digest(), mount.printed().to_owned());
    let listed = mount.line().source;
    assert!(!listed.contains("secret") && !printed.contains("secret"), "{printed}");
    mount.unmount();
    let requests = web.requests();
    let mount = site.mount(&format!("{location}@{digest}"), &["--offline"]);
    assert_eq!(fs::read(mount.join("files/f")).unwrap(), content);
    assert_eq!(web.requests(), requests);
    mount.unmount();
}

#[test]
fn a_mount_takes_the_blobs_that_a_content_store_of_this_machine_has() {
    if !able(&[Need::Root, Need::Fuse]) {
        return;
    }
    let site = Site::new();
    let (_, manifest) = image(&site);
    let registry = registry(&site, &manifest);
    let store = format!("content_store={}", site.scratch().join("layout").display());
    let mount = site.mount(&format!("{}/a/b:v1", registry.host()), &["-o", &store]);
    assert_eq!(fs::read(mount.join("merged/big")).unwrap(), noise(1_500_000, 70));
    assert_eq!(fs::read(mount.join("merged/etc/name")).unwrap(), b"top\n");
    assert_eq!(registry.blob_bytes(), 0, "every blob is on this machine");
    mount.unmount();
}
