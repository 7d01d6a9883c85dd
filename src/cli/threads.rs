//! Threads of a command: the async runtime, and the threads that a mount needs for its lifetime.
//!
//! A limit of processes (pids.max of a container, RLIMIT_NPROC) is an error at the start, so that no reader waits for
//! ever. The runtime panics without its workers, and queues blocking work for threads that cannot start.

use std::io::Write as _;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::io::{can_start_threads, lock};
use crate::layer;

use super::exit::{self, CliError};

/// Blocking threads that are started at the beginning and stay.
const BLOCKING: usize = 3;

/// Most blocking threads. Their work is short: reading, writing, hashing and decoding of at most a few MiB.
const MAX_BLOCKING: usize = 64;

/// Temporary threads beside the runtime, included in the test of the limit.
const SPARE_THREADS: usize = 2;

/// Time limit for the start of the blocking threads.
const THREAD_START_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an idle thread stays: a limit may forbid its replacement.
const IDLE_THREAD_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The variable that limits the heaps of the allocator of a new process, unless the user has set it. By default glibc
/// makes a heap per thread, and one heap cannot use memory that another has freed: a mount of 30000 entries takes 88
/// instead of 50 MiB, and sixteen layers at once exceed the memory budget by a quarter.
pub(super) fn heap_limit() -> Option<(&'static str, &'static str)> {
    const VARIABLE: &str = "MALLOC_ARENA_MAX";
    std::env::var_os(VARIABLE).is_none().then_some((VARIABLE, "1"))
}

/// Starts the runtime.
pub(super) fn runtime() -> Result<Runtime, CliError> {
    let workers = crate::io::concurrency::cores();
    let needed = workers + BLOCKING;
    can_start_threads(needed + SPARE_THREADS).map_err(|error| refused(needed, &error))?;
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
        .thread_keep_alive(IDLE_THREAD_LIFETIME)
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

/// Makes a write beyond `ulimit -f` an error of that write: SIGXFSZ would end the process. Child programs do not
/// inherit a caught signal, unlike an ignored or blocked one.
fn survive_file_limit(runtime: &Runtime) -> Result<(), CliError> {
    let _entered = runtime.enter();
    // The handler stays for the life of the process.
    let caught = signal(SignalKind::from_raw(nix::sys::signal::Signal::SIGXFSZ as i32));
    caught.map(drop).map_err(|error| CliError::local("catching signals", &error))
}

/// Starts the threads that decode layers, for the lifetime of the mount.
pub(super) fn start_for_mount() -> Result<(), CliError> {
    layer::start_pass_threads()
        .map_err(|error| CliError::local("starting the threads that decode layers", &error))
}

fn refusal(needed: usize) -> String {
    format!("starting {needed} threads: the limit of processes (pids.max, ulimit -u) allows fewer")
}

fn refused(needed: usize, error: &dyn std::error::Error) -> CliError {
    CliError::local(refusal(needed), error)
}

/// Starts the blocking threads. Returns whether all run: each waits until all are started.
fn start_blocking(runtime: &Runtime) -> bool {
    let here = Arc::new((Mutex::new(0), Condvar::new()));
    for _ in 0..BLOCKING {
        let here = here.clone();
        runtime.spawn_blocking(move || {
            let (count, all) = &*here;
            *lock(count) += 1;
            all.notify_all();
            wait(&here);
        });
    }
    wait(&here)
}

/// Whether all threads started in time.
fn wait((count, all): &(Mutex<usize>, Condvar)) -> bool {
    let count = lock(count);
    let waited = all.wait_timeout_while(count, THREAD_START_TIMEOUT, |count| *count < BLOCKING);
    waited.is_ok_and(|(_, waited)| !waited.timed_out())
}
