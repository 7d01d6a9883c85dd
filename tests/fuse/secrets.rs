//! Passwords, tokens and signed addresses: absent from output, logs, files and /proc of ocifs.
//!
//! Everything is logged that can be, of every crate. The idea: each secret is looked for as it is and in every form that a protocol
//! gives it, in the log, the status, the counters, both outputs, the cache, and in /proc for the processes that stay.

use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::json;

use crate::encode::Encoding;
use crate::fault_registry::{Fault, FaultRegistry};
use crate::layout::{Layer, Layout};
use crate::process::{CONDITION_TIMEOUT, Finished, Need, able, becomes_true, run, run_within, signal};
use crate::real_registry::{PASSWORD, RealRegistry, USER};
use crate::site::{Mount, Site, monitor};
use crate::tarball::{Tarball, noise};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
/// Characters that base64 and percent encoding write in other ways.
const AWKWARD: &str = "pa+55/ w&rd=~%";
/// What a wrong password is.
const WRONG: &str = "wr+ng/ one&=%";

/// Percent encoding of everything but letters and digits.
fn percent(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") }
            },
        )
        .collect()
}

/// What must not be found: each secret, and how protocols write it.
struct Hunt {
    needles: Vec<String>,
    site: Site,
}

impl Hunt {
    fn of(user: &str, secrets: &[&str], more: &[&str]) -> Self {
        let mut needles: Vec<String> = more.iter().map(|text| (*text).to_owned()).collect();
        for secret in secrets {
            let pair = format!("{user}:{secret}");
            needles.extend([(*secret).to_owned(), percent(secret), percent(secret).replace("%20", "+")]);
            needles.push(percent(secret).to_lowercase());
            for text in [*secret, &pair] {
                let plain = STANDARD.encode(text);
                needles.extend([
                    plain.trim_end_matches('=').to_owned(),
                    percent(&plain),
                    URL_SAFE.encode(text),
                ]);
            }
        }
        Self { needles, site: Site::new() }
    }

    #[track_caller]
    fn clean(&self, place: &str, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        for needle in &self.needles {
            let Some(at) = text.find(needle.as_str()) else { continue };
            let line = text[..at].rfind(['\n', '\0']).map_or(0, |before| before + 1);
            let end = text[at..].find(['\n', '\0']).map_or(text.len(), |after| at + after);
            panic!("{needle:?} is in {place}: {:?}", &text[line..end]);
        }
    }

    #[track_caller]
    fn clean_tree(&self, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => self.clean_tree(&entry.path()),
                false => self.clean(&entry.path().display().to_string(), &fs::read(entry.path()).unwrap()),
            }
        }
    }

    /// A command with everything logged, and the password where it is given by variable.
    fn command(&self, creds: Option<&str>) -> std::process::Command {
        let mut command = self.site.command();
        command.env("OCIFS_LOG", "trace").env("RUST_BACKTRACE", "1");
        command.envs(creds.map(|creds| ("OCIFS_CREDS", creds)));
        command
    }

    /// Runs a command to its end, and looks at what it said and logged.
    #[track_caller]
    fn runs(&self, creds: Option<&str>, args: &[&str]) -> Finished {
        let log = self.site.scratch().join("command.log");
        let split = args.iter().position(|word| *word == "--").unwrap_or(args.len());
        let mut command = self.command(creds);
        command.args(&args[..split]).arg("--log-file").arg(&log).args(&args[split..]);
        let finished = run_within(&mut command, Duration::from_secs(120));
        self.clean(args[0], &finished.stdout);
        self.clean(args[0], finished.stderr.as_bytes());
        self.logged(&log);
        finished
    }

    #[track_caller]
    fn logged(&self, log: &Path) {
        let bytes = fs::read(log).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("TRACE") && text.contains("hyper"), "not everything is logged");
        self.clean("the log", &bytes);
    }

    /// Mounts, does `what` with the mount, and looks everywhere.
    #[track_caller]
    fn mounts(&self, creds: Option<&str>, args: &[&str], what: impl FnOnce(&Mount)) {
        let log = self.site.scratch().join("mount.log");
        let dir = self.site.mount_point("mnt");
        let mut command = self.command(creds);
        let shown = self.site.scratch().subdir("run").join("metrics");
        command.arg("mount").arg("--log-file").arg(&log).args(args).arg(&dir);
        command.arg(format!("--metrics=unix:{}", shown.display()));
        let mount = Mount::up(&mut command, dir);
        self.clean("the line of mount", mount.printed().as_bytes());
        what(&mount);
        self.clean("status.json", mount.status().as_bytes());
        self.clean("metrics", crate::metrics::shown(&shown).as_bytes());
        // Statistics go to the log, which is looked at in the end.
        let before = fs::read_to_string(&log).unwrap().matches("ocifs::statistics").count();
        signal(mount.pid(), nix::sys::signal::Signal::SIGUSR1);
        let statistics = || fs::read_to_string(&log).unwrap().matches("ocifs::statistics").count();
        assert!(becomes_true(CONDITION_TIMEOUT, || statistics() > before), "no statistics");
        self.process(mount.pid());
        self.process(monitor(mount.pid()).expect("there is a monitor"));
        mount.unmount();
        self.logged(&log);
        self.clean_tree(&self.site.cache());
    }

    #[track_caller]
    fn process(&self, pid: u32) {
        for file in ["cmdline", "environ", "comm"] {
            self.clean(file, &fs::read(format!("/proc/{pid}/{file}")).unwrap());
        }
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(String::from_utf8_lossy(&environment).contains("OCIFS_LOG"), "the environment is readable");
    }
}

