//! Platforms: normalized names, and the compatibility of images with machines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::OciError;

/// An operating system and a processor, in Go's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `windows`, `darwin`, ...
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, ...
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8`, ...; `None` for the default of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The build of Windows; `None` for other systems.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
}

impl Platform {
    /// The platform of this machine, as in labels of Linux images.
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

    /// Unifies equivalent names: `x86_64` is `amd64`, `aarch64` is `arm64`, `arm64/v8` is `arm64`, `amd64/v1` is
    /// `amd64`, `arm` without a variant is `arm/v7` (like containerd's platforms package).
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

    /// Whether it is empty: some tools write an empty platform instead of none.
    pub fn is_empty(&self) -> bool {
        self.os.is_empty() && self.architecture.is_empty()
    }

    /// Whether this is BuildKit's `unknown/unknown` for attestations.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }

    /// Whether this is exactly the wanted platform, and not just compatible with it.
    pub fn is(&self, wanted: &Platform) -> bool {
        self.distance(wanted) == Some(0)
    }

    /// How well an image for `self` runs on `wanted`: lower is better, `None` is incompatible. A machine also runs
    /// the older variants of its architecture.
    pub(super) fn distance(&self, wanted: &Platform) -> Option<u32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_is_two_or_three_words() {
        for bad in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "li nux/amd64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
