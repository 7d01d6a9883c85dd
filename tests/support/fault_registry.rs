//! Fault registry: misbehaves in every known way, and refuses the requests that a real registry may refuse.
//!
//! It must never be kinder than reality: a request that is sloppy (an open or a double range, a Referer, an accepted
//! encoding, a credential at the wrong host) is answered with 400, recorded, and fails the test when the registry is
//! dropped. The idea: std::net only, a thread for each connection, all state behind one lock, and a record of every
//! request that is written before its bytes are sent, so that a test never counts too little.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test crate that includes this file uses another part of it"
)]
#![allow(clippy::unwrap_used, reason = "a double that cannot go on should fail the test")]

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use fault::{Fault, Place};
use http::{Answer, Head, basic_header, read_head, split};
use nix::sys::socket::{setsockopt, sockopt};
use ocifs::oci::Digest;
pub use port::ReservedPort;
pub use weather::Weather;

#[path = "fault_registry/fault.rs"]
mod fault;
#[path = "fault_registry/http.rs"]
mod http;
#[path = "port.rs"]
mod port;
#[path = "fault_registry/weather.rs"]
mod weather;
#[path = "fault_registry/writes.rs"]
mod writes;

/// A request as it was answered.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Half-open: the bytes of a blob that were asked for, all of them where there was no Range.
    pub range: Option<(u64, u64)>,
    /// Whether there was a Range header.
    pub is_ranged: bool,
    pub status: u16,
    /// Bytes of the body.
    pub bytes_sent: u64,
    /// Whether there was an Authorization header.
    pub authorization: bool,
    /// Whether the second host was asked.
    pub cdn: bool,
}

/// The registry, on two ports of 127.0.0.1.
pub struct FaultRegistry {
    shared: Arc<Shared>,
    /// They stay its own while it is down.
    _ports: [ReservedPort; 2],
    /// What listens, and the thread that accepts.
    doors: Mutex<Vec<(TcpListener, JoinHandle<()>)>>,
}

struct Shared {
    registry: SocketAddr,
    cdn: SocketAddr,
    down: AtomicBool,
    state: Mutex<State>,
}

/// A media type and the bytes.
type Document = (String, Arc<Vec<u8>>);

#[derive(Default)]
struct State {
    blobs: HashMap<String, Arc<Vec<u8>>>,
    /// By repository and by tag or digest.
    manifests: HashMap<(String, String), Document>,
    /// With how often each still applies.
    faults: Vec<(Fault, u32)>,
    requests: Vec<Request>,
    /// How often `requests` was emptied: a record is found again by this and its place.
    emptied: u64,
    /// Requests that got silence for an answer. They are not among `requests`.
    unanswered: usize,
    violations: Vec<String>,
    /// Faults to come, with how many requests for blobs are answered before.
    coming: Vec<(u64, Fault)>,
    /// What befalls requests by chance.
    weather: Option<Weather>,
    /// When the registry's clock began, and by how much it was moved on since.
    clock: Clock,
    /// By token: its scope and its birth by the registry's clock.
    tokens: HashMap<String, (String, Duration)>,
    tokens_made: u64,
    /// Uploads that began and did not end.
    uploads: Vec<String>,
    uploads_made: u64,
    /// Part of every signed URL.
    signature: u64,
    streaming: usize,
    most_streaming: usize,
    connections: Vec<TcpStream>,
}

/// The time by which tokens and signed URLs end: the real one, and what a test adds to it.
struct Clock {
    began: Instant,
    added: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        Self { began: Instant::now(), added: Duration::ZERO }
    }
}

impl Clock {
    fn now(&self) -> Duration {
        self.began.elapsed() + self.added
    }
}

