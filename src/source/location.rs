//! Location of an image, as typed by a user.
//!
//! Only the text is parsed, except that the directories that exist decide between the colons of `oci:`. Opening the
//! location determines whether a path is a directory or an archive. A mount's location as printed can be typed again, and
//! names the same image at its resolved digest.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::oci::{Digest, OciError, Reference};
use crate::registry::WebAddress;

/// The location of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageLocation {
    /// `[docker://|oras://]HOST/REPOSITORY[:TAG][@DIGEST]`.
    Registry(Reference),
    /// `oci:DIR[:TAG|@DIGEST]`: a directory in the OCI image layout.
    Layout {
        /// The directory.
        directory: PathBuf,
        /// The choice of an image.
        choice: LayoutChoice,
    },
    /// A tar archive of images. A plain path becomes [`ArchiveLocation::File`] with [`ExpectedForm::Any`], and may also be a
    /// directory in the OCI image layout.
    Archive {
        /// The location of the archive.
        at: ArchiveLocation,
        /// The expected form.
        form: ExpectedForm,
        /// The choice of an image.
        choice: LayoutChoice,
    },
}

/// The location of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArchiveLocation {
    /// A local file.
    File(PathBuf),
    /// The standard input of this process: `-`, alone or instead of a file.
    Input,
    /// A file on the web, `URL[#TAG|#@NUMBER|@DIGEST]`.
    Web(WebAddress),
}

/// The expected form of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedForm {
    /// An OCI layout or the output of `docker save`, detected by content.
    Any,
    /// `oci-archive:FILE[:TAG|:@NUMBER|@DIGEST]`: an OCI layout.
    Oci,
    /// `docker-archive:FILE[:NAME:TAG|:@NUMBER|@DIGEST]`: the output of `docker save`.
    Docker,
}

/// The choice of an image of a layout or an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutChoice {
    /// The only image.
    Only,
    /// The image with this `org.opencontainers.image.ref.name`, or with this name from `docker save`.
    Tag(String),
    /// The image with this number in the list, from 0.
    Number(usize),
    /// The document with this digest.
    Digest(Digest),
}

impl LayoutChoice {
    /// Parses the text after the separator: `@NUMBER` or a name.
    fn named(text: &str) -> Result<Self, &'static str> {
        match text.strip_prefix('@') {
            Some(number) => {
                number.parse().map(LayoutChoice::Number).map_err(|_| "the text after :@ is not a number")
            }
            None if text.is_empty() => Err("the tag after ':' is empty"),
            None => Ok(LayoutChoice::Tag(text.to_owned())),
        }
    }

    /// The choice as text after a name, with `separator` in front of names and numbers.
    fn written(&self, separator: char) -> String {
        match self {
            LayoutChoice::Only => String::new(),
            LayoutChoice::Tag(tag) => format!("{separator}{tag}"),
            LayoutChoice::Number(number) => format!("{separator}@{number}"),
            LayoutChoice::Digest(digest) => format!("@{digest}"),
        }
    }
}

impl ImageLocation {
    /// The location with absolute paths, for a process that changes its working directory.
    pub fn absolute(self) -> std::io::Result<Self> {
        Ok(match self {
            ImageLocation::Layout { directory, choice } => {
                ImageLocation::Layout { directory: std::path::absolute(directory)?, choice }
            }
            ImageLocation::Archive { at: ArchiveLocation::File(path), form, choice } => {
                ImageLocation::Archive { at: ArchiveLocation::File(std::path::absolute(path)?), form, choice }
            }
            other => other,
        })
    }

    /// The location pinned to its resolved digest.
    #[must_use]
    pub fn at(&self, digest: &Digest) -> Self {
        let choice = LayoutChoice::Digest(digest.clone());
        match self.clone() {
            ImageLocation::Registry(reference) => ImageLocation::Registry(reference.at(digest.clone())),
            ImageLocation::Layout { directory, .. } => ImageLocation::Layout { directory, choice },
            ImageLocation::Archive { at, form, .. } => ImageLocation::Archive { at, form, choice },
        }
    }

    /// The location with its resolved digest, for messages and for `findmnt`.
    pub fn pinned(&self, digest: &Digest) -> String {
        match self {
            ImageLocation::Registry(_) | ImageLocation::Layout { choice: LayoutChoice::Digest(_), .. } => {
                self.at(digest).to_string()
            }
            // The chosen tag stays in the text where it can be parsed again.
            ImageLocation::Layout { choice: LayoutChoice::Tag(_), .. } => format!("{self}@{digest}"),
            ImageLocation::Layout { .. } | ImageLocation::Archive { .. } => self.at(digest).to_string(),
        }
    }

