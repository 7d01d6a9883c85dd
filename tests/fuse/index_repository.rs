//! Index repositories: the cost of names in images without an index, faults and lies of a repository, and its logins.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocifs::layer::{LayerIndex, TocEntryKind};
use ocifs::oci::published::{self, LAYER_INDEX};
use ocifs::oci::{Descriptor, Digest};

use crate::artifact::{EMPTY, Piece};
use crate::byte_text::digest_of;
use crate::cost::push_image;
use crate::encode::Encoding;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::foreign_image::{own_index, warnings};
use crate::key_fixtures::Made;
use crate::layout::{Layer, Layout, MANIFEST, blob_path};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, sh};
use crate::site::{Mount, Site};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
const KIB: usize = 1 << 10;
const REPO: &str = "our/indexes";
/// Files in a layer of 9 MB, so that it is no small blob.
const FILES: u64 = 90;
/// Files in a small layer.
const FEW: u64 = 6;
const SIZE: usize = 100 * KIB;

fn content(seed: u64, number: u64) -> Vec<u8> {
    noise(SIZE, seed * 1000 + number)
}

/// A layer with its files in the directory `name`.
fn layer(name: &str, seed: u64, encoding: Encoding) -> Layer {
    layer_of(name, seed, encoding, FILES)
}

fn layer_of(name: &str, seed: u64, encoding: Encoding, files: u64) -> Layer {
    let mut tar = Tarball::new().dir(name);
    for number in 0..files {
        tar = tar.file(&format!("{name}/{number:03}"), &content(seed, number));
    }
    Layer::of(&tar.bytes(), encoding)
}

/// The option that names the repository at `registry`.
fn from(registry: &FaultRegistry) -> String {
    format!("--index-from={}/{REPO}", registry.host())
}

/// The repository as an argument of its own.
fn repository(registry: &FaultRegistry) -> String {
    format!("{}/{REPO}", registry.host())
}

/// The descriptor of a layer.
fn descriptor(layer: &Layer) -> Descriptor {
    Descriptor::of(&layer.media_type, &layer.stored)
}

/// Stores `bytes` as the index of `layer`, with the size that the manifest states.
fn store(registry: &FaultRegistry, layer: &Layer, size: u64, bytes: Vec<u8>) -> Digest {
    let stated = Descriptor { size, ..descriptor(layer) };
    let publication = published::publish_layer_index(&stated, LAYER_INDEX, bytes.clone()).unwrap();
    for (_, bytes) in publication.blobs {
        registry.push_blob(bytes);
    }
    let tag = published::layer_tag(&stated.digest);
    registry.push_manifest(REPO, &tag, MANIFEST, &publication.manifest.bytes);
    Digest::sha256(&bytes)
}

fn store_own(registry: &FaultRegistry, layer: &Layer) -> Digest {
    store(registry, layer, layer.stored.len() as u64, own_index(&layer.stored).to_bytes().unwrap())
}

/// The index of `layer` with the bytes of two files exchanged.
fn lie(layer: &Layer) -> Vec<u8> {
    let mut index: LayerIndex = own_index(&layer.stored);
    let mut entries: Vec<_> = index.toc.iter().map(|entry| entry.to_entry()).collect();
    let TocEntryKind::File(other) = entries[1 + 21].kind.clone() else { panic!("a file") };
    let TocEntryKind::File(one) = &mut entries[1 + 20].kind else { panic!("a file") };
    one.offset = other.offset;
    index.toc = entries.into_iter().collect();
    index.to_bytes().unwrap()
}

