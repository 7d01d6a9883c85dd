//! Images, indexes and what hangs on them: each pushed as its producer writes it, mounted, and compared name by name.
//!
//! One test for each shape; the shapes that hold disks, files and archives are in the files beside this one. The idea: a
//! tree is right when no name is missing, none is too many, every byte is the producer's, and nothing was fetched that
//! nobody read.

use std::fs;

use serde_json::{Value, json};

use crate::artifact::{Blob, Bundle, Packed, Shape, short};
use crate::byte_text::digest_of;
use crate::encode::gzip;
use crate::fault_registry::Fault;
use crate::golden::Golden;
use crate::layout::CONFIG;
use crate::shapes::{raw_disk, tar, tgz, zstd};
use crate::stage::{Stage, read};
use crate::tarball::Tarball;

/// Layers of container images.
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// The config of an image for a platform.
fn config(os: &str, arch: &str, tars: &[Vec<u8>]) -> Vec<u8> {
    let diffs: Vec<String> = tars.iter().map(|tar| digest_of(tar)).collect();
    json!({"os": os, "architecture": arch, "config": {}, "rootfs": {"type": "layers", "diff_ids": diffs}})
        .to_string()
        .into_bytes()
}

/// An image of one gzipped layer with one file, and its golden tree.
pub(crate) fn small_image(os: &str, arch: &str, content: &str) -> (Packed, Golden) {
    let entries: &[(&str, &[u8])] = &[("etc/", b""), ("etc/arch", content.as_bytes())];
    let plain = tar(entries);
    let layer = Blob::new(TAR_GZIP, gzip(&plain));
    let packed = Shape::of(CONFIG, config(os, arch, &[plain])).layer(&layer).pack();
    let golden = Golden::of(&packed).layer(0, &layer, ".tar.gz", entries).tree("merged", entries);
    (packed, golden)
}

#[test]
fn a_container_image_is_layers_and_their_union() {
    let lower = Tarball::new()
        .dir("etc")
        .file("etc/kept", b"kept")
        .file("etc/gone", b"gone")
        .dir("opt")
        .file("opt/old", b"old")
        .hard_link("etc/twin", "etc/kept", 0o644)
        .bytes();
    let middle = Tarball::new().file("etc/.wh.gone", b"").file("opt/.wh..wh..opq", b"").bytes();
    let upper = Tarball::new().file("opt/new", b"new").symlink("opt/link", "new").bytes();
    let tars = [lower, middle, upper];
    let layers = [
        Blob::new(TAR_GZIP, gzip(&tars[0])),
        Blob::new(TAR_ZSTD, zstd(&tars[1])),
        Blob::new(TAR, tars[2].clone()),
    ];
    let packed = Shape::of(CONFIG, config("linux", "amd64", &tars)).layers(&layers).pack();
    let golden = Golden::of(&packed)
        .layer(
            0,
            &layers[0],
            ".tar.gz",
            &[("etc/kept", b"kept"), ("etc/gone", b"gone"), ("opt/old", b"old"), ("etc/twin", b"kept")],
        )
        .layer(1, &layers[1], ".tar.zst", &[("etc/.wh.gone", b""), ("opt/.wh..wh..opq", b"")])
        .layer(2, &layers[2], ".tar", &[("opt/new", b"new"), ("opt/link@", b"")])
        .tree(
            "merged",
            &[("etc/kept", b"kept"), ("etc/twin", b"kept"), ("opt/new", b"new"), ("opt/link@", b"")],
        );
    for stage in Stage::both(&packed) {
        let mount = stage.mount_for(&[], &[]);
        golden.check(mount.dir());
    }
}

#[test]
fn a_docker_image_is_the_same_as_one_of_oci() {
    let plain = tar(&[("bin/", b""), ("bin/tool", b"#!")]);
    let layer = Blob::new(DOCKER_LAYER, gzip(&plain));
    let packed = Shape::of(DOCKER_CONFIG, config("linux", "amd64", &[plain])).docker().layer(&layer).pack();
    let golden = Golden::of(&packed)
        .layer(0, &layer, ".tar.gz", &[("bin/tool", b"#!")])
        .tree("merged", &[("bin/tool", b"#!")]);
    for stage in Stage::both(&packed) {
        golden.check(stage.mount_for(&[], &[]).dir());
    }
}

