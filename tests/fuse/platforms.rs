//! References with several manifests: the chosen one, `--platform all`, `--referrers`, and the digest of a blob.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::artifact::{EMPTY, Piece};
use crate::byte_text::digest_of;
use crate::encode::Encoding;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::layout::{CONFIG, INDEX, Layout, MANIFEST};
use crate::process::{Need, able, sh};
use crate::real_registry::RealRegistry;
use crate::site::{Mount, Site};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 3] = [Need::Root, Need::Fuse, Need::Tool("docker-registry")];

/// A registry that documents and blobs are pushed to.
trait Target {
    fn blob(&self, bytes: &[u8]);
    fn document(&self, tag: &str, media_type: &str, bytes: &[u8]);
}

/// The repository that everything is pushed to.
const REPO: &str = "several/things";

impl Target for RealRegistry {
    fn blob(&self, bytes: &[u8]) {
        self.push_blob(REPO, bytes);
    }

    fn document(&self, tag: &str, media_type: &str, bytes: &[u8]) {
        self.push_manifest(REPO, tag, media_type, bytes);
    }
}

impl Target for FaultRegistry {
    fn blob(&self, bytes: &[u8]) {
        self.push_blob(bytes);
    }

    fn document(&self, tag: &str, media_type: &str, bytes: &[u8]) {
        self.push_manifest(REPO, tag, media_type, bytes);
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest_of(bytes), "size": bytes.len()})
}

/// Pushes a document under its own digest, and gives its descriptor.
fn put(target: &dyn Target, media_type: &str, document: &Value) -> Value {
    let bytes = document.to_string().into_bytes();
    target.document(&digest_of(&bytes), media_type, &bytes);
    descriptor(media_type, &bytes)
}

/// An image with one file.
fn image(target: &dyn Target, name: &str) -> Value {
    let tar = Tarball::new().file(name, name.as_bytes()).bytes();
    let (config, layer) = (format!("{{\"x\":{name:?}}}"), Encoding::Gzip.encode(&tar));
    target.blob(config.as_bytes());
    target.blob(&layer);
    let layers = [descriptor(Encoding::Gzip.media_type(), &layer)];
    let config = descriptor(CONFIG, config.as_bytes());
    put(
        target,
        MANIFEST,
        &json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}),
    )
}

/// An artifact of these files.
fn artifact(target: &dyn Target, pieces: &[Piece], more: Value) -> Value {
    target.blob(EMPTY.1);
    let layers = pieces.iter().map(|piece| {
        target.blob(&piece.bytes);
        let mut layer = descriptor(piece.media_type, &piece.bytes);
        layer["annotations"] = json!({"org.opencontainers.image.title": piece.title});
        layer
    });
    let mut document = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.thing",
        "config": descriptor(EMPTY.0, EMPTY.1), "layers": layers.collect::<Vec<_>>(),
    });
    for (key, value) in more.as_object().unwrap() {
        document[key] = value.clone();
    }
    put(target, MANIFEST, &document)
}

/// `entry` with a platform, if one is given, and annotations.
fn with(mut entry: Value, platform: &str, annotations: Value) -> Value {
    if let Some((os, architecture)) = platform.split_once('/') {
        entry["platform"] = json!({"os": os, "architecture": architecture});
    }
    entry["annotations"] = annotations;
    entry
}

fn index(entries: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
}

fn tag(target: &dyn Target, tag: &str, document: &Value) {
    target.document(tag, INDEX, document.to_string().as_bytes());
}

