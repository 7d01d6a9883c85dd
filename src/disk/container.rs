//! Disks in container images: what KubeVirt calls a containerDisk, a file in `/disk` of an image that runs nothing.
//!
//! Never reads more than the start of the archive, so never promises what comes behind: whoever has the whole tree can see
//! whether there is a second file. The idea: the manifest and the config tell which images are worth a look, the first bytes
//! of their only layer tell what is in there. The facts are those of KubeVirt's importer: exactly one regular file
//! directly below `disk/`, of any name.

use serde::Deserialize;
use serde_json::Value;

use crate::layer::{EntryKind, Need, TarLimits, TarWalker};
use crate::oci::{Class, MAX_DOCUMENT, Manifest, classify_manifest};

use super::name::Names;
use super::{Body, Detection, DiskPlan, Format, compressed};

/// The directory of the disk, as importers look for it.
const DIRECTORY: &[u8] = b"disk/";

/// What an archive that starts with a directory and a file may have in its first bytes.
const LIMITS: TarLimits =
    TarLimits { entries: 256, path: 4096, component: 255, pax: 64 << 10, metadata: 1 << 20 };

/// The least stored bytes of a layer that is worth a look: nothing that boots is smaller.
const LEAST: u64 = 64 * 1024;

/// Stored bytes of the layers that builders add for instructions which change no file: an archive of nothing, compressed
/// or not.
const NOTHING: u64 = 64;
const NOTHING_STORED: u64 = 1024;

/// The file that is the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path in the merged tree: `disk/` and one component.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// What its first bytes say it is, as far as they are in the head.
    pub format: Option<Format>,
}

impl Member {
    /// The disk that it is, or why there is none.
    pub fn detection(&self) -> Detection {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let mut found = Detection::default();
        if let Some((compression, _)) = compressed::by_title(name) {
            let reason = format!(
                "the disk is a {} file inside the image: it is in merged/{}",
                compression.name, self.path
            );
            found.report(name, reason);
            return found;
        }
        if self.size > i64::MAX as u64 {
            found.report(name, "it has more than 2^63 - 1 bytes");
            return found;
        }
        // Such files are called anything; what they are decides whether they have a raw form.
        let seen = self.format.clone();
        let claimed = Format::by_extension(name).or(seen.clone()).unwrap_or(Format::Raw);
        let (name, warning) = Names::default().name(name, &claimed);
        let label = seen.unwrap_or(claimed);
        found.warnings.extend(warning);
        let body = Body::Member { path: self.path.clone() };
        found.disks.push(DiskPlan { name, label, body, size: Some(self.size) });
        found
    }
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    config: Option<Execution>,
}

#[derive(Deserialize)]
struct Execution {
    #[serde(default, rename = "Entrypoint")]
    entrypoint: Value,
    #[serde(default, rename = "Cmd")]
    cmd: Value,
    #[serde(default, rename = "Labels")]
    labels: Value,
}

impl Execution {
    fn runs(&self) -> bool {
        let says = |value: &Value| match value {
            Value::Null => false,
            Value::Array(words) => !words.is_empty(),
            Value::String(word) => !word.is_empty(),
            _ => true,
        };
        says(&self.entrypoint) || says(&self.cmd)
    }

    /// A system that boots from its tree: importers refuse it.
    fn is_bootable(&self) -> bool {
        ["containers.bootc", "ostree.bootable"].iter().any(|label| self.labels.get(*label).is_some())
    }
}

/// Whether an image may be a containerDisk, so that the first bytes of its layer are worth fetching: a container image of one
/// archive that names nothing to run. `config` are the bytes of its config.
pub fn may_be_container_disk(manifest: &Manifest, config: Option<&[u8]>) -> bool {
    if container_disk_layer(manifest).is_none() {
        return false;
    }
    let Some(config) = config.filter(|config| config.len() as u64 <= MAX_DOCUMENT) else { return false };
    match serde_json::from_slice::<Config>(config) {
        Ok(config) => config.config.is_none_or(|config| !config.runs() && !config.is_bootable()),
        Err(_) => false,
    }
}

/// The number of the only layer of a container image that holds anything.
pub fn container_disk_layer(manifest: &Manifest) -> Option<usize> {
    if classify_manifest(manifest) != Class::ContainerImage {
        return None;
    }
    let layers = manifest.layers.iter().enumerate();
    let mut layers = layers.filter(|(_, layer)| {
        let nothing = if layer.media_type.claims_uncompressed_tar() { NOTHING_STORED } else { NOTHING };
        layer.size > nothing && !layer.media_type.is_empty_descriptor()
    });
    let (index, layer) = layers.next()?;
    (layers.next().is_none() && layer.media_type.claims_tar() && layer.size >= LEAST).then_some(index)
}

