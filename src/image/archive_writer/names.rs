//! Names of an image in an archive.
//!
//! Nothing is looked up. A tool that imports the archive finds the image under the name by which it was exported, in
//! each of the three forms that tools read.

use std::collections::BTreeMap;

use crate::oci::{Digest, IMAGE_NAME, OciError, REF_NAME, Reference};
use crate::source::{ImageLocation, LayoutChoice};

/// The names of an image in an archive; all fields are `None` for an unnamed image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveName {
    /// Full name: `docker.io/library/nginx:1.27`.
    pub full: Option<String>,
    /// Tag, as in an OCI layout.
    pub tag: Option<String>,
    /// Short name, as Docker shows it: `nginx:1.27`.
    pub familiar: Option<String>,
}

impl ArchiveName {
    /// The name under which an image at `location` with this digest was requested.
    pub(super) fn of(location: &ImageLocation, digest: &Digest) -> Self {
        match location {
            ImageLocation::Registry(reference) if reference.tag().is_some() => Self::of_reference(reference),
            ImageLocation::Registry(reference) => {
                Self { full: Some(format!("{}@{digest}", repository(reference))), ..Self::default() }
            }
            ImageLocation::Layout { choice: LayoutChoice::Tag(tag), .. }
            | ImageLocation::Archive { choice: LayoutChoice::Tag(tag), .. } => match tag.parse::<Reference>()
            {
                // A layout may have a full name in place of a tag; archives of `docker save` have a name and a tag.
                Ok(reference) if tag.contains(['/', ':']) => {
                    Self { tag: Some(tag.clone()), ..Self::of_reference(&reference) }
                }
                _ => Self { tag: Some(tag.clone()), ..Self::default() },
            },
            ImageLocation::Layout { .. } | ImageLocation::Archive { .. } => Self::default(),
        }
    }

    /// A name given by the user: a reference with a tag.
    pub(super) fn given(name: &str) -> Result<Self, OciError> {
        let reference: Reference = name.parse()?;
        if reference.digest().is_some() {
            let reason = "a name in an archive has a tag, and no digest".into();
            return Err(OciError::Reference { reference: name.to_owned(), reason });
        }
        Ok(Self::of_reference(&reference))
    }

    fn of_reference(reference: &Reference) -> Self {
        let tag = reference.tag().unwrap_or("latest");
        let full = repository(reference);
        let familiar = full.strip_prefix("docker.io/").unwrap_or(&full);
        let familiar = match familiar.strip_prefix("library/") {
            Some(short) if familiar.len() < full.len() => short,
            _ => familiar,
        };
        Self {
            familiar: Some(format!("{familiar}:{tag}")),
            tag: Some(tag.to_owned()),
            full: Some(format!("{full}:{tag}")),
        }
    }

    /// The annotations for these names in an entry of `index.json`.
    pub(super) fn annotations(&self) -> BTreeMap<String, String> {
        let full = self.full.iter().map(|full| (IMAGE_NAME.to_owned(), full.clone()));
        let tag = self.tag.iter().map(|tag| (REF_NAME.to_owned(), tag.clone()));
        full.chain(tag).collect()
    }
}

fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(location: &str) -> ArchiveName {
        ArchiveName::of(&location.parse().unwrap(), &Digest::sha256(b""))
    }

    fn forms(name: &ArchiveName) -> [&str; 3] {
        [&name.full, &name.tag, &name.familiar].map(|part| part.as_deref().unwrap_or("-"))
    }

    #[test]
    fn an_image_has_its_name_in_the_form_of_every_reader() {
        let digest = Digest::sha256(b"");
        for (location, full, tag, familiar) in [
            ("nginx", "docker.io/library/nginx:latest", "latest", "nginx:latest"),
            ("me/tool:1", "docker.io/me/tool:1", "1", "me/tool:1"),
            ("ghcr.io/library/x:2", "ghcr.io/library/x:2", "2", "ghcr.io/library/x:2"),
            ("oci:/layout:v1", "-", "v1", "-"),
            ("oci:/layout", "-", "-", "-"),
        ] {
            assert_eq!(forms(&name(location)), [full, tag, familiar], "{location}");
        }
        let pinned = name(&format!("ghcr.io/a/b@{digest}"));
        assert_eq!(forms(&pinned), [&format!("ghcr.io/a/b@{digest}"), "-", "-"]);
        let both = name(&format!("ghcr.io/a/b:v1@{digest}"));
        assert_eq!(forms(&both), ["ghcr.io/a/b:v1", "v1", "ghcr.io/a/b:v1"]);
    }

    #[test]
    fn given_name_has_a_tag_and_is_expanded() {
        let given = ArchiveName::given("tool:2").unwrap();
        assert_eq!(forms(&given), ["docker.io/library/tool:2", "2", "tool:2"]);
        let annotations = given.annotations();
        assert_eq!(annotations["io.containerd.image.name"], "docker.io/library/tool:2");
        assert_eq!(annotations["org.opencontainers.image.ref.name"], "2");
        assert!(ArchiveName::given(&format!("x@{}", Digest::sha256(b""))).is_err());
    }
}
