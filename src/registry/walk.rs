//! What is kept about hosts, and the walk over those that may have the answer.
//!
//! Nothing is asked here. The idea: whoever asks takes one host after the other from a walk, which waits for a place there, skips
//! mirrors that failed lately, and after the last host decides whether to start again. Only the last host is worth waiting for:
//! a mirror gets one try, and is then left alone for a while, so that one that is down costs little.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::RegistryError;
use super::endpoint::{Endpoint, Role};
use super::redact::host_of;
use super::retry::Patience;
use crate::io::chain;
use crate::meter;

/// How many requests to one host are under way at once.
const PER_HOST: usize = 8;
/// How long a host is remembered to ignore ranges. Caches that fetch on demand do so only the first time
/// (distribution issue 4667).
const IGNORES_RANGES: Duration = Duration::from_secs(600);
/// How long a mirror that failed is left alone, and one that lacks a blob is not asked for it again.
pub(super) const LEFT_ALONE: Duration = Duration::from_secs(60);

/// All hosts that were ever asked.
#[derive(Default)]
pub(super) struct Hosts(Mutex<HashMap<String, Arc<Host>>>);

impl Hosts {
    /// What is kept about the host of an endpoint.
    pub(super) fn of(&self, endpoint: &Endpoint) -> Arc<Host> {
        let mut hosts = lock(&self.0);
        let host =
            hosts.entry(endpoint.origin()).or_insert_with(|| Arc::new(Host::new(host_of(&endpoint.root))));
        host.clone()
    }

    /// Knows nothing about any host any more.
    pub(super) fn forget(&self) {
        for host in lock(&self.0).values() {
            host.forget();
        }
    }
}

/// What is kept about one scheme, host and port.
pub(super) struct Host {
    name: String,
    /// Places for requests; one is held while a body streams.
    places: Arc<Semaphore>,
    /// Until when the host asked not to be asked.
    paused: Mutex<Option<Instant>>,
    /// Until when the host is remembered to ignore ranges.
    no_ranges: Mutex<Option<Instant>>,
    /// Until when it is remembered to refuse ranges.
    refuses: Mutex<Option<Instant>>,
    /// Whether it lately answered as a cache that shares pieces.
    pieces: AtomicBool,
    /// Until when it is not asked where somebody else can be.
    failing: Mutex<Option<Instant>>,
}

impl Host {
    fn new(name: String) -> Self {
        Self {
            name,
            places: Arc::new(Semaphore::new(PER_HOST)),
            paused: Mutex::default(),
            no_ranges: Mutex::default(),
            refuses: Mutex::default(),
            pieces: AtomicBool::new(false),
            failing: Mutex::default(),
        }
    }

    /// A place among the requests to this host, in the order of asking.
    pub(super) async fn enter(
        &self,
        what: &str,
        waited: Duration,
    ) -> Result<OwnedSemaphorePermit, RegistryError> {
        match tokio::time::timeout(waited, self.places.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is never closed, so the first case is the second one.
            Ok(Err(_)) | Err(_) => {
                Err(RegistryError::Busy { host: self.name.clone(), what: what.to_owned(), waited })
            }
        }
    }

