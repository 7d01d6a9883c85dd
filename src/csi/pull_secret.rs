//! Pull secrets: the logins of a volume, parsed and stored while the volume is mounted.
//!
//! Each volume has one credential file, in a directory that only root can read; its mount reads the file like any
//! other credential file. Only logins are copied from a secret. A docker configuration can also name credential
//! helpers, and a pod author must not choose a program that runs on the node. `Debug` shows no content.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::oci::go_json;

use super::error::CsiError;

/// The key in a secret of the type `kubernetes.io/dockerconfigjson`.
pub(super) const KEY: &str = ".dockerconfigjson";
/// The largest secret that Kubernetes stores, in bytes.
const MAX_SECRET: usize = 1 << 20;

/// The part of a docker configuration that is copied.
#[derive(Deserialize, Serialize)]
struct PullConfig {
    /// Logins by host; `None` if absent.
    auths: Option<BTreeMap<String, SecretLogin>>,
}

/// The fields copied from a login: passwords and tokens, each `None` if absent.
#[derive(Deserialize, Serialize)]
struct SecretLogin {
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identitytoken: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registrytoken: Option<String>,
}

/// Logins, as the text of a credential file.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PullLogins(String);

impl PullLogins {
    /// The logins in the secrets of a request; `None` without secrets.
    pub(super) fn of_secrets(secrets: &HashMap<String, String>) -> Result<Option<Self>, CsiError> {
        let mut unknown: Vec<&str> = secrets.keys().map(String::as_str).filter(|key| *key != KEY).collect();
        if !unknown.is_empty() {
            unknown.sort_unstable();
            return Err(CsiError::Invalid(format!(
                "the secret has unknown keys: {}; it has to be of the type kubernetes.io/dockerconfigjson, with {KEY}",
                unknown.iter().map(|key| format!("{key:?}")).collect::<Vec<_>>().join(", ")
            )));
        }
        secrets.get(KEY).map(|text| Self::parse(text)).transpose()
    }

    fn parse(text: &str) -> Result<Self, CsiError> {
        // The message omits the faulty text, which may be part of a password.
        let bad = || CsiError::Invalid(format!("{KEY} of the secret is no docker configuration with auths"));
        if text.len() > MAX_SECRET {
            return Err(CsiError::Invalid(format!("{KEY} of the secret is larger than {MAX_SECRET} bytes")));
        }
        let config: PullConfig = go_json::answer(text.as_bytes()).map_err(|_| bad())?;
        if config.auths.is_none() {
            return Err(bad());
        }
        serde_json::to_string(&config).map(Self).map_err(|_| bad())
    }

    /// The credential file.
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for PullLogins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(entries: &[(&str, &str)]) -> HashMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn logins_are_taken_and_programs_are_not() {
        let text = r#"{"auths": {"r.example": {"auth": "dTpw", "email": "x"}}, "credsStore": "evil",
            "credHelpers": {"r.example": "evil"}, "proxies": {}}"#;
        for text in [text.to_owned(), text.replace("auth", "AUTH")] {
            let login = PullLogins::of_secrets(&secrets(&[(KEY, &text)])).unwrap().unwrap();
            assert_eq!(login.bytes(), br#"{"auths":{"r.example":{"auth":"dTpw"}}}"#);
        }
        let login = PullLogins::of_secrets(&secrets(&[(KEY, text)])).unwrap().unwrap();
        assert_eq!(format!("{login:?}"), "Login(..)");
        assert_eq!(PullLogins::of_secrets(&HashMap::new()).unwrap(), None);
    }

    #[test]
    fn malformed_pull_secret_is_refused_and_never_quoted() {
        for text in ["5ecret", "{\"auths\": \"5ecret\"}", "{\"auths\": {\"r\": \"5ecret\"}}", "[\"5ecret\"]"]
        {
            let error = PullLogins::of_secrets(&secrets(&[(KEY, text)])).unwrap_err().to_string();
            assert!(!error.contains("5ecret"), "{error}");
        }
        let error = PullLogins::of_secrets(&secrets(&[("password", "5ecret")])).unwrap_err().to_string();
        assert!(error.contains("\"password\"") && !error.contains("5ecret"), "{error}");
        let long = format!("{{\"auths\": {{}}, \"x\": \"{}\"}}", "x".repeat(MAX_SECRET));
        assert!(PullLogins::of_secrets(&secrets(&[(KEY, &long)])).is_err());
    }
}