#[test]
fn a_basic_password_is_in_nothing_that_is_written_or_shown() {
    let needs = [Need::Root, Need::Fuse, Need::Tool("docker-registry"), Need::Tool("skopeo")];
    if !able(&needs) {
        return;
    }
    let hunt = Hunt::of(USER, &[PASSWORD, WRONG], &[]);
    let registry = RealRegistry::with_password();
    let mut layout = Layout::create(hunt.site.scratch().join("layout"));
    let tar = Tarball::new().file("f", &noise(3 << 20, 3)).bytes();
    layout.image("v1", &[Layer::of(&tar, Encoding::Gzip)]);
    let reference = registry.reference("a/secret:v1");
    let creds = format!("{USER}:{PASSWORD}");
    let mut skopeo = std::process::Command::new("skopeo");
    skopeo.args(["copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "--dest-creds", &creds]);
    run(skopeo.arg(layout.reference("v1")).arg(format!("docker://{reference}"))).ok();

    let read = |mount: &Mount| assert_eq!(fs::read(mount.join("merged/f")).unwrap().len(), 3 << 20);
    hunt.mounts(Some(&creds), &[&reference], read);
    hunt.mounts(None, &["--creds", &creds, &reference], read);
    hunt.mounts(None, &[&format!("--creds={creds}"), "--verify", "lazy", &reference], read);
    hunt.runs(Some(&creds), &["inspect", &reference]).ok();
    hunt.runs(Some(&creds), &["index", "push", &reference]).ok();
    let output = hunt.runs(
        Some(&creds),
        &["record", "--push", &reference, "--", "sh", "-c", "env; cat {}/merged/f | wc -c"],
    );
    assert!(output.ok().text().contains("3145728"));

    let wrong = format!("{USER}:{WRONG}");
    for args in [&["inspect", &reference][..], &["ls", &reference], &["cat", &reference, "manifest.json"]] {
        hunt.runs(Some(&wrong), args).refused(&[4], &[&registry.host()]);
    }
    let dir = hunt.site.mount_point("refused");
    hunt.runs(Some(&wrong), &["mount", &reference, dir.to_str().unwrap()]).refused(&[4], &[&registry.host()]);

    // A mount in the foreground was started with the password, and is not the same process image any more.
    let (mut child, dir) = hunt.site.mount_foreground(&reference, &["--creds", &creds]);
    assert_eq!(fs::read(dir.join("merged/f")).unwrap().len(), 3 << 20);
    for file in ["cmdline", "environ"] {
        hunt.clean(file, &fs::read(format!("/proc/{}/{file}", child.id())).unwrap());
    }
    signal(child.id(), nix::sys::signal::Signal::SIGTERM);
    assert!(child.wait().unwrap().success());
}

#[test]
fn tokens_and_signed_addresses_are_in_nothing_that_is_written_or_shown() {
    if !able(&NEEDS) {
        return;
    }
    // Of a challenge to a token server, and of what the second host says of a link that is too old.
    let hunt = Hunt::of("user", &[AWKWARD, WRONG], &["token-1", "token-2", "sig=", "5ecret"]);
    let registry = FaultRegistry::start();
    let (_, layer, _) = crate::signatures::push_image(&registry, "v1", &noise(9 << 20, 5));
    registry.set(Fault::RequireBearer { token_lifetime: Duration::from_secs(300) });
    registry.set(Fault::RequireBasic { user: "user".into(), pass: AWKWARD.into() });
    registry.set(Fault::RedirectTo307SecondHost);
    let reference = format!("{}/a:v1", registry.host());
    let creds = format!("user:{AWKWARD}");
    let blob = |mount: &Mount| mount.join("blobs").join(layer.replace(':', "/"));
    let read = |mount: &Mount| {
        use std::os::unix::fs::FileExt as _;
        let file = fs::File::open(blob(mount)).unwrap();
        let mut piece = [0; 4096];
        file.read_exact_at(&mut piece, 0).unwrap();
        // The signed address and the token are too old now, in the middle of a mount.
        registry.expire_signed_urls();
        registry.revoke_tokens();
        file.read_exact_at(&mut piece, 6 << 20).unwrap();
    };
    hunt.mounts(Some(&creds), &["--timeout", "5", &reference], read);
    assert!(
        registry.requests().iter().any(|request| request.cdn && request.status == 206),
        "nothing was redirected"
    );
    let restore = || {
        registry.clear();
        registry.set(Fault::RequireBearer { token_lifetime: Duration::from_secs(300) });
        registry.set(Fault::RequireBasic { user: "user".into(), pass: AWKWARD.into() });
        registry.set(Fault::RedirectTo307SecondHost);
    };
    restore();
    hunt.runs(Some(&creds), &["inspect", &reference]).ok();
    hunt.runs(Some(&creds), &["index", "push", &reference]).ok();
    let wrong = format!("user:{WRONG}");
    hunt.runs(Some(&wrong), &["inspect", &reference]).refused(&[4], &["user"]);
    let fresh = hunt.site.scratch().join("fresh");
    registry.set(Fault::StatusOf { method: "GET", code: 403, times: 1000 });
    let cat = ["cat", "--cache-dir", fresh.to_str().unwrap(), &reference, "merged/f"];
    hunt.runs(Some(&creds), &cat).refused(&[4, 5], &[&registry.host()]);
    restore();
    registry.set(Fault::TokenServerHtml);
    hunt.runs(Some(&creds), &["inspect", &reference]).refused(&[4, 5], &[]);

    // A login with an identity token, as "docker login" leaves it behind.
    restore();
    fs::remove_dir_all(hunt.site.cache()).unwrap();
    let mut auths = serde_json::Map::new();
    let empty = STANDARD.encode("00000000-0000-0000-0000-000000000000:");
    auths.insert(registry.host(), json!({"auth": empty, "identitytoken": AWKWARD}));
    let file = hunt.site.scratch().file("auth.json", json!({"auths": auths}).to_string());
    hunt.mounts(None, &["--timeout", "5", "--authfile", file.to_str().unwrap(), &reference], read);
    let posts = registry.token_requests();
    assert!(posts.iter().any(|request| request.method == "POST"), "{posts:?}");
}

#[test]
fn a_password_is_given_to_the_mount_whole() {
    if !able(&NEEDS) {
        return;
    }
    let site = Site::new();
    let registry = FaultRegistry::start();
    crate::signatures::push_image(&registry, "v1", b"x");
    let password = format!("{AWKWARD}{}", "x".repeat(3000));
    registry.set(Fault::RequireBasic { user: "user".into(), pass: password.clone() });
    let reference = format!("{}/a:v1", registry.host());
    let mount = site.mount(&reference, &["--creds", &format!("user:{password}")]);
    assert_eq!(fs::read(mount.join("merged/f")).unwrap(), b"x");
    mount.unmount();
    let long = format!("user:{}", "x".repeat(5000));
    site.mount_refused(&reference, &["--creds", &long], &[2], &["4096"]);
    site.mount_refused(&reference, &[], &[4], &[]);
}
