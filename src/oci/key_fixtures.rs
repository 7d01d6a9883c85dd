//! Keys and signatures made by openssl, for tests.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// A private key that exists for one test.
pub(crate) struct Made {
    dir: tempfile::TempDir,
    kind: &'static str,
}

impl Made {
    /// A new key; none, and a word why, on a machine without openssl.
    #[allow(clippy::print_stderr, reason = "whoever runs the tests should see it")]
    pub(crate) fn key(kind: &'static str) -> Option<Self> {
        if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
            assert!(std::env::var_os("CI").is_none(), "openssl is not installed");
            eprintln!("skipped: openssl is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let file = file.to_str().unwrap();
        let ec = |curve: &str| format!("ec_paramgen_curve:{curve}");
        let (algorithm, option) = match kind {
            "p256" => ("EC", ec("P-256")),
            "p384" => ("EC", ec("P-384")),
            "secp256k1" => ("EC", ec("secp256k1")),
            "rsa1024" => ("RSA", "rsa_keygen_bits:1024".to_owned()),
            "rsa2048" => ("RSA", "rsa_keygen_bits:2048".to_owned()),
            _ => ("ED25519", String::new()),
        };
        let mut arguments = vec!["genpkey", "-algorithm", algorithm, "-out", file];
        if !option.is_empty() {
            arguments.extend(["-pkeyopt", &option]);
        }
        openssl(&arguments, b"");
        Some(Self { dir, kind })
    }

    fn path(&self) -> String {
        self.dir.path().join("key").to_str().unwrap().to_owned()
    }

    /// The public half, as PEM.
    pub(crate) fn public(&self) -> String {
        String::from_utf8(openssl(&["pkey", "-in", &self.path(), "-pubout"], b"")).unwrap()
    }

    /// The private half, as PEM.
    pub(crate) fn private(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap()
    }

    /// A signature over `message`, with SHA-256 where the key needs a hash.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let file = self.dir.path().join("message");
        std::fs::write(&file, message).unwrap();
        let (file, key) = (file.to_str().unwrap(), self.path());
        match self.kind {
            "ed25519" => openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", &key, "-in", file], b""),
            _ => openssl(&["dgst", "-sha256", "-sign", &key, file], b""),
        }
    }
}

/// Runs openssl.
pub(crate) fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    output.stdout
}
