//! Manual pages and completions, made from what can be typed.
//!
//! Never says what the parser does not: both are written by the parser's own description of the options, so that they cannot fall
//! behind it.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::Cli;
use super::exit::Failure;
use super::output;

/// What the pages belong to.
const MANUAL: &str = "ocifs manual";

#[derive(Args, Debug)]
pub(super) struct CompletionArgs {
    /// The shell that reads it.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// The command, in as many words as it has: mount, or cache verify. Default: ocifs itself.
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,

    /// Write the pages of all commands into this directory.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    all: Option<PathBuf>,
}

/// Writes a completion to standard output.
pub(super) fn completion(args: &CompletionArgs) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ocifs", &mut text);
    print(&text)
}

/// Writes a manual page to standard output, or all of them to files.
pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let whole = whole();
    if let Some(dir) = &args.all {
        return all(&whole, dir);
    }
    let mut chosen = &whole;
    for word in &args.command {
        let found = chosen.find_subcommand(word).filter(|found| !found.is_hide_set());
        chosen = found
            .ok_or_else(|| Failure::usage(format!("there is no command {:?}", args.command.join(" "))))?;
    }
    let mut text = Vec::new();
    page(chosen).render(&mut text).map_err(|error| Failure::local("writing the page", &error))?;
    print(&text)
}

/// The command line with every name filled in.
fn whole() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

fn page(command: &Command) -> Man {
    Man::new(command.clone()).manual(MANUAL).source(concat!("ocifs ", env!("CARGO_PKG_VERSION")))
}

fn all(command: &Command, dir: &Path) -> Result<(), Failure> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        all(below, dir)?;
    }
    let page = page(command);
    let path = dir.join(page.get_filename());
    let written = File::create(&path).and_then(|mut file| page.render(&mut file));
    written.map_err(|error| Failure::local(format!("writing {}", path.display()), &error))
}

fn print(text: &[u8]) -> Result<(), Failure> {
    let mut out = output::plain_stdout();
    let written: io::Result<()> = out.write_all(text).and_then(|()| out.flush());
    output::printed(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_under_its_whole_name() {
        let dir = tempfile::tempdir().unwrap();
        all(&whole(), dir.path()).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        for expected in
            ["ocifs.1", "ocifs-mount.1", "ocifs-cache-verify.1", "ocifs-index-push.1", "ocifs-csi.1"]
        {
            assert!(names.iter().any(|name| name == expected), "{expected} is not among {names:?}");
        }
        assert!(names.iter().all(|name| !name.contains("help")), "{names:?}");
        let text = std::fs::read_to_string(dir.path().join("ocifs-mount.1")).unwrap();
        assert!(text.contains("cache\\-dir") && !text.contains("over\\-dead"), "{text}");
    }
}
