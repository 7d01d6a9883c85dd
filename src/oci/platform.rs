//! Platforms: normalized names, and the compatibility of images with machines.

use std::collections::BTreeSet;
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
    /// The release of the system, such as a build of Windows; `None` if absent.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features that the system must have, such as `win32k`; empty if none.
    #[serde(default, rename = "os.features", skip_serializing_if = "Option::is_none")]
    pub os_features: Option<Vec<String>>,
}

/// Systems that may stand alone, as in the options of docker.
const ONE_WORD_SYSTEMS: [&str; 5] = ["linux", "windows", "darwin", "macos", "freebsd"];

/// Architectures that may stand alone, as in the options of docker.
const ONE_WORD_ARCHITECTURES: [&str; 17] = [
    "386", "i386", "i686", "amd64", "x86_64", "x86-64", "arm", "armhf", "armel", "arm64", "aarch64",
    "loong64", "mips64le", "ppc64le", "riscv64", "s390x", "wasm",
];

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
            ..Self::default()
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
                        os_features: self.os_features.clone(),
                    };
                }
            };
        Self {
            os,
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
        }
    }

    /// The platform of an architecture alone, for Linux, or of a system alone, for this machine's architecture; `None`
    /// for other words.
    fn of_one_word(text: &str) -> Option<Self> {
        let word = text.split('(').next().unwrap_or_default().to_ascii_lowercase();
        if ONE_WORD_SYSTEMS.contains(&&word[..]) {
            return format!("{text}/{}", Self::host().architecture).parse().ok();
        }
        ONE_WORD_ARCHITECTURES.contains(&&word[..]).then(|| format!("linux/{text}").parse().ok())?
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
            && (wanted.os_version.is_none() || wanted.os_version == self.os_version)
            && (wanted.features().is_empty() || wanted.features() == self.features())
    }

    /// The release of the system; `None` if absent or empty.
    pub fn os_version(&self) -> Option<&str> {
        self.os_version.as_deref().filter(|version| !version.is_empty())
    }

    /// The required features, sorted.
    fn features(&self) -> BTreeSet<&str> {
        self.os_features.iter().flatten().map(String::as_str).collect()
    }

    /// The name without release and features: `os/architecture[/variant]`.
    pub(super) fn base_name(&self) -> String {
        let variant = self.variant.as_deref().filter(|variant| !variant.is_empty());
        let variant = variant.map(|variant| format!("/{variant}")).unwrap_or_default();
        format!("{}/{}{variant}", self.os, self.architecture)
    }

    /// How well an image for `self` runs on `wanted`: lower is better, `None` is incompatible. A machine also runs
    /// the older variants of its architecture.
    pub(super) fn distance(&self, wanted: &Platform) -> Option<u32> {
        let (have, wanted) = (self.normalized(), wanted.normalized());
        if have.os != wanted.os || have.architecture != wanted.architecture {
            return None;
        }
        if !have.runs_below(&wanted) {
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

    /// Whether an image for `self` runs on the release of `wanted`, as containerd decides it: one without a release
    /// does, and Windows runs images of its build, from Server 2022 on also those of older builds down to the
    /// previous long-term release. Other systems have no order of releases.
    fn runs_below(&self, wanted: &Platform) -> bool {
        let (Some(have), Some(host)) = (self.os_version(), wanted.os_version()) else { return true };
        if have == host {
            return true;
        }
        let (Some(have), Some(host)) = (WindowsRelease::of(have), WindowsRelease::of(host)) else {
            return false;
        };
        self.os == "windows"
            && have.system == host.system
            && (host.oldest()..=host.build).contains(&have.build)
    }

    /// Rank among images of one distance from `wanted`: higher is better, and equal ones cannot be decided. An image
    /// that needs only features of `wanted` comes first, then the one that uses most of them; if `wanted` has a release,
    /// then that very release, and else the latest.
    pub(super) fn rank(&self, wanted: &Platform) -> PlatformRank {
        let (needed, offered) = (self.features(), wanted.features());
        let has_features = needed.is_subset(&offered);
        let used = if offered.is_empty() { 0 } else { needed.intersection(&offered).count() };
        let release = wanted.os_version().map(|host| {
            let have = self.os_version();
            (have == Some(host), have.and_then(WindowsRelease::of))
        });
        PlatformRank { has_features, used, release }
    }
}

/// Order of images of one distance; see [`Platform::rank`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PlatformRank {
    has_features: bool,
    used: usize,
    /// Whether it is the very release, and the release; `None` if no release was requested.
    release: Option<(bool, Option<WindowsRelease>)>,
}

