//! Arrangement of options in help and completions: headings, short texts, hidden options.
//!
//! Defines no option and parses nothing. One table holds for all commands; an option outside the table stands under
//! "Options" with its own text.

use clap::{Arg, Command, ValueHint};

/// The extent of a help text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HelpLength {
    /// `-h`: one line for each of the usual options, without values and defaults.
    Short,
    /// `--help`, manual pages and completions: everything.
    Long,
}

/// Whether `-h` lists an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShortHelp {
    Usual,
    Rare,
}
use ShortHelp::{Rare, Usual};

const SOURCE: &str = "Source and selection";
const VIEW: &str = "View";
const CACHE: &str = "Cache";
const VERIFICATION: &str = "Verification";
const REGISTRY: &str = "Registry and credentials";
const MOUNT: &str = "Mount";
const PERFORMANCE: &str = "Performance";
const LOGGING: &str = "Logging";
const OUTPUT: &str = "Output";

/// Long name, heading, use, and the line for `-h`.
const OPTIONS: &[(&str, &str, ShortHelp, &str)] = &[
    ("platform", SOURCE, Usual, "Platform: os/arch[/variant], or all"),
    ("all-platforms", SOURCE, Usual, "Every platform of an index"),
    ("select", SOURCE, Usual, "Entries of an index, by property"),
    ("layer", SOURCE, Rare, "Only the layer with this number"),
    ("media-type", SOURCE, Rare, "Only layers of this type"),
    ("title", SOURCE, Rare, "Only layers with this title"),
    ("referrers", SOURCE, Usual, "Show signatures, attestations, SBOMs"),
    ("name", SOURCE, Rare, "Name of the image in the archive"),
    ("skip-non-distributable", SOURCE, Rare, "Leave out nondistributable layers"),
    ("skip-missing", SOURCE, Rare, "Leave out manifests that are missing"),
    ("foreign-layers", SOURCE, Rare, "Fetch layers from their own addresses"),
    ("view", VIEW, Usual, "Only one view, as the root"),
    ("subdir", VIEW, Usual, "Only this directory"),
    ("hide-symlinks", VIEW, Rare, "Leave symbolic links out"),
    ("hide-overlay-xattrs", VIEW, Rare, "Leave attributes of overlays out"),
    ("on-conflict", VIEW, Rare, "Archives that disagree about a path"),
    ("layer-name", VIEW, Rare, "Annotation that names layers/"),
    ("part-order", VIEW, Rare, "Order of the parts of a disk"),
    ("cache-dir", CACHE, Usual, "Directory of the cache"),
    ("cache-size", CACHE, Usual, "Limit of the cache directory"),
    ("no-cache", CACHE, Rare, "Use a temporary cache"),
    ("content-store", CACHE, Rare, "Content store of another tool"),
    ("offline", CACHE, Usual, "Use the cache alone"),
    ("verify", VERIFICATION, Usual, "When digests are compared"),
    ("require-signature", VERIFICATION, Usual, "Refuse images without this key"),
    ("creds", REGISTRY, Rare, "USER:PASSWORD"),
    ("anonymous", REGISTRY, Rare, "Use no credentials"),
    ("authfile", REGISTRY, Usual, "Credential file"),
    ("plain-http", REGISTRY, Usual, "Speak http instead of https"),
    ("tls-verify", REGISTRY, Rare, "Require a valid certificate"),
    ("cert-dir", REGISTRY, Rare, "Directory of certificates"),
    ("ca-file", REGISTRY, Rare, "File of authorities"),
    ("hosts-dir", REGISTRY, Rare, "Directory of hosts.toml files"),
    ("timeout", REGISTRY, Usual, "Longest wait of one read"),
    ("foreground", MOUNT, Usual, "Stay in the foreground"),
    ("refresh", MOUNT, Usual, "Replace a mount of an older digest"),
    ("delay-connect", MOUNT, Usual, "Mount before the registry answers"),
    ("allow-other", MOUNT, Usual, "Let other users in, as modes allow"),
    ("allow-suid", MOUNT, Rare, "Honour set-user-ID bits (root only)"),
    ("allow-dev", MOUNT, Rare, "Let device nodes work (root only)"),
    ("default-permissions", MOUNT, Rare, "Let the kernel check modes"),
    ("noexec", MOUNT, Rare, "Run no programs of the mount"),
    ("nonempty", MOUNT, Rare, "Mount over a directory with content"),
    ("sandbox", MOUNT, Rare, "Drop rights that serving does not need"),
    ("rw", MOUNT, Usual, "Let the command write to a layer"),
    ("index", PERFORMANCE, Rare, "Indexes of layers to use"),
    ("index-from", PERFORMANCE, Rare, "Repository with indexes of layers"),
    ("index-key", PERFORMANCE, Rare, "Key that must have signed an index"),
    ("prefetch", PERFORMANCE, Usual, "Content to fetch first"),
    ("trace", PERFORMANCE, Rare, "Trace for --prefetch=trace"),
    ("complete", PERFORMANCE, Rare, "Fetch everything in the background"),
    ("require-lazy", PERFORMANCE, Rare, "Refuse layers without an index"),
    ("passthrough", PERFORMANCE, Rare, "Let the kernel read the cache"),
    ("kernel", PERFORMANCE, Rare, "Let the kernel's EROFS serve the mount"),
    ("log-file", LOGGING, Usual, "Write the log to a file"),
    ("metrics", LOGGING, Rare, "Address of Prometheus counters"),
    ("output", OUTPUT, Usual, "File or directory; - for stdout"),
    ("format", OUTPUT, Usual, "Form of the output"),
    ("preserve", OUTPUT, Usual, "Write suid bits, devices, xattrs"),
    ("skip-manifest-json", OUTPUT, Rare, "Leave out manifest.json"),
    ("no-trunc", OUTPUT, Usual, "Show whole digests"),
    ("html", OUTPUT, Usual, "Write a page for a browser"),
    ("to", OUTPUT, Usual, "Index repository to publish in"),
    ("publish-index", OUTPUT, Usual, "Index repository to publish in too"),
    ("push", OUTPUT, Usual, "Publish as a referrer of the image"),
    ("no-progress", OUTPUT, Rare, "Show no progress"),
    ("quiet", OUTPUT, Usual, "Print errors alone"),
];

