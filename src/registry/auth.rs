//! Authorization: which header goes with a request, and what to do about a 401.
//!
//! No request is made before a registry asks for it: there is no ping of `/v2/`, a registry's first 401 says what it wants.
//! The idea: a flight is one login (a token request, or the reading of a password) that everybody who needs it at that
//! time waits for, whatever comes of it; a flight that landed well is the cached token until it expires or is refused.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use futures_util::FutureExt as _;
use futures_util::future::Shared;
use reqwest::Url;
use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::RegistryError;
use super::answer::{self, Body, Ending};
use super::challenge::{Challenge, challenge};
use super::credentials::{Credential, Credentials, Login};
use super::endpoint::{Endpoint, Role};
use super::reach::Guide;
use super::redact::{Secret, ShownUrl, host_of};
use super::retry::retry_after;
use super::send::{Clients, Form};
use crate::io::BoxFuture;

/// The largest token answer that is read, in bytes. What containers/image allows.
const MAX_TOKEN: u64 = 1024 * 1024;
/// The lifetime of a token that does not say one, and the shortest that is believed (distribution's token
/// specification: 60 s).
const MIN_LIFETIME: Duration = Duration::from_secs(60);
/// A login of this age was read just now: its refusal would be the same again.
const FRESH: Duration = Duration::from_secs(1);
/// The longest lifetime that is believed, so that no arithmetic overflows.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Whom a request is for: a repository of a host.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    /// Where it is: credentials go to its scheme, host and port only.
    pub(super) endpoint: Arc<Endpoint>,
    /// What a token must allow there.
    pub(super) access: Access,
}

/// What is done in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Access {
    /// Reading.
    Pull,
    /// Reading and writing.
    Push,
}

/// A header that was or will be sent.
#[derive(Clone, Debug)]
pub(super) struct Authorization {
    /// The value of the header.
    pub(super) header: Secret,
    /// Tells this login from its successors.
    serial: u64,
    /// Where the login comes from that it stands for: an anonymous token stands for none.
    pub(super) login: Option<Arc<str>>,
    issued: Instant,
    /// When it should be renewed.
    expires: Instant,
}

impl Authorization {
    /// Whether a 403 may be the fault of its age: some registries answer so when a login has run out, or was replaced.
    pub(super) fn may_be_outdated(&self) -> bool {
        let age = self.issued.elapsed();
        age >= MIN_LIFETIME || (self.login.is_some() && age >= FRESH)
    }
}

/// Where a login is valid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// Scheme, host and port of the registry.
    origin: String,
    /// The repository whose credential it is: credentials may differ by repository.
    repository: String,
    challenge: Challenge,
}

type Flight = Shared<BoxFuture<'static, Result<Authorization, RegistryError>>>;

/// All logins of this process.
pub(super) struct Auth {
    credentials: Arc<Credentials>,
    clients: Arc<Clients>,
    serial: AtomicU64,
    /// What each (origin, repository) asked for last, for reading and for writing.
    challenges: Mutex<HashMap<(String, String, Access), Challenge>>,
    /// Invariant: at most one flight per key is in the air.
    flights: Mutex<HashMap<Key, Flight>>,
}

impl Auth {
    pub(super) fn new(credentials: Credentials, clients: Arc<Clients>) -> Self {
        Self {
            credentials: Arc::new(credentials),
            clients,
            serial: AtomicU64::new(0),
            challenges: Mutex::default(),
            flights: Mutex::default(),
        }
    }

    /// The header for a request to `url`, when its registry is known to ask for one.
    pub(super) async fn known(
        &self,
        scope: &Scope,
        url: &Url,
    ) -> Result<Option<Authorization>, RegistryError> {
        let repository = scope.endpoint.repository.clone();
        let place = (origin(url), repository, scope.access);
        let Some(challenge) = lock(&self.challenges).get(&place).cloned() else { return Ok(None) };
        self.fly(scope, url, challenge, None).await.map(Some)
    }

    /// The header to try once more with after `url` answered 401 (or 403, when `sent` may have grown old); `None` when
    /// there is nothing new to say.
    pub(super) async fn answer(
        &self,
        scope: &Scope,
        url: &Url,
        headers: &HeaderMap,
        sent: Option<&Authorization>,
    ) -> Result<Option<Authorization>, RegistryError> {
        let repository = &scope.endpoint.repository;
        let default_scope = format!("repository:{repository}:pull");
        let place = (origin(url), repository.clone(), scope.access);
        let guide = Guide { home: url, named: &scope.endpoint.named };
        let asked = challenge(guide, headers, &default_scope).map_err(|reason| RegistryError::Misled {
            host: host_of(url),
            what: format!("a request for {repository}"),
            reason,
        })?;
        let Some(challenge) = asked.or_else(|| lock(&self.challenges).get(&place).cloned()) else {
            return Ok(None);
        };
        let challenge = match scope.access {
            Access::Pull => challenge,
            // The first request of a push asks whether the content is there, and is told that reading needs a token. The
            // same token then has to do for the writing.
            Access::Push => challenge.for_writing(repository),
        };
        lock(&self.challenges).insert(place, challenge.clone());
        self.fly(scope, url, challenge, sent).await.map(Some)
    }

