//! Messages of the program about registries: each names the component at fault, and its hint fits.

use std::path::Path;
use std::process::Command;

use super::matrix::{Asked, Desk, Reply};
use super::*;
use crate::process::{CONDITION_TIMEOUT, Finished, Need, able, run, run_within, sh};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image of one tar layer.
pub(super) struct Image {
    pub(super) manifest: Vec<u8>,
    pub(super) layer: Vec<u8>,
}

impl Image {
    pub(super) fn new() -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(5);
        header.set_mode(0o644);
        builder.append_data(&mut header, "f", &b"hello"[..]).unwrap();
        let layer = builder.into_inner().unwrap();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"{CONFIG}","digest":"{}","size":2}},"layers":[{{"mediaType":"{LAYER}","digest":"{}","size":{}}}]}}"#,
            Digest::sha256(b"{}"),
            Digest::sha256(&layer),
            layer.len()
        );
        Self { manifest: manifest.into_bytes(), layer }
    }

    /// The answer of a registry that has it.
    fn answer(&self, asked: &Asked) -> Reply {
        let is = |name: &str| asked.path.split('?').next().is_some_and(|path| path.ends_with(name));
        let whole = if is("/manifests/v1") || is(Digest::sha256(&self.manifest).as_str()) {
            return Reply::new(200, &self.manifest).with("Content-Type", MANIFEST);
        } else if is(Digest::sha256(b"{}").as_str()) {
            b"{}"
        } else if is(Digest::sha256(&self.layer).as_str()) {
            &self.layer[..]
        } else {
            return Reply::new(404, b"");
        };
        match asked.range {
            Some((start, end)) => Reply::new(206, &whole[start..end.min(whole.len())])
                .with("Content-Range", format!("bytes {start}-{}/{}", end.min(whole.len()) - 1, whole.len())),
            None => Reply::new(200, whole),
        }
    }

    /// A registry that has it, and answers some requests in a way of its own.
    pub(super) fn serve(self, other: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static) -> Desk {
        Desk::open(Arc::new(move |asked: &Asked| other(asked).unwrap_or_else(|| self.answer(asked))))
    }
}

/// The program, with a home of its own.
pub(super) fn ocifs(home: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocifs"));
    command.args(words).current_dir(home);
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

pub(super) fn run_ocifs(words: &[&str]) -> Finished {
    let home = tempfile::tempdir().unwrap();
    run(&mut ocifs(home.path(), words))
}

#[test]
fn a_registry_that_fails_or_wants_fewer_requests_is_named_and_not_the_network() {
    for (status, wait, tries, words) in [
        (429, Some("3600"), 1, &["status 429", "3600 s", "hint: the registry limits requests"][..]),
        (500, None, 5, &["status 500", "hint: the registry fails, not the network"]),
        (503, None, 5, &["status 503", "hint: the registry fails, not the network"]),
    ] {
        let desk = Image::new().serve(move |asked| {
            let reply = Reply::new(status, b"");
            asked.path.contains("/manifests/").then(|| match wait {
                Some(wait) => reply.with("Retry-After", wait),
                None => reply,
            })
        });
        let refused = run_ocifs(&["inspect", &format!("{}/a/b:v1", desk.host())]);
        refused.refused(&[5], words);
        assert!(!refused.stderr.contains("host name"), "{}", refused.stderr);
        assert_eq!(desk.asked(), tries, "{status}");
    }
}

#[test]
fn a_host_that_speaks_http_where_https_was_wanted_is_called_that() {
    use std::io::{Read as _, Write as _};
    // It answers the first bytes of TLS as servers of HTTP do.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/a/b:v1", listener.local_addr().unwrap());
    let connections = Arc::new(Mutex::new(0));
    let counted = connections.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            *counted.lock().unwrap() += 1;
            // As many bytes as come at once: whatever they are, the answer is the same.
            let _some = stream.read(&mut [0; 4096]);
            stream.write_all(b"HTTP/1.1 400 x\r\nContent-Length: 0\r\n\r\n").ok();
        }
    });
    run_ocifs(&["inspect", "--tls-verify=true", &reference]).refused(&[5], &["speaks http", "--plain-http"]);
    assert_eq!(*connections.lock().unwrap(), 1);
    let desk = Image::new().serve(|_| None);
    let reference = format!("{}/a/b:v1", desk.host());
    // What was asked for is no news.
    let taken = run_ocifs(&["inspect", "--tls-verify=false", &reference]).ok();
    assert_eq!(taken.stderr, "");
}

