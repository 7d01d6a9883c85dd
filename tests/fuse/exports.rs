//! Exported archives and layouts: entries, the tools that import them, and missing or wrong content.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use ocifs::cache::BlockCache;
use ocifs::export::ReplacementFile;
use ocifs::image::{ArchiveForm, ArchiveOptions, ArchiveSelection, ArchiveView, OpenOptions};
use ocifs::io::{ByteRange, read_vec};
use ocifs::oci::{Digest, Platform};
use ocifs::registry::{RegistryClient, RegistryOptions};
use serde_json::{Value, json};

use crate::artifact::{Blob, Bundle, Packed, Shape};
use crate::byte_text::digest_of;
use crate::containerd::Containerd;
use crate::encode::gzip;
use crate::fault_registry::Fault;
use crate::layout::CONFIG;
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, sh, signal};
use crate::site::binary;
use crate::stage::{Stage, read};
use crate::tarball::{Tarball, noise};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// The architecture of this machine, and another one.
fn architectures() -> (String, &'static str) {
    let host = Platform::host().architecture;
    let other = if host == "arm64" { "amd64" } else { "arm64" };
    (host, other)
}

/// A layer of about `size` bytes.
fn layer(seed: u64, size: usize) -> (Blob, String) {
    let tar = Tarball::new().dir("d").file("d/f", &noise(size, seed)).bytes();
    (Blob::new(LAYER, gzip(&tar)), digest_of(&tar))
}

/// An image of these layers.
fn image(architecture: &str, layers: &[(Blob, String)]) -> Packed {
    let ids: Vec<&String> = layers.iter().map(|(_, id)| id).collect();
    let config = json!({"architecture": architecture, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}});
    Shape::of(CONFIG, config.to_string()).layers(layers.iter().map(|(blob, _)| blob)).pack()
}

/// The host's image and that of another machine, which share a layer, in an index.
fn pair(seed: u64) -> (Packed, Packed, Packed) {
    let (host, other) = architectures();
    let shared = layer(seed, 20_000);
    let ours = image(&host, &[shared.clone(), layer(seed + 1, 700_000)]);
    let theirs = image(other, &[shared, layer(seed + 2, 50_000)]);
    let platform = |architecture: &str| json!({"platform": {"os": "linux", "architecture": architecture}});
    let index = Bundle::default().entry(&ours, platform(&host)).entry(&theirs, platform(other)).pack();
    (index, ours, theirs)
}

/// The names in an archive, as GNU tar lists them.
fn listed(archive: &Path) -> Vec<String> {
    sh("tar tf $1", &[&archive]).text().lines().map(str::to_owned).collect()
}

/// A document in an archive.
fn document(archive: &Path, name: &str) -> Value {
    serde_json::from_slice(&sh("tar xOf $1 $2", &[&archive, &name]).stdout).unwrap()
}

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

