//! Images whose layer has an index that ocifs did not make: how they are written, pushed, and looked at through a mount.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ocifs::layer::LayerIndex;
use ocifs::oci::{Descriptor, published};
use serde_json::{Value, json};

use crate::byte_text::digest_of;
use crate::chunked::{self, Annotations, Estargz, Footer, Made, Writer};
use crate::fault_registry::{Fault, FaultRegistry};
use crate::layout::{CONFIG, MANIFEST, blob_path};
use crate::process::{CONDITION_TIMEOUT, becomes_true, sh};
use crate::site::{Mount, Site};
use crate::soci::Ztoc;
use crate::tarball::noise;
use crate::zran::Members;

pub(crate) const KIB: usize = 1 << 10;
pub(crate) const REPO: &str = "an/image";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Files in [`archive`], and the bytes of each.
pub(crate) const FILES: u64 = 90;
pub(crate) const SIZE: usize = 100 * KIB;

/// What is in the file with this number.
pub(crate) fn content(number: u64) -> Vec<u8> {
    noise(SIZE, number + 1)
}

/// An archive of 9 MB, so that it is no small blob, with what tools disagree about: a root entry, `./` before names, links, devices, attributes out of order,
/// fractions of seconds, and a hole written as zeros. Padding behind its end, or a landmark after the first ten files.
pub(crate) fn archive(landmark: Option<&str>) -> Vec<u8> {
    use tar::EntryType as Kind;
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: Kind, mode: u32, link: &str, body: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(70_000);
        header.set_mtime(1_600_000_000);
        header.set_size(body.len() as u64);
        header.set_device_major(8).unwrap();
        header.set_device_minor(17).unwrap();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.append(&header, body).unwrap();
    };
    let record = |text: &str| format!("{} {text}\n", text.len() + if text.len() < 8 { 3 } else { 4 });
    add("./", Kind::Directory, 0o755, "", &[]);
    add("./d/", Kind::Directory, 0o1777, "", &[]);
    for number in 0..FILES {
        if number == 10
            && let Some(name) = landmark
        {
            add(name, Kind::Regular, 0o644, "", &[0xf]);
        }
        if number % 7 == 3 {
            let records = [
                record("mtime=1600000000.75"),
                record("SCHILY.xattr.user.z=1"),
                record("SCHILY.xattr.user.a=2"),
            ];
            add("pax", Kind::XHeader, 0o644, "", records.concat().as_bytes());
        }
        add(&format!("./d/{number:03}"), Kind::Regular, 0o640, "", &content(number));
    }
    add("./hard", Kind::Link, 0o640, "./d/003", &[]);
    add("./soft", Kind::Symlink, 0o777, "d/004", &[]);
    add("./char", Kind::Char, 0o600, "", &[]);
    add("./fifo", Kind::Fifo, 0o600, "", &[]);
    add("./empty", Kind::Regular, 0o644, "", &[]);
    let mut holes = vec![0; 300 * KIB];
    holes[..2000].fill(1);
    holes[299 * KIB..].fill(2);
    add("./holes", Kind::Regular, 0o644, "", &holes);
    let mut bytes = tar.into_inner().unwrap();
    if landmark.is_none() {
        bytes.resize(bytes.len() + 10_240, 0);
    }
    bytes
}

/// An image with one layer.
pub(crate) struct Image {
    pub(crate) reference: String,
    /// Of the layer.
    pub(crate) layer: String,
    pub(crate) size: u64,
    /// Bytes of the config.
    pub(crate) config: u64,
}

/// How a layer is indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Index {
    /// A chunk for each content.
    Estargz,
    /// Small chunks, and the footer of stargz.
    EstargzLegacy,
    /// Contents share gzip members, and the archive keeps its end mark in front of the table of contents.
    EstargzShared,
    ChunkedStorage,
    ChunkedStargz,
    /// Named by the manifest.
    SociV2,
    /// Refers to the manifest.
    SociV1,
    /// Named by the manifest; the layer is an eStargz and the manifest does not say so.
    SociOfEstargz,
    Pushed,
}

impl Index {
    pub(crate) const ALL: [Self; 9] = [
        Self::Estargz,
        Self::EstargzLegacy,
        Self::EstargzShared,
        Self::ChunkedStorage,
        Self::ChunkedStargz,
        Self::SociV2,
        Self::SociV1,
        Self::SociOfEstargz,
        Self::Pushed,
    ];

