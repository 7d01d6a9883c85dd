//! Requested names of layers: by title, by an annotation of their format, or by their type.
//!
//! Names are not checked here, but where they are combined. Each kind of artifact has one annotation that names
//! files; some have none, and a fixed name for each media type. Several layers of one fixed name are numbered, like
//! the parts of a model.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::oci::go_json::document;
use crate::oci::{ArtifactKind, Descriptor, Manifest};

use super::shown;

/// The path of a file of a model (model-spec annotations.md), now and in the drafts.
const FILE_PATHS: [&str; 2] = ["org.cncf.model.filepath", "org.cnai.model.filepath"];
/// The names of the files of a project, as `docker compose publish` writes them.
const COMPOSE_FILES: [&str; 2] = ["com.docker.compose.file", "com.docker.compose.envfile"];
/// Mode and time of that file.
const FILE_METADATA: [&str; 2] = ["org.cncf.model.file.metadata+json", "org.cnai.model.file.metadata+json"];
/// geranos' annotation with the name of the file that a layer is a segment of.
pub(super) const SEGMENT_OF: &str = "filename";
/// Maximum length of a name made of a chart's name and version.
const MAX_CHART: usize = 200;

/// A requested name and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestedName {
    pub(super) source: &'static str,
    pub(super) name: String,
}

/// The name that the layer itself requests; `None` without one.
pub(super) fn asked(class: ArtifactKind, layer: &Descriptor) -> Option<RequestedName> {
    let asked = |source, name: Option<&str>| name.map(|name| RequestedName { source, name: name.to_owned() });
    let title = || asked("title", layer.title());
    let first = |keys: &[&str]| keys.iter().find_map(|key| layer.annotations.get(*key)).map(String::as_str);
    let path = || asked("file path", first(&FILE_PATHS));
    match class {
        // Other annotations may name the archive of a container image, but not as a file.
        ArtifactKind::ContainerImage => title(),
        ArtifactKind::ModelPack | ArtifactKind::DockerModel => path().or_else(title),
        ArtifactKind::Ollama => asked("name", layer.name.as_deref()).or_else(title),
        ArtifactKind::Geranos => {
            asked("file name", layer.annotations.get(SEGMENT_OF).map(String::as_str)).or_else(title)
        }
        _ => title().or_else(path).or_else(|| asked("file name", first(&COMPOSE_FILES))),
    }
}

/// Names of the layers that request none and whose type has a fixed name.
pub(super) fn by_type(class: ArtifactKind, manifest: &Manifest) -> BTreeMap<usize, RequestedName> {
    let mut kinds: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (number, layer) in manifest.layers.iter().enumerate() {
        if asked(class, layer).is_none()
            && let Some(kind) = kind(class, &layer.media_type.essence())
        {
            kinds.entry(kind).or_default().push(number);
        }
    }
    let mut named = BTreeMap::new();
    for ((stem, extension), numbers) in kinds {
        for (nth, number) in (1..).zip(&numbers) {
            let name = match numbers.len() {
                1 => format!("{stem}{extension}"),
                all => format!("{stem}-{nth:05}-of-{all:05}{extension}"),
            };
            named.insert(*number, RequestedName { source: "media type", name });
        }
    }
    named
}

/// Whether a type is one of a Singularity image file. The first tools wrote `appliciation/`, and `.sif.layer.tar`.
fn is_sif(essence: &str) -> bool {
    essence.ends_with(".sif") || essence.ends_with("/vnd.sylabs.sif.layer.tar")
}

