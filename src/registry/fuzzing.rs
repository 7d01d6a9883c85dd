//! Fuzzing entry points: the parsers of response headers.
//!
//! The parsers are deep inside of a request. These functions call them directly, without a socket. No product code
//! uses them.

use std::collections::HashSet;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use super::challenge::{AuthChallenge, challenge};
use super::reach::RedirectGuide;
use super::response;
use crate::io::ByteRange;

/// The token server for a `WWW-Authenticate` of this value, for a registry at this address. An error names the reason
/// why a realm is not trusted.
pub fn token_realm(registry: &str, value: &[u8]) -> Result<Option<String>, String> {
    let registry: Url = registry.parse().map_err(|_| "not a URL".to_owned())?;
    let mut headers = HeaderMap::new();
    let value = HeaderValue::from_bytes(value).map_err(|error| error.to_string())?;
    headers.insert(WWW_AUTHENTICATE, value);
    let guide = RedirectGuide { home: &registry, named: &HashSet::new() };
    Ok(challenge(guide, &headers, "repository:a/b:pull")?.and_then(|found| match found.for_writing("a/b") {
        AuthChallenge::Bearer { realm, .. } => Some(realm.to_string()),
        AuthChallenge::Basic => None,
    }))
}

/// The range and the total of a `Content-Range`.
pub fn content_range(value: &str) -> Option<(ByteRange, Option<u64>)> {
    response::content_range(value)
}
