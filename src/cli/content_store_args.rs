//! `--content-store`: blobs that other tools have stored on this machine.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::source;

use super::exit::CliError;

/// An empty value means no store.
fn maybe_empty() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The content stores of other tools.
#[derive(Args, Debug)]
pub(super) struct ContentArgs {
    /// Read blobs from DIR/blobs/sha256/..., as containerd and OCI layouts keep them, after verifying their digests. May be repeated,
    /// or a list with colons. Default: containerd's, where this user may read it; empty for none.
    #[arg(long, value_name = "DIR", env = "OCIFS_CONTENT_STORE", value_delimiter = ':', value_parser = maybe_empty())]
    content_store: Option<Vec<PathBuf>>,
}

impl ContentArgs {
    /// The directories as absolute paths: a background mount changes its working directory.
    pub(super) fn stores(&self) -> Result<Vec<PathBuf>, CliError> {
        let Some(named) = &self.content_store else { return Ok(source::usual_stores()) };
        let given = named.iter().filter(|path| !path.as_os_str().is_empty());
        given
            .map(std::path::absolute)
            .collect::<Result<_, _>>()
            .map_err(|error| CliError::local("finding the working directory", &error))
    }
}
