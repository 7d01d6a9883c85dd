//! Mistaken command lines that parse with another meaning: swapped arguments, options of other file systems.
//!
//! Changes nothing, and opens no image.

use std::path::Path;

use clap::CommandFactory as _;

use crate::io::shell_word;
use crate::source::ImageLocation;

use super::args::MountArgs;
use super::exit::CliError;
use super::parser::Cli;

/// Rejects a mount whose directory was typed first.
pub(super) fn in_order(args: &MountArgs) -> Result<(), CliError> {
    let Some(first) = args.image.location.path() else { return Ok(()) };
    // The mount point is checked last: a mount before its takeover does not answer yet. For a correct command line
    // the first argument decides.
    let is_swapped = first.is_dir() && !first.join("oci-layout").exists() && names_image(&args.dir);
    if !is_swapped {
        return Ok(());
    }
    let hint = [args.dir.as_path(), first].map(|word| shell_word(word.as_os_str().as_encoded_bytes()));
    let hint = match hint {
        [Some(reference), Some(dir)] => Some(format!("ocifs mount {reference} {dir}")),
        _ => None,
    };
    let message = format!(
        "the reference comes first, and the directory second: {} is a directory, and {} is not",
        first.display(),
        args.dir.display()
    );
    Err(CliError::usage(message).hinting(hint))
}

/// Whether a word is a reference or a layout, and not a directory that could be a mount point.
fn names_image(word: &Path) -> bool {
    let Some(Ok(location)) = word.to_str().map(str::parse::<ImageLocation>) else { return false };
    match location.reference() {
        Some(_) => !word.is_dir(),
        None => is_layout(&location) && !word.is_dir(),
    }
}

fn is_layout(location: &ImageLocation) -> bool {
    location.path().is_some_and(|path| path.join("oci-layout").exists() || path.is_file())
}

/// The form of a mount option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OptionForm {
    /// It takes no value.
    Flag,
    /// It takes a value, perhaps an optional one.
    Valued,
}

/// The form of a mount option, from the options of the commands. Rejects an unknown one, by the name that was typed.
pub(super) fn known_option(name: &str) -> Result<OptionForm, CliError> {
    let why = match name {
        "remount" => {
            return Err(CliError::usage(
                "a mount of ocifs cannot be remounted: unmount it, or replace it with --refresh",
            ));
        }
        "uid" | "gid" | "umask" | "fmask" | "dmask" | "mode" => {
            ": files have the owners and the modes that the image records"
        }
        _ => "",
    };
    let long = name.replace('_', "-");
    let command = Cli::command();
    let commands = ["mount", "run"].iter().filter_map(|command_name| command.find_subcommand(command_name));
    let mut arguments = commands.flat_map(clap::Command::get_arguments);
    let known = arguments.find(|argument| {
        argument.get_long() == Some(&long)
            || argument.get_all_aliases().unwrap_or_default().iter().any(|alias| *alias == long)
    });
    match known {
        Some(argument) if argument.get_action().takes_values() => Ok(OptionForm::Valued),
        Some(_) => Ok(OptionForm::Flag),
        None => Err(CliError::usage(format!("unknown mount option {name}{why}"))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::parser::CliCommand;
    use super::*;

    fn order(first: &Path, second: &str) -> Result<(), CliError> {
        let cli = Cli::try_parse_from(["ocifs", "mount", first.to_str().unwrap(), second]).unwrap();
        let CliCommand::Mount(args) = cli.command else { unreachable!("it is mount") };
        in_order(&args)
    }

    #[test]
    fn a_directory_that_is_typed_first_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let error = order(dir.path(), "registry.example/some/image:1").unwrap_err();
        assert!(error.to_string().contains("comes first"), "{error}");
        assert!(error.hint().unwrap().starts_with("ocifs mount registry.example/some/image:1 /"));
        std::fs::write(dir.path().join("oci-layout"), b"{}").unwrap();
        assert!(order(dir.path(), "registry.example/some/image:1").is_ok(), "a layout comes first");
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let sub = dir.path().join("sub");
        assert!(order(&sub, sub.to_str().unwrap()).is_ok());
    }

    #[test]
    fn an_unknown_mount_option_is_called_that() {
        for (name, expected) in [
            ("bogus", "unknown mount option bogus"),
            ("uid", "unknown mount option uid: files have the owners"),
            ("remount", "cannot be remounted"),
        ] {
            let error = known_option(name).unwrap_err().to_string();
            assert!(error.starts_with(expected) || error.contains(expected), "{error}");
            assert!(!error.contains("--bogus"));
        }
        for name in ["cache_dir", "view", "allow_suid", "suid", "hide-symlinks", "passthrough", "nonempty"] {
            assert!(known_option(name).is_ok(), "{name}");
        }
    }
}