    /// The files that may hold credentials.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.credentials.files()
    }

    /// Drops every login: the next request is asked for one again, and credentials are read anew.
    pub(super) fn forget(&self) {
        lock(&self.challenges).clear();
        lock(&self.flights).clear();
    }

    /// Joins the flight for a challenge, or starts one when there is none, when it failed, when its token is old, and
    /// when its token is the one that was `refused`.
    fn fly(&self, scope: &Scope, url: &Url, challenge: Challenge, refused: Option<&Authorization>) -> Flight {
        let repository = scope.endpoint.repository.clone();
        let key = Key { origin: origin(url), repository, challenge };
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&key) {
            let usable = match flight.peek() {
                None => true,
                Some(Err(_)) => false,
                Some(Ok(landed)) => {
                    landed.expires > Instant::now()
                        && refused.is_none_or(|refused| refused.serial != landed.serial)
                }
            };
            if usable {
                return flight.clone();
            }
        }
        let login = LoginFlight {
            credentials: self.credentials.clone(),
            clients: self.clients.clone(),
            // Another host than the registry's own may ask for a login too, but it gets none of ours.
            at_home: origin(url) == scope.endpoint.origin(),
            scope: scope.clone(),
            url: url.clone(),
            challenge: key.challenge.clone(),
            serial: self.serial.fetch_add(1, Ordering::Relaxed),
        };
        let flight = login.run().boxed().shared();
        flights.insert(key, flight.clone());
        flight
    }
}

/// Everything one login needs, on its own so that it may outlive the request that started it.
struct LoginFlight {
    credentials: Arc<Credentials>,
    clients: Arc<Clients>,
    at_home: bool,
    scope: Scope,
    url: Url,
    challenge: Challenge,
    serial: u64,
}

impl LoginFlight {
    async fn run(self) -> Result<Authorization, RegistryError> {
        let found = if self.at_home {
            let endpoint = &self.scope.endpoint;
            let credentials = match endpoint.role {
                Role::Primary => Cow::Borrowed(&*self.credentials),
                Role::Mirror => Cow::Owned(self.credentials.for_others()),
            };
            credentials.find_with_place(&endpoint.registry, &endpoint.repository).await?
        } else {
            None
        };
        let (login, place) = found.unzip();
        let (issued, place): (_, Option<Arc<str>>) = (Instant::now(), place.map(Into::into));
        let (header, lifetime) = match (&self.challenge, login) {
            (_, Some(Login::Token(token))) => (bearer(token.expose()), MAX_LIFETIME),
            (Challenge::Basic, Some(Login::Password(credential))) => (basic(&credential), MAX_LIFETIME),
            (Challenge::Basic, _) => return Err(self.nothing_to_say()),
            (Challenge::Bearer { realm, service, scope }, login) => {
                let token =
                    self.request_token(realm, service.as_deref(), scope, login, place.as_deref()).await?;
                (bearer(&token.value), token.lifetime)
            }
        };
        Ok(Authorization { header, serial: self.serial, login: place, issued, expires: issued + lifetime })
    }

