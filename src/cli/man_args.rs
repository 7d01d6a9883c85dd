//! Arguments of `ocifs man` and `ocifs completion`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

#[derive(Args, Debug)]
pub(super) struct CompletionArgs {
    /// Shell of the completion.
    #[arg(value_name = "SHELL")]
    pub(super) shell: Shell,
}

#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// Command in as many words as it has: mount, or cache verify. Default: ocifs itself.
    #[arg(value_name = "COMMAND")]
    pub(super) command: Vec<String>,

    /// Write the pages of all commands into this directory.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub(super) all: Option<PathBuf>,
}
