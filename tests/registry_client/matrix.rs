//! Matrix of responses, by sender and request: right bytes or one clear error, and the number of requests.
//!
//! `cargo test --test integration matrix -- --nocapture` prints the table. The double below answers as it is told and holds no
//! opinion on what it is asked.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use super::*;

/// How an answer is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Partial,
    PartialOfUnknown,
    PartialShort,
    Whole,
    WholeWithRange,
    Refused(u16),
    Once(u16),
    Always(u16),
    Redirected,
    RedirectedForEver,
    Chunked,
    AwsChunked,
    Pieces,
}

const FORMS: [Form; 19] = [
    Form::Partial,
    Form::PartialOfUnknown,
    Form::PartialShort,
    Form::Whole,
    Form::WholeWithRange,
    Form::Refused(400),
    Form::Refused(405),
    Form::Refused(416),
    Form::Always(400),
    Form::Always(404),
    Form::Once(429),
    Form::Always(429),
    Form::Once(520),
    Form::Always(503),
    Form::Redirected,
    Form::RedirectedForEver,
    Form::Chunked,
    Form::AwsChunked,
    Form::Pieces,
];

/// Who answers so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Registry,
    Mirror,
    Storage,
    Tokens,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Range,
    Blob,
    Manifest,
    Referrers,
}

/// A request.
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) range: Option<(usize, usize)>,
    authorization: bool,
    /// The Authorization header, empty without one.
    pub(super) credential: String,
    /// The Host header.
    pub(super) host: String,
}

/// An answer.
pub(super) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    chunked: bool,
}

impl Reply {
    pub(super) fn new(status: u16, body: &[u8]) -> Self {
        Self { status, headers: Vec::new(), body: body.to_vec(), chunked: false }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

pub(super) type Answer = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A server, with what it was asked.
pub(super) struct Desk {
    host: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Desk {
    /// Serves until the test's process ends: its threads wait for requests and hold nothing.
    pub(super) fn open(answer: Arc<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = log.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, noted) = (answer.clone(), noted.clone());
                std::thread::spawn(move || converse(stream, &*answer, &noted));
            }
        });
        Self { host, log }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Method, path and range of each request.
    pub(super) fn lines(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub(super) fn asked(&self) -> usize {
        self.log.lock().unwrap().len()
    }
}

fn converse(mut stream: TcpStream, answer: &Answer, log: &Mutex<Vec<String>>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            let mut more = [0; 4096];
            match stream.read(&mut more).ok()? {
                0 => return None,
                read => buffer.extend_from_slice(&more[..read]),
            }
        };
        let head = String::from_utf8(buffer.drain(..end + 4).collect()).ok()?;
        let header = |name: &str| {
            let find = |line: &str| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            };
            head.lines().find_map(find)
        };
        let range = header("range").and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((first.parse().ok()?, last.parse::<usize>().ok()? + 1))
        });
        let mut words = head.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        log.lock().unwrap().push(format!("{method} {path} {range:?}"));
        let credential = header("authorization");
        let reply = answer(&Asked {
            path,
            range,
            authorization: credential.is_some(),
            credential: credential.unwrap_or_default(),
            host: header("host").unwrap_or_default(),
        });
        let mut text = format!("HTTP/1.1 {} x\r\n", reply.status);
        for (name, value) in &reply.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let framing = match reply.chunked {
            true => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
            false => format!("Content-Length: {}\r\n\r\n", reply.body.len()),
        };
        text.push_str(&framing);
        stream.write_all(text.as_bytes()).ok()?;
        if method == "HEAD" {
            continue;
        }
        if reply.chunked {
            for piece in reply.body.chunks(1000) {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).ok()?;
                stream.write_all(piece).ok()?;
                stream.write_all(b"\r\n").ok()?;
            }
            stream.write_all(b"0\r\n\r\n").ok()?;
        } else {
            stream.write_all(&reply.body).ok()?;
        }
    }
}

/// What is served everywhere.
struct Content {
    blob: Vec<u8>,
    manifest: Vec<u8>,
    referrers: Vec<u8>,
}

