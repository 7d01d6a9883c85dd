//! One test for each kind of artifact, with manifests laid out as its tool writes them, and what hostile ones come to.

use serde_json::{Value, json};

use crate::oci::{ArtifactKind, Digest, Manifest, ManifestDocument, classify_manifest, extension};

use super::{ArchiveDirectory, ArtifactContents, FileBody, UnionRules, contents, needs_config};

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const IMAGE: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TITLE: &str = "org.opencontainers.image.title";

/// A layer of 10 bytes whose digest follows from what is said of it.
fn layer(kind: &str, annotations: &[(&str, &str)]) -> Value {
    sized(10, kind, annotations)
}

fn sized(size: u64, kind: &str, annotations: &[(&str, &str)]) -> Value {
    let annotations: Value = annotations.iter().map(|&(key, value)| (key.to_owned(), json!(value))).collect();
    let digest = Digest::sha256(format!("{kind}{annotations}{size}").as_bytes());
    json!({"mediaType": kind, "digest": digest.to_string(), "size": size, "annotations": annotations})
}

fn titled(kind: &str, title: &str) -> Value {
    layer(kind, &[(TITLE, title)])
}

fn parse(document: &Value) -> Manifest {
    match ManifestDocument::parse(document.to_string().as_bytes(), None).unwrap() {
        ManifestDocument::Manifest(manifest) => manifest,
        ManifestDocument::Index(_) => panic!("an index"),
    }
}

fn manifest(artifact_type: &str, config: &str, layers: &[Value]) -> Manifest {
    let mut document = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": config, "digest": Digest::sha256(b"{}").to_string(), "size": 2},
        "layers": layers,
    });
    if !artifact_type.is_empty() {
        document["artifactType"] = json!(artifact_type);
    }
    parse(&document)
}

fn body(body: &FileBody) -> String {
    match body {
        FileBody::Layer(layer) => layer.to_string(),
        FileBody::Config => "config".to_owned(),
        FileBody::Sparse { layer, size, runs } => format!("{layer} of {size} at {runs:?}"),
        FileBody::Joined(segments) => {
            format!("{:?}", segments.iter().map(|segment| segment.layer).collect::<Vec<_>>())
        }
        FileBody::Tree(ArchiveDirectory { layer, below, lenient, content }) => {
            let strict = if *lenient { "" } else { " only" };
            let content = if content.is_some() { " checked" } else { "" };
            format!("{layer}/{below}{strict}{content}")
        }
    }
}

/// Everything in one line: the files, then the archives.
fn shape(contents: &ArtifactContents) -> String {
    let files = contents.files.iter().map(|file| format!("{}={}", file.path, body(&file.body)));
    let archives = contents.archives.iter().map(|archive| match &archive.name {
        Some(name) => format!("<{}-{name}>", archive.layer),
        None => format!("<{}>", archive.layer),
    });
    files.chain(archives).collect::<Vec<_>>().join(" ")
}

/// The shape of a manifest that needs no config, shows everything as meant, and is of that class.
fn meant(class: ArtifactKind, manifest: &Manifest) -> String {
    assert_eq!(classify_manifest(manifest), class);
    assert!(!needs_config(manifest));
    let contents = contents(manifest, None);
    assert_eq!(contents.reports, [""; 0]);
    assert_eq!(contents.union == UnionRules::Image, class == ArtifactKind::ContainerImage);
    shape(&contents)
}

/// The fallback name of a layer.
fn short(manifest: &Manifest, number: usize, extension: &str) -> String {
    format!("{number:02}-{}{extension}", manifest.layers[number].digest.short())
}

#[test]
fn container_image_layers_are_archives_and_titled_ones_also_files() {
    let layers = [
        layer(TAR_GZIP, &[]),
        layer("application/vnd.docker.image.rootfs.diff.tar.gzip", &[]),
        titled("application/vnd.oci.image.layer.v1.tar+zstd", "rootfs"),
        layer(TAR, &[("org.cncf.model.filepath", "models/model.file")]),
    ];
    let image = manifest("", IMAGE, &layers);
    assert_eq!(meant(ArtifactKind::ContainerImage, &image), "rootfs=2 <0> <1> <2> <3>");
}

#[test]
fn every_layer_of_a_container_image_is_applied_whatever_its_label() {
    for label in
        ["application/octet-stream", "application/x-gzip", "application/vnd.example.layer.v1+erofs", ""]
    {
        let image = manifest("", IMAGE, &[layer(TAR_GZIP, &[]), layer(label, &[])]);
        let name = short(&image, 1, extension(&image.layers[1].media_type));
        assert_eq!(meant(ArtifactKind::ContainerImage, &image), format!("{name}=1 <0> <1>"), "{label}");
    }
    let unlabelled = manifest("", IMAGE, &[layer("application/octet-stream", &[])]);
    assert!(meant(ArtifactKind::ContainerImage, &unlabelled).ends_with(" <0>"));
}

