//! Requests as the fault registry reads them from a socket, and the answers it makes.
//!
//! It knows nothing of registries. The idea: just enough of HTTP/1.1 for one honest client.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// What a request says.
pub(super) struct Head {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    headers: HashMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Head {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(super) fn parameters(&self) -> HashMap<String, String> {
        let body = String::from_utf8_lossy(&self.body);
        let pairs = self.query.split('&').chain(body.split('&'));
        pairs
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), unescape(value)))
            .collect()
    }

    /// The one closed range, half-open.
    pub(super) fn range(&self) -> Result<Option<(u64, u64)>, String> {
        let Some(value) = self.header("range") else { return Ok(None) };
        let bad = || format!("range {value:?} is not one closed range");
        let (first, last) =
            value.strip_prefix("bytes=").and_then(|range| range.split_once('-')).ok_or_else(bad)?;
        let (first, last): (u64, u64) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
        if first <= last { Ok(Some((first, last + 1))) } else { Err(bad()) }
    }
}

/// What is sent, and how badly.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// Whether body faults apply.
    pub(super) is_blob: bool,
}

impl Answer {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), is_blob: false }
    }

    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#);
        Self::new(status, body).with("Content-Type", "application/json")
    }

    pub(super) fn html() -> Self {
        Self::new(200, "<!doctype html><title>Sign in</title>")
            .with("Content-Type", "text/html; charset=utf-8")
    }

    /// RFC 9110 section 14.6, which nobody may send who was asked for one range.
    pub(super) fn multipart(body: &[u8], content_range: &str) -> Self {
        let head = format!(
            "--edge\r\nContent-Type: application/octet-stream\r\nContent-Range: {content_range}\r\n\r\n"
        );
        let body = [head.as_bytes(), body, b"\r\n--edge--\r\n"].concat();
        Self::new(206, body).with("Content-Type", "multipart/byteranges; boundary=edge")
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Repository, kind and name of a path. The kind of `blobs/uploads/NAME` is `uploads`.
pub(super) fn split(path: &str) -> Option<(&str, &str, &str)> {
    let path = path.strip_prefix("/v2/")?;
    let (rest, name) = path.rsplit_once('/')?;
    let (repo, kind) = rest.rsplit_once('/')?;
    match kind {
        "manifests" | "blobs" | "referrers" => Some((repo, kind, name)),
        "uploads" => Some((repo.strip_suffix("/blobs")?, kind, name)),
        _ => None,
    }
}

/// The next request; `buffer` keeps what came after it.
pub(super) fn read_head(connection: &mut &TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Head>> {
    let mut reader = *connection;
    let mut fill = |buffer: &mut Vec<u8>, most: usize| {
        let mut piece = [0; 4096];
        let read = reader.read(&mut piece)?;
        buffer.extend_from_slice(&piece[..read]);
        std::io::Result::Ok(read > 0 && buffer.len() < most)
    };
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if !fill(buffer, 64 * 1024)? {
            return Ok(None);
        }
        // A TLS handshake; servers of plain http answer it in plain http.
        if buffer.first() == Some(&0x16) {
            connection.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(None);
        }
    };
    let text = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut lines = text.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let method = first.next().unwrap_or_default().to_owned();
    let target = first.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while buffer.len() < end + length {
        if !fill(buffer, 64 * 1024 * 1024)? {
            return Ok(None);
        }
    }
    let body = buffer[end..end + length].to_vec();
    buffer.drain(..end + length);
    Ok(Some(Head { method, path, query, headers, body }))
}

/// Undoes the form encoding.
pub(super) fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, tail @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).unwrap();
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                rest = tail;
            }
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The value of the header for a user and a password.
pub(super) fn basic_header(user: &str, pass: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{pass}")))
}
