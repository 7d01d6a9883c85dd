//! Architecture test: imports between modules, the homes of crates and calls, and the form of a file.
//!
//! The rules stand in `docs/architecture.md`; the ranks are read from there and compared with the ones here, so that the
//! two cannot drift apart. Every rule is shown a sample that breaks it, so that none of them can be asleep.

#![expect(clippy::expect_used, reason = "a test that cannot read the tree has nothing better to do")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

#[path = "support/rust_source.rs"]
mod rust_source;

use rust_source::{Token, macros, paths, split_tests, tokens};

/// The modules and their ranks. A module names only modules of a lower rank.
const RANKS: [(&str, u8); 21] = [
    ("oci", 0),
    ("io", 0),
    ("metrics", 0),
    ("owner", 0),
    ("sandbox", 0),
    ("registry", 1),
    ("source", 2),
    ("cache", 2),
    ("artifact", 3),
    ("layer", 3),
    ("archive_source", 4),
    ("tree", 4),
    ("disk", 4),
    ("erofs", 5),
    ("image", 5),
    ("view", 6),
    ("mount", 7),
    ("export", 7),
    ("library", 7),
    ("csi", 8),
    ("cli", 9),
];

/// The one sideways import: documents have faults too, and `io` names nothing.
const EXCEPTIONS: [(&str, &str); 1] = [("oci", "io")];

/// Crates, and the modules that may name them.
const CRATES: [(&str, &[&str]); 10] = [
    ("fuser", &["mount"]),
    ("reqwest", &["registry"]),
    ("rustls", &["registry"]),
    ("http_auth", &["registry"]),
    ("tonic", &["csi"]),
    ("tonic_prost", &["csi"]),
    ("prost", &["csi"]),
    ("clap", &["cli"]),
    ("oci_client", &["oci", "registry", "library"]),
    ("sha2", &["oci"]),
];

/// Macros that print belong to the command line.
const PRINTERS: [&str; 5] = ["print", "println", "eprint", "eprintln", "dbg"];

/// Modules that turn bytes into values: they open nothing and connect to nothing.
const PURE: [&str; 8] = ["io", "oci", "artifact", "layer", "tree", "disk", "erofs", "view"];

/// What a pure module does not name. The sockets and files of Unix are in `std::os::unix::net` and `::fs`.
const OUTSIDE: [&[&str]; 7] = [
    &["std", "fs"],
    &["std", "net"],
    &["std", "os", "unix", "fs"],
    &["std", "os", "unix", "net"],
    &["tokio", "fs"],
    &["tokio", "net"],
    &["nix", "fcntl"],
];

/// Lines of product code in one file. At this size a file holds two ideas and is split.
const MAX_LINES: usize = 600;

/// The one file that may hold `unsafe` code: the interface of zlib takes pointers.
const UNSAFE: &str = "layer/inflate.rs";

/// Type names of one word: words of specifications, terms of the field, and names that users of the library import.
const ONE_WORD: [&str; 20] = [
    "Cli",
    "Counter",
    "Descriptor",
    "Digest",
    "Directory",
    "Error",
    "File",
    "Gauge",
    "Hasher",
    "Histogram",
    "Image",
    "Manifest",
    "Options",
    "Platform",
    "Readahead",
    "Reference",
    "Superblock",
    "Usage",
    "Victim",
    "Ztoc",
];

/// Re-exports that a name is followed over, one in each folder above its file.
const MAX_REEXPORTS: usize = 4;

/// What may lie at the top of the repository. `target` is where cargo builds.
const TOP_LEVEL: [&str; 18] = [
    ".ci",
    ".git",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "deny.toml",
    "docs",
    "packaging",
    "rustfmt.toml",
    "src",
    "target",
    "tests",
];

#[test]
fn every_file_keeps_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = read_tree(&root);
    assert!(files.len() > RANKS.len(), "only {} files were found under {}", files.len(), root.display());
    let complaints = [check(&files), check_types(&files), check_circles(&files)].concat();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn the_top_level_holds_nothing_but_the_usual() {
    let root = env!("CARGO_MANIFEST_DIR");
    let names = fs::read_dir(root)
        .expect("the repository is readable")
        .map(|entry| entry.expect("the repository is readable").file_name().to_string_lossy().into_owned());
    assert_eq!(strangers(names), Vec::<String>::new());
}