    /// The place without a choice: a repository, a directory, or an archive.
    pub fn place(&self) -> String {
        let without = |location: &Self| location.to_string();
        let choice = LayoutChoice::Only;
        match self.clone() {
            ImageLocation::Registry(reference) => {
                format!("{}/{}", reference.registry(), reference.repository())
            }
            ImageLocation::Layout { directory, .. } => without(&ImageLocation::Layout { directory, choice }),
            ImageLocation::Archive { at, form, .. } => without(&ImageLocation::Archive { at, form, choice }),
        }
    }

    /// The digest, if the user gave one, so that nothing has to be resolved; else `None`.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            ImageLocation::Registry(reference) => reference.digest(),
            ImageLocation::Layout { choice, .. } | ImageLocation::Archive { choice, .. } => match choice {
                LayoutChoice::Digest(digest) => Some(digest),
                LayoutChoice::Only | LayoutChoice::Tag(_) | LayoutChoice::Number(_) => None,
            },
        }
    }

    /// The local file or directory, if any.
    pub fn path(&self) -> Option<&Path> {
        match self {
            ImageLocation::Layout { directory, .. } => Some(directory),
            ImageLocation::Archive { at: ArchiveLocation::File(path), .. } => Some(path),
            ImageLocation::Registry(_) | ImageLocation::Archive { .. } => None,
        }
    }

    /// The registry reference, if any.
    pub fn reference(&self) -> Option<&Reference> {
        match self {
            ImageLocation::Registry(reference) => Some(reference),
            ImageLocation::Layout { .. } | ImageLocation::Archive { .. } => None,
        }
    }

    /// Whether the location is read without a network.
    pub fn is_local(&self) -> bool {
        match self {
            ImageLocation::Layout { .. }
            | ImageLocation::Archive { at: ArchiveLocation::File(_) | ArchiveLocation::Input, .. } => true,
            ImageLocation::Registry(_) | ImageLocation::Archive { at: ArchiveLocation::Web(_), .. } => false,
        }
    }

    /// Whether the location is the standard input, which can be read only once.
    pub fn is_input(&self) -> bool {
        matches!(self, ImageLocation::Archive { at: ArchiveLocation::Input, .. })
    }
}

impl FromStr for ImageLocation {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        let bad =
            |reason: &str| OciError::Reference { reference: text.to_owned(), reason: reason.to_owned() };
        if let Some(rest) = text.strip_prefix("oci:").filter(|rest| !rest.starts_with("//")) {
            return layout(rest, bad);
        }
        for (transport, form) in
            [("oci-archive:", ExpectedForm::Oci), ("docker-archive:", ExpectedForm::Docker)]
        {
            if let Some(rest) = text.strip_prefix(transport) {
                return archive(rest, form, bad);
            }
        }
        for transport in ["dir:", "docker-daemon:", "containers-storage:"] {
            if text.starts_with(transport) {
                return Err(bad(&format!(
                    "the transport {transport} is not supported; use a registry, oci:DIR, oci-archive:FILE or docker-archive:FILE"
                )));
            }
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            let (url, choice) = match (pinned(text)?, text.split_once('#')) {
                ((url, Some(digest)), _) => {
                    (url.split('#').next().unwrap_or(url), LayoutChoice::Digest(digest))
                }
                (_, Some((url, named))) => (
                    url,
                    LayoutChoice::named(named).map_err(|why| OciError::Reference {
                        reference: "#".to_owned() + named,
                        reason: why.to_owned(),
                    })?,
                ),
                _ => (text, LayoutChoice::Only),
            };
            return Ok(ImageLocation::Archive {
                at: ArchiveLocation::Web(url.parse()?),
                form: ExpectedForm::Any,
                choice,
            });
        }
        if let Some(rest) = text.strip_prefix('-') {
            let choice = match (pinned(rest)?, rest.split_once(':')) {
                (("", Some(digest)), _) => LayoutChoice::Digest(digest),
                (_, Some(("", named))) => LayoutChoice::named(named).map_err(bad)?,
                _ if rest.is_empty() => LayoutChoice::Only,
                _ => return Err(bad("the standard input is -, -:TAG or -@DIGEST")),
            };
            return Ok(ImageLocation::Archive {
                at: ArchiveLocation::Input,
                form: ExpectedForm::Any,
                choice,
            });
        }
        if is_path(text) {
            let (path, digest) = pinned(text)?;
            let choice = digest.map_or(LayoutChoice::Only, LayoutChoice::Digest);
            let path = at_home(path).ok_or_else(|| bad("HOME is not set"))?;
            return Ok(ImageLocation::Archive {
                at: ArchiveLocation::File(path),
                form: ExpectedForm::Any,
                choice,
            });
        }
        if text.starts_with(['.', '~']) {
            return Err(bad("it looks like a path; write ./ in front of one"));
        }
        Ok(ImageLocation::Registry(text.parse()?))
    }
}