impl FaultRegistry {
    pub fn start() -> Self {
        let ports = [ReservedPort::new(), ReservedPort::new()];
        let [registry, cdn] = ports.each_ref().map(ReservedPort::address);
        let (down, state) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { registry, cdn, down, state });
        let this = Self { shared, _ports: ports, doors: Mutex::default() };
        this.come_up();
        this
    }

    /// Serves what a layout of manifests holds, by their tags and digests.
    pub fn of_layout(layout: &std::path::Path, repo: &str) -> Self {
        let this = Self::start();
        for blob in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
            this.push_blob(std::fs::read(blob.unwrap().path()).unwrap());
        }
        let index = std::fs::read(layout.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        for entry in index["manifests"].as_array().unwrap() {
            let digest = entry["digest"].as_str().unwrap();
            let bytes = std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))).unwrap();
            let tag = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap();
            this.push_manifest(repo, tag, entry["mediaType"].as_str().unwrap(), &bytes);
        }
        this
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.shared.registry.to_string()
    }

    /// The host of signed URLs.
    pub fn cdn_host(&self) -> String {
        self.shared.cdn.to_string()
    }

    pub fn push_blob(&self, bytes: impl Into<Vec<u8>>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        self.push_blob_as(&digest, bytes);
        digest
    }

    /// Serves bytes under a digest that need not be theirs.
    pub fn push_blob_as(&self, digest: &Digest, bytes: impl Into<Vec<u8>>) {
        self.shared.lock().blobs.insert(digest.to_string(), Arc::new(bytes.into()));
    }

    pub fn push_manifest(&self, repo: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        for name in [tag, digest.as_str()] {
            self.push_manifest_as(repo, name, media_type, bytes);
        }
        digest
    }

    /// Serves a document under a tag or digest that need not be its own.
    pub fn push_manifest_as(&self, repo: &str, name: &str, media_type: &str, bytes: &[u8]) {
        let document = (media_type.to_owned(), Arc::new(bytes.to_vec()));
        self.shared.lock().manifests.insert((repo.to_owned(), name.to_owned()), document);
    }

    /// Has this blob no longer.
    pub fn delete_blob(&self, digest: &Digest) {
        self.shared.lock().blobs.remove(digest.as_str());
    }

    /// Every request so far, in the order of their heads.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// Those for blobs, redirects and the second host included.
    pub fn blob_requests(&self) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path.contains("/blobs/")).collect()
    }

    /// Those for manifests.
    pub fn manifest_requests(&self) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path.contains("/manifests/")).collect()
    }

    /// How many requests got silence for an answer. No other count has them.
    pub fn unanswered(&self) -> usize {
        self.shared.lock().unanswered
    }

    /// Those for tokens.
    pub fn token_requests(&self) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path == "/token").collect()
    }

    /// Bytes of blobs that were sent.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_requests().iter().map(|request| request.bytes_sent).sum()
    }

    /// How many bodies of blobs were on their way at once, at most.
    pub fn most_streaming(&self) -> usize {
        self.shared.lock().most_streaming
    }

    /// Waits until no body of a blob was on its way for so long.
    pub fn rest(&self, quiet: Duration) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut since = (Instant::now(), self.blob_bytes());
        while since.0.elapsed() < quiet {
            assert!(Instant::now() < deadline, "bodies of blobs do not end");
            std::thread::sleep(Duration::from_millis(20));
            let bytes = self.blob_bytes();
            if self.shared.lock().streaming > 0 || bytes != since.1 {
                since = (Instant::now(), bytes);
            }
        }
    }

    pub fn reset_counts(&self) {
        let mut state = self.shared.lock();
        state.requests.clear();
        state.emptied += 1;
        state.unanswered = 0;
        state.most_streaming = state.streaming;
    }

    /// Misbehaves so until `clear`, or as many times as the fault says.
    pub fn set(&self, fault: Fault) {
        let times = match &fault {
            Fault::TruncateAfter { times, .. }
            | Fault::Status { times, .. }
            | Fault::StatusOf { times, .. } => *times,
            _ => u32::MAX,
        };
        self.set_for(fault, times);
    }

    /// Misbehaves so for this many requests.
    pub fn set_for(&self, fault: Fault, times: u32) {
        self.shared.lock().faults.push((fault, times));
    }

    /// Behaves again.
    pub fn clear(&self) {
        let mut state = self.shared.lock();
        state.faults.clear();
        state.coming.clear();
        state.weather = None;
    }

    /// Misbehaves so after this many more requests for blobs.
    pub fn set_after(&self, requests: u64, fault: Fault) {
        self.shared.lock().coming.push((requests, fault));
    }

    /// From now on, faults befall requests for blobs by chance.
    pub fn set_weather(&self, weather: Weather) {
        self.shared.lock().weather = Some(weather);
    }

    /// How many requests the weather befell so far.
    pub fn befallen(&self) -> u64 {
        self.shared.lock().weather.as_ref().map_or(0, Weather::befallen)
    }

    /// Moves the clock on by which tokens and signed URLs end.
    pub fn advance(&self, by: Duration) {
        self.shared.lock().clock.added += by;
    }

    /// From now on every token that was given is refused.
    pub fn revoke_tokens(&self) {
        self.shared.lock().tokens.clear();
    }

    /// From now on every signed URL that was given is refused.
    pub fn expire_signed_urls(&self) {
        self.shared.lock().signature += 1;
    }

    /// Cuts all connections and refuses new ones.
    pub fn go_down(&self) {
        self.shared.down.store(true, Ordering::SeqCst);
        for (listener, thread) in self.doors.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // Ends `accept`, and the listening in every process: a program that another test starts holds the socket
            // from its fork to its exec.
            rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
            thread.join().ok();
        }
        for connection in self.shared.lock().connections.drain(..) {
            // The peer may have closed it already.
            connection.shutdown(Shutdown::Both).ok();
        }
    }

    /// Listens again on the same ports.
    pub fn come_up(&self) {
        self.shared.down.store(false, Ordering::SeqCst);
        for (address, at_cdn) in [(self.shared.registry, false), (self.shared.cdn, true)] {
            let (listener, shared) = (TcpListener::bind(address).unwrap(), self.shared.clone());
            let accepting = listener.try_clone().unwrap();
            let thread = std::thread::spawn(move || shared.accept(&accepting, at_cdn));
            self.doors.lock().unwrap_or_else(PoisonError::into_inner).push((listener, thread));
        }
    }
}