/// Stem and extension of the fixed name of a type; `None` without one.
fn kind(class: ArtifactKind, essence: &str) -> Option<(&'static str, &'static str)> {
    let after = |start: &str| essence.strip_prefix(start).unwrap_or_default();
    Some(match class {
        ArtifactKind::Wasm if essence.ends_with("wasm") => ("module", ".wasm"),
        ArtifactKind::Sif if is_sif(essence) => ("image", ".sif"),
        ArtifactKind::Tart => machine_file(after("application/vnd.cirruslabs.tart."))?,
        ArtifactKind::Vetu => machine_file(after("application/vnd.cirruslabs.vetu."))?,
        ArtifactKind::Lume => machine_file(after("application/vnd.trycua.lume."))?,
        ArtifactKind::DockerModel => match after("application/vnd.docker.ai.") {
            "license" => ("license", ""),
            "mmproj" => ("mmproj", ""),
            "chat.template.jinja" => ("chat.template", ".jinja"),
            "dduf" => ("model", ".dduf"),
            "safetensors" => ("model", ".safetensors"),
            gguf if gguf.starts_with("gguf") => ("model", ".gguf"),
            _ if essence.ends_with(".gguf") => ("model", ".gguf"),
            _ if essence.ends_with(".safetensors") => ("model", ".safetensors"),
            _ => return None,
        },
        ArtifactKind::Ollama => match after("application/vnd.ollama.image.") {
            "model" => ("model", ".gguf"),
            "projector" => ("projector", ".gguf"),
            "adapter" => ("adapter", ".gguf"),
            "draft" => ("draft", ".gguf"),
            "template" => ("template", ""),
            "system" => ("system", ""),
            "prompt" => ("prompt", ""),
            "license" => ("license", ""),
            "embed" => ("embed", ""),
            "params" => ("params", ".json"),
            "messages" => ("messages", ".json"),
            _ => return None,
        },
        _ => return None,
    })
}

/// The fixed name of a file beside the disk of a virtual machine; `None` for other types.
fn machine_file(kind: &str) -> Option<(&'static str, &'static str)> {
    match kind {
        "config.v1" => Some(("config", ".json")),
        "nvram.v1" => Some(("nvram", ".bin")),
        "kernel.v1" => Some(("kernel", "")),
        "initramfs.v1" => Some(("initramfs", "")),
        _ => None,
    }
}

#[derive(Deserialize)]
struct HelmChart {
    name: String,
    version: String,
}

/// The name of a chart's archive in `helm pull`, without its extension; or why there is none.
pub(super) fn chart(config: Option<&[u8]>) -> Result<String, String> {
    let config = config.ok_or("the config of the chart could not be read")?;
    let chart: HelmChart = document(config)
        .map_err(|error| format!("the config of the chart has no name and version: {error}"))?;
    for (what, text) in [("name", &chart.name), ("version", &chart.version)] {
        if text.is_empty()
            || text.len() > MAX_CHART / 2
            || text.starts_with('.')
            || text.contains(['/', '\0'])
        {
            return Err(format!("the chart's {what} {} cannot be part of a file name", shown(text)));
        }
    }
    Ok(format!("{}-{}", chart.name, chart.version))
}

/// A model's annotations about a file; a field is `None` without an annotation.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ModelMetadata {
    pub(super) mode: Option<u16>,
    pub(super) mtime: Option<i64>,
}

#[derive(Deserialize)]
struct RawMetadata {
    mode: Option<u32>,
    mtime: Option<String>,
}

/// Mode and time of the file of a model; or why the annotation is invalid.
pub(super) fn metadata(layer: &Descriptor) -> Result<ModelMetadata, String> {
    let Some(text) = FILE_METADATA.iter().find_map(|key| layer.annotations.get(*key)) else {
        return Ok(ModelMetadata::default());
    };
    let raw: RawMetadata =
        document(text.as_bytes()).map_err(|error| format!("its file metadata is not understood: {error}"))?;
    // File type bits may be set above the permission bits.
    let mode = raw.mode.map(|mode| (mode & 0o7777) as u16).filter(|mode| *mode != 0);
    let Some(text) = raw.mtime else { return Ok(ModelMetadata { mode, mtime: None }) };
    let time = chrono::DateTime::parse_from_rfc3339(&text)
        .map_err(|error| format!("its modification time {} is invalid: {error}", shown(&text)))?;
    Ok(ModelMetadata { mode, mtime: Some(time.timestamp()) })
}