fn digest(entry: &Value) -> &str {
    entry["digest"].as_str().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn members(mount: &Mount) -> Vec<(String, String)> {
    let status: Value = serde_json::from_str(&mount.status()).unwrap();
    let members = status["members"].as_array().cloned().unwrap_or_default();
    let text = |member: &Value, key: &str| member[key].as_str().unwrap().to_owned();
    members.iter().map(|member| (text(member, "directory"), text(member, "state"))).collect()
}

#[test]
fn all_platforms_are_shown_each_in_a_tree_of_its_own() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), RealRegistry::start());
    let (amd, arm) = (image(&registry, "for-amd"), image(&registry, "for-arm"));
    let provenance = [Piece::new("provenance.json", "application/vnd.in-toto+json", "{}")];
    let attestation = artifact(&registry, &provenance, json!({}));
    let entries = [
        with(amd.clone(), "linux/x86_64", json!({})),
        with(arm.clone(), "linux/arm64", json!({})),
        with(
            attestation.clone(),
            "unknown/unknown",
            json!({"vnd.docker.reference.type": "attestation-manifest"}),
        ),
    ];
    let index = index(&entries);
    tag(&registry, "v1", &index);
    let reference = registry.reference(&format!("{REPO}:v1"));
    let mount = site.mount(&reference, &["--platform", "all"]);
    assert_eq!(names(&mount.join("platforms")), ["linux-amd64", "linux-arm64"]);
    assert_eq!(fs::read(mount.join("index.json")).unwrap(), index.to_string().into_bytes());
    for (directory, file) in [("linux-amd64", "for-amd"), ("linux-arm64", "for-arm")] {
        let tree = mount.join("platforms").join(directory);
        assert_eq!(fs::read_to_string(tree.join("merged").join(file)).unwrap(), file);
        assert_eq!(
            names(&tree),
            [".ocifs", "blobs", "config.json", "export", "layers", "manifest.json", "merged"]
        );
        assert_eq!(names(&tree.join("export")), ["rootfs.erofs"]);
        let link = names(&tree.join("layers")).into_iter().find(|name| name.ends_with(".tar.gz")).unwrap();
        assert!(
            fs::metadata(tree.join("layers").join(link)).unwrap().is_file(),
            "links lead to the blobs beside them"
        );
    }
    let host = if cfg!(target_arch = "aarch64") { "for-arm" } else { "for-amd" };
    assert_eq!(names(&mount.join("merged")), [host]);
    let short = &digest(&attestation)["sha256:".len()..][..12];
    assert_eq!(fs::read(mount.join(format!("attestations/{short}/files/provenance.json"))).unwrap(), b"{}");
    let shown = "shown".to_owned();
    assert_eq!(
        members(&mount),
        [
            ("platforms/linux-amd64".to_owned(), shown.clone()),
            ("platforms/linux-arm64".to_owned(), shown.clone()),
            (format!("attestations/{short}"), shown)
        ]
    );

    // Numbers are the same in another mount, and the chosen image has those that it has alone.
    let again = site.mount_at("again", &reference, &["--platform", "all"]);
    let alone = site.mount_at("alone", &reference, &["--platform", "linux/amd64"]);
    for path in [
        "platforms",
        "platforms/linux-arm64",
        "platforms/linux-arm64/merged/for-arm",
        "merged",
        "config.json",
    ] {
        let ino = |mount: &Mount| fs::metadata(mount.join(path)).unwrap().ino();
        assert_eq!(ino(&mount), ino(&again), "{path}");
    }
    let ino = |mount: &Mount| fs::metadata(mount.join("merged").join(host)).unwrap().ino();
    if host == "for-amd" {
        assert_eq!(ino(&mount), ino(&alone));
    }
    assert_eq!(
        names(alone.dir()),
        [".ocifs", "blobs", "config.json", "export", "index.json", "layers", "manifest.json", "merged"]
    );
    for mount in [mount, again, alone] {
        mount.unmount();
    }

    let below = site.mount(&reference, &["--platform", "all", "--subdir", "platforms/linux-arm64/merged"]);
    assert_eq!(names(below.dir()), ["for-arm"]);
    below.unmount();
}

