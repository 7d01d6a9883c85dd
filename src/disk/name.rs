//! File names of disks in `disk/`.
//!
//! The last component of a title becomes a name only if it is plain and printable.

use std::collections::{HashMap, HashSet};

use crate::oci::plain_path;

use super::DiskFormat;

/// The longest file name of Linux, in bytes.
const NAME_MAX: usize = 255;

/// Allocates unique names.
#[derive(Default)]
pub(super) struct UniqueNames {
    taken: HashSet<String>,
    /// For a name that was wanted again: the number after the last one tried. Names are never freed, so all numbers
    /// below are taken.
    numbers: HashMap<String, usize>,
}

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
        let name = self.allocate(&wanted);
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

    /// Names that are taken from the start.
    pub(super) fn taken(names: impl Iterator<Item = String>) -> Self {
        Self { taken: names.collect(), numbers: HashMap::new() }
    }

    /// Takes the first unused of `name`, `stem-2.ext` and so on.
    pub(super) fn allocate(&mut self, name: &str) -> String {
        if self.taken.insert(name.to_owned()) {
            return name.to_owned();
        }
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, "img"));
        let next = self.numbers.entry(name.to_owned()).or_insert(2);
        loop {
            let tail = format!("-{next}.{extension}");
            let mut end = stem.len().min(NAME_MAX.saturating_sub(tail.len()));
            while !stem.is_char_boundary(end) {
                end -= 1;
            }
            let numbered = stem[..end].to_owned() + &tail;
            *next += 1;
            if self.taken.insert(numbered.clone()) {
                return numbered;
            }
        }
    }
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
        assert_eq!(names.name("disk-4", &DiskFormat::Qcow2).0, "disk-4.qcow2");
        assert_eq!(
            names.name("../x", &DiskFormat::Qcow2).0,
            "disk-5.qcow2",
            "a number that is a title is left out"
        );
        let long = "x".repeat(249);
        assert_eq!(names.name(&long, &DiskFormat::Qcow2).0, format!("{long}.qcow2"));
        let second = names.name(&long, &DiskFormat::Qcow2).0;
        assert_eq!(second, format!("{}-2.qcow2", &long[..247]));
    }
}
