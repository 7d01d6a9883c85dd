//! `docs/capabilities.md` as a test: every row is there, and what it names as its proof exists.
//!
//! Never says whether a proof is a good one. The idea: a test that is renamed or removed takes its row with it, in the open.

use std::fs;
use std::path::Path;

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
    let text = fs::read_to_string(root.join("docs/capabilities.md")).expect("the document is there");
    let found = faults(&text, |file| fs::read_to_string(root.join(file)).ok());
    assert!(found.is_empty(), "{}", found.join("\n"));
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
