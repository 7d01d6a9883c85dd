//! Plans the contents of a manifest.
//!
//! Every layer is shown somewhere: it is a file, an archive, a piece of a disk, or declared empty. Class and label of
//! a layer decide between archive and file. Then the names of all files are assigned together, because they may
//! collide.

use crate::oci::{
    ArtifactKind, Descriptor, Digest, MAX_DOCUMENT, Manifest, NamedShape, RequestedFile, classify_manifest,
    extension, file_names, is_compressed_name, is_tar_name,
};

use super::contents::{
    ArchiveDirectory, ArchiveLayer, ArtifactContents, ArtifactFile, FileBody, FileSegment, UnionRules,
};
use super::names::{self, RequestedName, asked, by_type};
use super::segments::{FileSegments, segments};
use super::shown;
use super::snapshot::SnapshotFiles;

/// The ORAS annotation for a layer that is an archive of a directory (oras-go `content/file`).
pub const UNPACK: &str = "io.deis.oras.content.unpack";
/// The digest of its archive before compression.
const UNPACKED: &str = "io.deis.oras.content.digest";
/// The media type of a chunk of a tart disk.
pub const TART_DISK: &str = "application/vnd.cirruslabs.tart.disk.v2";
/// The media type of a chunk of a vetu disk.
pub const VETU_DISK: &str = "application/vnd.cirruslabs.vetu.disk.v1";
/// The annotation with the role of a layer of a Timoni module.
const TIMONI_TYPE: &str = "sh.timoni.content.type";
/// The longest name of a layer's directory behind its number, in bytes.
const MAX_DIRECTORY: usize = 200;
/// Permission bits of a file without recorded ones.
const MODE: u16 = 0o444;
/// Permission bits of a directory.
const DIRECTORY_MODE: u16 = 0o555;

/// Whether [`contents`] needs the config.
pub fn needs_config(manifest: &Manifest) -> bool {
    let there = manifest.config.as_ref().is_some_and(|config| !config.media_type.is_empty_descriptor());
    there && matches!(classify_manifest(manifest), ArtifactKind::Snapshot | ArtifactKind::Helm)
}

/// The contents of `manifest`. `config` are the bytes of its config, if [`needs_config`] requires it and it is
/// available.
pub fn contents(manifest: &Manifest, config: Option<&[u8]>) -> ArtifactContents {
    let config = config.filter(|config| config.len() as u64 <= MAX_DOCUMENT);
    let class = classify_manifest(manifest);
    let mut plan = ContentsPlan {
        class,
        manifest,
        files: Vec::new(),
        archives: Vec::new(),
        tops: Vec::new(),
        reports: Vec::new(),
    };
    match class {
        ArtifactKind::Snapshot => plan.add_snapshot(config),
        _ => plan.add_layers(config),
    }
    plan.add_config();
    plan.finish()
}

/// The contents under construction.
struct ContentsPlan<'a> {
    class: ArtifactKind,
    manifest: &'a Manifest,
    files: Vec<UnnamedFile>,
    archives: Vec<ArchiveLayer>,
    /// Directories that are `files/` itself.
    tops: Vec<ArchiveDirectory>,
    reports: Vec<String>,
}

/// A file without an assigned name.
struct UnnamedFile {
    wanted: RequestedFile,
    mode: u16,
    mtime: Option<i64>,
    body: FileBody,
    /// Its content if it cannot get its name.
    otherwise: FileBody,
}

