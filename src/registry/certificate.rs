//! X.509 parser for user-provided certificates: names, validity and public key.
//!
//! A certificate that the user provides is a trust anchor by itself, in any version and with any extensions. The
//! certificate is compared byte for byte, so only these fields matter. No chain is built, and nothing is trusted
//! here.
//! Rules: RFC 5280 sections 4.1 and 4.2.1.6, X.690.

use std::net::IpAddr;
use std::time::Duration;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const BIT_STRING: u8 = 0x03;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
/// id-ce-subjectAltName.
const ALTERNATIVE_NAMES: [u8; 3] = [0x55, 0x1d, 0x11];
/// id-at-commonName.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// The parsed fields of a certificate.
#[derive(Debug)]
pub(super) struct GivenCertificate<'a> {
    /// The DER of its SubjectPublicKeyInfo.
    pub(super) key_info: &'a [u8],
    /// The algorithm of the key: the content of an AlgorithmIdentifier.
    pub(super) key_algorithm: &'a [u8],
    /// The bits of the key.
    pub(super) key: &'a [u8],
    /// First and last valid second, since 1970.
    validity: (i64, i64),
    /// The content of its subjectAltName; `None` if absent, as in version 1.
    alternative_names: Option<&'a [u8]>,
    subject: &'a [u8],
}

impl<'a> GivenCertificate<'a> {
    /// Parses the DER of a certificate; `None` if it is malformed.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let mut certificate = DerElements(DerElements(der).expect(SEQUENCE)?);
        let mut fields = DerElements(certificate.expect(SEQUENCE)?);
        fields.optional(VERSION);
        fields.next()?; // serialNumber
        fields.expect(SEQUENCE)?; // signature
        fields.expect(SEQUENCE)?; // issuer
        let mut validity = DerElements(fields.expect(SEQUENCE)?);
        let validity = (seconds(validity.next()?)?, seconds(validity.next()?)?);
        let subject = fields.expect(SEQUENCE)?;
        let before = fields.0;
        let mut info = DerElements(fields.expect(SEQUENCE)?);
        let key_info = &before[..before.len() - fields.0.len()];
        let key_algorithm = info.expect(SEQUENCE)?;
        // The first byte counts the unused bits, and keys are whole bytes.
        let key = info.expect(BIT_STRING)?.strip_prefix(&[0])?;
        let mut alternative_names = None;
        while let Some(element) = fields.next() {
            if element.tag == EXTENSIONS {
                alternative_names = names_of(element.content)?;
            }
        }
        Some(Self { key_info, key_algorithm, key, validity, alternative_names, subject })
    }

    /// Whether the certificate is valid at this time since 1970.
    pub(super) fn is_valid_at(&self, now: Duration) -> bool {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        (self.validity.0..=self.validity.1).contains(&now)
    }

    /// Whether the certificate is for the name or address. Without subjectAltName, the common name counts.
    pub(super) fn is_for(&self, host: &str) -> bool {
        let address = host.parse::<IpAddr>().ok();
        match self.alternative_names {
            Some(names) => {
                let mut names = DerElements(names);
                std::iter::from_fn(|| names.next()).any(|name| match (name.tag, address) {
                    (IP_ADDRESS, Some(IpAddr::V4(address))) => name.content == address.octets(),
                    (IP_ADDRESS, Some(IpAddr::V6(address))) => name.content == address.octets(),
                    (DNS_NAME, None) => is_matched(name.content, host),
                    _ => false,
                })
            }
            None => {
                let mut sets = DerElements(self.subject);
                std::iter::from_fn(|| sets.next())
                    .filter(|set| set.tag == SET)
                    .filter_map(|set| {
                        let mut pair = DerElements(DerElements(set.content).expect(SEQUENCE)?);
                        (pair.next()?.content == COMMON_NAME).then(|| pair.next())?
                    })
                    .any(|name| match address {
                        Some(_) => name.content == host.as_bytes(),
                        None => is_matched(name.content, host),
                    })
            }
        }
    }
}

/// Whether a certificate's name matches the host. `*.` at its start stands for one label (RFC 6125 section 6.4).
fn is_matched(pattern: &[u8], host: &str) -> bool {
    let host = host.trim_end_matches('.').as_bytes();
    match pattern.strip_prefix(b"*.") {
        Some(domain) => host
            .iter()
            .position(|byte| *byte == b'.')
            .is_some_and(|dot| dot > 0 && host[dot + 1..].eq_ignore_ascii_case(domain)),
        None => host.eq_ignore_ascii_case(pattern),
    }
}