impl Drop for FaultRegistry {
    fn drop(&mut self) {
        self.go_down();
        let violations = std::mem::take(&mut self.shared.lock().violations);
        if !violations.is_empty() && !std::thread::panicking() {
            panic!("requests that a registry may refuse: {violations:#?}");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener, at_cdn: bool) {
        for connection in listener.incoming() {
            if self.down.load(Ordering::SeqCst) {
                return;
            }
            let Ok(connection) = connection else { continue };
            if let Ok(clone) = connection.try_clone() {
                self.lock().connections.push(clone);
            }
            let shared = self.clone();
            // Ends when the connection does, which `go_down` sees to.
            std::thread::spawn(move || {
                let ended = shared.converse(&connection, at_cdn);
                shared.forget(&connection);
                // A close is a reset when nobody else holds the connection and nothing is to be waited for.
                if ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionAborted) {
                    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
                    setsockopt(&connection, sockopt::Linger, &at_once).ok();
                } else {
                    connection.shutdown(Shutdown::Both).ok();
                }
            });
        }
    }

    /// Holds this connection no longer.
    fn forget(&self, connection: &TcpStream) {
        if let Ok(peer) = connection.peer_addr() {
            self.lock().connections.retain(|other| other.peer_addr().is_ok_and(|it| it != peer));
        }
    }

    /// Answers requests until one side closes.
    fn converse(&self, mut connection: &TcpStream, at_cdn: bool) -> std::io::Result<()> {
        connection.set_nodelay(true)?;
        let mut buffer = Vec::new();
        while let Some(head) = read_head(&mut connection, &mut buffer)? {
            if !self.respond(connection, &head, at_cdn)? {
                break;
            }
        }
        Ok(())
    }