    /// As the status names it.
    pub(crate) fn shown(self) -> &'static str {
        match self {
            Self::Estargz | Self::EstargzLegacy | Self::EstargzShared => "eStargz",
            Self::ChunkedStorage | Self::ChunkedStargz => "zstd:chunked",
            Self::SociV2 | Self::SociV1 | Self::SociOfEstargz => "SOCI",
            Self::Pushed => "pushed",
        }
    }

    /// What has to be said for it to be used.
    pub(crate) fn policy(self) -> &'static str {
        if self == Self::SociV1 { "--index=all" } else { "--index=auto" }
    }

    /// Pushes [`archive`] with this index.
    pub(crate) fn push(self, registry: &FaultRegistry) -> Image {
        let marked = Some(".no.prefetch.landmark");
        let estargz = |chunk, member, footer, landmark| {
            Estargz { chunk, member, footer, ..Estargz::default() }.make(&archive(landmark))
        };
        let plain = || Made { bytes: crate::encode::gzip(&archive(None)), annotations: Annotations::new() };
        match self {
            Self::Estargz => push(registry, &estargz(4 << 20, 0, Footer::Current, marked), None),
            Self::EstargzLegacy => push(registry, &estargz(30_000, 0, Footer::Legacy, marked), None),
            Self::EstargzShared => push(registry, &estargz(4 << 20, 500_000, Footer::Current, None), None),
            Self::ChunkedStorage => {
                push(registry, &chunked::zstd_chunked(&archive(None), Writer::Storage, 30_000), None)
            }
            Self::ChunkedStargz => {
                let tar = archive(Some(".no.prefetch.landmark"));
                push(registry, &chunked::zstd_chunked(&tar, Writer::Stargz, 4 << 20), None)
            }
            Self::SociV2 => push_soci(registry, &plain(), &ztoc(&plain())),
            Self::SociOfEstargz => {
                let made = estargz(4 << 20, 0, Footer::Current, marked);
                push_soci(registry, &Made { annotations: Annotations::new(), ..made.clone() }, &ztoc(&made))
            }
            Self::SociV1 => {
                let made = plain();
                let image = push(registry, &made, None);
                push_soci_v1(registry, &image, &made, &ztoc(&made));
                image
            }
            Self::Pushed => {
                let made = plain();
                let image = push(registry, &made, None);
                push_index(registry, &image, &own_index(&made.bytes).to_bytes().unwrap());
                image
            }
        }
    }
}

/// Pushes an image of one layer; `soci` is the digest of its index.
pub(crate) fn push(registry: &FaultRegistry, made: &Made, soci: Option<&str>) -> Image {
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": []}});
    let config = config.to_string();
    registry.push_blob(config.as_bytes());
    registry.push_blob(made.bytes.clone());
    let mut annotations = BTreeMap::new();
    if let Some(digest) = soci {
        annotations.insert("com.amazon.soci.index-digest", digest);
    }
    let label = if made.bytes.starts_with(&[0x1f, 0x8b]) { GZIP } else { ZSTD };
    let layer = digest_of(&made.bytes);
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "annotations": annotations,
        "config": {"mediaType": CONFIG, "digest": digest_of(config.as_bytes()), "size": config.len()},
        "layers": [{"mediaType": label, "digest": layer, "size": made.bytes.len(),
            "annotations": made.annotations}]});
    let digest = registry.push_manifest(REPO, "v1", MANIFEST, manifest.to_string().as_bytes());
    let reference = format!("{}/{REPO}@{digest}", registry.host());
    Image { reference, layer, size: made.bytes.len() as u64, config: config.len() as u64 }
}

/// The zTOC of a gzip layer.
pub(crate) fn ztoc(made: &Made) -> Ztoc {
    Ztoc::of_gzip(&made.bytes, 500_000, Members::All)
}

/// Pushes a SOCI index of one zTOC for the layer `made`; its digest.
fn push_soci_index(
    registry: &FaultRegistry,
    made: &Made,
    ztoc: &Ztoc,
    version: u32,
    subject: Value,
) -> String {
    let ztoc = ztoc.write();
    registry.push_blob(ztoc.clone());
    registry.push_blob(*b"{}");
    let kind = format!("application/vnd.amazon.soci.index.v{version}+json");
    let mut index = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind,
        "config": {"mediaType": kind, "digest": digest_of(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/octet-stream", "digest": digest_of(&ztoc), "size": ztoc.len(),
            "annotations": {"com.amazon.soci.image-layer-digest": digest_of(&made.bytes),
                "com.amazon.soci.image-layer-mediaType": GZIP}}]});
    if !subject.is_null() {
        index["subject"] = subject;
    }
    registry.push_manifest(REPO, "soci", MANIFEST, index.to_string().as_bytes()).to_string()
}

/// Pushes an image with a SOCI index of version 2.
pub(crate) fn push_soci(registry: &FaultRegistry, made: &Made, ztoc: &Ztoc) -> Image {
    let index = push_soci_index(registry, made, ztoc, 2, Value::Null);
    push(registry, made, Some(&index))
}

fn subject(image: &Image) -> Value {
    json!({"mediaType": MANIFEST, "digest": image.reference.split('@').nth(1).unwrap(), "size": 1})
}

/// Pushes a SOCI index of version 1 beside an image.
pub(crate) fn push_soci_v1(registry: &FaultRegistry, image: &Image, made: &Made, ztoc: &Ztoc) {
    registry.set(Fault::ReferrersApi { page: 100 });
    push_soci_index(registry, made, ztoc, 1, subject(image));
}

/// What a pass over the layer gives.
pub(crate) fn own_index(stored: &[u8]) -> LayerIndex {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let blob = std::sync::Arc::new(ocifs::io::MemoryReader::new(stored.to_vec()));
    runtime.block_on(ocifs::layer::build_index(blob)).unwrap()
}