/// Texts of the long help for options that are hidden by their definition.
const SHOWN: &[(&str, &str)] = &[
    (
        "allow-other",
        "Let other users in, as the modes allow. Users other than root need user_allow_other in /etc/fuse.conf",
    ),
    ("default-permissions", "Let the kernel check the modes also for the owner alone"),
    ("noexec", "Refuse to run programs of the mount"),
    ("nonempty", "Mount over a directory that is not empty"),
];

/// Commands, and the options without a meaning for them: these are hidden.
const MEANINGLESS: &[(&[&str], &[&str])] = &[
    (
        &["resolve", "doctor", "build", "push"],
        &[
            "on-conflict",
            "layer-name",
            "part-order",
            "index",
            "index-from",
            "index-key",
            "referrers",
            "verify",
        ],
    ),
    (&["resolve", "doctor"], &["layer", "media-type", "title", "content-store", "foreign-layers"]),
    (&["run"], &["nonempty"]),
    (&["pull"], &["layer", "media-type", "title", "on-conflict", "layer-name", "part-order", "no-cache"]),
    (&["inspect"], &["on-conflict", "layer-name"]),
    (&["verify"], &["on-conflict", "layer-name", "part-order"]),
];

/// The kinds of values, for completions.
const HINTS: &[(&str, ValueHint)] = &[
    ("cache-dir", ValueHint::DirPath),
    ("cert-dir", ValueHint::DirPath),
    ("hosts-dir", ValueHint::DirPath),
    ("content-store", ValueHint::DirPath),
    ("all", ValueHint::DirPath),
    ("authfile", ValueHint::FilePath),
    ("ca-file", ValueHint::FilePath),
    ("require-signature", ValueHint::FilePath),
    ("index-key", ValueHint::FilePath),
    ("trace", ValueHint::FilePath),
    ("log-file", ValueHint::FilePath),
    ("output", ValueHint::AnyPath),
];

/// The views of a mount.
pub(super) const VIEWS: [&str; 6] = ["merged", "files", "disk", "layers", "blobs", "export"];

/// The command with headings, short texts and value hints set.
pub(super) fn arranged(command: Command, length: HelpLength) -> Command {
    let name = command.get_name().to_owned();
    let command = command
        .mut_args(|argument| argument_of(argument, &name, length))
        .mut_subcommands(|below| arranged(below, length));
    if name == "ocifs" {
        command.after_help("ocifs COMMAND -h lists the usual options, --help all of them.")
    } else {
        command
    }
}

