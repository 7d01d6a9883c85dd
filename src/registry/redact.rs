//! Secrets and URLs as types that cannot be printed by accident.
//!
//! `Debug` and `Display` show a placeholder; the text is available only through a method named for it. A redirect
//! target is a secret too: the query of a signed URL grants access to the blob.

use std::fmt;

use reqwest::Url;

use crate::io::is_unprintable;

/// The placeholder for a secret.
pub(super) const REDACTED: &str = "[redacted]";
/// The most characters of foreign text in an error: enough for a registry's own message, not for a page.
const MAX_FOREIGN: usize = 300;

/// A password, a token, or a header made of one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RedactedSecret(Box<str>);

impl RedactedSecret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into().into())
    }

    /// The text, to be used in a request only.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for RedactedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for RedactedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// A URL that shows scheme, host, port and path, but no query, fragment or user.
pub struct ShownUrl<'a>(pub &'a Url);

impl fmt::Display for ShownUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.0.scheme(), host_of(self.0), self.0.path())?;
        if self.0.query().is_some() {
            write!(f, "?{REDACTED}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ShownUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A web address as users wrote it, valid or not, for messages: scheme, host and path. `None` for other text.
pub fn shown_address(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"))?;
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let (place, secret) = rest.split_at(end);
    let slash = place.find('/').unwrap_or(place.len());
    let (authority, path) = place.split_at(slash);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let query = if secret.is_empty() { String::new() } else { format!("{}{REDACTED}", &secret[..1]) };
    Some(format!("{scheme}://{host}{path}{query}"))
}

/// `host` or `host:port`, as users write it.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or("(no host)");
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Scheme, host and port.
pub(super) fn origin(url: &Url) -> String {
    format!("{}://{}", url.scheme(), host_of(url))
}

/// Foreign text, sanitised for one line of a log: no control characters (nor those that change the writing
/// direction), whitespace joined, and truncated.
pub(super) fn sanitised(text: &str) -> String {
    let mut line = String::new();
    let mut length = 0;
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
            length += 1;
        }
        for c in word.chars().filter(|c| !is_unprintable(*c)) {
            if length >= MAX_FOREIGN {
                line.push_str("...");
                return line;
            }
            line.push(c);
            length += 1;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_shown_by_no_format() {
        let secret = RedactedSecret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?} {:#?}", Some(&secret)).matches("hunter2").count(), 0);
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_signed_url_keeps_its_signature_to_itself() {
        let url: Url =
            "https://user:pw@cdn.example:8443/blobs/ab?X-Amz-Signature=5ec2e7#frag".parse().unwrap();
        assert_eq!(ShownUrl(&url).to_string(), "https://cdn.example:8443/blobs/ab?[redacted]");
        assert_eq!(format!("{:?}", ShownUrl(&url)), "https://cdn.example:8443/blobs/ab?[redacted]");
    }

    #[test]
    fn an_address_that_is_no_url_keeps_its_secrets_too() {
        for (text, shown) in [
            ("https://u:p@h.example/a.tar", "https://h.example/a.tar"),
            ("https://h/a.tar?sig=SECRET#", "https://h/a.tar?[redacted]"),
            ("http://h.example:bad/a@sha256:1#t", "http://h.example:bad/a@sha256:1#[redacted]"),
        ] {
            assert_eq!(shown_address(text).as_deref(), Some(shown));
        }
        assert_eq!(shown_address("oci:dir"), None);
    }

    #[test]
    fn foreign_text_becomes_one_short_line_without_controls() {
        assert_eq!(sanitised("a\r\n\x1b[31mred\u{202e}\tb"), "a [31mred b");
        let long = sanitised(&"x".repeat(5000));
        assert_eq!(long.len(), MAX_FOREIGN + 3);
    }
}