/// Parses the text after `oci:`.
fn layout(rest: &str, bad: impl Fn(&str) -> OciError) -> Result<ImageLocation, OciError> {
    let (directory, choice) = match rest.rsplit_once('@') {
        // An @ after the colon belongs to a number.
        Some((directory, digest)) if !directory.ends_with(':') => {
            (split_tag(directory).0, LayoutChoice::Digest(digest.parse()?))
        }
        _ => match split_tag(rest) {
            (directory, Some(named)) => (directory, LayoutChoice::named(named).map_err(&bad)?),
            (directory, None) => (directory, LayoutChoice::Only),
        },
    };
    if directory.is_empty() {
        return Err(bad("the directory after oci: is missing"));
    }
    Ok(ImageLocation::Layout { directory: directory.into(), choice })
}

/// Parses the text after `oci-archive:` or `docker-archive:`. The file ends at the first colon, as in other tools.
fn archive(
    rest: &str,
    form: ExpectedForm,
    bad: impl Fn(&str) -> OciError,
) -> Result<ImageLocation, OciError> {
    let (rest, digest) = pinned(rest)?;
    let (file, named) = rest.split_once(':').map_or((rest, None), |(file, named)| (file, Some(named)));
    let choice = match (digest, named) {
        (Some(digest), _) => LayoutChoice::Digest(digest),
        (None, Some(named)) => LayoutChoice::named(named).map_err(&bad)?,
        (None, None) => LayoutChoice::Only,
    };
    if file.is_empty() {
        return Err(bad("the file after the transport is missing"));
    }
    // A file of that name is written `./-`.
    let at = if file == "-" { ArchiveLocation::Input } else { ArchiveLocation::File(file.into()) };
    Ok(ImageLocation::Archive { at, form, choice })
}

/// The text before a final `@DIGEST`, and the digest; `None` without one.
fn pinned(text: &str) -> Result<(&str, Option<Digest>), OciError> {
    match text.rsplit_once('@') {
        Some((rest, digest)) if digest.starts_with("sha256:") || digest.starts_with("sha512:") => {
            Ok((rest, Some(digest.parse()?)))
        }
        _ => Ok((text, None)),
    }
}

/// Whether a text is a path by its beginning. A name without such a beginning is a registry reference.
fn is_path(text: &str) -> bool {
    let (bare, _) = text.rsplit_once('@').unwrap_or((text, ""));
    matches!(bare, "." | "..") || ["./", "../", "/", "~/"].iter().any(|start| text.starts_with(start))
}

/// Replaces `~/` in a path that no shell has expanded, for example from a configuration file.
fn at_home(path: &str) -> Option<PathBuf> {
    let Some(rest) = path.strip_prefix("~/") else { return Some(path.into()) };
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join(rest))
}

/// The directory and the tag of `DIR` or `DIR:TAG`. A tag may be a whole name, as in `DIR:HOST:PORT/NAME:TAG`: then the
/// longest directory that exists before a colon decides. Without one, the tag follows the last colon after the last slash.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    let last = text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
    let split = last.map_or((text, None), |(directory, tag)| (directory, Some(tag)));
    if !split.0.contains(':') || Path::new(split.0).is_dir() {
        return split;
    }
    let mut colons = split.0.rmatch_indices(':').map(|(at, _)| at);
    let found = colons.find(|&at| Path::new(&text[..at]).is_dir());
    found.map_or(split, |at| (&text[..at], Some(&text[at + 1..])))
}

