//! Authorization: tokens and credentials for requests, and the retry after a 401.
//!
//! A login starts only on demand: `/v2/` is not pinged, because the first 401 of a registry has its challenge. A
//! flight is one login: a token request, or the lookup of a password. Concurrent requests that need it share the
//! flight and its result. A successful flight is the cached token until it expires or is refused.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use futures_util::FutureExt as _;
use futures_util::future::Shared;
use reqwest::Url;
use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::RegistryError;
use super::challenge::{AuthChallenge, challenge};
use super::credentials::{CredentialStore, HostLogin};
use super::endpoint::{EndpointRole, LoginUse, RepositoryAction, TokenScope};
use super::http_client::{HttpClients, TokenForm};
use super::reach::RedirectGuide;
use super::redact::{RedactedSecret, ShownUrl, host_of, origin};
use super::response::{self, BodyEnding, BodyReader, NO_CREDENTIAL, with_login};
use super::retry::retry_after;
use super::user_credential::UserCredential;
use crate::io::{BoxFuture, lock};
use crate::oci::go_json::answer;

/// The largest token response that is read, in bytes: the limit of containers/image.
const MAX_TOKEN: u64 = 1024 * 1024;
/// The lifetime of a token that states none, and the minimum for any other (distribution's token specification: 60
/// s).
const MIN_LIFETIME: Duration = Duration::from_secs(60);
/// A login younger than this was read just now: a retry would be refused again.
const LOGIN_FRESH_TIME: Duration = Duration::from_secs(1);
/// The longest lifetime that is accepted, so that no arithmetic overflows.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The value of an `Authorization` header.
#[derive(Clone, Debug)]
pub(super) struct AuthorizationHeader {
    /// The value of the header.
    pub(super) header: RedactedSecret,
    /// Distinguishes this login from its successors.
    serial: u64,
    /// The place of the credential; `None` for an anonymous token.
    pub(super) login: Option<Arc<str>>,
    issued: Instant,
    /// The time to renew it.
    expires: Instant,
}

impl AuthorizationHeader {
    /// Whether age may explain a 403: some registries answer 403 when a login has expired or was replaced.
    pub(super) fn may_be_outdated(&self) -> bool {
        let age = self.issued.elapsed();
        age >= MIN_LIFETIME || (self.login.is_some() && age >= LOGIN_FRESH_TIME)
    }
}

/// Identifies a login.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LoginKey {
    /// Scheme, host and port of the registry.
    origin: String,
    /// The repository: credentials may differ by repository.
    repository: String,
    challenge: AuthChallenge,
}

type SharedLogin = Shared<BoxFuture<'static, Result<AuthorizationHeader, RegistryError>>>;

/// All logins of this process.
pub(super) struct LoginCache {
    credentials: Arc<CredentialStore>,
    clients: Arc<HttpClients>,
    serial: AtomicU64,
    /// The last challenge of each (origin, repository), for reading and for writing.
    challenges: Mutex<HashMap<(String, String, RepositoryAction), AuthChallenge>>,
    /// Single-flight table of logins: at most one pending flight per key.
    flights: Mutex<HashMap<LoginKey, SharedLogin>>,
}

impl LoginCache {
    pub(super) fn new(credentials: CredentialStore, clients: Arc<HttpClients>) -> Self {
        Self {
            credentials: Arc::new(credentials),
            clients,
            serial: AtomicU64::new(0),
            challenges: Mutex::default(),
            flights: Mutex::default(),
        }
    }

    /// The header for a request to `url`; `None` if its registry has sent no challenge yet.
    pub(super) async fn known(
        &self,
        scope: &TokenScope,
        url: &Url,
    ) -> Result<Option<AuthorizationHeader>, RegistryError> {
        let repository = scope.endpoint.repository.clone();
        let place = (origin(url), repository, scope.access);
        let Some(challenge) = lock(&self.challenges).get(&place).cloned() else { return Ok(None) };
        self.fly(scope, url, challenge, None).await.map(Some)
    }

