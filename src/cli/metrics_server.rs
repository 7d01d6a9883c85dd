//! Prometheus endpoint: the counters of a mount or a CSI plugin in the text format, served on a socket.
//!
//! The output holds no names, hosts or credentials, except the reference and the mount point, which the mount table
//! shows as well. Each connection gets one answer to a request of bounded size. So there is no state, no keep-alive
//! and nothing to configure.
//!
//! Format: Prometheus text exposition 0.0.4.

use std::fmt::Write as _;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Semaphore;

use crate::io::printable;
use crate::metrics::{self, MetricFamily, MetricSample, MetricType, MetricValue};

use super::exit::CliError;
use super::socket::{self, SocketFile};

/// Longest request that is read, in bytes.
const MAX_REQUEST_BYTES: u64 = 8 * 1024;
/// Time limit of a connection, from accept to close.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Concurrent connections; further ones wait.
const CONNECTIONS: usize = 8;

/// The address of the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MetricsAddress {
    /// A socket in the file system.
    Unix(PathBuf),
    /// HOST:PORT.
    Tcp(String),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("unix: needs a path".into())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(text.into()))
            }
            _ => Err("neither HOST:PORT nor unix:PATH".into()),
        }
    }
}

/// A listening socket that is not served yet. A socket in the file system is removed on drop.
pub(super) struct MetricsSocket {
    listener: MetricsListener,
    file: Option<SocketFile>,
}

enum MetricsListener {
    Unix(UnixListener),
    Tcp(std::net::TcpListener),
}

impl MetricsSocket {
    /// Opens the socket. Called before any thread is started: the mode of a new socket comes from the umask of the
    /// process.
    pub(super) fn open(address: &MetricsAddress) -> Result<Self, CliError> {
        match address {
            MetricsAddress::Tcp(address) => {
                let failed = |error: io::Error| CliError::local(format!("listening at {address}"), &error);
                let listener = std::net::TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self { listener: MetricsListener::Tcp(listener), file: None })
            }
            MetricsAddress::Unix(path) => {
                let failed =
                    |error: io::Error| CliError::local(format!("listening at {}", path.display()), &error);
                let (listener, file) = socket::listen(path).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self { listener: MetricsListener::Unix(listener), file: Some(file) })
            }
        }
    }

    /// The directory of the socket; `None` for TCP.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        self.file.as_ref().and_then(|file| file.path().parent()).map(Path::to_owned)
    }

    /// Serves until the future is dropped. `about` is shown beside the counters.
    pub(super) async fn serve(self, about: Vec<MetricFamily>) -> io::Result<()> {
        let about: Arc<[MetricFamily]> = about.into();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let Self { listener, file: _file } = self;
        match listener {
            MetricsListener::Unix(listener) => {
                let listener = Arc::new(tokio::net::UnixListener::from_std(listener)?);
                let next = move || {
                    let listener = listener.clone();
                    async move { Ok(listener.accept().await?.0) }
                };
                accept(places, about, next).await
            }
            MetricsListener::Tcp(listener) => {
                let listener = Arc::new(tokio::net::TcpListener::from_std(listener)?);
                let next = move || {
                    let listener = listener.clone();
                    async move { Ok(listener.accept().await?.0) }
                };
                accept(places, about, next).await
            }
        }
    }
}

