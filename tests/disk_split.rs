//! Disks cut by the real `split` and described by a manifest: the parts join to the bytes that were cut.

#![expect(clippy::unwrap_used, reason = "a test that cannot make its input has failed")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use ocifs::disk::{DiskDetection, DiskFormat, PartOrder, detect, inspect};
use ocifs::io::{ByteRange, ConcatReader, MemoryReader, ReadAt as _, SharedReader, read_all, read_vec};
use ocifs::oci::{Digest, Manifest, ManifestDocument};
use tempfile::TempDir;

/// Parts as `split` made them: names and contents, in the order of their digests, which is no order at all.
fn split(whole: &[u8], args: &[&str]) -> Vec<(String, Vec<u8>)> {
    let dir = TempDir::new().unwrap();
    let mut command = Command::new("split");
    command.args(args).args(["-", "win.qcow2."]).current_dir(dir.path()).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), whole).unwrap();
    assert!(child.wait().unwrap().success());
    let mut parts: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| read(&entry.unwrap().path())).collect();
    parts.sort_by_key(|(name, _)| Digest::sha256(name.as_bytes()));
    parts
}

fn read(path: &Path) -> (String, Vec<u8>) {
    (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())
}

/// The manifest that `oras push` makes of them, the way the Windows images of cocoonstack are built.
fn push(parts: &[(String, Vec<u8>)]) -> Manifest {
    let layers: Vec<_> = parts
        .iter()
        .map(|(name, content)| {
            let kind = if name == "SHA256SUMS" {
                "text/plain"
            } else {
                "application/vnd.cocoonstack.disk.qcow2.part"
            };
            serde_json::json!({
                "mediaType": kind,
                "digest": Digest::sha256(content).as_str(),
                "size": content.len(),
                "annotations": {"org.opencontainers.image.title": name},
            })
        })
        .collect();
    let artifact = serde_json::json!({"artifactType": "application/vnd.cocoonstack.os-image.v1+json"});
    listing(&layers.iter().collect::<Vec<_>>(), EMPTY, artifact)
}

fn assemble(found: &DiskDetection, parts: &[(String, Vec<u8>)]) -> ConcatReader {
    assert!(found.problems.is_empty() && found.disks.len() == 1, "{found:?}");
    ConcatReader::of(
        found.disks[0].layers().map(|i| Arc::new(MemoryReader::new(parts[i].1.clone())) as SharedReader),
    )
}

/// Bytes that start like a qcow2 and never repeat within a part.
fn disk(len: u32) -> Vec<u8> {
    let mut disk = b"QFI\xfb".to_vec();
    disk.extend((0..len / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()));
    disk.truncate(len as usize);
    disk
}

#[tokio::test]
async fn every_way_of_split_to_number_parts_joins_to_the_original() {
    // As many parts as each kind of suffix needs to widen once, decimal ones twice.
    for (count, args) in [
        (1000, &["-d", "--additional-suffix=.qcow2.part"][..]),
        (100, &["-d"]),
        (250, &["-x"]),
        (700, &[]),
        (700, &["-a", "4"]),
        (110, &["-d", "-a", "3"]),
        (3, &["-d"]),
        (1, &["-d"]),
    ] {
        let whole = disk(3 * count);
        let args = [&["-b", "3"], args].concat();
        let mut parts = split(&whole, &args);
        assert_eq!(parts.len(), count as usize);
        parts.insert(parts.len() / 2, ("SHA256SUMS".into(), b"sums".to_vec()));
        let manifest = push(&parts);
        for order in [PartOrder::Epoch, PartOrder::Natural] {
            let found = detect(&manifest, order);
            assert_eq!(found.disks.len(), 1, "{args:?}: {found:?}");
            assert_eq!((found.disks[0].name.as_str(), &found.warnings[..]), ("win.qcow2", &[][..]));
            let joined = assemble(&found, &parts);
            assert_eq!(Some(joined.size()), found.disks[0].size);
            assert_eq!(Digest::sha256(&read_all(&joined).await.unwrap()), Digest::sha256(&whole), "{args:?}");
        }
    }
}

#[tokio::test]
async fn a_signature_is_seen_across_parts_that_are_shorter_than_it() {
    let parts = split(&disk(400), &["-b", "1", "-d"]);
    let found = detect(&push(&parts), PartOrder::Epoch);
    let joined = assemble(&found, &parts);
    let head = read_vec(&joined, ByteRange::new(0, joined.size())).await.unwrap();
    assert_eq!(inspect(&head, joined.size(), &found.disks[0].label).format, DiskFormat::Qcow2);
}

#[test]
fn one_part_less_is_no_disk_unless_it_was_the_last() {
    let mut parts = split(&disk(300), &["-b", "3", "-d"]);
    parts.sort();
    for missing in 0..parts.len() - 1 {
        let mut rest = parts.clone();
        rest.remove(missing);
        let found = detect(&push(&rest), PartOrder::Epoch);
        match missing {
            // Counting from 1 is a habit, too: what is left may be all.
            0 => assert_eq!((found.disks.len(), found.warnings.len()), (1, 1)),
            _ => assert_eq!((found.disks.len(), found.problems.len()), (0, 1), "{missing}"),
        }
    }
}

