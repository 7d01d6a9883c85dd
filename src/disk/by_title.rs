//! Disks in artifacts without a special type: `disk.qcow2` or its pieces, as `oras push` publishes them.
//!
//! Container images, charts, signatures and archives are excluded. Such an artifact has hardly more than titles. So a
//! layer counts only if its title ends in a disk's extension, or if its media type is one of the few that name a
//! format. A suffix of `split` or the extension of a compression may follow the disk's extension.

use std::collections::BTreeMap;

use crate::artifact::UNPACK;
use crate::io::shell_word;
use crate::oci::{Descriptor, Manifest, MediaType, plain_path};

use super::assemble::{DiskCandidate, assemble};
use super::compressed::{self, DiskCompression};
use super::parts::{DiskPart, sequence};
use super::title::{PartEvidence, is_disk_name, read};
use super::{DiskDetection, DiskFormat, DiskPacking, PartOrder};

/// The longest command in a message, so that a user can read it.
const MAX_COMMAND_BYTES: usize = 16 * 1024;

/// Artifact and layer types that are not disks, whatever the title.
const NEVER: [&str; 14] = [
    "application/vnd.cncf.helm.",
    "application/vnd.dev.cosign.",
    "application/vnd.dev.sigstore.",
    "application/vnd.in-toto",
    "application/vnd.dsse.",
    "application/spdx",
    "text/spdx",
    "application/vnd.cyclonedx",
    "application/vnd.oci.empty.",
    "application/vnd.nosi.wsl-",
    "application/vnd.nosi.lxc-",
    "application/vnd.nosi.netboot-",
    "application/vnd.nosi.build-report.",
    "application/vnd.nosi.metadata.",
];

/// Extensions of files beside a disk that are not disks themselves (the list of withcache's choice of a layer).
const SIDECARS: [&str; 9] = [".sha256", ".sha512", ".sig", ".asc", ".pem", ".cert", ".sbom", ".att", ".json"];

/// Media types that name a format, without the suffix of a compression: those of freedesktop.org's shared-mime-info,
/// and those of bootc's disks.
const TYPES: [(&str, DiskFormat); 10] = [
    ("application/x-qemu-disk", DiskFormat::Qcow2),
    ("application/x-qemu-qcow2", DiskFormat::Qcow2),
    ("application/x-qcow2", DiskFormat::Qcow2),
    ("application/x-raw-disk-image", DiskFormat::Raw),
    ("application/x-vmdk-disk", DiskFormat::Vmdk),
    ("application/x-virtualbox-vmdk", DiskFormat::Vmdk),
    ("application/x-vhd-disk", DiskFormat::Vhd),
    ("application/x-virtualbox-vhd", DiskFormat::Vhd),
    ("application/x-vhdx-disk", DiskFormat::Vhdx),
    ("application/x-vdi-disk", DiskFormat::Vdi),
];

/// The disks among the layers.
pub(super) fn detect(manifest: &Manifest, order: PartOrder) -> DiskDetection {
    // The empty config of image-spec 1.1 does not declare a kind.
    let kind = manifest.kind().filter(|kind| !kind.is_empty_descriptor());
    if kind.is_some_and(is_never) {
        return DiskDetection::default();
    }
    let mut candidates = Vec::new();
    let mut absent = AbsentDisks::default();
    for (index, layer) in manifest.layers.iter().enumerate() {
        if is_never(&layer.media_type) || layer.annotations.contains_key(UNPACK) {
            continue;
        }
        let written = layer.title().unwrap_or_default();
        if is_sidecar(written) || absent.takes(index, written) {
            continue;
        }
        let by_title = compressed::by_title(written).filter(|(_, inner)| label(inner, layer).is_some());
        let (title, compression) = match by_title {
            Some((compression, inner)) => (inner, Some(compression)),
            None => (written, compressed::by_type(&layer.media_type)),
        };
        let Some(label) = label(title, layer) else { continue };
        match compression {
            Some(DiskCompression { command: None, name, .. }) => absent.archived.push((written, name)),
            Some(_) => candidates.push(candidate(index, title, label, DiskPacking::Packed)),
            None => candidates.push(candidate(index, title, label, DiskPacking::Stored)),
        }
    }
    drop_words(&mut candidates);
    let mut found = assemble(manifest, &candidates, order);
    absent.report(order, &mut found);
    found
}

fn candidate(index: usize, title: &str, label: DiskFormat, packing: DiskPacking) -> DiskCandidate<'_> {
    DiskCandidate { index, title, label, role: PartEvidence::Unlabelled, packing }
}

