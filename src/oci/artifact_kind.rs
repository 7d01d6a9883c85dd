//! Artifact classification: the type of a document, from its labels alone.
//!
//! Content is not examined. `artifactType` is more specific than the type of the config, and that more than the types
//! of the layers; the first known one decides. The config of a container image is the exception: some tools add a
//! stub of one to layers that no container has. Those layers reveal the real type.

use std::fmt;

use super::{Descriptor, Manifest, ManifestDocument, MediaType, is_tar_name};

/// `artifactType` of a bootable disk. The second is that of the first published Windows images.
const CLOUD_IMAGE: [&str; 2] =
    ["application/vnd.cocoonstack.os-image.v1+json", "application/vnd.cocoonstack.windows-image.v1+json"];
/// `artifactType` of a machine snapshot.
const SNAPSHOT: &str = "application/vnd.cocoonstack.snapshot.v1+json";

/// Media type that ORAS gives to an untyped file (oras-go `content/file`), and its annotation of a directory.
const ORAS_FILE: &str = "application/vnd.oci.image.layer.v1.tar";
const ORAS_UNPACK: &str = "io.deis.oras.content.unpack";

/// Media types by publishing tool, as `artifactType`, of the config or of layers: a prefix if it ends with a dot,
/// else the whole type.
const FAMILIES: [(&str, ArtifactKind); 25] = [
    ("application/vnd.nosi.disk-image.", ArtifactKind::NosiDisk),
    ("application/vnd.nosi.wsl-rootfs.", ArtifactKind::NosiRootfs),
    ("application/vnd.nosi.lxc-rootfs.", ArtifactKind::NosiRootfs),
    ("application/vnd.nosi.netboot-bundle.", ArtifactKind::NosiNetboot),
    ("application/vnd.kubevirt.", ArtifactKind::VmExport),
    ("application/vnd.cirruslabs.tart.", ArtifactKind::Tart),
    ("application/vnd.cirruslabs.vetu.", ArtifactKind::Vetu),
    ("application/vnd.trycua.lume.", ArtifactKind::Lume),
    ("application/online.jarosik.tomasz.geranos.", ArtifactKind::Geranos),
    ("application/vnd.sardinecake.", ArtifactKind::Sardinecake),
    ("application/vnd.libvirt.domain.", ArtifactKind::Sardinecake),
    ("application/vnd.cncf.flux.", ArtifactKind::Flux),
    ("application/vnd.timoni.", ArtifactKind::Timoni),
    ("application/vnd.cncf.helm.", ArtifactKind::Helm),
    ("application/vnd.cncf.model.", ArtifactKind::ModelPack),
    ("application/vnd.cnai.model.", ArtifactKind::ModelPack),
    ("application/vnd.docker.ai.", ArtifactKind::DockerModel),
    ("application/vnd.kitops.modelkit.", ArtifactKind::KitOps),
    ("application/vnd.ollama.", ArtifactKind::Ollama),
    ("application/vnd.cncf.openpolicyagent.", ArtifactKind::Policy),
    ("application/vnd.wasm.", ArtifactKind::Wasm),
    ("application/wasm", ArtifactKind::Wasm),
    ("application/vnd.sylabs.sif.", ArtifactKind::Sif),
    ("application/octet-stream+lz4", ArtifactKind::Lume),
    ("application/octet-stream+lzfse", ArtifactKind::Lume),
];

/// Beginnings of media types of disks that no suffix marks. The first is that of sardinecake.
const DISK_TYPES: [&str; 8] = [
    "application/x-qemu-disk",
    "application/x-qemu-qcow2",
    "application/x-qcow2",
    "application/x-raw-disk-image",
    "application/x-vmdk-disk",
    "application/x-vhd",
    "application/x-vdi-disk",
    "application/x-virtualbox-v",
];

