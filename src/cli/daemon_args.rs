//! Arguments for the process of a mount: sandbox and counters.

use clap::{Args, ValueEnum};

use super::metrics_server::MetricsAddress;

/// How the process of a mount behaves.
#[derive(Args, Debug)]
pub(super) struct DaemonArgs {
    /// Drop what serving does not need: capabilities, new privileges, files, system calls.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(super) sandbox: SandboxWhen,

    /// Serve Prometheus counters at /metrics: HOST:PORT, or unix:PATH for a socket of this user alone.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) metrics: Option<MetricsAddress>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum SandboxWhen {
    /// As far as the kernel supports it.
    Auto,
    /// Keep all rights.
    Off,
}