#[test]
fn layers_that_are_file_systems_are_files_with_their_extension_and_the_reason() {
    for (label, end, part) in [
        (
            "application/vnd.stacker.image.layer.squashfs+zstd+verity",
            ".squashfs",
            "mount -t squashfs -o ro,loop blobs/",
        ),
        ("application/vnd.sylabs.image.layer.v1.squashfs", ".squashfs", "a squashfs file system"),
        ("application/vnd.erofs.layer.v1", ".erofs", "mount -t erofs -o ro,loop blobs/"),
        ("application/vnd.erofs.layer.v1+zstd", ".erofs.zst", "unpack blobs/"),
        ("application/vnd.sylabs.sif.layer.v1.sif", ".sif", "singularity or apptainer"),
    ] {
        let image = manifest("", IMAGE, &[layer(label, &[])]);
        let found = contents(&image, None);
        assert_eq!(shape(&found), format!("{}=0", short(&image, 0, end)), "{label}");
        assert_eq!(found.reports.len(), 1);
        assert!(found.reports[0].contains(part), "{:?}", found.reports);
        assert!(!found.is_empty_tree);
    }
}

#[test]
fn image_without_layers_is_an_empty_tree_and_encryption_is_reported() {
    assert!(contents(&manifest("", IMAGE, &[]), None).is_empty_tree);
    assert!(!contents(&manifest("", EMPTY, &[]), None).is_empty_tree);
    let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    let found = contents(&manifest("", IMAGE, &[layer(encrypted, &[])]), None);
    assert!(found.reports[0].contains("encrypted"), "{:?}", found.reports);
    assert_eq!(shape(&found), "<0>");
}

#[test]
fn an_os_image_is_its_parts_and_checksums_as_files() {
    let part = "application/vnd.cocoonstack.disk.qcow2.part";
    let layers = [
        titled(part, "win.qcow2.00.qcow2.part"),
        titled(part, "win.qcow2.01.qcow2.part"),
        titled("text/plain", "SHA256SUMS"),
    ];
    let image = manifest("application/vnd.cocoonstack.os-image.v1+json", EMPTY, &layers);
    let shape = meant(ArtifactKind::CloudImage, &image);
    assert_eq!(shape, "win.qcow2.00.qcow2.part=0 win.qcow2.01.qcow2.part=1 SHA256SUMS=2");
}

fn snapshot(layers: &[Value]) -> Manifest {
    let config = "application/vnd.cocoonstack.snapshot.config.v1+json";
    manifest("application/vnd.cocoonstack.snapshot.v1+json", config, layers)
}

#[test]
fn a_snapshot_is_its_files_with_their_holes_and_modes() {
    let image = snapshot(&[
        titled("application/vnd.cocoonstack.vm.config+json", "config.json"),
        sized(12288, "application/vnd.cocoonstack.vm.memory", &[(TITLE, "memory-ranges")]),
        sized(0, "application/vnd.cocoonstack.disk.raw", &[(TITLE, "empty.raw")]),
        sized(6, "application/octet-stream", &[(TITLE, "old")]),
    ]);
    assert!(needs_config(&image));
    let config = json!({"schemaVersion": "v1", "snapshotId": "x", "files": {
        "config.json": {"mode": 0o640},
        "memory-ranges": {
            "mode": 0o100_600,
            "sparseMap": r#"[{"o":0,"l":4096},{"o":4096,"l":4096},{"o":1048576,"l":4096}]"#,
            "sparseSize": 2_097_152,
        },
        "empty.raw": {"mode": 420, "sparseMap": "[]", "sparseSize": 1_u64 << 40},
        "old": {"sparseMap": "1,2,10,4", "sparseSize": 14},
    }});
    let found = contents(&image, Some(config.to_string().as_bytes()));
    assert_eq!(found.reports, [""; 0]);
    assert_eq!(
        shape(&found),
        "config.json=0 memory-ranges=1 of 2097152 at [(0, 8192), (1048576, 4096)] \
         empty.raw=2 of 1099511627776 at [] old=3 of 14 at [(1, 2), (10, 4)]"
    );
    assert_eq!(found.files.iter().map(|file| file.mode).collect::<Vec<_>>(), [0o640, 0o600, 0o644, 0o444]);
}

