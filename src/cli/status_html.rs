//! HTML report of a mount's status: one page without scripts or external resources, readable without colours.
//!
//! Each blob has a bar, as long as its size relative to the largest blob. Cached and read ranges are drawn to scale.

use std::io::{self, Write};

use crate::image::{BlobStatus, ImageStatus};
use crate::io::is_unprintable;

use super::blob_totals::{BlobTotals, percent};
use super::output::human;

/// Width of the longest bar in SVG units.
const WIDTH: f64 = 1000.0;

const STYLE: &str = "
:root { color-scheme: light dark; --text: #1c2024; --soft: #60646c; --line: #d9d9e0; --page: #fcfcfd; --none: #e8e8ec;
  --cached: #8ec8f6; --read: #0d74ce; --bad: #ce2c31 }
@media (prefers-color-scheme: dark) { :root { --text: #edeef0; --soft: #b0b4ba; --line: #43484e; --page: #111113;
  --none: #2e3135; --cached: #104d87; --read: #70b8ff; --bad: #ff9592 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.2rem; overflow-wrap: anywhere; margin-bottom: 0 } h2 { font-size: 1rem; margin: 2rem 0 .5rem }
p { margin: .2rem 0 } .soft { color: var(--soft) } code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere }
dl { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.5rem 0 } dt { color: var(--soft); font-size: .85rem }
dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums }
figure { margin: 1rem 0 } figcaption { font-size: .9rem } svg { display: block; width: 100%; height: 18px; margin: .2rem 0 }
rect.none { fill: var(--none) } rect.cached { fill: var(--cached) } rect.read { fill: var(--read) }
.key span { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 1rem; vertical-align: -1px }
table { border-collapse: collapse; width: 100%; font-size: .9rem } td, th { text-align: left; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top } .bad { color: var(--bad) }
";

/// Writes the page about the mount at `dir`.
pub(super) fn write(status: &ImageStatus, dir: &str, out: &mut dyn Write) -> io::Result<()> {
    let sums = BlobTotals::of(status);
    let title = escaped(&status.reference);
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n<p class=\"soft\">mounted at <code>{}</code>, as of {}</p>\n",
        escaped(dir),
        chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()).format("%Y-%m-%d %H:%M:%S UTC")
    )?;
    out.write_all(b"<dl>\n")?;
    let part = |bytes: u64| {
        format!("{} <span class=\"soft\">{:.1} %</span>", human(bytes), percent(bytes, sums.size))
    };
    for (name, value) in [
        ("stored", human(sums.size)),
        ("cached", part(sums.cached)),
        ("fetched by this mount", part(sums.fetched)),
        ("read by programs, repeats counted", human(sums.served)),
    ] {
        writeln!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>")?;
    }
    out.write_all(b"</dl>\n<h2>Blobs</h2>\n<p class=\"key soft\">")?;
    for (colour, name) in [("read", "read"), ("cached", "cached"), ("none", "not cached")] {
        write!(out, "<span style=\"background: var(--{colour})\"></span>{name}")?;
    }
    out.write_all(b"</p>\n")?;
    let largest = status.blobs.iter().map(|blob| blob.size).max().unwrap_or_default();
    for blob in &status.blobs {
        figure(blob, largest, out)?;
    }
    if !status.layers.is_empty() {
        out.write_all(b"<h2>Layers</h2>\n<table>\n<tr><th>layer<th>encoding<th>state<th>index<th>meaning\n")?;
        for layer in &status.layers {
            let cell = |text: Option<&str>| text.map_or_else(|| "&ndash;".to_owned(), escaped);
            let class = if layer.mode == "failed" { " class=\"bad\"" } else { "" };
            writeln!(
                out,
                "<tr><td>{:02}<td>{}<td{class}>{}<td>{}<td>{}",
                layer.layer,
                cell(layer.encoding.as_deref()),
                escaped(&layer.mode),
                cell(layer.index.as_deref()),
                escaped(&layer.why)
            )?;
        }
        out.write_all(
            b"</table>\n<p class=\"soft\">An index lists the offset of each file of a layer, and the places where decoding can start: with many places a read decodes little. <em>local</em> was built on this machine.</p>\n",
        )?;
    }
    for (name, lines) in
        [("Conflicts", &status.conflicts), ("Warnings", &status.warnings), ("Errors", &status.errors)]
    {
        if lines.is_empty() && name == "Errors" {
            out.write_all(b"<h2>Errors</h2>\n<p class=\"soft\">none</p>\n")?;
        } else if !lines.is_empty() {
            writeln!(out, "<h2>{name}</h2>\n<ul>")?;
            for line in lines {
                writeln!(out, "<li>{}", escaped(line))?;
            }
            out.write_all(b"</ul>\n")?;
        }
    }
    out.write_all(b"</html>\n")
}