#[test]
fn the_archive_in_a_mount_is_the_one_that_export_writes_and_skopeo_takes_it_as_both_kinds() {
    if !able(&[Need::Tool("skopeo")]) {
        return;
    }
    let (index, ours, theirs) = pair(100);
    let Some(stage) = Stage::strict(&index) else { return };
    let dest = stage.site.scratch().join("a.tar");
    stage.site.ocifs(&["export", &stage.reference(":v1"), "-o", dest.to_str().unwrap()]).ok();
    let stream = stage.site.ocifs(&["export", &stage.reference(":v1")]).ok();
    let written = read(&dest);
    assert!(stream.stdout == written);
    // Sorted, each once, with the modes of containerd, and the same everywhere.
    let names = listed(&dest);
    assert!(names.is_sorted() && names.len() == names.iter().collect::<std::collections::HashSet<_>>().len());
    for digest in [index.digest(), ours.digest()].into_iter().chain(ours.blobs.iter().map(Blob::digest)) {
        assert!(names.contains(&blob_name(&digest)), "{digest} is not in {names:?}");
    }
    assert!(!names.contains(&blob_name(&theirs.digest())));
    let long = sh("TZ=UTC tar tvf $1", &[&dest]).text();
    assert!(long.lines().all(|line| line.contains(" 0/0 ") && line.contains("1970-01-01 00:00")), "{long}");
    let modes =
        sh("tar tvf $1 | sed -E 's/^(.{10}).* ([^ ]+)$/\\1 \\2/' | grep -v sha256/.", &[&dest]).text();
    let expected = "drwxr-xr-x blobs/\ndrwxr-xr-x blobs/sha256/\n-rw-r--r-- index.json\n-rw-r--r-- manifest.json\n-r--r--r-- oci-layout\n";
    assert_eq!(modes, expected);

    let mount = stage.mount(&[]);
    let shown = mount.join("export/image.tar");
    assert_eq!(fs::metadata(&shown).unwrap().len(), written.len() as u64);
    let file = File::open(&shown).unwrap();
    for (at, len) in [
        (0, 700),
        (511, 3),
        (written.len() - 1030, 1030),
        (4000, 100_000),
        (300_001, 5),
        (written.len() / 2, 9000),
    ] {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at as u64).unwrap();
        assert!(bytes == written[at..at + len], "{len} bytes at {at}");
    }
    drop(file);
    assert!(read(&shown) == written);

    let copy = |from: &str, to: &str| {
        let dir = stage.site.scratch().join(to);
        sh("skopeo copy -q --insecure-policy $1 dir:$2", &[&from, &dir]);
        dir
    };
    let oci = copy(&format!("oci-archive:{}", shown.display()), "from-oci");
    assert_eq!(digest_of(&read(oci.join("manifest.json"))), ours.digest());
    let docker = copy(&format!("docker-archive:{}", shown.display()), "from-docker");
    let config: Value = serde_json::from_slice(&read(docker.join("manifest.json"))).unwrap();
    assert_eq!(config["config"]["digest"], ours.blobs[0].digest().as_str());
    // The old form, which has the blobs under the names of Docker.
    let old = stage.site.scratch().join("old.tar");
    let args = ["export", "--format=docker-archive", "--name=me/x:1", &stage.reference(":v1"), "-o"];
    stage.site.ocifs(&[&args[..], &[old.to_str().unwrap()]].concat()).ok();
    assert_eq!(document(&old, "manifest.json")[0]["RepoTags"], json!(["me/x:1"]));
    let docker = copy(&format!("docker-archive:{}:docker.io/me/x:1", old.display()), "from-old");
    let config: Value = serde_json::from_slice(&read(docker.join("manifest.json"))).unwrap();
    assert_eq!(config["config"]["digest"], ours.blobs[0].digest().as_str());
    mount.unmount();
}

#[test]
fn containerd_imports_exports_and_writes_the_same_bytes() {
    let needs =
        [Need::Root, Need::Fuse, Need::Tool("containerd"), Need::Tool("ctr"), Need::Tool("docker-registry")];
    if !able(&needs) {
        return;
    }
    let (index, ..) = pair(110);
    let Some(stage) = Stage::real(&index) else { return };
    let containerd = Containerd::start();
    let name = stage.reference(":v1");
    let path = |name: &str| stage.site.scratch().join(name).to_str().unwrap().to_owned();
    let ctr = |args: &[&str]| containerd.ctr(args);
    // What containerd pulled and exports, and what was never in a containerd.
    ctr(&["content", "fetch", "--plain-http", "--all-platforms", &name]);
    for (number, flags) in [&[][..], &["--all-platforms"], &["--skip-manifest-json"]].into_iter().enumerate()
    {
        let (theirs, ours) = (path(&format!("theirs-{number}")), path(&format!("ours-{number}")));
        ctr(&[&["image", "export"], flags, &[&theirs, &name]].concat());
        stage.site.ocifs(&[&["export", &name, "-o", &ours], flags].concat()).ok();
        sh("cmp $1 $2", &[&theirs, &ours]);
    }
    ctr(&["image", "rm", &name]);
    // And back, from the file in the mount.
    let mount = stage.mount(&[]);
    let shown = mount.join("export/image.tar");
    ctr(&["image", "import", "--no-unpack", shown.to_str().unwrap()]);
    let images = ctr(&["image", "ls"]);
    let line = images.lines().find(|line| line.contains(&name)).unwrap_or_else(|| panic!("{name}: {images}"));
    assert!(line.contains(&index.digest()), "{line}");
    let again = path("again");
    ctr(&["image", "export", &again, &name]);
    let before = document(&shown, "index.json");
    assert_eq!(
        document(Path::new(&again), "index.json")["manifests"][0]["digest"],
        before["manifests"][0]["digest"]
    );
    assert_eq!(listed(Path::new(&again)), listed(&shown));
    mount.unmount();
}

