//! Tutorials: every command in them is run, and its output has the text that the page gives.
//!
//! A block marked `sh` is run; one marked `shell` needs what is not here (a machine that boots, a tool of others). What a command has to
//! show stands behind `# =>`. `localhost:5000` is the registry of the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::artifact::{Blob, Shape};
use crate::process::{Need, able, run};
use crate::real_registry::RealRegistry;
use crate::site::{Site, binary};
use crate::vm::Vm;

/// The commands of all blocks of a page as one script.
fn script(page: &str) -> String {
    let mut script = String::from("set -euo pipefail\n");
    // A command may go on in the next line.
    let page = page.replace(" \\\n", " ");
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line != "```sh" {
            continue;
        }
        // Lines of a document in the script belong to the command before them.
        let mut open: Option<(String, String, String)> = None;
        for line in lines.by_ref().take_while(|line| *line != "```") {
            if let Some((body, wanted, end)) = &mut open {
                body.push_str(&format!("\n{line}"));
                if line == end {
                    script.push_str(&checked(body, wanted));
                    open = None;
                }
                continue;
            }
            let (command, wanted) = line.split_once("# =>").unwrap_or((line, ""));
            let (command, wanted) = (command.trim_end().to_owned(), wanted.trim().to_owned());
            match command.split_once("<<'") {
                Some((_, end)) => {
                    let end = end.trim_end_matches('\'').to_owned();
                    open = Some((command, wanted, end));
                }
                None => script.push_str(&checked(&command, &wanted)),
            }
        }
        assert!(open.is_none(), "a document has no end");
    }
    script
}

/// A command that has to show something.
fn checked(command: &str, wanted: &str) -> String {
    let shown = command.lines().next().unwrap_or_default().replace('\'', "");
    format!(
        "echo '+ {shown}' >&2\nout=$({command}\n)\nprintf '%s\\n' \"$out\"\n\
         grep -qF -- '{wanted}' <<< \"$out\" || {{ echo \"does not show: {wanted}; but: $out\" >&2; exit 99; }}\n"
    )
}

/// A program's weights in the form that says itself what it holds.
fn safetensors() -> Vec<u8> {
    let header = br#"{"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend(0..8);
    file
}