    /// The header for one retry after `url` answered 401, or 403 if `sent` may be outdated; `None` if there is no new
    /// login to try.
    pub(super) async fn answer(
        &self,
        scope: &TokenScope,
        url: &Url,
        headers: &HeaderMap,
        sent: Option<&AuthorizationHeader>,
    ) -> Result<Option<AuthorizationHeader>, RegistryError> {
        let repository = &scope.endpoint.repository;
        let default_scope = format!("repository:{repository}:pull");
        let place = (origin(url), repository.clone(), scope.access);
        let guide = RedirectGuide { home: url, named: &scope.endpoint.named };
        let asked = challenge(guide, headers, &default_scope).map_err(|reason| RegistryError::Misled {
            host: host_of(url),
            what: format!("a request for {repository}"),
            reason,
        })?;
        let Some(challenge) = asked.or_else(|| lock(&self.challenges).get(&place).cloned()) else {
            return Ok(None);
        };
        let challenge = match scope.access {
            RepositoryAction::Pull => challenge,
            // A push first checks whether the content exists, and the challenge of that read asks for a read token.
            // The same token has to allow the writes.
            RepositoryAction::Push => challenge.for_writing(repository),
        };
        self.remember(place, &challenge);
        self.fly(scope, url, challenge, sent).await.map(Some)
    }

    /// Keeps the challenge of a place, and drops the login of the one before: a registry may name another challenge in
    /// each answer.
    fn remember(&self, place: (String, String, RepositoryAction), challenge: &AuthChallenge) {
        let (origin, repository) = (place.0.clone(), place.1.clone());
        let replaced = lock(&self.challenges).insert(place, challenge.clone());
        if let Some(replaced) = replaced.filter(|replaced| replaced != challenge) {
            lock(&self.flights).remove(&LoginKey { origin, repository, challenge: replaced });
        }
    }