async fn accept<S, F>(
    places: Arc<Semaphore>,
    about: Arc<[MetricFamily]>,
    next: impl Fn() -> F + Send,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>> + Send,
{
    /// Pause after a failed accept, mostly for too many open files.
    const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);
    loop {
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        match next().await {
            Ok(stream) => {
                let about = about.clone();
                tokio::spawn(async move {
                    // A client that hangs up early needs no answer.
                    tokio::time::timeout(CONNECTION_TIMEOUT, answer(stream, &about)).await.ok();
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection to the counters");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// Reads one request and answers it.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, about: &[MetricFamily]) -> io::Result<()> {
    let mut request = Vec::new();
    let mut limited = (&mut stream).take(MAX_REQUEST_BYTES);
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        if limited.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let (status, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics" | b"/") => {
            let families = [about, &metrics::families()[..]].concat();
            ("200 OK", text(&families))
        }
        (b"GET" | b"HEAD", _) => ("404 Not Found", "the counters are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "the counters can only be read\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if method != b"HEAD" {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// Metric families in the text format.
fn text(families: &[MetricFamily]) -> String {
    let mut out = String::new();
    for family in families {
        let kind = match family.kind {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
            MetricType::Histogram => "histogram",
        };
        // Writing to a string cannot fail.
        writeln!(out, "# HELP {} {}", family.name, escaped(family.help, false)).ok();
        writeln!(out, "# TYPE {} {kind}", family.name).ok();
        for sample in &family.samples {
            writeln!(out, "{}{}{} {}", family.name, sample.suffix, labels(sample), number(sample.value)).ok();
        }
    }
    out
}

fn labels(sample: &MetricSample) -> String {
    if sample.labels.is_empty() {
        return String::new();
    }
    let pairs: Vec<String> =
        sample.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value, true))).collect();
    format!("{{{}}}", pairs.join(","))
}

fn escaped(text: &str, quotes: bool) -> String {
    let lines: Vec<_> = text.split('\n').map(printable).collect();
    let text = lines.join("\n").replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { text.replace('"', "\\\"") } else { text }
}

fn number(value: MetricValue) -> String {
    match value {
        MetricValue::Whole(number) => number.to_string(),
        MetricValue::Time(time) => time.as_secs_f64().to_string(),
    }
}

/// All counters as one line of JSON: names with their labels as in Prometheus, and numbers.
pub(super) fn json() -> String {
    let mut numbers = serde_json::Map::new();
    for family in metrics::families() {
        for sample in &family.samples {
            let name = format!("{}{}{}", family.name, sample.suffix, labels(sample));
            let value = match sample.value {
                MetricValue::Whole(number) => number.into(),
                MetricValue::Time(time) => time.as_secs_f64().into(),
            };
            numbers.insert(name, value);
        }
    }
    serde_json::Value::Object(numbers).to_string()
}

/// Constant facts of a mount: an info gauge with value 1, and one gauge per sandbox part (1: applied as a whole).
pub(super) fn about(
    labels: Vec<(&'static str, String)>,
    sandbox: &[(&'static str, bool)],
) -> Vec<MetricFamily> {
    let part = |(part, holds): &(&'static str, bool)| MetricSample {
        suffix: "",
        labels: vec![("part", (*part).to_owned())],
        value: MetricValue::Whole(u64::from(*holds)),
    };
    vec![
        MetricFamily {
            name: "ocifs_mount_info",
            help: "Reference, mount point and version of a mount.",
            kind: MetricType::Gauge,
            samples: vec![MetricSample { suffix: "", labels, value: MetricValue::Whole(1) }],
        },
        MetricFamily {
            name: "ocifs_sandbox_applied",
            help: "Whether a part of the sandbox holds as a whole.",
            kind: MetricType::Gauge,
            samples: sandbox.iter().map(part).collect(),
        },
    ]
}

/// Constant facts of a CSI plugin: an info gauge with value 1.
#[cfg(feature = "csi")]
pub(super) fn plugin() -> Vec<MetricFamily> {
    let labels = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    vec![MetricFamily {
        name: "ocifs_csi_info",
        help: "Version that serves volumes.",
        kind: MetricType::Gauge,
        samples: vec![MetricSample { suffix: "", labels, value: MetricValue::Whole(1) }],
    }]
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn addresses_are_sockets_or_hosts_with_ports() {
        let parse = |text: &str| text.parse::<MetricsAddress>();
        assert_eq!(parse("unix:/run/x"), Ok(MetricsAddress::Unix("/run/x".into())));
        assert_eq!(parse("localhost:9100"), Ok(MetricsAddress::Tcp("localhost:9100".into())));
        assert_eq!(parse("[::1]:9100"), Ok(MetricsAddress::Tcp("[::1]:9100".into())));
        for bad in ["", "unix:", "/run/x", "localhost", ":9100", "localhost:x", "localhost:70000"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_label_cannot_end_its_line() {
        let labels = vec![("reference", "a\"b\\c\nd".to_owned())];
        let written = text(&about(labels, &[("files", true)]));
        assert!(written.contains("ocifs_mount_info{reference=\"a\\\"b\\\\c\\nd\"} 1\n"), "{written}");
        assert!(written.contains("ocifs_sandbox_applied{part=\"files\"} 1\n"), "{written}");
    }

    #[test]
    fn metrics_socket_is_replaced_only_without_a_listener() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("metrics");
        let address = MetricsAddress::Unix(path.clone());
        let first = MetricsSocket::open(&address).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(MetricsSocket::open(&address).is_err());
        drop(first);
        assert!(!path.exists());
        // A process that died leaves its socket behind.
        drop(UnixListener::bind(&path).unwrap());
        let second = MetricsSocket::open(&address).unwrap();
        drop(second);
        std::fs::write(&path, "mine").unwrap();
        assert!(MetricsSocket::open(&address).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