#[test]
fn a_map_that_contradicts_itself_or_the_layer_leaves_packed_bytes_under_another_name() {
    let image = snapshot(&[sized(8, "application/vnd.cocoonstack.disk.qcow2", &[(TITLE, "overlay.qcow2")])]);
    let huge = u64::MAX;
    for (map, size, reason) in [
        (json!(r#"[{"o":0,"l":4},{"o":2,"l":4}]"#), json!(100), "goes back from 4 to 2"),
        (json!(r#"[{"o":96,"l":8}]"#), json!(100), "8 bytes at 96, but the file 100 in all"),
        (json!(format!(r#"[{{"o":{huge},"l":8}}]"#)), json!(100), "but the file 100 in all"),
        (json!(r#"[{"o":0,"l":4}]"#), json!(100), "4 bytes of data, and the layer 8"),
        (json!("[]"), json!(100), "0 bytes of data, and the layer 8"),
        (json!(r#"[{"o":-1,"l":8}]"#), json!(100), "not understood"),
        (json!(r#"[{"o":0"#), json!(100), "not understood"),
        (json!("0,8,16"), json!(100), "an offset without a length"),
        (json!("0,x"), json!(100), "not understood"),
        (json!({"o": 1}), json!(100), "not understood"),
        (json!("0,8"), json!(-1), "its size is -1 bytes"),
        (json!("0,8"), json!("100"), "not understood"),
    ] {
        let config = json!({"files": {"overlay.qcow2": {"sparseMap": map, "sparseSize": size}}});
        let found = contents(&image, Some(config.to_string().as_bytes()));
        assert_eq!(shape(&found), format!("{}=0", short(&image, 0, ".qcow2")), "{map}");
        assert!(found.reports.len() == 1 && found.reports[0].contains(reason), "{:?}", found.reports);
    }
}

#[test]
fn a_snapshot_without_a_usable_config_shows_nothing_under_the_name_of_a_file() {
    let image = snapshot(&[titled("application/vnd.cocoonstack.disk.raw", "a.raw")]);
    let shape_without = format!("{}=0", short(&image, 0, ".raw"));
    let deep = "[".repeat(100_000);
    for config in [None, Some("no JSON"), Some(r#"{"files": []}"#), Some(deep.as_str())] {
        let found = contents(&image, config.map(str::as_bytes));
        assert_eq!((shape(&found).as_str(), found.reports.len()), (shape_without.as_str(), 1), "{found:?}");
    }
    for config in ["{}", r#"{"files": null}"#, r#"{"files": {"other": {}}}"#] {
        let found = contents(&image, Some(config.as_bytes()));
        assert_eq!(shape(&found), shape_without);
        assert!(found.reports[0].contains("names no packing"), "{:?}", found.reports);
    }
}

#[test]
fn a_map_is_used_for_one_layer_only() {
    let kind = |kind| sized(8, kind, &[(TITLE, "a")]);
    let image = snapshot(&[kind("a/a"), kind("a/b")]);
    let config = json!({"files": {"a": {"sparseMap": "0,8", "sparseSize": 9}}});
    let found = contents(&image, Some(config.to_string().as_bytes()));
    assert_eq!(shape(&found), format!("a=0 of 9 at [(0, 8)] {}=1", short(&image, 1, "")));
    assert_eq!(found.reports.len(), 1);
}

#[test]
fn nosi_artifacts_are_files_and_their_root_filesystem_also_an_archive() {
    let with_sums = |kind: &str, name: &str| {
        let sums = format!("{name}.sha256");
        [
            titled(kind, name),
            titled("text/plain", &sums),
            titled("application/vnd.nosi.build-report.v1+zip", "report.zip"),
            titled("application/vnd.nosi.metadata.v1+json", "x.metadata.json"),
        ]
    };
    let files = |name: &str| format!("{name}=0 {name}.sha256=1 report.zip=2 x.metadata.json=3");
    let disk = with_sums("application/vnd.nosi.disk-image.layer.v1+gzip", "nosi-x-x86_64.img.gz");
    let disk = manifest("application/vnd.nosi.disk-image.v1+gzip", EMPTY, &disk);
    assert_eq!(meant(ArtifactKind::NosiDisk, &disk), files("nosi-x-x86_64.img.gz"));
    let wsl = with_sums("application/vnd.nosi.wsl-rootfs.layer.v1+gzip", "nosi-x.tar.gz");
    let wsl = manifest("application/vnd.nosi.wsl-rootfs.v1+gzip", EMPTY, &wsl);
    assert_eq!(meant(ArtifactKind::NosiRootfs, &wsl), files("nosi-x.tar.gz") + " <0>");
    let lxc = with_sums("application/vnd.nosi.lxc-rootfs.layer.v1+zstd", "nosi-x.tar.zst");
    let lxc = manifest("application/vnd.nosi.lxc-rootfs.v1+zstd", EMPTY, &lxc);
    assert_eq!(meant(ArtifactKind::NosiRootfs, &lxc), files("nosi-x.tar.zst") + " <0>");
    let netboot = [
        titled("application/vnd.nosi.netboot-bundle.layer.v1+tar+gzip", "netboot.tar.gz"),
        titled("application/vnd.nosi.netboot-manifest.v1+json", "manifest.json"),
    ];
    let netboot = manifest("application/vnd.nosi.netboot-bundle.v1+tar+gzip", EMPTY, &netboot);
    assert_eq!(meant(ArtifactKind::NosiNetboot, &netboot), "netboot.tar.gz=0 manifest.json=1 <0>");
}

#[test]
fn a_machine_of_podman_is_a_file_and_for_wsl_an_archive_too() {
    let disk = titled("application/zstd", "podman-machine.x86_64.qemu.qcow2.zst");
    let disk = manifest("", EMPTY, &[disk]);
    assert_eq!(meant(ArtifactKind::MachineOs, &disk), "podman-machine.x86_64.qemu.qcow2.zst=0");
    let wsl = manifest("", EMPTY, &[titled("application/zstd", "podman-machine.aarch64.wsl.tar.zst")]);
    assert_eq!(meant(ArtifactKind::MachineOs, &wsl), "podman-machine.aarch64.wsl.tar.zst=0 <0>");
}

#[test]
fn an_exported_virtual_machine_is_its_disks_as_files() {
    let disk = |name: &str| {
        layer("application/vnd.kubevirt.disk.raw+zstd", &[(TITLE, name), ("io.kubevirt.disk.name", "d")])
    };
    let layers = [disk("rootdisk.raw.zst"), disk("data.raw.zst")];
    let config = "application/vnd.kubevirt.virtualmachine.config.v1+json";
    let machine = manifest("application/vnd.kubevirt.virtualmachine.v1", config, &layers);
    assert_eq!(meant(ArtifactKind::VmExport, &machine), "rootdisk.raw.zst=0 data.raw.zst=1");
}

#[test]
fn machines_in_chunks_are_their_small_files_and_never_archives() {
    let tart = |kind: &str| layer(&format!("application/vnd.cirruslabs.tart.{kind}"), &[]);
    let layers = [tart("config.v1"), tart("disk.v2"), tart("disk.v2"), tart("nvram.v1"), layer(TAR, &[])];
    let image = manifest("", IMAGE, &layers);
    let last = short(&image, 4, ".tar");
    assert_eq!(meant(ArtifactKind::Tart, &image), format!("config.json=0 nvram.bin=3 {last}=4"));

    let vetu = |kind: &str| layer(&format!("application/vnd.cirruslabs.vetu.{kind}.v1"), &[]);
    let disk = layer("application/vnd.cirruslabs.vetu.disk.v1", &[("org.cirruslabs.vetu.name", "disk.img")]);
    let image = manifest("", IMAGE, &[vetu("config"), vetu("kernel"), vetu("initramfs"), disk]);
    assert_eq!(meant(ArtifactKind::Vetu, &image), "config.json=0 kernel=1 initramfs=2");

    let lume = |kind: &str| layer(&format!("application/vnd.trycua.lume.{kind}.v1"), &[]);
    let image = manifest("", EMPTY, &[lume("config"), lume("disk"), lume("nvram")]);
    assert_eq!(meant(ArtifactKind::Lume, &image), "config.json=0 nvram.bin=2");
    let old = "application/octet-stream+lzfse;part.number=1;part.total=38";
    let image = manifest("", IMAGE, &[layer(old, &[]), titled("application/octet-stream", "nvram.bin")]);
    assert_eq!(meant(ArtifactKind::Lume, &image), "nvram.bin=1");
}

fn segment(file: &str, range: &str, size: u64) -> Value {
    let kind = "application/online.jarosik.tomasz.geranos.segment";
    sized(size, kind, &[("filename", file), ("range", range)])
}

#[test]
fn segments_are_joined_where_their_ranges_tile() {
    let layers = [
        segment("disk.img", "10-19", 10),
        segment("config.json", "0-4", 5),
        segment("disk.img", "0-9", 10),
        segment("disk.img", "20-24", 5),
        segment("nvram.bin", "0-3", 3),
        segment("nvram.bin", "4-5", 2),
    ];
    let image = manifest("", EMPTY, &layers);
    assert_eq!(meant(ArtifactKind::Geranos, &image), "disk.img=[2, 0, 3] config.json=[1] nvram.bin=[4, 5]");
}

#[test]
fn segments_that_do_not_tile_stay_pieces() {
    for (first, second, reason) in [
        ("0-9", "9-18", "starts at 9, the one before it ends at 10"),
        ("0-9", "11-20", "starts at 11, the one before it ends at 10"),
        ("0-9", "0-9", "starts at 0, the one before it ends at 10"),
        ("1-10", "11-20", "starts at 1, the one before it ends at 0"),
        ("0-9", "19-10", "is invalid"),
        ("0-18446744073709551615", "0-0", "is invalid"),
        ("0-9", "ten", "is invalid"),
        ("0-9", "99999999999999999999-5", "is invalid"),
        ("0-9", "-", "is invalid"),
    ] {
        let layers = [segment("d", first, 10), segment("d", second, 10)];
        let image = manifest("", EMPTY, &layers);
        let found = contents(&image, None);
        let pieces = [short(&image, 0, ""), short(&image, 1, "")];
        if pieces[0][3..] == pieces[1][3..] {
            assert_eq!(found.files.len(), 2);
        } else {
            assert_eq!(shape(&found), format!("{}=0 {}=1", pieces[0], pieces[1]));
        }
        assert!(found.reports.len() == 1 && found.reports[0].contains(reason), "{:?}", found.reports);
    }
    let max = i64::MAX as u64;
    let layers =
        [segment("d", &format!("0-{}", max - 1), max), segment("d", &format!("{max}-{}", max + 8), 9)];
    let found = contents(&manifest("", EMPTY, &layers), None);
    assert!(found.reports[0].contains("larger than any file"), "{:?}", found.reports);
}

#[test]
fn files_of_oras_are_files_whatever_type_it_gave_them() {
    let layers = [
        titled(TAR, "a.bin"),
        titled("application/vnd.example+json", "sub/dir/b.json"),
        titled("application/x-qemu-qcow2+zstd", "disk.qcow2.zst"),
        titled(TAR_GZIP, "rootfs.tar.gz"),
        layer(TAR, &[]),
        titled(TAR, "ROOT.TAR"),
    ];
    let image = manifest("application/vnd.unknown.artifact.v1", EMPTY, &layers);
    assert_eq!(
        meant(ArtifactKind::Unknown, &image),
        "a.bin=0 sub/dir/b.json=1 disk.qcow2.zst=2 rootfs.tar.gz=3 ROOT.TAR=5 <3> <4> <5>"
    );
}

#[test]
fn directories_of_oras_are_directories_and_nothing_to_merge() {
    let digest = Digest::sha256(b"tar").to_string();
    let directory = |title: &str, unpack: &str, digest: &str| {
        let (unpack, content) =
            (("io.deis.oras.content.unpack", unpack), ("io.deis.oras.content.digest", digest));
        layer(TAR_GZIP, &[(TITLE, title), unpack, content])
    };
    let layers = [directory("data/set", "true", &digest), directory("plain", "false", &digest)];
    let image = manifest("application/vnd.example", EMPTY, &layers);
    assert_eq!(
        meant(ArtifactKind::Unknown, &image),
        "data/set=0/data/set only checked plain=1/plain checked"
    );
    assert_eq!(contents(&image, None).files[0].mode, 0o555);

    let image =
        manifest("", EMPTY, &[directory("../x", "true", &digest), directory("d", "true", "nonsense")]);
    let found = contents(&image, None);
    assert_eq!(shape(&found), format!("{}=0 d=1/d only", short(&image, 0, ".tar.gz")));
    assert_eq!((found.reports.len(), found.files[0].mode), (2, 0o444));
    assert!(found.reports[0].contains("is not compared"), "{:?}", found.reports);
}

#[test]
fn a_directory_called_dot_is_all_of_the_files() {
    for title in [".", "./"] {
        let directory = layer(TAR_GZIP, &[(TITLE, title), ("io.deis.oras.content.unpack", "true")]);
        let image = manifest("application/vnd.example", EMPTY, &[directory, titled("text/plain", "one.txt")]);
        assert_eq!(meant(ArtifactKind::Unknown, &image), format!("one.txt=1 .=0/{title} only"));
    }
}

#[test]
fn a_slash_behind_a_title_names_a_directory() {
    let unpacked = layer(TAR_GZIP, &[(TITLE, "data/"), ("io.deis.oras.content.unpack", "true")]);
    let image = manifest("application/vnd.example", EMPTY, &[unpacked]);
    assert_eq!(meant(ArtifactKind::Unknown, &image), "data=0/data/ only");
    for kind in ["application/octet-stream", TAR_GZIP] {
        let image = manifest("application/vnd.example", EMPTY, &[titled(kind, "data/")]);
        assert_eq!(meant(ArtifactKind::Unknown, &image), "data=0/", "{kind}");
    }
}

#[test]
fn the_compressed_type_of_a_directory_without_the_name_of_an_archive_may_be_one() {
    let image = manifest("", EMPTY, &[titled(TAR_GZIP, "data"), titled(TAR, "one.txt")]);
    assert_eq!(meant(ArtifactKind::Unknown, &image), "data=0/data one.txt=1");
}

#[test]
fn every_spelling_of_an_archive_in_a_type_is_an_archive() {
    for (end, extension) in
        [("+tar.gz", ".tar.gz"), (".tar.xz", ".tar.xz"), (".tar.bz2", ".tar.bz2"), ("+tar+zst", ".tar.zst")]
    {
        let kind = format!("application/vnd.cncf.falco.rulesfile.layer.v1{end}");
        let image = manifest("", EMPTY, &[titled(&kind, &format!("rules{extension}")), layer(&kind, &[])]);
        assert_eq!(meant(ArtifactKind::Unknown, &image), format!("rules{extension}=0 <0> <1>"));
    }
}

#[test]
fn layers_without_a_title_are_named_by_number_digest_and_type() {
    let types = [
        ("application/json", ".json"),
        ("application/wasm+x", ""),
        ("application/octet-stream", ".bin"),
        ("application/vnd.example.gguf", ".gguf"),
        ("application/vnd.example.prov", ".prov"),
        ("application/vnd.example+wasm", ".wasm"),
        ("application/gzip", ".gz"),
    ];
    let layers: Vec<_> = types.iter().map(|(kind, _)| layer(kind, &[])).collect();
    let image = manifest("application/vnd.example", EMPTY, &layers);
    let names = types.iter().enumerate().map(|(number, (_, extension))| short(&image, number, extension));
    let found = contents(&image, None);
    let paths = found.files.iter().map(|file| file.path.clone());
    assert_eq!(paths.collect::<Vec<_>>(), names.collect::<Vec<_>>());
}

#[test]
fn a_source_of_flux_is_one_archive() {
    let content = layer("application/vnd.cncf.flux.content.v1.tar+gzip", &[]);
    let image = manifest("", "application/vnd.cncf.flux.config.v1+json", &[content]);
    assert_eq!(meant(ArtifactKind::Flux, &image), "<0>");
}

#[test]
fn timoni_module_is_archives_named_by_their_content_type() {
    let content =
        |kind: &str| layer("application/vnd.timoni.content.v1.tar+gzip", &[("sh.timoni.content.type", kind)]);
    let config = "application/vnd.timoni.config.v1+json";
    let image = manifest("", config, &[content("module/vendor"), content("module")]);
    assert_eq!(meant(ArtifactKind::Timoni, &image), "<0-module_vendor> <1-module>");
    for hostile in ["", "..", "a\0b", &"x".repeat(10_000_000 / 100)] {
        let found = contents(&manifest("", config, &[content(hostile)]), None);
        assert_eq!(shape(&found), "<0>");
        assert!(found.reports.len() == 1 && found.reports[0].len() < 400);
    }
}

fn chart() -> Manifest {
    let layers = [
        layer("application/vnd.cncf.helm.chart.provenance.v1.prov", &[]),
        layer("application/vnd.cncf.helm.chart.content.v1.tar+gzip", &[]),
    ];
    manifest("", "application/vnd.cncf.helm.config.v1+json", &layers)
}

#[test]
fn a_chart_is_an_archive_and_a_file_named_by_its_config() {
    let image = chart();
    assert_eq!(classify_manifest(&image), ArtifactKind::Helm);
    assert!(needs_config(&image));
    let found = contents(&image, Some(br#"{"name":"nginx","version":"1.2.3+build","apiVersion":"v2"}"#));
    assert_eq!(shape(&found), "nginx-1.2.3+build.tgz.prov=0 nginx-1.2.3+build.tgz=1 <1>");
    assert_eq!((found.union, found.reports.len()), (UnionRules::Plain, 0));
    let old = [layer("application/tar+gzip", &[])];
    let old = manifest("", "application/vnd.cncf.helm.config.v1+json", &old);
    assert_eq!(shape(&contents(&old, Some(br#"{"name":"x","version":"1"}"#))), "x-1.tgz=0 <0>");
}

#[test]
fn a_chart_whose_config_names_no_plain_file_falls_back() {
    let image = chart();
    let fallback = format!("{}=0 {}=1 <1>", short(&image, 0, ".prov"), short(&image, 1, ".tar.gz"));
    let long = json!({"name": "x".repeat(1 << 20), "version": "1"}).to_string();
    let huge = json!({"name": "x", "version": "1", "d": "x".repeat(10 << 20)}).to_string();
    for config in [
        r#"{"name":"../../etc/cron.d/x","version":"1"}"#,
        r#"{"name":"..","version":"1"}"#,
        r#"{"name":"x","version":"1/../../2"}"#,
        r#"{"name":"x\u0000","version":"1"}"#,
        r#"{"name":"","version":"1"}"#,
        r#"{"name":7,"version":"1"}"#,
        r#"{"name":"x"}"#,
        "name: x",
        "",
        &long,
        &huge,
    ] {
        let found = contents(&image, Some(config.as_bytes()));
        assert_eq!(shape(&found), fallback, "{:.80}", config);
        assert!(found.reports.len() == 1 && found.reports[0].len() < 600, "{:?}", found.reports);
    }
    assert_eq!(shape(&contents(&image, None)), fallback);
}

#[test]
fn a_bottle_is_a_file_and_an_archive_and_no_image() {
    let bottle = |annotations: Value| {
        parse(&json!({
            "schemaVersion": 2,
            "config": {"mediaType": IMAGE, "digest": Digest::sha256(b"c").to_string(), "size": 1},
            "layers": [titled(TAR_GZIP, "hello--2.12.1.x86_64_linux.bottle.tar.gz")],
            "annotations": annotations,
        }))
    };
    let shape = "hello--2.12.1.x86_64_linux.bottle.tar.gz=0 <0>";
    assert_eq!(meant(ArtifactKind::Bottle, &bottle(json!({"sh.brew.bottle.size": "1"}))), shape);
    assert_eq!(meant(ArtifactKind::Bottle, &bottle(json!({}))), shape);
}

#[test]
fn a_modelpack_is_files_at_their_paths_with_their_modes_and_times() {
    let metadata = r#"{"name":"w","mode":33188,"uid":0,"gid":0,"size":10,"mtime":"2024-05-01T12:00:00.5+02:00","typeflag":48}"#;
    let at = |kind: &str, path: &str, key: &str, metadata: &str| {
        let kind = format!("application/vnd.cncf.model.{kind}");
        layer(&kind, &[(key, path), (TITLE, "other"), ("org.cncf.model.file.metadata+json", metadata)])
    };
    let path = "org.cncf.model.filepath";
    let layers = [
        at("weight.v1.raw", "weights/w.safetensors", path, metadata),
        at("weight.config.v1.raw", "config.json", "org.cnai.model.filepath", r#"{"mode":493}"#),
        at("code.v1.tar+gzip", "src", path, r#"{"mode":420}"#),
        layer("application/vnd.cncf.model.dataset.v1.tar", &[]),
    ];
    let config = "application/vnd.cncf.model.config.v1+json";
    let image = manifest("application/vnd.cncf.model.manifest.v1+json", config, &layers);
    let shape = "weights/w.safetensors=0 config.json=1 src=2/src <3>";
    assert_eq!(meant(ArtifactKind::ModelPack, &image), shape);
    let files = contents(&image, None).files;
    let attributes: Vec<_> = files.iter().map(|file| (file.mode, file.mtime)).collect();
    assert_eq!(attributes, [(0o644, Some(1_714_557_600)), (0o755, None), (0o644, None)]);

    let wrong = [
        at("doc.v1.raw", "../README", path, "no JSON"),
        at("doc.v1.raw", "a", path, r#"{"mtime":"yesterday"}"#),
        at("doc.v1.raw", "a", path, "{}"),
    ];
    let image = manifest("", "application/vnd.cnai.model.config.v1+json", &wrong);
    let found = contents(&image, None);
    let lines = found.reports.join("\n");
    assert_eq!(self::shape(&found), format!("{}=0 a=1 a~02=2", short(&image, 0, ".raw")));
    for reason in
        ["metadata is not understood", "\"yesterday\" is invalid", "file path \"../README\"", "a~02"]
    {
        assert!(lines.contains(reason), "{lines}");
    }
}

#[test]
fn a_docker_model_is_named_by_type_and_several_of_a_kind_are_numbered() {
    let ai = |kind: &str| layer(&format!("application/vnd.docker.ai.{kind}"), &[]);
    let other = |kind: &str, mark: &str| layer(&format!("application/vnd.docker.ai.{kind}"), &[("x", mark)]);
    let config = "application/vnd.docker.ai.model.config.v0.1+json";
    let one = [ai("gguf.v3"), ai("license"), ai("mmproj"), ai("chat.template.jinja"), ai("vllm.config.tar")];
    let shape = "model.gguf=0 license=1 mmproj=2 chat.template.jinja=3 <4>";
    assert_eq!(meant(ArtifactKind::DockerModel, &manifest("", config, &one)), shape);
    let many = [other("gguf.v3", "a"), ai("license"), other("gguf.v3", "b")];
    let shape = "model-00001-of-00002.gguf=0 license=1 model-00002-of-00002.gguf=2";
    assert_eq!(meant(ArtifactKind::DockerModel, &manifest("", config, &many)), shape);

    let path =
        |path: &str| layer("application/vnd.docker.ai.model.file", &[("org.cncf.model.filepath", path)]);
    let layers = [path("tokenizer/vocab.json"), path("model.safetensors")];
    let image = manifest("", "application/vnd.docker.ai.model.config.v0.2+json", &layers);
    assert_eq!(meant(ArtifactKind::DockerModel, &image), "tokenizer/vocab.json=0 model.safetensors=1");
}

#[test]
fn a_modelkit_is_archives() {
    let kit = |kind: &str| layer(&format!("application/vnd.kitops.modelkit.{kind}"), &[]);
    let layers = [kit("model.v1.tar+gzip"), kit("modelpart.v1.tar"), kit("docs.v1.tar")];
    let image = manifest("", "application/vnd.kitops.modelkit.config.v1+json", &layers);
    assert_eq!(meant(ArtifactKind::KitOps, &image), "<0> <1> <2>");
}

#[test]
fn files_of_a_compose_project_have_their_names() {
    let project = manifest(
        "application/vnd.docker.compose.project",
        EMPTY,
        &[
            layer(
                "application/vnd.docker.compose.file+yaml",
                &[("com.docker.compose.file", "compose.yaml"), ("com.docker.compose.version", "v5")],
            ),
            layer("application/vnd.docker.compose.envfile", &[("com.docker.compose.envfile", ".env")]),
            layer("application/vnd.docker.compose.envfile", &[("com.docker.compose.envfile", "../../evil")]),
        ],
    );
    let contents = contents(&project, None);
    let paths: Vec<&str> = contents.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths[..2], ["compose.yaml", ".env"]);
    assert!(paths[2].starts_with("02-") && contents.reports.len() == 1, "{:?}", contents.reports);
}

#[test]
fn a_model_of_ollama_is_named_by_type_and_its_tensors_by_name() {
    let kind = |kind: &str| layer(&format!("application/vnd.ollama.image.{kind}"), &[]);
    let named = |name: Value| {
        let mut layer = layer("application/vnd.ollama.image.tensor", &[("x", &name.to_string())]);
        layer["name"] = name;
        layer
    };
    let config = "application/vnd.docker.container.image.v1+json";
    let layers = [kind("model"), kind("template"), kind("params"), kind("license"), kind("system")];
    let shape = "model.gguf=0 template=1 params.json=2 license=3 system=4";
    assert_eq!(meant(ArtifactKind::Ollama, &manifest("", config, &layers)), shape);
    let tensor = "text_encoder/model.embed_tokens.weight";
    let image = manifest("", config, &[named(json!(tensor)), named(json!("../x")), named(json!(7))]);
    let found = contents(&image, None);
    let rest = [short(&image, 1, ""), short(&image, 2, "")];
    assert_eq!(self::shape(&found), format!("{tensor}=0 {}=1 {}=2", rest[0], rest[1]));
    assert!(found.reports.len() == 1 && found.reports[0].contains("name \"../x\""), "{:?}", found.reports);
}

#[test]
fn policies_are_files() {
    let data = titled("application/vnd.cncf.openpolicyagent.data.layer.v1+json", "data/data/x.json");
    let policy = titled("application/vnd.cncf.openpolicyagent.policy.layer.v1+rego", "policy/p.rego");
    let image = manifest("", "application/vnd.unknown.config.v1+json", &[data, policy]);
    assert_eq!(meant(ArtifactKind::Policy, &image), "data/data/x.json=0 policy/p.rego=1");
}

#[test]
fn modules_and_singularity_images_have_one_name() {
    let wasm = manifest("", "application/vnd.wasm.config.v0+json", &[layer("application/wasm", &[])]);
    assert_eq!(meant(ArtifactKind::Wasm, &wasm), "module.wasm=0");
    let titled_wasm = manifest("", EMPTY, &[titled("application/wasm", "hello.wasm")]);
    assert_eq!(meant(ArtifactKind::Wasm, &titled_wasm), "hello.wasm=0");
    let sif = [layer("application/vnd.sylabs.sif.layer.v1.sif", &[])];
    let sif = manifest("", "application/vnd.sylabs.sif.config.v1+json", &sif);
    assert_eq!(meant(ArtifactKind::Sif, &sif), "image.sif=0");
}

#[test]
fn statements_about_other_artifacts_are_files_also_behind_an_image_config() {
    let sign = layer("application/vnd.dev.cosign.simplesigning.v1+json", &[]);
    let image = manifest("", IMAGE, &[sign]);
    assert_eq!(meant(ArtifactKind::Statement, &image), format!("{}=0", short(&image, 0, ".json")));
    let attest = manifest("", IMAGE, &[layer("application/vnd.in-toto+json", &[])]);
    assert_eq!(meant(ArtifactKind::Statement, &attest), format!("{}=0", short(&attest, 0, ".json")));
    let bundle = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let bundle = manifest(bundle, EMPTY, &[layer(bundle, &[])]);
    assert_eq!(meant(ArtifactKind::Statement, &bundle), format!("{}=0", short(&bundle, 0, ".json")));
}

#[test]
fn an_artifact_without_content_has_nothing_and_that_is_no_error() {
    let image = manifest("application/vnd.example", EMPTY, &[sized(2, EMPTY, &[])]);
    assert_eq!(meant(ArtifactKind::Empty, &image), "");
    let liar = manifest("application/vnd.example", EMPTY, &[sized(3, EMPTY, &[])]);
    assert_eq!(shape(&contents(&liar, None)), format!("{}=0", short(&liar, 0, ".json")));
}

#[test]
fn a_layer_that_may_lie_about_being_an_archive_is_one_by_its_label() {
    let image = manifest("application/vnd.example", EMPTY, &[layer(TAR, &[]), layer(TAR_GZIP, &[])]);
    assert_eq!(meant(ArtifactKind::Unknown, &image), "<0> <1>");
}

#[test]
fn artifact_type_outranks_config_type_which_outranks_layer_types() {
    let helm = "application/vnd.cncf.helm.config.v1+json";
    let flux = layer("application/vnd.cncf.flux.content.v1.tar+gzip", &[]);
    let class =
        |kind: &str, config: &str| classify_manifest(&manifest(kind, config, std::slice::from_ref(&flux)));
    assert_eq!(class("application/vnd.kitops.modelkit.manifest.v1+json", helm), ArtifactKind::KitOps);
    assert_eq!(class("application/vnd.example", helm), ArtifactKind::Helm);
    assert_eq!(class("application/vnd.example", EMPTY), ArtifactKind::Flux);
    assert_eq!(class("Application/VND.cncf.Helm.x; a=b", EMPTY), ArtifactKind::Helm, "parameters and case");
    assert_eq!(class("application/vnd.example", IMAGE), ArtifactKind::ContainerImage);
}

#[test]
fn a_config_with_a_title_is_a_file_too() {
    let with_title = |title: &str, layers: &[Value]| {
        let digest = Digest::sha256(b"config").to_string();
        parse(&json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.acme+json", "digest": digest, "size": 6, "annotations": {TITLE: title}},
            "layers": layers,
        }))
    };
    let layers = [titled("text/plain", "a.txt")];
    assert_eq!(
        meant(ArtifactKind::Unknown, &with_title("settings.json", &layers)),
        "a.txt=0 settings.json=config"
    );
    assert_eq!(shape(&contents(&with_title("a.txt", &layers), None)), "a.txt=0 a.txt~01=config");
    let found = contents(&with_title("/etc/passwd", &layers), None);
    assert_eq!(shape(&found), "a.txt=0 passwd=config");
    assert!(found.reports[0].starts_with("config: title"), "{:?}", found.reports);
}

#[test]
fn hostile_titles_never_leave_their_directory_and_no_layer_is_lost() {
    let long = "x".repeat(1 << 20);
    let titles = ["../x", "/etc/passwd", "a/../b", "a", "a/b", "a", "", ".", "a\0b", "A", &long];
    let layers: Vec<_> =
        (0..).zip(titles).map(|(size, title)| sized(size, "text/plain", &[(TITLE, title)])).collect();
    for config in [
        EMPTY,
        IMAGE,
        "application/vnd.cncf.helm.config.v1+json",
        "application/vnd.cncf.model.config.v1+json",
    ] {
        let found = contents(&manifest("", config, &layers), None);
        assert_eq!(found.files.len(), titles.len());
        for file in &found.files {
            let plain =
                |part: &str| !matches!(part, "" | "." | "..") && part.len() < 256 && !part.contains('\0');
            assert!(file.path.split('/').all(plain), "{:?}", file.path);
        }
        assert!(found.reports.iter().all(|line| line.len() < 500));
    }
}
