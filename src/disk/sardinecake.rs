//! sardinecake disks: disks of a libvirt machine, each compressed with gzip and then split.
//!
//! A layer with the parameter `chunk` continues the disk of the layer before. The rules are those of sardinecake's
//! `docs/OCI.md`. The name of a disk is only in its gzip header, so it is called `disk`.

use crate::io::shell_word;
use crate::oci::{Descriptor, Manifest, RequestedFile};

use super::compressed;
use super::name::UniqueNames;
use super::{DiskDetection, DiskFormat, DiskPacking, PartPlan};

/// The type of a disk without the suffix of its compression.
const DISK: &str = "application/x-qemu-disk";

/// The name of a disk, which no label gives.
const STEM: &str = "disk";

/// The disks: whole ones, and a problem for each one that was split after its compression.
pub(super) fn detect(manifest: &Manifest) -> DiskDetection {
    let (mut found, mut names) = (DiskDetection::default(), UniqueNames::default());
    for layers in disks(manifest) {
        match layers {
            Ok(layers) => {
                let parts = match layers[..] {
                    [layer] => Ok(vec![PartPlan::bare(manifest, layer, packing(manifest, layer))]),
                    _ => Err(split(manifest, &layers)),
                };
                found.add(manifest, &mut names, (STEM, &DiskFormat::Qcow2), parts);
            }
            Err(reason) => found.report(STEM, reason),
        }
    }
    found
}

fn packing(manifest: &Manifest, layer: usize) -> DiskPacking {
    match manifest.layers.get(layer).and_then(|layer| compressed::by_type(&layer.media_type)) {
        Some(_) => DiskPacking::Packed,
        None => DiskPacking::Stored,
    }
}

/// The layers of each disk, in order.
fn disks(manifest: &Manifest) -> Vec<Result<Vec<usize>, String>> {
    let mut disks: Vec<Result<Vec<usize>, String>> = Vec::new();
    for (index, layer) in manifest.layers.iter().enumerate() {
        if layer.media_type.essence().split('+').next() != Some(DISK) {
            continue;
        }
        match (chunk(layer), disks.last_mut()) {
            (Ok(0), _) => disks.push(Ok(vec![index])),
            (Ok(number), Some(Ok(parts))) if parts.len() as u64 == number => parts.push(index),
            (Ok(_), Some(disk @ Ok(_))) => *disk = Err(format!("layer {index} is not its next chunk")),
            // The disk has its reason.
            (Ok(_), Some(Err(_))) => {}
            (Ok(number), None) => {
                disks.push(Err(format!(
                    "layer {index} is its chunk {number}: the chunks before it are missing"
                )));
            }
            (Err(reason), _) => disks.push(Err(format!("layer {index}: {reason}"))),
        }
    }
    disks
}

/// The number of a chunk; 0 for the first one, which has none.
fn chunk(layer: &Descriptor) -> Result<u64, String> {
    let mut parameters = layer.media_type.as_written().split(';').skip(1);
    let value = parameters.find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        key.trim().eq_ignore_ascii_case("chunk").then(|| value.trim().trim_matches('"'))
    });
    let Some(value) = value else { return Ok(0) };
    value.parse().map_err(|_| format!("its chunk {value:?} is no number"))
}

/// The reason why a split disk is not presented, with the command that joins it.
fn split(manifest: &Manifest, layers: &[usize]) -> String {
    let file = |layer: &usize| {
        let name = manifest.layers.get(*layer).filter(|layer| layer.title().is_none())?;
        shell_word(format!("files/{}", RequestedFile::layer(*layer, name).fallback).as_bytes())
    };
    let files: Option<Vec<String>> = layers.iter().map(file).collect();
    let first = layers.first().and_then(|layer| manifest.layers.get(*layer));
    let unpack = first.and_then(|layer| compressed::by_type(&layer.media_type)?.command);
    let reason = format!("it was compressed before it was split into {} layers", layers.len());
    match (files, unpack) {
        (Some(files), Some(unpack)) => format!("{reason}: cat -- {} | {unpack}", files.join(" ")),
        _ => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::{PartOrder, detect};
    use super::*;

    fn machine(types: &[&str]) -> Manifest {
        let layers = [("application/vnd.libvirt.domain.config+xml", "")].into_iter();
        let layers = layers.chain(types.iter().map(|kind| (*kind, "")));
        let mut machine = manifest("", layers);
        for layer in &mut machine.layers {
            layer.annotations.clear();
        }
        machine
    }

    #[test]
    fn a_whole_disk_is_unpacked_and_a_split_one_is_a_problem_with_a_command() {
        let (whole, next) = ("application/x-qemu-disk+gzip", "application/x-qemu-disk+gzip;chunk=1");
        let found = detect(&machine(&[whole, next, whole, DISK]), PartOrder::Epoch);
        let sizes: Vec<_> = found.disks.iter().map(|disk| disk.size).collect();
        assert_eq!(sizes, [None, Some(4)], "an unpacked size is not known before");
        let names: Vec<_> = found.disks.iter().map(|disk| (disk.name.as_str(), layers(disk))).collect();
        assert_eq!(names, [("disk.qcow2", vec![3]), ("disk-2.qcow2", vec![4])]);
        let [problem] = &found.problems[..] else { panic!("{found:?}") };
        assert!(problem.reason.contains("cat -- files/01-") && problem.reason.ends_with(".gz | gzip -dc"));
    }

    #[test]
    fn chunks_out_of_order_are_no_disk() {
        let chunk = |number: &str| format!("application/x-qemu-disk+gzip;chunk={number}");
        for chunks in [vec![chunk("1")], vec![chunk("0"), chunk("2")], vec![chunk("x")]] {
            let types: Vec<&str> = chunks.iter().map(String::as_str).collect();
            let found = detect(&machine(&types), PartOrder::Epoch);
            assert_eq!((found.disks.len(), found.problems.len()), (0, 1), "{chunks:?}");
        }
    }
}
