//! Manifest selection from an index: by conditions of the user, then by platform.
//!
//! Several equally good entries are an error, not a silent choice. Entries that are not images are skipped,
//! conditions filter the rest, and the platform ranks them. Only a single best entry wins.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::str::FromStr;

use super::{Descriptor, Digest, GlobPattern, MediaType, OciError, Platform, REF_NAME, SOCI_V2, TITLE};

/// Short names for conditions, of the annotations that distinguish entries of one platform.
const SHORT: [(&str, &str); 3] = [("disktype", "disktype"), ("ref.name", REF_NAME), ("title", TITLE)];

/// BuildKit's annotation for the purpose of an entry without a real platform.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// Limit of the candidates in an error.
const MAX_LISTED_CANDIDATES: usize = 32;

/// Limit of the further annotations that distinguish entries.
const MAX_LISTED_ANNOTATIONS: usize = 4;

/// A condition on the entries of an index: `KEY=GLOB`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryCondition {
    key: String,
    glob: GlobPattern,
}

impl EntryCondition {
    /// Whether `entry` meets the condition. An entry without the property does not.
    pub fn is_met(&self, entry: &Descriptor) -> bool {
        let annotation = |key: &str| entry.annotations.get(key).map(String::as_str);
        let short = || {
            let (_, long) = SHORT.iter().find(|(short, _)| *short == self.key)?;
            annotation(long)
        };
        let value = match self.key.as_str() {
            "artifactType" => entry.artifact_type.as_ref().map(MediaType::as_written),
            "mediaType" => Some(entry.media_type.as_written()),
            "digest" => Some(entry.digest.as_str()),
            key => annotation(key).or_else(short),
        };
        match (value, &entry.platform) {
            (Some(value), _) => self.glob.matches(value),
            (None, Some(platform)) => {
                of_platform(platform, &self.key).into_iter().any(|value| self.glob.matches(value))
            }
            (None, None) => false,
        }
    }
}

impl FromStr for EntryCondition {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        let bad = || OciError::Pattern {
            pattern: text.to_owned(),
            reason: "it is not of the form KEY=GLOB".into(),
        };
        let (key, glob) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(bad)?;
        Ok(Self { key: key.to_owned(), glob: glob.parse()? })
    }
}

impl fmt::Display for EntryCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.glob.as_str())
    }
}

/// The properties of a platform that conditions know.
const OF_PLATFORM: [&str; 5] = ["os", "architecture", "variant", "os.version", "os.features"];

