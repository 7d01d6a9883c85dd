//! Manual pages and completions, generated from the parser.
//!
//! Both are written from the parser's own description of the options, so that they cannot fall behind it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use clap::builder::PossibleValuesParser;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::arrange::{HelpLength, VIEWS, arranged};
use super::exit::CliError;
use super::man_args::{CompletionArgs, ManArgs};
use super::parser::Cli;
use super::{manual, output};

/// The title of the manual.
const MANUAL: &str = "ocifs manual";

/// Platforms that a completion offers.
const PLATFORMS: [&str; 9] = [
    "all",
    "linux/386",
    "linux/amd64",
    "linux/arm/v7",
    "linux/arm64",
    "linux/ppc64le",
    "linux/riscv64",
    "linux/s390x",
    "windows/amd64",
];

/// Completion of positional arguments for bash.
const BASH: &str = r#"
_ocifs_mounts() {
    ocifs list --format json 2>/dev/null | sed -n 's/^ *"directory": "\(.*\)",$/\1/p'
}

_ocifs_names() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} word command= names=0 i
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
            --) if ((i == COMP_CWORD - 1)); then COMPREPLY=($(compgen -c -- "$cur")); else COMPREPLY=(); compopt -o default; fi
                return ;;
            -*) ;;
            *) if [[ -z $command ]]; then command=$word; elif [[ ${COMP_WORDS[i-1]} != -* ]]; then ((names++)); fi ;;
        esac
    done
    case $prev in @FLAGS@) ;; -*) _ocifs "$@"; return ;; esac
    case $cur in -*) _ocifs "$@"; return ;; esac
    if [[ -z $command ]]; then _ocifs "$@"; return; fi
    local IFS=$'\n'
    case $command in
        umount|unmount|status)
            compopt -o filenames; COMPREPLY=($(compgen -W "$(_ocifs_mounts)" -- "$cur"))
            ((${#COMPREPLY[@]})) || COMPREPLY=($(compgen -d -- "$cur")) ;;
        verify)
            compopt -o filenames; COMPREPLY=($(compgen -W "$(_ocifs_mounts)" -- "$cur") $(compgen -f -- "$cur")) ;;
        mount)
            compopt -o filenames
            if ((names)); then COMPREPLY=($(compgen -d -- "$cur")); else COMPREPLY=($(compgen -f -- "$cur")); fi ;;
        man)
            IFS=$' \t\n'; COMPREPLY=($(compgen -W "@COMMANDS@ mount.ocifs" -- "$cur")) ;;
        run|record|inspect|ls|cat|cp|export|pull|resolve|doctor)
            compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")) ;;
        *) IFS=$' \t\n'; _ocifs "$@" ;;
    esac
}

complete -F _ocifs_names -o nosort -o bashdefault ocifs 2>/dev/null || complete -F _ocifs_names ocifs
"#;

/// Writes a completion to standard output.
pub(super) fn completion(args: &CompletionArgs) -> Result<(), CliError> {
    let mut text = Vec::new();
    let mut command = completable(arranged(Cli::command(), HelpLength::Long));
    clap_complete::generate(args.shell, &mut command, "ocifs", &mut text);
    if args.shell == Shell::Bash {
        text.extend_from_slice(more_for_bash(&command).as_bytes());
    }
    print(&text)
}

/// The command with values that completions offer, but the parser does not require.
fn completable(command: Command) -> Command {
    let command = command.mut_args(|argument| match argument.get_long() {
        Some("view") => argument.value_parser(PossibleValuesParser::new(VIEWS)),
        Some("platform") => argument.value_parser(PossibleValuesParser::new(PLATFORMS)),
        _ => argument,
    });
    command.mut_subcommands(completable)
}

/// The part of the bash completion that the generator lacks: positional arguments. Mounts for the commands that take
/// one, directories after a reference, commands after a double dash, and command names for man.
fn more_for_bash(command: &Command) -> String {
    let mut flags: Vec<String> = Vec::new();
    let mut commands: Vec<String> = Vec::new();
    let mut todo = vec![command];
    while let Some(command) = todo.pop() {
        for argument in command.get_arguments().filter(|argument| !argument.get_action().takes_values()) {
            flags.extend(argument.get_long().map(|long| format!("--{long}")));
            flags.extend(argument.get_short().map(|short| format!("-{short}")));
        }
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            commands.push(below.get_name().to_owned());
            todo.push(below);
        }
    }
    for words in [&mut flags, &mut commands] {
        words.sort();
        words.dedup();
    }
    BASH.replace("@FLAGS@", &flags.join("|")).replace("@COMMANDS@", &commands.join(" "))
}

/// Writes a manual page to standard output, or all of them to files.
pub(super) fn man(args: &ManArgs) -> Result<(), CliError> {
    let whole = whole();
    if let Some(dir) = &args.all {
        all(&whole, &whole, dir)?;
        let mut text = Vec::new();
        manual::mount_helper(&mut text).map_err(|error| CliError::local("writing the page", &error))?;
        let path = dir.join("mount.ocifs.8");
        let written = File::create(&path).and_then(|mut file| file.write_all(&text));
        return written.map_err(|error| CliError::local(format!("writing {}", path.display()), &error));
    }
    let mut text = Vec::new();
    let failed = |error: io::Error| CliError::local("writing the page", &error);
    if args.command == ["mount.ocifs"] {
        manual::mount_helper(&mut text).map_err(failed)?;
        return print(&text);
    }
    let mut chosen = &whole;
    for word in &args.command {
        let found = chosen.find_subcommand(word).filter(|found| !found.is_hide_set());
        chosen =
            found.ok_or_else(|| CliError::usage(format!("unknown command {:?}", args.command.join(" "))))?;
    }
    render(&whole, chosen, &mut text).map_err(failed)?;
    print(&text)
}

/// The complete command line: every name is filled in.
fn whole() -> Command {
    let mut command = arranged(Cli::command(), HelpLength::Long).disable_help_subcommand(true);
    command.build();
    command
}

fn page(command: &Command) -> Man {
    Man::new(command.clone()).manual(MANUAL).source(concat!("ocifs ", env!("CARGO_PKG_VERSION")))
}

fn render(whole: &Command, command: &Command, out: &mut dyn Write) -> io::Result<()> {
    let page = page(command);
    page.render(out)?;
    let name = page.get_filename();
    let name = name.strip_suffix(".1").unwrap_or(&name);
    let is_top = command.get_name() == whole.get_name();
    let below = command.get_subcommands().filter(|below| !below.is_hide_set());
    let below = below.filter(|_| !is_top).map(|below| format!("{name}-{}", below.get_name()));
    let above = (!is_top).then(|| "ocifs".to_owned());
    let beside = is_top.then(|| "ocifs-mount".to_owned());
    let related: Vec<String> = above.into_iter().chain(beside).chain(below).collect();
    manual::sections(name, &related, out)
}

fn all(whole: &Command, command: &Command, dir: &Path) -> Result<(), CliError> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        all(whole, below, dir)?;
    }
    let path = dir.join(page(command).get_filename());
    let written = File::create(&path).and_then(|mut file| render(whole, command, &mut file));
    written.map_err(|error| CliError::local(format!("writing {}", path.display()), &error))
}

fn print(text: &[u8]) -> Result<(), CliError> {
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
        all(&whole(), &whole(), dir.path()).unwrap();
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
