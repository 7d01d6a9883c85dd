//! Platforms: normalised names, and the choice of one manifest of an index.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Descriptor, MediaType, OciError, SOCI_V2};

/// An operating system and a processor, in the names that Go uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `windows`, `darwin`, ...
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, ...
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The build of Windows.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
}

impl Platform {
    /// This machine, as Linux images are labelled.
    pub fn host() -> Self {
        let variant = match std::env::consts::ARCH {
            "arm" => Some("v7".to_owned()),
            _ => None,
        };
        Self {
            os: "linux".to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            variant,
            os_version: None,
        }
        .normalized()
    }

    /// Names that mean the same made equal: `x86_64` is `amd64`, `aarch64` is `arm64`, `arm64/v8` is `arm64`,
    /// `amd64/v1` is `amd64`, `arm` without a variant is `arm/v7` (as containerd's platforms package does).
    #[must_use]
    pub fn normalized(&self) -> Self {
        let os = match self.os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        let variant =
            self.variant.as_deref().map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
        let (architecture, variant) =
            match (self.architecture.to_ascii_lowercase().as_str(), variant.as_deref()) {
                ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
                ("x86_64" | "x86-64" | "amd64", Some(variant)) => ("amd64", Some(variant)),
                ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
                ("aarch64" | "arm64", Some(variant)) => ("arm64", Some(variant)),
                ("armhf", _) => ("arm", Some("v7")),
                ("armel", _) => ("arm", Some("v6")),
                ("arm", None | Some("7")) => ("arm", Some("v7")),
                ("arm", Some("5")) => ("arm", Some("v5")),
                ("arm", Some("6")) => ("arm", Some("v6")),
                ("arm", Some("8")) => ("arm", Some("v8")),
                ("i386" | "i686" | "386", _) => ("386", None),
                (architecture, variant) => {
                    return Self {
                        os,
                        architecture: architecture.to_owned(),
                        variant: variant.map(str::to_owned),
                        os_version: self.os_version.clone(),
                    };
                }
            };
        Self {
            os,
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
            os_version: self.os_version.clone(),
        }
    }

    /// Whether this is the `unknown/unknown` that BuildKit gives to attestations.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }

    /// How well an image for `self` runs on `wanted`: lower is better, `None` is not at all. A machine runs the older
    /// variants of its architecture too.
    fn distance(&self, wanted: &Platform) -> Option<u32> {
        let (have, wanted) = (self.normalized(), wanted.normalized());
        if have.os != wanted.os || have.architecture != wanted.architecture {
            return None;
        }
        if wanted.os_version.is_some() && have.os_version != wanted.os_version {
            return None;
        }
        let level = |platform: &Platform| -> Option<u32> {
            match (platform.architecture.as_str(), platform.variant.as_deref()) {
                ("amd64", None) => Some(1),
                ("arm64", None) => Some(80),
                // arm64 variants may carry a minor number: v8.1, v9.
                ("arm64", Some(variant)) => {
                    let (major, minor) = variant
                        .strip_prefix('v')?
                        .split_once('.')
                        .unwrap_or((variant.strip_prefix('v')?, "0"));
                    Some(major.parse::<u32>().ok()?.checked_mul(10)?.checked_add(minor.parse().ok()?)?)
                }
                (_, Some(variant)) => variant.strip_prefix('v')?.parse().ok(),
                (_, None) => Some(0),
            }
        };
        if have.variant == wanted.variant {
            return Some(0);
        }
        let (have, wanted) = (level(&have)?, level(&wanted)?);
        wanted.checked_sub(have)
    }
}

impl FromStr for Platform {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        let mut parts = text.split('/');
        let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
        let good = |part: Option<&str>| {
            part.is_some_and(|part| {
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            })
        };
        if !good(os) || !good(architecture) || variant.is_some() && !good(variant) || parts.next().is_some() {
            return Err(OciError::Platform { platform: text.to_owned() });
        }
        Ok(Self {
            os: os.unwrap_or_default().to_owned(),
            architecture: architecture.unwrap_or_default().to_owned(),
            variant: variant.map(str::to_owned),
            os_version: None,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(f, "/{variant}")?;
        }
        if let Some(version) = &self.os_version {
            write!(f, ":{version}")?;
        }
        Ok(())
    }
}

/// What [`choose`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// The manifest to mount.
    One(&'a Descriptor),
    /// Nothing fits; the platforms there are.
    None(Vec<String>),
}