#[test]
fn every_file_of_tests_belongs_to_a_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).expect("the repository is readable");
    let names = fs::read_dir(root.join("tests"))
        .expect("the repository is readable")
        .map(|entry| entry.expect("the repository is readable").path())
        .map(|path| if path.is_dir() { path.join("main.rs") } else { path })
        .filter(|path| path.extension().is_some_and(|end| end == "rs") && path.exists())
        .map(|path| path.strip_prefix(root.join("tests")).expect("it is below").display().to_string());
    assert_eq!(
        without_program(names, &read("Cargo.toml"), &read("tests/integration.rs")),
        Vec::<String>::new()
    );
}

#[test]
fn the_documented_ranks_are_the_checked_ones() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let text = fs::read_to_string(path).expect("docs/architecture.md is readable");
    let documented: BTreeSet<(String, u8)> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            let rank = cells.next()?.parse().ok()?;
            let names = cells.next()?.split(", ").filter(|name| *name != "`main.rs`");
            Some(names.map(move |name| (name.trim_matches(['`', '/']).to_owned(), rank)).collect::<Vec<_>>())
        })
        .flatten()
        .collect();
    let checked: BTreeSet<(String, u8)> = RANKS.map(|(name, rank)| (name.to_owned(), rank)).into();
    assert_eq!(documented, checked);
}

/// One source file: its path under `src/` and its text.
struct File {
    path: String,
    text: String,
}

impl File {
    /// The modules that lead to this file: `layer/gzip.rs` is `["layer", "gzip"]`, `layer/mod.rs` is `["layer"]`.
    fn modules(&self) -> Vec<&str> {
        let stem = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        let mut modules: Vec<&str> = stem.split('/').collect();
        if matches!(modules.last(), Some(&"mod" | &"lib" | &"main")) {
            modules.pop();
        }
        modules
    }
}

/// All complaints about a tree of files.
fn check(files: &[File]) -> Vec<String> {
    let tests = test_files(files);
    let mut complaints = Vec::new();
    for file in files {
        let all = tokens(&file.text);
        let product = if tests.contains(&file.path) { Vec::new() } else { split_tests(&all).0 };
        let mut complain = |line: usize, what: String| {
            complaints.push(format!("src/{}:{line}: {what}", file.path));
        };
        check_shape(file, &all, &mut complain);
        check_length(file, &all, &product, &mut complain);
        check_names(file, &product, &mut complain);
        if !matches!(file.path.as_str(), "lib.rs" | "main.rs") {
            check_ranks(file, &product, &mut complain);
        }
    }
    complaints
}

/// Files that only tests compile: `#[cfg(test)] mod name;` in the file above.
fn test_files(files: &[File]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in files {
        let folder = match file.modules().join("/") {
            folder if folder.is_empty() => String::new(),
            folder => folder + "/",
        };
        let (_, tests) = split_tests(&tokens(&file.text));
        for three in tests.windows(3).filter(|three| three[0].text == "mod" && three[2].text == ";") {
            let module = format!("{folder}{}", three[1].text);
            let inside = format!("{module}/");
            let belongs = |path: &&str| *path == format!("{module}.rs") || path.starts_with(&inside);
            found.extend(files.iter().map(|file| file.path.as_str()).filter(belongs).map(str::to_owned));
        }
    }
    found
}

/// The header, and the words that appear nowhere.
fn check_shape(file: &File, all: &[Token], complain: &mut impl FnMut(usize, String)) {
    if !file.text.starts_with("//!") {
        complain(1, "the file does not begin with a //! header".into());
    }
    for token in all.iter().filter(|token| token.text == "unsafe" && file.path != UNSAFE) {
        complain(token.line, "unsafe code".into());
    }
}

