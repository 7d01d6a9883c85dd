//! Thread probe: detects a process limit before work depends on threads beyond it.

use std::io;
use std::sync::mpsc::channel;
use std::thread::Builder;

/// Starts `count` threads at once, ends them, and returns the first error.
pub(crate) fn can_start_threads(count: usize) -> io::Result<()> {
    let (mut started, mut result) = (Vec::new(), Ok(()));
    for _ in 0..count {
        // The thread ends when its sender is dropped.
        let (sender, end) = channel::<()>();
        match Builder::new().name("probe".into()).spawn(move || end.recv().is_ok()) {
            Ok(thread) => started.push((sender, thread)),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    for (sender, thread) in started {
        drop(sender);
        if thread.join().is_err() {
            result = Err(io::Error::other("a thread panicked"));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_can_be_started_are_ended_again() {
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
        };
        let probes = || std::fs::read_dir("/proc/self/task").unwrap().map(name);
        can_start_threads(20).unwrap();
        // The kernel lets go of a thread a moment after it was joined.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(120);
        while probes().any(|name| name.trim() == "probe") {
            assert!(std::time::Instant::now() < end);
            std::thread::yield_now();
        }
    }
}
