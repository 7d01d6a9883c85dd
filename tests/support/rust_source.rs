//! Rust source as words and paths, read just well enough to check which module names what.
//!
//! It knows comments, every kind of literal, attributes and nesting, and nothing of types or macros: a path is what is
//! written. That errs on the strict side, which is the right side for a rule.

/// One word or one mark of punctuation, with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// The word, or the mark as it is written; `::` is one mark, every other mark is one character.
    pub(crate) text: String,
    /// Counted from 1.
    pub(crate) line: usize,
}

/// A path as written, `use` trees spelled out: `use a::{b, c::d}` is `a::b` and `a::c::d`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// The words between the `::` marks. A glob ends in `*`.
    pub(crate) segments: Vec<String>,
    /// Where it starts, counted from 1.
    pub(crate) line: usize,
    /// How many inline modules of the file are around it.
    pub(crate) nesting: usize,
}

/// The tokens of `source` without comments and literals.
pub(crate) fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let end = match literal_or_comment(&chars, at) {
            Some(end) => end,
            None if is_word(chars[at]) => {
                let end = run(&chars, at, is_word);
                tokens.push(Token { text: chars[at..end].iter().collect(), line });
                end
            }
            None if chars[at].is_whitespace() => at + 1,
            None => {
                let end = if chars[at..].starts_with(&[':', ':']) { at + 2 } else { at + 1 };
                tokens.push(Token { text: chars[at..end].iter().collect(), line });
                end
            }
        };
        line += chars[at..end].iter().filter(|c| **c == '\n').count();
        at = end;
    }
    tokens
}

/// Splits `tokens` into what is always compiled and what `#[cfg(test)]` adds, item by item.
pub(crate) fn split_tests(tokens: &[Token]) -> (Vec<Token>, Vec<Token>) {
    let (mut product, mut tests) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        if starts(tokens, at, &["#", "["]) {
            let end = close(tokens, at + 1);
            if is_cfg_test(&tokens[at..end]) {
                let end = item_end(tokens, end);
                tests.extend_from_slice(&tokens[at..end]);
                at = end;
                continue;
            }
        }
        product.push(tokens[at].clone());
        at += 1;
    }
    (product, tests)
}

/// The paths of `tokens`, single words included.
pub(crate) fn paths(tokens: &[Token]) -> Vec<Path> {
    let mut found = Vec::new();
    let mut at = 0;
    let mut depth = 0;
    let mut modules: Vec<usize> = Vec::new();
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "{" => {
                depth += 1;
                if at >= 2 && tokens[at - 2].text == "mod" {
                    modules.push(depth);
                }
                at += 1;
            }
            "}" => {
                if modules.last() == Some(&depth) {
                    modules.pop();
                }
                depth = usize::saturating_sub(depth, 1);
                at += 1;
            }
            text if text.starts_with(is_word) => {
                at = path(tokens, at, &[], modules.len(), &mut found);
            }
            _ => at += 1,
        }
    }
    found
}

/// The macros called in `tokens`, with their lines.
pub(crate) fn macros(tokens: &[Token]) -> impl Iterator<Item = &Token> {
    tokens.windows(3).filter_map(|three| {
        let open = matches!(three[2].text.as_str(), "(" | "[" | "{");
        (three[0].text.starts_with(is_word) && three[1].text == "!" && open).then_some(&three[0])
    })
}

/// Reads the path at `at` into `found` and returns where it ends.
fn path(tokens: &[Token], mut at: usize, prefix: &[String], nesting: usize, found: &mut Vec<Path>) -> usize {
    let line = tokens[at].line;
    let mut segments = prefix.to_vec();
    loop {
        segments.push(tokens[at].text.clone());
        at += 1;
        if at + 1 >= tokens.len() || tokens[at].text != "::" {
            break;
        }
        let next = tokens[at + 1].text.as_str();
        if next == "{" {
            at += 2;
            while at < tokens.len() && tokens[at].text != "}" {
                let text = tokens[at].text.as_str();
                if text == "as" {
                    // The new name is not a path.
                    at += 2;
                } else if text == "*" || text.starts_with(is_word) {
                    at = path(tokens, at, &segments, nesting, found);
                } else {
                    at += 1;
                }
            }
            return at + 1;
        }
        if next != "*" && !next.starts_with(is_word) {
            break;
        }
        at += 1;
    }
    found.push(Path { segments, line, nesting });
    at
}

