//! Mount options in the form of mount(8): the bare form `ocifs REF DIR -o ...`, and `-o` lists.
//!
//! Both are rewritten to ordinary arguments before parsing, so that each option has one meaning.

use std::ffi::{OsStr, OsString};

use clap::CommandFactory as _;

use super::exit::{CliError, ExitStyle};
use super::mistakes::{OptionForm, known_option};
use super::parser::Cli;

/// Generic options that state a default, or that are meant for mount(8) and similar tools.
const IGNORED: &[&str] = &[
    "ro",
    "nosuid",
    "nodev",
    "exec",
    "noatime",
    "atime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "nodiratime",
    "diratime",
    "async",
    "sync",
    "dirsync",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nogroup",
    "defaults",
    "nofail",
    "_netdev",
    "silent",
    "loud",
    "nonetdev",
];

/// The result of rewriting.
pub(super) enum RewrittenArgs {
    /// Ordinary arguments.
    Arguments(Vec<OsString>),
    /// mount(8) requested a dry run (`-f`).
    Fake,
}

/// Rewrites the bare form to `mount`, and `-o` lists to long options.
pub(super) fn rewrite(argv: Vec<OsString>, style: ExitStyle) -> Result<RewrittenArgs, CliError> {
    let mut argv = argv.into_iter();
    let program = argv.next().unwrap_or_else(|| "ocifs".into());
    let mut rest: Vec<OsString> = argv.collect();
    // Many programs have `version` as a command.
    if let [word] = &rest[..]
        && word == "version"
        && style == ExitStyle::Own
    {
        return Ok(RewrittenArgs::Arguments(vec![program, "--version".into()]));
    }
    let is_word = |word: &OsStr| !word.as_encoded_bytes().starts_with(b"-");
    // A mistyped command is not taken for a reference, which has a slash, a colon or an at sign, or comes with mount
    // options.
    let names_image = |word: &OsStr| word.as_encoded_bytes().iter().any(|byte| b"/:@".contains(byte));
    let has_options = rest.iter().any(|word| word == "-o");
    let bare = style == ExitStyle::MountHelper
        || rest.len() >= 2
            && rest
                .first()
                .is_some_and(|word| is_word(word) && !is_command(word) && (has_options || names_image(word)));
    if style == ExitStyle::MountHelper {
        if rest.iter().any(|word| word == "-f") {
            return Ok(RewrittenArgs::Fake);
        }
        // mount(8) passes -s (sloppy), -n (no mtab) and -v (verbose), in any combination, and may name the type.
        let flags = |word: &OsString| {
            word.to_str()
                .and_then(|word| word.strip_prefix('-'))
                .is_some_and(|flags| !flags.is_empty() && flags.chars().all(|flag| "snv".contains(flag)))
        };
        rest.retain(|word| !flags(word));
        if let Some(at) = rest.iter().position(|word| word == "-t") {
            rest.drain(at..rest.len().min(at + 2));
        }
    }
    let mut out = vec![program];
    if bare {
        out.push("mount".into());
    }
    if !bare && rest.first().is_none_or(|word| word != "mount" && word != "run") {
        out.extend(rest);
        return Ok(RewrittenArgs::Arguments(out));
    }
    let mut words = rest.into_iter();
    while let Some(word) = words.next() {
        let list = match word.to_str() {
            Some("--") => {
                out.push(word);
                out.extend(words);
                break;
            }
            Some("-o") => match words.next() {
                Some(list) => list,
                None => return Err(CliError::usage("option -o needs a list of mount options")),
            },
            Some(word) if word.starts_with("-o") && !word.starts_with("-o=") => word[2..].into(),
            _ => {
                out.push(word);
                continue;
            }
        };
        let Some(list) = list.to_str() else { return Err(CliError::usage("mount options are not UTF-8")) };
        for option in split(list) {
            // mount(8) adds rw unless ro is given, and mount.fuse3 adds suid and dev unless they are negated. The
            // user did not ask for these.
            let unasked = match option.as_str() {
                "rw" => style == ExitStyle::MountHelper,
                "suid" | "dev" => bare,
                _ => false,
            };
            if !unasked {
                out.extend(translate(&option)?);
            }
        }
    }
    Ok(RewrittenArgs::Arguments(out))
}

/// Whether a word is a command of ocifs, or its alias.
fn is_command(word: &OsStr) -> bool {
    word == "help" || Cli::command().find_subcommand(word).is_some()
}