#[test]
fn a_refreshed_mount_stays_only_for_the_same_platform_a_good_signature_and_without_network_where_none_is_wanted()
 {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("openssl")]) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let (amd, arm) = (image(&registry, "for-amd"), image(&registry, "for-arm"));
    let entries = [with(amd, "linux/amd64", json!({})), with(arm, "linux/arm64", json!({}))];
    tag(&registry, "v1", &index(&entries));
    let reference = format!("{}/{REPO}:v1", registry.host());
    let mount = site.mount(&reference, &["--platform=linux/arm64"]);
    let dir = mount.dir().to_owned();
    let refresh_as = |reference: &str, options: &[&str]| {
        let words = [&["mount", "--refresh"], options, &[reference, dir.to_str().unwrap()]].concat();
        site.ocifs(&words)
    };
    let refresh = |options: &[&str]| refresh_as(&reference, options);
    let output = refresh(&["--platform=linux/arm64"]).ok().text();
    assert!(output.contains("already"), "{output}");
    registry.reset_counts();
    let status: Value = serde_json::from_str(&mount.status()).unwrap();
    let pinned = status["reference"].as_str().unwrap();
    let output = refresh_as(pinned, &["--platform=linux/arm64", "--offline"]).ok().text();
    assert!(output.contains("already"), "{output}");
    assert_eq!(registry.requests().len(), 0);
    let key = site.scratch().join("key.pub");
    sh(
        r#"openssl ecparam -name prime256v1 -genkey -noout | openssl ec -pubout -out "$1" 2> /dev/null"#,
        &[&key],
    );
    let signed = format!("--require-signature={}", key.display());
    refresh(&["--platform=linux/arm64", &signed]).refused(&[7], &["no signature found"]);
    assert_eq!(names(&mount.join("merged")), ["for-arm"], "the mount stays");
    let output = refresh(&["--platform=linux/amd64"]).ok().text();
    assert!(output.contains(" mounted at "), "{output}");
    assert_eq!(names(&dir.join("merged")), ["for-amd"]);
    mount.unmount();
}

#[test]
fn an_index_of_other_machines_has_a_root_without_an_image() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), RealRegistry::start());
    let entries = [with(image(&registry, "file"), "linux/s390x", json!({}))];
    tag(&registry, "v1", &index(&entries));
    let reference = registry.reference(&format!("{REPO}:v1"));
    let mount = site.mount(&reference, &["--platform=all"]);
    assert_eq!(names(mount.dir()), [".ocifs", "export", "index.json", "platforms"]);
    assert_eq!(fs::read_to_string(mount.join("platforms/linux-s390x/merged/file")).unwrap(), "file");
    mount.unmount();
    let words = ["no image of it", "--subdir platforms/linux-s390x/merged"];
    site.mount_refused(&reference, &["--platform=all", "--view=merged"], &[3], &words);
    site.mount_refused(
        &reference,
        &[],
        &[3],
        &["no manifest for platform", "linux/s390x", digest(&entries[0])],
    );
}

#[test]
fn disks_of_one_platform_are_listed_and_never_chosen_silently() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), RealRegistry::start());
    let host = std::env::consts::ARCH;
    let disk = |kind: &str| {
        let piece = Piece::new(&format!("{kind}.raw"), "application/octet-stream", kind);
        with(artifact(&registry, &[piece], json!({})), &format!("linux/{host}"), json!({"disktype": kind}))
    };
    let entries = [disk("qemu"), disk("hyperv")];
    tag(&registry, "v1", &index(&entries));
    let reference = registry.reference(&format!("{REPO}:v1"));
    let words = ["disktype=\"qemu\"", digest(&entries[0]), digest(&entries[1]), "--select"];
    site.mount_refused(&reference, &[], &[2], &words);
    for options in [["-o", "select=disktype=QEMU"], ["--select", "disktype=q*"]] {
        let mount = site.mount(&reference, &options);
        assert_eq!(names(&mount.join("files")), ["qemu.raw"]);
        mount.unmount();
    }
    site.mount_refused(&reference, &["--select", "disktype=wsl"], &[3], &["no manifest meets disktype=wsl"]);
    let mount = site.mount(&reference, &["--platform", "all"]);
    let architecture = if host == "aarch64" { "arm64" } else { "amd64" };
    let expected = ["hyperv", "qemu"].map(|kind| format!("linux-{architecture}-{kind}"));
    assert_eq!(names(&mount.join("platforms")), expected);
    mount.unmount();
    let report: Value =
        serde_json::from_str(&site.ocifs(&["inspect", "--format=json", "--platform=all", &reference]).text())
            .unwrap();
    assert_eq!(report["class"], "index");
    assert_eq!(report["manifests"][1]["digest"], digest(&entries[1]));
    assert_eq!(report["manifests"][1]["distinguishedBy"], json!(["disktype=hyperv"]));
}

