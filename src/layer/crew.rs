//! Threads of passes: two for each running pass, started once, reused until the process ends.
//!
//! A pass blocks on its input, so its threads are never those that serve other readers. A slot for a pass exists
//! only with its threads. Passes with local input have slots of their own, because the others hold theirs for as
//! long as a network takes.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::io::concurrency::{LOCAL_PASSES, network_passes};
use crate::io::{FaultClass, ReadError, lock};

/// Threads of one pass: one decodes, the other processes the decoded bytes.
const THREADS_PER_PASS: usize = 2;

/// The source of the stored bytes of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PassInput {
    /// All of them are local.
    Here,
    /// Some of them come over a network.
    Far,
}

static HERE: LazyLock<ThreadCrew> = LazyLock::new(|| ThreadCrew::new(LOCAL_PASSES));

static FAR: LazyLock<ThreadCrew> = LazyLock::new(|| ThreadCrew::new(network_passes()));

/// Starts the threads of one pass of each kind, so that a process limit reached later never blocks all readers.
pub fn start_pass_threads() -> std::io::Result<()> {
    HERE.grow(0)?;
    FAR.grow(0)
}

/// Waits for a slot for a pass. Fails when its threads cannot be started.
pub(super) async fn place(input: PassInput) -> Result<Arc<PassPlace>, ReadError> {
    match input {
        PassInput::Here => HERE.place().await,
        PassInput::Far => FAR.place().await,
    }
}

/// The threads of passes of one kind, and their slots.
struct ThreadCrew {
    jobs: Arc<JobQueue>,
    /// Slots that have their threads and no pass.
    free: Arc<Semaphore>,
    started: Mutex<StartedThreads>,
    /// The maximum number of slots.
    most: usize,
}

/// Slots and threads started so far. Invariant: `threads >= places * THREADS`.
#[derive(Default)]
struct StartedThreads {
    places: usize,
    threads: usize,
}

/// A slot for one pass, which ends when both its jobs have ended.
pub(super) struct PassPlace {
    jobs: Arc<JobQueue>,
    _permit: OwnedSemaphorePermit,
}

impl ThreadCrew {
    fn new(most: usize) -> Self {
        Self { jobs: Arc::default(), free: Arc::new(Semaphore::new(0)), started: Mutex::default(), most }
    }

    async fn place(&self) -> Result<Arc<PassPlace>, ReadError> {
        if self.free.available_permits() == 0 {
            self.grow(self.most - 1).or_else(|error| {
                if lock(&self.started).places == 0 {
                    return Err(ReadError::caused(
                        FaultClass::Io,
                        "the threads of a pass cannot be started",
                        error,
                    ));
                }
                tracing::warn!(%error, "a pass waits for the threads of another one");
                Ok(())
            })?;
        }
        let permit = self.free.clone().acquire_owned().await;
        let permit =
            permit.map_err(|error| ReadError::caused(FaultClass::Io, "waiting for a pass", error))?;
        Ok(Arc::new(PassPlace { jobs: self.jobs.clone(), _permit: permit }))
    }

    /// Adds a slot if there are at most `places`.
    fn grow(&self, places: usize) -> std::io::Result<()> {
        let mut started = lock(&self.started);
        if started.places > places {
            return Ok(());
        }
        while started.threads < (started.places + 1) * THREADS_PER_PASS {
            let jobs = self.jobs.clone();
            std::thread::Builder::new().name("pass".into()).spawn(move || jobs.work())?;
            started.threads += 1;
        }
        started.places += 1;
        self.free.add_permits(1);
        Ok(())
    }
}

impl PassPlace {
    /// Runs `work` on a thread of the crew; each slot has two. The receiver gets nothing when `work` panics.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let place = self.clone();
        self.jobs.push(Box::new(move || {
            let done = work();
            drop(place);
            // The pass may have been abandoned.
            sender.send(done).ok();
        }));
        receiver
    }
}

type PassJob = Box<dyn FnOnce() + Send>;

/// Queued jobs; each has a thread to take it.
#[derive(Default)]
struct JobQueue {
    waiting: Mutex<VecDeque<PassJob>>,
    pushed: Condvar,
}

impl JobQueue {
    fn push(&self, job: PassJob) {
        lock(&self.waiting).push_back(job);
        self.pushed.notify_one();
    }

    /// Runs jobs until the process ends.
    fn work(&self) {
        loop {
            let mut waiting = lock(&self.waiting);
            let job = loop {
                match waiting.pop_front() {
                    Some(job) => break job,
                    None => {
                        waiting = self.pushed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                    }
                }
            };
            drop(waiting);
            // The unwinding dropped the job's sender and its slot.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a job of a pass panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_free_when_both_its_jobs_have_ended_and_threads_outlive_a_panic() {
        let crew = ThreadCrew::new(1);
        let place = crew.place().await.unwrap();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (one, other) = (place.run(|| panic!("on purpose")), place.run(move || wait.recv().is_ok()));
        drop(place);
        assert!(one.await.is_err());
        assert_eq!(crew.free.available_permits(), 0);
        go.send(()).unwrap();
        assert!(other.await.unwrap());
        for _ in 0..3 {
            let place = crew.place().await.unwrap();
            assert_eq!(place.run(|| 7).await.unwrap(), 7);
        }
        assert_eq!(lock(&crew.started).threads, THREADS_PER_PASS);
    }

    #[tokio::test]
    async fn there_are_as_many_places_as_passes_and_no_more_than_the_most() {
        let crew = ThreadCrew::new(2);
        let (one, _other) = (crew.place().await.unwrap(), crew.place().await.unwrap());
        let third = crew.place();
        tokio::pin!(third);
        let waits = tokio::time::timeout(std::time::Duration::from_millis(10), &mut third).await;
        assert!(waits.is_err() && lock(&crew.started).places == 2);
        drop(one);
        third.await.unwrap();
    }
}