/// Where the item that starts at `at` ends: after its block, its semicolon, or (a field, a variant) its comma.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while starts(tokens, at, &["#", "["]) {
        at = close(tokens, at + 1);
    }
    const ITEMS: [&str; 17] = [
        "pub",
        "mod",
        "use",
        "fn",
        "async",
        "const",
        "static",
        "struct",
        "enum",
        "union",
        "trait",
        "impl",
        "type",
        "unsafe",
        "extern",
        "macro_rules",
        "let",
    ];
    let field = at < tokens.len() && !ITEMS.contains(&tokens[at].text.as_str());
    // `use a::{b};` has its semicolon after the block.
    let block_ends = !tokens[at..].iter().take(4).any(|token| matches!(token.text.as_str(), "use" | "let"));
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "(" | "[" => at = close(tokens, at),
            "{" => {
                at = close(tokens, at);
                if block_ends {
                    return at;
                }
            }
            ";" => return at + 1,
            "," if field => return at + 1,
            "}" => return at,
            _ => at += 1,
        }
    }
    at
}

/// Where the bracket at `at` is closed: the index after it.
fn close(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index + 1;
        }
    }
    tokens.len()
}

/// `#[cfg(test)]` and `#[cfg(all(test, ...))]`; not `#[cfg(not(test))]`, not `#[cfg(any(test, ...))]`.
fn is_cfg_test(attribute: &[Token]) -> bool {
    starts(attribute, 0, &["#", "[", "cfg", "(", "test", ")"])
        || starts(attribute, 0, &["#", "[", "cfg", "(", "all", "(", "test"])
}

fn starts(tokens: &[Token], at: usize, texts: &[&str]) -> bool {
    tokens.len() >= at + texts.len()
        && tokens[at..].iter().zip(texts).all(|(token, text)| token.text == *text)
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

fn run(chars: &[char], at: usize, belongs: impl Fn(char) -> bool) -> usize {
    at + chars[at..].iter().take_while(|c| belongs(**c)).count()
}

/// Where the comment, string, character or lifetime at `at` ends, if there is one.
fn literal_or_comment(chars: &[char], at: usize) -> Option<usize> {
    let rest = &chars[at..];
    match rest {
        ['/', '/', ..] => Some(run(chars, at, |c| c != '\n')),
        ['/', '*', ..] => Some(block_comment(chars, at)),
        ['"', ..] => Some(quoted(chars, at + 1, '"')),
        ['\'', '\\', ..] => Some(quoted(chars, at + 1, '\'')),
        ['\'', _, '\'', ..] => Some(at + 3),
        ['\'', ..] => Some(run(chars, at + 1, is_word)),
        // The prefixes of strings: b"", c"", r"", br"", cr"", b'' and the hashes of raw ones.
        ['b' | 'c' | 'r', ..] => {
            let prefix = run(chars, at, is_word);
            let raw = chars[at..prefix].contains(&'r');
            let open = if raw { run(chars, prefix, |c| c == '#') } else { prefix };
            let known = matches!(
                chars[at..prefix].iter().collect::<String>().as_str(),
                "b" | "c" | "r" | "br" | "cr"
            );
            match chars.get(open) {
                Some('"') if known && raw => Some(raw_string(chars, open + 1, open - prefix)),
                Some('"') if known => Some(quoted(chars, open + 1, '"')),
                Some('\'') if chars[at..prefix] == ['b'] => Some(quoted(chars, open + 1, '\'')),
                _ => None,
            }
        }
        _ => None,
    }
}

fn block_comment(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match &chars[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(chars: &[char], mut at: usize, mark: char) -> usize {
    while at < chars.len() && chars[at] != mark {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

fn raw_string(chars: &[char], mut at: usize, hashes: usize) -> usize {
    while at < chars.len() {
        let tail = &chars[at + 1..];
        if chars[at] == '"' && tail.iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    chars.len()
}