/// Prefixes of the media types of statements about another artifact. Other artifacts may have such layers too.
const STATEMENTS: [&str; 11] = [
    "application/vnd.dev.cosign.",
    "application/vnd.dev.sigstore.",
    "application/vnd.dsse.",
    "application/vnd.in-toto",
    "application/vnd.cncf.notary.",
    "application/spdx",
    "text/spdx",
    "application/vnd.cyclonedx",
    "application/vnd.syft",
    "application/sarif",
    "application/vnd.openvex",
];

/// Type of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArtifactKind {
    /// A bootable disk in one or several layers.
    CloudImage,
    /// A machine snapshot: one layer per file, packed sparsely.
    Snapshot,
    /// A container image.
    ContainerImage,
    /// An index or manifest list.
    Index,
    /// A compressed raw disk with checksums and reports, by nosi.
    NosiDisk,
    /// A root filesystem for WSL or LXC, by nosi.
    NosiRootfs,
    /// A network boot bundle, by nosi.
    NosiNetboot,
    /// A disk of podman's machine.
    MachineOs,
    /// A virtual machine exported by KubeVirt.
    VmExport,
    /// A virtual machine of tart.
    Tart,
    /// A virtual machine of vetu.
    Vetu,
    /// A virtual machine of lume.
    Lume,
    /// A virtual machine of geranos.
    Geranos,
    /// A libvirt virtual machine of sardinecake.
    Sardinecake,
    /// A source of Flux.
    Flux,
    /// A module of Timoni.
    Timoni,
    /// A chart of Helm.
    Helm,
    /// A bottle of Homebrew.
    Bottle,
    /// A model by the ModelPack specification.
    ModelPack,
    /// A model of Docker Model Runner.
    DockerModel,
    /// A ModelKit of KitOps.
    KitOps,
    /// A model of Ollama.
    Ollama,
    /// A policy bundle of Open Policy Agent.
    Policy,
    /// A WebAssembly module.
    Wasm,
    /// A Singularity image file.
    Sif,
    /// A signature, an attestation or a bill of materials.
    Statement,
    /// An artifact without content: all its layers are the empty one.
    Empty,
    /// Any other artifact, mostly files.
    Unknown,
}

impl ArtifactKind {
    /// Name for users.
    pub fn words(self) -> &'static str {
        match self {
            ArtifactKind::CloudImage => "cloud image",
            ArtifactKind::Snapshot => "machine snapshot",
            ArtifactKind::ContainerImage => "container image",
            ArtifactKind::Index => "index",
            ArtifactKind::NosiDisk => "nosi disk image",
            ArtifactKind::NosiRootfs => "nosi root filesystem",
            ArtifactKind::NosiNetboot => "nosi netboot bundle",
            ArtifactKind::MachineOs => "podman machine disk",
            ArtifactKind::VmExport => "KubeVirt virtual machine",
            ArtifactKind::Tart => "tart virtual machine",
            ArtifactKind::Vetu => "vetu virtual machine",
            ArtifactKind::Lume => "lume virtual machine",
            ArtifactKind::Geranos => "geranos virtual machine",
            ArtifactKind::Sardinecake => "sardinecake virtual machine",
            ArtifactKind::Flux => "Flux source",
            ArtifactKind::Timoni => "Timoni module",
            ArtifactKind::Helm => "Helm chart",
            ArtifactKind::Bottle => "Homebrew bottle",
            ArtifactKind::ModelPack => "ModelPack model",
            ArtifactKind::DockerModel => "Docker model",
            ArtifactKind::KitOps => "KitOps ModelKit",
            ArtifactKind::Ollama => "Ollama model",
            ArtifactKind::Policy => "policy bundle",
            ArtifactKind::Wasm => "WebAssembly module",
            ArtifactKind::Sif => "Singularity image",
            ArtifactKind::Statement => "signature, attestation or SBOM",
            ArtifactKind::Empty => "artifact without content",
            ArtifactKind::Unknown => "artifact",
        }
    }
}

impl fmt::Display for ArtifactKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.words())
    }
}