fn is_never(media_type: &MediaType) -> bool {
    let essence = media_type.essence();
    NEVER.iter().any(|prefix| essence.starts_with(prefix))
}

fn is_sidecar(title: &str) -> bool {
    let lower = title.to_ascii_lowercase();
    SIDECARS.iter().any(|extension| lower.ends_with(extension))
}

/// The format that title and type claim for the disk. In a title the extension counts. A type is more specific than
/// `.img`, which is used for disks of any format.
fn label(title: &str, layer: &Descriptor) -> Option<DiskFormat> {
    let titled = titled(title);
    let typed = typed(&layer.media_type);
    match (titled, typed) {
        (Some(DiskFormat::Raw | DiskFormat::Unlabelled), Some(typed)) => Some(typed),
        (None, typed) => typed,
        (titled, _) => titled,
    }
}

fn typed(media_type: &MediaType) -> Option<DiskFormat> {
    let essence = media_type.essence();
    let base = essence.split('+').next().unwrap_or_default();
    let known = TYPES.iter().find(|(known, _)| *known == base).map(|(_, format)| format.clone());
    // Media types of models use the words of disk types with another meaning.
    let is_model = ["application/vnd.cncf.model.", "application/vnd.cnai.model."];
    let is_model = is_model.iter().any(|start| essence.starts_with(start));
    known.or_else(|| {
        DiskFormat::by_extension(&format!("x.{}", media_type.disk_format().filter(|_| !is_model)?))
    })
}

/// The format that the title claims. A part marked only by `.part` is more likely a broken download. Also, `.img` may
/// be the initramfs of a kernel.
fn titled(title: &str) -> Option<DiskFormat> {
    let reading = read(title, PartEvidence::Unlabelled);
    if reading.number.is_none() && reading.stem.len() < title.len() {
        return None;
    }
    let file = reading.stem.rsplit('/').next().unwrap_or_default();
    if ["initrd", "initramfs"].iter().any(|start| file.starts_with(start)) {
        return None;
    }
    DiskFormat::by_extension(reading.stem)
}

/// Disks that are not presented because of their packing.
#[derive(Default)]
struct AbsentDisks<'a> {
    /// Archived disks: the title and the kind of archive.
    archived: Vec<(&'a str, &'static str)>,
    /// Disks that were compressed and then split: the compression and the pieces.
    cut: BTreeMap<&'a str, (DiskCompression, Vec<DiskPiece<'a>>)>,
}

/// A piece of a compressed disk.
struct DiskPiece<'a> {
    /// Its index in the manifest.
    index: usize,
    title: &'a str,
    /// The number behind the title, as written.
    number: String,
}

