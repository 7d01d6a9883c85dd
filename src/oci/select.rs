//! Layer selection of a manifest, by number, media type or title.

use globset::{GlobBuilder, GlobMatcher};

use super::media_type::EMPTY_TYPE;
use super::{Descriptor, EMPTY, Manifest, OciError};

/// A pattern like in `fnmatch`, ignoring case: `*` also matches `/`.
#[derive(Clone, Debug)]
pub struct GlobPattern {
    written: String,
    matcher: GlobMatcher,
}

impl GlobPattern {
    /// Whether the whole of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        self.matcher.is_match(text)
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.written
    }
}

impl PartialEq for GlobPattern {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Eq for GlobPattern {}

impl std::str::FromStr for GlobPattern {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        let glob = GlobBuilder::new(text).case_insensitive(true).build();
        match glob {
            Ok(glob) => Ok(Self { written: text.to_owned(), matcher: glob.compile_matcher() }),
            Err(error) => Err(OciError::Pattern { pattern: text.to_owned(), reason: error.to_string() }),
        }
    }
}

/// Conditions on layers. A layer is selected if it meets at least one condition of each given kind. Without
/// conditions all layers are selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerSelection {
    /// Numbers in the manifest.
    pub numbers: Vec<usize>,
    /// Patterns of media types as written.
    pub media_types: Vec<GlobPattern>,
    /// Patterns of titles.
    pub titles: Vec<GlobPattern>,
}

impl LayerSelection {
    /// Whether there are no conditions, so that all layers are selected.
    pub fn is_everything(&self) -> bool {
        self.numbers.is_empty() && self.media_types.is_empty() && self.titles.is_empty()
    }

    /// Whether the layer with this number is selected.
    pub fn wants(&self, number: usize, layer: &Descriptor) -> bool {
        let title = layer.title();
        let any = |globs: &[GlobPattern], text: Option<&str>| {
            globs.is_empty() || text.is_some_and(|text| globs.iter().any(|glob| glob.matches(text)))
        };
        (self.numbers.is_empty() || self.numbers.contains(&number))
            && any(&self.media_types, Some(layer.media_type.as_written()))
            && any(&self.titles, title)
    }

    /// Replaces every unselected layer of the manifest by the empty one, which no rule matches, so that the other
    /// layers keep their numbers. Fails if no layer is selected, with a list of the layers.
    pub fn mask(&self, manifest: &Manifest) -> Result<Manifest, OciError> {
        let mut masked = manifest.clone();
        let mut wanted = 0;
        for (number, layer) in masked.layers.iter_mut().enumerate() {
            if self.wants(number, layer) {
                wanted += 1;
            } else {
                *layer =
                    Descriptor { data: Some(super::EMPTY.to_vec()), ..Descriptor::of(EMPTY_TYPE, EMPTY) };
            }
        }
        if wanted == 0 && !self.is_everything() {
            let list = manifest.layers.iter().enumerate().map(|(number, layer)| {
                let title = layer.title().map(|title| format!(" {title:?}")).unwrap_or_default();
                format!("{number} {}{title}", layer.media_type.as_written())
            });
            let available = list.collect::<Vec<_>>().join(", ");
            return Err(OciError::NoLayer { available });
        }
        Ok(masked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(text: &str) -> GlobPattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_star_crosses_slashes_and_case_does_not_matter() {
        assert!(glob("*.img.gz").matches("a/b/Disk.IMG.gz"));
        assert!(glob("application/*+gzip").matches("application/vnd.x.tar+gzip"));
        assert!(!glob("*.img").matches("a.img.gz"));
        assert!(glob("part?.[a-c]").matches("part1.b"));
        let error = "[".parse::<GlobPattern>().unwrap_err().to_string();
        assert!(error.contains("\"[\""), "{error}");
    }

    #[test]
    fn kinds_of_conditions_are_joined_and_conditions_of_one_kind_alternatives() {
        let mut layer = Descriptor::of("text/plain", b"x");
        layer.annotations.insert("org.opencontainers.image.title".into(), "a.txt".into());
        let selection = LayerSelection { numbers: vec![1, 2], ..LayerSelection::default() };
        assert!(selection.wants(2, &layer) && !selection.wants(0, &layer));
        let selection = LayerSelection {
            media_types: vec![glob("text/*")],
            titles: vec![glob("b*"), glob("a*")],
            ..LayerSelection::default()
        };
        assert!(selection.wants(0, &layer));
        layer.annotations.clear();
        assert!(!selection.wants(0, &layer), "a layer without a title meets no condition on titles");
        assert!(LayerSelection::default().wants(7, &layer));
    }
}