/// Classifies by `artifactType`, then by the type of the config, then by being an index: the first match decides
/// (epoch `manifest/types.go`, `classifyFields`). An index without `mediaType`, which image-spec 1.1 allows, is still
/// an index.
pub fn classify(document: &ManifestDocument) -> ArtifactKind {
    match document {
        ManifestDocument::Manifest(manifest) => classify_manifest(manifest),
        ManifestDocument::Index(index) => {
            index.artifact_type.as_ref().and_then(cocoon_artifact).unwrap_or(ArtifactKind::Index)
        }
    }
}

/// Like [`classify`], for a manifest. If neither type is known, the layers decide.
pub fn classify_manifest(manifest: &Manifest) -> ArtifactKind {
    if let Some(kind) = &manifest.artifact_type
        && let Some(class) = cocoon_artifact(kind).or_else(|| family(kind)).or_else(|| statement(kind))
    {
        return class;
    }
    let config = manifest.config.as_ref().map(|config| &config.media_type);
    if config.is_some_and(MediaType::is_image_config) {
        let files = || pushed_as_files(manifest).then_some(ArtifactKind::Unknown);
        return behind_image_config(manifest).or_else(files).unwrap_or(ArtifactKind::ContainerImage);
    }
    if has_image_layers(manifest, config) {
        return ArtifactKind::ContainerImage;
    }
    config.and_then(family).or_else(|| by_layers(manifest)).unwrap_or(ArtifactKind::Unknown)
}

/// Whether the layers are those of a container image although the config's label is lost. Registries and Docker 1.10
/// wrote other labels (moby `distribution/registry.go`). Docker's layer types are used for root file systems only.
fn has_image_layers(manifest: &Manifest, config: Option<&MediaType>) -> bool {
    let Some(config) = config.filter(|config| family(config).is_none() && !config.is_empty_descriptor())
    else {
        return false;
    };
    let layers = &manifest.layers;
    let has_docker_layer = layers.iter().any(|layer| layer.media_type.is_docker_layer());
    let is_plain = manifest.artifact_type.is_none() && layers.iter().all(|layer| layer.title().is_none());
    if layers.is_empty() || !is_plain {
        return false;
    }
    let is_known = config.is_lost_config() && layers.iter().all(|layer| layer.media_type.is_image_layer());
    let is_docker = config.is_lost_config() && manifest.media_type.is_docker_manifest();
    has_docker_layer || is_known || is_docker && layers.iter().any(|layer| layer.media_type.claims_tar())
}

/// Whether files were pushed with the config of a container image (`oras push --artifact-platform`, `--config`): all
/// layers have a title, and the manifest or one layer shows that they are not a root file system.
fn pushed_as_files(manifest: &Manifest) -> bool {
    let is_file = |layer: &Descriptor| {
        let Some(title) = layer.title() else { return false };
        let is_untyped = layer.media_type.essence() == ORAS_FILE && !is_tar_name(title);
        layer.annotations.contains_key(ORAS_UNPACK) || is_untyped || !layer.media_type.claims_tar()
    };
    let layers = &manifest.layers;
    if manifest.artifact_type.is_some() {
        return layers.iter().any(|layer| layer.title().is_some());
    }
    !layers.is_empty() && layers.iter().all(|layer| layer.title().is_some()) && layers.iter().any(is_file)
}

/// Epoch's types, which only the whole `artifactType` identifies.
fn cocoon_artifact(kind: &MediaType) -> Option<ArtifactKind> {
    let essence = kind.essence();
    if CLOUD_IMAGE.contains(&essence.as_str()) {
        return Some(ArtifactKind::CloudImage);
    }
    (essence == SNAPSHOT).then_some(ArtifactKind::Snapshot)
}

fn family(kind: &MediaType) -> Option<ArtifactKind> {
    let essence = kind.essence();
    let is_of = |start: &str| essence == start || (start.ends_with('.') && essence.starts_with(start));
    FAMILIES.iter().find(|(start, _)| is_of(start)).map(|(_, class)| *class)
}

fn statement(kind: &MediaType) -> Option<ArtifactKind> {
    let essence = kind.essence();
    STATEMENTS.iter().any(|start| essence.starts_with(start)).then_some(ArtifactKind::Statement)
}

