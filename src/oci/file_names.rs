//! File names for the layers of an artifact, from their titles or other names.
//!
//! Titles are untrusted. A title that is a relative path of plain components is used unchanged; of an absolute path the
//! last component is used. Any other title is replaced by `NN-<hex12><ext>`. So a title cannot leave its directory, no
//! layer is hidden, and every deviation is reported.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use super::{Descriptor, Digest, MediaType, StreamEncoding};

/// Limit of a file name in Linux, in bytes.
const NAME_MAX: usize = 255;
/// Limit of a presented path, in bytes.
const PATH_MAX: usize = 4096;
/// Characters of a title that a report shows.
const MAX_SHOWN_TITLE_CHARS: usize = 200;

/// What a name is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedShape {
    /// A file: no name is below it.
    File,
    /// A directory that is pulled into whatever exists below its name, as ORAS does.
    Directory,
}

/// A request for a file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedFile {
    /// Description for reports: `layer 3`.
    pub subject: String,
    /// Origin of the name, for reports: `title`.
    pub source: &'static str,
    /// The requested name, unchecked; `None` to use the fallback.
    pub name: Option<String>,
    /// Number that is appended to distinguish it from another file of that name.
    pub number: usize,
    /// The name if the requested one is unusable: one plain component.
    pub fallback: String,
    /// Two requests with the same name and identity are one file; `None` equals no other.
    pub identity: Option<Digest>,
    /// What the name is for.
    pub shape: NamedShape,
}

/// The resulting names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileNames {
    /// In the order of the requests. Invariant: paths are unique, and none is below that of a file.
    pub files: Vec<FileName>,
    /// One line for each request that did not get exactly its name.
    pub reports: Vec<String>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileName {
    /// A relative path of plain components, separated by `/`.
    pub path: String,
    /// Index of the request.
    pub item: usize,
    /// Whether the path is the fallback name.
    pub fallback: bool,
}

impl RequestedFile {
    /// A layer by its title; `number` is its index in the manifest.
    pub fn layer(number: usize, layer: &Descriptor) -> Self {
        Self {
            subject: format!("layer {number}"),
            source: "title",
            name: layer.title().map(str::to_owned),
            number,
            fallback: fallback_name(number, layer),
            identity: Some(layer.digest.clone()),
            shape: NamedShape::File,
        }
    }
}

/// Assigns names to the requests. Equal names with equal identity are one file. Equal names with different identity
/// get the suffix `~NN`, `NN` being the number. A name that is not a relative path, or that would turn a file into a
/// directory, is replaced by the fallback.
pub fn file_names(wanted: impl IntoIterator<Item = RequestedFile>) -> FileNames {
    let mut names = FileNamer::default();
    for (item, wanted) in wanted.into_iter().enumerate() {
        match &wanted.name {
            Some(name) => names.add_named(item, &wanted, name),
            None => {
                names.add_fallback(item, &wanted);
            }
        }
    }
    names.report_nested();
    names.result
}

/// The paths inside of directories: pairs of a path and the innermost directory above it, by index.
pub fn nested(paths: &[(&str, NamedShape)]) -> Vec<(usize, usize)> {
    let order_of = |at: &usize| paths[*at].0.bytes().map(|byte| if byte == b'/' { 0 } else { byte });
    let mut order: Vec<usize> = (0..paths.len()).collect();
    order.sort_by(|one, other| order_of(one).cmp(order_of(other)));
    let (mut above, mut pairs): (Vec<usize>, _) = (Vec::new(), Vec::new());
    for at in order {
        let (path, shape) = paths[at];
        let is_around =
            |around: &usize| path.strip_prefix(paths[*around].0).is_some_and(|rest| rest.starts_with('/'));
        while above.last().is_some_and(|around| !is_around(around)) {
            above.pop();
        }
        pairs.extend(above.last().map(|around| (at, *around)));
        if shape == NamedShape::Directory {
            above.push(at);
        }
    }
    pairs
}

