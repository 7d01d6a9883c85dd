//! Arguments of `ocifs csi`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::metrics_server::MetricsAddress;

#[derive(Args, Debug)]
pub(super) struct CsiArgs {
    /// Listen for kubelet on this socket: unix:///PATH.
    #[arg(long, value_name = "SOCKET", env = "CSI_ENDPOINT")]
    pub(super) endpoint: SocketPath,

    /// Name of this node in the cluster.
    #[arg(long, value_name = "NAME", env = "OCIFS_NODE_ID")]
    pub(super) node_id: String,

    /// Keep the table of mounts and the credentials of volumes in this directory: readable by root alone, and emptied when the
    /// machine restarts.
    #[arg(long, value_name = "DIR", default_value = "/run/ocifs-csi")]
    pub(super) state_dir: PathBuf,

    /// Offer the secrets in this directory to volumes that name one with pullSecret: DIR/NAME/.dockerconfigjson. Every pod of the
    /// cluster can use them.
    #[arg(long, value_name = "DIR")]
    pub(super) pull_secrets: Option<PathBuf>,

    /// Read credentials of volumes without a pull secret from this file, in the form of docker and podman.
    #[arg(long, value_name = "FILE")]
    pub(super) authfile: Option<PathBuf>,

    /// Set the policy for new volumes of a cached image whose registry does not answer.
    #[arg(long, value_name = "POLICY", default_value = "refuse")]
    pub(super) when_unreachable: WhenUnreachable,

    /// Serve Prometheus counters at /metrics: HOST:PORT, or unix:PATH.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) metrics: Option<MetricsAddress>,

    /// Write the log of the plugin to this file instead of standard error. OCIFS_LOG sets its level.
    #[arg(long, value_name = "FILE")]
    pub(super) log_file: Option<PathBuf>,

    /// Options that every mount gets, as "ocifs mount" takes them: --cache-dir, --cache-size, --hosts-dir, --verify, ...
    #[arg(value_name = "OPTION", last = true)]
    pub(super) mount_options: Vec<OsString>,
}

/// The treatment of an image in the cache whose registry is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum WhenUnreachable {
    /// Let new volumes wait for the registry.
    Refuse,
    /// Show the image to every pod that names its digest.
    Show,
}

/// A socket in the notation of orchestrators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SocketPath(pub(super) PathBuf);

impl FromStr for SocketPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
        match path.starts_with('/') {
            true => Ok(Self(path.into())),
            false => Err("not of the form unix:///PATH".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_written_in_every_way_that_orchestrators_have() {
        for text in ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"] {
            assert_eq!(text.parse(), Ok(SocketPath("/csi/csi.sock".into())));
        }
        for text in ["", "tcp://1.2.3.4:1", "unix://", "csi.sock"] {
            assert!(text.parse::<SocketPath>().is_err(), "{text}");
        }
    }
}
