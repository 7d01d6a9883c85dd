//! Authentication challenges of a 401: parsing and selection.
//!
//! One supported challenge among several is enough, so a malformed one is skipped and hides no other. Nothing is sent
//! here.
//! Rules: RFC 9110 section 11.6.1, and distribution's token specification.

use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

use super::reach::RedirectGuide;

/// An authentication scheme that a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum AuthChallenge {
    /// User and password with every request.
    Basic,
    /// A token from the realm.
    Bearer {
        /// The token server. Invariant: it passed [`RedirectGuide::check_realm`].
        realm: Url,
        /// The registry's name at the token server; `None` if the challenge has none.
        service: Option<String>,
        /// The scopes that the token must allow, separated by spaces: of the challenge, or else of the request.
        scope: String,
    },
}

impl AuthChallenge {
    /// The same challenge for a token that may also write to `repository`. A scope is `type:name:actions`, the
    /// actions joined by commas (distribution's token specification).
    pub(super) fn for_writing(self, repository: &str) -> Self {
        let AuthChallenge::Bearer { realm, service, scope } = self else { return self };
        let prefix = format!("repository:{repository}:");
        let mut found = false;
        let mut words: Vec<String> = Vec::new();
        for word in scope.split(' ').filter(|word| !word.is_empty()) {
            let actions = word.strip_prefix(&prefix);
            found |= actions.is_some();
            let writes =
                actions.is_none_or(|actions| actions.split(',').any(|one| matches!(one, "push" | "*")));
            words.push(if writes { word.to_owned() } else { format!("{prefix}pull,push") });
        }
        if !found {
            words.push(format!("{prefix}pull,push"));
        }
        AuthChallenge::Bearer { realm, service, scope: words.join(" ") }
    }
}

/// Selects a challenge of a 401: Bearer before Basic, because a stolen token is worth less than a password. `None`
/// means no known scheme; an error names the reason why no Bearer challenge can be met.
pub(super) fn challenge(
    guide: RedirectGuide<'_>,
    headers: &HeaderMap,
    default_scope: &str,
) -> Result<Option<AuthChallenge>, String> {
    let (mut basic, mut unusable) = (None, None);
    for value in headers.get_all(WWW_AUTHENTICATE) {
        for offer in offers(&String::from_utf8_lossy(value.as_bytes())) {
            match offer.scheme.to_ascii_lowercase().as_str() {
                "basic" => basic = Some(AuthChallenge::Basic),
                "bearer" => match bearer(guide, &offer, default_scope) {
                    Ok(bearer) => return Ok(Some(bearer)),
                    Err(reason) => unusable = Some(reason),
                },
                _ => {}
            }
        }
    }
    match (basic, unusable) {
        (None, Some(reason)) => Err(reason),
        (basic, _) => Ok(basic),
    }
}

fn bearer(
    guide: RedirectGuide<'_>,
    offer: &OfferedChallenge,
    default_scope: &str,
) -> Result<AuthChallenge, String> {
    let realm = offer.parameter("realm").ok_or("a bearer challenge without realm")?;
    let realm: Url = realm.parse().map_err(|_| "a token realm that is not a URL".to_owned())?;
    guide.check_realm(&realm)?;
    let scope = offer.parameter("scope").unwrap_or(default_scope).to_owned();
    Ok(AuthChallenge::Bearer { realm, service: offer.parameter("service").map(str::to_owned), scope })
}

/// One challenge as written.
#[derive(Debug, Default, PartialEq, Eq)]
struct OfferedChallenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl OfferedChallenge {
    /// The first parameter of this name; `None` if it is absent or empty.
    fn parameter(&self, name: &str) -> Option<&str> {
        let (_, value) = self.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }
}

/// The challenges of one header field: schemes, each with a token68 or with parameters. Malformed elements between
/// commas are skipped, and an unquoted value extends to the next comma.
fn offers(text: &str) -> Vec<OfferedChallenge> {
    let mut found: Vec<OfferedChallenge> = Vec::new();
    for element in elements(text) {
        let (word, rest) = split_word(element);
        let after = rest.trim_start();
        // `name = value` belongs to the last scheme, `name ...` begins a new one.
        let (pair, begins) = match after.strip_prefix('=') {
            Some(value) => (Some((word, value)), false),
            None => {
                let (name, rest) = split_word(after);
                (rest.trim_start().strip_prefix('=').map(|value| (name, value)), true)
            }
        };
        if begins && !word.is_empty() {
            found.push(OfferedChallenge { scheme: word.to_owned(), parameters: Vec::new() });
        }
        if let (Some((name, value)), Some(offer)) =
            (pair.filter(|(name, _)| !name.is_empty()), found.last_mut())
        {
            offer.parameters.push((name.to_owned(), unquoted(value.trim())));
        }
    }
    found
}

