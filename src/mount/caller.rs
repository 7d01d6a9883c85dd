//! Detects that the process waiting for a FUSE reply is being killed.
//!
//! Reads /proc alone. A killed process goes on waiting for a request that the server has read, and `fuser` forwards
//! no `FUSE_INTERRUPT`. So the status of a process that waits for long is polled, and its wait is ended when a signal
//! is about to end the process.

use std::time::Duration;

/// How long a killed process may wait for its end.
const CALLER_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// SIGKILL. The kernel also sets it for every thread of a process that another signal ends.
const KILL: u64 = bit(libc::SIGKILL);

/// Signals that end a process with a core dump, unless the process handles or ignores them (signal(7)).
const CORE: u64 = bit(libc::SIGQUIT)
    | bit(libc::SIGILL)
    | bit(libc::SIGTRAP)
    | bit(libc::SIGABRT)
    | bit(libc::SIGBUS)
    | bit(libc::SIGFPE)
    | bit(libc::SIGSEGV)
    | bit(libc::SIGXCPU)
    | bit(libc::SIGXFSZ)
    | bit(libc::SIGSYS);

const fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

/// The thread id in a FUSE request; 0 for a thread outside our pid namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallerThread(pub(super) u32);

impl CallerThread {
    /// Returns when a signal is about to end the thread; never returns for a thread without a readable status.
    pub(super) async fn given_up(self) {
        loop {
            tokio::time::sleep(CALLER_POLL_INTERVAL).await;
            match std::fs::read_to_string(format!("/proc/{}/status", self.0)) {
                Ok(status) if is_dying(&status) => return,
                Ok(_) => {}
                Err(_) => std::future::pending().await,
            }
        }
    }
}

/// Whether a thread with this status (proc_pid_status(5)) is about to end.
fn is_dying(status: &str) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
    };
    let own = mask("SigPnd");
    let survived = mask("SigBlk") | mask("SigIgn") | mask("SigCgt");
    own & KILL != 0 || (own | mask("ShdPnd")) & CORE & !survived != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(own: u64, shared: u64, blocked: u64, ignored: u64, caught: u64) -> String {
        format!(
            "Name:\tcat\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        )
    }

    #[test]
    fn a_thread_is_dying_of_sigkill_and_of_a_dump_that_nothing_holds_up() {
        assert!(is_dying(&status(KILL, 0, 0, 0, 0)));
        assert!(is_dying(&status(KILL, bit(libc::SIGTERM), 0, 0, u64::MAX)));
        assert!(is_dying(&status(0, bit(libc::SIGQUIT), 0, 0, 0)));
        for held_up in
            [(1, 0, 0), (0, 1, 0), (0, 0, 1)].map(|(a, b, c)| [a, b, c].map(|n| n * bit(libc::SIGQUIT)))
        {
            assert!(!is_dying(&status(0, bit(libc::SIGQUIT), held_up[0], held_up[1], held_up[2])));
        }
        assert!(!is_dying(&status(0, bit(libc::SIGINT), 0, 0, bit(libc::SIGINT))), "it is handled");
        assert!(!is_dying(""));
    }

    #[tokio::test]
    async fn a_thread_that_lives_or_is_not_seen_is_not_given_up() {
        for number in [std::process::id(), 0, u32::MAX] {
            let given_up = CallerThread(number).given_up();
            tokio::time::timeout(CALLER_POLL_INTERVAL * 3, given_up).await.expect_err("it lives");
        }
    }
}