/// Pushes the index of the only layer beside an image, as `ocifs index push` would.
pub(crate) fn push_index(registry: &FaultRegistry, image: &Image, bytes: &[u8]) {
    registry.set(Fault::ReferrersApi { page: 100 });
    let descriptor = |digest: &str, size: u64, kind: &str| Descriptor {
        digest: digest.parse().unwrap(),
        size,
        ..Descriptor::of(kind, b"")
    };
    let layer = descriptor(&image.layer, image.size, GZIP);
    let subject = descriptor(image.reference.split('@').nth(1).unwrap(), 1, MANIFEST);
    let publication = published::publish_indexes(&subject, vec![(layer, bytes.to_vec())]).unwrap();
    for (_, bytes) in publication.blobs {
        registry.push_blob(bytes);
    }
    registry.push_manifest(REPO, "index", MANIFEST, &publication.manifest.bytes);
}

/// The same eStargz layer with `junk` at the end of its archive and another table of contents, and the digest of that one in its
/// annotation.
pub(crate) fn relabelled(made: &Made, junk: &[u8], change: impl FnOnce(&mut Vec<Value>)) -> Made {
    let footer = &made.bytes[made.bytes.len() - 51..];
    let at = u64::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap() as usize;
    let mut archive = Vec::new();
    flate2::read::GzDecoder::new(&made.bytes[at..]).read_to_end(&mut archive).unwrap();
    let mut json = Vec::new();
    tar::Archive::new(&archive[..])
        .entries()
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .read_to_end(&mut json)
        .unwrap();
    let mut toc: Value = serde_json::from_slice(&json).unwrap();
    change(toc["entries"].as_array_mut().unwrap());
    let mut content = made.bytes[..at].to_vec();
    if !junk.is_empty() {
        content.extend(chunked::gzip(junk));
    }
    chunked::estargz_with(content, &serde_json::to_vec(&toc).unwrap(), Footer::Current)
}

/// The entry with this name.
pub(crate) fn named<'a>(entries: &'a mut [Value], name: &str) -> &'a mut Value {
    entries.iter_mut().find(|entry| entry["name"] == name).unwrap()
}

/// Everything that `find` tells of `merged/`, with inode numbers.
pub(crate) fn listing(mount: &Mount) -> String {
    let script = "cd $1/merged; find . -mindepth 1 -printf '%P %i %y %m %U:%G %s %Ts %l\\n' | sort";
    sh(script, &[&mount.dir()]).text()
}

/// By what the only layer is read.
pub(crate) fn index_of(mount: &Mount) -> String {
    let status: Value = serde_json::from_str(&mount.status()).unwrap();
    status["layers"][0]["index"].as_str().unwrap_or_default().to_owned()
}

/// The warnings of the status.
pub(crate) fn warnings(mount: &Mount) -> Vec<String> {
    let status: Value = serde_json::from_str(&mount.status()).unwrap();
    serde_json::from_value(status["warnings"].clone()).unwrap()
}

/// Reads the stored layer to its end.
pub(crate) fn complete(mount: &Mount, image: &Image) {
    let path = blob_path(mount.dir(), &image.layer);
    assert_eq!(digest_of(&std::fs::read(path).unwrap()), image.layer);
}

/// Waits until the index was compared with the layer and found true.
#[track_caller]
pub(crate) fn confirmed(mount: &Mount) {
    let path = mount.join("merged/d/000");
    let done = becomes_true(CONDITION_TIMEOUT, || {
        xattr::get(&path, "user.ocifs.verified").unwrap().as_deref() == Some(b"full".as_slice())
    });
    assert!(done, "{}", mount.status());
}

/// Waits until the index was found to contradict the layer.
#[track_caller]
pub(crate) fn refuted(mount: &Mount) {
    let contradicts = |warning: &String| warning.contains("contradicts the layer");
    let done = becomes_true(CONDITION_TIMEOUT, || warnings(mount).iter().any(contradicts));
    assert!(done, "{}", mount.status());
}

/// Reads every file.
#[track_caller]
pub(crate) fn read_everything(mount: &Mount) {
    for number in 0..FILES {
        let read = std::fs::read(mount.join(format!("merged/d/{number:03}"))).unwrap();
        assert!(read == content(number), "{number}");
    }
    assert!(std::fs::read(mount.join("merged/hard")).unwrap() == content(3));
    let holes = std::fs::read(mount.join("merged/holes")).unwrap();
    assert_eq!((holes.len(), holes[1999], holes[2000], holes[299 * KIB]), (300 * KIB, 1, 0, 2));
}

/// The errno of reading 4 KiB of a file.
pub(crate) fn errno_of(path: &Path) -> Option<i32> {
    let file = std::fs::File::open(path);
    file.and_then(|file| file.read_exact_at(&mut [0; 4096], 0)).err().and_then(|error| error.raw_os_error())
}

/// What a user sees who believes no index of others.
pub(crate) fn truth(image: &Image) -> String {
    let site = Site::new();
    listing(&site.mount(&image.reference, &["--index=local"]))
}
