//! State shared by all requests of a client: logins, connections, configuration, routes, and hosts.
//!
//! A route is kept as configured at its first use, so that a repository does not change its hosts while it is mounted.
//! Everything that is remembered can be dropped at once. Nothing is sent here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::RegistryError;
use super::auth::LoginCache;
use super::config::{ConfigPaths, ConnectionArgs, RegistryConfig};
use super::credentials::{CredentialStore, HostLogin};
use super::endpoint::{AddressAuthor, RepositoryRoute};
use super::failover::HostStates;
use super::http_client::HttpClients;
use super::options::RegistryOptions;
use crate::io::lock;
use crate::oci::Reference;

/// The state shared by all requests.
pub(super) struct ClientShared {
    pub(super) clients: Arc<HttpClients>,
    pub(super) auth: LoginCache,
    pub(super) hosts: HostStates,
    pub(super) read_budget: Duration,
    /// Incremented when all remembered state is dropped.
    pub(super) generation: AtomicU64,
    pub(super) places: ConfigPaths,
    pub(super) given: ConnectionArgs,
    /// The author of the addresses of files.
    pub(super) addresses: AddressAuthor,
    routes: Mutex<RouteTable>,
}

/// The login that the options name, instead of all places of credentials.
fn given_login(options: &RegistryOptions) -> Option<HostLogin> {
    let token = options.token.clone().map(HostLogin::Token);
    token.or_else(|| options.creds.clone().map(HostLogin::from))
}

impl ClientShared {
    /// The state of a new client. Reads the environment for the paths of credentials, and sends nothing.
    pub(super) fn new(options: RegistryOptions) -> Self {
        let credentials = CredentialStore {
            anonymous: options.anonymous,
            given: given_login(&options),
            ..CredentialStore::of_environment(options.authfile.clone())
        };
        let clients = Arc::new(HttpClients::new(&options));
        Self {
            auth: LoginCache::new(credentials, clients.clone()),
            clients,
            read_budget: options.read_budget,
            hosts: HostStates::default(),
            generation: AtomicU64::new(0),
            given: ConnectionArgs {
                plain_http: options.plain_http,
                tls_verify: options.tls_verify,
                cert_dir: options.cert_dir,
                ca_file: options.ca_file,
            },
            places: options.places,
            addresses: AddressAuthor::User,
            routes: Mutex::default(),
        }
    }

    /// The same connections and configuration, without logins and client certificates.
    pub(super) fn for_addresses_of_images(&self, home: Option<&Reference>) -> Self {
        let credentials = CredentialStore { anonymous: true, ..CredentialStore::of_environment(None) };
        let home = home.and_then(|home| format!("https://{}/", home.host()).parse().ok());
        self.with(credentials, AddressAuthor::Image { home })
    }

    /// Whether the options name a login, instead of all places of credentials.
    pub(super) fn has_given_login(&self) -> bool {
        self.auth.has_given()
    }

    /// The same connections and configuration, without the login that the options name.
    pub(super) fn without_given_login(&self) -> Self {
        self.with(self.auth.for_others(), self.addresses.clone())
    }

    /// The same connections and configuration, with other logins and another author of addresses.
    fn with(&self, credentials: CredentialStore, addresses: AddressAuthor) -> Self {
        Self {
            auth: LoginCache::new(credentials, self.clients.clone()),
            clients: self.clients.clone(),
            read_budget: self.read_budget,
            hosts: HostStates::default(),
            generation: AtomicU64::new(0),
            given: self.given.clone(),
            places: self.places.clone(),
            addresses,
            routes: Mutex::default(),
        }
    }

    /// The configuration, loaded on first use. The files are few and small.
    pub(super) fn config(&self) -> Result<Arc<RegistryConfig>, RegistryError> {
        let mut routes = lock(&self.routes);
        if let Some(config) = &routes.config {
            return Ok(config.clone());
        }
        let config = Arc::new(RegistryConfig::load(&self.places, self.given.clone())?);
        routes.config = Some(config.clone());
        Ok(config)
    }

    /// The endpoints for the repository of `reference`.
    pub(super) fn route(&self, reference: &Reference) -> Result<Arc<RepositoryRoute>, RegistryError> {
        let key = key_of(reference);
        if let Some((_, route)) = lock(&self.routes).known.get(&key) {
            return Ok(route.clone());
        }
        let route = Arc::new(self.config()?.route(reference)?);
        lock(&self.routes).known.insert(key, (reference.clone(), route.clone()));
        Ok(route)
    }

    /// Drops remembered state, and loads the configuration again. Running requests continue unchanged.
    pub(super) fn forget_logins(&self) -> Result<(), RegistryError> {
        self.auth.forget();
        self.hosts.forget();
        self.clients.forget();
        self.generation.fetch_add(1, Ordering::Relaxed);
        let config = RegistryConfig::load(&self.places, self.given.clone())?;
        let used: Vec<Reference> =
            lock(&self.routes).known.values().map(|(reference, _)| reference.clone()).collect();
        let mut known = HashMap::new();
        for reference in used {
            match config.route(&reference) {
                Ok(route) => known.insert(key_of(&reference), (reference, Arc::new(route))),
                // The new configuration blocks the repository.
                Err(RegistryError::Blocked { .. }) => None,
                Err(error) => return Err(error),
            };
        }
        *lock(&self.routes) = RouteTable { config: Some(Arc::new(config)), known };
        Ok(())
    }
}

/// Routes by repository, as configured at their first use.
#[derive(Default)]
struct RouteTable {
    config: Option<Arc<RegistryConfig>>,
    /// By registry and repository, with one reference of the repository.
    known: HashMap<(String, String), (Reference, Arc<RepositoryRoute>)>,
}

fn key_of(reference: &Reference) -> (String, String) {
    (reference.registry().to_owned(), reference.repository().to_owned())
}