#[tokio::test]
async fn the_headers_and_documents_of_an_archive_are_read_without_a_byte_of_a_blob() {
    let (index, ours, _) = pair(120);
    let Some(stage) = Stage::strict(&index) else { return };
    let options = OpenOptions::new(stage.reference(":v1").parse().unwrap());
    let registry = RegistryClient::new(RegistryOptions::default()).unwrap();
    let cache = BlockCache::open(&stage.site.cache()).unwrap();
    stage.reset();
    let selection = ArchiveSelection::open(&options, &registry, cache, &ArchiveOptions::new()).await.unwrap();
    let archive = ArchiveView::of(&[selection], ArchiveForm::Oci).unwrap();
    let bytes = archive.bytes();
    assert_eq!(bytes.size(), archive.size());
    let mut at = 0;
    for member in archive.members() {
        let header = read_vec(&*bytes, ByteRange::at(at, member.header.len() as u64)).await.unwrap();
        assert!(header == member.header);
        at += header.len() as u64;
        let is_blob = ours.blobs.iter().any(|blob| member.name == blob_name(&blob.digest()));
        if let (Some(body), false) = (&member.bytes, is_blob) {
            let range = ByteRange::at(at, body.size());
            assert_eq!(read_vec(&*bytes, range).await.unwrap().len() as u64, body.size(), "{}", member.name);
        }
        at += member.size().div_ceil(512) * 512;
    }
    assert_eq!(archive.size(), at + 1024);
    assert_eq!(stage.fault().blob_bytes(), 0, "{:?}", stage.blob_requests());
    assert_eq!(stage.document_requests(), 2, "the index and one manifest");
    assert!(archive.holds(&ours.digest().parse().unwrap()));
}

#[test]
fn archive_of_several_references_holds_shared_blobs_once() {
    let (host, _) = architectures();
    let shared = layer(130, 40_000);
    let one = image(&host, std::slice::from_ref(&shared));
    let two = image(&host, &[shared.clone(), layer(131, 3000)]);
    let Some(stage) = Stage::strict(&one) else { return };
    stage.push("v2", &two);
    stage.push("again", &two);
    let dest = stage.site.scratch().join("a.tar");
    let refs = [stage.reference(":v1"), stage.reference(":v2"), stage.reference(":again")];
    stage.site.ocifs(&["export", "-o", dest.to_str().unwrap(), &refs[0], &refs[1], &refs[2]]).ok();
    let index = document(&dest, "index.json");
    let entries = index["manifests"].as_array().unwrap();
    let rows: Vec<(&str, &str, &str)> = entries
        .iter()
        .map(|entry| {
            let annotation = |key: &str| entry["annotations"][key].as_str().unwrap();
            let digest = entry["digest"].as_str().unwrap();
            (digest, annotation("io.containerd.image.name"), annotation("org.opencontainers.image.ref.name"))
        })
        .collect();
    let (first, second) = (one.digest(), two.digest());
    assert_eq!(
        rows,
        [(&first[..], &refs[0][..], "v1"), (&second, &refs[1], "v2"), (&second, &refs[2], "again")]
    );
    let names = listed(&dest);
    assert_eq!(names.iter().filter(|name| **name == blob_name(&shared.0.digest())).count(), 1);
    let docker = document(&dest, "manifest.json");
    assert_eq!(docker.as_array().unwrap().len(), 2);
    assert_eq!(docker[0]["RepoTags"], json!([refs[0]]));
    assert_eq!(docker[1]["RepoTags"], json!([refs[1], refs[2]]));
    assert_eq!(docker[1]["Layers"][0], blob_name(&shared.0.digest()).as_str());
}