/// Counts the lines that are not inside a `#[cfg(test)]` item.
fn check_length(file: &File, all: &[Token], product: &[Token], complain: &mut impl FnMut(usize, String)) {
    let (_, tests) = split_tests(all);
    let tested: BTreeSet<usize> = match (tests.first(), product.is_empty()) {
        (_, true) => return,
        (None, _) => BTreeSet::new(),
        (Some(_), _) => test_lines(all),
    };
    let lines = file.text.lines().count() - tested.len();
    if lines > MAX_LINES {
        complain(lines, format!("{lines} lines of product code are more than {MAX_LINES}: split by concept"));
    }
}

/// The lines from the first to the last token of each `#[cfg(test)]` item.
fn test_lines(all: &[Token]) -> BTreeSet<usize> {
    let (product, tests) = split_tests(all);
    let kept: BTreeSet<usize> = product.iter().map(|token| token.line).collect();
    let mut lines = BTreeSet::new();
    for pair in tests.windows(2) {
        // Between two neighbours of one item no product line lies; between two items there is one.
        let between = pair[0].line..=pair[1].line;
        if !between.clone().any(|line| kept.contains(&line)) {
            lines.extend(between);
        }
    }
    lines
}

/// Who names which crate, prints, chooses an errno, or reaches outside.
fn check_names(file: &File, product: &[Token], complain: &mut impl FnMut(usize, String)) {
    let module = file.modules().first().copied().unwrap_or_default();
    for call in macros(product).filter(|call| PRINTERS.contains(&call.text.as_str())) {
        if module != "cli" {
            complain(call.line, format!("{}! outside cli/", call.text));
        }
    }
    if file.path == "mount/errno.rs" {
        let texts: Vec<&str> = product.iter().map(|token| token.text.as_str()).collect();
        for (at, _) in texts.windows(3).enumerate().filter(|(_, three)| *three == ["_", "=", ">"]) {
            complain(product[at].line, "a `_` arm: a new kind of fault must choose its errno".into());
        }
    }
    let paths = paths(product);
    let speaks_fuse = paths.iter().any(|path| path.segments[0] == "fuser");
    for path in &paths {
        let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
        let written = segments.join("::");
        for (name, homes) in CRATES {
            if segments[0] == name && !homes.contains(&module) {
                complain(path.line, format!("{written}: {name} is named only in {}", homes.join(", ")));
            }
        }
        let names_errno = segments.windows(2).any(|two| {
            let constant = two[1].len() > 1
                && two[1].starts_with('E')
                && two[1].chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
            constant && matches!(two[0], "libc" | "Errno" | "errno")
        });
        if names_errno && !matches!(module, "mount" | "cache" | "sandbox") {
            complain(path.line, format!("{written}: an errno is chosen only in mount/errno.rs"));
        } else if names_errno && speaks_fuse && file.path != "mount/errno.rs" {
            complain(path.line, format!("{written}: the errno of a reply is chosen only in mount/errno.rs"));
        }
        for outside in OUTSIDE {
            if PURE.contains(&module) && segments.starts_with(outside) {
                complain(path.line, format!("{written}: {module}/ opens no files and no sockets"));
            }
        }
    }
}

/// Every path into another module goes down.
fn check_ranks(file: &File, product: &[Token], complain: &mut impl FnMut(usize, String)) {
    let modules = file.modules();
    let rank_of = |name: &str| RANKS.iter().find(|(known, _)| *known == name).map(|(_, rank)| *rank);
    let own = modules[0];
    let Some(own_rank) = rank_of(own) else {
        return complain(1, format!("module {own} has no rank: add it here and in docs/architecture.md"));
    };
    for path in paths(product) {
        let Some(target) = target(&path, &modules) else { continue };
        let written = path.segments.join("::");
        if target == own || EXCEPTIONS.contains(&(own, target.as_str())) {
            continue;
        }
        match rank_of(&target) {
            Some(rank) if rank < own_rank => {}
            Some(rank) => complain(
                path.line,
                format!("{written}: {own}/ (rank {own_rank}) must not name {target}/ (rank {rank})"),
            ),
            None => complain(path.line, format!("{written}: {target:?} is not a module with a rank")),
        }
    }
}