/// The values of a property of `platform`: one, or any number for `os.features`.
fn of_platform<'a>(platform: &'a Platform, key: &str) -> Vec<&'a str> {
    match key {
        "os" => vec![&platform.os],
        "architecture" => vec![&platform.architecture],
        "variant" => platform.variant.iter().map(String::as_str).collect(),
        "os.version" => platform.os_version().into_iter().collect(),
        "os.features" => platform.os_features.iter().flatten().map(String::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The properties that distinguish an entry from others of its platform: short names, and values as written.
pub fn distinguishing_properties(entry: &Descriptor) -> impl Iterator<Item = (&str, &str)> {
    let annotations =
        SHORT.iter().filter_map(|(short, long)| Some((*short, entry.annotations.get(*long)?.as_str())));
    let kind = entry.artifact_type.iter().map(|kind| ("artifactType", kind.as_written()));
    annotations.chain(kind)
}

/// The properties that distinguish each of `entries` from the others, in the form of `--select`: those of
/// [`distinguishing_properties`], release and features of the system, and the annotations in which they differ.
pub fn differing_properties(entries: &[&Descriptor]) -> Vec<Vec<(String, String)>> {
    let short = |long: &str| SHORT.iter().any(|(_, known)| *known == long);
    let keys: BTreeSet<&str> =
        entries.iter().flat_map(|entry| entry.annotations.keys()).map(String::as_str).collect();
    let differs = |key: &&str| {
        let mut values = entries.iter().map(|entry| entry.annotations.get(*key));
        let first = values.next();
        !short(key) && values.any(|value| Some(value) != first)
    };
    let keys: Vec<&str> = keys.into_iter().filter(differs).take(MAX_LISTED_ANNOTATIONS).collect();
    let properties = |entry: &&Descriptor| {
        let annotations = keys.iter().filter_map(|key| Some((*key, entry.annotations.get(*key)?.as_str())));
        let system = OF_PLATFORM[3..].iter().flat_map(|key| {
            let values =
                entry.platform.as_ref().map(|platform| of_platform(platform, key)).unwrap_or_default();
            values.into_iter().map(move |value| (*key, value))
        });
        system
            .chain(distinguishing_properties(entry))
            .chain(annotations)
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    };
    entries.iter().map(properties).collect()
}

/// Purpose of an entry of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryPurpose {
    /// An image or artifact, or an index of them.
    Image,
    /// BuildKit's attestation of the build of another entry.
    Attestation,
    /// A SOCI index, which has the platform of its image.
    Soci,
}

/// Determines the purpose of `entry`.
pub fn entry_kind(entry: &Descriptor) -> EntryPurpose {
    if entry.artifact_type == Some(MediaType::from(SOCI_V2)) {
        EntryPurpose::Soci
    } else if entry.platform.as_ref().is_some_and(Platform::is_unknown)
        || entry.annotations.get(REFERENCE_TYPE).is_some_and(|kind| kind == "attestation-manifest")
    {
        EntryPurpose::Attestation
    } else {
        EntryPurpose::Image
    }
}

/// An entry of an index or of a nested index, as a candidate.
#[derive(Clone, Debug)]
pub struct PlatformCandidate {
    /// The entry.
    pub entry: Descriptor,
    /// The entry's own platform, else that of the nearest index above it that has one; `None` if none has.
    pub platform: Option<Platform>,
    /// For each condition, whether the entry or an index above it meets it.
    met: Vec<bool>,
}

impl PlatformCandidate {
    /// The candidate for `entry`. `above` is the candidate of the index that contains it, `None` for the outermost
    /// index.
    pub fn of(entry: &Descriptor, above: Option<&PlatformCandidate>, conditions: &[EntryCondition]) -> Self {
        let met = conditions.iter().enumerate().map(|(at, condition)| {
            condition.is_met(entry) || above.is_some_and(|above| above.met.get(at) == Some(&true))
        });
        let inherited = || above.and_then(|above| above.platform.clone());
        Self { entry: entry.clone(), platform: entry.platform.clone().or_else(inherited), met: met.collect() }
    }

    /// Whether it meets all conditions.
    pub fn is_selected(&self) -> bool {
        self.met.iter().all(|met| *met)
    }
}

/// Chooses the best candidate. Unselected candidates are skipped, then the platform decides: `wanted`, or that of
/// this machine. If no platform fits, the only candidate without a platform wins. With conditions and no `wanted`, a
/// single remaining candidate wins whatever its platform. No candidate, or several equally good ones, are an error.
pub fn choose<'a>(
    candidates: &'a [PlatformCandidate],
    conditions: &[EntryCondition],
    wanted: Option<&Platform>,
) -> Result<&'a PlatformCandidate, OciError> {
    let mut seen: HashSet<&Digest> = HashSet::new();
    let all: Vec<&PlatformCandidate> =
        candidates.iter().filter(|one| entry_kind(&one.entry) == EntryPurpose::Image).collect();
    let mut left: Vec<&PlatformCandidate> = all.iter().copied().filter(|one| one.is_selected()).collect();
    if left.is_empty() && !conditions.is_empty() {
        let wanted = conditions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(OciError::NoEntry { wanted, available: list(&all) });
    }
    let host = Platform::host();
    let platform = wanted.unwrap_or(&host);
    let distance = |one: &PlatformCandidate| one.platform.as_ref()?.distance(platform);
    // A document that is listed twice counts once, with its best entry.
    left.sort_by_key(|one| distance(one).unwrap_or(u32::MAX));
    left.retain(|one| seen.insert(&one.entry.digest));
    if let ([only], false, None) = (&left[..], conditions.is_empty(), wanted) {
        return Ok(only);
    }
    let least = left.iter().filter_map(|one| distance(one)).min();
    let best: Vec<&PlatformCandidate> = match least {
        Some(least) => left.iter().copied().filter(|one| distance(one) == Some(least)).collect(),
        None => left.iter().copied().filter(|one| one.platform.is_none()).collect(),
    };
    let rank = |one: &PlatformCandidate| one.platform.as_ref().map(|have| have.rank(platform));
    let highest = best.iter().map(|one| rank(one)).max().flatten();
    let best: Vec<&PlatformCandidate> = best.into_iter().filter(|one| rank(one) == highest).collect();
    match best[..] {
        [only] => Ok(only),
        [] => Err(OciError::NoPlatform { wanted: platform.to_string(), available: list(&left) }),
        [..] => Err(OciError::Ambiguous { wanted: platform.to_string(), candidates: list(&best) }),
    }
}

