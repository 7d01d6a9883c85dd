//! Directory names for the entries of an index, and for referrers.
//!
//! Annotations are untrusted, so characters that do not belong in a plain file name are replaced. A name cannot leave
//! its directory, and two documents do not share one. The name starts with the platform. If several entries have one
//! platform, the first annotation that distinguishes some of them is appended, then the next, and finally the digest,
//! which distinguishes all.

use std::collections::{BTreeMap, HashSet};

use super::{Descriptor, Digest, Platform, REF_NAME, TITLE};

/// Limit of the part of a name from one annotation, in characters.
const PART_MAX: usize = 80;

/// An entry and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEntry<'a> {
    /// One plain component of a path.
    pub name: String,
    /// The entry.
    pub entry: &'a Descriptor,
}

/// Properties that distinguish entries of one platform, in order of preference.
const DISTINGUISHING: [fn(&Descriptor) -> Option<&str>; 4] = [
    |entry| annotation(entry, "disktype"),
    |entry| annotation(entry, REF_NAME),
    |entry| annotation(entry, TITLE),
    |entry| entry.platform.as_ref()?.os_version.as_deref(),
];

/// Names the entries of one index, in their order: `<os>-<arch>[-<variant>]`, followed by the properties that
/// distinguish entries of one name. A document that is listed twice under one name appears once.
pub fn member_names<'a>(entries: impl IntoIterator<Item = &'a Descriptor>) -> Vec<NamedEntry<'a>> {
    let entries: Vec<&Descriptor> = entries.into_iter().collect();
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, entry) in entries.iter().enumerate() {
        groups.entry(of_platform(entry).unwrap_or_default()).or_default().push(at);
    }
    let mut names = vec![String::new(); entries.len()];
    for (base, group) in groups {
        distinguish(&entries, &base, group, 0, &mut names);
    }
    let mut taken: HashSet<String> = HashSet::new();
    let mut seen: HashSet<(String, &Digest)> = HashSet::new();
    let mut named = Vec::new();
    for (mut name, entry) in names.into_iter().zip(entries) {
        if !seen.insert((name.clone(), &entry.digest)) {
            continue;
        }
        // Annotations can still give equal names; appending the digest ends the search.
        if !taken.insert(name.clone()) {
            name = joined(&name, &digest_name(&entry.digest));
            if !taken.insert(name.clone()) {
                continue;
            }
        }
        named.push(NamedEntry { name, entry });
    }
    named
}

/// Names the entries of `group`, which would otherwise all be named `base`.
fn distinguish(entries: &[&Descriptor], base: &str, group: Vec<usize>, from: usize, names: &mut [String]) {
    let is_one = group.iter().all(|at| entries[*at].digest == entries[group[0]].digest);
    if is_one && !base.is_empty() {
        for at in group {
            names[at] = base.to_owned();
        }
        return;
    }
    let Some(property) = DISTINGUISHING.get(from) else {
        for at in group {
            names[at] = joined(base, entries[at].digest.short());
        }
        return;
    };
    let mut parts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for at in group {
        let part = property(entries[at]).and_then(component).unwrap_or_default();
        parts.entry(part).or_default().push(at);
    }
    // A value that all entries share does not distinguish them; but entries without a platform need some name.
    let is_distinct = parts.len() > 1 || base.is_empty();
    for (part, group) in parts {
        let base = if is_distinct { joined(base, &part) } else { base.to_owned() };
        distinguish(entries, &base, group, from + 1, names);
    }
}

fn joined(base: &str, part: &str) -> String {
    match (base, part) {
        (base, "") => base.to_owned(),
        ("", part) => part.to_owned(),
        (base, part) => format!("{base}-{part}"),
    }
}

fn annotation<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a str> {
    entry.annotations.get(key).map(String::as_str)
}

fn of_platform(entry: &Descriptor) -> Option<String> {
    let platform: Platform = entry.platform.as_ref()?.normalized();
    let (os, architecture) = (component(&platform.os)?, component(&platform.architecture)?);
    let variant = platform.variant.as_deref().and_then(component).unwrap_or_default();
    Some(joined(&joined(&os, &architecture), &variant))
}

/// `text` as a plain component of a path: any character except letters, digits and `._+~:@=,-` is replaced by `_`.
/// `None` if no letter or digit is left.
fn component(text: &str) -> Option<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._+~:@=,-".contains(c) { c } else { '_' };
    let name: String = text.trim().chars().take(PART_MAX).map(plain).collect();
    name.chars().any(|c| c.is_ascii_alphanumeric()).then_some(name)
}

/// Directory of a referrer: `<artifact-type>/<digest>`, two plain components.
pub fn referrer_directory(entry: &Descriptor) -> [String; 2] {
    let kind = entry.artifact_type.as_ref().and_then(|kind| component(kind.as_written()));
    [kind.unwrap_or_else(|| "unknown".to_owned()), digest_name(&entry.digest)]
}

