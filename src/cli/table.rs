//! Terminal text: short digests, columns, colours.
//!
//! Independent of the reports. All incoming text is made printable here, so that colours are the only escapes in the
//! output.

use std::io::{self, Write};

use crate::io::printable;

/// Columns of a usual terminal.
pub(super) const COLUMNS: usize = 80;
/// The width of the names of fields.
const FIELD_WIDTH: usize = 10;
/// Hexadecimal digits of a short digest, as other container tools show them.
const SHORT_DIGITS: usize = 12;

/// Style of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TextStyle {
    /// Whether colours are written.
    colours: bool,
    /// Whether digests are shortened, and lines cut.
    truncates: bool,
}

/// A meaning that has a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextColor {
    Plain,
    Heading,
    Good,
    Doubtful,
    Bad,
    Soft,
}

/// Whether a stream takes colours: a terminal that is not dumb, unless NO_COLOR is set (no-color.org).
pub(super) fn takes_colours(stream: &impl std::io::IsTerminal) -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !is_set("NO_COLOR") && !is_dumb()
}

/// Whether the terminal supports no escape sequences.
pub(super) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

impl TextStyle {
    /// The style for standard output.
    pub(super) fn of_stdout(truncates: bool) -> Self {
        Self { colours: takes_colours(&io::stdout()), truncates }
    }

    /// Printable text in a colour.
    pub(super) fn toned(self, tone: TextColor, text: &str) -> String {
        let code = match tone {
            _ if !self.colours => None,
            TextColor::Plain => None,
            TextColor::Heading => Some("1"),
            TextColor::Good => Some("32"),
            TextColor::Doubtful => Some("33"),
            TextColor::Bad => Some("31"),
            TextColor::Soft => Some("2"),
        };
        match code {
            Some(code) => format!("\x1b[{code}m{}\x1b[0m", printable(text)),
            None => printable(text).into_owned(),
        }
    }

    /// The digest, or its first digits.
    pub(super) fn digest(self, digest: &str) -> String {
        match digest.split_once(':') {
            Some((_, hex)) if self.truncates => hex.chars().take(SHORT_DIGITS).collect(),
            _ => digest.to_owned(),
        }
    }

    /// The reference with its digest in short.
    pub(super) fn reference(self, reference: &str) -> String {
        match reference.rsplit_once('@') {
            Some((name, digest)) if self.truncates && digest.len() > SHORT_DIGITS => {
                let algorithm = digest.split(':').next().unwrap_or_default();
                format!("{name}@{algorithm}:{}", self.digest(digest))
            }
            _ => reference.to_owned(),
        }
    }

    /// Text of at most `width` columns; a longer text is cut at its end.
    pub(super) fn cut(self, text: &str, width: usize) -> String {
        let text = printable(text);
        match self.truncates && text.chars().count() > width {
            true => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
            false => text.into_owned(),
        }
    }

    /// Prints a field: its name, and its value on as many lines as it takes.
    pub(super) fn field(
        self,
        out: &mut dyn Write,
        name: &str,
        tone: TextColor,
        value: &str,
    ) -> io::Result<()> {
        let lines = wrapped(&printable(value), COLUMNS - FIELD_WIDTH - 1);
        for (at, line) in lines.iter().enumerate() {
            let name = if at == 0 { name } else { "" };
            let name = self.toned(TextColor::Heading, &format!("{name:<FIELD_WIDTH$}"));
            writeln!(out, "{name} {}", self.toned(tone, line))?;
        }
        Ok(())
    }
}

/// Lines of at most `width` columns, broken at spaces; a longer word has a line of its own.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let at = lines.len() - 1;
        let taken = lines[at].chars().count();
        match lines[at].is_empty() {
            true => lines[at].push_str(word),
            false if taken + 1 + word.chars().count() <= width => {
                lines[at].push(' ');
                lines[at].push_str(word);
            }
            false => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The end of a media type, which distinguishes it from similar ones.
pub(super) fn short_type(media_type: &str) -> &str {
    const BEGINNINGS: [&str; 7] = [
        "application/vnd.oci.image.layer.nondistributable.v1.",
        "application/vnd.oci.image.layer.v1.",
        "application/vnd.oci.image.",
        "application/vnd.docker.image.rootfs.foreign.diff.",
        "application/vnd.docker.image.rootfs.diff.",
        "application/vnd.docker.container.image.",
        "application/",
    ];
    BEGINNINGS.iter().find_map(|beginning| media_type.strip_prefix(beginning)).unwrap_or(media_type)
}

/// Numbers as a list of runs: `00-03, 07`.
pub(super) fn runs(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let runs: Vec<String> = runs
        .iter()
        .map(
            |(first, last)| {
                if first == last { format!("{first:02}") } else { format!("{first:02}-{last:02}") }
            },
        )
        .collect();
    runs.join(", ")
}

/// Texts with the numbers that they apply to, in the order of their first number.
pub(super) fn grouped<'a>(texts: impl IntoIterator<Item = (usize, &'a str)>) -> Vec<(Vec<usize>, &'a str)> {
    let mut groups: Vec<(Vec<usize>, &str)> = Vec::new();
    for (number, text) in texts {
        match groups.iter_mut().find(|(_, known)| *known == text) {
            Some((numbers, _)) => numbers.push(number),
            None => groups.push((vec![number], text)),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_short_printable_and_without_colours_where_none_are_wanted() {
        let plain = TextStyle { colours: false, truncates: true };
        let whole = TextStyle { colours: true, truncates: false };
        let digest = format!("sha256:{}", "ab".repeat(32));
        assert_eq!((&plain.digest(&digest)[..], whole.digest(&digest)), ("abababababab", digest.clone()));
        assert_eq!(plain.reference(&format!("r.example/a:1@{digest}")), "r.example/a:1@sha256:abababababab");
        assert_eq!(plain.reference("r.example/a:1"), "r.example/a:1");
        assert_eq!(plain.toned(TextColor::Bad, "x\x1b[2J"), "x\\u{1b}[2J");
        assert_eq!(whole.toned(TextColor::Bad, "x\x1b[2J"), "\x1b[31mx\\u{1b}[2J\x1b[0m");
        assert_eq!((plain.cut("abcdef", 4), whole.cut("abcdef", 4)), ("abc…".into(), "abcdef".into()));
    }

    #[test]
    fn fields_are_broken_at_words_and_numbers_are_runs() {
        assert_eq!(wrapped("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrapped("longer a", 4), ["longer", "a"]);
        assert_eq!(runs(&[0, 1, 2, 5, 7, 8]), "00-02, 05, 07-08");
        let groups = grouped([(0, "x"), (1, "y"), (2, "x")]);
        assert_eq!(groups, [(vec![0, 2], "x"), (vec![1], "y")]);
        assert_eq!(short_type("application/vnd.oci.image.layer.v1.tar+gzip"), "tar+gzip");
        assert_eq!(short_type("application/vnd.docker.image.rootfs.diff.tar.gzip"), "tar.gzip");
        assert_eq!(short_type("text/x"), "text/x");
    }
}
