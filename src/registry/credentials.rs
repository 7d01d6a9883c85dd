//! Credential lookup in the files of podman and docker, and the keys in them.
//!
//! Places are searched in a fixed order. Each has a credential, has none and the next one follows, or is broken: an
//! error that names the place but quotes nothing. Every lookup reads the files again, because tokens of cloud
//! registries expire after hours and a mount lives for weeks.
//! Rules: containers-auth.json(5) of containers/image, and the docker command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use super::redact::RedactedSecret;
use super::user_credential::UserCredential;
use super::{RegistryError, helper, privileged_rpc};
use crate::oci::canonical_host;
use crate::oci::go_json::answer;

/// The largest credential file that is read, in bytes.
const MAX_CREDENTIAL_FILE_BYTES: u64 = 1024 * 1024;
/// Docker's key for the credential of Docker Hub, in files and for helpers.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name that marks the secret as an identity token (docker-credential-helpers README).
const TOKEN_USER: &str = "<token>";

/// The login for a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HostLogin {
    /// For Basic, or for the token server.
    Password(UserCredential),
    /// For the token server's refresh grant.
    Identity(RedactedSecret),
    /// A bearer token that needs no token server.
    Token(RedactedSecret),
}

impl From<UserCredential> for HostLogin {
    fn from(credential: UserCredential) -> Self {
        if credential.user == TOKEN_USER {
            HostLogin::Identity(credential.secret)
        } else {
            HostLogin::Password(credential)
        }
    }
}

/// The places of credentials.
#[derive(Clone, Debug, Default)]
pub(super) struct CredentialStore {
    /// Search no place.
    pub(super) anonymous: bool,
    /// From the command line: replaces all places.
    pub(super) given: Option<HostLogin>,
    /// The only file; `None` searches the others.
    pub(super) authfile: Option<PathBuf>,
    /// The content of `DOCKER_AUTH_CONFIG`.
    pub(super) inline: Option<RedactedSecret>,
    /// Files in search order.
    pub(super) files: Vec<PathBuf>,
    /// `~/.dockercfg`, whose whole document has the form of `auths` elsewhere.
    pub(super) legacy: Option<PathBuf>,
}

impl CredentialStore {
    /// The places for the environment of this process.
    pub(super) fn of_environment(authfile: Option<PathBuf>) -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let home = path("HOME");
        let in_home = |tail: &str| home.as_ref().map(|home| home.join(tail));
        let runtime = path("XDG_RUNTIME_DIR").map_or_else(
            || PathBuf::from(format!("/run/containers/{}", nix::unistd::getuid())),
            |run| run.join("containers"),
        );
        let config = path("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
        let docker = path("DOCKER_CONFIG").or_else(|| in_home(".docker"));
        Self {
            authfile: authfile.or_else(|| path("REGISTRY_AUTH_FILE")),
            inline: variable("DOCKER_AUTH_CONFIG").map(|value| RedactedSecret::new(value.to_string_lossy())),
            files: [
                Some(runtime.join("auth.json")),
                config.map(|config| config.join("containers/auth.json")),
                docker.map(|docker| docker.join("config.json")),
            ]
            .into_iter()
            .flatten()
            .collect(),
            legacy: in_home(".dockercfg"),
            ..Self::default()
        }
    }

    /// The same places for hosts that the user did not name: the credential of the command line is not for them.
    pub(super) fn for_others(&self) -> Self {
        Self { given: None, ..self.clone() }
    }

