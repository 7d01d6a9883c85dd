//! Escapes untrusted text for terminals, logs, HTML pages and command lines.
//!
//! Only displayed text is changed, not stored data. Control characters, bidirectional controls, invisible characters
//! and invalid UTF-8 become escapes; a message has a maximum length.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The longest message, in characters: more than any message of ours, and a few screens of a terminal.
const MAX_MESSAGE_CHARS: usize = 4096;

/// Whether a character controls a terminal or makes it show other text: control characters, the bidirectional
/// controls of UAX #9, line separators, and characters without width.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text with every unprintable character escaped.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        push(&mut out, c);
    }
    Cow::Owned(out)
}

/// The bytes as printable text; invalid UTF-8 becomes `\xNN`.
pub fn printable_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    each(bytes, &mut out, push);
    out
}

/// A file name as printable text, unambiguous because a backslash is doubled.
pub fn printable_name(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    each(bytes, &mut out, |out, c| if c == '\\' { out.push_str("\\\\") } else { push(out, c) });
    out
}

/// One message on one line: printable, and at most a few thousand characters. A long message keeps its end, which
/// names the cause.
pub fn message(text: &str) -> Cow<'_, str> {
    let text = printable(text);
    let length = text.chars().count();
    if length <= MAX_MESSAGE_CHARS {
        return text;
    }
    let (head, tail) = (MAX_MESSAGE_CHARS * 3 / 4, MAX_MESSAGE_CHARS / 4);
    let mut out: String = text.chars().take(head).collect();
    write!(out, " [{} characters left out] ", length - head - tail).ok();
    out.extend(text.chars().skip(length - tail));
    Cow::Owned(out)
}

/// Equivalent JSON with unprintable characters as `\u` escapes. serde_json escapes those below U+0020 itself; the
/// others occur only in strings.
pub fn printable_json(json: String) -> String {
    let is_raw = |c: char| !c.is_ascii_control() && is_unprintable(c) || c == '\u{7f}';
    if !json.contains(is_raw) {
        return json;
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match is_raw(c) {
            true => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").ok();
                }
            }
            false => out.push(c),
        }
    }
    out
}

/// A path or a name as one word of a command for sh(1). `None` if no word is safe to paste: unprintable characters,
/// or invalid UTF-8.
pub fn shell_word(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains(is_unprintable))?;
    // A command takes a word that starts with a dash for an option.
    let text = if text.starts_with('-') { Cow::Owned(format!("./{text}")) } else { Cow::Borrowed(text) };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return Some(text.into_owned());
    }
    Some(format!("'{}'", text.replace('\'', "'\\''")))
}

fn push(out: &mut String, c: char) {
    if is_unprintable(c) { out.extend(c.escape_default()) } else { out.push(c) }
}

fn each(bytes: &[u8], out: &mut String, put: impl Fn(&mut String, char)) {
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| put(out, c));
        for byte in chunk.invalid() {
            write!(out, "\\x{byte:02x}").ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_on_a_terminal_is_printed() {
        let evil = "a\x1b[2J\x07\u{9b}31m\r\n\u{202e}\u{2066}\u{200f}\u{61c}\u{feff}\u{e0041}z\u{7f}";
        let shown = printable(evil);
        assert_eq!(
            shown,
            "a\\u{1b}[2J\\u{7}\\u{9b}31m\\r\\n\\u{202e}\\u{2066}\\u{200f}\\u{61c}\\u{feff}\\u{e0041}z\\u{7f}"
        );
        assert_eq!(printable_bytes(evil.as_bytes()), shown);
        assert_eq!(printable("Grüße 漢字 e\u{301}"), "Grüße 漢字 e\u{301}");
        assert_eq!(printable_bytes(b"a\xff\\"), "a\\xff\\");
    }

    #[test]
    fn two_names_never_print_alike() {
        assert_eq!(printable_name(b"a\nb"), "a\\nb");
        assert_eq!(printable_name(b"a\\nb"), "a\\\\nb");
        assert_eq!(printable_name(b"a\\xff"), "a\\\\xff");
    }

    #[test]
    fn a_message_is_bounded_and_keeps_its_cause() {
        let long = format!("{}\x1b: the cause", "x".repeat(1_000_000));
        let shown = message(&long);
        assert!(shown.chars().count() < MAX_MESSAGE_CHARS + 64 && shown.ends_with("\\u{1b}: the cause"));
        assert_eq!(message("short"), "short");
    }

    #[test]
    fn json_means_the_same_and_is_printable() {
        let value = serde_json::json!({"a\u{202e}": "\u{1b}\u{9b}\u{7f}\u{e0041}ü"});
        let shown = printable_json(value.to_string());
        assert!(!shown.contains(is_unprintable), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn shell_quoting_round_trips_through_sh() {
        for path in ["/a/b-c_d.e", "/x/a b", "it's", "$HOME;`rm`\"*\\", "", "-rf", "~/x", "ü"] {
            let word = shell_word(path.as_bytes()).unwrap();
            let script = format!("printf %s {word}");
            let read = std::process::Command::new("sh").args(["-c", &script]).output().unwrap().stdout;
            let expected = if path == "-rf" { "./-rf" } else { path };
            assert_eq!(String::from_utf8(read).unwrap(), expected, "{word}");
        }
        assert_eq!(shell_word(b"/a/b").unwrap(), "/a/b");
        assert_eq!(shell_word(b"a\nb").or(shell_word(b"a\xff")).or(shell_word("\u{202e}".as_bytes())), None);
    }
}