    /// Sends one answer; whether the connection can go on.
    fn respond(&self, mut connection: &TcpStream, head: &Head, at_cdn: bool) -> std::io::Result<bool> {
        let mut state = self.lock();
        let storm = state.draw(head);
        let mut answer = self.decide(&mut state, head, at_cdn);
        if answer.status == 0 {
            state.unanswered += 1;
            state.calm(storm);
            drop(state);
            wait_for_end(connection);
            return Ok(false);
        }
        let is_blob = answer.is_blob;
        let declared = {
            if is_blob && state.has(|fault| matches!(fault, Fault::FlipBit)).is_some() {
                let middle = answer.body.len() / 2;
                answer.body[middle] ^= 1;
            }
            if is_blob
                && let Some(Fault::FlipBitAt(at)) = state.has(|fault| matches!(fault, Fault::FlipBitAt(_)))
            {
                let at = at as usize % answer.body.len();
                answer.body[at] ^= 4;
            }
            if is_blob && state.has(|fault| matches!(fault, Fault::LongBody)).is_some() {
                answer.body.push(b'!');
            }
            if is_blob
                && let Some(Fault::ShortBody { by }) =
                    state.has(|fault| matches!(fault, Fault::ShortBody { .. }))
            {
                answer.body.truncate(answer.body.len().saturating_sub(by as usize));
            }
            if is_blob && state.has(|fault| matches!(fault, Fault::ContentEncodingGzip)).is_some() {
                answer.body = crate::encode::gzip(&answer.body);
                answer = answer.with("Content-Encoding", "gzip");
            }
            answer.body.len()
        };
        let warning = match state.has(|fault| matches!(fault, Fault::Warning(_))) {
            Some(Fault::Warning(value)) => Some(value),
            _ => None,
        };
        let chunked = answer.status < 300 && state.has(|fault| matches!(fault, Fault::Chunked)).is_some();
        let mut ends_after = None;
        let (mut stalls, mut resets) = (false, false);
        let mut rate = None;
        let mut delay = Duration::ZERO;
        if is_blob {
            if let Some(Fault::FirstByteAfter(late)) =
                state.has(|fault| matches!(fault, Fault::FirstByteAfter(_)))
            {
                delay = late;
            }
            if let Some(Fault::TruncateAfter { bytes, .. }) =
                state.has(|fault| matches!(fault, Fault::TruncateAfter { .. }))
            {
                ends_after = Some(bytes);
            }
            if let Some(Fault::StallAfter(bytes)) = state.has(|fault| matches!(fault, Fault::StallAfter(_))) {
                (ends_after, stalls) = (Some(bytes), true);
            }
            if let Some(Fault::ResetAfter(bytes)) = state.has(|fault| matches!(fault, Fault::ResetAfter(_))) {
                (ends_after, resets) = (Some(bytes), true);
            }
            if let Some(Fault::SlowBytesPerSecond(bytes)) =
                state.has(|fault| matches!(fault, Fault::SlowBytesPerSecond(_)))
            {
                rate = Some(bytes);
            }
            state.streaming += 1;
            state.most_streaming = state.most_streaming.max(state.streaming);
        }
        let record = (state.emptied, state.requests.len());
        let range = head.range().ok().flatten().or_else(|| state.whole(head));
        state.requests.push(Request {
            method: head.method.clone(),
            path: head.path.clone(),
            range,
            is_ranged: head.header("range").is_some(),
            status: answer.status,
            bytes_sent: 0,
            authorization: head.header("authorization").is_some(),
            cdn: at_cdn,
        });
        state.calm(storm);
        drop(state);

        std::thread::sleep(delay);
        let mut text = format!("HTTP/1.1 {} x\r\n", answer.status);
        if let Some(warning) = warning {
            text.push_str(&format!("Warning: {warning}\r\n"));
        }
        for (name, value) in &answer.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&if chunked {
            "Transfer-Encoding: chunked\r\n\r\n".to_owned()
        } else {
            format!("Content-Length: {declared}\r\n\r\n")
        });
        let sent = connection.write_all(text.as_bytes()).and_then(|()| {
            if head.method == "HEAD" {
                return Ok(true);
            }
            let limit = ends_after.map_or(declared, |limit| declared.min(limit as usize));
            let step = rate.map_or(64 * 1024, |rate| (rate / 20).max(1) as usize);
            for piece in answer.body[..limit].chunks(step) {
                self.count(record, piece.len() as u64);
                if chunked {
                    connection.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
                    connection.write_all(piece)?;
                    connection.write_all(b"\r\n")?;
                } else {
                    connection.write_all(piece)?;
                }
                if rate.is_some() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            if limit == declared && chunked {
                connection.write_all(b"0\r\n\r\n")?;
            }
            Ok(limit == declared)
        });
        if stalls && matches!(sent, Ok(false)) {
            wait_for_end(connection);
        }
        if is_blob {
            self.lock().streaming -= 1;
        }
        if resets && matches!(sent, Ok(false)) {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        sent
    }

    /// Counts bytes before they are written. A record is gone when the counts were reset meanwhile, and in its place may be
    /// another one.
    fn count(&self, (emptied, place): (u64, usize), bytes: u64) {
        let mut state = self.lock();
        if state.emptied == emptied {
            state.requests[place].bytes_sent += bytes;
        }
    }

    fn decide(&self, state: &mut State, head: &Head, at_cdn: bool) -> Answer {
        if let Err(reason) = self.check(head, at_cdn) {
            state.violations.push(format!("{} {}: {reason}", head.method, head.path));
            return Answer::error(400, "UNSUPPORTED", "strict");
        }
        if at_cdn && head.method == "PUT" {
            return state.cdn_upload(head);
        }
        if state.has(|fault| matches!(fault, Fault::SignedUrlsEnd)).is_some() {
            state.signature += 1;
        }
        if at_cdn {
            return state.cdn_blob(head);
        }
        if state.has(|fault| matches!(fault, Fault::TokensEnd)).is_some() {
            state.tokens.clear();
        }
        if head.path == "/token" {
            return state.token(head, &self.cdn.to_string());
        }
        let Some((repo, kind, name)) = split(&head.path) else {
            return Answer::error(404, "NAME_UNKNOWN", "no such place");
        };
        if let Some(refusal) = state.authorize(head, repo, &self.registry.to_string()) {
            return refusal;
        }
        let is_silent = |fault: &Fault| matches!(fault, Fault::SilentTo(method) if *method == head.method);
        if state.has(|fault| matches!(fault, Fault::Silent) || is_silent(fault)).is_some() {
            return Answer::new(0, "");
        }
        if let Some(answer) = state.status() {
            return answer;
        }
        if let Some(Fault::StatusOf { code, .. }) =
            state.has(|fault| matches!(fault, Fault::StatusOf { method, .. } if *method == head.method))
        {
            return Answer::error(code, "FAULT", "as it was told");
        }
        if state.has(|fault| matches!(fault, Fault::Html)).is_some() {
            return Answer::html();
        }
        match (head.method.as_str(), kind) {
            ("HEAD", "manifests") => return state.head_manifest(repo, name),
            ("HEAD", "blobs") => return state.head_blob(name),
            ("POST", _) => return state.begin_upload(repo, [self.registry, self.cdn]),
            ("PUT", "uploads") => return state.finish_upload(head, name),
            ("PUT", _) => return state.put_manifest(head, repo, name),
            _ => {}
        }
        match kind {
            "manifests" => state.manifest(head, repo, name),
            "referrers" => state.referrers(head, repo, name, &self.cdn.to_string()),
            _ => {
                if let Some(fault) = state.has(|fault| {
                    matches!(
                        fault,
                        Fault::RedirectTo307SecondHost
                            | Fault::RedirectLoop
                            | Fault::RedirectOn
                            | Fault::RedirectTo(_)
                    )
                }) {
                    let location = match fault {
                        Fault::RedirectTo(url) => url,
                        Fault::RedirectLoop => head.path.clone(),
                        Fault::RedirectOn => format!("{}?{}on", head.path, head.query),
                        _ => {
                            let (signature, now) = (state.signature, state.clock.now().as_millis());
                            format!("http://{}/cdn/blobs/{name}?sig={signature}&at={now}", self.cdn)
                        }
                    };
                    return Answer::new(307, "").with("Location", location);
                }
                state.blob(head, name)
            }
        }
    }

    /// What a strict server may insist on.
    fn check(&self, head: &Head, at_cdn: bool) -> Result<(), String> {
        let address = if at_cdn { self.cdn } else { self.registry };
        if head.header("host") != Some(address.to_string().as_str()) {
            return Err(format!("host {:?}", head.header("host")));
        }
        if head.path != "/token" {
            writes::check(head)?;
        }
        if let Some(referer) = head.header("referer") {
            return Err(format!("referer {referer}"));
        }
        if at_cdn && head.header("authorization").is_some() {
            return Err("authorization at the second host".into());
        }
        let is_blob = head.method == "GET" && head.path.contains("/blobs/");
        if is_blob && head.header("accept-encoding") != Some("identity") {
            return Err(format!("accept-encoding {:?}", head.header("accept-encoding")));
        }
        if is_blob && head.header("accept") != Some("*/*") {
            return Err(format!("accept {:?}", head.header("accept")));
        }
        match head.range()? {
            Some(_) if !is_blob => Err("a range of something that is no blob".into()),
            _ => Ok(()),
        }
    }
}

impl State {
    /// The first such fault that still applies, used up by one.
    fn has(&mut self, wanted: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let (fault, times) = self.faults.iter_mut().find(|(fault, times)| *times > 0 && wanted(fault))?;
        if *times != u32::MAX {
            *times -= 1;
        }
        Some(fault.clone())
    }