    /// The files that are read, also those that do not exist yet.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        match &self.authfile {
            _ if self.anonymous => Vec::new(),
            Some(only) => vec![only.clone()],
            None => self.files.iter().chain(&self.legacy).cloned().collect(),
        }
    }

    #[cfg(test)]
    async fn find(&self, registry: &str, repository: &str) -> Result<Option<HostLogin>, RegistryError> {
        Ok(self.find_with_place(registry, repository).await?.map(|(login, _)| login))
    }

    /// The credential for a repository, from the first place that has one, and the name of that place.
    pub(super) async fn find_with_place(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<(HostLogin, String)>, RegistryError> {
        if self.anonymous {
            return Ok(None);
        }
        if let Some(given) = &self.given {
            return Ok(Some((given.clone(), "the command line".to_owned())));
        }
        let keys = keys(registry, repository);
        if let Some(authfile) = &self.authfile {
            let place = authfile.display().to_string();
            let text =
                read(authfile, &place).await?.ok_or_else(|| broken(&place, "the file does not exist"))?;
            return AuthFile::parse(&place, &text)?.find(&place, &keys).await;
        }
        if let Some(inline) = &self.inline {
            let place = "DOCKER_AUTH_CONFIG";
            let found = AuthFile::parse(place, inline.expose())?.find(place, &keys).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        for file in self.files.iter().chain(&self.legacy) {
            let place = file.display().to_string();
            let Some(text) = read(file, &place).await? else { continue };
            let config = if Some(file) == self.legacy.as_ref() {
                AuthFile { auths: parse(&place, &text)?, ..AuthFile::default() }
            } else {
                AuthFile::parse(&place, &text)?
            };
            let found = config.find(&place, &keys).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// The text of a file; `None` if it does not exist or cannot be accessed: a service without access to the home
/// directory still pulls public images.
async fn read(file: &Path, place: &str) -> Result<Option<String>, RegistryError> {
    use std::io::ErrorKind;
    let length = match tokio::fs::metadata(file).await {
        Ok(metadata) => metadata.len(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            tracing::warn!(file = place, "cannot read credentials; continuing without them");
            return Ok(None);
        }
        Err(error) => return Err(broken(place, error)),
    };
    if length > MAX_CREDENTIAL_FILE_BYTES {
        return Err(broken(place, format!("{length} bytes, the limit is {MAX_CREDENTIAL_FILE_BYTES}")));
    }
    match tokio::fs::read_to_string(file).await {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            tracing::warn!(file = place, "cannot read credentials; continuing without them");
            Ok(None)
        }
        Err(error) => Err(broken(place, error)),
    }
}

/// The common fields of `auth.json` and `config.json`.
#[derive(Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: Option<BTreeMap<String, AuthEntry>>,
    #[serde(default, rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

/// One entry of `auths`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl AuthFile {
    fn parse(place: &str, text: &str) -> Result<Self, RegistryError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        parse(place, text)
    }

    /// Searches the helper of the host, then the helper for all hosts, then the entry with the longest key, and
    /// returns the name of the place too. Entries come last, because with a helper for all hosts they are empty
    /// marks, or stale ones older than the helper. Its error counts only if no entry has a login.
    async fn find(&self, place: &str, keys: &[String]) -> Result<Option<(HostLogin, String)>, RegistryError> {
        // `keys` is not empty, and its last element is the host alone.
        let host = keys.last().map_or("", String::as_str);
        let server = if host == "docker.io" { HUB_KEY } else { host };
        let of_helper = |name: &str, found: Option<UserCredential>| {
            found.map(|found| (HostLogin::from(found), format!("docker-credential-{name}, named in {place}")))
        };
        let own =
            self.helpers.as_ref().and_then(|helpers| lookup(helpers, host)).map(|(_, name)| name.as_str());
        // An empty name keeps the credential of this host in the file, past the helper for all hosts.
        let is_in_file = own == Some("");
        if let Some(name) = own.filter(|name| !name.is_empty()) {
            let found = of_helper(name, ask_helper(name, server, place).await?);
            if found.is_some() {
                return Ok(found);
            }
        }
        let mut failed = None;
        if let Some(name) = self.store.as_deref().filter(|store| !store.is_empty() && !is_in_file) {
            match ask_helper(name, server, place).await {
                Ok(None) => {}
                Ok(found) => return Ok(of_helper(name, found)),
                Err(error) => failed = Some(error),
            }
        }
        for key in keys {
            let Some((key, entry)) = self.auths.as_ref().and_then(|auths| lookup(auths, key)) else {
                continue;
            };
            let found = entry.login().map_err(|reason| broken(place, format!("entry {key}: {reason}")))?;
            if let Some(found) = found {
                return Ok(Some((found, place.to_owned())));
            }
        }
        failed.map_or(Ok(None), Err)
    }
}

impl AuthEntry {
    fn login(&self) -> Result<Option<HostLogin>, &'static str> {
        let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = text(&self.registrytoken) {
            return Ok(Some(HostLogin::Token(RedactedSecret::new(token))));
        }
        if let Some(token) = text(&self.identitytoken) {
            return Ok(Some(HostLogin::Identity(RedactedSecret::new(token))));
        }
        if let Some(auth) = text(&self.auth) {
            // base64(1) breaks lines, and Go's decoder ignores the breaks.
            let unbroken: String = auth.split_ascii_whitespace().collect();
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(unbroken)
                .map_err(|_| "auth is not base64")?;
            let plain = String::from_utf8(bytes).map_err(|_| "auth is not text")?;
            // Old versions of docker padded with zeros.
            let credential =
                UserCredential::parse(plain.trim_end_matches('\0')).ok_or("auth is not user:password")?;
            return Ok(Some(credential.into()));
        }
        Ok(text(&self.username)
            .zip(text(&self.password))
            .map(|(user, password)| UserCredential { user, secret: RedactedSecret::new(password) }.into()))
    }
}

/// `host/ns/repo`, `host/ns`, `host`: the most specific first.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut key = format!("{}/{repository}", normal(registry));
    let mut keys = vec![key.clone()];
    while let Some(slash) = key.rfind('/') {
        key.truncate(slash);
        keys.push(key.clone());
    }
    keys
}