/// The type of an artifact that has the config of a container image without being one.
fn behind_image_config(manifest: &Manifest) -> Option<ArtifactKind> {
    let disguised = |layer: &Descriptor| {
        let stubs = [
            ArtifactKind::Tart,
            ArtifactKind::Vetu,
            ArtifactKind::Lume,
            ArtifactKind::Geranos,
            ArtifactKind::Ollama,
            ArtifactKind::Sardinecake,
        ];
        family(&layer.media_type).filter(|class| stubs.contains(class))
    };
    let class = manifest.layers.iter().find_map(disguised);
    class
        .or_else(|| only_disks(manifest))
        .or_else(|| is_bottle(manifest).then_some(ArtifactKind::Bottle))
        .or_else(|| only_statements(manifest))
}

/// The type of a manifest whose layers are disks, none an archive, beside the config of a container image. Untitled
/// disks of QEMU are those of sardinecake.
fn only_disks(manifest: &Manifest) -> Option<ArtifactKind> {
    let is_disk = |layer: &&Descriptor| {
        let essence = layer.media_type.essence();
        let base = essence.split('+').next().unwrap_or_default();
        layer.media_type.disk_format().is_some() || DISK_TYPES.iter().any(|start| base.starts_with(start))
    };
    if manifest.layers.iter().any(|layer| layer.media_type.claims_tar()) {
        return None;
    }
    let disk = manifest.layers.iter().find(is_disk)?;
    let is_sardine = disk.media_type.essence().starts_with(DISK_TYPES[0]) && disk.title().is_none();
    Some(if is_sardine { ArtifactKind::Sardinecake } else { ArtifactKind::Unknown })
}

/// Whether the artifact is a bottle: by its annotations or by its file name.
fn is_bottle(manifest: &Manifest) -> bool {
    let [layer] = manifest.layers.as_slice() else { return false };
    let Some(title) = layer.title() else { return false };
    let annotated = manifest.annotations.keys().any(|key| key.starts_with("sh.brew."));
    annotated || (title.contains(".bottle.") && title.ends_with(".tar.gz"))
}

fn only_statements(manifest: &Manifest) -> Option<ArtifactKind> {
    let mut layers = manifest.layers.iter().peekable();
    layers.peek()?;
    layers.all(|layer| statement(&layer.media_type).is_some()).then_some(ArtifactKind::Statement)
}

fn by_layers(manifest: &Manifest) -> Option<ArtifactKind> {
    if !manifest.layers.is_empty()
        && manifest.layers.iter().all(|layer| layer.media_type.is_empty_descriptor())
    {
        return Some(ArtifactKind::Empty);
    }
    // Such a layer is the artifact if it is alone; next to others it is one of the artifact's files.
    let alone = |class: &ArtifactKind| {
        !matches!(class, ArtifactKind::Wasm | ArtifactKind::Sif) || manifest.layers.len() == 1
    };
    let class = manifest.layers.iter().find_map(|layer| family(&layer.media_type).filter(alone));
    class
        .or_else(|| is_machine_os(manifest).then_some(ArtifactKind::MachineOs))
        .or_else(|| only_statements(manifest))
}