/// The kinds of the indexes in use, by layer.
fn indexes(mount: &Mount) -> Vec<String> {
    let status: serde_json::Value = serde_json::from_str(&mount.status()).unwrap();
    let layers = status["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["index"].as_str().unwrap_or_default().to_owned()).collect()
}

fn names(mount: &Mount) -> usize {
    sh("find $1/merged | wc -l", &[&mount.dir()]).text().trim().parse().unwrap()
}

/// Compares every file of the directory `name`.
#[track_caller]
fn reads(mount: &Mount, name: &str, seed: u64) {
    let files = fs::read_dir(mount.join("merged").join(name)).unwrap().count();
    for number in 0..files as u64 {
        let read = fs::read(mount.join(format!("merged/{name}/{number:03}"))).unwrap();
        assert!(read == content(seed, number), "{name}/{number:03}");
    }
}

fn blobs_of(registry: &FaultRegistry) -> BTreeSet<String> {
    let digest = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    registry.blob_requests().iter().map(|request| digest(&request.path)).collect()
}

#[test]
fn names_of_an_unprepared_image_cost_its_indexes_alone() {
    if !able(&NEEDS) {
        return;
    }
    let (builder, user) = (Site::new(), Site::new());
    let (images, repository_at) = (FaultRegistry::start(), FaultRegistry::start());
    let layers = [
        layer("a", 1, Encoding::Gzip),
        layer("b", 2, Encoding::GzipMembers),
        layer("c", 3, Encoding::Zstd),
        layer("d", 4, Encoding::Plain),
    ];
    let reference = push_image(&images, &layers);
    let stored: u64 = layers.iter().map(|layer| layer.stored.len() as u64).sum();
    let pushed =
        builder.ocifs(&["index", "push", &reference, "--to", &repository(&repository_at)]).ok().text();
    assert_eq!(pushed.lines().filter(|line| line.ends_with("published")).count(), 4, "{pushed}");

    images.reset_counts();
    repository_at.reset_counts();
    let mount = user.mount(&reference, &[&from(&repository_at)]);
    assert_eq!(names(&mount), 1 + 4 * (1 + FILES as usize));
    assert_eq!(images.blob_bytes(), 0, "{:?}", images.blob_requests());
    let asked = repository_at.manifest_requests();
    assert_eq!(asked.len(), 4, "{asked:?}");
    let sent: u64 = repository_at.requests().iter().map(|request| request.bytes_sent).sum();
    assert!(sent * 1000 <= stored * 15, "{sent} of {stored} bytes for the names");
    assert_eq!(indexes(&mount), ["pushed"; 4], "{}", mount.status());
    assert_eq!(warnings(&mount), [""; 0]);
    assert!(fs::read(mount.join("merged/a/030")).unwrap() == content(1, 30));
    let bytes = images.blob_bytes();
    assert!(bytes <= 2 << 20, "{bytes} bytes for a file of 100 KiB");
    for (number, name) in ["a", "b", "c", "d"].iter().enumerate() {
        reads(&mount, name, number as u64 + 1);
    }
    mount.unmount();

    // The next mount has the indexes, and asks nothing.
    repository_at.reset_counts();
    let again = user.mount(&reference, &[&from(&repository_at)]);
    assert_eq!(names(&again), 1 + 4 * (1 + FILES as usize));
    assert_eq!(repository_at.requests().len(), 0, "{:?}", repository_at.requests());
}

#[test]
fn a_layer_whose_index_is_in_the_repository_is_neither_read_nor_pushed_again() {
    if !able(&NEEDS) {
        return;
    }
    let (images, repository_at) = (FaultRegistry::start(), FaultRegistry::start());
    let (base, top) = (layer("base", 1, Encoding::Gzip), layer("top", 2, Encoding::Gzip));
    let first = push_image(&images, std::slice::from_ref(&base));
    let to = repository(&repository_at);
    Site::new().ocifs(&["index", "push", &first, "--to", &to]).ok();
    let both = push_image(&images, &[base, top]);
    repository_at.reset_counts();
    images.reset_counts();
    let base = layer("base", 1, Encoding::Gzip);
    let pushed = Site::new().ocifs(&["index", "push", "--to", &to, &both]).ok().text();
    let lines: Vec<_> = pushed.lines().collect();
    assert!(lines[0].starts_with(&base.digest()) && lines[0].ends_with("already there"), "{pushed}");
    assert!(lines[1].ends_with("published"), "{pushed}");
    assert!(!blobs_of(&images).contains(&base.digest()), "{:?}", images.blob_requests());
    let puts = repository_at.requests().into_iter().filter(|request| request.method == "PUT");
    // One index and one manifest: the empty config is there.
    assert_eq!(puts.count(), 2, "{:?}", repository_at.requests());
}

#[test]
fn images_that_share_a_base_layer_share_its_index() {
    if !able(&NEEDS) {
        return;
    }
    let (first, second, repository_at) =
        (FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
    let prepared = push_image(&first, &[layer("base", 1, Encoding::Gzip), layer("one", 2, Encoding::Gzip)]);
    Site::new().ocifs(&["index", "push", "--to", &repository(&repository_at), &prepared]).ok();
    // An image of another registry, whose upper layer is new.
    let (base, top) = (layer("base", 1, Encoding::Gzip), layer("two", 3, Encoding::Gzip));
    let (base_digest, top_digest) = (base.digest(), top.digest());
    let reference = push_image(&second, &[base, top]);
    repository_at.reset_counts();
    let site = Site::new();
    let mount = site.mount(&reference, &[&from(&repository_at)]);
    assert_eq!(names(&mount), 1 + 2 * (1 + FILES as usize));
    let read = blobs_of(&second);
    assert!(read.contains(&top_digest) && !read.contains(&base_digest), "{read:?}");
    assert_eq!(repository_at.manifest_requests().len(), 2);
    assert_eq!(warnings(&mount), [""; 0], "an index that is missing is no fault");
    assert_eq!(indexes(&mount), ["pushed", "local"]);
    reads(&mount, "base", 1);
    reads(&mount, "two", 3);
}

#[test]
fn a_repository_that_fails_costs_a_line_of_the_status() {
    if !able(&NEEDS) {
        return;
    }
    let status = |code, retry: Option<&str>| Fault::Status {
        code,
        times: u32::MAX,
        retry_after: retry.map(str::to_owned),
    };
    let faults = [
        (Some(Fault::Silent), "no answer within 900 ms"),
        (Some(status(429, Some("30"))), "429"),
        (Some(status(503, None)), "503"),
        (Some(status(403, None)), "is not used"),
        (Some(Fault::Html), "is not used"),
        (Some(Fault::StallAfter(10)), "bytes arrived within"),
        (Some(Fault::SlowBytesPerSecond(100)), "bytes arrived within"),
        (Some(Fault::FlipBit), "is not used"),
        (None, "is not used"),
    ];
    for (fault, words) in faults {
        let (images, repository_at) = (FaultRegistry::start(), FaultRegistry::start());
        let layers = [layer_of("a", 1, Encoding::Gzip, FEW), layer_of("b", 2, Encoding::Gzip, FEW)];
        layers.iter().for_each(|layer| drop(store_own(&repository_at, layer)));
        let reference = push_image(&images, &layers);
        match fault.clone() {
            Some(fault) => repository_at.set(fault),
            None => repository_at.go_down(),
        }
        let site = Site::new();
        let mount = site.mount(&reference, &[&from(&repository_at)]);
        assert_eq!(names(&mount), 1 + 2 * (1 + FEW as usize), "{fault:?}");
        reads(&mount, "a", 1);
        reads(&mount, "b", 2);
        let lines = warnings(&mount);
        assert!(lines.len() == 1 && lines[0].contains(words), "{fault:?}: {lines:?}");
        assert!(lines[0].contains(&repository(&repository_at)), "{fault:?}: {lines:?}");
        let asked = repository_at.manifest_requests().len() + repository_at.unanswered();
        assert!(asked <= 2, "{fault:?}: {asked} requests for two layers");
        repository_at.clear();
    }
}

#[test]
fn an_index_that_cannot_be_of_the_layer_is_refused_before_it_is_used() {
    if !able(&NEEDS) {
        return;
    }
    let other = layer_of("other", 9, Encoding::Gzip, FEW);
    let of_other = own_index(&other.stored).to_bytes().unwrap();
    for (size, bytes, words) in [
        (1, None, "the layer has"),
        (0, Some(of_other), "about another layer"),
        (0, Some(b"junk".to_vec()), "damaged"),
    ] {
        let (images, repository_at) = (FaultRegistry::start(), FaultRegistry::start());
        let layer = layer_of("a", 1, Encoding::Gzip, FEW);
        let bytes = bytes.unwrap_or_else(|| own_index(&layer.stored).to_bytes().unwrap());
        store(&repository_at, &layer, layer.stored.len() as u64 + size, bytes);
        let reference = push_image(&images, std::slice::from_ref(&layer));
        let site = Site::new();
        let mount = site.mount(&reference, &[&from(&repository_at)]);
        assert_eq!(names(&mount), 2 + FEW as usize);
        reads(&mount, "a", 1);
        let lines = warnings(&mount);
        assert!(lines.len() == 1 && lines[0].contains(words), "{words}: {lines:?}");
        assert_eq!(indexes(&mount), ["local"]);
    }
}

#[test]
fn an_index_that_lies_is_refuted_and_serves_nothing_as_verified() {
    if !able(&NEEDS) {
        return;
    }
    let (images, repository_at) = (FaultRegistry::start(), FaultRegistry::start());
    let (lied_about, honest) = (layer("a", 1, Encoding::Gzip), layer("b", 2, Encoding::Gzip));
    store(&repository_at, &lied_about, lied_about.stored.len() as u64, lie(&lied_about));
    store_own(&repository_at, &honest);
    let digest = lied_about.digest();
    let reference = push_image(&images, &[lied_about, honest]);
    let site = Site::new();
    let mount = site.mount(&reference, &[&from(&repository_at), "--prefetch=none"]);
    assert_eq!(names(&mount), 1 + 2 * (1 + FILES as usize));
    let file = mount.join("merged/a/020");
    let verified = || xattr::get(&file, "user.ocifs.verified").unwrap();
    assert!(fs::read(&file).unwrap() == content(1, 21), "a claim is served until it is compared");
    assert_ne!(verified().as_deref(), Some(b"full".as_slice()));
    assert_eq!(digest_of(&fs::read(blob_path(mount.dir(), &digest)).unwrap()), digest);
    let contradicts = |line: &String| line.contains("contradicts the layer");
    assert!(becomes_true(CONDITION_TIMEOUT, || warnings(&mount).iter().any(contradicts)));
    assert_ne!(verified().as_deref(), Some(b"full".as_slice()));
    let unread = fs::read(mount.join("merged/a/050")).unwrap_err();
    assert_eq!(unread.raw_os_error(), Some(libc::EIO));
    reads(&mount, "b", 2);
    mount.unmount();
    let is_read_by_its_own = || {
        let again = site.mount(&reference, &[&from(&repository_at)]);
        reads(&again, "a", 1);
        assert_eq!(indexes(&again)[0], "local");
        again.unmount();
    };
    is_read_by_its_own();
    // The refutation counts without the layer's own index, too.
    let own = site.cache().join("v1/indexes").join(digest.replace(':', "/"));
    fs::remove_file(own).unwrap();
    is_read_by_its_own();
}

#[test]
fn a_login_of_the_command_line_is_for_the_image_alone() {
    if !able(&NEEDS) {
        return;
    }
    let (images, repository_at) = (FaultRegistry::start(), FaultRegistry::start());
    let layer = layer("a", 1, Encoding::Gzip);
    store_own(&repository_at, &layer);
    let reference = push_image(&images, std::slice::from_ref(&layer));
    let login = |user: &str, pass: &str| Fault::RequireBasic { user: user.into(), pass: pass.into() };
    images.set(login("ada", "one"));
    repository_at.set(login("bob", "two"));
    let site = Site::new();
    let mount = site.mount(&reference, &[&from(&repository_at), "--creds=ada:one"]);
    reads(&mount, "a", 1);
    assert_eq!(indexes(&mount), ["local"]);
    assert!(
        repository_at.requests().iter().all(|request| !request.authorization),
        "the secret of another host"
    );
    mount.unmount();
    // Credentials by host.
    let entry = |registry: &FaultRegistry, login: &str| {
        let auth = sh("printf %s $1 | base64 -w0", &[&std::path::PathBuf::from(login)]).text();
        format!(r#""{}": {{"auth": "{}"}}"#, registry.host(), auth.trim())
    };
    let both =
        format!(r#"{{"auths": {{{}, {}}}}}"#, entry(&images, "ada:one"), entry(&repository_at, "bob:two"));
    let file = site.scratch().file("auth.json", both);
    let other = Site::new();
    let authfile = format!("--authfile={}", file.display());
    let mount = other.mount(&reference, &[&from(&repository_at), &authfile]);
    reads(&mount, "a", 1);
    assert_eq!(indexes(&mount), ["pushed"], "{}", mount.status());
}

#[test]
fn a_real_registry_holds_an_index_repository() {
    if !able(&[Need::Root, Need::Fuse, Need::Tool("docker-registry"), Need::Tool("skopeo")]) {
        return;
    }
    let site = Site::new();
    let mut registry = crate::real_registry::RealRegistry::start();
    let layers = [layer("a", 1, Encoding::Gzip), layer("b", 2, Encoding::Gzip)];
    let size: u64 = layers.iter().map(|layer| layer.stored.len() as u64).sum();
    let digest = layers[0].digest();
    let mut layout = Layout::create(site.scratch().join("layout"));
    layout.image("v1", &layers);
    registry.push_layout(&layout.reference("v1"), "an/image:v1");
    // From a layout: the image need not be where the index goes.
    let to = registry.reference(REPO);
    site.ocifs(&["index", "push", &layout.reference("v1"), "--to", &to]).ok();
    registry.reset_counts();
    let user = Site::new();
    let dir = user.mount_point("mnt");
    let mut command = user.command();
    command.env("OCIFS_INDEX_FROM", &to).arg("mount").arg(registry.reference("an/image:v1")).arg(&dir);
    let mount = Mount::up(&mut command, dir);
    assert_eq!(names(&mount), 1 + 2 * (1 + FILES as usize));
    let bytes = registry.blob_bytes();
    assert!(bytes * 1000 <= size * 15, "{bytes} of {size} bytes for the names");
    assert_eq!(indexes(&mount), ["pushed"; 2]);
    let tag = format!("/v2/{REPO}/manifests/sha256-{}", digest.trim_start_matches("sha256:"));
    assert_eq!(registry.requests().iter().filter(|hit| hit.path == tag).count(), 1);
    let inspected = user.ocifs(&["inspect", "--index-from", &to, &registry.reference("an/image:v1")]).ok();
    assert!(inspected.text().contains("pushed index"), "{}", inspected.text());
    reads(&mount, "a", 1);
    reads(&mount, "b", 2);
}

#[test]
fn a_pull_publishes_the_indexes_that_a_repository_lacks() {
    if !able(&NEEDS) {
        return;
    }
    let (images, repository_at) = (FaultRegistry::start(), FaultRegistry::start());
    let reference = push_image(&images, &[layer("a", 1, Encoding::Gzip), layer("b", 2, Encoding::Gzip)]);
    let to = repository(&repository_at);
    let publish = |command: &[&str]| {
        let site = Site::new();
        let ran = site.ocifs(&[command, &["--publish-index", &to, &reference]].concat()).ok();
        let puts = repository_at.requests().into_iter().filter(|request| request.method == "PUT").count();
        repository_at.reset_counts();
        (puts, ran.stderr)
    };
    // Two indexes, the empty config, and two manifests.
    assert_eq!(publish(&["pull"]).0, 5);
    assert_eq!(publish(&["pull"]).0, 0, "it is there");
    assert_eq!(publish(&["index", "build"]).0, 0);
    let site = Site::new();
    images.reset_counts();
    let mount = site.mount(&reference, &[&from(&repository_at)]);
    assert_eq!(
        (names(&mount), indexes(&mount)),
        (1 + 2 * (1 + FILES as usize), vec!["pushed".to_owned(); 2])
    );
    assert_eq!(images.blob_bytes(), 0);
    repository_at.go_down();
    let (puts, warning) = publish(&["pull"]);
    assert!(puts == 0 && warning.contains("indexes are not published"), "{warning}");
}

#[test]
fn a_trace_in_the_repository_is_found_by_the_digest_of_its_image_alone() {
    if !able(&NEEDS) {
        return;
    }
    let (teacher, pupil) = (Site::new(), Site::new());
    let (images, repository_at) = (FaultRegistry::start(), FaultRegistry::start());
    let reference = push_image(&images, &[layer("a", 1, Encoding::Gzip)]);
    let to = repository(&repository_at);
    // Without a trace on the machine there is none to publish.
    let pushed = teacher.ocifs(&["index", "push", &reference, "--to", &to]).ok().text();
    assert!(!pushed.contains("trace"), "{pushed}");
    let trace = ["--prefetch=trace", &from(&repository_at)];
    pupil.mount_refused(&reference, &trace, &[2], &["no trace"]);

    let command = "cat $OCIFS_MOUNT/a/050 | wc -c";
    let ran = teacher.ocifs(&["record", "--view", "merged", &reference, "--", "sh", "-c", command]);
    assert_eq!(ran.text().trim(), SIZE.to_string(), "{}", ran.stderr);
    let pushed = teacher.ocifs(&["index", "push", &reference, "--to", &to]).ok().text();
    let line = pushed.lines().find(|line| line.contains("trace")).unwrap_or_default();
    let digest: Digest = line.split_whitespace().next().unwrap_or_default().parse().unwrap();
    assert!(line.ends_with("published"), "{pushed}");

    images.reset_counts();
    repository_at.reset_counts();
    let (dir, log) = (pupil.mount_point("mnt"), pupil.scratch().join("log"));
    let mut command = pupil.command();
    command.env("OCIFS_LOG", "ocifs=debug").arg("mount").args(trace).arg("--log-file");
    let mount = Mount::up(command.arg(&log).arg(&reference).arg(&dir), dir);
    let has_ended = || fs::read_to_string(&log).unwrap().contains("prefetch ended");
    assert!(becomes_true(CONDITION_TIMEOUT, has_ended), "{}", fs::read_to_string(&log).unwrap());
    let asked = repository_at
        .requests()
        .iter()
        .filter(|one| one.path.ends_with(&published::layer_tag(&digest)))
        .count();
    assert_eq!(asked, 1, "{:?}", repository_at.requests());
    let bytes = images.blob_bytes();
    // Two spans of a mebibyte, in whole blocks; the layer has nine.
    assert!(bytes >= SIZE as u64 && bytes <= 3 << 20, "{bytes} bytes for a file of {SIZE}");
    let requests = images.blob_requests().len();
    assert!(fs::read(mount.join("merged/a/050")).unwrap() == content(1, 50));
    assert_eq!(images.blob_requests().len(), requests, "the trace has the bytes of the file");
    mount.unmount();

    // No key has signed it, and offline nothing is asked.
    if let Some(key) = Made::key("p256") {
        let key = pupil.scratch().file("key.pem", key.public()).display().to_string();
        pupil.mount_refused(&reference, &[trace[0], trace[1], "--index-key", &key], &[2], &["no trace"]);
    }
    repository_at.reset_counts();
    let pinned = format!("{}@{digest}", reference.trim_end_matches(":v1"));
    pupil.mount_refused(&pinned, &[trace[0], trace[1], "--offline"], &[2], &["no trace"]);
    assert_eq!(repository_at.requests().len(), 0);

    // The trace of another image under the tag of this one.
    let json =
        format!(r#"{{"schemaVersion":1,"reference":"r","manifest":"{}","reads":[]}}"#, digest_of(b"other"));
    let lie = published::publish_stored_trace(json.into_bytes()).unwrap();
    lie.blobs.into_iter().for_each(|(_, bytes)| drop(repository_at.push_blob(bytes)));
    repository_at.push_manifest(REPO, &published::layer_tag(&digest), MANIFEST, &lie.manifest.bytes);
    pupil.mount_refused(&reference, &trace, &[2], &["no trace"]);
    repository_at.go_down();
    pupil.mount_refused(&reference, &trace, &[2], &["no trace"]);
}

#[test]
fn with_a_key_only_signed_indexes_are_taken() {
    let Some(key) = Made::key("p256").filter(|_| able(&NEEDS)) else { return };
    let (images, repository_at) = (FaultRegistry::start(), FaultRegistry::start());
    let layers = [layer("a", 1, Encoding::Gzip), layer("b", 2, Encoding::Gzip)];
    layers.iter().for_each(|layer| drop(store_own(&repository_at, layer)));
    let reference = push_image(&images, &layers);
    let site = Site::new();
    let key_file = site.scratch().file("key.pem", key.public()).display().to_string();
    let options = [&*from(&repository_at), "--index-key", &key_file];
    // Without a key both are taken; that record is not one of the key.
    let mount = site.mount(&reference, &options[..1]);
    assert_eq!(
        (names(&mount), indexes(&mount)),
        (1 + 2 * (1 + FILES as usize), vec!["pushed".to_owned(); 2])
    );
    mount.unmount();
    // The first manifest is signed, as cosign does it.
    let tag = published::layer_tag(&descriptor(&layers[0]).digest);
    let publication = published::publish_layer_index(
        &descriptor(&layers[0]),
        LAYER_INDEX,
        own_index(&layers[0].stored).to_bytes().unwrap(),
    );
    let signed = publication.unwrap().manifest.digest;
    let payload = crate::signatures::simple(signed.as_str());
    repository_at.push_blob(payload.clone());
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}"), "size": 2},
        "layers": [{"mediaType": crate::signatures::PAYLOAD, "digest": digest_of(&payload), "size": payload.len(),
            "annotations": {"dev.cosignproject.cosign/signature": STANDARD.encode(key.sign(&payload))}}]});
    let signature = format!("{}.sig", signed.as_str().replace(':', "-"));
    repository_at.push_manifest(REPO, &signature, MANIFEST, manifest.to_string().as_bytes());
    assert!(tag.starts_with("sha256-"));

    let mount = site.mount(&reference, &options);
    assert_eq!(names(&mount), 1 + 2 * (1 + FILES as usize));
    assert_eq!(indexes(&mount), ["pushed", "local"], "{}", mount.status());
    let lines = warnings(&mount);
    assert!(lines.len() == 1 && lines[0].contains("not signed with a key"), "{lines:?}");
    reads(&mount, "a", 1);
    reads(&mount, "b", 2);
    mount.unmount();
    // A signature of the image is required: only signed indexes may describe it.
    let other = Made::key("p256").unwrap();
    let other = site.scratch().file("other.pem", other.public()).display().to_string();
    let fresh = Site::new();
    let mount = fresh.mount(&reference, &[&from(&repository_at), "--index-key", &other]);
    assert_eq!(names(&mount), 1 + 2 * (1 + FILES as usize));
    assert_eq!(indexes(&mount), ["local", "local"]);
}

#[test]
fn the_size_of_a_compressed_disk_and_its_middle_cost_its_index() {
    if !able(&NEEDS) {
        return;
    }
    let (images, repository_at) = (FaultRegistry::start(), FaultRegistry::start());
    let raw = noise(24 << 20, 5);
    let name = "nosi-debian-13-x86_64.img.gz";
    let piece = Piece::new(name, "application/vnd.nosi.disk-image.layer.v1+gzip", crate::encode::gzip(&raw));
    let stored = piece.bytes.len() as u64;
    images.push_blob(EMPTY.1);
    images.push_blob(piece.bytes.clone());
    let manifest = crate::artifact::manifest("application/vnd.nosi.disk-image.v1+gzip", &[piece]);
    images.push_manifest("a/disk", "v1", MANIFEST, &manifest);
    let reference = format!("{}/a/disk:v1", images.host());
    let pushed = Site::new().ocifs(&["index", "push", "--to", &repository(&repository_at), &reference]).ok();
    assert!(pushed.text().ends_with("published\n"), "{}", pushed.text());
    images.reset_counts();
    let site = Site::new();
    let mount = site.mount(&reference, &[&from(&repository_at)]);
    let disk = mount.join("disk/nosi-debian-13-x86_64.img");
    assert_eq!(fs::metadata(&disk).unwrap().len(), raw.len() as u64);
    assert_eq!(images.blob_bytes(), 0, "the size is in the index");
    let mut buffer = vec![0; 64 * KIB];
    fs::File::open(&disk).unwrap().read_exact_at(&mut buffer, 13 << 20).unwrap();
    assert!(buffer == raw[13 << 20..][..64 * KIB]);
    let bytes = images.blob_bytes();
    assert!(bytes <= 4 << 20, "{bytes} of {stored} bytes for the size and 64 KiB");
    assert!(fs::read(&disk).unwrap() == raw);
    let status: serde_json::Value = serde_json::from_str(&mount.status()).unwrap();
    assert_eq!(status["layers"][0]["index"], "pushed", "{status}");
}
