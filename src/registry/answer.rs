//! Reading answers: bodies with a limit and a stall clock, `Content-Range`, and what a refusal says.
//!
//! No body is read without a bound in bytes and in time. The idea: an answer is foreign text until it has been checked, and
//! what of it goes into an error is made printable first.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use serde::Deserialize;

use super::RegistryError;
use super::auth::NO_CREDENTIAL;
use super::redact::{host_of, sanitised};
use super::retry::retry_after;
use super::send::{Reply, broken};
use crate::io::ByteRange;
use crate::meter;

/// How much of an error's body is read, in bytes.
const MAX_ERROR: u64 = 64 * 1024;

/// A header's text, when it is text.
pub(super) fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// The media type of an answer, without parameters, in lower case.
pub(super) fn media_type(response: &Response) -> Option<String> {
    let written = header(response, "content-type")?;
    Some(written.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// The encoding of an answer when it is not `identity`: such bytes are not the ones that were asked for.
pub(super) fn encoding(response: &Response) -> Option<String> {
    let value = response.headers().get("content-encoding")?;
    let text = sanitised(&String::from_utf8_lossy(value.as_bytes()));
    (!text.is_empty() && !text.eq_ignore_ascii_case("identity")).then_some(text)
}

/// `Content-Range: bytes a-b/total` (RFC 9110 section 14.4) as the range and the total; nothing else will do.
pub(super) fn content_range(value: &str) -> Option<(ByteRange, u64)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total) = (number(first)?, number(last)?, number(total)?);
    (first <= last && last < total).then(|| (ByteRange::new(first, last + 1), total))
}

/// The total of the `Content-Range: bytes */total` of a 416.
pub(super) fn unsatisfied_total(value: &str) -> Option<u64> {
    number(value.trim().strip_prefix("bytes */")?)
}

/// Digits and nothing else: `parse` alone would take a plus sign.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// How to read the body of an answer.
#[derive(Clone, Copy)]
pub(super) struct Body<'a> {
    /// Who answered.
    pub(super) host: &'a str,
    /// What was asked for.
    pub(super) what: &'a str,
    /// How long nothing may arrive.
    pub(super) stall: Duration,
}

impl Body<'_> {
    /// The next piece, or `None` at the end.
    pub(super) async fn chunk(self, response: &mut Response) -> Result<Option<Bytes>, RegistryError> {
        match tokio::time::timeout(self.stall, response.chunk()).await {
            Ok(Ok(chunk)) => {
                meter::BYTES_FETCHED.add(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
                Ok(chunk)
            }
            Ok(Err(error)) => Err(broken(self.host, self.what, error)),
            Err(_) => Err(RegistryError::Stalled {
                host: self.host.to_owned(),
                what: self.what.to_owned(),
                waited: self.stall,
            }),
        }
    }

    /// The whole body, refused as soon as it is known to pass `limit` bytes.
    pub(super) async fn limited(self, mut response: Response, limit: u64) -> Result<Bytes, RegistryError> {
        let too_large = |size: String| RegistryError::TooLarge {
            host: self.host.to_owned(),
            what: self.what.to_owned(),
            size,
            limit,
        };
        if let Some(length) = response.content_length().filter(|length| *length > limit) {
            return Err(too_large(length.to_string()));
        }
        let mut bytes = BytesMut::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(too_large("more".into()));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// What a refusal says, with `: ` in front, or nothing. Never fails: the refusal itself is the error to report.
    pub(super) async fn message(self, response: Response) -> String {
        let html = media_type(&response).is_some_and(|kind| kind == "text/html");
        let body = self.beginning(response).await;
        if html {
            return ": a web page, is this an OCI registry?".into();
        }
        let text = match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => refusal.text(),
            Err(_) => sanitised(&String::from_utf8_lossy(&body)),
        };
        if text.is_empty() { text } else { format!(": {text}") }
    }

    /// Reads a short body to its end and drops it, so that the connection can be used again.
    pub(super) async fn discard(self, response: Response) {
        drop(self.beginning(response).await);
    }

    /// What arrives of the body, up to the limit of error bodies.
    async fn beginning(self, mut response: Response) -> Vec<u8> {
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = self.chunk(&mut response).await {
            let room = (MAX_ERROR as usize).saturating_sub(body.len());
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() >= room {
                break;
            }
        }
        body
    }
}

/// The error document of the distribution-spec ("Error Codes"), and what token servers send instead.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    errors: Vec<Reason>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    error_description: Option<String>,
    #[serde(default)]
    details: Option<String>,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Refusal {
    fn text(&self) -> String {
        let errors = self.errors.iter().flat_map(|reason| [&reason.code, &reason.message]);
        let others = [&self.error, &self.error_description, &self.details].into_iter().flatten();
        let parts: Vec<&str> =
            errors.chain(others).map(String::as_str).filter(|part| !part.is_empty()).collect();
        sanitised(&parts.join(" "))
    }
}

/// The error that a status other than success means.
pub(super) async fn refusal(reply: Reply, what: &str, stall: Duration) -> RegistryError {
    let host = host_of(&reply.url);
    let status = reply.response.status().as_u16();
    let wait = header(&reply.response, "retry-after").and_then(|value| retry_after(value, SystemTime::now()));
    let body = Body { host: &host, what, stall };
    // The storage behind a registry quotes signed requests in its errors.
    let mut message = if reply.at_home {
        body.message(reply.response).await
    } else {
        body.discard(reply.response).await;
        String::new()
    };
    let what = what.to_owned();
    match status {
        404 => RegistryError::NotFound { host, what, message },
        401 | 403 => {
            if reply.at_home && !reply.authenticated {
                message.push_str(NO_CREDENTIAL);
            }
            RegistryError::Denied { host, what, status, message }
        }
        _ => RegistryError::Status { host, what, status, message, retry_after: wait },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_exact_content_range_is_read() {
        assert_eq!(content_range("bytes 0-9/100"), Some((ByteRange::new(0, 10), 100)));
        assert_eq!(content_range("bytes 99-99/100"), Some((ByteRange::new(99, 100), 100)));
        for bad in [
            "",
            "bytes 0-9",
            "bytes 0-9/*",
            "bytes 9-0/100",
            "bytes 0-100/100",
            "bytes +0-9/100",
            "bytes */100",
            "items 0-9/100",
            "bytes 0-9/100, 20-29/100",
            "bytes -9/100",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
        assert_eq!(unsatisfied_total("bytes */47"), Some(47));
        assert_eq!(unsatisfied_total("bytes */*"), None);
    }

    #[test]
    fn a_refusal_speaks_in_the_words_of_its_sender() {
        let text = |json| serde_json::from_str::<Refusal>(json).unwrap().text();
        assert_eq!(
            text(r#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no\u001b such", "detail": {}}]}"#),
            "MANIFEST_UNKNOWN no such"
        );
        assert_eq!(
            text(r#"{"details": "incorrect username or password"}"#),
            "incorrect username or password"
        );
        assert_eq!(text("{}"), "");
    }
}