/// The entry of an index that fits `wanted` best. The first of equals wins (image-index.md, "manifests"). Entries of
/// unknown platform (attestations) never win, nor do SOCI indexes, which bear the platform of the image that they are about;
/// entries without a platform win only if nothing says it fits.
pub fn choose<'a>(entries: &'a [Descriptor], wanted: &Platform) -> Choice<'a> {
    let is_image = |entry: &&Descriptor| entry.artifact_type != Some(MediaType::from(SOCI_V2));
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in entries.iter().filter(is_image) {
        let Some(platform) = entry.platform.as_ref().filter(|platform| !platform.is_unknown()) else {
            continue;
        };
        if let Some(distance) = platform.distance(wanted)
            && best.is_none_or(|(least, _)| distance < least)
        {
            best = Some((distance, entry));
        }
    }
    if let Some((_, entry)) = best {
        return Choice::One(entry);
    }
    let mut without = entries.iter().filter(is_image).filter(|entry| entry.platform.is_none());
    if let (Some(only), None) = (without.next(), without.next()) {
        return Choice::One(only);
    }
    let name = |entry: &Descriptor| match &entry.platform {
        Some(platform) if platform.is_unknown() => None,
        Some(platform) => Some(platform.to_string()),
        None => Some(format!("no platform ({})", entry.digest)),
    };
    Choice::None(entries.iter().filter(is_image).filter_map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::super::Digest;
    use super::*;

    fn entry(platform: &str) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: Digest::sha256(platform.as_bytes()),
            size: 1,
            annotations: Default::default(),
            platform: (!platform.is_empty()).then(|| platform.parse().unwrap()),
            artifact_type: None,
            data: None,
        }
    }

    fn pick(entries: &[&str], wanted: &str) -> Result<String, Vec<String>> {
        let entries: Vec<_> = entries.iter().map(|platform| entry(platform)).collect();
        match choose(&entries, &wanted.parse().unwrap()) {
            Choice::One(one) => Ok(one.platform.as_ref().map(ToString::to_string).unwrap_or_default()),
            Choice::None(list) => Err(list),
        }
    }

    #[test]
    fn names_that_mean_the_same_are_equal() {
        assert_eq!(pick(&["linux/aarch64", "linux/x86_64"], "linux/amd64"), Ok("linux/x86_64".into()));
        assert_eq!(pick(&["linux/arm64/v8"], "linux/arm64"), Ok("linux/arm64/v8".into()));
        assert_eq!(pick(&["linux/arm64"], "linux/aarch64/v8"), Ok("linux/arm64".into()));
    }

    #[test]
    fn the_nearest_lower_variant_wins() {
        let arms = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"];
        assert_eq!(pick(&arms, "linux/arm/v7"), Ok("linux/arm/v7".into()));
        assert_eq!(pick(&arms, "linux/arm/v6"), Ok("linux/arm/v6".into()));
        assert_eq!(pick(&arms, "linux/arm/v8"), Ok("linux/arm/v7".into()));
        assert_eq!(pick(&["linux/arm/v7"], "linux/arm/v6"), Err(vec!["linux/arm/v7".into()]));
        assert_eq!(pick(&["linux/amd64/v3", "linux/amd64"], "linux/amd64"), Ok("linux/amd64".into()));
        assert_eq!(pick(&["linux/amd64", "linux/amd64/v3"], "linux/amd64/v4"), Ok("linux/amd64/v3".into()));
    }

    #[test]
    fn attestations_are_neither_chosen_nor_listed() {
        assert_eq!(pick(&["unknown/unknown", "linux/s390x"], "linux/amd64"), Err(vec!["linux/s390x".into()]));
    }

    #[test]
    fn the_soci_index_of_an_image_is_not_the_image() {
        let soci = |platform: &str| Descriptor { artifact_type: Some(SOCI_V2.into()), ..entry(platform) };
        let wanted = "linux/amd64".parse().unwrap();
        let mut image = entry("linux/amd64");
        image.digest = Digest::sha256(b"the image");
        for image in [image.clone(), Descriptor { platform: None, ..image }] {
            for soci in [soci("linux/amd64"), soci("")] {
                let entries = [soci, image.clone()];
                assert_eq!(choose(&entries, &wanted), Choice::One(&image));
            }
        }
        assert_eq!(choose(&[soci("linux/amd64")], &wanted), Choice::None(Vec::new()));
    }

    #[test]
    fn a_single_entry_without_platform_is_taken_and_two_are_not() {
        assert_eq!(pick(&[""], "linux/amd64"), Ok(String::new()));
        assert_eq!(pick(&["", ""], "linux/amd64").unwrap_err().len(), 2);
    }

    #[test]
    fn a_platform_is_two_or_three_words() {
        for bad in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "li nux/amd64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