/// The top-level module that a path leads to, when it leads out of where it stands.
fn target(path: &rust_source::Path, modules: &[&str]) -> Option<String> {
    let segments = &path.segments;
    match segments[0].as_str() {
        // `pub(crate)` is a single word; `use crate as c` would hide every import behind it.
        "crate" | "ocifs" => segments.get(1).cloned(),
        "self" | "super" => {
            let ups = segments.iter().skip_while(|word| *word == "self").take_while(|word| *word == "super");
            let ups = ups.count();
            let depth = modules.len() + path.nesting;
            let after = segments.iter().find(|word| !matches!(word.as_str(), "self" | "super"));
            // Fewer steps than levels stay inside the own top-level module.
            if ups >= depth { after.cloned() } else { None }
        }
        _ => None,
    }
}

/// Every type has a name of its own, of two words at least.
fn check_types(files: &[File]) -> Vec<String> {
    let (tests, mut homes, mut complaints) = (test_files(files), BTreeMap::new(), Vec::new());
    for file in files.iter().filter(|file| !tests.contains(&file.path)) {
        let product = split_tests(&tokens(&file.text)).0;
        for (name, line) in types(&product) {
            let place = format!("src/{}:{line}", file.path);
            let words = name.chars().filter(char::is_ascii_uppercase).count();
            if words < 2 && !ONE_WORD.contains(&name.as_str()) {
                complaints.push(format!("{place}: {name} has one word: say which {name}"));
            }
            if let Some(first) = homes.insert(name.clone(), place.clone()) {
                complaints.push(format!("{place}: {name} is the name of the type at {first}, too"));
            }
        }
    }
    complaints
}

/// The types that `product` defines, with their lines. Associated types are not among them.
fn types(product: &[Token]) -> Vec<(String, usize)> {
    let (mut depth, mut found) = (0, Vec::new());
    for two in product.windows(2) {
        match two[0].text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "struct" | "enum" | "trait" | "union" => found.push(&two[1]),
            "type" if depth == 0 => found.push(&two[1]),
            _ => {}
        }
    }
    let is_name = |token: &&Token| token.text.starts_with(|c: char| c.is_ascii_uppercase());
    found.into_iter().filter(is_name).map(|token| (token.text.clone(), token.line)).collect()
}

/// The product paths of a file, and whether it is a `mod.rs`.
type FilePaths = (Vec<rust_source::Path>, bool);

/// No two files of one folder of `src/` lead to each other. A `mod.rs` is no file
/// of a circle, and an import of a name that it re-exports leads to the file of that name.
fn check_circles(files: &[File]) -> Vec<String> {
    let tests = test_files(files);
    let is_product = |file: &&File| !tests.contains(&file.path) && file.path.contains('/');
    let read = |file: &File| {
        let paths = paths(&split_tests(&tokens(&file.text)).0);
        (file.modules().join("/"), (paths, file.path.ends_with("/mod.rs")))
    };
    let modules: BTreeMap<String, FilePaths> = files.iter().filter(is_product).map(read).collect();
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (file, (paths, _)) in modules.iter().filter(|(_, (_, is_folder))| !is_folder) {
        // A single word names an item of the file itself, or is the `super` of `pub(super)`.
        let is_long = |path: &&rust_source::Path| path.segments.iter().any(|word| word != "super");
        let written = paths.iter().filter(|path| path.segments.len() > 1).filter(is_long);
        let targets = written.filter_map(|path| named_file(path, file, &modules, MAX_REEXPORTS));
        let is_near = |to: &&str| to != file && to.split('/').next() == file.split('/').next();
        graph.insert(file, targets.filter(is_near).filter(|to| !modules[*to].1).collect());
    }
    let mut circles: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in graph.keys() {
        let (mut seen, mut next) = (BTreeSet::new(), vec![*file]);
        while let Some(file) = next.pop() {
            next.extend(graph[file].iter().filter(|to| seen.insert(**to)));
        }
        if seen.contains(file) {
            circles.entry(file.split('/').next().unwrap_or(file)).or_default().push(file);
        }
    }
    let complaint =
        |(folder, files): (&&str, &Vec<&str>)| format!("src/{folder}/: a circle in {}", files.join(", "));
    circles.iter().map(complaint).collect()
}