/// `NN-<hex12><ext>`: the name of a layer that has no usable title.
pub fn fallback_name(index: usize, layer: &Descriptor) -> String {
    format!("{index:02}-{}{}", layer.digest.short(), extension(&layer.media_type))
}

/// The file extension for a media type, with its dot; empty if the type implies none.
pub fn extension(media_type: &MediaType) -> &'static str {
    const SUFFIXES: [(&str, &str); 23] = [
        ("+json", ".json"),
        ("/json", ".json"),
        ("/plain", ".txt"),
        ("/wasm", ".wasm"),
        ("+wasm", ".wasm"),
        ("+rego", ".rego"),
        ("/html", ".html"),
        ("/markdown", ".md"),
        ("yaml", ".yaml"),
        ("gguf", ".gguf"),
        (".safetensors", ".safetensors"),
        (".prov", ".prov"),
        (".qcow2", ".qcow2"),
        ("+qcow2", ".qcow2"),
        (".raw", ".raw"),
        ("+raw", ".raw"),
        ("+vmdk", ".vmdk"),
        ("+vhd", ".vhd"),
        ("+vhdx", ".vhdx"),
        ("/zip", ".zip"),
        ("+zip", ".zip"),
        (".sif", ".sif"),
        ("/octet-stream", ".bin"),
    ];
    let essence = media_type.essence();
    match (media_type.claims_tar(), media_type.compression()) {
        (true, encoding) => encoding.unwrap_or(StreamEncoding::Plain).names().tar_extension,
        (false, compression) => match (media_type.file_system(), compression) {
            (Some("squashfs"), _) => ".squashfs",
            (Some("erofs"), Some(StreamEncoding::Zstd)) => ".erofs.zst",
            (Some("erofs"), Some(StreamEncoding::Gzip)) => ".erofs.gz",
            (Some("erofs"), _) => ".erofs",
            (Some("sif"), _) => ".sif",
            (_, Some(compression)) => compression.names().extension,
            (_, None) => {
                SUFFIXES.iter().find(|(end, _)| essence.ends_with(end)).map_or("", |(_, extension)| extension)
            }
        },
    }
}

/// The ending of archives that no decoder reads.
const LZMA_TAR: &str = ".tar.lzma";

/// Whether the name has the extension of an archive.
pub fn is_tar_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut endings = StreamEncoding::ALL.iter().flat_map(|encoding| encoding.names().tar_endings);
    name.ends_with(LZMA_TAR) || endings.any(|end| name.ends_with(end))
}

/// Whether the name has the extension of a compressed file.
pub fn is_compressed_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    StreamEncoding::in_titles().any(|encoding| name.ends_with(encoding.names().extension))
}

#[derive(Default)]
struct FileNamer {
    result: FileNames,
    /// Paths of files in the form of [`key`]: a path is directly followed by those below it, so one lookup finds any.
    files: BTreeMap<String, NamedShape>,
    /// What requested each name that was kept, for reports, and the request.
    kept: Vec<(String, usize)>,
    /// The path assigned to each name and identity.
    seen: BTreeMap<(String, Digest), String>,
}