/// The content of subjectAltName among extensions; the outer `None` means malformed extensions.
fn names_of(extensions: &[u8]) -> Option<Option<&[u8]>> {
    let mut extensions = DerElements(DerElements(extensions).expect(SEQUENCE)?);
    while let Some(extension) = extensions.next() {
        let mut fields = DerElements(extension.content);
        if fields.next()?.content == ALTERNATIVE_NAMES {
            // An optional BOOLEAN precedes the value, which is the last field.
            let value = std::iter::from_fn(|| fields.next()).last()?;
            return Some(Some(DerElements(value.content).expect(SEQUENCE)?));
        }
    }
    Some(None)
}

/// A time as seconds since 1970, from `YYMMDDHHMMSSZ` (years from 1950) or the form with a four-digit year.
fn seconds(time: DerElement<'_>) -> Option<i64> {
    let text = std::str::from_utf8(time.content).ok()?.strip_suffix('Z')?;
    let (year, rest) = match time.tag {
        UTC_TIME => (text.get(..2)?, text.get(2..)?),
        GENERALIZED_TIME => (text.get(..4)?, text.get(4..)?),
        _ => return None,
    };
    let number = |from: usize| rest.get(from..from + 2)?.parse::<u32>().ok();
    let year: i32 = year.parse().ok()?;
    let year = match time.tag {
        UTC_TIME if year < 50 => year + 2000,
        UTC_TIME => year + 1900,
        _ => year,
    };
    let day = chrono::NaiveDate::from_ymd_opt(year, number(0)?, number(2)?)?;
    Some(day.and_hms_opt(number(4)?, number(6)?, number(8)?)?.and_utc().timestamp())
}

/// One element of DER.
#[derive(Clone, Copy)]
struct DerElement<'a> {
    tag: u8,
    content: &'a [u8],
}

/// A sequence of elements.
struct DerElements<'a>(&'a [u8]);

impl<'a> DerElements<'a> {
    /// The next element; `None` at the end, and for malformed DER.
    fn next(&mut self) -> Option<DerElement<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(DerElement { tag, content })
    }

    /// The content of the next element, if it has this tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|element| element.tag == tag).map(|element| element.content)
    }

    /// Skips the next element if it has this tag.
    fn optional(&mut self, tag: u8) {
        if self.0.first() == Some(&tag) {
            self.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl req -x509 -newkey ed25519 -subj /CN=lab.example -addext subjectAltName=DNS:*.lab.example,IP:127.0.0.1 -days 3650`.
    fn made(extra: &str) -> Option<Vec<u8>> {
        let folder = tempfile::tempdir().ok()?;
        let script = format!(
            "openssl genpkey -algorithm ed25519 -out k.pem 2>/dev/null && {extra} && openssl x509 -in c.pem -outform DER -out c.der"
        );
        let done = std::process::Command::new("sh").arg("-c").arg(script).current_dir(folder.path()).status();
        done.ok().filter(std::process::ExitStatus::success)?;
        std::fs::read(folder.path().join("c.der")).ok()
    }

    const NOW: Duration = Duration::from_secs(60);

    #[test]
    fn names_time_and_key_of_every_version_are_read() {
        let extended = "openssl req -x509 -key k.pem -subj /CN=lab.example -days 30 -out c.pem \
             -addext 'subjectAltName=DNS:*.lab.example,DNS:One.example,IP:127.0.0.1,IP:::1'";
        let bare = "openssl req -new -key k.pem -subj /O=x/CN=lab.example -out r.pem && \
             openssl x509 -req -in r.pem -signkey k.pem -days 30 -out c.pem 2>/dev/null";
        let (Some(extended), Some(bare)) = (made(extended), made(bare)) else {
            eprintln!("skipped: openssl makes no certificates here");
            return;
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let certificate = GivenCertificate::parse(&extended).unwrap();
        for (host, expected) in [
            ("a.lab.example", true),
            ("A.LAB.example.", true),
            ("one.example", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("127.0.0.2", false),
            ("lab.example", false),
            ("a.b.lab.example", false),
            (".lab.example", false),
        ] {
            assert_eq!(certificate.is_for(host), expected, "{host}");
        }
        let plain = GivenCertificate::parse(&bare).unwrap();
        assert!(plain.is_for("lab.example") && !plain.is_for("a.lab.example") && !plain.is_for("x"));
        for certificate in [certificate, plain] {
            assert_eq!(certificate.key.len(), 32);
            assert!(certificate.key_info.ends_with(certificate.key));
            assert!(certificate.is_valid_at(now) && !certificate.is_valid_at(NOW));
            assert!(!certificate.is_valid_at(now + Duration::from_secs(40 * 86_400)));
        }
        for cut in 0..extended.len() {
            GivenCertificate::parse(&extended[..cut]);
        }
    }
}