/// A layer of each packaging that is alone enough for a disk, in the order in which packagings are asked for.
fn packagings() -> Vec<(&'static str, serde_json::Value)> {
    let content = Digest::sha256(b"unpacked").to_string();
    let title = "org.opencontainers.image.title";
    [
        ("cocoonstack", "application/vnd.cocoonstack.disk.raw", serde_json::json!({title: "a.raw"})),
        (
            "tart",
            "application/vnd.cirruslabs.tart.disk.v2",
            serde_json::json!({
                "org.cirruslabs.tart.uncompressed-size": "10",
                "org.cirruslabs.tart.uncompressed-content-digest": content,
            }),
        ),
        (
            "vetu",
            "application/vnd.cirruslabs.vetu.disk.v1",
            serde_json::json!({
                "org.cirruslabs.vetu.name": "vetu.img",
                "org.cirruslabs.vetu.uncompressed-size": "10",
                "org.cirruslabs.vetu.uncompressed-digest": content,
            }),
        ),
        ("lume", "application/octet-stream+lz4", serde_json::json!({})),
        (
            "geranos",
            "application/online.jarosik.tomasz.geranos.segment",
            serde_json::json!({"filename": "geranos.raw", "range": "0-9"}),
        ),
        (
            "vmlab",
            "application/vnd.vmlab.template.chunk.v1+zstd",
            serde_json::json!({
                "vnd.vmlab.template.chunk.index": "0",
                "vnd.vmlab.template.chunk.uncompressed.size": "10",
            }),
        ),
        (
            "KubeVirt",
            "application/vnd.kubevirt.disk.raw",
            serde_json::json!({"io.kubevirt.disk.name": "k.raw"}),
        ),
        ("nosi", "application/vnd.nosi.disk-image.layer.v1+gzip", serde_json::json!({title: "n.img.gz"})),
        ("a title", "application/octet-stream", serde_json::json!({title: "t.raw"})),
    ]
    .map(|(name, kind, annotations)| {
        let digest = Digest::sha256(name.as_bytes()).to_string();
        (
            name,
            serde_json::json!({"mediaType": kind, "digest": digest, "size": 10, "annotations": annotations}),
        )
    })
    .into()
}

/// A manifest of these layers. `config` is the type of its config, and `more` has fields and annotations of its own.
fn listing(layers: &[&serde_json::Value], config: &str, more: serde_json::Value) -> Manifest {
    let mut manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": config, "digest": Digest::sha256(b"{}").as_str(), "size": 2},
        "layers": layers,
    });
    manifest.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    match ManifestDocument::parse(manifest.to_string().as_bytes(), None).unwrap() {
        ManifestDocument::Manifest(manifest) => manifest,
        ManifestDocument::Index(_) => unreachable!("it has layers"),
    }
}

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const CONTAINER: &str = "application/vnd.oci.image.config.v1+json";

/// The layers of the disks that are found, and what is said of others.
fn found(manifest: &Manifest) -> (Vec<usize>, Vec<String>) {
    let found = detect(manifest, PartOrder::Epoch);
    (
        found.disks.iter().flat_map(|disk| disk.layers()).collect(),
        found.problems.iter().map(|it| it.reason.clone()).collect(),
    )
}

#[test]
fn of_two_packagings_in_one_manifest_the_one_that_is_asked_for_first_has_the_disk() {
    // vmlab counts its chunks in the manifest.
    let totals = serde_json::json!({"annotations": {
        "vnd.vmlab.template.chunk.count": "1", "vnd.vmlab.template.total.size": "10"}});
    let all = packagings();
    for (at, (first, layer)) in all.iter().enumerate() {
        assert_eq!(found(&listing(&[layer], EMPTY, totals.clone())), (vec![0], vec![]), "{first} alone");
        for (second, other) in &all[at + 1..] {
            let pairs = [([layer, other], 0), ([other, layer], 1)];
            for (layers, winner) in pairs {
                let (disks, problems) = found(&listing(&layers, EMPTY, totals.clone()));
                assert_eq!((disks, problems), (vec![winner], vec![]), "{first} beside {second}");
            }
        }
    }
}

#[test]
fn the_declared_kind_of_a_manifest_goes_before_the_types_of_its_layers() {
    for (name, layer) in &packagings() {
        let declared = serde_json::json!({"artifactType": "application/vnd.cocoonstack.os-image.v1+json"});
        let (disks, problems) = found(&listing(&[layer], EMPTY, declared));
        let expected = if *name == "cocoonstack" {
            (vec![0], vec![])
        } else {
            (vec![], vec!["cloud image manifest has no disk layers".to_owned()])
        };
        assert_eq!((disks, problems), expected, "{name}");
    }
}

#[test]
fn the_config_of_a_container_image_hides_neither_titles_nor_types_of_a_packaging() {
    let totals = serde_json::json!({"annotations": {"disktype": "hyperv",
        "vnd.vmlab.template.chunk.count": "1", "vnd.vmlab.template.total.size": "10"}});
    for (name, layer) in &packagings() {
        let (disks, problems) = found(&listing(&[layer], CONTAINER, totals.clone()));
        assert_eq!((disks, problems), (vec![0], vec![]), "{name}");
    }
}

#[test]
fn the_hypervisor_of_a_podman_machine_goes_before_the_type_of_its_layer_and_after_every_packaging() {
    let machine = serde_json::json!({"annotations": {"disktype": "hyperv",
        "vnd.vmlab.template.chunk.count": "1", "vnd.vmlab.template.total.size": "10"}});
    let raw = serde_json::json!({"mediaType": "application/x-raw-disk-image",
        "digest": Digest::sha256(b"raw").as_str(), "size": 10});
    let label = |layer: &serde_json::Value| {
        let found = detect(&listing(&[layer], EMPTY, machine.clone()), PartOrder::Epoch);
        assert_eq!(found.disks.len(), 1, "{found:?}");
        found.disks[0].label.clone()
    };
    assert_eq!(label(&raw), DiskFormat::Vhdx);
    for (name, layer) in &packagings() {
        let expected = if *name == "vmlab" { DiskFormat::Qcow2 } else { DiskFormat::Raw };
        assert_eq!(label(layer), expected, "{name}");
    }
}
