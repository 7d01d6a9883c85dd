//! What a user types to say where an image lives.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::oci::{Digest, OciError, Reference};

/// Where an image lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// `[docker://|oras://]HOST/REPOSITORY[:TAG][@DIGEST]`.
    Registry(Reference),
    /// `oci:DIR[:TAG|@DIGEST]`: a directory in the OCI image layout.
    Layout {
        /// The directory.
        directory: PathBuf,
        /// Which of its images.
        choice: LayoutChoice,
    },
}

/// Which image of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutChoice {
    /// The only one.
    Only,
    /// The one whose `org.opencontainers.image.ref.name` this is.
    Tag(String),
    /// The document with this digest.
    Digest(Digest),
}

impl Location {
    /// The same location for a process that changes its working directory.
    pub fn absolute(self) -> std::io::Result<Self> {
        match self {
            Location::Layout { directory, choice } => {
                Ok(Location::Layout { directory: std::path::absolute(directory)?, choice })
            }
            Location::Registry(_) => Ok(self),
        }
    }

    /// The location with the digest that was found there, for people and for `findmnt`.
    pub fn pinned(&self, digest: &Digest) -> String {
        match self {
            Location::Registry(reference) => reference.at(digest.clone()).to_string(),
            Location::Layout { directory, choice: LayoutChoice::Tag(tag) } => {
                format!("oci:{}:{tag}@{digest}", directory.display())
            }
            Location::Layout { directory, .. } => format!("oci:{}@{digest}", directory.display()),
        }
    }

    /// The place alone, without what is asked of it: a repository, or a directory.
    pub fn place(&self) -> String {
        match self {
            Location::Registry(reference) => format!("{}/{}", reference.registry(), reference.repository()),
            Location::Layout { directory, .. } => format!("oci:{}", directory.display()),
        }
    }

    /// The digest, if the user gave one: then nothing needs to be resolved.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Location::Registry(reference) => reference.digest(),
            Location::Layout { choice: LayoutChoice::Digest(digest), .. } => Some(digest),
            Location::Layout { .. } => None,
        }
    }
}

impl FromStr for Location {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        let bad =
            |reason: &str| OciError::Reference { reference: text.to_owned(), reason: reason.to_owned() };
        if let Some(rest) = text.strip_prefix("oci:").filter(|rest| !rest.starts_with("//")) {
            let (directory, choice) = if let Some((directory, digest)) = rest.rsplit_once('@') {
                (strip_tag(directory), LayoutChoice::Digest(digest.parse()?))
            } else {
                match rest.rsplit_once(':') {
                    Some((directory, tag)) if !tag.contains('/') => {
                        if tag.is_empty() {
                            return Err(bad("the tag after ':' is empty"));
                        }
                        (directory, LayoutChoice::Tag(tag.to_owned()))
                    }
                    _ => (rest, LayoutChoice::Only),
                }
            };
            if directory.is_empty() {
                return Err(bad("there is no directory after oci:"));
            }
            return Ok(Location::Layout { directory: directory.into(), choice });
        }
        for transport in ["oci-archive:", "docker-archive:", "dir:", "docker-daemon:", "containers-storage:"]
        {
            if text.starts_with(transport) {
                return Err(bad(&format!(
                    "the transport {transport} is not supported; use a registry or oci:DIR"
                )));
            }
        }
        if text.starts_with(['/', '.', '~']) {
            return Err(bad("it looks like a path; write oci:DIR for an OCI image layout"));
        }
        Ok(Location::Registry(text.parse()?))
    }
}

/// `DIR:TAG` without the tag, so that `oci:DIR:TAG@DIGEST`, as a mount prints it, can be given back.
fn strip_tag(directory: &str) -> &str {
    match directory.rsplit_once(':') {
        Some((directory, tag)) if !tag.contains('/') && !directory.is_empty() => directory,
        _ => directory,
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Registry(reference) => reference.fmt(f),
            Location::Layout { directory, choice } => {
                write!(f, "oci:{}", directory.display())?;
                match choice {
                    LayoutChoice::Only => Ok(()),
                    LayoutChoice::Tag(tag) => write!(f, ":{tag}"),
                    LayoutChoice::Digest(digest) => write!(f, "@{digest}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn layout(directory: &str, choice: LayoutChoice) -> Location {
        Location::Layout { directory: directory.into(), choice }
    }

    #[test]
    fn a_location_is_a_layout_only_when_it_says_oci() {
        let parse = |text: &str| text.parse::<Location>().unwrap();
        assert_eq!(parse("oci:/a/b"), layout("/a/b", LayoutChoice::Only));
        assert_eq!(parse("oci:b:v1"), layout("b", LayoutChoice::Tag("v1".into())));
        assert_eq!(
            parse(&format!("oci:/a@{DIGEST}")),
            layout("/a", LayoutChoice::Digest(DIGEST.parse().unwrap()))
        );
        assert_eq!(
            parse(&format!("oci:/a:v1@{DIGEST}")),
            layout("/a", LayoutChoice::Digest(DIGEST.parse().unwrap()))
        );
        assert!(matches!(parse("oci://ghcr.io/a/b:v1"), Location::Registry(_)));
        assert!(matches!(parse("nginx"), Location::Registry(_)));
    }

    #[test]
    fn what_is_no_location_says_what_to_write() {
        for (text, hint) in [
            ("./x", "oci:DIR"),
            ("/x", "oci:DIR"),
            ("oci:", "no directory"),
            ("oci:x:", "empty"),
            ("oci-archive:x.tar", "not supported"),
            ("oci:x@sha256:1", "digest"),
        ] {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
