//! KubeVirt containerDisks: container images whose files in `/disk` are disks.
//!
//! Reads only the start of an archive; the merged tree alone lists all disks. One layer of such an image is nearly
//! all of it, and its first bytes show the first disk. The rules are those of KubeVirt's importer, which reads
//! neither `Entrypoint` nor `Cmd`: builders write anything there, such as `no-entrypoint`.

use serde::Deserialize;
use serde_json::Value;

use crate::layer::{TarLimits, TocEntryKind, entries_of_head};
use crate::oci::go_json::document;
use crate::oci::{ArtifactKind, MAX_DOCUMENT, Manifest, classify_manifest};

use super::name::UniqueNames;
use super::{DiskBody, DiskDetection, DiskFormat, DiskPlan, compressed};

/// The directory of the disk, as importers look for it.
const DIRECTORY: &[u8] = b"disk/";

/// Limits for the first bytes of an archive that starts with a directory and a file.
const LIMITS: TarLimits =
    TarLimits { entries: 256, path: 4096, component: 255, pax: 64 << 10, metadata: 1 << 20 };

/// Minimum stored bytes of a layer that is inspected: nothing that boots is smaller.
const MIN_DISK_LAYER_BYTES: u64 = 64 * 1024;

/// Minimum ratio of the disk's layer to all other layers together.
const DOMINANCE: u64 = 8;

/// Minimum bytes of a disk: a sector.
const SECTOR: u64 = 512;

/// Maximum disks of one image. KubeVirt boots the only one; each costs a read of its first bytes.
const MAX_MEMBERS: usize = 256;

/// A file that is a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskMember {
    /// Its path in the merged tree: `disk/` and one component.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// The format by its first bytes; `None` when they are missing or show no disk format.
    pub format: Option<DiskFormat>,
}

/// The files that may be disks, in their order, up to a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskMembers<T> {
    /// The files, at most 256.
    pub shown: Vec<T>,
    /// Number of files beyond the limit.
    pub omitted: usize,
}

impl<T> FromIterator<T> for DiskMembers<T> {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        let mut members = members.into_iter();
        let shown = members.by_ref().take(MAX_MEMBERS).collect();
        Self { shown, omitted: members.count() }
    }
}

/// The disks of these files, or why there are none.
pub fn member_disks(members: &DiskMembers<DiskMember>) -> DiskDetection {
    let (mut found, mut names) = (DiskDetection::default(), UniqueNames::default());
    for member in &members.shown {
        member.add_to(&mut found, &mut names);
    }
    if members.omitted > 0 {
        let reason = format!("{} more files than the limit of {MAX_MEMBERS} are in merged/", members.omitted);
        found.report("disk/", reason);
    }
    found
}

impl DiskMember {
    fn add_to(&self, found: &mut DiskDetection, names: &mut UniqueNames) {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        if let Some((compression, _)) = compressed::by_title(name) {
            let reason = format!(
                "the disk is a {} file inside the image: it is in merged/{}",
                compression.name, self.path
            );
            return found.report(name, reason);
        }
        if self.size > i64::MAX as u64 {
            return found.report(name, "it has more than 2^63 - 1 bytes");
        }
        // The content decides whether there is a raw form.
        let seen = self.format.clone();
        let claimed = DiskFormat::by_extension(name).or(seen.clone()).unwrap_or(DiskFormat::Raw);
        let (name, warning) = names.name(name, &claimed);
        let label = seen.unwrap_or(claimed);
        found.warnings.extend(warning);
        let body = DiskBody::Member { path: self.path.clone() };
        found.disks.push(DiskPlan { name, label, body, size: Some(self.size) });
    }

    /// A file of the merged tree with its first bytes, as far as they are known.
    pub fn new(path: String, size: u64, head: &[u8]) -> Self {
        let format = Some(DiskFormat::sniff(head, size));
        let format = format.filter(|format| !matches!(format, DiskFormat::Raw | DiskFormat::Foreign(_)));
        Self { path, size, format }
    }
}

/// Whether a file below `disk/` is a disk: one component that is no whiteout, and at least a sector.
pub fn is_member(name: &[u8], size: u64) -> bool {
    !name.is_empty() && !name.contains(&b'/') && !name.starts_with(b".wh.") && size >= SECTOR
}

#[derive(Deserialize)]
struct ContainerDiskConfig {
    #[serde(default)]
    config: Option<ExecutionConfig>,
}

#[derive(Deserialize)]
struct ExecutionConfig {
    #[serde(default, rename = "Labels")]
    labels: Value,
}

impl ExecutionConfig {
    /// A system that boots from its tree; importers refuse it.
    fn is_bootable(&self) -> bool {
        ["containers.bootc", "ostree.bootable"].iter().any(|label| self.labels.get(*label).is_some())
    }
}

