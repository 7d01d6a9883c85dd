//! Mirror failover and per-host state: backoff, concurrency, support for ranges.
//!
//! A caller takes one host after the other. Each needs a permit, and mirrors that failed recently are skipped. After
//! the last host, the retry policy decides whether to start again. Only the last host is worth waiting for: a mirror
//! gets one attempt and then a backoff, so a dead one costs little. Nothing is sent here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::Url;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::RegistryError;
use super::endpoint::{EndpointRole, RegistryEndpoint, RepositoryAction, TokenScope};
use super::redact::host_of;
use super::retry::RetryBudget;
use super::trouble::silent_proxy;
use crate::io::concurrency::HOST_REQUESTS;
use crate::io::{LinkEstimate, chain, lock};
use crate::metrics;

/// How long a host counts as ignoring ranges. Caches that fetch on demand do so only the first time (distribution
/// issue 4667).
const IGNORES_RANGES: Duration = Duration::from_secs(600);
/// The backoff of a failed mirror, and of a mirror without a blob for that blob.
pub(super) const HOST_BACKOFF: Duration = Duration::from_secs(60);

/// All hosts since the start, by origin.
#[derive(Default)]
pub(super) struct HostStates(Mutex<HashMap<String, Arc<HostState>>>);

impl HostStates {
    /// The state of an endpoint's host.
    pub(super) fn of(&self, endpoint: &RegistryEndpoint) -> Arc<HostState> {
        let mut hosts = lock(&self.0);
        let host = hosts
            .entry(endpoint.origin())
            .or_insert_with(|| Arc::new(HostState::new(host_of(&endpoint.root))));
        host.clone()
    }

    /// Drops all per-host state.
    pub(super) fn forget(&self) {
        for host in lock(&self.0).values() {
            host.forget();
        }
    }
}

/// The state of one scheme, host and port.
pub(super) struct HostState {
    name: String,
    /// Permits for concurrent requests; one is held while a body streams.
    places: Arc<Semaphore>,
    /// The end of a pause that the host asked for (`Retry-After`).
    paused: Mutex<Option<Instant>>,
    /// The time until which the host counts as ignoring ranges.
    no_ranges: Mutex<Option<Instant>>,
    /// The time until which the host counts as refusing ranges.
    refuses: Mutex<Option<Instant>>,
    /// Whether the host has answered as a cache that shares pieces.
    pieces: AtomicBool,
    /// The end of the backoff, during which another host is preferred.
    failing: Mutex<Option<Instant>>,
    /// Measured on the blobs whose first host this is.
    link: Arc<LinkEstimate>,
}

impl HostState {
    fn new(name: String) -> Self {
        Self {
            name,
            places: Arc::new(Semaphore::new(HOST_REQUESTS)),
            paused: Mutex::default(),
            no_ranges: Mutex::default(),
            refuses: Mutex::default(),
            pieces: AtomicBool::new(false),
            failing: Mutex::default(),
            link: Arc::default(),
        }
    }

    /// The estimate of the link to this host.
    pub(super) fn link(&self) -> Arc<LinkEstimate> {
        Arc::clone(&self.link)
    }

    /// Waits for a permit of this host, first come, first served.
    pub(super) async fn enter(
        &self,
        what: &str,
        waited: Duration,
    ) -> Result<OwnedSemaphorePermit, RegistryError> {
        match tokio::time::timeout(waited, self.places.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is not closed anywhere, so an error is a timeout as well.
            Ok(Err(_)) | Err(_) => {
                Err(RegistryError::Busy { host: self.name.clone(), what: what.to_owned(), waited })
            }
        }
    }

    /// One attempt, after the host's pause, within the remaining time. A pause that outlasts it is an error at once.
    pub(super) async fn bounded<T>(
        &self,
        what: &str,
        waited: Duration,
        attempt: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let paused = *lock(&self.paused);
        if paused.is_some_and(|until| until > Instant::now() + waited) {
            return Err(RegistryError::Paused { host: self.name.clone(), what: what.to_owned(), waited });
        }
        let both = async {
            if let Some(until) = paused {
                tokio::time::sleep_until(until.into()).await;
            }
            attempt.await
        };
        match tokio::time::timeout(waited, both).await {
            Ok(outcome) => outcome,
            Err(_) => Err(RegistryError::Stalled { host: self.name.clone(), what: what.to_owned(), waited }),
        }
    }