impl ContentsPlan<'_> {
    fn add_layers(&mut self, config: Option<&[u8]>) {
        let typed = by_type(self.class, self.manifest);
        let chart = (self.class == ArtifactKind::Helm).then(|| names::chart(config));
        if let Some(Err(reason)) = &chart {
            self.reports.push(reason.clone());
        }
        let mut pieces = if self.class == ArtifactKind::Geranos {
            segments(self.manifest)
        } else {
            FileSegments::default()
        };
        self.reports.append(&mut pieces.reports);
        let is_applied = self.class == ArtifactKind::ContainerImage && has_root_file_system(self.manifest);
        for (number, layer) in self.manifest.layers.iter().enumerate() {
            if is_nothing(layer) {
                continue;
            }
            if let Some(layers) = pieces.joined.remove(&number) {
                self.add_joined(number, layer, layers);
                continue;
            }
            if pieces.pieces.contains(&number) {
                continue;
            }
            let mut name = asked(self.class, layer);
            let archive = is_applied || is_archive(self.class, layer, name.as_ref());
            if self.class == ArtifactKind::ContainerImage && !archive {
                self.reports.push(not_merged(number, layer));
            }
            if archive && layer.media_type.claims_encryption() {
                let kind = shown(layer.media_type.as_written());
                self.reports
                    .push(format!("layer {number}: it is encrypted ({kind}): its files cannot be read"));
            }
            if archive {
                let name = self.archive_name(number, layer);
                self.archives.push(ArchiveLayer { layer: number, name });
            }
            if let Some(Ok(chart)) = &chart
                && name.is_none()
            {
                name = chart_file(layer, chart);
            }
            name = name.or_else(|| typed.get(&number).cloned());
            if pieces.loose.binary_search(&number).is_ok() {
                name = None;
            }
            // A chart is a file even without a name. So is a layer that an image applies although its type is not
            // that of a layer. Any other archive is shown in the tree only.
            let is_file_too =
                self.class == ArtifactKind::Helm || is_applied && !layer.media_type.claims_tar();
            let hidden = archive && !is_file_too || is_piece_of_disk(self.class, layer);
            if name.is_some() || !hidden {
                self.add_file(number, layer, name);
            }
        }
    }

    fn add_file(&mut self, number: usize, layer: &Descriptor, name: Option<RequestedName>) {
        let mut body = FileBody::Layer(number);
        let (mut mode, mut mtime) = (MODE, None);
        let is_model = matches!(self.class, ArtifactKind::ModelPack | ArtifactKind::DockerModel);
        if let Some(name) = &name
            && let Some((below, lenient)) = directory(self.class, layer, &name.name)
        {
            let content = self.unpacked(number, layer);
            let tree = ArchiveDirectory { layer: number, below, lenient, content };
            if is_top(&name.name) {
                return self.tops.push(tree);
            }
            body = FileBody::Tree(tree);
            mode = DIRECTORY_MODE;
        }
        if is_model {
            match names::metadata(layer) {
                Ok(metadata) => {
                    // The mode is for a file; a directory with that mode could not be entered.
                    if matches!(
                        body,
                        FileBody::Layer(_) | FileBody::Tree(ArchiveDirectory { lenient: true, .. })
                    ) {
                        mode = metadata.mode.unwrap_or(mode);
                    }
                    mtime = metadata.mtime;
                }
                Err(reason) => self.reports.push(format!("layer {number}: {reason}")),
            }
        }
        let mut wanted = wanted(number, layer, name);
        // Only the label of a directory is certain before its first bytes are read.
        if matches!(body, FileBody::Tree(ArchiveDirectory { lenient: false, .. })) {
            wanted.shape = NamedShape::Directory;
        }
        self.files.push(UnnamedFile { wanted, mode, mtime, body, otherwise: FileBody::Layer(number) });
    }

    fn add_joined(&mut self, number: usize, layer: &Descriptor, layers: Vec<FileSegment>) {
        let mut wanted = wanted(number, layer, asked(self.class, layer));
        wanted.identity = None;
        let body = FileBody::Joined(layers);
        self.files.push(UnnamedFile { wanted, mode: MODE, mtime: None, body: body.clone(), otherwise: body });
    }

    fn add_snapshot(&mut self, config: Option<&[u8]>) {
        let files =
            config.ok_or_else(|| "the config could not be read".to_owned()).and_then(SnapshotFiles::parse);
        let mut files = files
            .map_err(|reason| {
                self.reports.push(format!("{reason}: files may be packed, and are shown as they are stored"));
            })
            .ok();
        for (number, layer) in self.manifest.layers.iter().enumerate() {
            if is_nothing(layer) {
                continue;
            }
            let mut wish = UnnamedFile {
                wanted: RequestedFile::layer(number, layer),
                mode: MODE,
                mtime: None,
                body: FileBody::Layer(number),
                otherwise: FileBody::Layer(number),
            };
            let stored = match (&mut files, layer.title()) {
                (Some(files), Some(title)) => files.take(title, layer.size).map_err(|reason| {
                    format!("layer {number}: {}: shown as it is stored: {reason}", shown(title))
                }),
                _ => Err(String::new()),
            };
            match stored {
                Ok(stored) => {
                    wish.mode = stored.mode.unwrap_or(MODE);
                    if let Some((size, runs)) = stored.sparse {
                        wish.body = FileBody::Sparse { layer: number, size, runs };
                        wish.otherwise = wish.body.clone();
                        wish.wanted.identity = None;
                    }
                }
                Err(reason) => {
                    wish.wanted.name = None;
                    self.reports.extend(Some(reason).filter(|reason| !reason.is_empty()));
                }
            }
            self.files.push(wish);
        }
    }

    /// A config with a title is a file as well.
    fn add_config(&mut self) {
        let Some(config) = &self.manifest.config else { return };
        let Some(title) = config.title().filter(|_| !config.media_type.is_empty_descriptor()) else { return };
        let wanted = RequestedFile {
            subject: "config".to_owned(),
            source: "title",
            name: Some(title.to_owned()),
            number: self.manifest.layers.len(),
            fallback: format!("config-{}{}", config.digest.short(), extension(&config.media_type)),
            identity: Some(config.digest.clone()),
            shape: NamedShape::File,
        };
        let (body, otherwise) = (FileBody::Config, FileBody::Config);
        self.files.push(UnnamedFile { wanted, mode: MODE, mtime: None, body, otherwise });
    }

    /// The digest of a directory's uncompressed archive; `None` without a valid annotation.
    fn unpacked(&mut self, number: usize, layer: &Descriptor) -> Option<Digest> {
        let text = layer.annotations.get(UNPACKED)?;
        text.parse()
            .map_err(|error| {
                self.reports.push(format!("layer {number}: {UNPACKED} is not compared: {error}"));
            })
            .ok()
    }

    /// The name of a layer's directory behind its number; `None` for the digest.
    fn archive_name(&mut self, number: usize, layer: &Descriptor) -> Option<String> {
        let text = layer.annotations.get(TIMONI_TYPE).filter(|_| self.class == ArtifactKind::Timoni)?;
        let name = text.replace('/', "_");
        let usable =
            !matches!(name.as_str(), "" | "." | "..") && name.len() <= MAX_DIRECTORY && !name.contains('\0');
        if !usable {
            self.reports.push(format!("layer {number}: {TIMONI_TYPE} {} cannot be a name", shown(text)));
        }
        usable.then_some(name)
    }

    fn finish(self) -> ArtifactContents {
        let Self { class, files, archives, tops, mut reports, manifest } = self;
        let (wanted, rest): (Vec<_>, Vec<_>) = files
            .into_iter()
            .map(|UnnamedFile { wanted, mode, mtime, body, otherwise }| {
                (wanted, (mode, mtime, body, otherwise))
            })
            .unzip();
        let mut rest: Vec<_> = rest.into_iter().map(Some).collect();
        let names = file_names(wanted);
        reports.extend(names.reports);
        let files = names.files.into_iter().filter_map(|name| {
            let (mode, mtime, body, otherwise) = rest.get_mut(name.item)?.take()?;
            let as_asked = !name.fallback || body == otherwise;
            let (mode, body) = if as_asked { (mode, body) } else { (MODE, otherwise) };
            Some(ArtifactFile { path: name.path, mode, mtime, body })
        });
        let mut files: Vec<ArtifactFile> = files.collect();
        files.extend(tops.into_iter().map(|tree| ArtifactFile {
            path: ".".to_owned(),
            mode: DIRECTORY_MODE,
            mtime: None,
            body: FileBody::Tree(tree),
        }));
        let union = if class == ArtifactKind::ContainerImage { UnionRules::Image } else { UnionRules::Plain };
        // "applying the layers to an empty directory" (image-spec manifest.md), none of them.
        let is_empty_tree = union == UnionRules::Image && manifest.layers.iter().all(is_nothing);
        ArtifactContents { files, archives, union, is_empty_tree, reports }
    }
}