    /// Such a fault, not used up.
    fn peek(&self, wanted: impl Fn(&Fault) -> bool) -> Option<&Fault> {
        self.faults.iter().map(|(fault, _)| fault).find(|fault| wanted(fault))
    }

    fn manifest(&mut self, head: &Head, repo: &str, name: &str) -> Answer {
        if let Some(Fault::BigManifest(bytes)) = self.has(|fault| matches!(fault, Fault::BigManifest(_))) {
            let mut body = vec![b' '; bytes as usize];
            (body[0], body[bytes as usize - 1]) = (b'{', b'}');
            return Answer::new(200, body).with("Content-Type", "application/vnd.oci.image.manifest.v1+json");
        }
        let Some((media_type, bytes)) = self.manifests.get(&(repo.to_owned(), name.to_owned())).cloned()
        else {
            return Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown to this registry");
        };
        let accepted = head.header("accept").unwrap_or_default();
        if !accepted.contains(media_type.split(';').next().unwrap_or_default()) {
            self.violations.push(format!("{media_type} is not among {accepted}"));
            return Answer::error(404, "MANIFEST_UNKNOWN", "not in this form");
        }
        let header = match self.has(|fault| matches!(fault, Fault::ManifestDigestHeader(_))) {
            Some(Fault::ManifestDigestHeader(text)) => text,
            _ => Digest::sha256(&bytes).to_string(),
        };
        Answer::new(200, bytes.to_vec())
            .with("Content-Type", media_type)
            .with("Docker-Content-Digest", header)
    }