#[test]
fn a_list_of_referrers_that_is_refused_is_a_warning_shown_once() {
    for status in [403, 410] {
        let desk = Image::new()
            .serve(move |asked| asked.path.contains("/referrers/").then(|| Reply::new(status, b"")));
        let listed = run_ocifs(&["ls", "--referrers", &format!("{}/a/b:v1", desk.host())]).ok();
        assert_eq!(listed.stderr.matches("cannot be listed").count(), 1, "{}", listed.stderr);
        assert!(listed.stderr.contains(&format!("status {status}")), "{}", listed.stderr);
        assert!(listed.text().contains("merged"), "{}", listed.text());
    }
}

#[test]
fn index_without_images_offers_no_choice() {
    let index =
        |entries: &str| format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{entries}]}}"#);
    let attestation = format!(
        r#"{{"mediaType":"{MANIFEST}","digest":"{}","size":2,"platform":{{"os":"unknown","architecture":"unknown"}},"annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}}"#,
        Digest::sha256(b"{}")
    );
    for document in [index(""), index(&attestation)] {
        let desk = Image::new().serve(move |asked| {
            let is_tag = asked.path.ends_with("/manifests/v1");
            is_tag.then(|| Reply::new(200, document.as_bytes()).with("Content-Type", INDEX))
        });
        let refused = run_ocifs(&["ls", &format!("{}/a/b:v1", desk.host())]);
        refused.refused(&[3], &["available: nothing"]);
        assert!(!refused.stderr.contains("hint"), "{}", refused.stderr);
    }
}

#[test]
fn export_of_an_index_that_lacks_a_manifest_is_its_disk_and_a_warning() {
    let image = Image::new();
    let entry = |digest: &Digest, size: usize, architecture: &str| {
        format!(
            r#"{{"mediaType":"{MANIFEST}","digest":"{digest}","size":{size},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#
        )
    };
    let here = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let document = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{},{}]}}"#,
        entry(&Digest::sha256(&image.manifest), image.manifest.len(), here),
        entry(&Digest::sha256(b"absent"), 100, "s390x")
    );
    let desk = image.serve(move |asked| {
        let is_tag = asked.path.ends_with("/manifests/v1");
        is_tag.then(|| Reply::new(200, document.as_bytes()).with("Content-Type", INDEX))
    });
    let listed = run_ocifs(&["ls", "--platform=all", &format!("{}/a/b:v1", desk.host()), "export"]).ok();
    assert_eq!(listed.text().trim(), "rootfs.erofs");
    assert!(listed.stderr.contains("image.tar is left out"), "{}", listed.stderr);
}