/// A release of Windows: `10.0.17763.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct WindowsRelease {
    /// Major and minor number.
    system: (u32, u32),
    build: u32,
    /// Number of the update; 0 if absent.
    revision: u32,
}

/// Builds of Windows Server whose images later builds run ("Windows container version compatibility"), in order.
const LONG_TERM_BUILDS: [u32; 2] = [20348, 26100];

impl WindowsRelease {
    /// `None` if `text` is not of this form.
    fn of(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|number| number.parse::<u32>().ok());
        let (major, minor, build) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let revision = numbers.next().map_or(Some(0), |revision| revision)?;
        numbers.next().is_none().then_some(Self { system: (major, minor), build, revision })
    }

    /// The oldest build whose images this one runs.
    fn oldest(&self) -> u32 {
        if self.build < LONG_TERM_BUILDS[0] {
            return self.build;
        }
        // A long-term build also runs images of the one before it.
        let before = LONG_TERM_BUILDS.iter().rev().find(|build| **build < self.build);
        before.copied().unwrap_or(self.build)
    }
}

/// Decodes `%XX` in an option of a system; `None` if that is malformed.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'%' {
            let (hex, tail) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Encodes the characters that the notation itself uses.
fn encoded(text: &str) -> String {
    let special = |c: char| "%+()/".contains(c);
    text.chars().map(|c| if special(c) { format!("%{:02X}", u32::from(c)) } else { c.to_string() }).collect()
}

impl FromStr for Platform {
    type Err = OciError;

    /// `os[(version[+feature]...)]/architecture[/variant]` as containerd writes it, or with `:version` at the end as
    /// crane does.
    fn from_str(text: &str) -> Result<Self, OciError> {
        let bad = || OciError::Platform { platform: text.to_owned() };
        if !text.contains('/') {
            return Self::of_one_word(text).ok_or_else(bad);
        }
        let mut parts = text.splitn(3, '/');
        let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
        let (os, options) = match os.unwrap_or_default().split_once('(') {
            Some((os, options)) => (os, options.strip_suffix(')').ok_or_else(bad)?),
            None => (os.unwrap_or_default(), ""),
        };
        let mut options = options.split('+');
        let mut version = options.next().unwrap_or_default().to_owned();
        let mut end = variant.or(architecture).unwrap_or_default();
        if version.is_empty()
            && let Some((before, behind)) = end.split_once(':')
        {
            (end, version) = (before, behind.to_owned());
            if behind.is_empty() {
                return Err(bad());
            }
        }
        let (architecture, variant) = match (architecture, variant) {
            (Some(architecture), Some(_)) => (architecture, Some(end)),
            _ => (end, None),
        };
        let good = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !good(os) || !good(architecture) || variant.is_some_and(|variant| !good(variant)) {
            return Err(bad());
        }
        let option = |text: &str| {
            decoded(text)
                .filter(|option| !option.is_empty() && !text.contains(['(', ')', '/']))
                .ok_or_else(bad)
        };
        let version = Some(version).filter(|version| !version.is_empty()).map(|version| option(&version));
        let features = options.map(option).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
            os_version: version.transpose()?,
            os_features: Some(features).filter(|features| !features.is_empty()),
        })
    }
}