/// Whether an archive whose first bytes are `head` starts as a containerDisk does: the directories above the disk, if they
/// are there, and one regular file directly below `disk/`. `None` as well when `head` ends before that is clear.
pub fn container_disk(head: &[u8]) -> Option<Member> {
    // In whole blocks, so that the walker is between two of them at the end.
    let head = head.get(..head.len() - head.len() % 512)?;
    let mut walker = TarWalker::new(LIMITS);
    walker.feed(0, head).ok()?;
    let end = match walker.need() {
        Need::Bytes(range) => range.start,
        Need::Done => head.len() as u64,
    };
    let toc = walker.finish(end).ok()?;
    let mut disk = None;
    for entry in toc.iter() {
        let path = plain_path(entry.path);
        match &entry.kind {
            EntryKind::Directory if path.is_empty() || path == b"disk" => {}
            EntryKind::File(content) if disk.is_none() => {
                let name = path.strip_prefix(DIRECTORY)?;
                if name.is_empty() || name.contains(&b'/') || name.starts_with(b".wh.") {
                    return None;
                }
                let path = String::from_utf8(path.to_vec()).ok()?;
                let head = usize::try_from(content.offset).ok().and_then(|start| head.get(start..));
                let format = head.map(|head| Format::sniff(head, content.size));
                let format = format.filter(|format| !matches!(format, Format::Raw | Format::Foreign(_)));
                disk = Some(Member { path, size: content.size, format });
            }
            _ => return None,
        }
    }
    disk
}