    /// The files that may hold credentials.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.credentials.files()
    }

    /// Whether the command line or a caller gives a login, instead of all places of credentials.
    pub(super) fn has_given(&self) -> bool {
        self.credentials.given.is_some()
    }

    /// The places of credentials for hosts other than that of the given login.
    pub(super) fn for_others(&self) -> CredentialStore {
        self.credentials.for_others()
    }

    /// Drops every login. The next request gets a new challenge, and credentials are read anew.
    pub(super) fn forget(&self) {
        lock(&self.challenges).clear();
        lock(&self.flights).clear();
    }

    /// Joins the flight for a challenge. Starts a new one if there is none, or if the last one failed, has expired or
    /// is the `refused` one.
    fn fly(
        &self,
        scope: &TokenScope,
        url: &Url,
        challenge: AuthChallenge,
        refused: Option<&AuthorizationHeader>,
    ) -> SharedLogin {
        let repository = scope.endpoint.repository.clone();
        let key = LoginKey { origin: origin(url), repository, challenge };
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
            // Another host than the registry's own may send a challenge too, but it gets no credential.
            at_home: origin(url) == scope.endpoint.origin() && scope.endpoint.logins == LoginUse::Sent,
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

/// The inputs of one login. It owns them, because it may outlive the request that started it.
struct LoginFlight {
    credentials: Arc<CredentialStore>,
    clients: Arc<HttpClients>,
    at_home: bool,
    scope: TokenScope,
    url: Url,
    challenge: AuthChallenge,
    serial: u64,
}

impl LoginFlight {
    async fn run(self) -> Result<AuthorizationHeader, RegistryError> {
        let found = if self.at_home {
            let endpoint = &self.scope.endpoint;
            let credentials = match endpoint.role {
                EndpointRole::Primary => Cow::Borrowed(&*self.credentials),
                EndpointRole::Mirror => Cow::Owned(self.credentials.for_others()),
            };
            credentials.find_with_place(&endpoint.registry, &endpoint.repository).await?
        } else {
            None
        };
        let (login, place) = found.unzip();
        let (issued, place): (_, Option<Arc<str>>) = (Instant::now(), place.map(Into::into));
        let (header, lifetime) = match (&self.challenge, login) {
            (_, Some(HostLogin::Token(token))) => (bearer(token.expose()), MAX_LIFETIME),
            (AuthChallenge::Basic, Some(HostLogin::Password(credential))) => {
                (basic(&credential), MAX_LIFETIME)
            }
            (AuthChallenge::Basic, _) => return Err(self.nothing_to_say()),
            (AuthChallenge::Bearer { realm, service, scope }, login) => {
                let token =
                    self.request_token(realm, service.as_deref(), scope, login, place.as_deref()).await?;
                (bearer(&token.value), token.lifetime)
            }
        };
        Ok(AuthorizationHeader {
            header,
            serial: self.serial,
            login: place,
            issued,
            expires: issued + lifetime,
        })
    }

    async fn request_token(
        &self,
        realm: &Url,
        service: Option<&str>,
        scope: &str,
        login: Option<HostLogin>,
        place: Option<&str>,
    ) -> Result<BearerToken, RegistryError> {
        let mut pairs: Vec<(&str, &str)> = service.map(|service| ("service", service)).into_iter().collect();
        let (form, header) = match &login {
            // OAuth2, RFC 6749 section 6: the only way to use an identity token (distribution's oauth specification).
            Some(HostLogin::Identity(token)) => {
                pairs.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "ocifs"),
                    ("scope", scope),
                    ("refresh_token", token.expose()),
                ]);
                (TokenForm::Post, None)
            }
            Some(HostLogin::Password(credential)) => (TokenForm::Get, Some(basic(credential))),
            _ => (TokenForm::Get, None),
        };
        if form == TokenForm::Get {
            // One parameter for each scope (distribution's token specification).
            pairs.extend(scope.split(' ').filter(|scope| !scope.is_empty()).map(|scope| ("scope", scope)));
        }
        let host = host_of(realm);
        let what = format!("a token for {scope}");
        tracing::debug!(realm = %ShownUrl(realm), scope, authenticated = login.is_some(), "token request");
        let response =
            self.clients.token(&self.scope.endpoint, realm, form, &pairs, header.as_ref(), &what).await?;
        let status = response::status(&response);
        let passed_on = response::passed_on(response.url());
        let wait = response::header(&response, "retry-after")
            .and_then(|value| retry_after(value, std::time::SystemTime::now()));
        let body = BodyReader { host: &host, what: &what, stall: self.clients.stall() };
        if !matches!(status, 200..=202) {
            // A host behind a redirect may quote signed requests.
            let mut message = if origin(response.url()) == origin(realm) {
                body.message(response).await
            } else {
                body.discard(response).await;
                String::new()
            };
            message.push_str(&passed_on);
            if matches!(status, 400 | 401 | 403) {
                message.push_str(&place.map_or_else(|| NO_CREDENTIAL.to_owned(), with_login));
                return Err(RegistryError::TokenDenied { host, scope: scope.to_owned(), status, message });
            }
            if let Some(wait) = wait {
                message.push_str(&format!(" (retry after {} s)", wait.as_secs()));
            }
            return Err(RegistryError::Status { host, what, status, message, retry_after: wait });
        }
        let bytes = body.document(response, MAX_TOKEN, BodyEnding::Announced).await?;
        let token: Option<TokenAnswer> = answer(&bytes).ok();
        token
            .and_then(TokenAnswer::token)
            .ok_or_else(|| RegistryError::NoToken { host: format!("{host}{passed_on}"), what })
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

/// The response of a token server. Distribution defines `token`, OAuth2 `access_token`; both may be present.
#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    /// Seconds, which some servers write as a string or with a decimal point.
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
}

struct BearerToken {
    value: String,
    lifetime: Duration,
}