impl FileNamer {
    fn add_named(&mut self, item: usize, wanted: &RequestedFile, name: &str) {
        let shown: String = name.chars().take(MAX_SHOWN_TITLE_CHARS).collect();
        let what = format!("{}: {} {shown:?}", wanted.subject, wanted.source);
        let plain = match plain_path(name) {
            Ok(plain) => plain,
            Err(reason) => {
                let path = self.add_fallback(item, wanted);
                return self.report(format!("{what} {reason}: named {path:?}"));
            }
        };
        if name.starts_with('/') {
            self.report(format!("{what} is an absolute path: its last component is the name"));
        }
        let name = plain.as_str();
        let key = wanted.identity.clone().map(|identity| (name.to_owned(), identity));
        if let Some(path) = key.as_ref().and_then(|key| self.seen.get(key)) {
            let line = format!("{what} exists already with the same digest: {path:?}");
            return self.report(line);
        }
        let path = if self.conflicts(name, wanted.shape) {
            let path = self.add_fallback(item, wanted);
            self.report(format!("{what} is both a file and a directory: named {path:?}"));
            path
        } else if self.has(name) {
            let other = format!("{name}~{:02}", wanted.number);
            let usable = check(&other).is_ok() && self.is_free(&other, wanted.shape);
            let path =
                if usable { self.take(other, item, wanted.shape) } else { self.add_fallback(item, wanted) };
            self.report(format!("{what} exists already with another digest: named {path:?}"));
            path
        } else {
            self.kept.push((what, item));
            self.take(name.to_owned(), item, wanted.shape)
        };
        if let Some(key) = key {
            self.seen.insert(key, path);
        }
    }

    /// Assigns the fallback name, with a suffix if another request has it.
    fn add_fallback(&mut self, item: usize, wanted: &RequestedFile) -> String {
        let mut name = wanted.fallback.clone();
        for attempt in 0.. {
            if self.is_free(&name, NamedShape::File) {
                break;
            }
            let again = if attempt > 0 { format!(".{attempt}") } else { String::new() };
            name = format!("{}~{:02}{again}", wanted.fallback, wanted.number);
        }
        let path = self.take(name, item, NamedShape::File);
        if let Some(file) = self.result.files.last_mut() {
            file.fallback = true;
        }
        path
    }

    fn take(&mut self, path: String, item: usize, shape: NamedShape) -> String {
        self.files.insert(key(&path), shape);
        self.result.files.push(FileName { path: path.clone(), item, fallback: false });
        path
    }

    /// Whether this path, or another one around it, would be both a file and a directory.
    fn conflicts(&self, path: &str, shape: NamedShape) -> bool {
        let key = key(path);
        // Nothing is below a file, so a file above is the path before.
        let before = self.files.range::<str, _>((Unbounded, Excluded(key.as_str()))).next_back();
        let after = self.files.range::<str, _>((Excluded(key.as_str()), Unbounded)).next();
        before.is_some_and(|(before, shape)| *shape == NamedShape::File && is_below(&key, before))
            || shape == NamedShape::File && after.is_some_and(|(after, _)| is_below(after, &key))
    }

    fn has(&self, path: &str) -> bool {
        self.files.contains_key(&key(path))
    }

    fn is_free(&self, path: &str, shape: NamedShape) -> bool {
        !self.has(path) && !self.conflicts(path, shape)
    }

    /// Reports the names that are in a directory of another layer.
    fn report_nested(&mut self) {
        let paths: Vec<(&str, NamedShape)> = self
            .result
            .files
            .iter()
            .map(|file| {
                (&file.path[..], self.files.get(&key(&file.path)).copied().unwrap_or(NamedShape::File))
            })
            .collect();
        let mut lines = Vec::new();
        for (inside, around) in nested(&paths) {
            let item = self.result.files[inside].item;
            if let Some((what, _)) = self.kept.iter().find(|(_, kept)| *kept == item) {
                let around: String = paths[around].0.chars().take(MAX_SHOWN_TITLE_CHARS).collect();
                lines.push(format!(
                    "{what} is in the directory {around:?}: the later of two layers counts there"
                ));
            }
        }
        self.result.reports.extend(lines);
    }

    fn report(&mut self, line: String) {
        self.result.reports.push(line);
    }
}

/// Whether the [`key`] `path` is below the key `above`.
fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.starts_with(SEPARATOR))
}

/// Separator of components in a [`key`]: less than every character of a name.
const SEPARATOR: char = '\0';

/// Sort key of a path: no other path sorts between a path and those below it.
fn key(path: &str) -> String {
    path.chars().map(|char| if char == '/' { SEPARATOR } else { char }).collect()
}

