//! Command line: arguments to options, results to text, errors to exit codes and hints.
//!
//! Only this module prints: data goes to standard output, everything else to standard error.

mod again;
mod args;
mod arrange;
mod background;
mod blob_totals;
mod cache;
mod cache_args;
mod cache_size;
mod cat;
mod content_store_args;
mod cp;
#[cfg(feature = "csi")]
mod csi;
#[cfg(feature = "csi")]
mod csi_args;
mod daemon;
mod daemon_args;
mod delay_connect;
mod doctor;
mod exit;
mod export;
mod index;
mod index_args;
mod index_source_args;
mod inspect;
mod journal;
mod kernel_choice;
mod list;
mod listing;
mod ls;
mod man;
mod man_args;
mod manual;
mod metrics_server;
mod mistakes;
mod mount;
mod network;
mod notify;
mod options;
mod output;
mod output_format;
mod parser;
mod preserve;
mod progress;
mod pull;
mod record;
mod refresh;
mod require_lazy;
mod resolve;
mod run;
mod run_child;
mod secret;
mod service;
mod setup;
mod socket;
mod status;
mod status_html;
mod table;
mod threads;
mod umount;
mod verify;
mod verify_args;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory as _, FromArgMatches as _, Parser as _};

use crate::registry;

use args::MountArgs;
use arrange::HelpLength;
use exit::{CliError, ExitStyle};
use index_args::IndexCommand;
use parser::{Cli, CliCommand};

/// Runs the command line `argv`, the program's name first. Returns the exit code of the process.
pub fn main(argv: Vec<OsString>) -> ExitCode {
    if crate::mount::is_monitor() {
        // The monitor reports only to the process that started it, which sees its end.
        return if crate::mount::keep().is_ok() { ExitCode::SUCCESS } else { ExitCode::from(exit::GENERIC) };
    }
    let style = ExitStyle::of(argv.first());
    let argv = match options::rewrite(argv, style) {
        Ok(options::RewrittenArgs::Arguments(argv)) => argv,
        Ok(options::RewrittenArgs::Fake) => return ExitCode::SUCCESS,
        Err(failure) => return failure.report(style),
    };
    let argv = match verify::resolve(argv) {
        Ok(argv) => argv,
        Err(failure) => return failure.report(style),
    };
    let cli = match parse(&argv) {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and versions to standard output, usage errors to standard error.
            if error.use_stderr() && !journal::error_prefix().is_empty() {
                let lines = error.render().to_string();
                let lines: Vec<&str> = lines.lines().filter(|line| !line.trim().is_empty()).collect();
                return CliError::usage(lines.join("; ")).report(style);
            }
            let printed = print_parsed(&error);
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            return match printed {
                Ok(()) => style.code(code),
                Err(error) => output::printed(Err(error))
                    .map_or_else(|failure| failure.report(style), |()| style.code(code)),
            };
        }
    };
    match run(cli, argv) {
        Ok(code) => code,
        Err(failure) => failure.report(style),
    }
}

/// Parses the arguments; `-h` shows the usual options in short.
fn parse(argv: &[OsString]) -> Result<Cli, clap::Error> {
    // The arrangement shows in help and errors alone.
    if let Ok(cli) = Cli::try_parse_from(argv) {
        return Ok(cli);
    }
    let is_short = argv.iter().take_while(|word| *word != "--").any(|word| word == "-h");
    let length = if is_short { HelpLength::Short } else { HelpLength::Long };
    let mut command = arrange::arranged(Cli::command(), length);
    let matches = command.try_get_matches_from_mut(argv).map_err(without_secrets)?;
    Cli::from_arg_matches(&matches).map_err(|error| without_secrets(error.format(&mut command)))
}

/// The error without users, passwords and signatures in the web addresses that it quotes.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    for kind in [ContextKind::InvalidValue, ContextKind::InvalidArg] {
        if let Some(ContextValue::String(text)) = error.get(kind)
            && let Some(shown) = registry::shown_address(text)
        {
            error.insert(kind, ContextValue::String(shown));
        }
    }
    error
}

/// Prints the output of the parser: help, the version, or an error. An error quotes arguments, which may come from an
/// untrusted source by a script, so it is made printable.
fn print_parsed(error: &clap::Error) -> std::io::Result<()> {
    let text = error.render().to_string();
    let is_ours = !text.chars().any(|c| c != '\n' && crate::io::is_unprintable(c));
    match error.use_stderr() && !is_ours {
        false => error.print(),
        true => {
            let lines: Vec<_> = text.lines().map(crate::io::message).collect();
            std::io::stderr().write_all(format!("{}\n", lines.join("\n")).as_bytes())
        }
    }
}

fn run(cli: Cli, argv: Vec<OsString>) -> Result<ExitCode, CliError> {
    if let CliCommand::Mount(args) = &cli.command {
        mistakes::in_order(args)?;
    }
    match cli.command {
        // A foreground mount: the password in its arguments would be readable for its lifetime, and the allocator
        // reads its limit at the start.
        CliCommand::Mount(args) if args.foreground && !background::is_child() && is_to_start_anew(&args) => {
            Err(secret::become_clean(&argv, secret::SecretInput::of(&args.image.location)))
        }
        CliCommand::Mount(args) if args.refresh && !background::is_child() && refresh::is_current(&args)? => {
            Ok(())
        }
        CliCommand::Mount(args) if !args.foreground && !background::is_child() => {
            background::launch(&argv, secret::SecretInput::of(&args.image.location))
        }
        CliCommand::Mount(mut args) => {
            args.image.creds = secret::take()?;
            mount::mount(args, &argv)
        }
        CliCommand::Umount(args) => umount::umount(&args),
        CliCommand::Inspect(args) => inspect::inspect(&args),
        CliCommand::Ls(args) => ls::ls(&args),
        CliCommand::Cat(args) => cat::cat(&args),
        CliCommand::Cp(args) => cp::cp(&args),
        CliCommand::Export(args) => export::export(&args),
        CliCommand::Pull(args) => pull::pull(&args),
        CliCommand::Resolve(args) => resolve::resolve(&args),
        CliCommand::Index(IndexCommand::Build(args)) => index::build(&args),
        CliCommand::Index(IndexCommand::Push(args)) => index::push(&args),
        CliCommand::Verify(args) => verify::verify(&args),
        CliCommand::Cache(command) => cache::run(&command),
        CliCommand::Record(args) => record::record(&args),
        CliCommand::Doctor(args) => doctor::doctor(&args),
        CliCommand::List(args) => list::list(&args),
        CliCommand::Status(args) => status::status(&args),
        CliCommand::Run(args) => run::run(&args, &argv),
        #[cfg(feature = "csi")]
        CliCommand::Csi(args) => csi::serve(args),
        CliCommand::Completion(args) => man::completion(&args),
        CliCommand::Man(args) => man::man(&args),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Whether a process that serves a mount first executes its program again.
fn is_to_start_anew(args: &MountArgs) -> bool {
    args.image.creds.is_some() || threads::heap_limit().is_some() && Path::new("/proc/self/exe").exists()
}