/// The entry under exactly this key, else under another spelling of it.
fn lookup<'a, V>(entries: &'a BTreeMap<String, V>, key: &str) -> Option<(&'a String, &'a V)> {
    entries.get_key_value(key).or_else(|| entries.iter().find(|(written, _)| normal(written) == key))
}

/// A key without scheme, trailing slash and API version. The host is in lower case, and Docker Hub has one name.
fn normal(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let mut name = bare.unwrap_or(key).trim_end_matches('/');
    let (host, _) = name.split_once('/').unwrap_or((name, ""));
    let hub = ["index.docker.io", "registry-1.docker.io", "docker.io"]
        .iter()
        .any(|known| host.eq_ignore_ascii_case(known));
    if bare.is_some() || hub {
        name = name.strip_suffix("/v1").or_else(|| name.strip_suffix("/v2")).unwrap_or(name);
    }
    let host_end = name.find('/').unwrap_or(name.len());
    let (host, path) = name.split_at(host_end);
    let host = canonical_host(host).unwrap_or_else(|| host.to_ascii_lowercase());
    format!("{host}{path}")
}

fn parse<T: serde::de::DeserializeOwned>(place: &str, text: &str) -> Result<T, RegistryError> {
    // serde_json's messages quote values, which are secrets: only the position is reported.
    answer(text.as_bytes()).map_err(|error| {
        let at = format!(" at line {}, column {}", error.line(), error.column());
        let at = if error.line() == 0 { "" } else { &at };
        broken(place, format!("not the JSON of a credential file{at}"))
    })
}

fn broken(place: &str, reason: impl std::fmt::Display) -> RegistryError {
    RegistryError::Credentials { place: place.to_owned(), reason: reason.to_string() }
}

