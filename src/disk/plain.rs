//! Disks in artifacts of no special type: what `oras push` makes of `disk.qcow2`, or of its pieces.
//!
//! Never looks into container images, charts or signatures, and never takes an archive or a compressed layer for a disk.
//! The idea: there is only the title, so only a title that ends in a disk's extension counts, or one of `split`'s
//! suffixes behind it.

use crate::oci::{Descriptor, Manifest, MediaType};

use super::detect::{Candidate, assemble};
use super::title::{Role, is_disk_name, read};
use super::{Detection, Format, PartOrder};

/// Types of artifacts and layers that are never disks, whatever they are called.
const NEVER: [&str; 9] = [
    "application/vnd.cncf.helm.",
    "application/vnd.dev.cosign.",
    "application/vnd.dev.sigstore.",
    "application/vnd.in-toto",
    "application/vnd.dsse.",
    "application/spdx",
    "text/spdx",
    "application/vnd.cyclonedx",
    "application/vnd.oci.empty.",
];

/// The annotation by which oras says that a layer is an archive of a directory (oras-go `content/file`).
const UNPACK: &str = "io.deis.oras.content.unpack";

/// Extensions of compressed files, and what they are called.
const COMPRESSED: [(&str, &str); 7] = [
    (".gz", "gzip"),
    (".zst", "zstd"),
    (".xz", "xz"),
    (".bz2", "bzip2"),
    (".lz4", "lz4"),
    (".zip", "zip"),
    (".7z", "7z"),
];

/// The disks among the titled layers.
pub(super) fn detect(manifest: &Manifest, order: PartOrder) -> Detection {
    // The empty config of image-spec 1.1 is no kind.
    let kind = manifest.kind().filter(|kind| !kind.is_empty_descriptor());
    if kind.is_some_and(is_never) {
        return Detection::default();
    }
    let mut candidates = Vec::new();
    let mut compressed = Vec::new();
    for (index, layer) in manifest.layers.iter().enumerate() {
        let Some(title) = layer.title() else { continue };
        if is_never(&layer.media_type) || layer.annotations.contains_key(UNPACK) {
            continue;
        }
        if let Some(by) = compression(layer, title) {
            let reason = format!("the disk is compressed ({by}) and is not decompressed yet");
            compressed.extend(Detection::problem(title, reason).problems);
        } else if let Some(label) = label(title) {
            candidates.push(Candidate { index, title, label, role: Role::Unlabelled });
        }
    }
    drop_words(&mut candidates);
    let mut found = assemble(manifest, &candidates, order);
    found.problems.append(&mut compressed);
    found
}

fn is_never(media_type: &MediaType) -> bool {
    let essence = media_type.essence();
    NEVER.iter().any(|prefix| essence.starts_with(prefix))
}

/// By what a disk is compressed, going by title and media type.
fn compression(layer: &Descriptor, title: &str) -> Option<&'static str> {
    let lower = title.to_ascii_lowercase();
    let by_title = COMPRESSED
        .iter()
        .find(|(extension, _)| lower.strip_suffix(extension).is_some_and(is_disk_name))
        .map(|(_, name)| *name);
    let essence = layer.media_type.essence();
    let by_type = COMPRESSED.iter().map(|(_, name)| *name).find(|name| {
        essence.strip_suffix(name).is_some_and(|rest| rest.ends_with('+')) && label(title).is_some()
    });
    by_title.or(by_type)
}

/// The format that the title claims for the disk. A part that only `.part` marks is more likely a broken download.
fn label(title: &str) -> Option<Format> {
    let reading = read(title, Role::Unlabelled);
    if reading.number.is_none() && reading.stem.len() < title.len() {
        return None;
    }
    Format::by_extension(reading.stem)
}

/// `disk.qcow2.ab` without `disk.qcow2.aa` is not the work of `split`: two letters are an extension, too.
fn drop_words(candidates: &mut Vec<Candidate<'_>>) {
    let letters =
        |title| read(title, Role::Unlabelled).number.filter(|n| n.bytes().all(|b| b.is_ascii_lowercase()));
    let stem = |title| read(title, Role::Unlabelled).stem;
    let started: Vec<&str> = candidates
        .iter()
        .filter(|c| letters(c.title).is_some_and(|number| number.bytes().all(|byte| byte == b'a')))
        .map(|c| stem(c.title))
        .collect();
    candidates.retain(|c| letters(c.title).is_none() || started.contains(&stem(c.title)));
}

#[cfg(test)]
mod tests {
    use super::super::detect;
    use super::super::fixtures::*;
    use super::*;

    fn names(manifest: &Manifest) -> Vec<(String, String, usize)> {
        let found = detect(manifest, PartOrder::Epoch);
        assert!(found.problems.is_empty(), "{found:?}");
        found.disks.into_iter().map(|disk| (disk.name, disk.label.to_string(), disk.parts.len())).collect()
    }

    #[test]
    fn a_titled_disk_is_a_disk() {
        for (title, label) in [
            ("disk.qcow2", "qcow2"),
            ("disk.img", "raw"),
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

    #[test]
    fn compressed_disks_are_named_as_absent() {
        let found = detect(&artifact(["a.img.gz", "b.qcow2.ZST", "notes.gz"]), PartOrder::Epoch);
        assert!(found.disks.is_empty());
        let lines: Vec<_> = found.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "a.img.gz: the disk is compressed (gzip) and is not decompressed yet",
                "b.qcow2.ZST: the disk is compressed (zstd) and is not decompressed yet"
            ]
        );
        let typed = manifest("application/vnd.x", [("application/x-qemu-qcow2+zstd", "a.qcow2")]);
        assert!(detect(&typed, PartOrder::Epoch).problems[0].reason.contains("(zstd)"));
    }

    #[test]
    fn charts_signatures_directories_and_container_images_have_no_disks() {
        assert_eq!(names(&manifest("application/vnd.cncf.helm.config.v1+json", [(BYTES, "a.qcow2")])), []);
        assert_eq!(names(&manifest("", [("application/vnd.dev.cosign.simplesigning.v1+json", "a.img")])), []);
        let mut image = artifact(["a.qcow2"]);
        image.artifact_type = None;
        image.config = Some(layer("application/vnd.oci.image.config.v1+json", None, 2, "{}"));
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