impl Content {
    fn new() -> Self {
        let entry = r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"a/b","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}"#;
        Self {
            blob: noise(20_000),
            manifest: format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","layers":[]}}"#).into_bytes(),
            referrers: format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{entry}]}}"#
            )
            .into_bytes(),
        }
    }

    /// The thing at a path, and its media type.
    fn find(&self, path: &str) -> Option<(&[u8], &'static str)> {
        match path {
            path if path.contains("/blobs/") => Some((&self.blob, "application/octet-stream")),
            path if path.contains("/manifests/") => Some((&self.manifest, MANIFEST)),
            path if path.contains("/referrers/") => {
                Some((&self.referrers, "application/vnd.oci.image.index.v1+json"))
            }
            _ => None,
        }
    }

    /// The answer as a good server gives it.
    fn plain(&self, asked: &Asked) -> Reply {
        let Some((bytes, kind)) = self.find(&asked.path) else { return Reply::new(404, b"{}") };
        match asked.range {
            Some((start, end)) => part(bytes, start, end, &bytes.len().to_string()),
            None => Reply::new(200, bytes),
        }
        .with("Content-Type", kind)
    }

    /// The answer in a form, to the request with this number.
    fn formed(&self, form: Form, number: usize, asked: &Asked) -> Reply {
        let Some((bytes, kind)) = self.find(&asked.path) else { return Reply::new(404, b"{}") };
        let (start, end) = asked.range.unwrap_or((0, bytes.len()));
        let size = bytes.len().to_string();
        let refusal = |status| Reply::new(status, br#"{"errors":[{"code":"FAULT","message":"as told"}]}"#);
        let reply = match form {
            Form::Partial => part(bytes, start, end, &size),
            Form::PartialOfUnknown => part(bytes, start, end, "*"),
            Form::PartialShort => part(bytes, start, start + (end - start).div_ceil(2), &size),
            Form::Whole => Reply::new(200, bytes),
            Form::WholeWithRange => Reply { status: 200, ..part(bytes, start, end, &size) },
            Form::Refused(status) if asked.range.is_some() || !asked.path.contains("/blobs/") => {
                refusal(status)
            }
            Form::Once(status) if number == 0 => refusal(status),
            Form::Always(status) => refusal(status),
            Form::Redirected if !asked.path.contains("again") => {
                Reply::new(307, b"").with("Location", format!("{}?again", asked.path))
            }
            Form::RedirectedForEver => Reply::new(307, b"").with("Location", asked.path.clone()),
            Form::Chunked => Reply { chunked: true, ..self.plain(asked) },
            Form::AwsChunked => self.plain(asked).with("Content-Encoding", "aws-chunked"),
            Form::Pieces => self.plain(asked).with("X-Dragonfly-Task-Id", "1"),
            Form::Refused(_) | Form::Once(_) | Form::Redirected => self.plain(asked),
        };
        match reply.headers.iter().any(|(name, _)| *name == "Content-Type") {
            true => reply,
            false => reply.with("Content-Type", kind),
        }
    }
}

fn part(bytes: &[u8], start: usize, end: usize, total: &str) -> Reply {
    let end = end.min(bytes.len());
    Reply::new(206, &bytes[start..end]).with("Content-Range", format!("bytes {start}-{}/{total}", end - 1))
}

/// What came of one cell, and how many requests each of the servers had.
struct Outcome {
    came: Result<(), String>,
    requests: usize,
}