    /// The answer of a registry that was told to refuse.
    fn status(&mut self) -> Option<Answer> {
        let Some(Fault::Status { code, retry_after, .. }) =
            self.has(|fault| matches!(fault, Fault::Status { .. }))
        else {
            return None;
        };
        let answer = Answer::error(code, "FAULT", "as it was told");
        Some(match retry_after {
            Some(value) => answer.with("Retry-After", value),
            None => answer,
        })
    }

    /// Whether the query of a signed URL is one that is good now.
    fn is_signed(&self, query: &str) -> bool {
        let at = query.strip_prefix(&format!("sig={}&at=", self.signature));
        let Some(at) = at.and_then(|at| at.parse().ok()).map(Duration::from_millis) else { return false };
        let lifetime = match self.peek(|fault| matches!(fault, Fault::SignedUrlsLive(_))) {
            Some(Fault::SignedUrlsLive(lifetime)) => *lifetime,
            _ => Duration::MAX,
        };
        self.clock.now().saturating_sub(at) < lifetime
    }

    fn cdn_blob(&mut self, head: &Head) -> Answer {
        if let Some(answer) = self.status() {
            return answer;
        }
        if !self.is_signed(&head.query) {
            let body = "<Error><Code>AccessDenied</Code><StringToSign>5ecret</StringToSign></Error>";
            return Answer::new(403, body).with("Content-Type", "application/xml");
        }
        match head.path.strip_prefix("/cdn/blobs/") {
            Some(name) => self.blob(head, name),
            None => Answer::error(404, "BLOB_UNKNOWN", "no such place"),
        }
    }

