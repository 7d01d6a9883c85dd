//! Sanitizes untrusted text for directory names.

use crate::io::is_unprintable;

/// The longest name, in bytes, which leaves room for a number in front.
const MAX_COMPONENT_BYTES: usize = 200;

/// `text` as one component of a path: `/` becomes `_`, and unprintable characters and leading dots are dropped. `None`
/// if nothing is left.
pub fn component(text: &str) -> Option<String> {
    let plain = |c: char| match c {
        '/' => Some('_'),
        c if is_unprintable(c) => None,
        c => Some(c),
    };
    let mut name: String = text.chars().filter_map(plain).collect();
    while name.len() > MAX_COMPONENT_BYTES {
        name.pop();
    }
    let name = name.trim_start_matches('.');
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_written_becomes_one_plain_component_or_nothing() {
        assert_eq!(component("module/vendor").as_deref(), Some("module_vendor"));
        assert_eq!(component("../../etc").as_deref(), Some("_.._etc"));
        assert_eq!(component("a\u{1b}[1m\0").as_deref(), Some("a[1m"));
        assert_eq!(component("a\u{202e}gpj.exe").as_deref(), Some("agpj.exe"));
        assert_eq!(component("pay\u{200b}load\u{feff}").as_deref(), Some("payload"));
        for nothing in ["", ".", "..", "\n\0", "\u{200b}..\u{2066}"] {
            assert_eq!(component(nothing), None, "{nothing:?}");
        }
        assert_eq!(component(&"ä".repeat(300)).unwrap().len(), MAX_COMPONENT_BYTES);
    }
}
