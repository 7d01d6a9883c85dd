//! Range responses: the bytes of the blob that a response covers, and its body.
//!
//! A response counts for the bytes that its headers prove, not for its form. A 206 describes itself, the size is in
//! the descriptor, and an ambiguous response is requested in another way. Nothing is requested here.
//! Rules: RFC 9110 sections 14.2, 14.4 and 15.3.7, RFC 9112 section 9.8.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;

use super::RegistryError;
use super::redact::sanitised;
use super::response::{self, BodyReader};
use crate::io::ByteRange;

/// The content of a response, judged by its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerCoverage {
    /// These bytes: the requested ones, more around them, or the first of them.
    Range(ByteRange),
    /// The whole blob, whatever was requested.
    Whole,
    /// The range or the whole: the head does not decide it.
    Unprovable,
}

/// Statuses of hosts that refuse a Range instead of ignoring it (RFC 9110 section 14.2): 400 (Artifactory), 405, 412,
/// 416 (for unknown forms), 417, 422, 501.
pub(super) fn is_refused_range(status: u16) -> bool {
    matches!(status, 400 | 405 | 412 | 416 | 417 | 422 | 501)
}

/// The bytes in a successful response to a request for `asked`, or for the whole blob of `size` bytes. An error names
/// the contradicting header.
pub(super) fn cover(
    response: &Response,
    asked: Option<ByteRange>,
    size: u64,
) -> Result<AnswerCoverage, String> {
    let header = |name| response::header(response, name);
    let length: Option<u64> = match header("content-length") {
        Some(text) => {
            let parsed = text.trim().parse().ok();
            Some(parsed.ok_or_else(|| format!("content length {}", sanitised(text)))?)
        }
        None => None,
    };
    of_headers(response::status(response), header("content-range"), length, asked, size)
}

fn of_headers(
    status: u16,
    written: Option<&str>,
    length: Option<u64>,
    asked: Option<ByteRange>,
    size: u64,
) -> Result<AnswerCoverage, String> {
    let whole = ByteRange::new(0, size);
    let wanted = asked.unwrap_or(whole);
    let described = written.and_then(|written| described(written, wanted, size));
    let fits = |range: ByteRange| match length {
        Some(length) if length != range.len() => {
            Err(format!("content length {length} for {} bytes", range.len()))
        }
        _ => Ok(if range == whole { AnswerCoverage::Whole } else { AnswerCoverage::Range(range) }),
    };
    match (status, written, described) {
        (206, None, _) => Err("no content range".into()),
        (206, Some(written), None) => Err(format!("content range {:?} of {size} bytes", sanitised(written))),
        (_, Some(_), Some(range)) => fits(range),
        // Proxies turn a 206 into a 200, with or without its length. A response to a request without range is whole.
        (_, Some(_), None) if asked.is_some() => Ok(AnswerCoverage::Unprovable),
        (_, None, _) if asked.is_some() && length != Some(size) => Ok(AnswerCoverage::Unprovable),
        _ => fits(whole),
    }
}

/// The range of a `Content-Range`, if it fits a blob of `size` bytes and covers `wanted` or its beginning.
fn described(written: &str, wanted: ByteRange, size: u64) -> Option<ByteRange> {
    let (range, total) = response::content_range(written)?;
    let is_of_blob = total.is_none_or(|total| total == size) && range.end <= size;
    let is_beginning = range.start == wanted.start && range.end <= wanted.end;
    (is_of_blob && (is_beginning || range.contains(wanted))).then_some(range)
}

/// The body of one response.
pub(super) struct AnswerPart {
    pub(super) response: Response,
    pub(super) host: String,
    pub(super) what: String,
    /// The offset in the blob of the next byte of the body. Invariant: `at <= end`.
    pub(super) at: u64,
    /// The offset in the blob at which the body must end.
    pub(super) end: u64,
    /// The length of the body in bytes.
    pub(super) length: u64,
    /// Whether the response is the whole blob.
    pub(super) is_whole: bool,
}

