//! The threads of a command: the async runtime, and those that a mount needs for its whole life.
//!
//! A limit of processes (pids.max of a container, RLIMIT_NPROC) is an error at the start, and no reader that waits for ever:
//! the runtime panics without its workers, and queues blocking work for threads that never come.

use std::io::Write as _;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::io::can_start_threads;
use crate::layer;

use super::exit::{self, Failure};

/// Threads for blocking work that are there from the start and stay.
const BLOCKING: usize = 3;

/// The most threads for blocking work. It is short: reading, writing, hashing and decoding of at most a few MiB.
const MAX_BLOCKING: usize = 64;

/// Threads that come and go beside the runtime, which are tried too.
const OTHERS: usize = 2;

/// How long the threads for blocking work may take to be there.
const START: Duration = Duration::from_secs(5);

/// How long an idle thread stays: the next one may not be allowed.
const KEEP: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Starts the runtime.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let needed = workers + BLOCKING;
    can_start_threads(needed + OTHERS).map_err(|error| refused(needed, &error))?;
    // The runtime panics when a worker cannot be started, and hangs when it unwinds.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |_| {
        let message = format!("ocifs: {}", refusal(needed));
        writeln!(std::io::stderr(), "{message}").ok();
        std::process::exit(exit::GENERIC.into());
    }));
    let built = Builder::new_multi_thread()
        .enable_all()
        .worker_threads(workers)
        .max_blocking_threads(MAX_BLOCKING)
        .thread_keep_alive(KEEP)
        .thread_name("ocifs")
        .build();
    std::panic::set_hook(hook);
    let runtime = built.map_err(|error| refused(needed, &error))?;
    if !start_blocking(&runtime) {
        return Err(refused(needed, &std::io::Error::from(std::io::ErrorKind::WouldBlock)));
    }
    survive_file_limit(&runtime)?;
    Ok(runtime)
}

/// Makes a write beyond `ulimit -f` an error of that write: SIGXFSZ would end the process. A signal that is caught is not inherited by
/// programs that are started, other than one that is ignored or blocked.
fn survive_file_limit(runtime: &Runtime) -> Result<(), Failure> {
    let _entered = runtime.enter();
    // The handler stays for the life of the process.
    let caught = signal(SignalKind::from_raw(nix::sys::signal::Signal::SIGXFSZ as i32));
    caught.map(drop).map_err(|error| Failure::local("catching signals", &error))
}

/// Starts what passes over layers need, as long as the mount lasts.
pub(super) fn start_for_mount() -> Result<(), Failure> {
    layer::start_pass_threads()
        .map_err(|error| Failure::local("starting the threads that decode layers", &error))
}

fn refusal(needed: usize) -> String {
    format!("starting {needed} threads: the limit of processes (pids.max, ulimit -u) allows fewer")
}

fn refused(needed: usize, error: &dyn std::error::Error) -> Failure {
    Failure::local(refusal(needed), error)
}

/// Starts threads for blocking work, and says whether they are there: each waits until all are.
fn start_blocking(runtime: &Runtime) -> bool {
    let here = Arc::new((Mutex::new(0), Condvar::new()));
    for _ in 0..BLOCKING {
        let here = here.clone();
        runtime.spawn_blocking(move || {
            let (count, all) = &*here;
            *count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            all.notify_all();
            wait(&here);
        });
    }
    wait(&here)
}

/// Whether all came in time.
fn wait((count, all): &(Mutex<usize>, Condvar)) -> bool {
    let count = count.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = all.wait_timeout_while(count, START, |count| *count < BLOCKING);
    waited.is_ok_and(|(_, waited)| !waited.timed_out())
}
