//! podman machine disks: one layer, and an annotation that names the hypervisor.
//!
//! The annotation gives the format only where the layer has no title, as in podman itself. The rules are those of
//! podman-machine-os' `build.sh` and of podman's `pkg/machine/ocipull`. Podman reads the annotation from the index; a
//! caller that opens an entry of an index appends its annotations to those of the manifest.
//! annotations behind those of the manifest.

use crate::oci::{Descriptor, Manifest};

use super::assemble::{DiskCandidate, assemble};
use super::title::PartEvidence;
use super::{DiskDetection, DiskFormat, DiskPacking, PartOrder};

const DISK_TYPE: &str = "disktype";

/// The disk format of each hypervisor. The artifact for WSL is an archive.
const FORMATS: [(&str, DiskFormat); 4] = [
    ("qemu", DiskFormat::Qcow2),
    ("applehv", DiskFormat::Raw),
    ("libkrun", DiskFormat::Raw),
    ("hyperv", DiskFormat::Vhdx),
];

/// The only layer, if it has no title, and the format of its disk.
fn disk(manifest: &Manifest) -> Option<(usize, DiskFormat)> {
    let kind = manifest.annotations.get(DISK_TYPE)?;
    let (_, format) = FORMATS.iter().find(|(name, _)| name == kind)?;
    let is_empty = |layer: &Descriptor| layer.media_type.is_empty_descriptor();
    let mut layers = manifest.layers.iter().enumerate().filter(|(_, layer)| !is_empty(layer));
    let (index, layer) = layers.next()?;
    let alone = layers.next().is_none() && layer.title().is_none_or(str::is_empty);
    (alone && !layer.media_type.claims_tar()).then(|| (index, format.clone()))
}

/// Whether there is such a layer.
pub(super) fn has_disk(manifest: &Manifest) -> bool {
    disk(manifest).is_some()
}

/// The disk, marked as compressed; the first bytes of an uncompressed one would show it.
pub(super) fn detect(manifest: &Manifest, order: PartOrder) -> DiskDetection {
    let candidate = disk(manifest).map(|(index, label)| DiskCandidate {
        index,
        title: "",
        label,
        role: PartEvidence::Whole,
        packing: DiskPacking::Packed,
    });
    assemble(manifest, candidate.as_slice(), order)
}

#[cfg(test)]
mod tests {
    use super::super::detect;
    use super::super::fixtures::*;
    use super::*;

    fn names(manifest: &Manifest) -> Vec<(String, Option<u64>)> {
        let found = detect(manifest, PartOrder::Epoch);
        assert!(found.problems.is_empty() && found.warnings.is_empty(), "{found:?}");
        found.disks.iter().map(|disk| (disk.name.clone(), disk.size)).collect()
    }

    #[test]
    fn a_titled_disk_is_called_by_its_title() {
        for (title, name) in [
            ("podman-machine.x86_64.qemu.qcow2.zst", "podman-machine.x86_64.qemu.qcow2"),
            ("podman-machine.aarch64.applehv.raw.zst", "podman-machine.aarch64.applehv.raw"),
            ("podman-machine.x86_64.hyperv.vhdx.zst", "podman-machine.x86_64.hyperv.vhdx"),
        ] {
            assert_eq!(names(&manifest("", [("application/zstd", title)])), [(name.into(), None)]);
        }
        let wsl = manifest("", [("application/zstd", "podman-machine.x86_64.wsl.tar.zst")]);
        assert_eq!(names(&wsl), []);
    }

    #[test]
    fn an_untitled_disk_is_called_by_its_hypervisor() {
        for (kind, name) in [("qemu", "disk.qcow2"), ("applehv", "disk.raw"), ("hyperv", "disk.vhdx")] {
            let mut machine = manifest("", [("application/octet-stream", "")]);
            machine.layers[0].annotations.clear();
            machine.annotations.insert(DISK_TYPE.into(), kind.into());
            assert_eq!(names(&machine), [(name.into(), None)]);
            machine.layers.push(machine.layers[0].clone());
            assert_eq!(names(&machine), [], "podman takes one layer only");
        }
        let mut wsl = manifest("", [("application/octet-stream", "")]);
        wsl.annotations.insert(DISK_TYPE.into(), "wsl".into());
        assert_eq!(names(&wsl), []);
    }
}