#[test]
fn a_referrers_api_that_is_silent_holds_up_nothing_that_can_be_read_without_it() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let mut builder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut builder, &Image::new().layer).unwrap();
    let image = Image::new();
    let zipped = Image { layer: builder.finish().unwrap(), manifest: Vec::new() };
    let manifest = String::from_utf8(image.manifest).unwrap();
    let manifest = manifest
        .replace(LAYER, &format!("{LAYER}+gzip"))
        .replace(Digest::sha256(&image.layer).as_str(), Digest::sha256(&zipped.layer).as_str())
        .replace(&format!("\"size\":{}", image.layer.len()), &format!("\"size\":{}", zipped.layer.len()));
    let desk = Image { manifest: manifest.into_bytes(), ..zipped }.serve(move |asked| {
        asked.path.contains("/referrers/").then(|| {
            // Until the test has its answer.
            held.lock().unwrap().recv().ok();
            Reply::new(404, b"")
        })
    });
    let home = tempfile::tempdir().unwrap();
    let reference = format!("{}/a/b:v1", desk.host());
    let words = ["ls", "--timeout=3600", &reference, "merged"];
    let listed = run_within(&mut ocifs(home.path(), &words), Duration::from_secs(120)).ok();
    assert_eq!(listed.text().trim(), "f");
    let asked = desk.lines().iter().filter(|line| line.contains("/referrers/")).count();
    assert_eq!(asked, 1, "{:?}", desk.lines());
    drop(release);
}