/// Who is asked in a cell.
fn world(
    form: Form,
    place: Place,
    kind: Kind,
    content: &Arc<Content>,
) -> (Vec<Desk>, RegistryClient, tempfile::TempDir) {
    let is_of_kind = move |path: &str| match kind {
        Kind::Range | Kind::Blob => path.contains("/blobs/"),
        Kind::Manifest => path.contains("/manifests/"),
        Kind::Referrers => path.contains("/referrers/"),
    };
    let count = Arc::new(Mutex::new(0));
    let served = content.clone();
    let formed = move |asked: &Asked| {
        let mut count = count.lock().unwrap();
        let number = *count;
        *count += 1;
        drop(count);
        served.formed(form, number, asked)
    };
    let served = content.clone();
    let mut desks = Vec::new();
    let home = tempfile::tempdir().unwrap();
    match place {
        Place::Registry | Place::Mirror => {
            desks.push(Desk::open(Arc::new(move |asked| {
                if is_of_kind(&asked.path) { formed(asked) } else { served.plain(asked) }
            })));
            if place == Place::Mirror {
                let good = content.clone();
                desks.insert(0, Desk::open(Arc::new(move |asked| good.plain(asked))));
                let text = format!(
                    "[[registry]]\nprefix = {:?}\n[[registry.mirror]]\nlocation = {:?}\n",
                    desks[0].host, desks[1].host
                );
                std::fs::write(home.path().join("registries.conf"), text).unwrap();
            }
        }
        Place::Storage => {
            let storage = Desk::open(Arc::new(formed));
            let there = storage.host.clone();
            desks.push(Desk::open(Arc::new(move |asked| match is_of_kind(&asked.path) {
                true => Reply::new(307, b"").with("Location", format!("http://{there}{}", asked.path)),
                false => served.plain(asked),
            })));
            desks.push(storage);
        }
        Place::Tokens => {
            let tokens = Desk::open(Arc::new(move |asked| {
                // The token is what is served at the path of a manifest here.
                let token = br#"{"token":"abc","expires_in":"300"}"#.to_vec();
                let content = Content { blob: Vec::new(), manifest: token, referrers: Vec::new() };
                let path = asked.path.replace("/token", "/manifests/token");
                let reply = content.formed(
                    form,
                    usize::from(asked.path.contains("again")),
                    &Asked {
                        path,
                        range: None,
                        authorization: asked.authorization,
                        credential: String::new(),
                        host: asked.host.clone(),
                    },
                );
                let back = |(name, value): (&'static str, String)| {
                    (name, value.replace("/manifests/token", "/token"))
                };
                Reply { headers: reply.headers.into_iter().map(back).collect(), ..reply }
            }));
            let realm = format!("http://{}/token", tokens.host);
            desks.push(Desk::open(Arc::new(move |asked| match asked.authorization {
                true => served.plain(asked),
                false => Reply::new(401, b"{}")
                    .with("WWW-Authenticate", format!("Bearer realm=\"{realm}\",service=\"s\"")),
            })));
            desks.push(tokens);
        }
    }
    let places = ConfigPaths { user: Some(home.path().into()), ..ConfigPaths::default() };
    (desks, RegistryClient::new(RegistryOptions { places, ..options() }).unwrap(), home)
}

async fn tried(form: Form, place: Place, kind: Kind, content: &Arc<Content>) -> Outcome {
    let (desks, registry, _home) = world(form, place, kind, content);
    let reference: Reference = format!("{}/a/b:t", desks[0].host).parse().unwrap();
    let digest = Digest::sha256(&content.blob);
    let blob = registry.blob(&reference, &descriptor(&digest, content.blob.len() as u64));
    let read = async |range: ByteRange| {
        let bytes = read_vec(&FetchAll(blob.clone()), range).await.map_err(|error| error.chain())?;
        assert!(bytes == content.blob[range.start as usize..range.end as usize], "wrong bytes");
        Ok(())
    };
    let came = match kind {
        Kind::Range => read(ByteRange::new(1000, 9000)).await,
        Kind::Blob => read(ByteRange::new(0, 20_000)).await,
        Kind::Manifest => {
            let selector = ManifestSelector::Digest(Digest::sha256(&content.manifest));
            let fetched = registry.manifest(&reference, &selector).await;
            fetched
                .map(|fetched| assert_eq!(fetched.bytes, content.manifest))
                .map_err(|error| everything(&error))
        }
        Kind::Referrers => {
            let listed = registry.referrers(&reference, &digest, None).await;
            listed.map(|listed| assert_eq!(listed.len(), 1)).map_err(|error| everything(&error))
        }
    };
    Outcome { came, requests: desks.iter().map(Desk::asked).sum() }
}