impl fmt::Display for ImageLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageLocation::Registry(reference) => reference.fmt(f),
            ImageLocation::Layout { directory, choice } => {
                write!(f, "oci:{}{}", directory.display(), choice.written(':'))
            }
            ImageLocation::Archive { at, form, choice } => {
                f.write_str(match form {
                    ExpectedForm::Any => "",
                    ExpectedForm::Oci => "oci-archive:",
                    ExpectedForm::Docker => "docker-archive:",
                })?;
                match at {
                    ArchiveLocation::File(path) => write!(f, "{}{}", path.display(), choice.written(':')),
                    ArchiveLocation::Input => write!(f, "-{}", choice.written(':')),
                    ArchiveLocation::Web(address) => write!(f, "{address}{}", choice.written('#')),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn layout(directory: &str, choice: LayoutChoice) -> ImageLocation {
        ImageLocation::Layout { directory: directory.into(), choice }
    }

    fn file(path: &str, form: ExpectedForm, choice: LayoutChoice) -> ImageLocation {
        ImageLocation::Archive { at: ArchiveLocation::File(path.into()), form, choice }
    }

    fn any(at: ArchiveLocation, choice: LayoutChoice) -> ImageLocation {
        ImageLocation::Archive { at, form: ExpectedForm::Any, choice }
    }

    #[test]
    fn every_form_of_image_name_is_recognised_by_its_text_alone() {
        use LayoutChoice::{Number, Only};
        let tag = |tag: &str| LayoutChoice::Tag(tag.into());
        let digest: Digest = DIGEST.parse().unwrap();
        let web = |url: &str| ArchiveLocation::Web(url.parse().unwrap());
        let at = |text: &str| format!("{text}@{DIGEST}");
        let home = std::env::var("HOME").unwrap_or_default();
        let in_home = format!("{home}/i.tar");
        let exact = || LayoutChoice::Digest(digest.clone());
        let mut rows: Vec<(String, ImageLocation)> = vec![
            ("oci:/a/b".into(), layout("/a/b", Only)),
            ("oci:b:v1".into(), layout("b", tag("v1"))),
            ("oci:b:@2".into(), layout("b", Number(2))),
            (at("oci:/a"), layout("/a", exact())),
            (at("oci:/a:v1"), layout("/a", exact())),
            (at("oci:/a:@1"), layout("/a", exact())),
            ("oci-archive:a.tar".into(), file("a.tar", ExpectedForm::Oci, Only)),
            ("oci-archive:/x/a.tar:v1".into(), file("/x/a.tar", ExpectedForm::Oci, tag("v1"))),
            (
                "oci-archive:a.tar:docker.io/library/a:v1".into(),
                file("a.tar", ExpectedForm::Oci, tag("docker.io/library/a:v1")),
            ),
            (at("oci-archive:a.tar"), file("a.tar", ExpectedForm::Oci, exact())),
            (at("oci-archive:a.tar:v1"), file("a.tar", ExpectedForm::Oci, exact())),
            ("docker-archive:/x/a.tar".into(), file("/x/a.tar", ExpectedForm::Docker, Only)),
            ("docker-archive:a.tar:alpine:3".into(), file("a.tar", ExpectedForm::Docker, tag("alpine:3"))),
            (
                "docker-archive:a.tar:h:5000/a/b:3".into(),
                file("a.tar", ExpectedForm::Docker, tag("h:5000/a/b:3")),
            ),
            ("docker-archive:a.tar:@1".into(), file("a.tar", ExpectedForm::Docker, Number(1))),
            (at("docker-archive:a.tar"), file("a.tar", ExpectedForm::Docker, exact())),
            ("-".into(), any(ArchiveLocation::Input, Only)),
            ("-:v1".into(), any(ArchiveLocation::Input, tag("v1"))),
            ("-:@1".into(), any(ArchiveLocation::Input, Number(1))),
            (at("-"), any(ArchiveLocation::Input, exact())),
            (
                "oci-archive:-:v1".into(),
                ImageLocation::Archive {
                    at: ArchiveLocation::Input,
                    form: ExpectedForm::Oci,
                    choice: tag("v1"),
                },
            ),
            ("docker-archive:./-".into(), file("./-", ExpectedForm::Docker, Only)),
            ("http://h/a.tar".into(), any(web("http://h/a.tar"), Only)),
            ("https://h:8443/a.tar?x=1".into(), any(web("https://h:8443/a.tar?x=1"), Only)),
            ("https://h/a.tar#v1".into(), any(web("https://h/a.tar"), tag("v1"))),
            ("https://h/a.tar#@1".into(), any(web("https://h/a.tar"), Number(1))),
            (at("https://h/a.tar"), any(web("https://h/a.tar"), exact())),
            ("./a.tar".into(), file("./a.tar", ExpectedForm::Any, Only)),
            ("../a.tar".into(), file("../a.tar", ExpectedForm::Any, Only)),
            ("/x/a:b@c.tar".into(), file("/x/a:b@c.tar", ExpectedForm::Any, Only)),
            ("~/i.tar".into(), file(&in_home, ExpectedForm::Any, Only)),
            (".".into(), file(".", ExpectedForm::Any, Only)),
            ("..".into(), file("..", ExpectedForm::Any, Only)),
            (at("/x/a.tar"), file("/x/a.tar", ExpectedForm::Any, exact())),
            (at("."), file(".", ExpectedForm::Any, exact())),
        ];
        if home.is_empty() {
            rows.retain(|(text, _)| !text.starts_with('~'));
        }
        for (text, location) in rows {
            assert_eq!(text.parse::<ImageLocation>().unwrap(), location, "{text}");
        }
        for text in ["nginx", "image.tar", "a/b", "oci://ghcr.io/a/b:v1", "localhost:5000/x", "docker://a"] {
            assert!(matches!(text.parse(), Ok(ImageLocation::Registry(_))), "{text}");
        }
    }

    #[test]
    fn name_with_a_host_and_slashes_follows_a_directory_that_exists() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("d");
        std::fs::create_dir_all(scratch.path().join("d:e")).unwrap();
        std::fs::create_dir(&dir).unwrap();
        let tag = |tag: &str| LayoutChoice::Tag(tag.into());
        let (dir, longer) = (dir.to_str().unwrap(), scratch.path().join("d:e"));
        for name in ["localhost/foo:1.0", "localhost/foo", "h:5000/a/b:3", "docker.io/library/a:v1"] {
            let text = format!("oci:{dir}:{name}");
            assert_eq!(text.parse::<ImageLocation>().unwrap(), layout(dir, tag(name)));
            let pinned = format!("{text}@{DIGEST}").parse::<ImageLocation>().unwrap();
            assert_eq!(pinned, layout(dir, LayoutChoice::Digest(DIGEST.parse().unwrap())));
        }
        // The longest directory; without one, the tag of the last colon.
        let longer = longer.to_str().unwrap();
        assert_eq!(format!("oci:{longer}:x/y").parse::<ImageLocation>().unwrap(), layout(longer, tag("x/y")));
        let absent = format!("oci:{}/x:y/z:1", scratch.path().display());
        let before = format!("{}/x:y/z", scratch.path().display());
        assert_eq!(absent.parse::<ImageLocation>().unwrap(), layout(&before, tag("1")));
    }

    #[test]
    fn a_reference_may_have_a_tag_a_digest_or_both_and_the_digest_needs_no_question() {
        for text in
            ["h.example/a:v1".to_owned(), format!("h.example/a@{DIGEST}"), format!("h.example/a:v1@{DIGEST}")]
        {
            let location: ImageLocation = text.parse().unwrap();
            assert_eq!(location.to_string(), text, "as it was written");
            assert_eq!(location.digest().is_some(), text.contains('@'), "{text}");
            assert_eq!(location.place(), "h.example/a");
        }
    }

    #[test]
    fn printed_location_names_the_same_source_at_the_digest() {
        let digest: Digest = DIGEST.parse().unwrap();
        for text in [
            "oci:/a:v1",
            "oci:/a",
            "oci-archive:/a.tar:x/y:v1",
            "docker-archive:/a.tar:alpine:3",
            "docker-archive:/a.tar:@1",
            "/a.tar",
            "https://h/a.tar#v1",
            "-:v1",
            "docker-archive:-:alpine:3",
            "h.example/a:v1",
        ] {
            let location: ImageLocation = text.parse().unwrap();
            let again: ImageLocation = location.pinned(&digest).parse().unwrap();
            assert_eq!((again.digest(), again.place()), (Some(&digest), location.place()), "{text}");
            assert_eq!(location.at(&digest), again, "{text}");
        }
    }

    #[test]
    fn malformed_location_is_refused_with_a_correction() {
        for (text, hint) in [
            (".x", "./"),
            ("~x", "./"),
            ("oci:", "the directory"),
            ("oci:x:", "empty"),
            ("oci:x:@y", "not a number"),
            ("oci-archive:", "the file"),
            ("docker-archive:x.tar:", "empty"),
            ("dir:x", "not supported"),
            ("oci:x@sha256:1", "digest"),
            ("./x@sha256:1", "digest"),
            ("-x", "standard input"),
            ("http://", "not a URL"),
            ("https://user:word@h/x", "names a user"),
            ("https://h/x#", "empty"),
        ] {
            let error = text.parse::<ImageLocation>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
            assert!(!error.contains("word"), "{error}");
        }
    }
}