/// The credential of `docker-credential-NAME` for `server`; `place` is the file that names the helper.
/// A process that may not start programs sends the request to the privileged process.
async fn ask_helper(name: &str, server: &str, place: &str) -> Result<Option<UserCredential>, RegistryError> {
    let answer = match privileged_rpc::credential(name, server).await {
        Some(answer) => answer,
        None => helper::run_here(name, server).await,
    };
    answer.map_err(|reason| helper::failure(&format!("docker-credential-{name}"), place, &reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::FaultClass;

    fn basic(user: &str, password: &str) -> HostLogin {
        HostLogin::Password(UserCredential { user: user.into(), secret: RedactedSecret::new(password) })
    }

    fn auth(text: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    /// A home with these files.
    fn home(files: &[(&str, String)]) -> (tempfile::TempDir, CredentialStore) {
        let home = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(home.path().join(name), text).unwrap();
        }
        let file = |name: &str| home.path().join(name);
        let credentials = CredentialStore {
            files: vec![file("run.json"), file("config.json"), file("docker.json")],
            legacy: Some(file("dockercfg")),
            ..CredentialStore::default()
        };
        (home, credentials)
    }

    fn one(key: &str, secret: &str) -> String {
        format!(r#"{{"auths": {{"{key}": {{"auth": "{}"}}}}}}"#, auth(secret))
    }

    #[tokio::test]
    async fn the_longest_key_wins() {
        let entry =
            |key: &str, user: &str| format!(r#""{key}": {{"auth": "{}"}}"#, auth(&format!("{user}:p")));
        let text = format!(
            r#"{{"auths": {{{}, {}, {}}}}}"#,
            entry("r.example", "host"),
            entry("r.example/ns", "namespace"),
            entry("r.example/ns/repo", "repository")
        );
        let (_home, credentials) = home(&[("run.json", text)]);
        for (repository, user) in [
            ("ns/repo", "repository"),
            ("ns/repo2", "namespace"),
            ("ns/repo/x", "repository"),
            ("nsx/y", "host"),
        ] {
            let found = credentials.find("r.example", repository).await.unwrap();
            assert_eq!(found, Some(basic(user, "p")), "{repository}");
        }
        assert_eq!(credentials.find("r.example:5000", "ns/repo").await.unwrap(), None);
    }

    #[tokio::test]
    async fn every_way_to_write_a_key_is_understood() {
        for (key, registry) in [
            ("https://r.example", "r.example"),
            ("http://r.example/", "r.example"),
            ("https://r.example/v2/", "r.example"),
            ("R.Example", "r.example"),
            ("r.example:5000/", "r.example:5000"),
            ("R.Example.:443", "r.example"),
            ("http://127.1:5000", "127.0.0.1:5000"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("docker.io", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
        ] {
            let (_home, credentials) = home(&[("docker.json", one(key, "u:p"))]);
            let found = credentials.find(registry, "library/nginx").await.unwrap();
            assert_eq!(found, Some(basic("u", "p")), "{key}");
        }
    }

    #[tokio::test]
    async fn places_are_asked_in_order_until_one_has_a_credential() {
        let (_home, mut credentials) = home(&[
            ("run.json", one("other.example", "a:1")),
            ("config.json", r#"{"auths": {"r.example": {}}}"#.into()),
            ("docker.json", one("r.example", "c:3")),
            ("dockercfg", format!(r#"{{"old.example": {{"auth": "{}"}}}}"#, auth("d:4"))),
        ]);
        assert_eq!(credentials.find("r.example", "x").await.unwrap(), Some(basic("c", "3")));
        assert_eq!(credentials.find("old.example", "x").await.unwrap(), Some(basic("d", "4")));
        assert_eq!(credentials.find("none.example", "x").await.unwrap(), None);
        credentials.inline = Some(RedactedSecret::new(one("r.example", "inline:0")));
        assert_eq!(credentials.find("r.example", "x").await.unwrap(), Some(basic("inline", "0")));
        assert_eq!(credentials.find("old.example", "x").await.unwrap(), Some(basic("d", "4")));
    }

    #[tokio::test]
    async fn a_named_file_is_the_only_one() {
        let (home, mut credentials) =
            home(&[("run.json", one("r.example", "a:1")), ("named.json", one("x.example", "b:2"))]);
        credentials.authfile = Some(home.path().join("named.json"));
        assert_eq!(credentials.find("r.example", "x").await.unwrap(), None);
        assert_eq!(credentials.find("x.example", "x").await.unwrap(), Some(basic("b", "2")));
        credentials.authfile = Some(home.path().join("missing.json"));
        let error = credentials.find("r.example", "x").await.unwrap_err();
        assert_eq!(error.fault(), FaultClass::Usage);
        assert!(error.to_string().contains("missing.json"), "{error}");
        credentials.given = Some(UserCredential::parse("g:pw:with:colons").unwrap().into());
        assert_eq!(credentials.find("r.example", "x").await.unwrap(), Some(basic("g", "pw:with:colons")));
        credentials.anonymous = true;
        assert_eq!(credentials.find("r.example", "x").await.unwrap(), None);
    }

    #[tokio::test]
    async fn identity_tokens_are_distinguished_from_passwords() {
        let text = r#"{"auths": {
            "identity.example": {"auth": "dTpw", "identitytoken": "refresh"},
            "token.example": {"registrytoken": "bearer"},
            "plain.example": {"username": "u", "password": "p"}}}"#;
        let (_home, credentials) = home(&[("docker.json", text.into())]);
        let find = async |host| credentials.find(host, "x").await.unwrap();
        assert_eq!(find("identity.example").await, Some(HostLogin::Identity(RedactedSecret::new("refresh"))));
        assert_eq!(find("token.example").await, Some(HostLogin::Token(RedactedSecret::new("bearer"))));
        assert_eq!(find("plain.example").await, Some(basic("u", "p")));
    }

    #[tokio::test]
    async fn files_are_read_as_clients_in_go_read_them() {
        let broken_lines =
            auth("u:a password that is longer than one line of base64 by some").replacen('U', "U\\n", 1);
        for text in [
            format!(r#"{{"Auths": {{"r.example": {{"AUTH": "{}"}}}}}}"#, auth("u:p")),
            format!(r#"{{"auths": {{"r.example": {{"auth": "{broken_lines}\n"}}}}}}"#),
        ] {
            let (_home, credentials) = home(&[("docker.json", text.clone())]);
            let found = credentials.find_with_place("r.example", "x").await.unwrap();
            assert!(
                matches!(found, Some((HostLogin::Password(_), place)) if place.ends_with("docker.json")),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn a_broken_file_is_named_and_not_quoted() {
        for text in [
            r#"{"auths": {"r.example": {"auth": 5ecret}}}"#,
            r#"{"auths": "5ecret"}"#,
            r#"{"auths": {"r.example": {"auth": "5ecret!"}}}"#,
            &one("r.example", "5ecret"),
        ] {
            let (_home, credentials) = home(&[("docker.json", text.into())]);
            let error = credentials.find("r.example", "x").await.unwrap_err();
            assert_eq!(error.fault(), FaultClass::Usage);
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("docker.json") && !shown.contains("5ecret"), "{shown}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_named_with_its_file() {
        let error = ask_helper("ocifs-no-such", "r.example", "/etc/x.json").await.unwrap_err().to_string();
        assert!(
            error.contains("docker-credential-ocifs-no-such") && error.contains("/etc/x.json"),
            "{error}"
        );
        assert!(
            ask_helper("../sh", "r.example", "x").await.unwrap_err().to_string().contains("not the name")
        );
    }
}
