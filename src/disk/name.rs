//! File names of disks in `disk/`.
//!
//! The last component of a title becomes a name only if it is plain and printable.

use std::collections::BTreeSet;

use crate::oci::plain_path;

use super::DiskFormat;

/// The longest file name of Linux, in bytes.
const NAME_MAX: usize = 255;

/// Allocates unique names.
#[derive(Default)]
pub(super) struct UniqueNames(BTreeSet<String>);

impl UniqueNames {
    /// The name for a disk whose titles have this stem, without its directories. The warning states why another name
    /// is used.
    pub(super) fn name(&mut self, stem: &str, format: &DiskFormat) -> (String, Option<String>) {
        let plain = plain_path(stem);
        let stem = plain.as_deref().map_or(stem, |plain| plain.rsplit('/').next().unwrap_or(plain));
        let wanted = with_extension(stem, format);
        let (wanted, unsafe_title) = match is_plain(&wanted) {
            true if !stem.is_empty() => (wanted, false),
            _ => (with_extension("disk", format), !stem.is_empty()),
        };
        let name = unused(&wanted, |name| self.0.contains(name), self.0.len());
        self.0.insert(name.clone());
        let warning = if unsafe_title {
            let shown: String = stem.chars().take(200).collect();
            Some(format!("title {shown:?} is no safe file name: the disk is called {name:?}"))
        } else if name != wanted {
            Some(format!("two disks are called {wanted:?}: the later one is called {name:?}"))
        } else {
            None
        };
        (name, warning)
    }
}

/// The first unused of `name`, `stem-2.ext` and so on, when at most `count` names are used.
pub(super) fn unused(name: &str, is_taken: impl Fn(&str) -> bool, count: usize) -> String {
    if !is_taken(name) {
        return name.to_owned();
    }
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, "img"));
    // One of the first `count + 1` numbers is free.
    let numbered = |n: usize| {
        let tail = format!("-{n}.{extension}");
        let mut end = stem.len().min(NAME_MAX.saturating_sub(tail.len()));
        while !stem.is_char_boundary(end) {
            end -= 1;
        }
        stem[..end].to_owned() + &tail
    };
    (2..count + 2).map(numbered).find(|name| !is_taken(name)).unwrap_or_else(|| numbered(count + 2))
}

fn with_extension(stem: &str, format: &DiskFormat) -> String {
    match DiskFormat::by_extension(stem) {
        Some(claimed) if claimed == *format => stem.to_owned(),
        Some(DiskFormat::Unlabelled) if *format == DiskFormat::Raw => stem.to_owned(),
        // The bytes of an optical disc are as they are, which its own extension says better.
        None if *format == DiskFormat::Raw && is_iso(stem) => stem.to_owned(),
        _ => format!("{stem}.{}", format.extension()),
    }
}

fn is_iso(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(stem, end)| !stem.is_empty() && end.eq_ignore_ascii_case("iso"))
}

/// Whether a name is one printable component. A control character would reach the terminal of a user listing the
/// directory.
fn is_plain(name: &str) -> bool {
    name.len() <= NAME_MAX
        && !name.starts_with('.')
        && !name.contains('/')
        && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(stem: &str, format: DiskFormat) -> (String, bool) {
        let (name, warning) = UniqueNames::default().name(stem, &format);
        (name, warning.is_some())
    }

    #[test]
    fn a_name_has_the_extension_of_its_format() {
        assert_eq!(one("win.qcow2", DiskFormat::Qcow2), ("win.qcow2".into(), false));
        assert_eq!(one("win", DiskFormat::Qcow2), ("win.qcow2".into(), false));
        assert_eq!(one("win.img", DiskFormat::Raw), ("win.img".into(), false));
        assert_eq!(one("win.img", DiskFormat::Qcow2), ("win.img.qcow2".into(), false));
        assert_eq!(one("", DiskFormat::Qcow2), ("disk.qcow2".into(), false));
        assert_eq!(one("", DiskFormat::Raw), ("disk.raw".into(), false));
    }

    #[test]
    fn the_last_component_of_a_path_is_the_name() {
        for title in ["/etc/disk.qcow2", "a//disk.qcow2", "./disk.qcow2", "a/disk.qcow2"] {
            assert_eq!(one(title, DiskFormat::Qcow2), ("disk.qcow2".into(), false), "{title}");
        }
    }

    #[test]
    fn an_unsafe_title_falls_back_with_a_warning() {
        for title in ["../disk.qcow2", "..", ".", "/", "a/.b", "a\0b", "a\nb", ".hidden"] {
            assert_eq!(one(title, DiskFormat::Qcow2), ("disk.qcow2".into(), true), "{title:?}");
        }
        assert_eq!(one(&"x".repeat(249), DiskFormat::Qcow2).0.len(), 255);
        assert_eq!(one(&"x".repeat(250), DiskFormat::Qcow2), ("disk.qcow2".into(), true));
    }

    #[test]
    fn no_name_is_given_twice() {
        let mut names = UniqueNames::default();
        for name in ["disk.qcow2", "disk-2.qcow2", "disk-3.qcow2"] {
            assert_eq!(names.name("../x", &DiskFormat::Qcow2).0, name);
        }
        let long = "x".repeat(249);
        assert_eq!(names.name(&long, &DiskFormat::Qcow2).0, format!("{long}.qcow2"));
        let second = names.name(&long, &DiskFormat::Qcow2).0;
        assert_eq!(second, format!("{}-2.qcow2", &long[..247]));
    }
}