/// Whether an answer of this form proves what was asked for, or passes.
fn is_enough(form: Form, place: Place, kind: Kind) -> bool {
    let is_blob = matches!(kind, Kind::Range | Kind::Blob);
    match (form, place) {
        // The registry itself has it.
        (_, Place::Mirror) => true,
        (Form::Always(_) | Form::RedirectedForEver, _) => false,
        // A number of requests is no number of tokens: the double answers each with the same.
        (Form::Once(_), Place::Tokens) => false,
        (Form::Refused(_), Place::Tokens) => false,
        (Form::Partial | Form::PartialOfUnknown | Form::PartialShort, Place::Tokens) => false,
        (Form::Refused(_), _) => is_blob,
        (Form::PartialShort, _) => is_blob,
        // A document without a range has its digest, a list has none.
        (Form::PartialOfUnknown, _) => is_blob,
        _ => true,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_an_answer_is_right_bytes_or_one_clear_error_at_a_bounded_cost() {
    let content = Arc::new(Content::new());
    println!("{:<22} {:<10} {:<10} {:>8}  came", "form", "place", "kind", "requests");
    let mut wrong = Vec::new();
    for form in FORMS {
        for place in [Place::Registry, Place::Mirror, Place::Storage, Place::Tokens] {
            for kind in [Kind::Range, Kind::Blob, Kind::Manifest, Kind::Referrers] {
                let Outcome { came, requests } = tried(form, place, kind, &content).await;
                let shown = came.as_ref().map_or_else(|error| error.as_str(), |()| "right bytes");
                let [form_name, place_name, kind_name] =
                    [format!("{form:?}"), format!("{place:?}"), format!("{kind:?}")];
                println!("{form_name:<22} {place_name:<10} {kind_name:<10} {requests:>8}  {shown}");
                // A list that cannot be had by the API is looked for under its tag, which is another question.
                let is_right = match kind {
                    Kind::Referrers if !is_enough(form, place, kind) => true,
                    _ => came.is_ok() == is_enough(form, place, kind),
                };
                // Five tries, each with a login and a redirect.
                if !is_right || requests > 20 {
                    wrong.push(format!("{form:?} {place:?} {kind:?}: {requests} requests, {shown}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A cache that fetches pieces of at least 4 MiB for every range it is asked for.
#[tokio::test]
async fn a_scan_through_a_cache_of_pieces_costs_its_origin_each_piece_once() {
    const PIECE: usize = 4 * 1024 * 1024;
    let bytes = noise(17_000_000);
    let fetched: Arc<Mutex<std::collections::BTreeMap<(usize, usize), usize>>> = Arc::default();
    let (served, noted) = (bytes.clone(), fetched.clone());
    let mirror = Desk::open(Arc::new(move |asked| {
        let (start, end) = asked.range.unwrap_or((0, served.len()));
        // Each range is a task of its own, which fetches whole pieces.
        noted.lock().unwrap().insert((start, end), (end - start).max(PIECE.min(served.len() - start)));
        part(&served, start, end, &served.len().to_string()).with("X-Dragonfly-Task-Id", format!("{start}"))
    }));
    let home = tempfile::tempdir().unwrap();
    let text = format!(
        "[[registry]]\nprefix = \"127.0.0.1:9\"\n[[registry.mirror]]\nlocation = {:?}\n",
        mirror.host
    );
    std::fs::write(home.path().join("registries.conf"), text).unwrap();
    let places = ConfigPaths { user: Some(home.path().into()), ..ConfigPaths::default() };
    let registry = RegistryClient::new(RegistryOptions { places, ..options() }).unwrap();
    let digest = Digest::sha256(&bytes);
    let blob = registry.blob(&"127.0.0.1:9/a/b:t".parse().unwrap(), &descriptor(&digest, bytes.len() as u64));
    let mut at = 0;
    let mut deliveries = 0;
    while at < bytes.len() as u64 {
        let delivery =
            blob.fetch(ByteRange::new(at, (at + 256 * 1024).min(bytes.len() as u64))).await.unwrap();
        let end = delivery.range.end;
        assert!(collect(delivery).await.unwrap().ends_with(&bytes[(end - 10) as usize..end as usize]));
        (at, deliveries) = (end, deliveries + 1);
    }
    let origin: usize = fetched.lock().unwrap().values().sum();
    println!("{deliveries} deliveries, origin {origin} bytes of {}", bytes.len());
    // The first answer makes the cache known, and its piece is asked for once more.
    assert!(origin <= bytes.len() + PIECE + PIECE / 4, "{origin}");
    assert!(deliveries <= 7);
}