/// Whether an image may be a containerDisk, so that the first bytes of its layer are worth fetching. One archive must
/// be nearly all of it, and it must not be a bootable tree. `config` are the bytes of its config.
pub fn may_be_container_disk(manifest: &Manifest, config: Option<&[u8]>) -> bool {
    if container_disk_layer(manifest).is_none() {
        return false;
    }
    let Some(config) = config.filter(|config| config.len() as u64 <= MAX_DOCUMENT) else { return false };
    match document::<ContainerDiskConfig>(config) {
        Ok(config) => config.config.is_none_or(|config| !config.is_bootable()),
        Err(_) => false,
    }
}

/// The index of the layer of a container image that is far larger than all others.
pub fn container_disk_layer(manifest: &Manifest) -> Option<usize> {
    if classify_manifest(manifest) != ArtifactKind::ContainerImage {
        return None;
    }
    let layers = manifest.layers.iter().enumerate();
    let layers = layers.filter(|(_, layer)| !layer.media_type.is_empty_descriptor());
    let all = layers.clone().fold(0u64, |all, (_, layer)| all.saturating_add(layer.size));
    let (index, layer) = layers.max_by_key(|(_, layer)| layer.size)?;
    let dominates = (all - layer.size).saturating_mul(DOMINANCE) <= layer.size;
    (dominates && layer.media_type.claims_tar() && layer.size >= MIN_DISK_LAYER_BYTES).then_some(index)
}

/// The disks directly below `disk/` in an archive whose first bytes are `head`. Other entries are ignored.
pub fn container_disks(head: &[u8]) -> DiskMembers<DiskMember> {
    disks_in(head).unwrap_or_default().into_iter().collect()
}

fn disks_in(head: &[u8]) -> Option<Vec<DiskMember>> {
    let toc = entries_of_head(head, LIMITS)?;
    let mut disks: Vec<DiskMember> = Vec::new();
    for entry in toc.iter() {
        let TocEntryKind::File(content) = &entry.kind else { continue };
        let path = plain_path(entry.path);
        let Some(name) = path.strip_prefix(DIRECTORY) else { continue };
        if !is_member(name, content.size) {
            continue;
        }
        let Ok(path) = String::from_utf8(path.to_vec()) else { continue };
        let head = usize::try_from(content.offset).ok().and_then(|start| head.get(start..));
        // A later entry of the same path replaces the earlier one.
        disks.retain(|disk| disk.path != path);
        disks.push(DiskMember::new(path, content.size, head.unwrap_or_default()));
    }
    Some(disks)
}