    /// Waits before the next attempt, or gives up. A wait that the host asked for applies to all requests to it.
    pub(super) async fn pause(
        &self,
        patience: &mut RetryBudget,
        error: RegistryError,
    ) -> Result<(), RegistryError> {
        let named = error.retry_after();
        let shown = error.to_string();
        let wait = patience.after(error)?;
        metrics::RETRIES.add(1);
        tracing::debug!(host = self.name, error = shown, wait_ms = wait.as_millis(), "trying again");
        if let Some(named) = named {
            let until = Instant::now() + named;
            let mut paused = lock(&self.paused);
            *paused = Some(paused.map_or(until, |other| other.max(until)));
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Records that a range request was answered with the whole blob.
    pub(super) fn note_ignored_range(&self) {
        if !self.ignores_ranges() {
            tracing::warn!(host = self.name, "registry ignores ranges, blobs are fetched whole");
        }
        *lock(&self.no_ranges) = Some(Instant::now() + IGNORES_RANGES);
    }

    /// Records that the host refuses ranges, and serves the whole.
    pub(super) fn note_refused_range(&self) {
        self.note_ignored_range();
        *lock(&self.refuses) = Some(Instant::now() + IGNORES_RANGES);
    }

    /// Whether the host recently refused a range, or answered one with an unusable response.
    pub(super) fn refuses_ranges(&self) -> bool {
        lock(&self.refuses).is_some_and(|until| until > Instant::now())
    }

    /// Records that the host fetches whole pieces.
    pub(super) fn note_pieces(&self) {
        self.pieces.store(true, Ordering::Relaxed);
    }

    /// Whether the host fetches whole pieces for any part of them.
    pub(super) fn has_pieces(&self) -> bool {
        self.pieces.load(Ordering::Relaxed)
    }

    pub(super) fn ignores_ranges(&self) -> bool {
        lock(&self.no_ranges).is_some_and(|until| until > Instant::now())
    }

    /// Records a failure if another host can be asked. A registry that is down may return at any time, so it gets no
    /// backoff; only a lack of TLS is remembered.
    fn note_failed(&self, role: EndpointRole, error: &RegistryError) {
        let lasts = match role {
            EndpointRole::Mirror => error.is_about_the_host(),
            EndpointRole::Primary => matches!(error, RegistryError::Insecure { .. }),
        };
        if !lasts {
            tracing::debug!(host = self.name, %error, "asking the next host");
            return;
        }
        let alone = error.retry_after().unwrap_or_default().clamp(HOST_BACKOFF, 60 * HOST_BACKOFF);
        if role == EndpointRole::Primary {
            // The user declared the registry insecure, so plain HTTP is allowed.
            tracing::debug!(host = self.name, error = chain(error), "falling back to another protocol");
        } else if !self.is_failing() {
            let error = chain(error);
            tracing::warn!(host = self.name, error, seconds = alone.as_secs(), "host failed; backing off");
        }
        *lock(&self.failing) = Some(Instant::now() + alone);
    }

    /// Whether the host is in its backoff.
    pub(super) fn is_failing(&self) -> bool {
        lock(&self.failing).is_some_and(|until| until > Instant::now())
    }

    /// Drops the state of the host.
    fn forget(&self) {
        self.pieces.store(false, Ordering::Relaxed);
        for until in [&self.paused, &self.no_ranges, &self.refuses, &self.failing] {
            *lock(until) = None;
        }
    }
}

/// One host of a failover.
struct FailoverStop {
    endpoint: Arc<RegistryEndpoint>,
    host: Arc<HostState>,
}

/// Failover over the hosts that may have some content.
pub(super) struct MirrorFailover {
    /// Invariant: not empty.
    stops: Vec<FailoverStop>,
    /// The current stop. Invariant: inside `stops`.
    at: usize,
    /// Whether to start again after the last stop has failed.
    insists: bool,
    patience: RetryBudget,
    /// The permit of the current host.
    held: Option<(Arc<HostState>, OwnedSemaphorePermit)>,
}

impl MirrorFailover {
    /// Starts a failover over `endpoints`. Without any, the error names `what`.
    pub(super) fn new(
        hosts: &HostStates,
        endpoints: Vec<Arc<RegistryEndpoint>>,
        patience: RetryBudget,
        what: &str,
    ) -> Result<Self, RegistryError> {
        let stop = |endpoint: Arc<RegistryEndpoint>| FailoverStop { host: hosts.of(&endpoint), endpoint };
        let stops: Vec<FailoverStop> = endpoints.into_iter().map(stop).collect();
        if stops.is_empty() {
            return Err(RegistryError::Config {
                place: format!("for {what}"),
                reason: "no host is configured that may be asked for it".into(),
            });
        }
        Ok(Self { stops, at: 0, insists: true, patience, held: None })
    }

    /// Gives up after one attempt at each stop, for content that can be requested elsewhere.
    pub(super) fn once(mut self) -> Self {
        self.insists = false;
        self
    }

    /// Removes the `unwanted` stops, except the last one.
    pub(super) fn without(mut self, unwanted: impl Fn(&RegistryEndpoint) -> bool) -> Self {
        let last = self.stops.len() - 1;
        let mut at = 0;
        self.stops.retain(|stop| {
            at += 1;
            at > last || !unwanted(&stop.endpoint)
        });
        self
    }

    /// The next host to ask, with a permit.
    pub(super) async fn next(&mut self, what: &str) -> Result<Arc<RegistryEndpoint>, RegistryError> {
        loop {
            while self.at + 1 < self.stops.len() && self.stops[self.at].host.is_failing() {
                self.at += 1;
            }
            let stop = &self.stops[self.at];
            if self.held.as_ref().is_some_and(|(host, _)| Arc::ptr_eq(host, &stop.host)) {
                return Ok(stop.endpoint.clone());
            }
            self.held = None;
            match stop.host.enter(what, self.time()).await {
                Ok(permit) => {
                    self.held = Some((stop.host.clone(), permit));
                    return Ok(stop.endpoint.clone());
                }
                // All permits are in use.
                Err(_) if self.at + 1 < self.stops.len() => self.at += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// The first success of `attempt` over the hosts, within the retry budget. `attempt` gets a scope to read and the
    /// URL of `path` at its host.
    pub(super) async fn first<T, F: Future<Output = Result<T, RegistryError>>>(
        &mut self,
        path: &str,
        what: &str,
        mut attempt: impl FnMut(TokenScope, Url) -> F,
    ) -> Result<T, RegistryError> {
        loop {
            let endpoint = self.next(what).await?;
            let url = endpoint.url(path, what)?;
            match self.bounded(what, attempt(endpoint.scope(RepositoryAction::Pull), url)).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) => self.failed(error).await?,
            }
        }
    }

    /// One attempt at the current host.
    pub(super) async fn bounded<T>(
        &self,
        what: &str,
        attempt: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let FailoverStop { endpoint, host, .. } = &self.stops[self.at];
        let outcome = host.bounded(what, self.time(), attempt).await;
        outcome.map_err(|error| silent_proxy(&endpoint.root, error))
    }

    /// After a failure: continues with the next host, waits and starts again, or gives up.
    pub(super) async fn failed(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let stop = &self.stops[self.at];
        let (host, role) = (stop.host.clone(), stop.endpoint.role);
        let mut next = self.at + 1;
        // The other scheme is only tried if no connection was established or TLS failed: any answer settles it.
        if !error.is_connecting() && !matches!(error, RegistryError::Insecure { .. }) {
            let same = |other: &FailoverStop| other.endpoint.is_other_way_of(&stop.endpoint);
            next += self.stops[next..].iter().take_while(|other| same(other)).count();
        }
        if next < self.stops.len() || !self.insists {
            host.note_failed(role, &error);
        }
        if next < self.stops.len() {
            self.at = next;
            return Ok(());
        }
        if !self.insists {
            return Err(error);
        }
        host.pause(&mut self.patience, error).await?;
        self.at = 0;
        Ok(())
    }

    /// The current host.
    pub(super) fn host(&self) -> &HostState {
        &self.stops[self.at].host
    }

    /// Restarts the budget, because bytes arrived.
    pub(super) fn refresh(&mut self) {
        self.patience = self.patience.anew();
    }

    /// The time limit for the current stop: half of the rest if another host can be asked after it, else the rest.
    fn time(&self) -> Duration {
        let left = self.patience.left();
        if self.at + 1 < self.stops.len() || !self.insists { left / 2 } else { left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::FaultClass;

    #[tokio::test]
    async fn a_pause_beyond_the_time_limit_is_an_error_without_a_request() {
        let (host, second) = (HostState::new("r.example".into()), Duration::from_secs(1));
        *lock(&host.paused) = Some(Instant::now() + Duration::from_secs(3600));
        let sent = AtomicBool::new(false);
        let attempt = async {
            sent.store(true, Ordering::Relaxed);
            Ok(())
        };
        let error = host.bounded("blob x", second, attempt).await.unwrap_err();
        assert!(!sent.load(Ordering::Relaxed));
        assert_eq!(error.fault(), FaultClass::Unavailable);
        assert_eq!(
            error.to_string(),
            "r.example asked for a pause that is longer than the 1000 ms left for blob x"
        );
    }
}