/// A digest as a component: the whole digest, unless its algorithm makes it longer than a name can be.
fn digest_name(digest: &Digest) -> String {
    /// Leaves room for the rest of a name, which has at most 255 bytes.
    const MOST: usize = 140;
    let whole = digest.as_str();
    if whole.len() <= MOST { whole.to_owned() } else { digest.short().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: &str, annotations: &[(&str, &str)]) -> Descriptor {
        let mut entry = Descriptor::of("", format!("{platform}{annotations:?}").as_bytes());
        entry.platform = (!platform.is_empty()).then(|| platform.parse().unwrap());
        entry.annotations =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        entry
    }

    fn names(entries: &[Descriptor]) -> Vec<String> {
        member_names(entries).into_iter().map(|named| named.name).collect()
    }

    #[test]
    fn a_platform_is_a_name_in_its_normal_form() {
        let entries = ["linux/x86_64", "linux/arm", "linux/aarch64/v8", "windows/amd64"];
        let entries = entries.map(|platform| entry(platform, &[]));
        assert_eq!(names(&entries), ["linux-amd64", "linux-arm-v7", "linux-arm64", "windows-amd64"]);
    }

    #[test]
    fn disks_of_one_platform_are_named_by_their_kind() {
        let disk = |kind| entry("linux/x86_64", &[("disktype", kind)]);
        let entries = [entry("linux/amd64", &[]), disk("qemu"), disk("hyperv")];
        assert_eq!(names(&entries), ["linux-amd64", "linux-amd64-qemu", "linux-amd64-hyperv"]);
    }

    #[test]
    fn bottles_are_named_by_their_titles() {
        let bottle = |name| entry("darwin/arm64", &[(REF_NAME, name)]);
        let entries = [
            bottle("1.0.arm64_sonoma"),
            bottle("1.0.arm64_sequoia"),
            entry("linux/amd64", &[(REF_NAME, "1.0")]),
        ];
        assert_eq!(
            names(&entries),
            ["darwin-arm64-1.0.arm64_sonoma", "darwin-arm64-1.0.arm64_sequoia", "linux-amd64"]
        );
    }

    #[test]
    fn entries_equal_in_one_annotation_are_named_by_the_next() {
        let both = |kind, title| entry("linux/amd64", &[("disktype", kind), (TITLE, title)]);
        let entries = [both("a", "x"), both("a", "y"), both("b", "x")];
        assert_eq!(names(&entries), ["linux-amd64-a-x", "linux-amd64-a-y", "linux-amd64-b"]);
        let mut versions = [entry("windows/amd64", &[]), entry("windows/amd64", &[("x", "y")])];
        for (entry, version) in versions.iter_mut().zip(["10.0.1", "10.0.2"]) {
            entry.platform.as_mut().unwrap().os_version = Some(version.into());
        }
        assert_eq!(names(&versions), ["windows-amd64-10.0.1", "windows-amd64-10.0.2"]);
    }

    #[test]
    fn indistinguishable_entries_are_named_by_digest() {
        let entries = [entry("linux/amd64", &[("x", "1")]), entry("linux/amd64", &[("x", "2")])];
        let expected = entries.each_ref().map(|entry| format!("linux-amd64-{}", entry.digest.short()));
        assert_eq!(names(&entries), expected);
        let twice = [entries[0].clone(), entries[0].clone()];
        assert_eq!(names(&twice), ["linux-amd64"]);
    }

    #[test]
    fn an_entry_without_a_platform_is_called_by_name_title_or_digest() {
        let entries =
            [entry("", &[(REF_NAME, "v1")]), entry("", &[(TITLE, "thing")]), entry("", &[("x", "y")])];
        assert_eq!(
            names(&entries),
            ["v1".to_owned(), "thing".to_owned(), entries[2].digest.short().to_string()]
        );
        assert_eq!(names(&entries[..1]), ["v1"]);
    }

    #[test]
    fn no_annotation_leaves_its_directory_or_takes_a_name_of_another() {
        for hostile in ["..", ".", "", "/", "../../etc", "a/b", "a\0b", "\u{202e}x", &"x".repeat(5000), "\n"]
        {
            let entries = [entry("", &[(REF_NAME, hostile)]), entry("", &[(REF_NAME, hostile), ("x", "y")])];
            let names = names(&entries);
            assert_eq!(names.len(), 2, "{hostile:?}");
            assert_ne!(names[0], names[1]);
            for name in names {
                assert!(!name.is_empty() && name.len() < 255 && name != "." && name != "..", "{name:?}");
                assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'), "{name:?}");
            }
        }
        // Two ways to the same name.
        let entries = [entry("linux/amd64", &[]), entry("", &[(REF_NAME, "linux-amd64")])];
        let names = names(&entries);
        assert_eq!(names[0], "linux-amd64");
        assert!(names[1].starts_with("linux-amd64-sha256:"), "{names:?}");
        let mut odd = entry("linux/amd64", &[]);
        odd.platform.as_mut().unwrap().os = "../..".into();
        assert_eq!(self::names(&[odd.clone()]), [odd.digest.short().to_string()]);
    }

    #[test]
    fn a_referrer_has_a_directory_of_two_plain_components() {
        let mut entry = entry("", &[]);
        let digest = entry.digest.to_string();
        assert_eq!(referrer_directory(&entry), ["unknown".to_owned(), digest.clone()]);
        entry.artifact_type = Some("application/vnd.in-toto+json".into());
        assert_eq!(referrer_directory(&entry), ["application_vnd.in-toto+json".to_owned(), digest]);
    }
}