fn wanted(number: usize, layer: &Descriptor, name: Option<RequestedName>) -> RequestedFile {
    let (source, name) = name.map_or(("title", None), |asked| (asked.source, Some(asked.name)));
    RequestedFile { source, name, ..RequestedFile::layer(number, layer) }
}

/// The descriptor of image-spec for "no layer". A longer content has another meaning.
fn is_nothing(layer: &Descriptor) -> bool {
    layer.media_type.is_empty_descriptor() && layer.size <= 2
}

/// Whether a name means the directory of all files.
fn is_top(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('/') && name.split('/').all(|part| matches!(part, "" | "."))
}

/// The directory inside its archive that a layer called `name` shows, and whether its first bytes decide that it is
/// an archive. `None` for a layer that is a file by all labels.
fn directory(class: ArtifactKind, layer: &Descriptor, name: &str) -> Option<(String, bool)> {
    if is_directory(layer) {
        return Some((name.to_owned(), false));
    }
    let tar = layer.media_type.claims_tar();
    match class {
        ArtifactKind::ModelPack | ArtifactKind::DockerModel => tar.then(|| (name.to_owned(), true)),
        // regctl names a directory with a slash at the end; its archive has names relative to it.
        ArtifactKind::Unknown if name.ends_with('/') => Some((String::new(), true)),
        // The type that oras-py gives to directories; ORAS gives it to no plain file by default.
        ArtifactKind::Unknown => {
            let packed = tar && !layer.media_type.claims_uncompressed_tar();
            (packed && !is_tar_name(name) && !is_compressed_name(name)).then(|| (name.to_owned(), true))
        }
        _ => None,
    }
}