/// Formats candidates for an error: distinguishing properties and digest of each.
fn list(candidates: &[&PlatformCandidate]) -> String {
    if candidates.is_empty() {
        return "nothing".into();
    }
    let entries: Vec<&Descriptor> = candidates.iter().map(|one| &one.entry).collect();
    let line = |(one, properties): (&&PlatformCandidate, Vec<(String, String)>)| {
        let kind = &one.entry.media_type;
        let what = match &one.platform {
            Some(platform) => platform.base_name(),
            None if kind.is_empty() || kind.is_manifest() || kind.is_index() => "no platform".to_owned(),
            // An index of blobs, such as a build cache: the types distinguish them.
            None => kind.as_written().escape_debug().to_string(),
        };
        let properties: String =
            properties.iter().map(|(key, value)| format!(" {}={value:?}", key.escape_debug())).collect();
        format!("{what}{properties} ({})", one.entry.digest)
    };
    let mut lines: Vec<String> =
        candidates.iter().zip(differing_properties(&entries)).take(MAX_LISTED_CANDIDATES).map(line).collect();
    if candidates.len() > MAX_LISTED_CANDIDATES {
        lines.push(format!("{} more", candidates.len() - MAX_LISTED_CANDIDATES));
    }
    lines.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: &str) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            platform: (!platform.is_empty()).then(|| platform.parse().unwrap()),
            ..Descriptor::of("", platform.as_bytes())
        }
    }

    /// An entry of its own digest with an annotation.
    fn marked(platform: &str, key: &str, value: &str) -> Descriptor {
        let mut entry = entry(platform);
        entry.digest = Digest::sha256(format!("{platform}{key}{value}").as_bytes());
        entry.annotations.insert(key.into(), value.into());
        entry
    }

    fn select(entries: &[Descriptor], conditions: &[&str], wanted: &str) -> Result<Descriptor, OciError> {
        let conditions: Vec<EntryCondition> = conditions.iter().map(|text| text.parse().unwrap()).collect();
        let candidates: Vec<_> =
            entries.iter().map(|entry| PlatformCandidate::of(entry, None, &conditions)).collect();
        let wanted: Option<Platform> = (!wanted.is_empty()).then(|| wanted.parse().unwrap());
        choose(&candidates, &conditions, wanted.as_ref()).map(|one| one.entry.clone())
    }

    fn pick(platforms: &[&str], wanted: &str) -> Result<String, OciError> {
        let entries: Vec<_> = platforms.iter().map(|platform| entry(platform)).collect();
        let chosen = select(&entries, &[], wanted)?;
        Ok(chosen.platform.as_ref().map(ToString::to_string).unwrap_or_default())
    }

    #[test]
    fn entries_without_a_platform_are_distinguished_by_differing_annotations() {
        let kind = "io.cnab.manifest.type";
        let mut entries = vec![marked("", kind, "config"), marked("", kind, "invocation")];
        entries.iter_mut().for_each(|entry| {
            entry.annotations.insert("same".into(), "x".into());
        });
        let OciError::Ambiguous { candidates, .. } = select(&entries, &[], "").unwrap_err() else { panic!() };
        assert!(candidates.contains("no platform io.cnab.manifest.type=\"config\" (sha256:"), "{candidates}");
        assert!(candidates.contains("io.cnab.manifest.type=\"invocation\"") && !candidates.contains("same"));
        assert_eq!(select(&entries, &["io.cnab.manifest.type=invoc*"], ""), Ok(entries[1].clone()));
    }

    #[test]
    fn entries_that_are_no_manifests_are_listed_by_their_types() {
        let types =
            ["application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.buildkit.cacheconfig.v0"];
        let entries = types.map(|kind| Descriptor { media_type: kind.into(), ..marked("", "title", kind) });
        let OciError::Ambiguous { candidates, .. } = select(&entries, &[], "").unwrap_err() else { panic!() };
        assert!(types.iter().all(|kind| candidates.contains(kind)), "{candidates}");
        assert!(!candidates.contains("no platform"), "{candidates}");
    }

    #[test]
    fn names_that_mean_the_same_are_equal() {
        assert_eq!(pick(&["linux/aarch64", "linux/x86_64"], "linux/amd64"), Ok("linux/x86_64".into()));
        assert_eq!(pick(&["linux/arm64/v8"], "linux/arm64"), Ok("linux/arm64/v8".into()));
        assert_eq!(pick(&["linux/arm64"], "linux/aarch64/v8"), Ok("linux/arm64".into()));
    }

    #[test]
    fn releases_of_windows_are_chosen_as_containerd_does_or_listed() {
        let old = ["windows(10.0.17763.1)/amd64", "windows(10.0.17763.20)/amd64"];
        let new = ["windows(10.0.20348.5)/amd64", "windows(10.0.26100.3)/amd64"];
        let all = [old[0], new[0], old[1], new[1]];
        let OciError::Ambiguous { candidates, .. } = pick(&all, "windows/amd64").unwrap_err() else {
            panic!()
        };
        assert!(candidates.starts_with("windows/amd64 os.version=\"10.0.17763.1\" (sha256:"), "{candidates}");
        assert!(candidates.contains("os.version=\"10.0.26100.3\""), "{candidates}");
        for (wanted, expected) in [
            // The very release, else the latest update of the build, else the latest that the host runs.
            (old[0], old[0]),
            ("windows(10.0.17763.9)/amd64", old[1]),
            ("windows(10.0.17763)/amd64", old[1]),
            ("windows/amd64:10.0.17763.1", old[0]),
            ("windows(10.0.22621.9)/amd64", new[0]),
            ("windows(10.0.26100.9)/amd64", new[1]),
        ] {
            assert_eq!(pick(&all, wanted), Ok(expected.into()), "{wanted}");
        }
        let none = pick(&all, "windows(10.0.14393.1)/amd64").unwrap_err().to_string();
        assert!(
            none.contains("for platform windows(10.0.14393.1)/amd64; available: windows/amd64 os.version=\"")
        );
        let entries: Vec<_> = all.iter().map(|platform| entry(platform)).collect();
        for condition in ["os.version=10.0.20348.*", "os.version=*348*"] {
            assert_eq!(select(&entries, &[condition], ""), Ok(entries[1].clone()));
            assert_eq!(select(&entries, &[condition], "windows/amd64"), Ok(entries[1].clone()));
        }
        assert_eq!(select(&entries, &["os=windows", "os.version=*.3"], ""), Ok(entries[3].clone()));
        assert!(select(&entries, &["os.version=10.0.17763.*"], "").is_err());
        // Other systems have releases without an order.
        let macs = ["darwin(macOS 14)/arm64", "darwin(macOS 15)/arm64"];
        assert_eq!(pick(&macs, "darwin(macOS 15)/arm64"), Ok(macs[1].into()));
        assert!(matches!(pick(&macs, "darwin/arm64"), Err(OciError::Ambiguous { .. })));
        assert!(matches!(pick(&macs, "darwin(macOS 16)/arm64"), Err(OciError::NoPlatform { .. })));
    }

    #[test]
    fn an_image_that_needs_no_further_features_wins() {
        let images = ["linux(+erofs)/amd64", "linux/amd64", "linux(+a+erofs)/amd64"];
        assert_eq!(pick(&images, "linux/amd64"), Ok(images[1].into()));
        assert_eq!(pick(&images, "linux(+erofs)/amd64"), Ok(images[0].into()));
        assert_eq!(pick(&images, "linux(+erofs+a+b)/amd64"), Ok(images[2].into()));
        assert_eq!(pick(&images[..1], "linux/amd64"), Ok(images[0].into()));
        let error = pick(&[images[0], images[2]], "linux/amd64").unwrap_err().to_string();
        assert!(error.contains("linux/amd64 os.features=\"erofs\" (sha256:"), "{error}");
        let entries = images.map(entry);
        assert_eq!(select(&entries, &["os.features=a"], ""), Ok(entries[2].clone()));
    }

    #[test]
    fn the_nearest_lower_variant_wins() {
        let arms = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"];
        assert_eq!(pick(&arms, "linux/arm/v7"), Ok("linux/arm/v7".into()));
        assert_eq!(pick(&arms, "linux/arm/v6"), Ok("linux/arm/v6".into()));
        assert_eq!(pick(&arms, "linux/arm/v8"), Ok("linux/arm/v7".into()));
        let error = pick(&["linux/arm/v7"], "linux/arm/v6").unwrap_err();
        assert!(
            matches!(&error, OciError::NoPlatform { available, .. } if available.starts_with("linux/arm/v7 (sha256:"))
        );
        assert_eq!(pick(&["linux/amd64/v3", "linux/amd64"], "linux/amd64"), Ok("linux/amd64".into()));
        assert_eq!(pick(&["linux/amd64", "linux/amd64/v3"], "linux/amd64/v4"), Ok("linux/amd64/v3".into()));
    }

    #[test]
    fn attestations_are_neither_chosen_nor_listed() {
        let error = pick(&["unknown/unknown", "linux/s390x"], "linux/amd64").unwrap_err().to_string();
        assert!(error.contains("linux/s390x") && !error.contains("unknown"), "{error}");
        let attestation = marked("linux/amd64", REFERENCE_TYPE, "attestation-manifest");
        let entries = [attestation, entry("linux/amd64")];
        assert_eq!(select(&entries, &[], "linux/amd64"), Ok(entries[1].clone()));
    }

    #[test]
    fn the_soci_index_of_an_image_is_not_the_image() {
        let soci = |platform: &str| Descriptor { artifact_type: Some(SOCI_V2.into()), ..entry(platform) };
        let mut image = entry("linux/amd64");
        image.digest = Digest::sha256(b"the image");
        for image in [image.clone(), Descriptor { platform: None, ..image }] {
            for soci in [soci("linux/amd64"), soci("")] {
                assert_eq!(select(&[soci, image.clone()], &[], "linux/amd64"), Ok(image.clone()));
            }
        }
        let none = select(&[soci("linux/amd64")], &[], "linux/amd64").unwrap_err();
        assert!(matches!(none, OciError::NoPlatform { available, .. } if available == "nothing"));
    }

    #[test]
    fn a_single_entry_without_platform_is_taken_and_of_two_each_is_named() {
        assert_eq!(pick(&[""], "linux/amd64"), Ok(String::new()));
        let entries = [marked("", "title", "a"), marked("", "org.opencontainers.image.ref.name", "b")];
        let error = select(&entries, &[], "linux/amd64").unwrap_err();
        assert!(matches!(error, OciError::Ambiguous { .. }), "{error}");
        for entry in &entries {
            assert!(error.to_string().contains(entry.digest.as_str()), "{error}");
        }
        assert!(error.to_string().contains("ref.name=\"b\""), "{error}");
    }

    #[test]
    fn equal_entries_are_an_error_until_a_condition_selects_one() {
        let entries = ["qemu", "applehv", "hyperv"].map(|kind| marked("linux/x86_64", "disktype", kind));
        let error = select(&entries, &[], "linux/amd64").unwrap_err().to_string();
        assert!(error.contains("disktype=\"qemu\"") && error.contains(entries[2].digest.as_str()), "{error}");
        for condition in ["disktype=apple*", &format!("digest={}", entries[1].digest)] {
            assert_eq!(select(&entries, &[condition], "linux/amd64"), Ok(entries[1].clone()));
        }
        let none = select(&entries, &["disktype=wsl"], "linux/amd64").unwrap_err().to_string();
        assert!(none.starts_with("no manifest meets disktype=wsl; available: linux/x86_64"), "{none}");
        // Two conditions are both met by one entry, and a property that is missing is not met.
        assert_eq!(
            select(&entries, &["disktype=*p*", "mediaType=*manifest*"], "linux/amd64")
                .unwrap_err()
                .to_string()
                .matches("sha256:")
                .count(),
            2
        );
        assert!(select(&entries, &["artifactType=*"], "linux/amd64").is_err());
    }

    #[test]
    fn one_document_that_is_listed_twice_is_one_candidate() {
        let twice = [entry("linux/amd64"), entry("linux/amd64")];
        assert_eq!(select(&twice, &[], "linux/amd64"), Ok(twice[0].clone()));
    }

    #[test]
    fn single_match_of_conditions_needs_no_platform_unless_requested() {
        let entries = [marked("darwin/arm64", "title", "a"), marked("darwin/amd64", "title", "b")];
        let by = "title=a";
        let long = "org.opencontainers.image.title=a";
        let mut titled = entries.clone();
        titled[0].annotations.insert("org.opencontainers.image.title".into(), "a".into());
        assert_eq!(select(&titled, &[by], ""), Ok(titled[0].clone()));
        assert_eq!(select(&titled, &[long], "darwin/arm64"), Ok(titled[0].clone()));
        assert!(select(&titled, &[by], "linux/s390x").is_err());
        assert!(select(&entries[..1], &[], "linux/s390x").is_err());
    }

    #[test]
    fn index_artifact_type_applies_to_its_entries() {
        let conditions: Vec<EntryCondition> =
            vec!["disktype=qemu".parse().unwrap(), "mediaType=*manifest*".parse().unwrap()];
        let outer = PlatformCandidate::of(&marked("linux/arm64", "disktype", "qemu"), None, &conditions);
        let inner = PlatformCandidate::of(&entry(""), Some(&outer), &conditions);
        assert!(inner.is_selected());
        assert_eq!(inner.platform, Some("linux/arm64".parse().unwrap()));
        assert!(!PlatformCandidate::of(&entry(""), None, &conditions).is_selected());
    }

    #[test]
    fn a_condition_is_a_key_and_a_pattern() {
        for bad in ["", "a", "=a", "a=["] {
            assert!(bad.parse::<EntryCondition>().is_err(), "{bad}");
        }
        let condition: EntryCondition = "a=b=*".parse().unwrap();
        assert_eq!(condition.to_string(), "a=b=*");
        assert!(condition.is_met(&marked("", "a", "b=c")));
    }
}