impl TokenAnswer {
    fn token(self) -> Option<BearerToken> {
        let value = self.token.filter(|token| !token.is_empty()).or(self.access_token)?;
        // A header cannot hold other characters (RFC 6750 section 2.1 allows fewer still).
        let printable = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
        printable
            .then(|| BearerToken { value, lifetime: lifetime(self.expires_in.as_ref().and_then(seconds)) })
    }
}

/// A number of seconds, as a JSON number or string. A negative one counts as 0.
fn seconds(written: &serde_json::Value) -> Option<u64> {
    let number = match written {
        serde_json::Value::String(text) => text.trim().parse().ok()?,
        other => other.as_f64()?,
    };
    // The cast saturates.
    number.is_finite().then_some(number.max(0.0) as u64)
}

/// The time a token is used: a tenth less than its lifetime, so that it does not expire in flight. A missing or shorter
/// lifetime counts as `MIN_LIFETIME`.
fn lifetime(expires_in: Option<u64>) -> Duration {
    let stated = Duration::from_secs(expires_in.unwrap_or_default()).clamp(MIN_LIFETIME, MAX_LIFETIME);
    stated - stated / 10
}

fn basic(credential: &UserCredential) -> RedactedSecret {
    let plain = format!("{}:{}", credential.user, credential.secret.expose());
    RedactedSecret::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain)))
}

fn bearer(token: &str) -> RedactedSecret {
    RedactedSecret::new(format!("Bearer {token}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_used_a_tenth_shorter_than_its_lifetime_which_is_a_minute_at_least() {
        assert_eq!(lifetime(Some(300)), Duration::from_secs(270));
        // Also the shortest one that the specification allows is left before it expires.
        for shortest in [Some(60), Some(1), Some(0), None] {
            assert_eq!(lifetime(shortest), Duration::from_secs(54), "{shortest:?}");
        }
        for (written, expected) in
            [("300", Some(300)), ("\"300\"", Some(300)), ("300.0", Some(300)), ("-1", Some(0)), ("[]", None)]
        {
            assert_eq!(seconds(&serde_json::from_str(written).unwrap()), expected, "{written}");
        }
        assert_eq!(lifetime(Some(u64::MAX)), MAX_LIFETIME - MAX_LIFETIME / 10);
    }

    #[test]
    fn a_registry_that_names_another_challenge_each_time_has_one_login() {
        let options = super::super::options::RegistryOptions::default();
        let clients = Arc::new(HttpClients::new(&options));
        let cache = LoginCache::new(CredentialStore::of_environment(None), clients);
        for number in 0..10 {
            let challenge = AuthChallenge::Bearer {
                realm: "https://r.example/token".parse().unwrap(),
                service: Some(number.to_string()),
                scope: "s".into(),
            };
            let (origin, repository) = ("https://r.example".to_owned(), "a".to_owned());
            cache.remember((origin.clone(), repository.clone(), RepositoryAction::Pull), &challenge);
            let flight = futures_util::future::pending().boxed().shared();
            lock(&cache.flights).insert(LoginKey { origin, repository, challenge }, flight);
        }
        assert_eq!(lock(&cache.flights).len(), 1);
    }

    #[test]
    fn a_token_goes_by_both_its_names_and_must_fit_a_header() {
        let token =
            |json: &str| answer::<TokenAnswer>(json.as_bytes()).unwrap().token().map(|token| token.value);
        assert_eq!(token(r#"{"token": "a", "access_token": "b"}"#).as_deref(), Some("a"));
        assert_eq!(token(r#"{"token": "", "access_token": "b"}"#).as_deref(), Some("b"));
        assert_eq!(token(r#"{"Token": "a", "Expires_In": 60} "#).as_deref(), Some("a"));
        assert_eq!(token(r#"{"token": null, "ACCESS_TOKEN": "b"}"#).as_deref(), Some("b"));
        assert_eq!(token(r#"{"token": "a", "Token": "b"}"#).as_deref(), Some("b"), "as in Go");
        assert_eq!(token(r#"{"token": "a\r\nX-Evil: 1"}"#), None);
        assert_eq!(token("{}"), None);
    }
}