    fn blob(&mut self, head: &Head, name: &str) -> Answer {
        let Some(bytes) = self.blobs.get(name).cloned() else {
            return Answer::error(404, "BLOB_UNKNOWN", "blob unknown to this registry");
        };
        let size = bytes.len() as u64;
        if let Some(Fault::Unsatisfiable { size }) =
            self.has(|fault| matches!(fault, Fault::Unsatisfiable { .. }))
        {
            return Answer::error(416, "RANGE_INVALID", "past the end")
                .with("Content-Range", format!("bytes */{size}"));
        }
        // The check came first: there is one closed range, or none.
        let Some((mut start, mut end)) = head.range().unwrap() else {
            return self.labelled(Answer::new(200, bytes.to_vec()));
        };
        if let Some(Fault::RefuseRange(code)) = self.has(|fault| matches!(fault, Fault::RefuseRange(_))) {
            return Answer::error(code, "UNSUPPORTED", "no ranges here");
        }
        let answer = if self.has(|fault| matches!(fault, Fault::IgnoreRange)).is_some() {
            Answer::new(200, bytes.to_vec())
        } else if start >= size {
            return Answer::error(416, "RANGE_INVALID", "past the end")
                .with("Content-Range", format!("bytes */{size}"));
        } else {
            end = end.min(size);
            if let Some(Fault::AtMost(most)) = self.has(|fault| matches!(fault, Fault::AtMost(_))) {
                end = end.min(start + most);
            }
            if self.has(|fault| matches!(fault, Fault::WrongContentRange)).is_some() {
                // Another range of the same length where there is one, else one of another blob.
                if (start, end) == (0, size) {
                    return Answer::new(206, bytes.to_vec())
                        .with("Content-Range", format!("bytes 0-{}/{}", end - 1, size + 1));
                }
                (start, end) = if end < size { (start + 1, end + 1) } else { (start - 1, end - 1) };
            }
            let total = match self.has(|fault| matches!(fault, Fault::UnknownTotal)) {
                Some(_) => "*".to_owned(),
                None => size.to_string(),
            };
            let content_range = format!("bytes {start}-{}/{total}", end - 1);
            let body = &bytes[start as usize..end as usize];
            if self.has(|fault| matches!(fault, Fault::Multipart)).is_some() {
                return Answer::multipart(body, &content_range);
            }
            let has = |state: &mut Self, wanted: &Fault| state.has(|fault| fault == wanted).is_some();
            if has(self, &Fault::OkSlice) {
                return self.labelled(Answer::new(200, body));
            }
            let status = if has(self, &Fault::OkWithRange) { 200 } else { 206 };
            Answer::new(status, body).with("Content-Range", content_range)
        };
        self.labelled(answer)
    }

    /// The answer with the headers that a blob has here.
    fn labelled(&mut self, mut answer: Answer) -> Answer {
        answer.is_blob = !answer.body.is_empty();
        if let Some(Fault::ContentEncoding(name)) =
            self.has(|fault| matches!(fault, Fault::ContentEncoding(_)))
        {
            answer = answer.with("Content-Encoding", name);
        }
        if self.has(|fault| matches!(fault, Fault::Pieces)).is_some() {
            answer = answer.with("X-Dragonfly-Task-Id", "1");
        }
        answer.with("Content-Type", "application/octet-stream")
    }

