//! Layers that only their own addresses have: named, or fetched by https without credentials.

use std::process::Command;

use super::messages::ocifs;
use super::*;
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, sh};

/// A server by TLS that has the file `layer` in ranges at every path, and logs the names of all headers.
const ADDRESS: &str = r#"
import http.server, ssl
body = open('layer', 'rb').read()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, *(name.lower() for name in self.headers), flush=True)
        asked, start, end = self.headers.get('Range'), 0, len(body) - 1
        if asked:
            first, _, last = asked[6:].partition('-')
            start, end = int(first), min(int(last or end), end)
        self.send_response(206 if asked else 200)
        if asked: self.send_header('Content-Range', f'bytes {start}-{end}/{len(body)}')
        self.send_header('Content-Length', str(end + 1 - start))
        self.end_headers()
        self.wfile.write(body[start:end + 1])
    def log_message(self, *words): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Answer)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('server.cert', 'server.key')
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"#;

#[test]
fn a_foreign_layer_comes_by_https_from_its_own_address_without_credentials() {
    if !able(&[Need::Tool("python3"), Need::Tool("openssl")]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    sh(super::tls::CERTIFICATES, &[&home.path()]);
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(5);
    header.set_mode(0o644);
    archive.append_data(&mut header, "f", &b"hello"[..]).unwrap();
    let layer = archive.into_inner().unwrap();
    std::fs::write(home.path().join("layer"), &layer).unwrap();
    let log = std::fs::File::create(home.path().join("log")).unwrap();
    let mut server = Command::new("setpriv");
    let mut server = server
        .args(["--pdeathsig", "KILL", "python3", "-c", ADDRESS])
        .current_dir(home.path())
        .stdout(log)
        .spawn()
        .unwrap();
    let log = || std::fs::read_to_string(home.path().join("log")).unwrap();
    let is_up = becomes_true(CONDITION_TIMEOUT, || log().contains('\n'));
    let address = format!("https://localhost:{}/layer", log().lines().next().unwrap_or_default());

    let config = Digest::sha256(b"{}");
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.to_string(), "size": 2},
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "digest": Digest::sha256(&layer).to_string(),
            "size": layer.len(),
            "urls": [address],
        }],
    })
    .to_string();
    let digest = Digest::sha256(manifest.as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": digest.to_string(),
            "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "v1"},
        }],
    });
    let login =
        serde_json::json!({"auths": {address.split('/').nth(2).unwrap(): {"auth": "dXNlcjpzZWNyZXQ="}}});
    for (name, text) in [
        ("layout/oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        ("layout/index.json", &index.to_string()),
        (&format!("layout/blobs/sha256/{}", config.encoded()), "{}"),
        (&format!("layout/blobs/sha256/{}", digest.encoded()), &manifest),
        (".docker/config.json", &login.to_string()),
    ] {
        let path = home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let list = |words: &[&str]| {
        run(&mut ocifs(home.path(), &[&["ls"], words, &["oci:layout:v1", "merged"]].concat()))
    };
    let named = is_up.then(|| list(&[]));
    let untrusted = is_up.then(|| list(&["--foreign-layers"]));
    let before = log();
    let fetched = is_up.then(|| list(&["--foreign-layers", "--ca-file=ca.crt"]));
    server.kill().unwrap();
    server.wait().unwrap();

    let named = named.unwrap();
    assert_ne!(named.code, Some(0));
    for part in ["non-distributable", &address, "--foreign-layers"] {
        assert!(named.stderr.contains(part), "{}", named.stderr);
    }
    let untrusted = untrusted.unwrap();
    assert!(untrusted.code != Some(0) && untrusted.stderr.contains("certificate"), "{}", untrusted.stderr);
    assert_eq!(before.lines().count(), 1, "no request before the certificate is trusted: {before}");
    assert_eq!(fetched.unwrap().ok().text().trim(), "f");
    let requests = log();
    assert!(requests.contains("/layer ") && !requests.contains("authorization"), "{requests}");
}
