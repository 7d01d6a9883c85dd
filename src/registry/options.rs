//! Options of a registry client: credentials, certificates, paths, and time limits.
//!
//! The command line and the library fill them in. The defaults suit a mount on a machine without configuration.

use std::path::PathBuf;
use std::time::Duration;

use super::config::ConfigPaths;
use super::redact::RedactedSecret;
use super::user_credential::UserCredential;

/// Options of a registry client.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Use HTTP for every host, not only for loopback addresses.
    pub plain_http: bool,
    /// The only credential file; `None` searches the usual places.
    pub authfile: Option<PathBuf>,
    /// The credential to use; no credential file is read. `None` searches for one.
    pub creds: Option<UserCredential>,
    /// A bearer token for the registry, which needs no token server; it counts before `creds`. `None` without one.
    pub token: Option<RedactedSecret>,
    /// Use no credentials.
    pub anonymous: bool,
    /// `Some(true)` requires a valid certificate of every registry, also of those configured otherwise, and HTTPS for
    /// loopback addresses too. `Some(false)` accepts any certificate. `None` follows the configuration.
    pub tls_verify: Option<bool>,
    /// The directory with certificates for the registry, instead of the directories configured for hosts.
    pub cert_dir: Option<PathBuf>,
    /// A file with additional trusted authorities.
    pub ca_file: Option<PathBuf>,
    /// The paths of this machine's configuration.
    pub places: ConfigPaths,
    /// Time limit for one request with all retries. For a stream the time restarts whenever bytes arrive.
    pub read_budget: Duration,
    /// Time limit for establishing a connection.
    pub connect_timeout: Duration,
    /// The longest time without a byte on a connection.
    pub stall_timeout: Duration,
    /// The `User-Agent` header.
    pub user_agent: String,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            plain_http: false,
            authfile: None,
            creds: None,
            token: None,
            anonymous: false,
            tls_verify: None,
            cert_dir: None,
            ca_file: None,
            places: ConfigPaths::of_environment(),
            read_budget: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
            user_agent: concat!("ocifs/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}
