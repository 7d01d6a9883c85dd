//! Interrupted run (SIGINT, SIGTERM, SIGHUP): it ends like a failed one; children stop, and mounts are removed.

use std::fs;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::Result;

static STOPPED: AtomicBool = AtomicBool::new(false);

/// From now on signals do not kill this process: they make [`check`] fail and end its children.
pub(crate) fn watch() -> Result<()> {
    // Handlers and not a blocked mask, which children would inherit.
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(entered);
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                STOPPED.store(true, Ordering::Release);
                for child in children() {
                    // One that has ended meanwhile needs no signal.
                    kill(child, Signal::SIGTERM).ok();
                }
            }
        });
    });
    Ok(())
}

/// Fails once a signal came.
pub(crate) fn check() -> Result<()> {
    if STOPPED.load(Ordering::Acquire) { Err("stopped by a signal".into()) } else { Ok(()) }
}

fn children() -> Vec<Pid> {
    let parent = format!("PPid:\t{}", process::id());
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(|process| {
            let process = process.ok()?;
            let pid = process.file_name().to_str()?.parse().ok()?;
            let status = fs::read_to_string(process.path().join("status")).ok()?;
            status.lines().any(|line| line == parent).then(|| Pid::from_raw(pid))
        })
        .collect()
}
