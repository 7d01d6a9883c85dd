//! Verification arguments: `--verify` and `--require-signature`, with the key files.
//!
//! Their meaning is implemented where bytes are stored, layers are read and references are opened.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::cache::VerifyMode;
use crate::oci::{MAX_KEY_FILE, PublicKey};

use super::exit::CliError;

/// How much is believed.
#[derive(Args, Debug)]
pub(super) struct TrustArgs {
    /// Choose when bytes are compared with their digests.
    #[arg(long, value_name = "WHEN", default_value = "lazy")]
    pub(super) verify: VerifyWhen,

    /// Refuse images without a cosign signature of this public key (PEM file). May be repeated: one of the keys has to match.
    #[arg(long, value_name = "KEY")]
    pub(super) require_signature: Vec<PathBuf>,
}

impl TrustArgs {
    /// The files that hold the keys.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        // An invalid path is reported when the key is read.
        self.require_signature.iter().filter_map(|file| std::path::absolute(file).ok())
    }

    /// The accepted keys: one of them must have signed the image.
    pub(super) fn keys(&self) -> Result<Vec<PublicKey>, CliError> {
        self.require_signature.iter().map(|file| read_key(file)).collect()
    }
}

/// Reads the public key in a PEM file.
pub(super) fn read_key(file: &Path) -> Result<PublicKey, CliError> {
    let failed = |error: std::io::Error| CliError::local(format!("reading key {}", file.display()), &error);
    let mut bytes = Vec::new();
    // One byte more than allowed, so that the parser detects the excess.
    File::open(file).and_then(|open| open.take(MAX_KEY_FILE + 1).read_to_end(&mut bytes)).map_err(failed)?;
    PublicKey::parse(&file.display().to_string(), &bytes).map_err(|error| CliError::usage(error.to_string()))
}

/// What --verify can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum VerifyWhen {
    /// Serve bytes of a large blob as they arrive, and verify the whole when it is complete.
    Lazy,
    /// Verify the whole blob before its first byte is served.
    Strict,
    /// Read only layers whose every part has a digest of its own that the manifest covers.
    Toc,
}

impl From<VerifyWhen> for VerifyMode {
    fn from(when: VerifyWhen) -> Self {
        match when {
            VerifyWhen::Lazy => VerifyMode::Lazy,
            VerifyWhen::Strict => VerifyMode::Strict,
            VerifyWhen::Toc => VerifyMode::Toc,
        }
    }
}