/// Whether a layer is a directory with a name.
fn is_directory(layer: &Descriptor) -> bool {
    layer.title().is_some() && layer.annotations.get(UNPACK).is_some_and(|value| value == "true")
}

/// Whether the layers of a container image are applied by their bytes, whatever their labels: all or none, because
/// a tree without one of its layers is another tree. None are if every layer has a title, or the type of a file system
/// or a disk.
fn has_root_file_system(manifest: &Manifest) -> bool {
    let mut layers = manifest.layers.iter().filter(|layer| !is_nothing(layer));
    layers.any(|layer| {
        let kind = &layer.media_type;
        kind.claims_tar()
            || kind.file_system().is_none() && kind.disk_format().is_none() && layer.title().is_none()
    })
}

/// The report about a layer of a container image that is in no tree, with a hint for its use.
fn not_merged(number: usize, layer: &Descriptor) -> String {
    let blob = format!("blobs/{}/{}", layer.digest.algorithm_name(), layer.digest.encoded());
    let (what, how) = match (layer.media_type.file_system(), extension(&layer.media_type)) {
        (Some("sif"), _) => ("a Singularity image", format!("run {blob} with singularity or apptainer")),
        (Some(system), end) if end.ends_with(".zst") || end.ends_with(".gz") => {
            (system, format!("unpack {blob}, then mount -t {system} -o ro,loop"))
        }
        (Some(system), _) => (system, format!("mount -t {system} -o ro,loop {blob} DIRECTORY")),
        (None, _) => ("no archive", format!("its bytes are in {blob}")),
    };
    let what = match what {
        "squashfs" => "a squashfs file system",
        "erofs" => "an EROFS file system",
        what => what,
    };
    format!("layer {number}: by its label it is {what}, so it is not in merged/: {how}")
}

/// Whether a layer belongs in `merged/`: the label decides, except for plain files with the default type of ORAS.
fn is_archive(class: ArtifactKind, layer: &Descriptor, name: Option<&RequestedName>) -> bool {
    let tar = layer.media_type.claims_tar();
    let named_tar = name.map(|asked| is_tar_name(&asked.name));
    match class {
        ArtifactKind::Flux
        | ArtifactKind::Timoni
        | ArtifactKind::KitOps
        | ArtifactKind::Helm
        | ArtifactKind::Bottle => tar,
        // All of them or none, decided by the manifest alone.
        ArtifactKind::ContainerImage => false,
        ArtifactKind::NosiRootfs | ArtifactKind::NosiNetboot => {
            // The type names the compression; only the title names the content.
            let own = layer.media_type.essence().contains(".layer.v1+");
            (tar || own) && named_tar != Some(false)
        }
        // The first images have the word tar in the type of the image file itself.
        ArtifactKind::MachineOs | ArtifactKind::Sif => named_tar == Some(true),
        ArtifactKind::ModelPack | ArtifactKind::DockerModel => tar && name.is_none(),
        ArtifactKind::Tart
        | ArtifactKind::Vetu
        | ArtifactKind::Lume
        | ArtifactKind::Geranos
        | ArtifactKind::Snapshot => false,
        _ => {
            tar && !is_directory(layer)
                && named_tar != Some(false)
                && !name.is_some_and(|name| is_top(&name.name))
        }
    }
}

/// Whether an unnamed layer is only a piece of a disk, which `disk/` has as a whole.
fn is_piece_of_disk(class: ArtifactKind, layer: &Descriptor) -> bool {
    let essence = layer.media_type.essence();
    match class {
        ArtifactKind::Tart => essence == TART_DISK,
        ArtifactKind::Vetu => essence == VETU_DISK,
        ArtifactKind::Lume => {
            essence.starts_with("application/vnd.trycua.lume.disk.")
                || essence.starts_with("application/octet-stream+lz")
        }
        _ => false,
    }
}

/// The name of a chart's layer.
fn chart_file(layer: &Descriptor, chart: &str) -> Option<RequestedName> {
    let end = match layer.media_type.claims_tar() {
        true => ".tgz",
        false if layer.media_type.essence().ends_with(".prov") => ".tgz.prov",
        false => return None,
    };
    Some(RequestedName { source: "chart", name: format!("{chart}{end}") })
}
