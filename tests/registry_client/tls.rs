//! Certificates, HTTP/2 and proxies, with nginx in front of a registry.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::fault_registry::ReservedPort;
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true, run, sh};

/// nginx with three doors to one registry: TLS, TLS that wants to know who comes, and neither.
struct Doors {
    registry: FaultRegistry,
    dir: tempfile::TempDir,
    tls: u16,
    mutual: u16,
    plain: u16,
    _ports: [ReservedPort; 3],
    nginx: Child,
}

impl Drop for Doors {
    fn drop(&mut self) {
        self.nginx.kill().ok();
        self.nginx.wait().ok();
    }
}

const NEEDS: [Need<'static>; 2] = [Need::Tool("nginx"), Need::Tool("openssl")];

/// An authority, and two certificates that it signed: of the server and of a client.
pub(super) const CERTIFICATES: &str = r#"
cd "$1"
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -days 2 -subj /CN=authority -out ca.crt
for name in server client; do
  openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out $name.key
  openssl req -new -key $name.key -subj /CN=$name -out $name.csr
  printf 'subjectAltName=DNS:localhost,DNS:registry.test,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' > ext
  openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $name.cert
done
"#;

fn doors() -> Doors {
    let registry = FaultRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    sh(CERTIFICATES, &[&dir.path()]);
    let ports = [ReservedPort::new(), ReservedPort::new(), ReservedPort::new()];
    let [tls, mutual, plain] = ports.each_ref().map(ReservedPort::number);
    let (at, backend) = (dir.path().display(), registry.host());
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {at}/{kind};"))
        .concat();
    let pass = format!(
        "location / {{ proxy_pass http://{backend}; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}"
    );
    let secure = format!("ssl_certificate {at}/server.cert; ssl_certificate_key {at}/server.key;");
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
         events {{}}
         http {{
           {temporary}
           log_format short '$server_port $server_protocol $status';
           access_log {at}/access.log short;
           server {{ listen 127.0.0.1:{tls} ssl http2; {secure} {pass} }}
           server {{ listen 127.0.0.1:{mutual} ssl; {secure}
                     ssl_client_certificate {at}/ca.crt; ssl_verify_client on; {pass} }}
           server {{ listen 127.0.0.1:{plain}; {pass} }}
         }}"
    );
    let file = dir.path().join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let mut command =
        Command::new(if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" });
    command.arg("-e").arg(dir.path().join("error.log")).arg("-p").arg(dir.path()).arg("-c").arg(&file);
    let nginx = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let doors = Doors { registry, dir, tls, mutual, plain, _ports: ports, nginx };
    let open = || [tls, mutual, plain].iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok());
    assert!(becomes_true(CONDITION_TIMEOUT, open), "{}", doors.log_text("error.log"));
    doors
}

impl Doors {
    fn log_text(&self, log: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(log)).unwrap_or_default()
    }

    /// Waits until the log has so many of these: nginx writes a line after it answered.
    #[track_caller]
    fn logs(&self, line: &str, times: usize) {
        let count = || self.log_text("access.log").matches(line).count();
        assert!(becomes_true(CONDITION_TIMEOUT, || count() >= times), "{}", self.log_text("access.log"));
        assert_eq!(count(), times, "{}", self.log_text("access.log"));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Reads a manifest and a range through a door.
    async fn read(&self, host: &str, options: RegistryOptions) -> Result<(), RegistryError> {
        let document = br#"{"schemaVersion":2,"layers":[]}"#;
        self.registry.push_manifest("team/app", "v1", MANIFEST, document);
        let bytes = noise(5000);
        let digest = self.registry.push_blob(bytes.clone());
        let registry = RegistryClient::new(options).unwrap();
        let reference: Reference = format!("{host}/team/app:v1").parse().unwrap();
        registry.manifest(&reference, &tag("v1")).await?;
        let blob = registry.blob(&reference, &descriptor(&digest, 5000));
        assert!(read_vec(&FetchAll(blob), ByteRange::new(7, 4000)).await.unwrap() == bytes[7..4000]);
        Ok(())
    }
}