    /// One attempt, after the host's pause, within the time that is left.
    pub(super) async fn bounded<T>(
        &self,
        what: &str,
        waited: Duration,
        attempt: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let both = async {
            let paused = *lock(&self.paused);
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

    /// Waits before the next try, or gives up. A wait that the host named holds for all requests to it.
    pub(super) async fn pause(
        &self,
        patience: &mut Patience,
        error: RegistryError,
    ) -> Result<(), RegistryError> {
        let named = error.retry_after();
        let shown = error.to_string();
        let wait = patience.after(error)?;
        meter::RETRIES.add(1);
        tracing::debug!(host = self.name, error = shown, wait_ms = wait.as_millis(), "trying again");
        if let Some(named) = named {
            let until = Instant::now() + named;
            let mut paused = lock(&self.paused);
            *paused = Some(paused.map_or(until, |other| other.max(until)));
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Remembers that a range was asked for and a whole blob came.
    pub(super) fn note_ignored_range(&self) {
        if !self.ignores_ranges() {
            tracing::warn!(host = self.name, "registry ignores ranges, blobs are fetched whole");
        }
        *lock(&self.no_ranges) = Some(Instant::now() + IGNORES_RANGES);
    }

    /// Remembers that it gives the whole where it is asked for that, and no range.
    pub(super) fn note_refused_range(&self) {
        self.note_ignored_range();
        *lock(&self.refuses) = Some(Instant::now() + IGNORES_RANGES);
    }

    /// Whether a request with a range would be refused, or answered by what is of no use.
    pub(super) fn refuses_ranges(&self) -> bool {
        lock(&self.refuses).is_some_and(|until| until > Instant::now())
    }

    /// Remembers that it fetches pieces.
    pub(super) fn note_pieces(&self) {
        self.pieces.store(true, Ordering::Relaxed);
    }

    /// Whether it fetches whole pieces for any part of them.
    pub(super) fn has_pieces(&self) -> bool {
        self.pieces.load(Ordering::Relaxed)
    }

    pub(super) fn ignores_ranges(&self) -> bool {
        lock(&self.no_ranges).is_some_and(|until| until > Instant::now())
    }

    /// Remembers that it failed, when somebody else can be asked. A registry that is not there may be back at any time, and is
    /// asked as before; only that it speaks no TLS is remembered.
    fn note_failed(&self, role: Role, error: &RegistryError) {
        let lasts = match role {
            Role::Mirror => error.is_about_the_host(),
            Role::Primary => matches!(error, RegistryError::Insecure { .. }),
        };
        if !lasts {
            tracing::debug!(host = self.name, %error, "asking the next host");
            return;
        }
        let alone = error.retry_after().unwrap_or_default().clamp(LEFT_ALONE, 60 * LEFT_ALONE);
        if role == Role::Primary {
            // The user said that it need not speak TLS.
            tracing::debug!(host = self.name, error = chain(error), "spoken to otherwise");
        } else if !self.is_failing() {
            let error = chain(error);
            tracing::warn!(
                host = self.name,
                error,
                seconds = alone.as_secs(),
                "host failed and is left alone"
            );
        }
        *lock(&self.failing) = Some(Instant::now() + alone);
    }

    /// Whether it failed lately.
    pub(super) fn is_failing(&self) -> bool {
        lock(&self.failing).is_some_and(|until| until > Instant::now())
    }

    /// Knows nothing about the host any more.
    fn forget(&self) {
        self.pieces.store(false, Ordering::Relaxed);
        for until in [&self.paused, &self.no_ranges, &self.refuses, &self.failing] {
            *lock(until) = None;
        }
    }
}

/// One host of a walk.
struct Stop {
    endpoint: Arc<Endpoint>,
    host: Arc<Host>,
}

/// A walk over the hosts that may have one thing, until one gives it.
pub(super) struct Walk {
    /// Invariant: not empty.
    stops: Vec<Stop>,
    /// The stop that is asked next, or is being asked. Invariant: inside `stops`.
    at: usize,
    /// Whether the last stop is asked again when it fails.
    insists: bool,
    patience: Patience,
    /// One of the places of the host that is asked, given back when it is left.
    held: Option<(Arc<Host>, OwnedSemaphorePermit)>,
}

impl Walk {
    /// Over `endpoints`, which are named `what` together where they are none.
    pub(super) fn new(
        hosts: &Hosts,
        endpoints: Vec<Arc<Endpoint>>,
        patience: Patience,
        what: &str,
    ) -> Result<Self, RegistryError> {
        let stop = |endpoint: Arc<Endpoint>| Stop { host: hosts.of(&endpoint), endpoint };
        let stops: Vec<Stop> = endpoints.into_iter().map(stop).collect();
        if stops.is_empty() {
            return Err(RegistryError::Config {
                place: format!("for {what}"),
                reason: "no host is configured that may be asked for it".into(),
            });
        }
        Ok(Self { stops, at: 0, insists: true, patience, held: None })
    }

    /// The same, giving up after one try at each stop: for what others can be asked for.
    pub(super) fn once(mut self) -> Self {
        self.insists = false;
        self
    }

    /// Leaves out the stops that are not `wanted`, as long as one is left.
    pub(super) fn without(mut self, unwanted: impl Fn(&Endpoint) -> bool) -> Self {
        let last = self.stops.len() - 1;
        let mut at = 0;
        self.stops.retain(|stop| {
            at += 1;
            at > last || !unwanted(&stop.endpoint)
        });
        self
    }

    /// The next host to ask, with a place there.
    pub(super) async fn next(&mut self, what: &str) -> Result<Arc<Endpoint>, RegistryError> {
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
                // Busy with our own requests.
                Err(_) if self.at + 1 < self.stops.len() => self.at += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// One attempt at the host that `next` gave.
    pub(super) async fn bounded<T>(
        &self,
        what: &str,
        attempt: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        self.stops[self.at].host.bounded(what, self.time(), attempt).await
    }

    /// After a failure there: goes on to the next host, or waits and starts again, or gives up.
    pub(super) async fn failed(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let stop = &self.stops[self.at];
        let (host, role) = (stop.host.clone(), stop.endpoint.role);
        let mut next = self.at + 1;
        // The other way to speak to a host is for one that was not understood: an answer is an answer.
        if !error.is_connecting() && !matches!(error, RegistryError::Insecure { .. }) {
            let same = |other: &Stop| other.endpoint.is_other_way_of(&stop.endpoint);
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

    /// The host that is asked.
    pub(super) fn host(&self) -> &Host {
        &self.stops[self.at].host
    }

    /// Starts the time anew, because something arrived.
    pub(super) fn refresh(&mut self) {
        self.patience = self.patience.anew();
    }

    /// How long this stop may take: half of what is left, where another one comes after it.
    fn time(&self) -> Duration {
        let left = self.patience.left();
        if self.at + 1 < self.stops.len() || !self.insists { left / 2 } else { left }
    }
}

/// The values stay valid when a thread panics between two operations on them.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