/// Splits at commas outside of quotes.
fn elements(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut is_quoted, mut is_escaped) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

/// The token at the start (RFC 9110 section 5.6.2), and the rest.
fn split_word(text: &str) -> (&str, &str) {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_part(c)).unwrap_or(text.len()))
}

/// A value without quotes and escapes.
fn unquoted(value: &str) -> String {
    let Some(inside) = value.strip_prefix('"') else { return value.to_owned() };
    let mut plain = String::new();
    let mut chars = inside.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => plain.extend(chars.next()),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn of(registry: &str, header: &str) -> Result<Option<AuthChallenge>, String> {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, header.parse().unwrap());
        let (home, named) = (registry.parse().unwrap(), HashSet::new());
        challenge(RedirectGuide { home: &home, named: &named }, &headers, "repository:a/b:pull")
    }

    #[test]
    fn scope_is_of_the_challenge_and_else_of_the_request() {
        let of = |parameters: &str| match of(
            "https://r.example/",
            &format!("Bearer realm=\"https://t.example/token\"{parameters}"),
        ) {
            Ok(Some(AuthChallenge::Bearer { service, scope, .. })) => (service, scope),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            of(",service=\"s\",scope=\"repository:x/y:pull,push\""),
            (Some("s".into()), "repository:x/y:pull,push".into())
        );
        assert_eq!(of(""), (None, "repository:a/b:pull".into()));
    }

    #[test]
    fn a_challenge_to_read_becomes_one_to_write_and_keeps_the_rest() {
        let widened = |scope: &str| {
            let realm = "https://t.example/".parse().unwrap();
            let read = AuthChallenge::Bearer { realm, service: Some("s".into()), scope: scope.into() };
            match read.for_writing("a/b") {
                AuthChallenge::Bearer { service, scope, .. } if service.as_deref() == Some("s") => scope,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(widened("repository:a/b:pull"), "repository:a/b:pull,push");
        for kept in ["repository:a/b:push,pull", "repository:a/b:*", "repository:a/b:pull,push,delete"] {
            assert_eq!(widened(kept), kept);
        }
        assert_eq!(widened(""), "repository:a/b:pull,push");
        assert_eq!(widened("repository:a/bc:pull"), "repository:a/bc:pull repository:a/b:pull,push");
        assert_eq!(AuthChallenge::Basic.for_writing("a/b"), AuthChallenge::Basic);
    }

    #[test]
    fn bearer_is_preferred_to_basic() {
        let both =
            of("https://r.example/", "Basic realm=\"r\", Bearer realm=\"https://t.example/\"").unwrap();
        assert!(matches!(both, Some(AuthChallenge::Bearer { .. })));
        assert_eq!(of("https://r.example/", "Basic realm=\"r\"").unwrap(), Some(AuthChallenge::Basic));
        assert_eq!(of("https://r.example/", "Negotiate").unwrap(), None);
    }

    #[test]
    fn unreadable_challenge_hides_no_other_challenge() {
        const BEARER: &str = "Bearer realm=\"https://t.example/\",service=\"s, t\"";
        let is_bearer = |header: &str| {
            let found = of("https://r.example/", header);
            assert!(
                matches!(&found, Ok(Some(AuthChallenge::Bearer { service, .. })) if service.as_deref() == Some("s, t")),
                "{header}: {found:?}"
            );
        };
        for other in [
            "Negotiate",
            "Negotiate YIIG==",
            "NTLM TlRMTVNTUAAB/+==",
            "Basic realm=Sonatype Nexus Repository Manager",
            "Basic realm=\"a \\\"b\\\", c\"",
            "Digest realm=\"x\", nonce=\"\", qop=auth",
            "=,;;",
            "",
        ] {
            is_bearer(&format!("{other}, {BEARER}"));
            is_bearer(&format!("{BEARER}, {other}"));
        }
        is_bearer(&BEARER.replace('=', " = "));
        is_bearer(&BEARER.replace("Bearer", "bEARER"));
        assert_eq!(of("https://r.example/", "Basic realm=Registry Realm"), Ok(Some(AuthChallenge::Basic)));
        // A realm that may not be asked leaves what else is offered.
        let refused = "Bearer realm=\"http://t.example/\"";
        assert!(of("https://r.example/", refused).is_err());
        assert_eq!(of("https://r.example/", &format!("{refused}, Basic")), Ok(Some(AuthChallenge::Basic)));
    }
}