/// Splits at commas without a backslash before them.
fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        // The list is never empty: it starts with one string and only grows.
        let at = options.len() - 1;
        match c {
            ',' => options.push(String::new()),
            '\\' => match chars.next() {
                Some(next @ (',' | '\\')) => options[at].push(next),
                Some(next) => options[at].extend(['\\', next]),
                None => options[at].push('\\'),
            },
            c => options[at].push(c),
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

/// A mount option as an argument; `None` for one without effect.
fn translate(option: &str) -> Result<Option<OsString>, CliError> {
    let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
    match name {
        "rw" => {
            return Err(CliError::usage(
                "mount option rw: ocifs mounts are read-only; put an overlay on top to write",
            ));
        }
        "auto_unmount" => {
            return Err(CliError::usage(
                "mount option auto_unmount is not supported; ocifs unmounts when it ends",
            ));
        }
        "fsname" | "subtype" | "comment" => return Ok(None),
        name if IGNORED.contains(&name) || name.starts_with("x-") || name.starts_with("X-") => {
            return Ok(None);
        }
        _ => {}
    }
    if known_option(name)? == OptionForm::Flag && value.is_some() {
        return Err(CliError::usage(format!("mount option {name} takes no value")));
    }
    let long = format!("--{}", name.replace('_', "-"));
    Ok(Some(value.map_or(long.clone(), |value| format!("{long}={value}")).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(line: &str) -> Result<String, String> {
        let argv: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let style = ExitStyle::of(argv.first());
        match rewrite(argv, style).map_err(|failure| failure.to_string())? {
            RewrittenArgs::Fake => Ok("fake".into()),
            RewrittenArgs::Arguments(argv) => {
                Ok(argv.iter().skip(1).map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn every_form_of_mount_is_the_same_mount() {
        let same = "mount ghcr.io/a/b:v1 /mnt --cache-dir=/var/c --view=merged";
        assert_eq!(rewritten("ocifs ghcr.io/a/b:v1 /mnt -o cache_dir=/var/c,view=merged").unwrap(), same);
        assert_eq!(
            rewritten("ocifs mount ghcr.io/a/b:v1 /mnt -ocache-dir=/var/c -o view=merged").unwrap(),
            same
        );
        assert_eq!(
            rewritten("/sbin/mount.ocifs ghcr.io/a/b:v1 /mnt -n -o ro,_netdev,x-systemd.automount,cache_dir=/var/c,nofail,view=merged").unwrap(),
            same
        );
        assert_eq!(rewritten("mount.ocifs a/b /mnt -f").unwrap(), "fake");
        assert_eq!(
            rewritten("mount.ocifs a/b /mnt -sv -t fuse.ocifs -o rw,noexec").unwrap(),
            "mount a/b /mnt --noexec"
        );
        assert_eq!(
            rewritten("mount.ocifs a/b /mnt -o passthrough=off").unwrap(),
            "mount a/b /mnt --passthrough=off"
        );
        assert_eq!(rewritten("ocifs lst ./x").unwrap(), "lst ./x");
    }

    #[test]
    fn options_of_more_than_one_word_mean_the_same_with_underscores_and_hyphens() {
        let same = "mount a/b /mnt --on-conflict=error --layer-name=org.example.part_name --media-type=a/b_c";
        for list in [
            "on_conflict=error,layer_name=org.example.part_name,media_type=a/b_c",
            "on-conflict=error,layer-name=org.example.part_name,media-type=a/b_c",
        ] {
            assert_eq!(rewritten(&format!("ocifs mount a/b /mnt -o {list}")).unwrap(), same);
            assert_eq!(rewritten(&format!("mount.ocifs a/b /mnt -o rw,{list}")).unwrap(), same);
        }
    }

    #[test]
    fn commas_in_values_are_escaped() {
        assert_eq!(
            rewritten("ocifs r /d -o subdir=a\\,b,noexec").unwrap(),
            "mount r /d --subdir=a,b --noexec"
        );
    }

    #[test]
    fn rw_and_auto_unmount_are_refused_and_other_commands_left_alone() {
        assert!(rewritten("ocifs r /d -o rw").unwrap_err().contains("read-only"));
        assert!(rewritten("ocifs r /d -o auto_unmount").unwrap_err().contains("not supported"));
        for flag in ["suid", "allow_other", "nonempty", "hide_symlinks", "over_dead", "offline"] {
            let error = rewritten(&format!("ocifs r /d -o {flag}=on")).unwrap_err();
            assert_eq!(error, format!("mount option {flag} takes no value"));
        }
        assert_eq!(rewritten("ocifs cat r -o").unwrap(), "cat r -o");
        assert_eq!(rewritten("ocifs --help").unwrap(), "--help");
    }
}