/// The file that `path` leads to from the module `here`, over at most `hops` re-exports; `None` for a path out of
/// the crate.
fn named_file<'a>(
    path: &rust_source::Path,
    here: &str,
    modules: &'a BTreeMap<String, FilePaths>,
    hops: usize,
) -> Option<&'a str> {
    let prefixes = path.segments.iter().take_while(|word| matches!(word.as_str(), "self" | "super"));
    let (skipped, ups) = (prefixes.clone().count(), prefixes.filter(|word| *word == "super").count());
    let (base, rest) = match path.segments[0].as_str() {
        "crate" | "ocifs" => (0, &path.segments[1..]),
        _ => ((here.split('/').count() + path.nesting).checked_sub(ups)?, &path.segments[skipped..]),
    };
    // An inline module has no file of its own.
    let full: Vec<&str> = here.split('/').take(base).chain(rest.iter().map(String::as_str)).collect();
    let whole = |len: usize| modules.get_key_value(&full[..len].join("/")).map(|found| (found, len));
    let ((found, (exports, is_folder)), len) = (1..=full.len()).rev().find_map(whole)?;
    let name = full.get(len).filter(|_| *is_folder && hops > 0);
    let mut homes = exports
        .iter()
        .filter(|path| path.segments.len() > 1)
        .filter(|path| name.is_some_and(|name| path.segments.last().is_some_and(|last| last == name)));
    let home = homes.find_map(|path| named_file(path, found, modules, hops - 1).filter(|home| home != found));
    Some(home.unwrap_or(found))
}

/// The names that do not belong at the top.
fn strangers(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut strangers: Vec<String> = names.filter(|name| !TOP_LEVEL.contains(&name.as_str())).collect();
    strangers.sort();
    strangers
}

/// The files below `tests/` that are neither a program of the manifest nor a module of the program of all others.
/// Cargo would not compile them, and nothing would complain.
fn without_program(names: impl Iterator<Item = String>, manifest: &str, integration: &str) -> Vec<String> {
    let is_line = |text: &str, line: &str| text.lines().any(|one| one == line);
    names
        .filter(|name| {
            let module = format!("mod {};", name.strip_suffix(".rs").unwrap_or(name));
            !is_line(manifest, &format!("path = \"tests/{name}\""))
                && !is_line(integration, &module)
                && !is_line(integration, &format!("#[path = \"{name}\"]"))
        })
        .collect()
}