fn follows(name: &str) {
    let needs = ["docker-registry", "skopeo", "qemu-img", "getfattr", "python3", "fusermount3"];
    let needs: Vec<_> = [Need::Root, Need::Fuse].into_iter().chain(needs.map(Need::Tool)).collect();
    if !able(&needs) {
        return;
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(repository.join("docs/tutorials").join(name)).unwrap();
    let site = Site::new();
    let registry =
        if page.contains("localhost:5000/os/") { Vm::get().registry() } else { RealRegistry::start() };
    let room = site.scratch().subdir("room");
    std::os::unix::fs::symlink(repository.join("packaging"), room.join("packaging")).unwrap();
    let programs = site.scratch().subdir("programs");
    std::os::unix::fs::symlink(binary(), programs.join("ocifs")).unwrap();
    let shell = |script: &str| {
        let mut command = Command::new("bash");
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        command.env_clear().env("PATH", path).env("HOME", site.scratch().join("home"));
        command
            .env("OCIFS_CACHE_DIR", site.cache())
            .env("TMPDIR", site.scratch().subdir("tmp"))
            .env("LC_ALL", "C.UTF-8");
        run(command.arg("-c").arg(script).current_dir(&room))
    };
    // What others have pushed before.
    let host = registry.reference("");
    let host = host.trim_end_matches('/');
    if page.contains("localhost:5000/machines") {
        let disk = site.scratch().join("small.qcow2");
        let make = format!("qemu-img create -q -f qcow2 {} 64M", disk.display());
        shell(&make).ok();
        let blob = Blob::new("application/x-qemu-disk", fs::read(&disk).unwrap()).titled("small.qcow2");
        Shape::artifact("application/vnd.unknown.artifact.v1").layer(&blob).pack().push(
            &registry,
            "machines/small",
            "1",
        );
    }
    if page.contains("localhost:5000/os/") {
        for (name, here) in [("vmlinuz", "vmlinuz"), ("initrd-erofs.img", "initrd.img")] {
            std::os::unix::fs::symlink(Vm::get().dir().join(name), room.join(here)).unwrap();
        }
    }
    if page.contains("localhost:5000/models") {
        let blob = Blob::new("application/octet-stream", safetensors()).titled("weights.safetensors");
        Shape::artifact("application/x.model").layer(&blob).pack().push(&registry, "models/tiny", "1");
    }
    if page.contains("localhost:5000/demo") {
        let push = format!(
            "packaging/demo.sh --layout ../demo && skopeo copy --quiet --dest-tls-verify=false oci:../demo:demo docker://{host}/demo/image:v1"
        );
        shell(&push).ok();
    }
    let finished = shell(&script(&page).replace("localhost:5000", host));
    // Whatever went wrong, nothing stays mounted.
    for dir in fs::read_dir(&room).unwrap().map(|entry| entry.unwrap().path()).filter(|dir| dir.is_dir()) {
        site.ocifs(&["umount", "-l", dir.to_str().unwrap()]);
    }
    assert_eq!(finished.code, Some(0), "{name}\n{}\n{}", finished.text(), finished.stderr);
}

#[test]
fn the_tutorial_that_reads_one_file_is_true() {
    follows("one-file.md");
}

#[test]
fn the_tutorial_about_virtual_machines_is_true() {
    follows("virtual-machine.md");
}

#[test]
fn the_tutorial_about_container_images_as_machines_is_true() {
    if able(&[Need::Tool("debootstrap"), Need::Tool("qemu-system-x86_64"), Need::Tool("mkfs.ext4")]) {
        follows("container-machine.md");
    }
}

#[test]
fn the_tutorial_about_inputs_of_ci_is_true() {
    follows("ci.md");
}

#[test]
fn the_tutorial_about_models_is_true() {
    follows("models.md");
}

#[test]
fn the_tutorial_that_looks_inside_is_true() {
    follows("look-inside.md");
}

#[test]
fn every_tutorial_is_tried() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<PathBuf> =
        fs::read_dir(repository.join("docs/tutorials")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    let names: Vec<_> = pages.iter().map(|page| page.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(
        names,
        ["ci.md", "container-machine.md", "look-inside.md", "models.md", "one-file.md", "virtual-machine.md"]
    );
    for page in &pages {
        let shown = fs::read_to_string(page).unwrap().matches("# => ").count();
        assert!(shown >= 4, "{page:?} says of {shown} commands what they show");
    }
}

/// An argument or option as `--help` describes it.
#[derive(Clone, PartialEq, Eq)]
struct Described {
    /// Heading of the help text that it stands under.
    heading: String,
    /// Names and value: `-l, --lazy`.
    names: String,
    /// Description, with values and default behind it.
    text: String,
}

impl Described {
    fn line(&self) -> String {
        format!("- `{}`: {}\n", self.names, self.text)
    }

    /// The long name, or all there is.
    fn long(&self) -> &str {
        let words = self.names.split([' ', ',', '[']);
        words.into_iter().find(|word| word.starts_with("--")).unwrap_or(&self.names)
    }
}

/// A command as `--help` describes it.
struct CommandHelp {
    name: String,
    about: String,
    usage: String,
    described: Vec<Described>,
}

fn parsed(name: String, help: &str) -> CommandHelp {
    let mut lines = help.lines().map(str::trim_end);
    let about = lines.by_ref().take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let usage = lines.by_ref().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or(&name).to_owned();
    let mut described: Vec<Described> = Vec::new();
    let (mut heading, mut values) = (String::new(), None::<usize>);
    for line in lines {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if indent == 0 {
            if let Some(head) = line.strip_suffix(':') {
                head.clone_into(&mut heading);
            }
        } else if heading == "Commands" {
        } else if indent <= 6 && (text.starts_with('-') || text.starts_with('<') || text.starts_with('[')) {
            let (names, text) = text.split_once("  ").unwrap_or((text, ""));
            let (heading, text) = (heading.clone(), text.trim().to_owned());
            described.push(Described { heading, names: names.to_owned(), text });
            values = None;
        } else if let Some(open) = described.last_mut() {
            if text == "Possible values:" {
                open.text.push_str(". Values:");
                values = Some(0);
            } else if let (Some(before), Some((value, meaning))) =
                (values, text.strip_prefix("- ").and_then(|rest| rest.split_once(':')))
            {
                let joint = if before == 0 { "" } else { ";" };
                open.text.push_str(&format!("{joint} `{value}`: {}", meaning.trim_start()));
                values = Some(before + 1);
            } else if !text.is_empty() {
                let joint = if open.text.is_empty() { "" } else { " " };
                open.text.push_str(&format!("{joint}{text}"));
            }
        }
    }
    described.retain(|one| !one.names.contains("--help") && !one.names.contains("--version"));
    CommandHelp { name, about, usage, described }
}

/// The help of a command, and of those below it.
fn help(words: &[&str], out: &mut Vec<CommandHelp>) {
    let mut command = Command::new(binary());
    let page = run(command.env_clear().env("HOME", "/root").args(words).arg("--help")).ok().text();
    let name = ["ocifs"].into_iter().chain(words.iter().copied()).collect::<Vec<_>>().join(" ");
    out.push(parsed(name, &page));
    let mut below: Vec<String> = Vec::new();
    for line in
        page.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty())
    {
        // A description that is long goes on in the next line, further to the right.
        if let Some(word) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) {
            below.extend(word.split(' ').next().map(str::to_owned));
        }
    }
    for word in below.iter().filter(|word| *word != "help") {
        help(&[words, &[word.as_str()]].concat(), out);
    }
}