/// The command that joins the files of `pieces` and unpacks them. `None` if a file name differs from its title or is
/// not printable, if the order is in doubt, or if the command is too long to be read.
fn joining(pieces: &[DiskPiece<'_>], order: PartOrder, unpack: &str) -> Option<String> {
    let plain = |title: &str| plain_path(title).is_ok_and(|plain| plain == title);
    let parts =
        pieces.iter().map(|piece| DiskPart { index: piece.index, title: piece.title, number: &piece.number });
    let titles: BTreeMap<usize, &str> = pieces.iter().map(|piece| (piece.index, piece.title)).collect();
    let mut command = "cat --".to_owned();
    for index in sequence(parts.collect(), order).ok()?.0 {
        let title = titles.get(&index).filter(|title| plain(title) && !title.contains('`'))?;
        command = format!("{command} {}", shell_word(format!("files/{title}").as_bytes())?);
        if command.len() > MAX_COMMAND_BYTES {
            return None;
        }
    }
    Some(format!("{command} | {unpack}"))
}

impl<'a> AbsentDisks<'a> {
    /// Takes a title that is a piece of a compressed disk.
    fn takes(&mut self, index: usize, title: &'a str) -> bool {
        let Some((compression, disk, tail)) = compressed::cut_behind(title) else { return false };
        // Read as if the disk had been split uncompressed: the rules for numbers are the same.
        let plain = format!("{disk}{tail}");
        let reading = read(&plain, PartEvidence::Unlabelled);
        let is_piece = reading.number.is_some() && reading.stem == disk && is_disk_name(disk);
        if is_piece {
            let extended = title.len() - tail.len();
            let whole = title.get(..extended).unwrap_or(disk);
            let number = reading.number.unwrap_or_default().to_owned();
            let (_, pieces) = self.cut.entry(whole).or_insert((compression, Vec::new()));
            pieces.push(DiskPiece { index, title, number });
        }
        is_piece
    }

    fn report(self, order: PartOrder, found: &mut DiskDetection) {
        for (title, name) in self.archived {
            found.report(
                title,
                format!("the disk is in an archive ({name}), which is not unpacked: it is in files/"),
            );
        }
        for (whole, (compression, pieces)) in self.cut {
            let name = compression.name;
            let command = compression.command.and_then(|unpack| joining(&pieces, order, unpack));
            let how = match command {
                Some(command) => format!("`{command}` unpacks it"),
                None => "the files have to be joined in their order and unpacked".to_owned(),
            };
            let pieces = pieces.len();
            found.report(
                whole,
                format!(
                    "its {pieces} parts are pieces of one {name} stream, cut after it was compressed, so that none can \
                     be unpacked without all before it: {how}"
                ),
            );
        }
    }
}

/// `disk.qcow2.ab` without `disk.qcow2.aa` does not come from `split`: two letters may be an extension.
fn drop_words(candidates: &mut Vec<DiskCandidate<'_>>) {
    let letters = |title| {
        read(title, PartEvidence::Unlabelled).number.filter(|n| n.bytes().all(|b| b.is_ascii_lowercase()))
    };
    let stem = |title| read(title, PartEvidence::Unlabelled).stem;
    let started: Vec<&str> = candidates
        .iter()
        .filter(|c| letters(c.title).is_some_and(|number| number.bytes().all(|byte| byte == b'a')))
        .map(|c| stem(c.title))
        .collect();
    candidates.retain(|c| letters(c.title).is_none() || started.contains(&stem(c.title)));
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::{DiskBody, DiskPlan, detect};
    use super::*;

    fn names(manifest: &Manifest) -> Vec<(String, String, usize)> {
        let found = detect(manifest, PartOrder::Epoch);
        assert!(found.problems.is_empty(), "{found:?}");
        let row = |disk: &DiskPlan| (disk.name.clone(), disk.label.to_string(), layers(disk).len());
        found.disks.iter().map(row).collect()
    }

    #[test]
    fn a_titled_disk_is_a_disk() {
        for (title, label) in [
            ("disk.qcow2", "qcow2"),
            ("disk.img", "unlabelled"),
            ("disk.raw", "raw"),
            ("ubuntu-22.04.qcow2", "qcow2"),
            ("disk-part1.raw", "raw"),
            ("disk.vmdk", "vmdk"),
        ] {
            assert_eq!(names(&artifact([title, "README.md"])), [(title.into(), label.into(), 1)]);
        }
    }

    #[test]
    fn a_split_disk_is_joined() {
        for titles in [
            ["d.qcow2.00", "d.qcow2.01", "SHA256SUMS"],
            ["d.qcow2.00.qcow2.part", "d.qcow2.01.qcow2.part", "d.qcow2.sig"],
            ["d.qcow2.part0", "d.qcow2.part1", "d.qcow2.sha256"],
            ["d.qcow2.ab", "d.qcow2.aa", "d.qcow2.gpg.txt"],
        ] {
            assert_eq!(names(&artifact(titles)), [("d.qcow2".into(), "qcow2".into(), 2)], "{titles:?}");
        }
    }

    #[test]
    fn a_gap_is_no_disk() {
        let found = detect(&artifact(["d.qcow2.00", "d.qcow2.02"]), PartOrder::Epoch);
        assert!(found.disks.is_empty() && found.problems.len() == 1);
    }

    #[test]
    fn other_titles_are_no_disks() {
        let titles =
            ["notes.00", "disk.qcow2.part", "disk.qcow2.ab", "disk.qcow2.json", ".qcow2", "qcow2", "a.iso"];
        assert_eq!(names(&artifact(titles)), []);
    }

    fn rows(manifest: &Manifest) -> Vec<(String, String, DiskPacking)> {
        let found = detect(manifest, PartOrder::Epoch);
        assert!(found.problems.is_empty() && found.warnings.is_empty(), "{found:?}");
        let row = |disk: &DiskPlan| {
            let DiskBody::Parts(parts) = &disk.body else { panic!("{disk:?}") };
            assert_eq!(disk.size.is_none(), parts.iter().any(|part| part.packing == DiskPacking::Packed));
            (disk.name.clone(), disk.label.to_string(), parts[0].packing)
        };
        found.disks.iter().map(row).collect()
    }

    #[test]
    fn a_compressed_disk_is_called_as_it_is_inside() {
        for (title, name, label) in [
            ("disk.img.gz", "disk.img", "unlabelled"),
            ("x.qcow2.zst", "x.qcow2", "qcow2"),
            ("x.QCOW2.XZ", "x.QCOW2", "qcow2"),
            ("x.raw.bz2", "x.raw", "raw"),
            ("x.vmdk.lz4", "x.vmdk", "vmdk"),
        ] {
            let expected = (name.to_owned(), label.to_owned(), DiskPacking::Packed);
            assert_eq!(rows(&artifact([title, "notes.gz", "a.tar.gz"])), [expected], "{title}");
        }
    }

    #[test]
    fn a_type_names_the_disk_as_well() {
        let one =
            |kind: &str, title: &str| rows(&manifest("application/vnd.unknown.artifact.v1", [(kind, title)]));
        let row = |name: &str, label: &str, packing| vec![(name.to_owned(), label.to_owned(), packing)];
        let zstd = "application/x-qemu-qcow2+zstd";
        let bootc = "fedora-bootc-cloud-eln.qcow2";
        assert_eq!(one(zstd, &format!("{bootc}.zst")), row(bootc, "qcow2", DiskPacking::Packed));
        assert_eq!(one(zstd, "a.qcow2"), row("a.qcow2", "qcow2", DiskPacking::Packed));
        assert_eq!(one(zstd, ""), row("disk.qcow2", "qcow2", DiskPacking::Packed));
        assert_eq!(one(zstd, "fedora.zst"), row("fedora.qcow2", "qcow2", DiskPacking::Packed));
        assert_eq!(one("application/x-qemu-disk", "a.img"), row("a.img.qcow2", "qcow2", DiskPacking::Stored));
        assert_eq!(one("application/vnd.x+gzip", "a.img"), row("a.img", "unlabelled", DiskPacking::Packed));
        assert_eq!(one("application/vnd.x+gzip", "a"), []);
        for joint in ['.', '+'] {
            let kind = |word: &str| format!("application/vnd.lfedge.disk.layer.v1{joint}{word}");
            for word in ["qcow2", "raw", "vmdk", "vhdx"] {
                let name = format!("disk-root-rootfs.{word}");
                assert_eq!(
                    one(&kind(word), "disk-root-rootfs"),
                    row(&name, word, DiskPacking::Stored),
                    "{word}"
                );
            }
            let packed = kind("qcow2") + ".gz";
            assert_eq!(one(&packed, "root"), row("root.qcow2", "qcow2", DiskPacking::Packed));
        }
        assert_eq!(one("application/vnd.cncf.model.weight.v1.raw", "model.safetensors"), []);
    }

    #[test]
    fn parts_that_are_compressed_each_are_joined() {
        let found = detect(&artifact(["d.img.01.gz", "d.img.00.gz", "d.img.02.gz"]), PartOrder::Epoch);
        assert!(found.problems.is_empty(), "{found:?}");
        assert_eq!((found.disks[0].name.as_str(), found.disks[0].size), ("d.img", None));
        assert_eq!(layers(&found.disks[0]), [1, 0, 2]);
    }

    #[test]
    fn a_compressed_disk_that_was_cut_up_names_the_command() {
        for titles in [
            ["d.img.gz.00", "d.img.gz.01"],
            ["d.img.gz.part0", "d.img.gz.part1"],
            ["d.img.gz.ab", "d.img.gz.aa"],
        ] {
            let found = detect(&artifact(titles), PartOrder::Epoch);
            assert!(found.disks.is_empty(), "{found:?}");
            assert_eq!((found.problems.len(), found.problems[0].subject.as_str()), (1, "d.img.gz"));
            let reason = &found.problems[0].reason;
            assert!(reason.contains("2 parts are pieces of one gzip stream"), "{reason}");
            let mut sorted = titles;
            sorted.sort_unstable();
            let [first, second] = sorted;
            assert!(
                reason.contains(&format!("`cat -- files/{first} files/{second} | gzip -dc`")),
                "{reason}"
            );
        }
        assert_eq!(rows(&artifact(["d.img.gz.sha256", "d.img.gz.sig", "d.tar.gz.00", "d.img.gz.txt"])), []);
    }

    #[test]
    fn an_advised_command_runs_nothing_of_a_title_and_names_only_the_pieces() {
        let reason =
            |titles: &[&str]| detect(&artifact(titles.to_vec()), PartOrder::Epoch).problems.remove(0).reason;
        let sidecar = reason(&["d.img.gz.00", "d.img.gz.01", "d.img.gz.sha256"]);
        assert!(sidecar.contains("`cat -- files/d.img.gz.00 files/d.img.gz.01 | gzip -dc`"), "{sidecar}");
        let hostile = reason(&["$(id) ;'.img.xz.00"]);
        assert!(hostile.contains(r"`cat -- 'files/$(id) ;'\''.img.xz.00' | xz -dc`"), "{hostile}");
        for title in ["`id`.img.gz.00", "a\n.img.gz.00", "../a.img.gz.00", "/a.img.gz.00", "a//b.img.gz.00"] {
            let reason = reason(&[title]);
            assert!(!reason.contains('`') && reason.contains("have to be joined"), "{reason}");
        }
        for titles in [["a.img.gz.00", "a.img.gz.02"], ["a.img.gz.part9", "a.img.gz.part10"]] {
            assert!(reason(&titles).contains("have to be joined"), "{titles:?}");
        }
    }

    #[test]
    fn archives_of_disks_are_named_as_absent() {
        let found = detect(&artifact(["a.img.zip", "b.qcow2.7z"]), PartOrder::Epoch);
        assert!(found.disks.is_empty());
        let lines: Vec<_> = found.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "a.img.zip: the disk is in an archive (zip), which is not unpacked: it is in files/",
                "b.qcow2.7z: the disk is in an archive (7z), which is not unpacked: it is in files/"
            ]
        );
    }

    /// What withcache's `TestPickImageLayer` asks: sidecars and other types are no candidates. Where it takes the largest, the
    /// disks are told apart by name here.
    #[test]
    fn sidecars_and_other_types_never_become_disks() {
        let titles = SIDECARS.map(|extension| format!("disk.img.gz{extension}"));
        let with = artifact(titles.iter().map(String::as_str).chain(["disk.img.gz"]));
        assert_eq!(rows(&with), [("disk.img".into(), "unlabelled".into(), DiskPacking::Packed)]);
        let typed = SIDECARS.map(|extension| format!("disk{extension}"));
        let typed = typed.iter().map(|title| ("application/x-qemu-disk", title.as_str()));
        assert_eq!(rows(&manifest("", typed)), []);
        for kind in NEVER {
            let kind = format!("{kind}x");
            assert_eq!(
                rows(&manifest("", [(kind.as_str(), "disk.img.gz"), (kind.as_str(), "b.qcow2")])),
                [],
                "{kind}"
            );
            assert_eq!(rows(&manifest(&kind, [(BYTES, "disk.img.gz")])), [], "{kind}");
        }
    }

    #[test]
    fn several_disks_have_several_names_and_one_name_is_ambiguous() {
        let names: Vec<_> =
            rows(&artifact(["b.img.gz", "a.qcow2", "a.img"])).into_iter().map(|row| row.0).collect();
        assert_eq!(names, ["a.img", "a.qcow2", "b.img"]);
        let found = detect(&artifact(["a.img.gz", "a.img.xz", "b.img"]), PartOrder::Epoch);
        assert_eq!((found.disks.len(), found.disks[0].name.as_str()), (1, "b.img"));
        let problem = found.problems[0].to_string();
        assert!(
            problem.starts_with("a.img: 2 different layers have its name (a.img.gz, a.img.xz)"),
            "{problem}"
        );
        assert!(problem.contains("--title"));
    }

    #[test]
    fn initramfs_is_no_disk() {
        assert_eq!(rows(&artifact(["initrd.img", "boot/initramfs.img", "initrd.img.gz", "vmlinuz"])), []);
    }

    #[test]
    fn charts_signatures_directories_and_container_images_have_no_disks() {
        assert_eq!(names(&manifest("application/vnd.cncf.helm.config.v1+json", [(BYTES, "a.qcow2")])), []);
        assert_eq!(names(&manifest("", [("application/vnd.dev.cosign.simplesigning.v1+json", "a.img")])), []);
        let mut image = artifact(["a.qcow2"]);
        image.artifact_type = None;
        image.config = Some(layer("application/vnd.oci.image.config.v1+json", None, 2, "{}"));
        assert_eq!(names(&image).len(), 1, "files beside the config of a container image");
        image.layers.push(layer("application/vnd.oci.image.layer.v1.tar+gzip", None, 2, "tar"));
        assert_eq!(names(&image), []);
        let mut directory = artifact(["a.img"]);
        directory.layers[0].annotations.insert(UNPACK.into(), "true".into());
        assert_eq!(names(&directory), []);
    }

    #[test]
    fn oras_calls_plain_files_tar() {
        let tar = "application/vnd.oci.image.layer.v1.tar";
        assert_eq!(names(&manifest("", [(tar, "a.qcow2")])).len(), 1);
    }
}
