//! Configuration files of this machine: the hosts of a name, refusals, and reloading.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use super::mirrors::{ONE_MIRROR, mirrored_with};
use super::*;

#[tokio::test]
async fn repository_is_read_at_its_configured_location() {
    let text = "[[registry]]\nprefix = \"registry.invalid/team\"\nlocation = \"PRIMARY/hub/team\"\n";
    let scene = mirrored_with(text, options());
    let document = br#"{"schemaVersion":2,"layers":[]}"#;
    let digest = scene.primary.push_manifest("hub/team/app", "v1", MANIFEST, document);
    let reference = "registry.invalid/team/app:v1".parse().unwrap();
    assert_eq!(scene.registry.manifest(&reference, &tag("v1")).await.unwrap().digest, digest);
}

#[tokio::test]
async fn a_blocked_registry_is_not_asked_and_the_file_is_named() {
    let text = "\n[[registry]]\nprefix = \"PRIMARY/team\"\nblocked = true\n";
    let scene = mirrored_with(text, options());
    let error = scene.resolve(&tag("v1")).await.unwrap_err();
    assert_eq!((error.fault(), scene.primary.requests().len()), (FaultClass::Denied, 0));
    let shown = error.to_string();
    assert!(shown.contains("team/app") && shown.contains("registries.conf line 2"), "{shown}");
    let error = scene.blob().fetch(ByteRange::new(0, 1)).await.err().unwrap();
    assert_eq!((error.fault(), scene.primary.requests().len()), (FaultClass::Denied, 0));
}

#[tokio::test]
async fn a_broken_file_is_named_with_its_line() {
    for (text, line) in [
        ("a = 1\nb = = 2\n", "registries.conf line 2"),
        ("[[registry]]\nprefix = 7\n", "registries.conf line 2"),
        ("\n\n[[registry]]\ninsecure = true\n", "registries.conf line 3"),
        ("[[registry]]\nlocation = \"https://r.example\"\n", "insecure = true"),
        (
            "[[registry]]\nlocation = \"PRIMARY\"\n[[registry.mirror]]\nlocation = \"m.example\"\npull-from-mirror = \"never\"\n",
            "digest-only",
        ),
    ] {
        let scene = mirrored_with(text, options());
        let error = scene.resolve(&tag("v1")).await.unwrap_err();
        assert_eq!(error.fault(), FaultClass::Usage, "{error}");
        assert!(error.to_string().contains(line), "{error}");
    }
}

#[tokio::test]
async fn reload_rereads_configuration_and_ignores_broken_files() {
    let scene = mirrored_with("", with_password());
    scene.primary.set(Bad::RequireBasic { user: "user".into(), pass: PASSWORD.into() });
    let blob = scene.blob();
    blob.fetch(ByteRange::new(0, 10)).await.unwrap();
    blob.fetch(ByteRange::new(0, 10)).await.unwrap();
    assert_eq!(statuses(&scene.primary.requests()), [401, 206, 206]);

    let file = scene.home.path().join("registries.conf");
    std::fs::write(&file, "[[registry").unwrap();
    let error = scene.registry.forget_logins().unwrap_err();
    assert!(error.to_string().contains("registries.conf line 1"), "{error}");
    blob.fetch(ByteRange::new(0, 10)).await.unwrap();
    assert_eq!(statuses(&scene.primary.requests()), [401, 206, 206, 401, 206]);

    let text = ONE_MIRROR.replace("PRIMARY", &scene.primary.host()).replace("MIRROR", &scene.mirror.host());
    std::fs::write(&file, text).unwrap();
    scene.registry.forget_logins().unwrap();
    blob.fetch(ByteRange::new(0, 10)).await.unwrap();
    assert_eq!((scene.primary.requests().len(), statuses(&scene.mirror.requests())), (5, vec![206]));
}

#[tokio::test]
async fn a_redirect_that_was_remembered_is_forgotten_too() {
    let scene = scene_of(1000, options());
    scene.server.set(Bad::RedirectTo307SecondHost);
    scene.expect(0, 500).await;
    scene.expect(500, 1000).await;
    assert_eq!(statuses(&scene.server.requests()), [307, 206, 206]);
    scene.registry.forget_logins().unwrap();
    scene.expect(0, 500).await;
    assert_eq!(statuses(&scene.server.requests()), [307, 206, 206, 307, 206]);
}

/// Answers every request with 404 and gives the heads of the requests.
fn empty_server() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let kept = heads.clone();
    // Ends with the process.
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut piece = [0; 1024];
            while !head.ends_with(b"\r\n\r\n") {
                match connection.read(&mut piece) {
                    Ok(read) if read > 0 => head.extend_from_slice(&piece[..read]),
                    _ => break,
                }
            }
            kept.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
            connection.write_all(b"HTTP/1.1 404 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok();
        }
    });
    (host, heads)
}

#[tokio::test]
async fn hosts_of_containerd_get_the_name_of_the_registry_and_their_headers_and_only_some_resolve_tags() {
    let primary = FaultRegistry::start();
    let digest = primary.push_manifest("team/app", "v1", MANIFEST, br#"{"schemaVersion":2,"layers":[]}"#);
    let (bytes, root) = (empty_server(), empty_server());
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join(primary.host().replace(':', "_") + "_");
    std::fs::create_dir(&own).unwrap();
    let text = format!(
        "server = \"http://{}\"\n\
         [host.\"http://{}\"]\ncapabilities = [\"pull\"]\n\
         [host.\"http://{}/proxy/v2/all\"]\noverride_path = true\nheader = {{ X-Team = \"blue\" }}\n",
        primary.host(),
        bytes.0,
        root.0
    );
    std::fs::write(own.join("hosts.toml"), text).unwrap();
    let places = ConfigPaths { hosts: Some(dir.path().into()), ..ConfigPaths::default() };
    let registry = RegistryClient::new(RegistryOptions { places, ..options() }).unwrap();
    let reference = reference(&primary);
    assert_eq!(registry.manifest(&reference, &tag("v1")).await.unwrap().digest, digest);
    let heads = |of: &(String, Arc<Mutex<Vec<String>>>)| of.1.lock().unwrap().clone();
    assert_eq!(heads(&bytes).len(), 0, "it may not resolve a tag");
    let [head] = &heads(&root)[..] else { panic!("{:?}", heads(&root)) };
    let host = primary.host().replace(':', "%3A");
    assert!(head.starts_with(&format!("GET /proxy/v2/all/team/app/manifests/v1?ns={host} ")), "{head}");
    assert!(head.to_ascii_lowercase().contains("x-team: blue"), "{head}");
    registry.manifest(&reference, &ManifestSelector::Digest(digest.clone())).await.unwrap();
    let [head] = &heads(&bytes)[..] else { panic!("{:?}", heads(&bytes)) };
    assert!(head.starts_with(&format!("GET /v2/team/app/manifests/{digest}?ns={host} ")), "{head}");
    assert!(!head.to_ascii_lowercase().contains("x-team"), "{head}");
}