/// Normalizes a title as a pull would write it: without `.` and empty components, and the last component of an
/// absolute path. The error is the reason why there is no such path.
pub fn plain_path(title: &str) -> Result<String, String> {
    let mut components: Vec<&str> = title.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if title.starts_with('/') {
        components.drain(..components.len().saturating_sub(1));
    }
    let plain = components.join("/");
    if plain.is_empty() && !title.is_empty() {
        return Err("names no file".into());
    }
    check(&plain).map(|()| plain)
}

/// Checks that a title is a relative path of plain components; the error is the reason why not.
fn check(title: &str) -> Result<(), String> {
    if title.is_empty() {
        return Err("is empty".into());
    }
    if title.starts_with('/') {
        return Err("is an absolute path".into());
    }
    if title.len() > PATH_MAX {
        return Err(format!("has {} bytes, more than {PATH_MAX}", title.len()));
    }
    if title.contains('\0') {
        return Err("has a NUL byte".into());
    }
    for component in title.split('/') {
        match component {
            "" => return Err("has an empty component".into()),
            "." | ".." => return Err(format!("has a {component:?} component")),
            long if long.len() > NAME_MAX => {
                return Err(format!("has a component of {} bytes, more than {NAME_MAX}", long.len()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layer(title: Option<&str>, content: &str) -> Descriptor {
        let annotations =
            title.map(|title| ("org.opencontainers.image.title".to_owned(), title.to_owned())).into_iter();
        Descriptor {
            media_type: "application/octet-stream".into(),
            digest: Digest::sha256(content.as_bytes()),
            size: content.len() as u64,
            annotations: annotations.collect(),
            platform: None,
            artifact_type: None,
            data: None,
            urls: Vec::new(),
            name: None,
        }
    }

    fn names(layers: &[Descriptor]) -> FileNames {
        file_names(layers.iter().enumerate().map(|(number, layer)| RequestedFile::layer(number, layer)))
    }

    fn named(layers: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let layers: Vec<_> = layers.iter().map(|(title, content)| layer(Some(title), content)).collect();
        let names = names(&layers);
        (names.files.into_iter().map(|file| file.path).collect(), names.reports)
    }

    /// sha256 of "a".
    const A: &str = "ca978112ca1b";

    #[test]
    fn a_title_is_a_relative_path() {
        let (paths, reports) =
            named(&[("model.bin", "a"), ("sub/dir/x", "b"), ("...", "c"), ("A", "d"), ("a", "e")]);
        assert_eq!(paths, ["model.bin", "sub/dir/x", "...", "A", "a"]);
        assert!(reports.is_empty());
    }

    #[test]
    fn a_title_that_is_no_relative_path_falls_back_and_is_reported() {
        let long = "x".repeat(256);
        let deep = format!("{}x", "xx/".repeat(1366));
        for (title, reason) in [
            ("", "is empty"),
            ("/", "names no file"),
            (".", "names no file"),
            (".//", "names no file"),
            ("/..", "has a \"..\" component"),
            ("../x", "has a \"..\" component"),
            ("a/../../x", "has a \"..\" component"),
            ("a/..", "has a \"..\" component"),
            ("a\0b", "has a NUL byte"),
            (&long, "has a component of 256 bytes"),
            (&deep, "has 4099 bytes"),
        ] {
            let (paths, reports) = named(&[(title, "a")]);
            assert_eq!(paths, [format!("00-{A}.bin")], "{title:?}");
            assert!(reports.len() == 1 && reports[0].contains(reason), "{reports:?}");
            assert!(reports[0].len() < 400);
        }
        assert_eq!(named(&[(&long[..255], "a")]).0, [&long[..255]]);
        assert_eq!(named(&[(&deep[..4094], "a")]).1.len(), 0);
    }

    #[test]
    fn a_title_is_the_path_that_pulling_writes() {
        let (paths, reports) = named(&[("./x", "a"), ("a//b", "b"), ("a/./c/", "c"), ("d/", "d")]);
        assert_eq!((paths.join(" "), reports.len()), ("x a/b a/c d".into(), 0));
        let (paths, reports) = named(&[("/tmp/x/os.img.xz", "a"), ("/srv/os.img.xz", "b")]);
        assert_eq!(paths, ["os.img.xz", "os.img.xz~01"]);
        assert!(reports[0].contains("absolute path: its last component"), "{reports:?}");
    }

    #[test]
    fn equal_title_and_digest_are_one_file() {
        let (paths, reports) = named(&[("x", "a"), ("x", "a"), ("y", "a")]);
        assert_eq!(paths, ["x", "y"]);
        assert_eq!(reports.len(), 1);
    }

    #[test]
    fn equal_title_and_other_digest_get_the_number_of_the_layer() {
        let (paths, reports) =
            named(&[("d/x.bin", "a"), ("d/x.bin", "b"), ("d/x.bin", "c"), ("d/x.bin", "b")]);
        assert_eq!(paths, ["d/x.bin", "d/x.bin~01", "d/x.bin~02"]);
        assert_eq!(reports.len(), 3);
        assert!(reports[2].contains("same digest: \"d/x.bin~01\""), "{}", reports[2]);
    }

    #[test]
    fn title_in_use_by_another_blob_is_not_assigned_twice() {
        let (paths, _) = named(&[("x~02", "a"), ("x", "b"), ("x", "c")]);
        assert_eq!(paths[..2], ["x~02", "x"]);
        assert!(paths[2].starts_with("02-"));
        let (paths, _) = named(&[("x", "b"), ("x", "c"), ("x~01", "a")]);
        assert_eq!(paths, ["x", "x~01", "x~01~02"]);
        let stolen = format!("01-{A}.bin");
        let (paths, _) = named(&[(&stolen, "b"), ("/", "a")]);
        assert_eq!(paths[1], format!("{stolen}~01"));
    }

    #[test]
    fn a_file_is_not_a_directory_and_the_later_one_falls_back() {
        for titles in [[("a", "b"), ("a/b", "a")], [("a/b/c", "b"), ("a/b", "a")], [("a/b", "b"), ("a", "a")]]
        {
            let (paths, reports) = named(&titles);
            assert_eq!(paths, [titles[0].0.to_owned(), format!("01-{A}.bin")]);
            assert!(reports[0].contains("both a file and a directory"));
        }
    }

    #[test]
    fn a_directory_takes_the_names_below_it_in_any_order() {
        let named = |titles: &[(&str, NamedShape)]| {
            let requests = titles.iter().enumerate().map(|(number, (title, shape))| RequestedFile {
                shape: *shape,
                ..RequestedFile::layer(number, &layer(Some(title), &number.to_string()))
            });
            let names = file_names(requests);
            (names.files.iter().map(|file| file.path.clone()).collect::<Vec<_>>(), names.reports)
        };
        use NamedShape::{Directory, File};
        for titles in [
            [("d", Directory), ("d/y", File)],
            [("d/y", File), ("d", Directory)],
            [("d", Directory), ("d/e", Directory)],
            [("d/e/f/y", File), ("d", Directory)],
        ] {
            let (paths, reports) = named(&titles);
            assert_eq!(paths, titles.map(|(title, _)| title.to_owned()));
            assert!(reports.len() == 1 && reports[0].contains("is in the directory \"d\""), "{reports:?}");
        }
        let (paths, _) = named(&[("d", Directory), ("d/e", Directory), ("d/x", File), ("d/x/y", File)]);
        assert_eq!(paths[..3], ["d", "d/e", "d/x"]);
        assert!(paths[3].starts_with("03-"), "a file in a directory is still a file");
        let (paths, _) =
            named(&[("d-a", File), ("d", Directory), ("d.b", File), ("d/e", Directory), ("d/c", File)]);
        assert_eq!(paths, ["d-a", "d", "d.b", "d/e", "d/c"]);
        let (paths, _) = named(&[("d/x", File), ("d/x", Directory)]);
        assert_eq!(paths, ["d/x", "d/x~01"]);
    }

    #[test]
    fn names_sorted_between_a_directory_and_its_content_hide_no_conflict() {
        // '-' and '.' sort before '/'.
        let (paths, _) = named(&[("a", "a"), ("a-b", "b"), ("a.b", "c"), ("a/c", "d")]);
        assert_eq!(paths[..3], ["a", "a-b", "a.b"]);
        assert!(paths[3].starts_with("03-"), "{paths:?}");
    }

    #[test]
    fn paths_of_thousands_of_directories_cost_no_more_than_their_length() {
        let deep = "x/".repeat(2000);
        let layers: Vec<_> = (0..1000).map(|number| layer(Some(&format!("{deep}{number}")), "a")).collect();
        assert_eq!(names(&layers).files.len(), 1000);
    }

    #[test]
    fn files_without_identity_are_never_collapsed() {
        let one = RequestedFile { identity: None, ..RequestedFile::layer(0, &layer(Some("x"), "a")) };
        let names = file_names([one.clone(), RequestedFile { number: 1, ..one }]);
        assert_eq!(names.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["x", "x~01"]);
    }

    #[test]
    fn untitled_layers_are_named_by_number_and_digest() {
        let layers = [layer(None, "a"), layer(Some("x"), "b")];
        let named = names(&layers);
        assert_eq!(named.files[0], FileName { path: format!("00-{A}.bin"), item: 0, fallback: true });
        assert!(named.reports.is_empty());
    }

    #[test]
    fn an_extension_follows_from_the_media_type() {
        for (kind, extension) in [
            ("application/vnd.oci.image.layer.v1.tar+gzip", ".tar.gz"),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", ".tar.gz"),
            ("application/vnd.oci.image.layer.v1.tar+zstd", ".tar.zst"),
            ("application/vnd.oci.image.layer.v1.tar", ".tar"),
            ("application/x-tgz", ".tar.gz"),
            ("application/vnd.cncf.falco.plugin.layer.v1+tar.gz", ".tar.gz"),
            ("application/vnd.example.metadata.v1.tar.xz", ".tar.xz"),
            ("application/vnd.lfedge.disk.layer.v1+qcow2", ".qcow2"),
            ("application/gzip", ".gz"),
            ("application/zip", ".zip"),
            ("application/vnd.nosi.disk-image.layer.v1+gzip", ".gz"),
            ("application/vnd.cncf.helm.config.v1+json", ".json"),
            ("text/plain; charset=utf-8", ".txt"),
            ("application/wasm", ".wasm"),
            ("application/vnd.cncf.helm.chart.provenance.v1.prov", ".prov"),
            ("application/vnd.docker.ai.gguf", ".gguf"),
            ("application/vnd.cocoonstack.disk.qcow2", ".qcow2"),
            ("application/octet-stream", ".bin"),
            ("application/vnd.example", ""),
            ("", ""),
        ] {
            assert_eq!(super::extension(&kind.into()), extension, "{kind}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_titles_are_no_two_files_collide_and_no_layer_is_lost(
            layers in prop::collection::vec(("[ab/.~0]{0,5}", 0u8..3), 0..12)
        ) {
            let layers: Vec<_> = layers.iter().map(|(title, content)| layer(Some(title), &content.to_string())).collect();
            let names = names(&layers);
            for file in &names.files {
                prop_assert!(check(&file.path).is_ok());
                for other in names.files.iter().filter(|other| other.item != file.item) {
                    let below = format!("{}/", file.path);
                    prop_assert!(other.path != file.path && !other.path.starts_with(&below));
                }
            }
            let unnamed = layers.len() - names.files.len();
            let collapsed = names.reports.iter().filter(|line| line.contains("the same digest")).count();
            prop_assert_eq!(unnamed, collapsed);
        }
    }
}