#[tokio::test]
async fn an_authority_that_is_named_is_trusted_and_http2_is_spoken() {
    if !able(&NEEDS) {
        return;
    }
    let doors = doors();
    let host = format!("localhost:{}", doors.tls);
    let strict = RegistryOptions { tls_verify: Some(true), ..options() };
    let error = doors.read(&host, strict).await.unwrap_err();
    assert!(matches!(error, RegistryError::Insecure { .. }), "{error:?}");
    let named = RegistryOptions { ca_file: Some(doors.path("ca.crt")), ..options() };
    doors.read(&host, named).await.unwrap();
    doors.logs(&format!("{} HTTP/2.0 20", doors.tls), 2);
}

#[tokio::test]
async fn certs_d_sets_authorities_and_client_certificates() {
    if !able(&NEEDS) {
        return;
    }
    let doors = doors();
    let host = format!("localhost:{}", doors.mutual);
    let own = doors.path("certs.d").join(&host);
    std::fs::create_dir_all(&own).unwrap();
    std::fs::copy(doors.path("ca.crt"), own.join("ca.crt")).unwrap();
    let with_places = || {
        let places = ConfigPaths { user: Some(doors.dir.path().into()), ..ConfigPaths::default() };
        RegistryOptions { places, ..options() }
    };
    let error = doors.read(&host, with_places()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 400, .. }), "{error:?}");
    std::fs::copy(doors.path("client.cert"), own.join("client.cert")).unwrap();
    let error = doors.read(&host, with_places()).await.unwrap_err();
    assert!(error.to_string().contains("client.key"), "{error}");
    std::fs::copy(doors.path("client.key"), own.join("client.key")).unwrap();
    doors.read(&host, with_places()).await.unwrap();
    // The same, named on the command line.
    let named = RegistryOptions { cert_dir: Some(own.clone()), ..options() };
    doors.read(&host, named).await.unwrap();
    // hosts.toml names them itself.
    let hosts = doors.path("hosts");
    std::fs::create_dir_all(hosts.join("_default")).unwrap();
    let text = format!(
        "server = \"https://{host}\"\nca = \"../../ca.crt\"\nclient = [[\"../../client.cert\", \"../../client.key\"]]\n"
    );
    std::fs::write(hosts.join("_default/hosts.toml"), text).unwrap();
    let places = ConfigPaths { hosts: Some(hosts), ..ConfigPaths::default() };
    doors.read("registry.invalid", RegistryOptions { places, ..options() }).await.unwrap();
}

#[tokio::test]
async fn without_verification_any_certificate_will_do_and_so_will_none() {
    if !able(&NEEDS) {
        return;
    }
    let doors = doors();
    std::fs::create_dir(doors.path("empty")).unwrap();
    let open =
        || RegistryOptions { tls_verify: Some(false), cert_dir: Some(doors.path("empty")), ..options() };
    doors.read(&format!("localhost:{}", doors.tls), open()).await.unwrap();
    doors.read(&format!("localhost:{}", doors.plain), open()).await.unwrap();
    doors.logs(&format!("{} HTTP/1.1 20", doors.plain), 2);
    // That it speaks no TLS was learnt once: TLS is one line with status 400 in the log.
    doors.logs(&format!("{} ", doors.plain), 3);
}

/// A proxy that connects whoever asks for `registry.test` to `to`; it counts, and refuses everybody else.
fn proxy(to: u16) -> (u16, Arc<Mutex<Vec<String>>>) {
    use std::io::{Read as _, Write as _};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = lines.clone();
    // Ends with the process, and so do its connections.
    std::thread::spawn(move || {
        for mut inner in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(inner.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
            kept.lock().unwrap().push(line.clone());
            if !line.starts_with("CONNECT registry.test:443 ") {
                inner.write_all(b"HTTP/1.1 403 x\r\nContent-Length: 0\r\n\r\n").ok();
                continue;
            }
            let outer = TcpStream::connect(("127.0.0.1", to)).unwrap();
            inner.write_all(b"HTTP/1.1 200 x\r\n\r\n").ok();
            for (mut from, mut to) in [
                (inner.try_clone().unwrap(), outer.try_clone().unwrap()),
                (outer.try_clone().unwrap(), inner.try_clone().unwrap()),
            ] {
                std::thread::spawn(move || {
                    std::io::copy(&mut from, &mut to).ok();
                    to.shutdown(std::net::Shutdown::Write).ok();
                });
            }
        }
    });
    (port, lines)
}