    /// All bytes of the blob that a request is for.
    fn whole(&self, head: &Head) -> Option<(u64, u64)> {
        let name = head.path.rsplit_once("/blobs/").filter(|_| head.method == "GET")?.1;
        Some((0, self.blobs.get(name)?.len() as u64))
    }

    /// The refusal for a request without the right login.
    fn authorize(&mut self, head: &Head, repo: &str, host: &str) -> Option<Answer> {
        let given = head.header("authorization");
        let writes = matches!(head.method.as_str(), "POST" | "PUT");
        let scope = format!("repository:{repo}:{}", if writes { "pull,push" } else { "pull" });
        let bearer = self.peek(|fault| matches!(fault, Fault::RequireBearer { .. })).cloned();
        if let Some(Fault::RequireBearer { token_lifetime }) = bearer {
            let token = given.and_then(|header| header.strip_prefix("Bearer "));
            let valid = token.and_then(|token| self.tokens.get(token)).is_some_and(|(of, birth)| {
                let age = self.clock.now().saturating_sub(*birth);
                // Who may write may read.
                (*of == scope || *of == format!("{scope},push")) && age < token_lifetime
            });
            let realm = match self.peek(|fault| matches!(fault, Fault::Realm(_))) {
                Some(Fault::Realm(realm)) => realm.clone(),
                _ => format!("http://{host}/token"),
            };
            let challenge = format!(r#"Bearer realm="{realm}",service="fault",scope="{scope}""#);
            return (!valid).then(|| {
                Answer::error(401, "UNAUTHORIZED", "a token is wanted").with("WWW-Authenticate", challenge)
            });
        }
        let basic = self.peek(|fault| matches!(fault, Fault::RequireBasic { .. })).cloned();
        if let Some(Fault::RequireBasic { user, pass }) = basic
            && given != Some(basic_header(&user, &pass).as_str())
        {
            let refusal = Answer::error(401, "UNAUTHORIZED", "a password is wanted");
            return Some(refusal.with("WWW-Authenticate", r#"Basic realm="fault""#));
        }
        None
    }

    fn token(&mut self, head: &Head, cdn: &str) -> Answer {
        if self.has(|fault| matches!(fault, Fault::TokenServerDown)).is_some() {
            return Answer::new(503, "down for the night");
        }
        if self.has(|fault| matches!(fault, Fault::TokenServerHtml)).is_some() {
            return Answer::html();
        }
        if self.has(|fault| matches!(fault, Fault::TokenServerRedirects)).is_some() {
            return Answer::new(307, "").with("Location", format!("http://{cdn}/token"));
        }
        let parameters = head.parameters();
        let given = |name: &str| parameters.get(name).map(String::as_str).unwrap_or_default();
        if let Some(Fault::RequireBasic { user, pass }) =
            self.peek(|fault| matches!(fault, Fault::RequireBasic { .. }))
        {
            let granted = match head.method.as_str() {
                "POST" => given("grant_type") == "refresh_token" && given("refresh_token") == pass,
                _ => head.header("authorization") == Some(basic_header(user, pass).as_str()),
            };
            if !granted {
                return Answer::new(401, r#"{"details":"incorrect username or password"}"#);
            }
        }
        if given("service") != "fault" {
            self.violations.push(format!("token for service {:?}", given("service")));
        }
        self.tokens_made += 1;
        let token = format!("token-{}", self.tokens_made);
        self.tokens.insert(token.clone(), (given("scope").to_owned(), self.clock.now()));
        Answer::new(200, format!(r#"{{"token":"{token}","expires_in":300}}"#))
    }
}

/// Blocks until the peer closes or `go_down` does: nobody sends anything now.
fn wait_for_end(mut connection: &TcpStream) {
    while matches!(connection.read(&mut [0; 64]), Ok(read) if read > 0) {}
}