/// What BuildKit puts beside an image: a manifest of no platform that is about it.
fn attestation(image: &Packed) -> (Packed, Value) {
    let layer = Blob::new("application/vnd.in-toto+json", br#"{"_type":"x"}"#.as_slice())
        .note("in-toto.io/predicate-type", "https://slsa.dev/provenance/v0.2");
    let packed = Shape::of(CONFIG, config("unknown", "unknown", &[])).layer(&layer).pack();
    let more = json!({
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image.digest(),
        },
    });
    (packed, more)
}

fn platform(os: &str, arch: &str) -> Value {
    json!({"platform": {"os": os, "architecture": arch}})
}

#[test]
fn an_index_shows_every_platform_with_platform_all() {
    let (amd64, amd64_tree) = small_image("linux", "amd64", "amd64");
    let (arm64, arm64_tree) = small_image("linux", "arm64", "arm64");
    let (armv7, armv7_tree) = small_image("linux", "arm", "armv7");
    let (old, old_tree) = small_image("windows", "amd64", "old windows");
    let (new, new_tree) = small_image("windows", "amd64", "new windows");
    let windows = |version: &str| json!({"platform": {"os": "windows", "architecture": "amd64", "os.version": version}});
    let (proof, about) = attestation(&amd64);
    let packed = Bundle::default()
        .entry(&arm64, platform("linux", "arm64"))
        .entry(&amd64, platform("linux", "amd64"))
        .entry(&armv7, json!({"platform": {"os": "linux", "architecture": "arm", "variant": "v7"}}))
        .entry(&old, windows("10.0.17763.1"))
        .entry(&new, windows("10.0.20348.2"))
        .entry(&proof, about)
        .pack();
    for stage in Stage::both(&packed) {
        let all = stage.mount_for(&[], &["--platform", "all"]);
        for (name, tree) in [
            ("linux-amd64", &amd64_tree),
            ("linux-arm64", &arm64_tree),
            ("linux-arm-v7", &armv7_tree),
            ("windows-amd64-10.0.17763.1", &old_tree),
            ("windows-amd64-10.0.20348.2", &new_tree),
        ] {
            tree.check(&all.join("platforms").join(name));
        }
        assert_eq!(names(&all.join("platforms")).len(), 5, "an attestation is no platform");
        assert_eq!(read(all.join("index.json")), packed.bytes);
        // One at a time, the root is the image.
        let one = stage.site.mount_at("one", &stage.reference(":v1"), &["--platform", "linux/arm64"]);
        arm64_tree.clone().file("index.json", &packed.bytes).check(one.dir());
    }
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_nested_index_is_walked_to_its_images() {
    let (amd64, amd64_tree) = small_image("linux", "amd64", "amd64");
    let (arm64, arm64_tree) = small_image("linux", "arm64", "arm64");
    let (s390x, s390x_tree) = small_image("linux", "s390x", "s390x");
    let deepest = Bundle::default().entry(&s390x, platform("linux", "s390x")).pack();
    let inner = Bundle::default().entry(&arm64, platform("linux", "arm64")).entry(&deepest, json!({})).pack();
    let packed = Bundle::default().entry(&amd64, platform("linux", "amd64")).entry(&inner, json!({})).pack();
    for stage in Stage::both(&packed) {
        let all = stage.mount_for(&[], &["--platform", "all"]);
        // An index in an index is a directory of its own, called by its digest when nothing else names it.
        let (second, third) = (short(&inner.bytes), short(&deepest.bytes));
        let platforms = all.join("platforms");
        amd64_tree.check(&platforms.join("linux-amd64"));
        arm64_tree.check(&platforms.join(format!("{second}/platforms/linux-arm64")));
        s390x_tree.check(&platforms.join(format!("{second}/platforms/{third}/platforms/linux-s390x")));
        assert_eq!(names(&platforms).len(), 2);
        let deep = stage.site.mount_at("deep", &stage.reference(":v1"), &["--platform", "linux/s390x"]);
        assert_eq!(read(deep.join("merged/etc/arch")), b"s390x");
    }
}

#[test]
fn an_index_that_names_itself_or_goes_too_deep_ends_in_an_error() {
    let (amd64, _) = small_image("linux", "amd64", "amd64");
    let mut packed = Bundle::default().entry(&amd64, platform("linux", "s390x")).pack();
    for _ in 0..12 {
        packed = Bundle::default().entry(&packed, json!({})).pack();
    }
    let Some(stage) = Stage::strict(&packed) else { return };
    stage.reset();
    let reference = stage.reference(":v1");
    stage.site.mount_refused(&reference, &["--platform", "linux/s390x"], &[3, 6], &["index"]);
    assert!(stage.document_requests() <= 10, "{} documents", stage.document_requests());
    // Only a registry that lies can serve an index that names its own digest; what it claims is not believed.
    let loop_digest = digest_of(b"a digest that leads back");
    let text = json!({
        "schemaVersion": 2,
        "mediaType": crate::layout::INDEX,
        "manifests": [{"mediaType": crate::layout::INDEX, "digest": loop_digest, "size": 300}],
    })
    .to_string();
    stage.fault().push_manifest_as("golden/thing", &loop_digest, crate::layout::INDEX, text.as_bytes());
    stage.fault().push_manifest("golden/thing", "loop", crate::layout::INDEX, text.as_bytes());
    stage.site.mount_refused(&stage.reference(":loop"), &[], &[3, 5, 6, 7], &[&loop_digest[..19]]);
}

#[test]
fn a_digest_of_a_blob_is_a_file_and_the_disk_in_it() {
    // Nothing but its content says that it is a disk: the mark of a boot sector.
    let mut raw = raw_disk(8);
    raw[510..512].copy_from_slice(b"\x55\xaa");
    let blob = Blob::new("application/x.anything", gzip(&raw));
    let packed = Shape::artifact("application/vnd.nosi.disk-image.v1+gzip")
        .layer(&blob.clone().titled("nosi-x.img.gz"))
        .pack();
    for stage in Stage::both(&packed) {
        let reference = stage.reference(&format!("@{}", blob.digest()));
        let mount = stage.site.mount(&reference, &[]);
        let file = format!("files/{}", only_name(&mount.join("files")));
        assert!(file.contains(&blob.digest()["sha256:".len()..]), "{file}");
        assert!(read(mount.join(&file)) == blob.bytes);
        assert!(mount.printed().contains(&blob.digest()), "{}", mount.printed());
        let mut disks = names(&mount.join("disk"));
        disks.retain(|name| name != "info.json");
        assert_eq!(disks.len(), 1, "{disks:?}");
        assert!(read(mount.join("disk").join(&disks[0])) == raw);
    }
}

#[test]
fn a_digest_of_an_archive_blob_is_a_tree() {
    let blob = tgz("application/x.anything", &[("a/", b""), ("a/b", b"deep")]);
    let packed = Shape::artifact("application/x.things").layer(&blob.clone().titled("a.tar.gz")).pack();
    let Some(stage) = Stage::strict(&packed) else { return };
    let mount = stage.site.mount(&stage.reference(&format!("@{}", blob.digest())), &[]);
    assert_eq!(read(mount.join("merged/a/b")), b"deep");
    assert!(read(mount.join("files").join(only_name(&mount.join("files")))) == blob.bytes);
}

#[track_caller]
fn only_name(dir: &std::path::Path) -> String {
    let mut names = names(dir);
    assert_eq!(names.len(), 1, "{}: {names:?}", dir.display());
    names.remove(0)
}

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SPDX: &str = "application/spdx+json";

/// What refers to `image`: a signature and a list of parts.
fn referrers(image: &Packed) -> [(Packed, Golden, &'static str); 2] {
    let make = |kind: &'static str, title: &str, text: &[u8]| {
        let layer = Blob::new(kind, text).titled(title);
        let packed = Shape::artifact(kind).layer(&layer).about(image).pack();
        let golden = Golden::of(&packed).file(&format!("files/{title}"), text);
        (packed, golden, kind)
    };
    [
        make(BUNDLE, "bundle.json", br#"{"mediaType":"bundle"}"#),
        make(SPDX, "sbom.spdx.json", br#"{"spdxVersion":"SPDX-2.3"}"#),
    ]
}

fn check_referrers(stage: &Stage, about: &[(Packed, Golden, &'static str); 2]) {
    let mount = stage.mount_for(&[], &["--referrers"]);
    let kinds = names(&mount.join("referrers"));
    assert_eq!(kinds, ["application_spdx+json", "application_vnd.dev.sigstore.bundle.v0.3+json"]);
    for (packed, golden, kind) in about {
        let below = mount.join("referrers").join(kind.replace('/', "_"));
        let name = only_name(&below);
        assert!(name.contains(&packed.digest()["sha256:".len()..]), "{name}");
        golden.check(&below.join(name));
    }
    // Not asked for, not there.
    let plain = stage.site.mount_at("plain", &stage.reference(":v1"), &[]);
    assert!(!plain.join("referrers").exists());
}

#[test]
fn signatures_and_bills_of_material_are_below_referrers() {
    let (image, _) = small_image("linux", "amd64", "signed");
    let about = referrers(&image);
    if let Some(stage) = Stage::strict(&image) {
        stage.fault().set(Fault::ReferrersApi { page: 1 });
        for (packed, ..) in &about {
            stage.push(&packed.digest(), packed);
        }
        check_referrers(&stage, &about);
    }
    // A registry without the API has a tag instead (distribution-spec, "Referrers Tag Schema").
    if let Some(stage) = Stage::real(&image) {
        let mut list = Bundle::default();
        for (packed, _, kind) in &about {
            list = list.entry(packed, json!({"artifactType": kind}));
        }
        stage.push(&image.digest().replace(':', "-"), &list.pack());
        check_referrers(&stage, &about);
    }
}

#[test]
fn a_cosign_signature_of_its_own_is_files() {
    let payload = br#"{"critical":{"type":"cosign container image signature"}}"#;
    let layer = Blob::new("application/vnd.dev.cosign.simplesigning.v1+json", payload.as_slice())
        .note("dev.cosignproject.cosign/signature", "MEUCIQ==");
    let packed = Shape::of(CONFIG, config("", "", &[payload.to_vec()])).layer(&layer).pack();
    let golden = Golden::of(&packed).file(&format!("files/00-{}.json", layer.short()), payload);
    for stage in Stage::both(&packed) {
        golden.check(stage.mount_for(&[], &[]).dir());
    }
}

#[test]
fn an_attestation_of_its_own_is_files_and_an_artifact_without_payload_is_its_documents() {
    let envelope = Blob::new("application/vnd.dsse.envelope.v1+json", br#"{"payload":""}"#.as_slice());
    let packed = Shape::artifact("application/vnd.in-toto+json").layer(&envelope).pack();
    let golden = Golden::of(&packed).file(&format!("files/00-{}.json", envelope.short()), &envelope.bytes);
    if let Some(stage) = Stage::strict(&packed) {
        golden.check(stage.mount_for(&[], &[]).dir());
    }
    let empty = Blob::new(crate::artifact::EMPTY.0, crate::artifact::EMPTY.1);
    let packed = Shape::artifact("application/x.marker").layer(&empty).note("x.meaning", "done").pack();
    let golden = Golden::of(&packed);
    for stage in Stage::both(&packed) {
        golden.check(stage.mount_for(&[], &[]).dir());
    }
}

#[test]
fn a_layer_that_lies_about_being_a_tar_is_a_file_and_is_reported() {
    let text = b"#!/bin/sh\necho this is no archive\n";
    let lie = Blob::new(TAR_GZIP, text.as_slice()).titled("thing--1.0.x86_64_linux.bottle.tar.gz");
    let packed = Shape::of(CONFIG, config("linux", "amd64", &[])).layer(&lie).pack();
    for stage in Stage::both(&packed) {
        let mount = stage.mount_for(&[], &[]);
        assert!(read(mount.join("files/thing--1.0.x86_64_linux.bottle.tar.gz")) == text);
        // Whoever looks for its tree gets an error or nothing, never something wrong.
        if let Ok(entries) = fs::read_dir(mount.join("merged")) {
            assert_eq!(entries.flatten().count(), 0);
        }
        let status: Value = serde_json::from_str(&mount.status()).unwrap();
        let report = format!("{} {} {}", status["warnings"], status["layers"], status["errors"]);
        let hint = ["tar", "archive"].iter().any(|word| report.contains(word));
        assert!(hint && report.len() > 40, "status.json does not say that layer 0 is no archive: {report}");
    }
}
