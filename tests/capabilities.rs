//! Documents as tests: rows of `tests/capabilities.md`, guards of `tests/README.md`, links and line lengths of all pages.
//!
//! A test that is renamed or removed makes the row that names it fail. Whether a named test is a good one is not checked.

#![expect(clippy::expect_used, reason = "a test that cannot read the tree has nothing better to do")]
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The groups of rows, and how many each has.
const ROWS: [(char, usize); 5] = [('C', 10), ('E', 11), ('F', 12), ('Y', 15), ('T', 9)];

/// One row of a table.
#[derive(Debug, Default)]
struct Row {
    name: String,
    what: String,
    by: String,
    /// File and function of each proof.
    proofs: Vec<(String, String)>,
}

/// The rows of the tables in `text`, by the letters in [`ROWS`].
fn rows(text: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for line in text.lines() {
        let Some(line) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else { continue };
        let cells: Vec<&str> = line.split(" | ").collect();
        let [name, what, by, shown] = cells[..] else { continue };
        if !ROWS.iter().any(|(letter, _)| name.starts_with(*letter)) {
            continue;
        }
        let quoted = shown.split('`').skip(1).step_by(2);
        let proofs = quoted.map(|proof| {
            let (file, function) = proof.split_once("::").unwrap_or((proof, ""));
            (file.to_owned(), function.to_owned())
        });
        let (name, what, by) = (name.to_owned(), what.to_owned(), by.to_owned());
        rows.push(Row { name, what, by, proofs: proofs.collect() });
    }
    rows
}

/// What is wrong with the document.
fn faults(text: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let rows = rows(text);
    let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    let wanted: Vec<String> = ROWS
        .iter()
        .flat_map(|(letter, count)| (1..=*count).map(move |number| format!("{letter}{number}")))
        .collect();
    let mut found = Vec::new();
    if names != wanted {
        found.push(format!("the rows are {names:?} instead of {wanted:?}"));
    }
    for row in &rows {
        let name = &row.name;
        if row.what.is_empty() || !row.by.contains('`') {
            found.push(format!("{name} does not say what it is, or by which command"));
        }
        if row.proofs.is_empty() && !row.what.contains(" open") {
            found.push(format!("{name} names no test and does not say that it is open"));
        }
        for (file, function) in &row.proofs {
            match read(file) {
                None => found.push(format!("{name}: there is no {file}")),
                Some(source) if !is_test(&source, function) => {
                    found.push(format!("{name}: {file} has no test {function}"));
                }
                Some(_) => {}
            }
        }
    }
    found
}

/// Whether `source` has a function of this name that the test runner runs.
fn is_test(source: &str, function: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let starts = [format!("fn {function}("), format!("async fn {function}(")];
    let at = lines.iter().position(|line| starts.iter().any(|start| line.starts_with(start.as_str())));
    let Some(at) = at else { return false };
    // Attributes and comments stand between the one that matters and the function.
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let attributes: Vec<&&str> = above.collect();
    let runs = |line: &&&str| **line == "#[test]" || line.starts_with("#[tokio::test");
    attributes.iter().any(runs) && !attributes.iter().any(|line| line.starts_with("#[ignore"))
}

#[test]
fn every_row_is_there_and_every_test_that_it_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("tests/capabilities.md")).expect("the document is there");
    let found = faults(&text, |file| fs::read_to_string(root.join(file)).ok());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The guards in `text` that do not exist: quoted `FILE` or `FILE::FUNCTION` below `src/` or `tests/`.
fn missing_guards(text: &str, root: &Path) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter(|quoted| quoted.starts_with("src/") || quoted.starts_with("tests/"))
        .filter(|guard| match guard.split_once("::") {
            None => !root.join(guard).exists(),
            Some((file, function)) => {
                !fs::read_to_string(root.join(file)).is_ok_and(|text| is_test(&text, function))
            }
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_invariant_names_guards_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("tests/README.md")).expect("the document is there");
    assert_eq!(missing_guards(&text, root), Vec::<String>::new());
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
    assert!(rows.len() > 50, "{}", rows.len());
    let without: Vec<&&str> =
        rows.iter().filter(|row| !row.contains('`') && !row.contains("guarded by")).collect();
    assert!(without.is_empty(), "{without:?}");
    let sample =
        "| a | `tests/gone.rs` |\n| b | `tests/capabilities.rs::gone` | c | `tests/capabilities.rs` |";
    assert_eq!(missing_guards(sample, root), ["tests/gone.rs", "tests/capabilities.rs::gone"]);
}

/// Every Markdown page of the repository: its path from the root, and its text.
fn pages(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut pages = BTreeMap::new();
    let mut folders = vec![PathBuf::from("docs"), PathBuf::from("tests"), PathBuf::from("packaging")];
    let mut found: Vec<PathBuf> =
        ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(PathBuf::from).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("the repository is readable") {
            let entry = entry.expect("the repository is readable");
            let path = folder.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                _ if path.extension().is_some_and(|end| end == "md") => found.push(path),
                _ => {}
            }
        }
    }
    for path in found {
        let text = fs::read_to_string(root.join(&path)).expect("the page is readable");
        pages.insert(path, text);
    }
    pages
}