#[test]
fn bottles_of_one_platform_have_separate_names() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), RealRegistry::start());
    let bottle = |name: &str| {
        let annotations = json!({"org.opencontainers.image.ref.name": name, "sh.brew.bottle.size": "1"});
        with(image(&registry, name), "darwin/arm64", annotations)
    };
    let names_of = ["1.0.arm64_sonoma", "1.0.arm64_sequoia"];
    tag(&registry, "1.0", &index(&names_of.map(bottle)));
    let reference = registry.reference(&format!("{REPO}:1.0"));
    let mount = site.mount(&reference, &["--platform", "all"]);
    for name in names_of {
        let merged = mount.join(format!("platforms/darwin-arm64-{name}/merged"));
        assert_eq!(names(&merged), [name]);
    }
    mount.unmount();
    let mount = site.mount(&reference, &["--select", "ref.name=*_sonoma"]);
    assert_eq!(names(&mount.join("merged")), [names_of[0]]);
    mount.unmount();
}

#[test]
fn indexes_in_indexes_are_searched_and_shown() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), RealRegistry::start());
    let title = "org.opencontainers.image.title";
    let inner = |name: &str| {
        let entries = [with(image(&registry, name), "linux/s390x", json!({}))];
        with(put(&registry, INDEX, &index(&entries)), "", json!({title: name}))
    };
    let outer = index(&[inner("one"), inner("two")]);
    tag(&registry, "v1", &outer);
    let reference = registry.reference(&format!("{REPO}:v1"));
    let mount = site.mount(&reference, &["--platform", "all"]);
    assert_eq!(names(&mount.join("platforms")), ["one", "two"]);
    assert_eq!(names(&mount.join("platforms/two")), ["index.json", "platforms"]);
    assert_eq!(
        fs::read_to_string(mount.join("platforms/two/platforms/linux-s390x/merged/two")).unwrap(),
        "two"
    );
    mount.unmount();
    // What an index is called holds for what is in it.
    let mount = site.mount(&reference, &["--select", "title=two", "--platform", "linux/s390x"]);
    assert_eq!(names(&mount.join("merged")), ["two"]);
    mount.unmount();
    site.mount_refused(
        &reference,
        &["--platform", "linux/s390x"],
        &[2],
        &["several manifests fit", "--select"],
    );
}

#[test]
fn indexes_may_be_four_deep_and_never_go_round() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let mut entry = with(image(&registry, "deep"), "linux/s390x", json!({}));
    for depth in 1..=5 {
        let document = index(std::slice::from_ref(&entry));
        tag(&registry, &format!("depth{depth}"), &document);
        entry = put(&registry, INDEX, &document);
    }
    let reference = |tag: &str| format!("{}/{REPO}:{tag}", registry.host());
    for options in [["--platform", "linux/s390x"], ["--platform", "all"]] {
        let mount = site.mount(&reference("depth4"), &options);
        mount.unmount();
        site.mount_refused(&reference("depth5"), &options, &[6], &["nested more than 4 deep", "--select"]);
    }
    // An index that names itself, which only a registry that lies can serve.
    let own = format!("sha256:{}", "5".repeat(64));
    let document = index(&[json!({"mediaType": INDEX, "digest": own, "size": 5})]);
    tag(&registry, "round", &document);
    registry.push_manifest_as(REPO, &own, INDEX, document.to_string().as_bytes());
    site.mount_refused(&reference("round"), &[], &[6, 7], &["nested index", &own]);
}

