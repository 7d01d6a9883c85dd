//! OCI distribution API client over HTTP: manifests, blobs by range, referrers and pushes, with authentication,
//! redirects, retries and resumption.
//!
//! A response is trusted only as far as it can be checked. A range is delivered if status, `Content-Range`, total
//! size and body length all agree with the request. Any other response is an error that names host, range, digest and
//! status, and is retried. This module knows no layers and no cache, and is the only one that knows HTTP.
//! Rules come from the OCI distribution-spec 1.1 and RFC 9110.

mod auth;
mod blob;
mod certificate;
mod challenge;
mod client;
mod client_shared;
mod config;
mod config_paths;
mod credentials;
mod dns;
mod endpoint;
mod error;
mod failover;
#[doc(hidden)]
pub mod fuzzing;
mod helper;
mod http_client;
mod options;
mod part;
mod privileged_rpc;
mod proxies;
mod push;
mod reach;
mod redact;
mod referrers;
mod request;
mod response;
mod retry;
mod tls;
mod tls_trouble;
mod trouble;
mod user_credential;
mod web;

pub use client::{FetchedDocument, HeadedDocument, RegistryClient};
pub use config::ConfigPaths;
pub use error::RegistryError;
pub use options::RegistryOptions;
pub use privileged_rpc::{serve_elsewhere, work_elsewhere};
pub use push::PushOutcome;
pub use redact::{RedactedSecret, ShownUrl, shown_address};
pub use tls_trouble::TlsTrouble;
pub use user_credential::UserCredential;
pub use web::{WebAddress, WebFile};