    async fn request_token(
        &self,
        realm: &Url,
        service: Option<&str>,
        scope: &str,
        login: Option<Login>,
        place: Option<&str>,
    ) -> Result<Token, RegistryError> {
        let mut pairs: Vec<(&str, &str)> = service.map(|service| ("service", service)).into_iter().collect();
        let (form, header) = match &login {
            // OAuth2, RFC 6749 section 6: the only way to use an identity token (distribution's oauth specification).
            Some(Login::Identity(token)) => {
                pairs.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "ocifs"),
                    ("scope", scope),
                    ("refresh_token", token.expose()),
                ]);
                (Form::Post, None)
            }
            Some(Login::Password(credential)) => (Form::Get, Some(basic(credential))),
            _ => (Form::Get, None),
        };
        if form == Form::Get {
            // One parameter for each scope (distribution's token specification).
            pairs.extend(scope.split(' ').filter(|scope| !scope.is_empty()).map(|scope| ("scope", scope)));
        }
        let host = host_of(realm);
        let what = format!("a token for {scope}");
        tracing::debug!(realm = %ShownUrl(realm), scope, authenticated = login.is_some(), "token request");
        let response =
            self.clients.token(&self.scope.endpoint, realm, form, &pairs, header.as_ref(), &what).await?;
        let status = response.status().as_u16();
        let wait = answer::header(&response, "retry-after")
            .and_then(|value| retry_after(value, std::time::SystemTime::now()));
        let body = Body { host: &host, what: &what, stall: self.clients.stall() };
        if status != 200 {
            // Where a redirect leads, signed requests may be quoted.
            let mut message = if origin(response.url()) == origin(realm) {
                body.message(response).await
            } else {
                body.discard(response).await;
                String::new()
            };
            if matches!(status, 400 | 401 | 403) {
                message.push_str(&place.map_or_else(|| NO_CREDENTIAL.to_owned(), with_login));
                return Err(RegistryError::TokenDenied { host, scope: scope.to_owned(), status, message });
            }
            if let Some(wait) = wait {
                message.push_str(&format!(" (it wants to be asked again in {} s)", wait.as_secs()));
            }
            return Err(RegistryError::Status { host, what, status, message, retry_after: wait });
        }
        let bytes = body.limited(response, MAX_TOKEN, Ending::Announced).await?;
        let token: Option<TokenAnswer> = serde_json::from_slice(&bytes).ok();
        token.and_then(TokenAnswer::token).ok_or_else(|| RegistryError::NotRegistry {
            host,
            what,
            reason: "something that holds no token".into(),
        })
    }

    fn nothing_to_say(&self) -> RegistryError {
        RegistryError::Denied {
            host: host_of(&self.url),
            what: format!("repository {}", self.scope.endpoint.repository),
            status: 401,
            message: NO_CREDENTIAL.to_owned(),
        }
    }
}

/// What is added to a refusal when there was nothing to authenticate with.
pub(super) const NO_CREDENTIAL: &str = " (no credential was found for it)";

/// What is added to a refusal of a login.
pub(super) fn with_login(place: &str) -> String {
    format!(" (with the credential of {place})")
}

/// What a token server sends. Distribution says `token`, OAuth2 says `access_token`; both may be there.
#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    /// Seconds, which some servers write as text or with a point.
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
}

struct Token {
    value: String,
    lifetime: Duration,
}

impl TokenAnswer {
    fn token(self) -> Option<Token> {
        let value = self.token.filter(|token| !token.is_empty()).or(self.access_token)?;
        // A header cannot hold other characters (RFC 6750 section 2.1 allows fewer still).
        let printable = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
        printable.then(|| Token { value, lifetime: lifetime(self.expires_in.as_ref().and_then(seconds)) })
    }
}

/// A number of seconds however it is written; a negative one means now.
fn seconds(written: &serde_json::Value) -> Option<u64> {
    let number = match written {
        serde_json::Value::String(text) => text.trim().parse().ok()?,
        other => other.as_f64()?,
    };
    // The cast saturates.
    number.is_finite().then_some(number.max(0.0) as u64)
}

/// How long a token is used: a tenth less than it says, so that it does not expire on its way.
fn lifetime(expires_in: Option<u64>) -> Duration {
    let said = Duration::from_secs(expires_in.unwrap_or_default()).min(MAX_LIFETIME);
    (said - said / 10).max(MIN_LIFETIME)
}

fn basic(credential: &Credential) -> Secret {
    let plain = format!("{}:{}", credential.user, credential.secret.expose());
    Secret::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain)))
}

fn bearer(token: &str) -> Secret {
    Secret::new(format!("Bearer {token}"))
}

/// Scheme, host and port.
pub(super) fn origin(url: &Url) -> String {
    format!("{}://{}", url.scheme(), host_of(url))
}

/// The maps stay valid when a thread panics between two of their operations.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_used_a_tenth_shorter_than_it_says_and_at_least_a_minute() {
        assert_eq!(lifetime(Some(300)), Duration::from_secs(270));
        assert_eq!(lifetime(Some(1)), MIN_LIFETIME);
        assert_eq!(lifetime(None), MIN_LIFETIME);
        for (written, expected) in
            [("300", Some(300)), ("\"300\"", Some(300)), ("300.0", Some(300)), ("-1", Some(0)), ("[]", None)]
        {
            assert_eq!(seconds(&serde_json::from_str(written).unwrap()), expected, "{written}");
        }
        assert_eq!(lifetime(Some(u64::MAX)), MAX_LIFETIME - MAX_LIFETIME / 10);
    }

    #[test]
    fn a_token_goes_by_both_its_names_and_must_fit_a_header() {
        let token =
            |json| serde_json::from_str::<TokenAnswer>(json).unwrap().token().map(|token| token.value);
        assert_eq!(token(r#"{"token": "a", "access_token": "b"}"#).as_deref(), Some("a"));
        assert_eq!(token(r#"{"token": "", "access_token": "b"}"#).as_deref(), Some("b"));
        assert_eq!(token(r#"{"token": "a\r\nX-Evil: 1"}"#), None);
        assert_eq!(token("{}"), None);
    }
}