/// A credential file with one login for a host.
fn login(home: &Path, host: &str, text: &str) -> String {
    use base64::Engine as _;
    let auth = base64::engine::general_purpose::STANDARD.encode(text);
    let file = home.join("auth.json");
    std::fs::write(&file, format!(r#"{{"auths": {{"{host}": {{"auth": "{auth}"}}}}}}"#)).unwrap();
    file.display().to_string()
}

#[test]
fn a_refused_login_is_named_with_its_file_and_anonymous_is_offered() {
    for status in [401, 403] {
        let desk = Image::new().serve(move |asked| match &asked.credential[..] {
            "" => Some(Reply::new(401, b"").with("WWW-Authenticate", "Basic realm=\"x\"")),
            _ => Some(Reply::new(status, b"").with("WWW-Authenticate", "Basic realm=\"x\"")),
        });
        let home = tempfile::tempdir().unwrap();
        let file = login(home.path(), desk.host(), "u:old");
        let reference = format!("{}/a/b:v1", desk.host());
        run(&mut ocifs(home.path(), &["inspect", "--authfile", &file, &reference]))
            .refused(&[4], &[&format!("status {status}"), &file, "hint: log in", "--anonymous"]);
        assert_eq!(desk.asked(), 2);
    }
}

#[tokio::test]
async fn credentials_are_read_anew_whenever_a_registry_refuses_the_ones_in_use() {
    let desk = Image::new().serve(|asked| match &asked.credential[..] {
        "" => Some(Reply::new(401, b"").with("WWW-Authenticate", "Basic realm=\"x\"")),
        // "u:old"
        "Basic dTpvbGQ=" => Some(Reply::new(403, b"")),
        _ => None,
    });
    let home = tempfile::tempdir().unwrap();
    let authfile = Some(login(home.path(), desk.host(), "u:old").into());
    let registry = RegistryClient::new(RegistryOptions { anonymous: false, authfile, ..options() }).unwrap();
    let reference: Reference = format!("{}/a/b:v1", desk.host()).parse().unwrap();
    let error = registry.manifest(&reference, &tag("v1")).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Denied, "{error}");
    login(home.path(), desk.host(), "u:new");
    // A login is not doubted in its first moments: a registry that refuses it for good is asked once.
    let asked = desk.asked();
    while registry.manifest(&reference, &tag("v1")).await.is_err() {
        assert!(desk.asked() < asked + 300, "credentials are not read anew");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn a_file_that_was_replaced_at_its_address_is_called_that() {
    let versions = Mutex::new(0);
    let body = Arc::new(noise(3_000_000));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(body.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "big", &body[..]).unwrap();
    let file = builder.into_inner().unwrap();
    let desk = Desk::open(Arc::new(move |asked: &Asked| {
        let mut version = versions.lock().unwrap();
        *version += 1;
        let reply = match asked.range {
            Some((start, end)) => Reply::new(206, &file[start..end.min(file.len())])
                .with("Content-Range", format!("bytes {start}-{}/{}", end.min(file.len()) - 1, file.len())),
            None => Reply::new(200, &file),
        };
        reply.with("ETag", format!("\"{version}\""))
    }));
    let refused = run_ocifs(&["cat", &format!("http://{}/x.tar", desk.host()), "merged/big"]);
    refused.refused(&[7], &["another version", "hint: the file was replaced at its address"]);
    assert!(!refused.stderr.contains("cache directory"), "{}", refused.stderr);
}

#[test]
fn a_token_server_that_gives_no_token_is_no_reason_to_doubt_the_registry() {
    for (body, code, words) in [
        (r#"{"error": "no"}"#, 5, "without a token"),
        (r#"{"token": "t", "expires_in": "300"}"#, 0, ""),
        (r#"{"token": "t", "expires_in": 300.0}"#, 0, ""),
        (r#"{"token": "t", "expires_in": -1}"#, 0, ""),
    ] {
        let desk = Image::new().serve(move |asked| match &asked.credential[..] {
            _ if asked.path.starts_with("/token") => Some(Reply::new(200, body.as_bytes())),
            "Bearer t" => None,
            _ => Some(
                Reply::new(401, b"")
                    .with("WWW-Authenticate", format!("Bearer realm=\"http://{}/token\"", asked.host)),
            ),
        });
        let finished = run_ocifs(&["inspect", &format!("{}/a/b:v1", desk.host())]);
        assert_eq!(finished.code, Some(code), "{body}: {}", finished.stderr);
        assert!(finished.stderr.contains(words), "{body}: {}", finished.stderr);
        assert!(!finished.stderr.contains("is this a registry"), "{body}: {}", finished.stderr);
        if code != 0 {
            assert!(finished.stderr.contains("token server"), "{body}: {}", finished.stderr);
        }
    }
}

/// A server by TLS that refuses what is asked for by HTTP/2 with HTTP_1_1_REQUIRED (RFC 9113 section 7), and leads from a page of
/// referrers to the next one by http, as one does that does not know of the TLS before it. It prints its port, and `h2`, or a path, for
/// each request.
const OLD_DOOR: &str = r#"
import hashlib, json, socket, ssl, sys, threading
manifest = open('manifest', 'rb').read()
blobs = {'sha256:' + hashlib.sha256(b).hexdigest(): b for b in (b'{}', open('layer', 'rb').read())}
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('server.cert', 'server.key')
context.set_alpn_protocols(['h2', 'http/1.1'])
def say(text): print(text, flush=True)
def answer(path, host):
    name = path.split('?')[0].rsplit('/', 1)[1]
    if '/referrers/' in path:
        entry = {'mediaType': 'application/vnd.oci.image.manifest.v1+json', 'size': len(manifest), 'digest': 'sha256:' + hashlib.sha256(manifest).hexdigest(), 'artifactType': 'a/b'}
        body = json.dumps({'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.index.v1+json', 'manifests': [entry]}).encode()
        more = '' if 'n=2' in path else f'Link: <http://{host}{path}?n=2>; rel="next"\r\n'
        return 200, 'Content-Type: application/vnd.oci.image.index.v1+json\r\n' + more, body
    if '/manifests/' in path: return 200, 'Content-Type: application/vnd.oci.image.manifest.v1+json\r\n', manifest
    return (200, '', blobs[name]) if name in blobs else (404, '', b'')
def serve(stream):
    try:
        stream = context.wrap_socket(stream, server_side=True)
        lines = stream.makefile('rb')
        if stream.selected_alpn_protocol() == 'h2':
            say('h2')
            stream.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            lines.read(24)
            while len(head := lines.read(9)) == 9:
                lines.read(int.from_bytes(head[:3], 'big'))
                if head[3] == 1: stream.sendall(bytes([0, 0, 4, 3, 0]) + head[5:9] + bytes([0, 0, 0, 13]))
        while words := lines.readline().split():
            host = ''
            while line := lines.readline().strip():
                if line.lower().startswith(b'host:'): host = line[5:].strip().decode()
            say(words[1].decode())
            status, head, body = answer(words[1].decode(), host)
            stream.sendall(f'HTTP/1.1 {status} x\r\n{head}Content-Length: {len(body)}\r\n\r\n'.encode() + body)
    except OSError: pass
listener = socket.create_server(('127.0.0.1', 0))
say(listener.getsockname()[1])
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

#[test]
fn a_server_without_http_2_is_asked_by_http_1_and_its_next_page_by_the_scheme_of_the_first() {
    if !able(&[Need::Tool("python3"), Need::Tool("openssl")]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    sh(super::tls::CERTIFICATES, &[&home.path()]);
    let image = Image::new();
    std::fs::write(home.path().join("manifest"), &image.manifest).unwrap();
    std::fs::write(home.path().join("layer"), &image.layer).unwrap();
    let log = std::fs::File::create(home.path().join("log")).unwrap();
    let mut server = Command::new("python3");
    server.args(["-c", OLD_DOOR]).current_dir(home.path()).stdout(log);
    let mut server = server.spawn().unwrap();
    let log_text = || std::fs::read_to_string(home.path().join("log")).unwrap();
    let is_up = crate::process::becomes_true(CONDITION_TIMEOUT, || log_text().contains('\n'));
    let reference = format!("localhost:{}/a/b:v1", log_text().lines().next().unwrap_or_default());
    let words = ["ls", "--referrers", "--ca-file=ca.crt", &reference];
    let finished = is_up.then(|| run(&mut ocifs(home.path(), &words)));
    server.kill().unwrap();
    server.wait().unwrap();
    let finished = finished.unwrap().ok();
    let log = log_text();
    assert_eq!(log.matches("h2\n").count(), 1, "{log}");
    assert!(log.contains("/referrers/") && log.contains("?n=2"), "{log}\n{}", finished.stderr);
    assert!(!finished.stderr.contains("cannot be listed"), "{}", finished.stderr);
}

/// Three servers by TLS: with a certificate that is over, with one for another name, and one that wants to see a certificate.
const TROUBLED_DOORS: &str = r#"
import socket, ssl, sys, threading
def door(name, more=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(name + '.cert', name + '.key')
    if more: context.verify_mode = ssl.CERT_REQUIRED; context.load_verify_locations(more)
    listener = socket.create_server(('127.0.0.1', 0))
    def serve():
        while True:
            stream = listener.accept()[0]
            try: context.wrap_socket(stream, server_side=True).recv(1)
            except OSError: pass
    threading.Thread(target=serve).start()
    return listener.getsockname()[1]
print(door('expired'), door('other'), door('server', 'ca.crt'), flush=True)
"#;

/// Beside those of [`super::tls::CERTIFICATES`].
const TROUBLED_CERTIFICATES: &str = r#"
cd "$1"
printf '[ca]\ndefault_ca=x\n[x]\ndatabase=index\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\nrand_serial=yes\nx509_extensions=e\n[p]\ncommonName=supplied\n[e]\nbasicConstraints=CA:FALSE\nsubjectAltName=${ENV::NAMES}\n' > ca.cnf
: > index
make() {
  openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out $1.key
  openssl req -new -key $1.key -subj /CN=$1 -out $1.csr
  NAMES=$2 openssl ca -config ca.cnf -batch -keyfile ca.key -cert ca.crt -in $1.csr -out $1.cert -startdate 20200101000000Z -enddate $3 -notext 2>&1
}
make expired DNS:localhost 20200102000000Z
make other DNS:elsewhere.test 20991231000000Z
"#;

#[test]
fn refused_certificate_is_reported_with_reason_and_hint() {
    if !able(&[Need::Tool("python3"), Need::Tool("openssl")]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    sh(super::tls::CERTIFICATES, &[&home.path()]);
    sh(TROUBLED_CERTIFICATES, &[&home.path()]);
    let log = std::fs::File::create(home.path().join("log")).unwrap();
    let mut server = Command::new("python3");
    server.args(["-c", TROUBLED_DOORS]).current_dir(home.path()).stdout(log);
    let mut server = server.spawn().unwrap();
    let log_text = || std::fs::read_to_string(home.path().join("log")).unwrap();
    crate::process::becomes_true(CONDITION_TIMEOUT, || log_text().contains('\n'));
    let ports: Vec<String> = log_text().split_whitespace().map(str::to_owned).collect();
    let finished: Vec<Finished> = ports
        .iter()
        .map(|port| {
            let reference = format!("localhost:{port}/a/b:v1");
            run(&mut ocifs(home.path(), &["inspect", "--ca-file=ca.crt", &reference]))
        })
        .collect();
    server.kill().unwrap();
    server.wait().unwrap();
    let wanted = [
        &["expired", "hint: renew the registry's certificate"][..],
        &["not valid for name", "hint: use a name that its certificate is for"],
        &["certificaterequired", "certs.d/host", "--cert-dir"],
    ];
    assert_eq!(finished.len(), wanted.len());
    for (finished, words) in finished.iter().zip(wanted) {
        finished.refused(&[5], words);
        assert!(!finished.stderr.contains("tries"), "{}", finished.stderr);
        assert!(!finished.stderr.contains("host name"), "{}", finished.stderr);
    }
}

#[test]
fn the_helper_of_a_host_comes_before_the_store_and_the_store_before_entries() {
    let home = tempfile::tempdir().unwrap();
    // Written by a process of its own: a program that another test starts meanwhile would hold the script open for writing.
    let programs = r#"
mkdir "$1/bin"
for name in own store; do
  printf '#!/bin/sh\necho "{\\"Username\\":\\"%s\\",\\"Secret\\":\\"x\\"}"\n' $name > "$1/bin/docker-credential-$name"
done
printf '#!/bin/sh\necho credentials not found in native keychain; exit 1\n' > "$1/bin/docker-credential-empty"
chmod +x "$1"/bin/*"#;
    sh(programs, &[&home.path()]);
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = seen.clone();
    let desk = Image::new().serve(move |asked| {
        if asked.credential.is_empty() {
            return Some(Reply::new(401, b"").with("WWW-Authenticate", "Basic realm=\"x\""));
        }
        kept.lock().unwrap().push(asked.credential.clone());
        None
    });
    let host = desk.host();
    // "entry:x", "own:x" and "store:x".
    let entry = format!(r#""auths": {{"{host}": {{"auth": "ZW50cnk6eA=="}}}}"#);
    let own = format!(r#""credHelpers": {{"{host}": "own"}}"#);
    let none = format!(r#""credHelpers": {{"{host}": ""}}"#);
    let path = format!("{}:{}", home.path().join("bin").display(), std::env::var("PATH").unwrap());
    for (parts, user) in [
        (vec![&entry[..]], "ZW50cnk6eA=="),
        (vec![&entry, r#""credsStore": "store""#], "c3RvcmU6eA=="),
        (vec![&entry, r#""credsStore": "empty""#], "ZW50cnk6eA=="),
        (vec![&entry, r#""credsStore": "store""#, &own], "b3duOng="),
        (vec![&entry, r#""credsStore": "store""#, &none], "ZW50cnk6eA=="),
    ] {
        let file = home.path().join("order.json");
        std::fs::write(&file, format!("{{{}}}", parts.join(", "))).unwrap();
        let file = file.display().to_string();
        let words = ["inspect", "--authfile", &file, &format!("{host}/a/b:v1")];
        seen.lock().unwrap().clear();
        run(ocifs(home.path(), &words).env("PATH", &path)).ok();
        let used = seen.lock().unwrap().clone();
        assert!(
            !used.is_empty() && used.iter().all(|used| used == &format!("Basic {user}")),
            "{parts:?}: {used:?}"
        );
    }
}
