//! Debian's `docker-registry` on a loopback port, with its access log.
//!
//! Never shared between tests: each has its own process, so its counts are the test's own. The idea: the registry's
//! access log is the count, written by somebody who does not know what we hope to see.

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::byte_text::digest_of;
use crate::fault_registry::ReservedPort;
use crate::http;
use crate::process::{CONDITION_TIMEOUT, becomes_true, run};
use crate::scratch::Scratch;

/// A user and password that [`RealRegistry::with_password`] knows.
pub(crate) const USER: &str = "ada";
/// The password of [`USER`].
pub(crate) const PASSWORD: &str = "allmine";
/// The bcrypt of [`PASSWORD`], which is the test vector of Go's bcrypt package.
const HTPASSWD: &str = "ada:$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga\n";

/// One answered request.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    /// `GET`, `HEAD`, ...
    pub(crate) method: String,
    /// The path with its query.
    pub(crate) path: String,
    /// The status that was answered.
    pub(crate) status: u16,
    /// Bytes of body that were sent.
    pub(crate) bytes: u64,
}

/// A body whose reader does not go on for so long is one that it keeps open, and no line of the log is to come.
const KEPT_OPEN: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Log {
    /// Every answered request, in the order of their ends.
    hits: Vec<Hit>,
    /// How many requests for blobs and manifests the process that runs now has logged.
    logged: u64,
}

/// A running (or stopped) registry.
pub(crate) struct RealRegistry {
    config: Scratch,
    storage: PathBuf,
    port: ReservedPort,
    /// Where it shows its counters.
    metrics: ReservedPort,
    child: Option<Child>,
    /// Reads the access log of `child`.
    follower: Option<JoinHandle<()>>,
    log: Arc<Mutex<Log>>,
}

impl RealRegistry {
    /// An empty registry that anybody may use.
    pub(crate) fn start() -> Self {
        let config = Scratch::new();
        let storage = config.subdir("storage");
        Self::with(config, storage, "")
    }

    /// A registry over an existing storage directory.
    pub(crate) fn on_storage(storage: &Path) -> Self {
        Self::with(Scratch::new(), storage.to_owned(), "")
    }

    /// An empty registry that answers only to [`USER`] with [`PASSWORD`].
    pub(crate) fn with_password() -> Self {
        let config = Scratch::new();
        let storage = config.subdir("storage");
        let file = config.file("htpasswd", HTPASSWD);
        let auth = format!("auth: {{htpasswd: {{realm: ocifs, path: {}}}}}\n", file.display());
        Self::with(config, storage, &auth)
    }