#[test]
fn export_keeps_the_index_and_fails_on_a_missing_platform() {
    let (index, ours, theirs) = pair(140);
    let Some(stage) = Stage::strict(&index) else { return };
    let (host, other) = architectures();
    let dest = stage.site.scratch().join("a.tar");
    let reference = stage.reference(":v1");
    let export = |flags: &[&str]| {
        let args = [&["export", &reference, "-o", dest.to_str().unwrap()], flags].concat();
        stage.site.ocifs(&args)
    };
    let holds = |packed: &Packed| listed(&dest).contains(&blob_name(&packed.digest()));
    let config = || document(&dest, "manifest.json")[0]["Config"].as_str().unwrap().to_owned();
    let (host, other) = (format!("--platform=linux/{host}"), format!("--platform=linux/{other}"));
    for (flags, expected, first) in [
        (&[&other[..]][..], (false, true), &theirs),
        (&[&other, &host], (true, true), &theirs),
        (&["--all-platforms"], (true, true), &ours),
        (&["--platform=all", "--skip-manifest-json"], (true, true), &ours),
    ] {
        export(flags).ok();
        assert_eq!((holds(&ours), holds(&theirs)), expected, "{flags:?}");
        assert!(holds(&index), "{flags:?}");
        if flags.contains(&"--skip-manifest-json") {
            assert!(!listed(&dest).contains(&"manifest.json".to_owned()));
        } else {
            assert_eq!(config(), blob_name(&first.blobs[0].digest()), "{flags:?}");
        }
    }
    fs::remove_file(&dest).unwrap();
    export(&["--platform=linux/s390x"]).refused(&[3], &["no manifest for platform linux/s390x"]);
    export(&[&host, "--platform=linux/s390x"]).refused(&[3], &["no manifest for platform linux/s390x"]);
    export(&["--format=docker-archive", &host, &other]).refused(&[2], &["one platform"]);
    // What is missing fails an export of everything, and nothing of it is left.
    stage.fault().delete_blob(&theirs.blobs[2].digest().parse::<Digest>().unwrap());
    let fresh = ["--no-cache", "--all-platforms"];
    export(&fresh).refused(&[3, 5], &[&theirs.blobs[2].digest()]);
    assert!(
        fs::read_dir(stage.site.scratch().path())
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().contains("a.tar") })
    );
    // Unless what is missing is to be left out: then the manifest is there, and none of its blobs that is not another's too.
    let output = export(&[&fresh[..], &["--skip-missing"]].concat()).ok();
    assert!(output.stderr.contains(&theirs.blobs[2].digest()), "{}", output.stderr);
    assert!(holds(&ours) && holds(&theirs));
    let names = listed(&dest);
    assert!(!names.contains(&blob_name(&theirs.blobs[0].digest())), "{names:?}");
    assert!(names.contains(&blob_name(&ours.blobs[2].digest())));
}

#[test]
fn export_options_omit_nondistributable_layers_and_add_referrers() {
    let (host, _) = architectures();
    let (mut foreign, id) = layer(150, 5000);
    foreign.media_type = FOREIGN.to_owned();
    let packed = image(&host, &[(foreign.clone(), id), layer(151, 5000)]);
    let Some(stage) = Stage::strict(&packed) else { return };
    let note = Blob::new("text/spdx", b"list of contents".as_slice());
    let referrer = Shape::artifact("application/spdx+json").layer(&note).about(&packed).pack();
    stage.push(&referrer.digest(), &referrer);
    let tag = packed.digest().replace(':', "-");
    let list = Bundle::default().entry(&referrer, json!({"artifactType": "application/spdx+json"})).pack();
    stage.push(&tag, &list);
    let dest = stage.site.scratch().join("a.tar");
    let export = |flags: &[&str]| {
        let reference = stage.reference(":v1");
        let output =
            stage.site.ocifs(&[&["export", &reference, "-o", dest.to_str().unwrap()], flags].concat()).ok();
        (listed(&dest), output.stderr)
    };
    let (names, output) = export(&[]);
    assert!(names.contains(&blob_name(&foreign.digest())) && output.is_empty(), "{output}");
    assert!(!names.contains(&blob_name(&referrer.digest())));
    let (names, output) = export(&["--skip-non-distributable"]);
    assert!(!names.contains(&blob_name(&foreign.digest())) && output.contains(&foreign.digest()), "{output}");
    let (names, output) = export(&["--skip-non-distributable", "-q"]);
    assert!(!names.contains(&blob_name(&foreign.digest())) && output.is_empty(), "{output}");
    let (names, _) = export(&["--referrers"]);
    for digest in [referrer.digest(), note.digest()] {
        assert!(names.contains(&blob_name(&digest)), "{digest}: {names:?}");
    }
    let index = document(&dest, "index.json");
    let entry = &index["manifests"][1];
    assert_eq!(
        (&entry["digest"], &entry["artifactType"]),
        (&json!(referrer.digest()), &json!("application/spdx+json"))
    );
    assert_eq!(entry["annotations"]["io.containerd.manifest.subject"], packed.digest().as_str());
    assert_eq!(document(&dest, "manifest.json").as_array().unwrap().len(), 1);
}