/// The anchors of the headings of a page, as forges make them.
fn anchors(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut anchors = Vec::new();
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        let title = line.trim_start_matches('#');
        if !fenced && title.len() < line.len() && title.starts_with(' ') {
            let kept = title.trim().to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            anchors.push(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
        }
    }
    anchors
}

/// The links of `pages` that lead nowhere: `PAGE: TARGET`.
fn broken_links(pages: &BTreeMap<PathBuf, String>, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for (page, text) in pages {
        let targets =
            text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in targets.filter(|target| !target.contains("://")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let mut path =
                if file.is_empty() { page.clone() } else { page.parent().unwrap_or(page).to_owned() };
            for step in Path::new(file) {
                if step == ".." {
                    path.pop();
                } else {
                    path.push(step);
                }
            }
            let anchored = anchor.is_empty()
                || pages.get(&path).is_some_and(|text| anchors(text).iter().any(|a| a == anchor));
            if !exists(&path) || !anchored {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    broken
}

#[test]
fn every_link_between_pages_leads_to_a_file_and_a_heading() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = pages(root);
    assert!(pages.len() > 20, "{}", pages.len());
    assert_eq!(broken_links(&pages, |path| root.join(path).exists()), Vec::<String>::new());
    let page = "# A `b`: c\n[1](#a-b-c) [2](#gone) [3](../x.md) [4](y.md) [5](https://example.test/z)";
    let sample = BTreeMap::from([(PathBuf::from("docs/p.md"), page.to_owned())]);
    let found = broken_links(&sample, |path| path == Path::new("x.md") || path == Path::new("docs/p.md"));
    assert_eq!(found, ["docs/p.md: #gone", "docs/p.md: y.md"]);
}

/// Most characters of a line of a page, as CONTRIBUTING.md has it.
const LINE_CHARACTERS: usize = 100;

/// The lines of `pages` with more characters than [`LINE_CHARACTERS`]: `PAGE:LINE has COUNT`. Rows of tables, fenced
/// text and a line of one link cannot be broken.
fn long_lines(pages: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (page, text) in pages {
        let mut fenced = false;
        for (number, line) in text.lines().enumerate() {
            fenced ^= line.trim_start().starts_with("```");
            let count = line.chars().count();
            let unbreakable = fenced
                || line.starts_with('|')
                || (line.contains("://") && line.trim_start_matches(['-', ' ']).split(' ').count() == 1);
            if count > LINE_CHARACTERS && !unbreakable {
                found.push(format!("{}:{} has {count}", page.display(), number + 1));
            }
        }
    }
    found
}

#[test]
fn every_line_of_a_page_that_can_be_broken_has_at_most_100_characters() {
    let pages = pages(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert_eq!(long_lines(&pages), Vec::<String>::new());
    let (fits, long) = ("word ".repeat(20), "word ".repeat(21));
    let link = format!("- <https://example.test/{}>", "a".repeat(100));
    let text = format!("{fits}\n{long}\n| {long} |\n```\n{long}\n```\n{link}\n{long}\n{link} b\n");
    let sample = BTreeMap::from([(PathBuf::from("p.md"), text)]);
    assert_eq!(long_lines(&sample), ["p.md:2 has 105", "p.md:8 has 105", "p.md:9 has 127"]);
}

#[test]
fn a_missing_row_a_missing_test_and_an_ignored_test_are_found() {
    let source = "#[test]\nfn good() {}\n#[tokio::test(flavor = \"current_thread\")]\nasync fn waits() {}\n\
                  #[test]\n#[ignore]\nfn sleeps() {}\nfn helper() {}\n";
    for (function, expected) in
        [("good", true), ("waits", true), ("sleeps", false), ("helper", false), ("goo", false)]
    {
        assert_eq!(is_test(source, function), expected, "{function}");
    }
    let row = |name: &str, shown: &str| format!("| {name} | what | `by` | {shown} |\n");
    let full = |shown: &str| -> String {
        let names = ROWS.iter().flat_map(|(letter, count)| (1..=*count).map(move |n| format!("{letter}{n}")));
        names.map(|name| row(&name, shown)).collect()
    };
    let read = |file: &str| (file == "a.rs").then(|| source.to_owned());
    assert_eq!(faults(&full("`a.rs::good`"), read), Vec::<String>::new());
    assert!(faults(&full("`a.rs::gone`"), read)[0].contains("has no test gone"));
    assert!(faults(&full("`b.rs::good`"), read)[0].contains("there is no b.rs"));
    assert!(faults(&full("later"), read)[0].contains("names no test"));
    let short = full("`a.rs::good`").replace(&row("E7", "`a.rs::good`"), "");
    assert!(faults(&short, read)[0].contains("instead of"));
}
