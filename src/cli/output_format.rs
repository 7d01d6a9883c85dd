//! `--format`: text or JSON.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// Text for reading.
    Text,
    /// JSON with a schemaVersion.
    Json,
}