fn figure(blob: &BlobStatus, largest: u64, out: &mut dyn Write) -> io::Result<()> {
    let caption = format!(
        "{} of {} cached ({:.0} %), {} fetched and {} read by this mount",
        human(blob.cached),
        human(blob.size),
        percent(blob.cached, blob.size),
        human(blob.fetched),
        human(blob.served)
    );
    writeln!(
        out,
        "<figure><figcaption><code>{}</code> <span class=\"soft\">{}</span></figcaption>",
        escaped(blob.digest.as_str()),
        escaped(&blob.media_type)
    )?;
    // A small blob has a short bar, but a visible one.
    let width = (WIDTH * blob.size as f64 / largest.max(1) as f64).max(WIDTH / 50.0);
    write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} 18\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{caption}\"><title>{caption}</title>\
         <rect class=\"none\" width=\"{width:.1}\" height=\"18\"/>"
    )?;
    if let Some(extents) = &blob.extents {
        for (class, ranges, y, height) in [("cached", &extents.cached, 0, 18), ("read", &extents.read, 4, 10)]
        {
            for &(start, end) in ranges {
                let scale = |at: u64| at as f64 / blob.size.max(1) as f64 * width;
                let (x, len) = (scale(start), scale(end.saturating_sub(start)));
                write!(
                    out,
                    "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y}\" width=\"{len:.1}\" height=\"{height}\"/>"
                )?;
            }
        }
    }
    let state = escaped(&blob.state);
    let verified = match blob.state == "verified" && blob.verified == "full" {
        true => String::new(),
        false => format!(", verified: {}", escaped(&blob.verified)),
    };
    writeln!(out, "</svg><p class=\"soft\">{caption}; {state}{verified}</p></figure>")
}

/// Text without markup. Characters that act on a terminal or reverse text are escaped visibly.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if is_unprintable(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_page_escapes_every_string_of_an_image() {
        let hostile = "<script>'\"&\u{1b}[31m\u{202e}x";
        assert_eq!(escaped(hostile), "&lt;script&gt;&#39;&quot;&amp;\\u{1b}[31m\\u{202e}x");
        let json = serde_json::json!({"schemaVersion": 1, "reference": hostile, "kind": hostile, "layers": [{"layer": 0,
            "digest": format!("sha256:{}", "0".repeat(64)), "mode": hostile, "why": hostile, "index": hostile, "encoding": hostile,
            "streamBytes": null}], "conflicts": [hostile], "warnings": [hostile], "errors": [hostile], "blobs": [{
            "digest": format!("sha256:{}", "0".repeat(64)), "mediaType": hostile, "size": 10, "cached": 1, "served": 1,
            "fetched": 1, "verified": hostile, "state": hostile, "extents": {"unit": 1, "cached": [[0, 1]], "read": [[0, 1]]}}]});
        let mut page = Vec::new();
        write(&serde_json::from_value(json).unwrap(), hostile, &mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        assert_eq!(page.matches("&lt;script&gt;").count(), 13);
        assert!(!page.contains("<script") && !page.contains('\u{1b}') && !page.contains('\u{202e}'));
    }
}