#[test]
fn a_member_that_cannot_be_opened_is_a_warning_and_the_others_are_there() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let missing = descriptor(MANIFEST, b"nowhere");
    let entries =
        [with(missing, "linux/riscv64", json!({})), with(image(&registry, "here"), "linux/s390x", json!({}))];
    tag(&registry, "v1", &index(&entries));
    let mount = site.mount(&format!("{}/{REPO}:v1", registry.host()), &["--platform", "all"]);
    assert_eq!(names(&mount.join("platforms")), ["linux-s390x"]);
    let status: Value = serde_json::from_str(&mount.status()).unwrap();
    let warning = status["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("platforms/linux-riscv64: "), "{warning}");
    assert_eq!(status["members"][1]["state"], "shown");
    mount.unmount();
}

#[test]
fn too_many_members_are_an_error_with_a_hint() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let entry = |number: usize| {
        let bytes = number.to_string();
        with(
            descriptor(MANIFEST, bytes.as_bytes()),
            "linux/s390x",
            json!({"org.opencontainers.image.title": bytes}),
        )
    };
    let entries: Vec<Value> = (0..1025).map(entry).collect();
    tag(&registry, "many", &index(&entries));
    let reference = format!("{}/{REPO}:many", registry.host());
    site.mount_refused(&reference, &["--platform", "all"], &[6], &["more than 1024", "--select"]);
}

#[test]
fn only_the_layers_that_are_selected_are_presented_and_fetched() {
    if !able(&NEEDS) {
        return;
    }
    let (site, mut registry) = (Site::new(), RealRegistry::start());
    let tar = |name: &str, seed| Tarball::new().file(name, &noise(300_000, seed)).bytes();
    let pieces = [
        Piece::new("one.tar", "application/x-tar", tar("one", 1)),
        Piece::new("two.tar", "application/x-tar", tar("two", 2)),
        Piece::new("note.txt", "text/plain", "note"),
    ];
    let manifest = artifact(&registry, &pieces, json!({}));
    let reference = registry.reference(&format!("{REPO}@{}", digest(&manifest)));
    for options in [
        &["--layer", "1"][..],
        &["--title", "two*"],
        &["-o", "title=TWO.tar,media_type=application/x-*"],
        &["--media-type", "*tar", "--layer", "1", "--layer", "2"],
    ] {
        let site = Site::new();
        registry.reset_counts();
        let mount = site.mount(&reference, options);
        assert_eq!(names(&mount.join("merged")), ["two"], "{options:?}");
        assert_eq!(names(&mount.join("files")), ["two.tar"], "{options:?}");
        assert_eq!(fs::read(mount.join("merged/two")).unwrap(), noise(300_000, 2));
        assert_eq!(names(&mount.join("blobs/sha256")).len(), 4, "the blobs stay complete");
        assert_eq!(digest_of(&fs::read(mount.join("manifest.json")).unwrap()), digest(&manifest));
        mount.unmount();
        assert_eq!(registry.bytes_of(&digest_of(&pieces[0].bytes)), 0, "{options:?}");
        assert!(registry.bytes_of(&digest_of(&pieces[1].bytes)) > 0, "{options:?}");
    }
    site.mount_refused(
        &reference,
        &["--title", "three"],
        &[3],
        &["no layer is selected", "\"one.tar\"", "--title"],
    );
}