/// `ocifs inspect` with nothing in its environment but these.
fn inspect(reference: &str, home: &Path, environment: &[(&str, String)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocifs"));
    command.args(["inspect", "--anonymous", "--timeout=5", reference]).args(arguments);
    command.env_clear().env("HOME", home).envs(environment.iter().map(|(name, value)| (name, value)));
    command
}

#[test]
fn a_proxy_of_the_environment_is_used_but_never_for_this_machine() {
    if !able(&NEEDS) {
        return;
    }
    let doors = doors();
    let config = doors.registry.push_blob(b"{}".to_vec());
    let document = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{config}","size":2}},"layers":[]}}"#
    );
    doors.registry.push_manifest("team/app", "v1", MANIFEST, document.as_bytes());
    let (port, lines) = proxy(doors.tls);
    let address = format!("http://127.0.0.1:{port}");
    let proxies =
        [("HTTPS_PROXY", address.clone()), ("HTTP_PROXY", address.clone()), ("http_proxy", address.clone())];
    let authority = format!("--ca-file={}", doors.path("ca.crt").display());
    let home = doors.path("home");
    run(&mut inspect("registry.test/team/app:v1", &home, &proxies, &[&authority])).ok();
    let asked = lines.lock().unwrap().len();
    assert!(asked > 0, "the proxy was not asked");
    doors.logs("HTTP/2.0 200", 1);

    let local = format!("{}/team/app:v1", doors.registry.host());
    run(&mut inspect(&local, &home, &proxies, &[])).ok();
    assert_eq!(lines.lock().unwrap().len(), asked, "the proxy was asked for this machine");

    let mut without = proxies.to_vec();
    without.push(("NO_PROXY", "registry.test".into()));
    let other = format!("--cache-dir={}", doors.path("other").display());
    run(&mut inspect("registry.test/team/app:v1", &home, &without, &[&authority, &other]))
        .refused(&[5], &["registry.test"]);
    assert_eq!(lines.lock().unwrap().len(), asked);
}

#[test]
fn a_proxy_that_refuses_is_named_with_its_answer_and_a_variable_that_names_none_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    let (port, lines) = proxy(1);
    let refusing = [("HTTPS_PROXY", format!("http://127.0.0.1:{port}"))];
    run(&mut inspect("other.test/team/app:v1", home.path(), &refusing, &[]))
        .refused(&[5], &["HTTPS_PROXY", &format!("127.0.0.1:{port}"), "403", "hint: the proxy refuses"]);
    // Refused, and asked once more for its answer: trying again would not help.
    assert_eq!(lines.lock().unwrap().len(), 2);
    for broken in ["not a proxy", "http://"] {
        let named = [("HTTPS_PROXY", broken.to_owned())];
        run(&mut inspect("other.test/team/app:v1", home.path(), &named, &[])).refused(&[2], &["HTTPS_PROXY"]);
    }
}

#[test]
fn a_registry_of_https_on_this_machine_is_not_asked_again_by_http() {
    if !able(&NEEDS) {
        return;
    }
    let doors = doors();
    let home = tempfile::tempdir().unwrap();
    run(&mut inspect(&format!("localhost:{}/team/app:v1", doors.tls), home.path(), &[], &[]))
        .refused(&[5], &["expects https", "--tls-verify=true"]);
}

#[test]
fn program_reports_short_names_blocked_names_and_broken_files() {
    let server = FaultRegistry::start();
    let config = server.push_blob(b"{}".to_vec());
    let document = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{config}","size":2}},"layers":[]}}"#
    );
    server.push_manifest("team/app", "v1", MANIFEST, document.as_bytes());
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("r.conf");
    let text = format!(
        "[aliases]\n\"app\" = \"{0}/team/app\"\n[[registry]]\nprefix = \"{0}/secret\"\nblocked = true\n",
        server.host()
    );
    std::fs::write(&file, text).unwrap();
    let places = [("CONTAINERS_REGISTRIES_CONF", file.display().to_string())];
    let found = run(&mut inspect("app:v1", home.path(), &places, &[])).ok();
    assert!(found.text().contains(&format!("{}/team/app:v1", server.host())), "{}", found.text());
    let blocked = format!("{}/secret/app", server.host());
    run(&mut inspect(&blocked, home.path(), &places, &[])).refused(&[4], &["blocked by", "r.conf line 3"]);
    std::fs::write(&file, "[[registry]\n").unwrap();
    run(&mut inspect("app:v1", home.path(), &places, &[])).refused(&[2], &["r.conf line 1"]);
}