/// Podman requires one layer with a title. The index marks it as a disk; without the index, only the file name does.
fn is_machine_os(manifest: &Manifest) -> bool {
    let [layer] = manifest.layers.as_slice() else { return false };
    layer.title().is_some_and(|title| {
        title.starts_with("podman-machine.") || manifest.annotations.contains_key("disktype")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn class(json: &str) -> ArtifactKind {
        classify(
            &ManifestDocument::parse(json.replace("HEX", &format!("sha256:{HEX}")).as_bytes(), None).unwrap(),
        )
    }

    fn manifest(artifact_type: &str, config: &str) -> String {
        let kind = match artifact_type {
            "" => String::new(),
            kind => format!(r#""artifactType":"{kind}","#),
        };
        format!(
            r#"{{"schemaVersion":2,{kind}"config":{{"mediaType":"{config}","digest":"HEX","size":2}},"layers":[]}}"#
        )
    }

    const EMPTY: &str = "application/vnd.oci.empty.v1+json";

    #[test]
    fn disks_beside_the_config_of_a_container_image_are_disks() {
        let image = "application/vnd.oci.image.config.v1+json";
        let with = |layers: &[&str]| {
            let layer = |kind: &&str| format!(r#"{{"mediaType":"{kind}","digest":"HEX","size":2}}"#);
            let layers: Vec<String> = layers.iter().map(layer).collect();
            class(&manifest("", image).replace("[]", &format!("[{}]", layers.join(","))))
        };
        assert_eq!(with(&["application/x-qemu-disk+gzip"]), ArtifactKind::Sardinecake);
        let xml = "application/vnd.libvirt.domain.config+xml";
        assert_eq!(with(&[xml, "application/x-qemu-disk+gzip;chunk=1"]), ArtifactKind::Sardinecake);
        assert_eq!(with(&["application/x-raw-disk-image"]), ArtifactKind::Unknown);
        assert_eq!(with(&["application/vnd.x.disk.v1+qcow2"]), ArtifactKind::Unknown);
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        assert_eq!(with(&[tar, "application/x-qemu-disk+gzip"]), ArtifactKind::ContainerImage);
    }

    #[test]
    fn the_eight_kinds_of_epoch_are_distinguished() {
        assert_eq!(class(&manifest(CLOUD_IMAGE[0], EMPTY)), ArtifactKind::CloudImage);
        assert_eq!(class(&manifest(CLOUD_IMAGE[1], EMPTY)), ArtifactKind::CloudImage);
        let snapshot_config = "application/vnd.cocoonstack.snapshot.config.v1+json";
        assert_eq!(class(&manifest(SNAPSHOT, snapshot_config)), ArtifactKind::Snapshot);
        let oci = "application/vnd.oci.image.config.v1+json";
        assert_eq!(class(&manifest("", oci)), ArtifactKind::ContainerImage);
        let docker = "application/vnd.docker.container.image.v1+json";
        assert_eq!(class(&manifest("", docker)), ArtifactKind::ContainerImage);
        let index = |kind: &str| format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[]}}"#);
        assert_eq!(class(&index("application/vnd.oci.image.index.v1+json")), ArtifactKind::Index);
        assert_eq!(
            class(&index("application/vnd.docker.distribution.manifest.list.v2+json")),
            ArtifactKind::Index
        );
        assert_eq!(class(r#"{"schemaVersion":2,"layers":[]}"#), ArtifactKind::Unknown);
    }

    #[test]
    fn the_artifact_type_wins_over_an_image_config() {
        let oci = "application/vnd.oci.image.config.v1+json";
        assert_eq!(class(&manifest(CLOUD_IMAGE[0], oci)), ArtifactKind::CloudImage);
        assert_eq!(class(&manifest("application/vnd.example.thing", oci)), ArtifactKind::ContainerImage);
    }

    #[test]
    fn a_config_whose_label_was_lost_is_that_of_an_image_when_the_layers_are_those_of_one() {
        let with = |kind: &str, config: &str, layers: &[(&str, &str)]| {
            let layers: Vec<_> = layers
                .iter()
                .map(|(kind, title)| {
                    let title = match *title {
                        "" => String::new(),
                        title => format!(r#","annotations":{{"org.opencontainers.image.title":"{title}"}}"#),
                    };
                    format!(r#"{{"mediaType":"{kind}","digest":"HEX","size":2{title}}}"#)
                })
                .collect();
            class(&format!(
                r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{{"mediaType":"{config}","digest":"HEX","size":2}},"layers":[{}]}}"#,
                layers.join(",")
            ))
        };
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        let oci = "application/vnd.oci.image.manifest.v1+json";
        let diff = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        for config in ["application/octet-stream", "application/json", "text/html; charset=utf-8", ""] {
            for kind in [docker, oci] {
                assert_eq!(
                    with(kind, config, &[(diff, ""), (diff, "")]),
                    ArtifactKind::ContainerImage,
                    "{config}"
                );
                assert_eq!(
                    with(kind, config, &[(layer, ""), (layer, "")]),
                    ArtifactKind::ContainerImage,
                    "{config}"
                );
                assert_eq!(with(kind, config, &[(layer, "a.tar.gz")]), ArtifactKind::Unknown, "{config}");
                assert_eq!(with(kind, config, &[("text/plain", "")]), ArtifactKind::Unknown, "{config}");
            }
            assert_eq!(
                with(docker, config, &[(layer, ""), ("", "")]),
                ArtifactKind::ContainerImage,
                "{config}"
            );
            assert_eq!(with(docker, config, &[]), ArtifactKind::Unknown, "{config}");
        }
        assert_eq!(
            with(docker, "application/vnd.docker.plugin.v1+json", &[(diff, "")]),
            ArtifactKind::ContainerImage
        );
        assert_eq!(
            with(oci, "application/vnd.unknown.config.v1+json", &[(layer, "")]),
            ArtifactKind::Unknown
        );
        assert_eq!(with(oci, EMPTY, &[(layer, "")]), ArtifactKind::Unknown);
    }

    #[test]
    fn files_that_were_pushed_with_the_config_of_an_image_are_files() {
        let layer = |kind: &str, annotations: &str| {
            format!(r#"{{"mediaType":"{kind}","digest":"HEX","size":2,"annotations":{{{annotations}}}}}"#)
        };
        let with = |artifact_type: &str, layers: &[String]| {
            let config = "application/vnd.oci.image.config.v1+json";
            class(
                &manifest(artifact_type, config)
                    .replace("\"layers\":[]", &format!("\"layers\":[{}]", layers.join(","))),
            )
        };
        let title = |title: &str| format!(r#""org.opencontainers.image.title":"{title}""#);
        let (tar, gzip) = (ORAS_FILE, "application/vnd.oci.image.layer.v1.tar+gzip");
        let unpack = format!(r#"{},"{ORAS_UNPACK}":"true""#, title("charts"));
        let thing = "application/vnd.example.thing";
        for (expected, kind, layers) in [
            (ArtifactKind::Unknown, thing, vec![layer(tar, &title("README.txt"))]),
            (ArtifactKind::Unknown, thing, vec![layer(gzip, &title("a.tar.gz")), layer(gzip, "")]),
            (ArtifactKind::ContainerImage, thing, vec![layer(gzip, "")]),
            (ArtifactKind::Unknown, "", vec![layer(tar, &title("README.txt"))]),
            (ArtifactKind::Unknown, "", vec![layer("application/octet-stream", &title("disk.raw"))]),
            (ArtifactKind::Unknown, "", vec![layer(gzip, &unpack)]),
            (ArtifactKind::ContainerImage, "", vec![layer(tar, &title("rootfs.tar"))]),
            (ArtifactKind::ContainerImage, "", vec![layer(gzip, &title("rootfs"))]),
            (ArtifactKind::ContainerImage, "", vec![layer(tar, &title("README.txt")), layer(gzip, "")]),
        ] {
            assert_eq!(with(kind, &layers), expected, "{kind} {layers:?}");
        }
    }

    #[test]
    fn a_cocoon_config_without_an_artifact_type_stays_unknown() {
        assert_eq!(class(&manifest("", CLOUD_IMAGE[0])), ArtifactKind::Unknown);
        assert_eq!(class(&manifest("", SNAPSHOT)), ArtifactKind::Unknown);
        assert_eq!(
            class(&manifest("application/vnd.cocoonstack.os-image.v2+json", EMPTY)),
            ArtifactKind::Unknown
        );
    }

    #[test]
    fn an_index_without_a_media_type_is_an_index() {
        assert_eq!(class(r#"{"schemaVersion":2,"manifests":[]}"#), ArtifactKind::Index);
    }
}