#[test]
fn blob_digest_as_reference_shows_the_blob_by_its_content() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), RealRegistry::start());
    let tar = Encoding::Gzip.encode(&Tarball::new().file("inside", b"found\n").bytes());
    let mut disk = noise(700_000, 5);
    disk[510..512].copy_from_slice(b"\x55\xaa");
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &[]);
    let places = |bytes: &[u8]| {
        registry.push_blob(REPO, bytes);
        layout.blob("", bytes);
        let digest = digest_of(bytes);
        let directory = site.scratch().join("layout");
        [registry.reference(&format!("{REPO}@{digest}")), format!("oci:{}@{digest}", directory.display())]
    };
    let hex = |bytes: &[u8]| digest_of(bytes)["sha256:".len()..].to_owned();
    for reference in places(&tar) {
        let mount = site.mount(&reference, &[]);
        assert_eq!(
            names(mount.dir()),
            [".ocifs", "blobs", "export", "files", "layers", "merged"],
            "{reference}"
        );
        assert_eq!(fs::read(mount.join(format!("files/{}.tar.gz", hex(&tar)))).unwrap(), tar);
        assert_eq!(fs::read(mount.join("merged/inside")).unwrap(), b"found\n");
        assert_eq!(mount.digest(), digest_of(&tar));
        mount.unmount();
    }
    for reference in places(&disk) {
        let mount = site.mount(&reference, &[]);
        assert_eq!(fs::read(mount.join(format!("files/{}.img", hex(&disk)))).unwrap(), disk);
        assert_eq!(fs::read(mount.join(format!("disk/{}.img", hex(&disk)))).unwrap(), disk);
        assert!(names(mount.dir()).iter().all(|name| !name.ends_with(".json")), "{reference}");
        mount.unmount();
    }
    let nowhere = registry.reference(&format!("{REPO}@{}", digest_of(b"nowhere")));
    site.mount_refused(&nowhere, &[], &[3, 4], &["manifest"]);
}

/// What is about `subject` among what is pushed: a signature, and one that only the list says is about it.
fn push_referrers(target: &dyn Target, subject: &Value) -> [Value; 2] {
    let about = |name: &str, subject: Value| {
        let piece = [Piece::new(name, "application/json", format!("{{\"{name}\":1}}"))];
        artifact(target, &piece, json!({"artifactType": "application/vnd.example.sig", "subject": subject}))
    };
    let bare = |entry: &Value| json!({"mediaType": entry["mediaType"], "digest": entry["digest"], "size": entry["size"]});
    [about("true.json", bare(subject)), about("lie.json", descriptor(MANIFEST, b"something else"))]
}

fn check_referrers(mount: &Mount, referrers: &[Value; 2]) {
    let directory = mount.join("referrers/application_vnd.example.sig");
    assert_eq!(names(&directory), [digest(&referrers[0])]);
    let file = directory.join(digest(&referrers[0])).join("files/true.json");
    assert_eq!(fs::read(file).unwrap(), b"{\"true.json\":1}");
}

#[test]
fn referrers_are_shown_from_the_fallback_tag() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), RealRegistry::start());
    let image = image(&registry, "signed");
    let referrers = push_referrers(&registry, &image);
    let listed = referrers.clone().map(|mut entry| {
        entry["artifactType"] = json!("application/vnd.example.sig");
        entry
    });
    tag(&registry, &digest(&image).replace(':', "-"), &index(&listed));
    let reference = registry.reference(&format!("{REPO}@{}", digest(&image)));
    let mount = site.mount(&reference, &["--referrers"]);
    check_referrers(&mount, &referrers);
    assert!(mount.status().contains("which is not its subject"), "{}", mount.status());
    assert_eq!(names(&mount.join("merged")), ["signed"]);
    mount.unmount();
    let mount = site.mount(&reference, &[]);
    assert!(!names(mount.dir()).contains(&"referrers".to_owned()));
    mount.unmount();
}

#[test]
fn referrers_are_shown_from_the_api() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let image = image(&registry, "signed");
    let referrers = push_referrers(&registry, &image);
    registry.set(Fault::ReferrersApi { page: 1 });
    let reference = format!("{}/{REPO}@{}", registry.host(), digest(&image));
    let mount = site.mount(&reference, &["-o", "referrers"]);
    check_referrers(&mount, &referrers);
    mount.unmount();
}