#[test]
fn wrong_bytes_end_an_export_with_an_error_and_leave_no_file_and_a_closed_pipe_ends_it_quietly() {
    let (host, _) = architectures();
    let packed = image(&host, &[layer(160, 9 << 20)]);
    let Some(stage) = Stage::strict(&packed) else { return };
    let reference = stage.reference(":v1");
    let mut shell = Command::new("bash");
    shell.args(["-c", "\"$1\" export \"$2\" | head -c 10 | wc -c; echo ${PIPESTATUS[0]}", "sh"]);
    shell.arg(binary()).arg(&reference).env("OCIFS_CACHE_DIR", stage.site.cache());
    let output = run(shell.env("HOME", stage.site.scratch().path())).ok();
    assert_eq!(
        (output.text().split_whitespace().collect::<Vec<_>>(), &output.stderr[..]),
        (vec!["10", "141"], "")
    );

    let right = packed.blobs[1].bytes.clone();
    let digest: Digest = packed.blobs[1].digest().parse().unwrap();
    let mut wrong = right.clone();
    wrong[8 << 20] ^= 1;
    stage.fault().push_blob_as(&digest, wrong);
    let dest = stage.site.scratch().join("a.tar");
    let layer = packed.blobs[1].digest();
    for to in
        [&["-o", dest.to_str().unwrap()][..], &[], &["--format=oci-layout", "-o", dest.to_str().unwrap()]]
    {
        let args = [&["export", "--no-cache", &reference], to].concat();
        stage.site.ocifs(&args).refused(&[7], &[&layer]);
    }
    let left = fs::read_dir(stage.site.scratch().path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains(".ocifs-part")).collect();
    assert!(left.is_empty() && !dest.is_file(), "{left:?}");
    assert!(!dest.join(blob_name(&layer)).exists() && !dest.join("index.json").exists());
    // A mount cannot end early, so that its readers get an error.
    let mount = stage.mount(&["--no-cache"]);
    let error = fs::read(mount.join("export/image.tar")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EIO), "{error}");
    mount.unmount();
    stage.fault().push_blob_as(&digest, right);
    stage.site.ocifs(&["export", &reference, "--format=oci-layout", "-o", dest.to_str().unwrap()]).ok();
    assert_eq!(digest_of(&read(dest.join(blob_name(&layer)))), layer);
}

#[test]
fn interrupted_export_removes_its_unfinished_files() {
    let (host, _) = architectures();
    let packed = image(&host, &[layer(190, 9 << 20)]);
    let Some(stage) = Stage::strict(&packed) else { return };
    stage.fault().set(Fault::SlowBytesPerSecond(64 << 10));
    let reference = stage.reference(":v1");
    let scratch = stage.site.scratch();
    for (format, part) in [
        ("oci-archive", ".dest.ocifs-part".to_owned()),
        ("tar", ".dest.ocifs-part".to_owned()),
        ("dir", "dest".to_owned()),
    ] {
        stage.reset();
        let dest = scratch.join("dest");
        let mut command = stage.site.command();
        command.args(["export", "--no-cache", "--format", format, &reference, "-o"]).arg(&dest);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // A tree is known only after its layer was read, so that nothing of it may be there yet.
        let is_begun = || scratch.join(&part).exists() || format == "dir" && stage.fault().blob_bytes() > 0;
        assert!(becomes_true(CONDITION_TIMEOUT, is_begun), "{format}");
        signal(child.id(), Signal::SIGINT);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{format}");
        assert!(!scratch.join(&part).exists() && !dest.exists(), "{format}");
    }
}