/// A path without redundant parts: `./disk/` is `disk`.
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

    fn all(head: &[u8]) -> Vec<(String, u64)> {
        container_disks(head).shown.into_iter().map(|member| (member.path, member.size)).collect()
    }

    /// The only disk.
    fn found(parts: &[Vec<u8>]) -> Option<(String, u64)> {
        let mut disks = all(&parts.concat());
        assert!(disks.len() < 2, "{disks:?}");
        disks.pop()
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
    fn container_disk_format_comes_from_its_first_bytes() {
        let disk = |name: &str, content: &[u8]| {
            let plan = member_disks(&container_disks(&entry(name, b'0', content))).disks.remove(0);
            (plan.name, plan.label)
        };
        let mut qcow2 = vec![0; 1024];
        qcow2[..4].copy_from_slice(b"QFI\xfb");
        assert_eq!(disk("disk/cirros.img", &qcow2), ("cirros.img".into(), DiskFormat::Qcow2));
        assert_eq!(disk("disk/downloaded", &qcow2), ("downloaded.qcow2".into(), DiskFormat::Qcow2));
        assert_eq!(disk("disk/a.qcow2", &[0; 1024]), ("a.qcow2".into(), DiskFormat::Qcow2));
        assert_eq!(disk("disk/a.img", &[0; 1024]), ("a.img".into(), DiskFormat::Unlabelled));
    }

    #[test]
    fn a_disk_longer_than_the_head_is_found() {
        let whole = [entry("disk/", b'5', b""), entry("disk/a.img", b'0', &vec![1; 200_000])].concat();
        for cut in [1024, 1025, 65536, whole.len()] {
            assert_eq!(all(&whole[..cut]), [("disk/a.img".into(), 200_000)], "{cut}");
        }
        assert_eq!(all(&whole[..1000]), [], "its header is cut");
        assert_eq!(all(b""), []);
    }

    #[test]
    fn container_disk_beside_other_files_is_found_and_two_are_two() {
        let (disk, small) = (vec![7; 1300], entry("etc/passwd", b'0', b"x"));
        let (a, b) = (entry("disk/a.img", b'0', &disk), entry("disk/b.qcow2", b'0', &disk));
        let a_alone = [("disk/a.img".to_owned(), 1300)];
        for parts in [
            vec![entry(".no.prefetch.landmark", b'0', b"\x0f"), a.clone()],
            vec![entry("etc/", b'5', b""), small.clone(), entry("disk/", b'5', b""), a.clone()],
            vec![a.clone(), small, entry("disk/sums.txt", b'0', b"x")],
        ] {
            assert_eq!(all(&parts.concat()), a_alone);
        }
        let both = member_disks(&container_disks(&[a, b].concat()));
        let names: Vec<&str> = both.disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["a.img", "b.qcow2"]);
    }

    #[test]
    fn other_archives_are_no_container_disks() {
        let file = |path| entry(path, b'0', &[1; 600]);
        for parts in [
            vec![file("etc/passwd")],
            vec![file("disk/sub/a.img")],
            vec![file("disk/.wh.a.img")],
            vec![file("disk")],
            vec![file("diskette/a.img")],
            vec![file("../disk/a.img")],
            vec![entry("disk/a.img", b'2', b"")],
            vec![entry("disk/a.img", b'0', b"less than a sector")],
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
    fn an_image_of_one_archive_may_be_one_whatever_it_runs() {
        let one = image(&[(TAR, 500_000)]);
        let may = |config: &str| may_be_container_disk(&one, Some(config.as_bytes()));
        for config in [
            "{}",
            r#"{"config":null}"#,
            r#"{"architecture":"amd64","config":{"Env":["PATH=/bin"],"Cmd":null,"Entrypoint":[]}}"#,
            r#"{"config":{"Labels":{"instancetype.kubevirt.io/default":"u1.medium"}}}"#,
            r#"{"config":{"Entrypoint":["no-entrypoint"]}}"#,
            r#"{"config":{"Entrypoint":"/init","Cmd":["/bin/sh"]}}"#,
        ] {
            assert!(may(config), "{config}");
        }
        for config in [r#"{"config":{"Labels":{"containers.bootc":"1"}}}"#, "", "["] {
            assert!(!may(config), "{config}");
        }
        assert!(!may_be_container_disk(&one, None), "without its config nobody knows");
        assert!(!may(&format!("{{}}{}", " ".repeat(MAX_DOCUMENT as usize))));
    }

    #[test]
    fn small_layers_do_not_hide_a_disk() {
        assert_eq!(container_disk_layer(&image(&[(TAR, 32), (TAR, 500_000), (TAR, 4_000)])), Some(1));
        assert_eq!(container_disk_layer(&image(&[(TAR, 500_000), ("text/plain", 62_000)])), Some(0));
        assert_eq!(container_disk_layer(&image(&[(TAR, 500_000), (TAR, 63_000)])), None);
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
        let of = |path: &str, size| {
            let member = DiskMember { path: path.into(), size, format: None };
            member_disks(&[member].into_iter().collect())
        };
        let found = of("disk/coreos.img", 9);
        assert_eq!((found.disks[0].name.as_str(), found.disks[0].size), ("coreos.img", Some(9)));
        assert_eq!(found.disks[0].body, DiskBody::Member { path: "disk/coreos.img".into() });
        assert_eq!(of("disk/fedora", 9).disks[0].name, "fedora.raw");
        assert_eq!(of("disk/a.qcow2", 9).disks[0].label, DiskFormat::Qcow2);
        assert!(of("disk/a.img.gz", 9).problems[0].reason.contains("merged/disk/a.img.gz"));
        assert!(of("disk/a.img", u64::MAX).disks.is_empty());
        assert_eq!(of("disk/.hidden", 9).warnings.len(), 1);
    }

    #[test]
    fn members_beyond_the_limit_are_one_problem() {
        let of = |count: usize| {
            let member = |at| DiskMember { path: format!("disk/.{at}"), size: 512, format: None };
            member_disks(&(0..count).map(member).collect())
        };
        let (full, over) = (of(MAX_MEMBERS), of(MAX_MEMBERS + 1000));
        assert_eq!((full.disks.len(), full.problems.len()), (256, 0));
        assert_eq!(full.disks[255].name, "disk-256.raw");
        assert_eq!((over.disks, over.problems.len()), (full.disks, 1));
        assert!(over.problems[0].to_string().contains("1000 more files than the limit of 256"));
    }

    proptest! {
        #[test]
        fn arbitrary_archives_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..2048),
            at in 0usize..512,
            value in any::<u8>(),
            cut in 0usize..4096,
        ) {
            container_disks(&bytes);
            let mut whole = [entry("disk/", b'5', b""), entry("disk/a.img", b'0', &bytes)].concat();
            whole[512 + at] = value;
            whole.truncate(cut);
            container_disks(&whole);
        }

        #[test]
        fn arbitrary_configs_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            may_be_container_disk(&image(&[(TAR, 500_000)]), Some(&bytes));
        }
    }
}