/// The page of all commands. What several commands take with the same meaning is described once, and named by each.
fn reference(commands: &[CommandHelp]) -> String {
    let mut page = String::from(
        "# Commands and options\n\nWhat `--help` describes; `-h` lists the usual options alone. `ocifs man --all DIR` writes manual pages.\n\
         With `-o`, every long option of `mount` is written as mount(8) has it: `-o view=merged,cache_dir=/var/cache/ocifs`.\n",
    );
    let all = || commands.iter().flat_map(|command| &command.described);
    let is_shared = |one: &Described| all().filter(|other| *other == one).count() > 1;
    let mut shared: Vec<&Described> = Vec::new();
    let mut headings: Vec<&str> = Vec::new();
    for one in all().filter(|one| is_shared(one)) {
        if !shared.contains(&one) {
            shared.push(one);
        }
        if !headings.contains(&&one.heading[..]) {
            headings.push(&one.heading);
        }
    }
    page.push_str("\n## Shared arguments and options\n\nEach command names those that it takes.\n");
    for heading in &headings {
        page.push_str(&format!("\n### {heading}\n\n"));
        shared.iter().filter(|one| one.heading == *heading).for_each(|one| page.push_str(&one.line()));
    }
    for command in commands {
        page.push_str(&format!(
            "\n## {}\n\n{}.\n\n```\n{}\n```\n",
            command.name, command.about, command.usage
        ));
        let (taken, own): (Vec<_>, Vec<_>) = command.described.iter().partition(|one| shared.contains(one));
        if !own.is_empty() {
            page.push('\n');
            own.iter().for_each(|one| page.push_str(&one.line()));
        }
        let mut groups = Vec::new();
        for heading in headings.iter().filter(|heading| **heading != "Arguments") {
            let of_group = shared.iter().filter(|one| one.heading == *heading);
            let (part, rest): (Vec<&Described>, Vec<_>) = of_group.partition(|one| taken.contains(one));
            let names = |of: &[&Described]| -> String {
                of.iter().map(|one| format!("`{}`", one.long())).collect::<Vec<_>>().join(", ")
            };
            match (part.len(), rest.len()) {
                (0, _) => {}
                (_, 0) => groups.push(format!("{heading}: all")),
                (some, left) if left < some => groups.push(format!("{heading}: all but {}", names(&rest))),
                _ => groups.push(format!("{heading}: {}", names(&part))),
            }
        }
        if !groups.is_empty() {
            page.push_str(&format!("\nShared options: {}.\n", groups.join("; ")));
        }
    }
    page
}

/// The page in lines of at most 100 columns; code blocks stay as they are.
fn wrapped(page: &str) -> String {
    const COLUMNS: usize = 100;
    let (mut out, mut is_code) = (String::new(), false);
    for line in page.lines() {
        is_code ^= line.starts_with("```");
        let indent = if line.starts_with("- ") { "  " } else { "" };
        let mut width = 0;
        for word in line.split(' ') {
            let (len, is_first) = (word.chars().count(), width == 0);
            if !is_code && !is_first && width + 1 + len > COLUMNS {
                out.push_str(&format!("\n{indent}{word}"));
                width = indent.len() + len;
            } else {
                out.push_str(if is_first { "" } else { " " });
                out.push_str(word);
                width += len + usize::from(!is_first);
            }
        }
        out.push('\n');
    }
    out
}

#[test]
fn commands_document_equals_the_help_texts() {
    let mut commands = Vec::new();
    help(&[], &mut commands);
    let page = reference(&commands);
    // Each option of each command is described, in its own part or in the shared one.
    for command in &commands {
        assert!(page.contains(&format!("\n## {}\n", command.name)), "{}", command.name);
        for one in &command.described {
            assert!(!one.text.is_empty() && page.contains(&one.line()), "{}: {}", command.name, one.names);
        }
    }
    let page = wrapped(&page);
    let words = page.split_whitespace().count();
    assert!(words < 5_000, "docs/commands.md has {words} words: what commands share stands there once");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/commands.md");
    if std::env::var_os("OCIFS_UPDATE").is_some() {
        fs::write(&file, &page).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    assert!(written == page, "docs/commands.md is not what --help says: OCIFS_UPDATE=1 writes it anew");
}