#[test]
fn a_layout_is_an_exact_directory_that_grows_and_fetches_nothing_twice() {
    let (index, ours, theirs) = pair(170);
    let Some(stage) = Stage::strict(&index) else { return };
    stage.push("own", &ours);
    let dir = stage.site.scratch().join("layout");
    let at = |name: &str| dir.join(name);
    let export = |tag: &str, flags: &[&str]| {
        let reference = stage.reference(tag);
        let args =
            [&["export", "--format=oci-layout", &reference, "-o", dir.to_str().unwrap()], flags].concat();
        stage.site.ocifs(&args)
    };
    let output = export(":v1", &["--all-platforms"]).ok().text();
    assert_eq!(output.trim(), stage.reference(&format!(":v1@{}", index.digest())));
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["blobs", "index.json", "oci-layout"]);
    // A round trip keeps every digest.
    let full = stage.reference(":v1");
    let of = |what: &str| format!("oci:{}{what}", dir.display());
    let resolved = stage.site.ocifs(&["resolve", &of(&format!("@{}", index.digest()))]).ok().text();
    assert!(resolved.trim().ends_with(&index.digest()), "{resolved}");
    stage.site.ocifs(&["verify", &of(""), "--platform=all"]).ok();
    // A blob that is there is not fetched, one that is wrong is.
    fs::write(at(&blob_name(&theirs.blobs[1].digest())), b"broken").unwrap();
    stage.reset();
    export(":own", &["--no-cache"]).ok();
    let asked: Vec<String> = stage.blob_requests().into_iter().map(|(path, _)| path).collect();
    assert!(asked.iter().all(|path| path.contains(&theirs.blobs[1].digest())), "{asked:?}");
    assert_eq!(digest_of(&read(at(&blob_name(&theirs.blobs[1].digest())))), theirs.blobs[1].digest());
    let entries: Value = serde_json::from_slice(&read(at("index.json"))).unwrap();
    let names: Vec<&str> = entries["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["annotations"]["io.containerd.image.name"].as_str().unwrap())
        .collect();
    assert_eq!(names, [&full, &stage.reference(":own")]);
    // A directory that is something else stays what it is.
    let thesis = stage.site.scratch().subdir("thesis");
    fs::write(thesis.join("thesis.txt"), b"years").unwrap();
    let args = ["export", "--format=oci-layout", &full, "-o", thesis.to_str().unwrap()];
    stage.site.ocifs(&args).refused(&[2], &["neither empty nor"]);
    assert_eq!(fs::read_dir(&thesis).unwrap().count(), 1);
    let mut text = String::new();
    File::open(at("oci-layout")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, r#"{"imageLayoutVersion":"1.0.0"}"#);
}

#[test]
fn the_archive_of_a_mount_follows_its_options_and_an_artifact_has_one_too() {
    let (index, _, theirs) = pair(180);
    let Some(stage) = Stage::strict(&index) else { return };
    let (_, other) = architectures();
    let file = Blob::new("text/plain", b"hello".as_slice()).titled("hello.txt");
    let artifact = Shape::artifact("application/x.thing").layer(&file).pack();
    stage.push("thing", &artifact);
    let dest = stage.site.scratch().join("a.tar");
    for (name, tag, flags) in [
        ("other", ":v1", &[&format!("--platform=linux/{other}")[..]][..]),
        ("all", ":v1", &["--platform=all"]),
        ("thing", ":thing", &[]),
    ] {
        let reference = stage.reference(tag);
        stage.site.ocifs(&[&["export", &reference, "-o", dest.to_str().unwrap()], flags].concat()).ok();
        let mount = stage.site.mount_at(name, &reference, flags);
        let shown = mount.join("export/image.tar");
        assert!(read(&shown) == read(&dest), "{name}");
        assert_eq!(listed(&shown).contains(&blob_name(&theirs.digest())), tag == ":v1", "{name}");
        mount.unmount();
        let view =
            stage.site.mount_at(&format!("{name}-view"), &reference, &[flags, &["--view=export"]].concat());
        assert!(read(view.join("image.tar")) == read(&dest), "{name}");
        view.unmount();
    }
    assert!(listed(&dest).contains(&blob_name(&file.digest())));
    // A blob alone is no archive.
    let alone = stage.site.mount_at("alone", &stage.reference(&format!("@{}", file.digest())), &[]);
    assert!(!alone.join("export").exists());
    alone.unmount();
    let blob = stage.reference(&format!("@{}", file.digest()));
    stage.site.ocifs(&["export", &blob, "-o", dest.to_str().unwrap()]).refused(&[3, 5, 6], &[&file.digest()]);
}

#[test]
fn link_in_a_layout_is_replaced_and_its_target_kept() {
    let (host, _) = architectures();
    let packed = image(&host, &[layer(200, 3000)]);
    let Some(stage) = Stage::strict(&packed) else { return };
    let dir = stage.site.scratch().subdir("layout");
    let reference = stage.reference(":v1");
    let export = || {
        stage.site.ocifs(&["export", "--format=oci-layout", &reference, "-o", dir.to_str().unwrap()]).ok();
    };
    export();
    let victims = stage.site.scratch().subdir("victims");
    let blob = blob_name(&packed.blobs[1].digest());
    let links = [&blob[..], "index.json", "oci-layout"].map(|name| {
        let victim = victims.join(name.rsplit('/').next().unwrap());
        fs::rename(dir.join(name), &victim).unwrap();
        if name == blob {
            fs::write(&victim, b"mine").unwrap();
        }
        std::os::unix::fs::symlink(&victim, dir.join(name)).unwrap();
        let found = fs::metadata(&victim).unwrap();
        (dir.join(name), victim.clone(), read(&victim), (found.ino(), found.mtime_nsec()))
    });
    export();
    for (link, victim, bytes, before) in links {
        assert!(!link.is_symlink() && link.is_file(), "{}", link.display());
        let found = fs::metadata(&victim).unwrap();
        assert!(
            read(&victim) == bytes && (found.ino(), found.mtime_nsec()) == before,
            "{}",
            victim.display()
        );
    }
    assert_eq!(digest_of(&read(dir.join(&blob))), packed.blobs[1].digest());
}

#[test]
fn several_that_write_to_one_layout_wait_for_each_other_and_lose_nothing() {
    let (host, _) = architectures();
    let packed = image(&host, &[layer(210, 3000)]);
    let Some(stage) = Stage::strict(&packed) else { return };
    let dir = stage.site.scratch().join("layout");
    let export = |tag: &str| {
        stage.push(tag, &packed);
        let mut command = stage.site.command();
        command.args(["export", "--format=oci-layout", &stage.reference(&format!(":{tag}")), "-o"]).arg(&dir);
        command.stdout(Stdio::null()).stdin(Stdio::null()).spawn().unwrap()
    };
    assert!(export("one").wait().unwrap().success());
    // Whoever has its turn adds an entry, while another waits that has written all the rest.
    let path = dir.join("index.json");
    let turn = ReplacementFile::begin(&path).unwrap();
    let mut index: Value = serde_json::from_slice(&read(&path)).unwrap();
    let blob = dir.join(blob_name(&packed.blobs[1].digest()));
    fs::remove_file(&blob).unwrap();
    let mut waiting = export("two");
    assert!(becomes_true(CONDITION_TIMEOUT, || blob.exists()));
    let mut added = index["manifests"][0].clone();
    added["annotations"] = json!({"org.opencontainers.image.ref.name": "added"});
    index["manifests"].as_array_mut().unwrap().push(added);
    turn.file().write_all_at(index.to_string().as_bytes(), 0).unwrap();
    turn.commit().unwrap();
    assert!(waiting.wait().unwrap().success());
    let entries = || {
        let index: Value = serde_json::from_slice(&read(&path)).unwrap();
        let entries = index["manifests"].as_array().unwrap().clone();
        let name = |entry: &Value| entry["annotations"]["org.opencontainers.image.ref.name"].to_string();
        let mut names: Vec<String> = entries.iter().map(name).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(entries(), r#""added" "one" "two""#);
    // And all at once, from the beginning.
    fs::remove_dir_all(&dir).unwrap();
    let children: Vec<_> = ["a", "b", "c", "d"].map(export).into();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(entries(), r#""a" "b" "c" "d""#);
}
