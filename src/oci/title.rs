//! File names for the layers of an artifact, from their titles.
//!
//! Never lets a title leave its directory, and never hides a layer: a title that cannot be used gives the layer another
//! name, and every such deviation is reported. The idea: titles are claims of whoever pushed; a title that is a relative
//! path of plain components is taken as it is, anything else becomes `NN-<hex12><ext>`.

use std::collections::{BTreeMap, BTreeSet};

use super::{Descriptor, Digest, MediaType};

/// The longest file name Linux has, in bytes.
const NAME_MAX: usize = 255;
/// The longest path that is presented, in bytes.
const PATH_MAX: usize = 4096;
/// Characters of a title that a report shows.
const SHOWN: usize = 200;

/// Layers as files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileNames {
    /// In manifest order. Invariant: paths are unique, and none is a directory of another.
    pub files: Vec<FileName>,
    /// One line for each layer that has not simply its title as its name.
    pub reports: Vec<String>,
}

/// One layer as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileName {
    /// A relative path of plain components, separated by `/`.
    pub path: String,
    /// Which layer.
    pub layer: usize,
}

/// Names layers by their titles. Equal title and digest are one file; equal title and other digest get `~NN` at the end,
/// `NN` being the number of the layer; a title that would make a file a directory, or is no relative path, falls back.
///
/// Layers are given with their numbers in the manifest; which of them are files is the caller's choice.
pub fn file_names<'a>(layers: impl IntoIterator<Item = (usize, &'a Descriptor)>) -> FileNames {
    let mut names = Namer::default();
    for (index, layer) in layers {
        match layer.title() {
            Some(title) => names.add_titled(index, layer, title),
            None => {
                names.add_fallback(index, layer);
            }
        }
    }
    names.result
}

/// `NN-<hex12><ext>`: the name of a layer that has no usable title.
pub fn fallback_name(index: usize, layer: &Descriptor) -> String {
    format!("{index:02}-{}{}", layer.digest.short(), extension(&layer.media_type))
}

/// The extension that a media type deserves, with its dot; nothing for types that say nothing.
pub fn extension(media_type: &MediaType) -> &'static str {
    const SUFFIXES: [(&str, &str); 16] = [
        ("+json", ".json"),
        ("/json", ".json"),
        ("/plain", ".txt"),
        ("/wasm", ".wasm"),
        ("/html", ".html"),
        ("/markdown", ".md"),
        ("yaml", ".yaml"),
        ("gguf", ".gguf"),
        (".safetensors", ".safetensors"),
        (".prov", ".prov"),
        (".qcow2", ".qcow2"),
        (".raw", ".raw"),
        ("/zip", ".zip"),
        ("+zip", ".zip"),
        (".sif", ".sif"),
        ("/octet-stream", ".bin"),
    ];
    let essence = media_type.essence();
    let gzip = essence.ends_with("gzip") || essence.ends_with("tgz") || essence.ends_with("compressed-tar");
    let zstd = essence.ends_with("zstd");
    match (media_type.claims_tar(), gzip, zstd) {
        (true, true, _) => ".tar.gz",
        (true, _, true) => ".tar.zst",
        (true, ..) => ".tar",
        (false, true, _) => ".gz",
        (false, _, true) => ".zst",
        _ => SUFFIXES.iter().find(|(end, _)| essence.ends_with(end)).map_or("", |(_, extension)| extension),
    }
}

#[derive(Default)]
struct Namer {
    result: FileNames,
    /// Paths of files, with the digests of their layers.
    files: BTreeMap<String, Digest>,
    /// Every directory above a file.
    directories: BTreeSet<String>,
    /// Which title and digest became which path.
    seen: BTreeMap<(String, Digest), String>,
}

impl Namer {
    fn add_titled(&mut self, index: usize, layer: &Descriptor, title: &str) {
        let shown: String = title.chars().take(SHOWN).collect();
        if let Err(reason) = check(title) {
            let name = self.add_fallback(index, layer);
            return self.report(format!("layer {index}: title {shown:?} {reason}: named {name:?}"));
        }
        let key = (title.to_owned(), layer.digest.clone());
        if let Some(path) = self.seen.get(&key) {
            let line =
                format!("layer {index}: title {shown:?} is there already with the same digest: {path:?}");
            return self.report(line);
        }
        let path = if self.conflicts(title) {
            let name = self.add_fallback(index, layer);
            self.report(format!(
                "layer {index}: title {shown:?} is both a file and a directory: named {name:?}"
            ));
            name
        } else if self.files.contains_key(title) {
            let other = format!("{title}~{index:02}");
            let usable = check(&other).is_ok() && self.is_free(&other);
            let name = if usable { self.take(other, index, layer) } else { self.add_fallback(index, layer) };
            self.report(format!(
                "layer {index}: title {shown:?} is there already with another digest: named {name:?}"
            ));
            name
        } else {
            self.take(title.to_owned(), index, layer)
        };
        self.seen.insert(key, path);
    }

    /// Names the layer by its digest; somebody may have titled another layer so.
    fn add_fallback(&mut self, index: usize, layer: &Descriptor) -> String {
        let mut name = fallback_name(index, layer);
        while !self.is_free(&name) {
            name.push_str(&format!("~{index:02}"));
        }
        self.take(name, index, layer)
    }

    fn take(&mut self, path: String, layer: usize, descriptor: &Descriptor) -> String {
        self.directories.extend(parents(&path).map(str::to_owned));
        self.files.insert(path.clone(), descriptor.digest.clone());
        self.result.files.push(FileName { path: path.clone(), layer });
        path
    }

    /// Whether a file of this path would be a directory of another, or the other way round.
    fn conflicts(&self, path: &str) -> bool {
        self.directories.contains(path) || parents(path).any(|parent| self.files.contains_key(parent))
    }

    fn is_free(&self, path: &str) -> bool {
        !self.files.contains_key(path) && !self.conflicts(path)
    }

    fn report(&mut self, line: String) {
        self.result.reports.push(line);
    }
}

/// `a/b/c` has `a` and `a/b`.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

/// Why a title is no relative path of plain components.
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
        }
    }

    fn named(layers: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let layers: Vec<_> = layers.iter().map(|(title, content)| layer(Some(title), content)).collect();
        let names = file_names(layers.iter().enumerate());
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
            ("/etc/passwd", "is an absolute path"),
            ("../x", "has a \"..\" component"),
            ("a/../../x", "has a \"..\" component"),
            ("a/..", "has a \"..\" component"),
            ("./x", "has a \".\" component"),
            ("a//b", "has an empty component"),
            ("a/", "has an empty component"),
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
    fn a_title_that_somebody_else_was_given_is_not_taken_twice() {
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
    fn untitled_layers_are_named_by_number_and_digest() {
        let layers = [layer(None, "a"), layer(Some("x"), "b")];
        let named = file_names(layers.iter().enumerate());
        assert_eq!(named.files[0], FileName { path: format!("00-{A}.bin"), layer: 0 });
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
            let names = file_names(layers.iter().enumerate());
            for file in &names.files {
                prop_assert!(check(&file.path).is_ok());
                for other in names.files.iter().filter(|other| other.layer != file.layer) {
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