fn argument_of(argument: Arg, command: &str, length: HelpLength) -> Arg {
    let argument = match argument.get_id().as_str() {
        "dir" | "dirs" => argument.value_hint(ValueHint::DirPath),
        "dest" => argument.value_hint(ValueHint::AnyPath),
        "location" => argument.value_hint(ValueHint::AnyPath),
        "command" if argument.is_last_set() => argument.value_hint(ValueHint::CommandWithArguments),
        _ => argument,
    };
    let Some(long) = argument.get_long().map(str::to_owned) else {
        // `-o`, and positional arguments.
        return match argument.get_short() {
            Some('o') => {
                argument.help_heading(MOUNT).help_of("Options of mount(8): -o ro,view=merged", length)
            }
            _ => argument,
        };
    };
    let mut argument = argument;
    if let Some((_, hint)) = HINTS.iter().find(|(name, _)| *name == long) {
        argument = argument.value_hint(*hint);
    }
    if let Some((_, text)) = SHOWN.iter().find(|(name, _)| *name == long) {
        argument = argument.hide(false).help(*text);
    }
    let is_meaningless = MEANINGLESS
        .iter()
        .any(|(commands, options)| commands.contains(&command) && options.contains(&&long[..]));
    if is_meaningless {
        argument = argument.hide(true);
    }
    let Some((_, heading, usual, short)) = OPTIONS.iter().find(|(name, ..)| *name == long) else {
        return argument;
    };
    argument.help_heading(*heading).hide_short_help(*usual == Rare).help_of(short, length)
}

trait HelpOf {
    /// Sets the line of `-h` instead of the whole text.
    fn help_of(self, short: &'static str, length: HelpLength) -> Self;
}

impl HelpOf for Arg {
    fn help_of(self, short: &'static str, length: HelpLength) -> Self {
        match length {
            HelpLength::Short if self.get_action().takes_values() => {
                self.help(short).hide_possible_values(true).hide_default_value(true).hide_env(true)
            }
            HelpLength::Short => self.help(short),
            HelpLength::Long => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::parser::Cli;
    use super::*;

    fn each(command: &mut Command, check: &mut impl FnMut(&str, String)) {
        let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
        check(&name, command.render_help().to_string());
        for below in command.get_subcommands_mut().filter(|below| !below.is_hide_set()) {
            each(below, check);
        }
    }

    #[test]
    fn the_short_help_of_every_command_fits_one_screen_of_80_columns() {
        let mut command = arranged(Cli::command(), HelpLength::Short).term_width(80);
        command.build();
        each(&mut command, &mut |name, help| {
            let lines = help.lines().count();
            let longest = help.lines().map(|line| line.chars().count()).max().unwrap_or_default();
            assert!(lines <= 50 && longest <= 80, "{name}: {lines} lines of {longest}\n{help}");
        });
    }

    #[test]
    fn the_long_help_of_mount_has_headings_and_hides_no_option_that_users_need() {
        let mut command = arranged(Cli::command(), HelpLength::Long);
        command.build();
        let mount = command.find_subcommand_mut("mount").unwrap();
        let help = mount.render_long_help().to_string();
        for heading in [SOURCE, VIEW, CACHE, VERIFICATION, REGISTRY, MOUNT, PERFORMANCE, LOGGING] {
            assert!(help.contains(&format!("\n{heading}:\n")), "{heading}\n{help}");
        }
        let shown =
            mount.get_arguments().filter(|argument| !argument.is_positional() && !argument.is_hide_set());
        let stray: Vec<_> =
            shown.filter(|argument| argument.get_help_heading().is_none()).map(clap::Arg::get_id).collect();
        assert_eq!(stray, ["help"], "options without a heading");
        for option in ["--allow-other", "--nonempty", "--passthrough", "--media-type"] {
            assert!(help.contains(option), "{option}");
        }
        let resolve = command.find_subcommand_mut("resolve").unwrap().render_long_help().to_string();
        assert!(!resolve.contains("--on-conflict") && resolve.contains("--platform"), "{resolve}");
    }

    #[test]
    fn the_text_of_an_option_is_imperative_or_names_a_thing() {
        let asks = [
            "What", "How", "Whether", "Whose", "Who", "Where", "When", "Which", "The", "A", "An", "Also",
            "If",
        ];
        let mut todo = vec![arranged(Cli::command(), HelpLength::Long)];
        let mut seen = 0;
        while let Some(command) = todo.pop() {
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                let text = argument.get_long_help().or(argument.get_help()).map(ToString::to_string);
                let text = text.unwrap_or_default();
                let first = text.split(' ').next().unwrap_or_default();
                assert!(!first.is_empty() && !asks.contains(&first), "{}: {text}", argument.get_id());
                seen += 1;
            }
            todo.extend(command.get_subcommands().filter(|below| !below.is_hide_set()).cloned());
        }
        assert!(seen > 100, "{seen} options");
    }
}
