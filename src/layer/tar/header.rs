//! Tar header block of 512 bytes, with the fields of all the dialects (v7, ustar, pax, GNU, star).
//!
//! The rules are those of Go's `archive/tar`, including its tolerance: blanks and NULs around octal digits, both
//! checksum conventions, and the name prefix that old Go versions wrote into GNU headers. Other blocks are not
//! considered.

use super::error::TarProblem;

/// Unit of the format: headers and padding are multiples of it, in bytes.
pub(super) const BLOCK: usize = 512;

/// The fields of a header. The meaning of the numbers is not checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TarHeader {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) size: i64,
    pub(super) mtime: i64,
    pub(super) flag: u8,
    pub(super) major: i64,
    pub(super) minor: i64,
}

/// The dialect, which determines the optional fields.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TarDialect {
    /// The original: no magic, no prefix, no device numbers.
    V7,
    /// POSIX ustar and pax: a prefix of 155 bytes.
    Ustar,
    /// Schily's star: a prefix of 131 bytes, then access and change time.
    Star,
    /// GNU: access and change time where ustar has the prefix.
    Gnu,
}

impl TarHeader {
    /// Reads a block that is not all zeros.
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, TarProblem> {
        let stated =
            octal(&block[148..156]).map_err(|_| TarProblem::malformed("checksum field is not octal"))?;
        let (unsigned, signed) = checksums(block);
        if stated != unsigned && stated != signed {
            return Err(TarProblem::malformed(format!(
                "header has a checksum of {stated}, computed {unsigned}"
            )));
        }
        let mut header = Self {
            name: until_nul(&block[..100]).to_vec(),
            link: until_nul(&block[157..257]).to_vec(),
            mode: number("mode", &block[100..108])?,
            uid: number("uid", &block[108..116])?,
            gid: number("gid", &block[116..124])?,
            size: number("size", &block[124..136])?,
            mtime: number("mtime", &block[136..148])?,
            flag: block[156],
            major: 0,
            minor: 0,
        };
        let dialect = dialect(block);
        if dialect != TarDialect::V7 {
            header.major = number("device major", &block[329..337])?;
            header.minor = number("device minor", &block[337..345])?;
        }
        let prefix = match dialect {
            TarDialect::V7 => &[],
            TarDialect::Ustar => until_nul(&block[345..500]),
            TarDialect::Star => {
                number("access time", &block[476..488])?;
                number("change time", &block[488..500])?;
                until_nul(&block[345..476])
            }
            TarDialect::Gnu => misplaced_prefix(block),
        };
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        Ok(header)
    }

    /// Whether the size field of the type does not count content bytes: links, devices, directories, pipes.
    pub(super) fn has_no_content(&self) -> bool {
        matches!(self.flag, b'1'..=b'6')
    }
}

/// The bytes before the first NUL, or all of them.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    &field[..end]
}

fn dialect(block: &[u8; BLOCK]) -> TarDialect {
    match &block[257..265] {
        [b'u', b's', b't', b'a', b'r', 0, ..] if &block[508..] == b"tar\0" => TarDialect::Star,
        [b'u', b's', b't', b'a', b'r', 0, ..] => TarDialect::Ustar,
        b"ustar  \0" => TarDialect::Gnu,
        _ => TarDialect::V7,
    }
}

/// The prefix that Go before 1.8 wrote into GNU headers, over the access and change times. It is used only when
/// these times are unreadable and the bytes are ASCII (golang.org/issue/12594 and 21005).
fn misplaced_prefix(block: &[u8; BLOCK]) -> &[u8] {
    let readable = |field: &[u8]| field[0] == 0 || number("", field).is_ok();
    if readable(&block[345..357]) && readable(&block[357..369]) {
        return &[];
    }
    let prefix = until_nul(&block[345..500]);
    if prefix.is_ascii() { prefix } else { &[] }
}

/// The sum of the block with its checksum field blank: of unsigned bytes as in POSIX, and of signed ones as in
/// Sun's tar.
fn checksums(block: &[u8; BLOCK]) -> (i64, i64) {
    let (mut unsigned, mut high) = (0i64, 0i64);
    for &byte in block {
        unsigned += i64::from(byte);
        high += i64::from(byte >> 7);
    }
    for &byte in &block[148..156] {
        unsigned += i64::from(b' ') - i64::from(byte);
        high -= i64::from(byte >> 7);
    }
    (unsigned, unsigned - 256 * high)
}

/// A field in octal or, with the first bit set, in big-endian two's complement ("base-256").
fn number(name: &'static str, field: &[u8]) -> Result<i64, TarProblem> {
    if field[0] & 0x80 == 0 {
        return octal(field).map_err(|_| TarProblem::malformed(format!("{name} field is not octal")));
    }
    base_256(field).ok_or_else(|| TarProblem::malformed(format!("{name} field is over 63 bits")))
}

fn base_256(field: &[u8]) -> Option<i64> {
    // -a - 1 == !a: a negative number is read as the complement of a positive one.
    let invert = if field[0] & 0x40 == 0 { 0 } else { 0xff };
    let mut value = 0u64;
    for (at, &byte) in field.iter().enumerate() {
        let mask = if at == 0 { 0x7f } else { 0xff };
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from((byte ^ invert) & mask);
    }
    let value = i64::try_from(value).ok()?;
    Some(if invert == 0 { value } else { !value })
}

struct NotOctal;

/// Octal digits between blanks and NULs. Bytes after a NUL behind the digits are ignored. At most 12 digits, so 36
/// bits.
fn octal(field: &[u8]) -> Result<i64, NotOctal> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !blank(byte)) else { return Ok(0) };
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    until_nul(&field[start..end]).iter().try_fold(0, |value, byte| match byte {
        b'0'..=b'7' => Ok(value << 3 | i64::from(byte - b'0')),
        _ => Err(NotOctal),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        let cases: &[(&[u8], Option<i64>)] = &[
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0 644 ", Some(0o644)),
            (b"12\0junk9", Some(0o12)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"0000648\0", None),
            (b"-1\0", None),
            (b"+1\0", None),
            (b"1 2\0", None),
            (b"\x80", Some(0)),
            (b"\x80\0\0\x01", Some(1)),
            (b"\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xfe", Some(-2)),
            (b"\xbf", Some(63)),
            (b"\xc0", Some(-64)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
        ];
        for (field, value) in cases {
            assert_eq!(number("x", field).ok(), *value, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn both_checksum_conventions_are_accepted() {
        let mut block = [0u8; BLOCK];
        block[0] = 0xe4;
        block[156] = b'0';
        let (unsigned, signed) = checksums(&block);
        assert_eq!((unsigned, signed), (0xe4 + 8 * 32 + 0x30, 0xe4 - 256 + 8 * 32 + 0x30));
        for (sum, accepted) in [(unsigned, true), (signed, true), (unsigned + 1, false), (0, false)] {
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            assert_eq!(TarHeader::parse(&block).is_ok(), accepted, "{sum}");
        }
    }
}