/// Every Rust file under `root`, in order of path.
fn read_tree(root: &Path) -> Vec<File> {
    let mut folders = vec![root.to_path_buf()];
    let mut found: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("src/ is readable") {
            let path = entry.expect("src/ is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    let read = |path: PathBuf| File {
        text: fs::read_to_string(&path).expect("source files are UTF-8"),
        path: path.strip_prefix(root).expect("it was found there").to_string_lossy().into_owned(),
    };
    found.into_iter().map(read).collect()
}

/// The rules against samples that break them, and samples that only look as if.
mod samples {
    use super::*;

    fn complaints(path: &str, body: &str) -> Vec<String> {
        check(&[File { path: path.into(), text: format!("//! Sample.\n{body}") }])
    }

    #[track_caller]
    fn refused(path: &str, body: &str, words: &str) {
        let complaints = complaints(path, body);
        assert!(
            complaints.len() == 1 && complaints[0].contains(words),
            "{path}: {body}\nexpected one complaint with {words:?}, got {complaints:#?}"
        );
    }

    #[track_caller]
    fn accepted(path: &str, body: &str) {
        assert_eq!(complaints(path, body), Vec::<String>::new(), "{path}: {body}");
    }

    #[test]
    fn an_upward_import_is_refused_however_it_is_written() {
        for body in [
            "use crate::mount::Session;",
            "use crate::mount;",
            "use crate::{io::ReadAt, mount::Session};",
            "use crate::{\n    io::{ByteRange, ReadAt},\n    mount::*,\n};",
            "fn f() { crate :: mount :: run(); }",
            "use super::super::mount::Session;",
            "use self::super::super::mount::Session;",
            "mod inner { use super::super::super::mount::Session; }",
            "fn f() -> super::super::mount::Session { todo() }",
            "pub(in crate::mount) fn f() {}",
            "use ocifs::mount::Session;",
        ] {
            refused("cache/block.rs", body, "cache/ (rank 2) must not name mount/ (rank 7)");
        }
        refused("cache/mod.rs", "use super::mount::Session;", "must not name mount/");
        refused("image.rs", "use super::view::Tree;", "must not name view/");
    }

    #[test]
    fn a_sideways_import_is_refused_but_for_the_documented_one() {
        refused("cache/mod.rs", "use crate::source::Source;", "(rank 2) must not name source/ (rank 2)");
        refused("tree/mod.rs", "use crate::disk::Disk;", "must not name disk/");
        refused("export/mod.rs", "use crate::mount::Session;", "must not name mount/");
        refused("io/mod.rs", "use crate::oci::Digest;", "must not name oci/");
        accepted("oci/error.rs", "use crate::io::Fault;");
    }

    #[test]
    fn a_name_that_hides_where_it_comes_from_is_refused() {
        refused("cache/mod.rs", "use crate::*;", "is not a module with a rank");
        refused("cache/mod.rs", "use crate::Everything;", "is not a module with a rank");
        refused("cache/mod.rs", "use super::*;", "is not a module with a rank");
        refused("util/mod.rs", "", "module util has no rank");
    }

    #[test]
    fn downward_imports_and_look_alikes_are_accepted() {
        for body in [
            "use crate::oci::Digest;\nuse crate::io::{self, ReadAt as R};",
            "use crate::cache::block::Block;",
            "use super::block::Block;",
            "mod inner { use super::super::block::Block; }",
            "// use crate::mount::Session;",
            "/* use crate::mount /* nested */ ; */",
            "/// See [`crate::mount`].\nfn f() {}",
            "const A: &str = \"crate::mount::x\";",
            "const A: &str = r#\"a \" crate::mount::x\"#;",
            "const A: &[u8] = br\"crate::mount\"; const C: char = '\"'; const D: u8 = b'\\'';",
            "pub(crate) fn f<'a>(x: &'a str) -> &'a str { x }",
            "pub(super) struct S;",
            "use std::mount::x;",
        ] {
            accepted("cache/file.rs", body);
        }
        accepted("lib.rs", "pub mod io;\npub mod mount;");
        accepted("main.rs", "fn main() { ocifs::cli::run() }");
    }

    #[test]
    fn layering_allows_any_import_in_tests() {
        for body in [
            "#[cfg(test)]\nmod tests { use crate::mount::Session; fn f() { println!(\"{}\", libc::EIO); } }",
            "#[cfg(test)]\n#[expect(dead_code)]\nfn f(x: [u8; 3]) { crate::mount::run(); }",
            "#[cfg(test)]\nuse crate::mount::{Session, Other};",
            "struct S { #[cfg(test)] probe: crate::mount::Probe, size: u64 }",
        ] {
            accepted("cache/mod.rs", body);
        }
        refused(
            "cache/mod.rs",
            "#[cfg(test)]\nuse std::fs;\nuse crate::mount::Session;",
            "must not name mount/",
        );
        refused(
            "cache/mod.rs",
            "#[cfg(test)]\nmod tests {}\nfn f() { crate::mount::run() }",
            "must not name",
        );
        refused("cache/mod.rs", "#[cfg(not(test))]\nuse crate::mount::Session;", "must not name mount/");
        refused(
            "cache/mod.rs",
            "struct S { #[cfg(test)] a: u8, b: crate::mount::X }",
            "must not name mount/",
        );
    }

    #[test]
    fn layering_allows_any_import_in_test_only_files() {
        let file = sample;
        let body = "use crate::mount::Session;";
        assert_eq!(
            check(&[file("cache/mod.rs", "#[cfg(test)]\nmod suite;"), file("cache/suite.rs", body)]),
            Vec::<String>::new()
        );
        assert_eq!(check(&[file("cache/mod.rs", "mod suite;"), file("cache/suite.rs", body)]).len(), 1);
    }

    #[test]
    fn crates_stay_in_their_homes() {
        refused("view/mod.rs", "use fuser::FileAttr;", "fuser is named only in mount");
        refused("source/mod.rs", "fn f(c: reqwest::Client) {}", "reqwest is named only in registry");
        refused("cli/mod.rs", "use rustls::ClientConfig;", "rustls is named only in registry");
        refused("main.rs", "use fuser::Session;", "fuser is named only in mount");
        accepted("mount/mod.rs", "use fuser::{FileAttr, Session};");
        accepted("registry/http.rs", "use reqwest::Client;");
        accepted("view/mod.rs", "struct S { fuser_like: u8 }");
    }

    #[test]
    fn printing_is_refused_outside_the_command_line() {
        for name in PRINTERS {
            refused("mount/mod.rs", &format!("fn f() {{ {name}!(\"x\"); }}"), "outside cli/");
        }
        refused("main.rs", "fn main() { std::println!(\"x\"); }", "outside cli/");
        accepted("cli/mod.rs", "fn f() { println!(\"x\"); }");
        accepted("mount/mod.rs", "fn print() {} fn f(print: u8) -> bool { print != (1) }");
    }

    #[test]
    fn an_errno_is_chosen_in_one_file() {
        refused("image/mod.rs", "const A: i32 = libc::ENOSPC;", "chosen only in mount/errno.rs");
        refused("view/mod.rs", "use nix::errno::Errno;\nfn f() -> Errno { Errno::EIO }", "chosen only in");
        refused("disk/mod.rs", "use libc::{O_CLOEXEC, EINVAL};", "libc::EINVAL: an errno");
        refused("mount/fs.rs", "use fuser::Errno;\nfn f() -> Errno { Errno::EIO }", "errno of a reply");
        accepted("mount/errno.rs", "use fuser::Errno;\nfn f() -> Errno { Errno::EIO }");
        refused("mount/errno.rs", "fn f(x: Fault) -> u8 { match x { Fault::Io => 1, _ => 2 } }", "a `_` arm");
        accepted("mount/errno.rs", "fn f(_: u8) -> u8 { let _ = 1; 2 }");
        accepted("mount/unmount.rs", "use nix::errno::Errno;\nfn f(e: Errno) -> bool { e == Errno::EBUSY }");
        accepted(
            "cache/mod.rs",
            "fn f(e: std::io::ErrorKind) -> bool { e == std::io::ErrorKind::StorageFull }",
        );
        accepted("mount/fs.rs", "use fuser::Errno;\nfn f(e: Errno) { g(Errno::from(e)) }");
    }

    #[test]
    fn pure_modules_open_nothing() {
        refused("layer/tar.rs", "use std::{fs, io};", "layer/ opens no files and no sockets");
        refused("oci/mod.rs", "fn f() { std::net::TcpStream::connect(\"x\"); }", "oci/ opens no files");
        refused("tree/mod.rs", "use tokio::fs::File;", "tree/ opens no files");
        accepted("cache/mod.rs", "use std::fs;");
        accepted("tree/mod.rs", "use std::ffi::OsStr;\nuse std::os::unix::ffi::OsStrExt;");
    }

    #[test]
    fn unsafe_code_is_refused_in_every_file_but_one() {
        refused("cache/mod.rs", "fn f() { unsafe { g() } }", "unsafe code");
        refused("cache/mod.rs", "#[cfg(test)]\nmod tests { unsafe fn f() {} }", "unsafe code");
        refused("layer/codec.rs", "fn f() { unsafe { g() } }", "unsafe code");
        refused("layer/inflate/more.rs", "fn f() { unsafe { g() } }", "unsafe code");
        accepted("layer/inflate.rs", "fn f() { unsafe { g() } }");
        accepted("cache/mod.rs", "// unsafe\nfn unsafe_looking() {}");
    }

    #[test]
    fn a_file_has_a_header_and_an_end() {
        let headless = check(&[File { path: "io/mod.rs".into(), text: "// No.\n".into() }]);
        assert!(headless.len() == 1 && headless[0].contains("//! header"), "{headless:?}");
        let lines = |count: usize| "fn f() {}\n".repeat(count);
        accepted("io/mod.rs", &lines(MAX_LINES - 1));
        refused("io/mod.rs", &lines(MAX_LINES), "601 lines of product code");
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", lines(MAX_LINES));
        accepted("io/mod.rs", &format!("{}{tests}", lines(MAX_LINES - 1)));
        refused("io/mod.rs", &format!("{}{tests}", lines(MAX_LINES)), "601 lines of product code");
    }

    fn sample(path: &str, body: &str) -> File {
        File { path: path.into(), text: format!("//! Sample.\n{body}") }
    }

    #[test]
    fn a_type_has_two_words_and_its_name_alone() {
        let complaints =
            |one: &str, two: &str| check_types(&[sample("io/a.rs", one), sample("io/b.rs", two)]);
        for body in ["struct Thing;", "pub enum Thing {}", "trait Thing {}", "type Thing = u8;"] {
            let found = complaints(body, "");
            assert!(found.len() == 1 && found[0].contains("Thing has one word"), "{body}: {found:?}");
        }
        let found = complaints("struct BlockFile;", "mod inner { enum BlockFile {} }");
        assert!(found.len() == 1 && found[0].contains("BlockFile is the name of"), "{found:?}");
        let fine = "struct Digest; impl Iterator for BlockFile { type Thing = u8; }\n// struct Thing;";
        let tests = "#[cfg(test)]\nmod tests { struct Thing; struct Digest; }";
        assert_eq!(complaints(fine, tests), Vec::<String>::new());
    }

    #[test]
    fn a_circle_of_files_is_refused_however_it_is_written() {
        let top = "mod a;\nmod b;\npub use a::{BlockFile, other as more};\nfn f() { BlockFile::BlockFile() }";
        let circles = |a: &str, b: &str| {
            check_circles(&[sample("io/mod.rs", top), sample("io/a.rs", a), sample("io/b.rs", b)])
        };
        for b in ["use super::a;", "use super::{a, c};", "fn f() { crate::io::a::g(); }"].into_iter().chain([
            "use super::BlockFile;",
            "use crate::io::{BlockFile as B};",
            "mod c { use super::super::a; }",
        ]) {
            let found = circles("use super::b::f;", b);
            assert!(found.len() == 1 && found[0].contains("a circle in io/a, io/b"), "{b}: {found:?}");
            assert_eq!(circles("", b), Vec::<String>::new());
            assert_eq!(circles("#[cfg(test)]\nuse super::b::f;", b), Vec::<String>::new());
        }
        let below = [sample("io/a.rs", "mod c;\nuse c::f;"), sample("io/a/c.rs", "use super::{BlockFile};")];
        assert_eq!(check_circles(&below).len(), 1);
    }

    #[test]
    fn an_unexpected_name_at_the_top_is_reported() {
        let names = ["src", "notes.txt", "Cargo.toml", ".env"].map(str::to_owned);
        assert_eq!(strangers(names.into_iter()), [".env", "notes.txt"]);
    }

    #[test]
    fn a_file_of_tests_without_a_program_is_named() {
        let names =
            ["fuse/main.rs", "cache.rs", "registry.rs", "model/main.rs", "left.rs"].map(str::to_owned);
        let manifest = "path = \"tests/fuse/main.rs\"\npath = \"tests/left.rs.old\"";
        let integration = "// mod left;\nmod registry;\n#[path = \"model/main.rs\"]\nmod model;";
        assert_eq!(without_program(names.into_iter(), manifest, integration), ["cache.rs", "left.rs"]);
    }
}