    fn with(config: Scratch, storage: PathBuf, auth: &str) -> Self {
        let (port, metrics) = (ReservedPort::new(), ReservedPort::new());
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: false}}}}\nstorage:\n  filesystem: \
             {{rootdirectory: {}}}\n  maintenance: {{uploadpurging: {{enabled: false}}}}\nhttp: {{addr: \
             \"{}\", debug: {{addr: \"{}\", \
             prometheus: {{enabled: true}}}}}}\n{auth}",
            storage.display(),
            port.address(),
            metrics.address()
        );
        config.file("config.yml", text);
        let mut registry =
            Self { config, storage, port, metrics, child: None, follower: None, log: Arc::default() };
        registry.resume();
        registry
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> String {
        self.port.address().to_string()
    }

    /// A full reference to `name` (`repo:tag` or `repo@digest`) here.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    /// Where it keeps blob `digest` on disk, to damage it.
    pub(crate) fn stored_blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.storage.join("docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// Starts it again on the same port.
    pub(crate) fn resume(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        // The registry dies with the test even if the test is killed.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(self.config.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry and setpriv are installed");
        let stdout = child.stdout.take().expect("it is piped");
        let log = Arc::clone(&self.log);
        self.follower = Some(thread::spawn(move || follow(stdout, &log)));
        self.child = Some(child);
        let host = self.host();
        let up = becomes_true(CONDITION_TIMEOUT, || {
            http::send(&host, "GET", "/v2/", &[], &[]).is_ok_and(|answer| answer.status < 500)
                && TcpStream::connect(self.metrics.address()).is_ok()
        });
        assert!(up, "docker-registry does not answer at {host}");
    }

    /// Ends it; the port then refuses connections.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child of ours");
            child.wait().expect("a child of ours");
            // It ends with the output of the process, and has then counted every line of it.
            if let Some(follower) = self.follower.take() {
                follower.join().expect("the log is read to its end");
            }
            // The lines of the next process are counted beside its own counters.
            let hits = std::mem::take(&mut self.log.lock().expect("no reader panics").hits);
            self.log = Arc::new(Mutex::new(Log { hits, logged: 0 }));
        }
    }

    /// Every request answered since the last [`Self::reset_counts`], without our own.
    pub(crate) fn requests(&mut self) -> Vec<Hit> {
        self.settle();
        let log = self.log.lock().expect("no reader panics");
        log.hits.iter().filter(|hit| hit.path != "/v2/").cloned().collect()
    }

    /// Every blob request that sent a body.
    pub(crate) fn blob_requests(&mut self) -> Vec<Hit> {
        let mut hits = self.requests();
        hits.retain(|hit| hit.path.contains("/blobs/sha256:") && hit.method == "GET");
        hits
    }

    /// Bytes of blobs sent.
    pub(crate) fn blob_bytes(&mut self) -> u64 {
        self.blob_requests().iter().map(|hit| hit.bytes).sum()
    }

    /// Bytes of this one blob sent.
    pub(crate) fn bytes_of(&mut self, digest: &str) -> u64 {
        self.blob_requests().iter().filter(|hit| hit.path.contains(digest)).map(|hit| hit.bytes).sum()
    }

    /// Bytes of blobs sent as far as the log tells now, without waiting for what is under way.
    pub(crate) fn blob_bytes_so_far(&self) -> u64 {
        let log = self.log.lock().expect("no reader panics");
        log.hits.iter().filter(|hit| hit.path.contains("/blobs/sha256:")).map(|hit| hit.bytes).sum()
    }

    /// Forgets what was asked so far.
    pub(crate) fn reset_counts(&mut self) {
        self.settle();
        self.log.lock().expect("no reader panics").hits.clear();
    }

    /// Stores a blob under `repo`; the answer is its digest.
    pub(crate) fn push_blob(&self, repo: &str, bytes: &[u8]) -> String {
        let digest = digest_of(bytes);
        let begin = self.send("POST", &format!("/v2/{repo}/blobs/uploads/"), &[], &[]);
        assert_eq!(begin.status, 202, "{}", String::from_utf8_lossy(&begin.body));
        let location = begin.header("location").expect("an upload has a location").to_owned();
        let target = location.strip_prefix(&format!("http://{}", self.host())).unwrap_or(&location);
        let target = format!("{target}&digest={digest}");
        let typed = [("Content-Type", "application/octet-stream")];
        let done = self.send("PUT", &target, &typed, bytes);
        assert_eq!(done.status, 201, "{}", String::from_utf8_lossy(&done.body));
        digest
    }

    /// Stores a manifest byte for byte; the answer is its digest.
    pub(crate) fn push_manifest(&self, repo: &str, tag: &str, media_type: &str, bytes: &[u8]) -> String {
        let target = format!("/v2/{repo}/manifests/{tag}");
        let done = self.send("PUT", &target, &[("Content-Type", media_type)], bytes);
        assert_eq!(done.status, 201, "{}", String::from_utf8_lossy(&done.body));
        digest_of(bytes)
    }

    /// Copies `oci:DIR:TAG` to `name` with skopeo, digests unchanged.
    #[track_caller]
    pub(crate) fn push_layout(&self, layout: &str, name: &str) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "--all"]);
        command.args(["--preserve-digests", layout, &format!("docker://{}", self.reference(name))]);
        run(&mut command).ok();
    }

    fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> http::Answer {
        http::send(&self.host(), method, target, headers, body).expect("the registry answers")
    }

    /// Waits until everything that was answered before is in the log. The registry counts a request when its handler begins and
    /// when it ends, and logs it after that.
    fn settle(&mut self) {
        if self.child.is_none() {
            return;
        }
        let (mut last, mut since) = (None, Instant::now());
        let settled = becomes_true(CONDITION_TIMEOUT, || {
            let logged = self.log.lock().expect("no reader panics").logged;
            let (under_way, ended) = self.counters();
            if last != Some((under_way, ended)) {
                (last, since) = (Some((under_way, ended)), Instant::now());
            }
            logged >= ended && (under_way == 0 || since.elapsed() > KEPT_OPEN)
        });
        assert!(settled, "the access log lacks requests that the registry counts");
    }

    /// Requests for blobs and manifests that are under way, and that have ended.
    fn counters(&self) -> (u64, u64) {
        // By HTTP/1.0 nothing is sent in chunks.
        let mut text = String::new();
        let asked = TcpStream::connect(self.metrics.address()).and_then(|mut stream| {
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            stream.read_to_string(&mut text)
        });
        asked.expect("the registry shows its counters");
        let sum = |name: &str| {
            let handled = |line: &&str| {
                line.starts_with(name)
                    && (line.contains("handler=\"blob") || line.contains("handler=\"manifest"))
            };
            let values = text.lines().filter(handled).filter_map(|line| line.rsplit(' ').next());
            values.map(|value| value.parse::<f64>().expect("a number") as u64).sum()
        };
        (sum("registry_http_in_flight_requests{"), sum("registry_http_requests_total{"))
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        self.stop();
    }
}

fn follow(stdout: ChildStdout, log: &Mutex<Log>) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        if let Some(hit) = parse(&line) {
            let mut log = log.lock().expect("no reader panics");
            log.logged += u64::from(hit.path.contains("/blobs/") || hit.path.contains("/manifests/"));
            log.hits.push(hit);
        }
    }
}

/// `ADDRESS - - [TIME] "METHOD PATH PROTOCOL" STATUS BYTES "REFERER" "AGENT"`: the combined log format.
fn parse(line: &str) -> Option<Hit> {
    let mut quoted = line.split('"');
    let mut request = quoted.nth(1)?.split(' ');
    let mut numbers = quoted.next()?.split_whitespace();
    Some(Hit {
        method: request.next()?.to_owned(),
        path: request.next()?.to_owned(),
        status: numbers.next()?.parse().ok()?,
        bytes: numbers.next()?.parse().ok()?,
    })
}

/// Changes one byte in the middle of a file, as rot would.
pub(crate) fn flip_a_byte(file: &Path) {
    let mut bytes = fs::read(file).expect("the file is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(file, bytes).expect("the file is ours");
}
