//! The readers of headers, for whoever wants to try them with text of their own: the fuzzer.
//!
//! Nothing of the product comes this way. The idea: a header is parsed deep inside of a request, and what makes a parser fail
//! should not have to travel through a socket first.

use std::collections::HashSet;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use super::answer;
use super::challenge::{Challenge, challenge};
use super::reach::Guide;
use crate::io::ByteRange;

/// The token server that a `WWW-Authenticate` of this value leads to, for a registry at this address; an error says why none
/// may be trusted.
pub fn token_realm(registry: &str, value: &[u8]) -> Result<Option<String>, String> {
    let registry: Url = registry.parse().map_err(|_| "not a URL".to_owned())?;
    let mut headers = HeaderMap::new();
    let value = HeaderValue::from_bytes(value).map_err(|error| error.to_string())?;
    headers.insert(WWW_AUTHENTICATE, value);
    let guide = Guide { home: &registry, named: &HashSet::new() };
    Ok(challenge(guide, &headers, "repository:a/b:pull")?.and_then(|found| match found.for_writing("a/b") {
        Challenge::Bearer { realm, .. } => Some(realm.to_string()),
        Challenge::Basic => None,
    }))
}

/// The range and the total of a `Content-Range`.
pub fn content_range(value: &str) -> Option<(ByteRange, Option<u64>)> {
    answer::content_range(value)
}