impl fmt::Display for Platform {
    /// Formats in containerd's notation, which [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut options = encoded(self.os_version().unwrap_or_default());
        for feature in self.features() {
            options.push('+');
            options.push_str(&encoded(feature));
        }
        let base = self.base_name();
        match base.split_once('/') {
            Some((os, rest)) if !options.is_empty() => write!(f, "{os}({options})/{rest}"),
            _ => f.write_str(&base),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_is_one_known_word_or_two_or_three() {
        for (word, meant) in [("arm64", "linux/arm64"), ("x86_64", "linux/amd64"), ("armhf", "linux/arm/v7")]
        {
            let platform: Platform = word.parse().unwrap();
            assert_eq!(platform.normalized().to_string(), meant);
        }
        let architecture = Platform::host().architecture;
        for (word, meant) in [("linux", "linux"), ("windows(10.0.17763)", "windows(10.0.17763)")] {
            assert_eq!(word.parse::<Platform>().unwrap().to_string(), format!("{meant}/{architecture}"));
        }
        for bad in ["", "other", "all(", "linux/", "/amd64", "linux/arm/v7/x", "li nux/amd64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn release_and_features_are_read_in_the_notations_of_containerd_and_crane() {
        for (written, version, features, shown) in [
            ("windows(10.0.17763.1)/amd64", "10.0.17763.1", "", "windows(10.0.17763.1)/amd64"),
            ("windows/amd64:10.0.17763.1", "10.0.17763.1", "", "windows(10.0.17763.1)/amd64"),
            ("linux/arm/v7:6.1", "6.1", "", "linux(6.1)/arm/v7"),
            ("windows(10.0.1+win32k+a)/amd64", "10.0.1", "win32k,a", "windows(10.0.1+a+win32k)/amd64"),
            ("linux(+erofs)/arm64/v8", "", "erofs", "linux(+erofs)/arm64/v8"),
            ("darwin(macOS%2014%2B)/arm64", "macOS 14+", "", "darwin(macOS 14%2B)/arm64"),
        ] {
            let platform: Platform = written.parse().unwrap();
            assert_eq!(platform.os_version().unwrap_or_default(), version, "{written}");
            assert_eq!(platform.os_features.clone().unwrap_or_default().join(","), features, "{written}");
            assert_eq!(platform.to_string(), shown);
            assert_eq!(shown.parse::<Platform>().unwrap().to_string(), shown);
        }
        for bad in [
            "windows(/amd64",
            "windows(10.0)x/amd64",
            "windows(10.0+)/amd64",
            "windows(1%2)/amd64",
            "windows/amd64:",
            "windows(1)/amd64:2",
            "(1)/amd64",
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn windows_runs_images_of_its_build_and_from_2022_on_of_older_ones() {
        let runs = |host: &str, image: &str| {
            let platform = |version| format!("windows({version})/amd64").parse::<Platform>().unwrap();
            platform(image).distance(&platform(host)).is_some()
        };
        for (host, image, expected) in [
            ("10.0.17763.1", "10.0.17763.2237", true),
            ("10.0.17763", "10.0.17763.1", true),
            ("10.0.17763.1", "10.0.14393.1", false),
            ("10.0.17763.1", "10.0.20348.1", false),
            ("10.0.20348.1", "10.0.17763.1", false),
            ("10.0.22621.1", "10.0.20348.1", true),
            ("10.0.20348.1", "10.0.22621.1", false),
            ("10.0.26100.1", "10.0.20348.1", true),
            ("10.0.26200.1", "10.0.20348.1", false),
            ("11.0.17763.1", "10.0.17763.1", false),
            ("ltsc2019", "10.0.17763.1", false),
            ("ltsc2019", "ltsc2019", true),
        ] {
            assert_eq!(runs(host, image), expected, "{image} on {host}");
        }
    }
}