/// A path without what may stand around it: `./disk/` is `disk`.
fn plain_path(path: &[u8]) -> &[u8] {
    let mut path = path.strip_suffix(b"/").unwrap_or(path);
    while let Some(rest) = path.strip_prefix(b"./").or_else(|| path.strip_prefix(b"/")) {
        path = rest;
    }
    if path == b"." { b"" } else { path }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::{layer, manifest};
    use super::*;

    const TAR: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    /// A header as GNU tar writes it, and the content with its padding.
    fn entry(path: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut block = vec![0; 512];
        block[..path.len()].copy_from_slice(path.as_bytes());
        block[100..108].copy_from_slice(b"0000555\0");
        block[108..116].copy_from_slice(b"0000153\0");
        block[116..124].copy_from_slice(b"0000153\0");
        block[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        block[136..148].copy_from_slice(b"00000000000\0");
        block[148..156].copy_from_slice(b"        ");
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block.extend(content);
        block.resize(block.len().next_multiple_of(512), 0);
        block
    }

    fn end(mut archive: Vec<u8>) -> Vec<u8> {
        archive.resize(archive.len() + 1024, 0);
        archive
    }

    fn found(parts: &[Vec<u8>]) -> Option<(String, u64)> {
        container_disk(&parts.concat()).map(|member| (member.path, member.size))
    }

    #[test]
    fn a_disk_is_found_however_the_archive_begins() {
        let content = vec![7; 1300];
        for (directories, path) in
            [(&[][..], "disk/a.img"), (&["disk/"], "disk/a.img"), (&["./", "./disk/"], "./disk/a.img")]
        {
            let mut parts: Vec<_> = directories.iter().map(|path| entry(path, b'5', b"")).collect();
            parts.push(entry(path, b'0', &content));
            assert_eq!(found(&parts), Some(("disk/a.img".into(), 1300)), "{path}");
            assert_eq!(found(&[end(parts.concat())]), Some(("disk/a.img".into(), 1300)), "with its end");
        }
        let record = b"30 mtime=1700000000.123456789\n";
        let pax = entry("PaxHeaders/a", b'x', record);
        assert_eq!(record.len(), 30);
        let parts = [entry("disk/", b'5', b""), pax, entry("disk/no extension", b'0', &content)];
        assert_eq!(found(&parts), Some(("disk/no extension".into(), 1300)));
    }

    #[test]
    fn a_disk_is_what_its_first_bytes_say_whatever_it_is_called() {
        let disk = |name: &str, content: &[u8]| {
            let member = container_disk(&entry(name, b'0', content)).unwrap();
            let plan = member.detection().disks.remove(0);
            (plan.name, plan.label)
        };
        let mut qcow2 = vec![0; 1024];
        qcow2[..4].copy_from_slice(b"QFI\xfb");
        assert_eq!(disk("disk/cirros.img", &qcow2), ("cirros.img".into(), Format::Qcow2));
        assert_eq!(disk("disk/downloaded", &qcow2), ("downloaded.qcow2".into(), Format::Qcow2));
        assert_eq!(disk("disk/a.qcow2", &[0; 1024]), ("a.qcow2".into(), Format::Qcow2));
        assert_eq!(disk("disk/a.img", &[0; 1024]), ("a.img".into(), Format::Raw));
    }

    #[test]
    fn a_disk_longer_than_the_head_is_found() {
        let whole = [entry("disk/", b'5', b""), entry("disk/a.img", b'0', &vec![1; 200_000])].concat();
        for cut in [1024, 1025, 65536, whole.len()] {
            let member = container_disk(&whole[..cut]).unwrap();
            assert_eq!(member.size, 200_000, "{cut}");
        }
        assert_eq!(container_disk(&whole[..1000]), None, "its header is cut");
        assert_eq!(container_disk(b""), None);
    }

    #[test]
    fn other_archives_are_no_container_disks() {
        let file = |path| entry(path, b'0', b"x");
        for parts in [
            vec![file("etc/passwd")],
            vec![file("disk/a.img"), file("disk/b.img")],
            vec![file("disk/a.img"), file("etc/passwd")],
            vec![file("disk/sub/a.img")],
            vec![file("disk/.wh.a.img")],
            vec![file("disk")],
            vec![file("diskette/a.img")],
            vec![file("../disk/a.img")],
            vec![entry("disk/a.img", b'2', b"")],
            vec![entry("etc/", b'5', b""), file("disk/a.img")],
            vec![entry("disk/", b'5', b"")],
            vec![vec![b'x'; 2048]],
        ] {
            assert_eq!(found(&parts), None);
        }
    }

    fn image(layers: &[(&str, u64)]) -> Manifest {
        let mut image = manifest("", []);
        image.config = Some(layer("application/vnd.oci.image.config.v1+json", None, 2, "{}"));
        for (number, (kind, size)) in layers.iter().enumerate() {
            image.layers.push(layer(kind, None, *size, &number.to_string()));
        }
        image
    }

    #[test]
    fn an_image_of_one_archive_that_runs_nothing_may_be_one() {
        let one = image(&[(TAR, 500_000)]);
        let may = |config: &str| may_be_container_disk(&one, Some(config.as_bytes()));
        for config in [
            "{}",
            r#"{"config":null}"#,
            r#"{"architecture":"amd64","config":{"Env":["PATH=/bin"],"Cmd":null,"Entrypoint":[]}}"#,
            r#"{"config":{"Labels":{"instancetype.kubevirt.io/default":"u1.medium"}}}"#,
        ] {
            assert!(may(config), "{config}");
        }
        for config in [
            r#"{"config":{"Cmd":["/bin/sh"]}}"#,
            r#"{"config":{"Entrypoint":"/init"}}"#,
            r#"{"config":{"Labels":{"containers.bootc":"1"}}}"#,
            "",
            "[",
        ] {
            assert!(!may(config), "{config}");
        }
        assert!(!may_be_container_disk(&one, None), "without its config nobody knows");
        assert!(!may(&format!("{{}}{}", " ".repeat(MAX_DOCUMENT as usize))));
    }

    #[test]
    fn layers_of_nothing_do_not_count() {
        assert_eq!(container_disk_layer(&image(&[(TAR, 32), (TAR, 500_000), (TAR, 64)])), Some(1));
        let stored = "application/vnd.oci.image.layer.v1.tar";
        assert_eq!(container_disk_layer(&image(&[(stored, 1024), (stored, 65_536)])), Some(1));
        assert_eq!(container_disk_layer(&image(&[(TAR, 500_000), (TAR, 500_000)])), None);
        assert_eq!(container_disk_layer(&image(&[("application/octet-stream", 500_000)])), None);
        let mut artifact = image(&[(TAR, 500_000)]);
        artifact.artifact_type = Some("application/vnd.cocoonstack.os-image.v1+json".into());
        assert_eq!(container_disk_layer(&artifact), None);
    }

    #[test]
    fn a_member_is_a_disk_of_its_name() {
        let of = |path: &str, size| Member { path: path.into(), size, format: None }.detection();
        let found = of("disk/coreos.img", 9);
        assert_eq!((found.disks[0].name.as_str(), found.disks[0].size), ("coreos.img", Some(9)));
        assert_eq!(found.disks[0].body, Body::Member { path: "disk/coreos.img".into() });
        assert_eq!(of("disk/fedora", 9).disks[0].name, "fedora.raw");
        assert_eq!(of("disk/a.qcow2", 9).disks[0].label, Format::Qcow2);
        assert!(of("disk/a.img.gz", 9).problems[0].reason.contains("merged/disk/a.img.gz"));
        assert!(of("disk/a.img", u64::MAX).disks.is_empty());
        assert_eq!(of("disk/.hidden", 9).warnings.len(), 1);
    }

    proptest! {
        #[test]
        fn arbitrary_archives_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..2048),
            at in 0usize..512,
            value in any::<u8>(),
            cut in 0usize..4096,
        ) {
            container_disk(&bytes);
            let mut whole = [entry("disk/", b'5', b""), entry("disk/a.img", b'0', &bytes)].concat();
            whole[512 + at] = value;
            whole.truncate(cut);
            container_disk(&whole);
        }

        #[test]
        fn arbitrary_configs_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            may_be_container_disk(&image(&[(TAR, 500_000)]), Some(&bytes));
        }
    }
}