impl AnswerPart {
    /// The next chunk and its offset in the blob. The last chunk is delivered only after the end of the body: a body
    /// that is too long is as wrong as one that is too short.
    pub(super) async fn next(&mut self, stall: Duration) -> Result<(u64, Bytes), RegistryError> {
        let body = BodyReader { host: &self.host, what: &self.what, stall };
        let wrong = |reason: String| RegistryError::Protocol {
            host: self.host.clone(),
            what: self.what.clone(),
            reason,
        };
        let chunk = loop {
            match body.chunk(&mut self.response).await? {
                Some(chunk) if chunk.is_empty() => {}
                Some(chunk) => break chunk,
                None => return Err(wrong(format!("a body that lacks {} bytes", self.end - self.at))),
            }
        };
        let (start, end) = (self.at, self.at + chunk.len() as u64);
        let mut more = end > self.end;
        while end == self.end && !more {
            match body.chunk(&mut self.response).await {
                Ok(Some(extra)) => more = !extra.is_empty(),
                Ok(None) => break,
                // All bytes are received: an unannounced end of the connection does not matter.
                Err(error) if error.is_unannounced_end() => break,
                Err(error) => return Err(error),
            }
        }
        if more {
            return Err(wrong(format!("a body that goes on after {} bytes", self.end - start)));
        }
        self.at = end;
        Ok((start, chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end)
    }

    #[test]
    fn response_is_accepted_only_for_the_range_it_proves() {
        let asked = Some(range(10, 20));
        let exact = Ok(AnswerCoverage::Range(range(10, 20)));
        for (status, written, length, expected) in [
            (206, Some("bytes 10-19/100"), Some(10), exact.clone()),
            (206, Some("bytes 10-19/100"), None, exact.clone()),
            (206, Some("bytes 10-19/*"), None, exact.clone()),
            (206, Some("Bytes 10-19/100"), None, exact.clone()),
            (206, Some("bytes 10-14/100"), Some(5), Ok(AnswerCoverage::Range(range(10, 15)))),
            (206, Some("bytes 0-63/100"), Some(64), Ok(AnswerCoverage::Range(range(0, 64)))),
            (206, Some("bytes 0-99/100"), None, Ok(AnswerCoverage::Whole)),
            (200, Some("bytes 10-19/100"), Some(10), exact.clone()),
            (200, Some("bytes 10-19/100"), None, exact),
            (200, Some("bytes 0-99/100"), Some(100), Ok(AnswerCoverage::Whole)),
            (200, None, Some(100), Ok(AnswerCoverage::Whole)),
            (200, None, None, Ok(AnswerCoverage::Unprovable)),
            (200, None, Some(10), Ok(AnswerCoverage::Unprovable)),
            (200, Some("bytes 11-20/100"), Some(10), Ok(AnswerCoverage::Unprovable)),
        ] {
            assert_eq!(
                of_headers(status, written, length, asked, 100),
                expected,
                "{status} {written:?} {length:?}"
            );
        }
        for (status, written, length) in [
            (206, None, Some(10)),
            (206, Some("bytes 11-20/100"), None),
            (206, Some("bytes 9-18/100"), None),
            (206, Some("bytes 10-19/99"), None),
            (206, Some("bytes 10-19/100"), Some(9)),
            (206, Some("bytes 90-109/*"), None),
            (200, Some("bytes 10-19/100"), Some(100)),
        ] {
            assert!(
                of_headers(status, written, length, asked, 100).is_err(),
                "{status} {written:?} {length:?}"
            );
        }
        assert_eq!(of_headers(200, None, None, None, 100), Ok(AnswerCoverage::Whole));
        assert_eq!(
            of_headers(206, Some("bytes 0-9/100"), None, None, 100),
            Ok(AnswerCoverage::Range(range(0, 10)))
        );
        assert!(of_headers(200, None, Some(99), None, 100).is_err());
    }
}
