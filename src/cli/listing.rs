//! Lines of `ocifs ls`: a name, with its attributes in the columns of ls(1).
//!
//! Times are in UTC, and names cannot act on a terminal.

use std::io::Write;

use crate::export::ListedName;
use crate::tree::InodeKind;

use super::output;

/// Writes the line of a name, with its attributes when `long`.
pub(super) fn line(out: &mut dyn Write, listed: &ListedName, long: bool) -> std::io::Result<()> {
    if long {
        let attributes = &listed.attributes;
        // A time outside of chrono's range is shown as recorded, in seconds.
        let time = chrono::DateTime::from_timestamp(attributes.mtime.secs, attributes.mtime.nanos)
            .map_or_else(
                || format!("@{}", attributes.mtime.secs),
                |time| time.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
            );
        write!(
            out,
            "{}{} {:>3} {:>5} {:>5} {:>12} {} ",
            type_letter(attributes.kind),
            mode_letters(attributes.mode),
            attributes.nlink,
            attributes.uid,
            attributes.gid,
            attributes.size,
            time,
        )?;
    }
    output::name(out, &listed.path)?;
    if let (true, Some(link)) = (long, &listed.link) {
        out.write_all(b" -> ")?;
        output::name(out, link)?;
    }
    out.write_all(b"\n")
}

fn type_letter(kind: InodeKind) -> char {
    match kind {
        InodeKind::File => '-',
        InodeKind::Directory | InodeKind::Graft(_) => 'd',
        InodeKind::Symlink => 'l',
        InodeKind::CharDevice => 'c',
        InodeKind::BlockDevice => 'b',
        InodeKind::Fifo => 'p',
    }
}

/// Permission bits as `ls -l` writes them.
fn mode_letters(mode: u16) -> String {
    let mut letters = String::with_capacity(9);
    for (shift, special, set) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        letters.push(if bits & 4 != 0 { 'r' } else { '-' });
        letters.push(if bits & 2 != 0 { 'w' } else { '-' });
        letters.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => set,
            (false, true) => set.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    letters
}
