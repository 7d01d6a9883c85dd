//! Entry of a JSON table of contents, as eStargz and zstd:chunked write it. Nothing is interpreted or checked.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// An entry as the document has it, with the used properties only.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawEntry {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) size: i64,
    pub(super) modtime: Option<String>,
    pub(super) link_name: String,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) dev_major: i64,
    pub(super) dev_minor: i64,
    pub(super) xattrs: Option<TextPairs>,
    pub(super) digest: Option<String>,
    pub(super) offset: i64,
    pub(super) end_offset: i64,
    pub(super) inner_offset: i64,
    pub(super) chunk_size: i64,
    pub(super) chunk_offset: i64,
    pub(super) chunk_digest: Option<String>,
    pub(super) chunk_type: String,
}

/// An object whose values are text, in document order.
#[derive(Debug, Default)]
pub(super) struct TextPairs(pub(super) Vec<(String, Option<String>)>);

impl<'de> Deserialize<'de> for TextPairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = TextPairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TextPairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(TextPairs(pairs))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
