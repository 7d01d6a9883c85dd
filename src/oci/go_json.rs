//! JSON as Go's decoder reads it: field names in any case, and `null` as an absent value.
//!
//! Docker, containerd, skopeo and oras are written in Go, so registries and tools that only they test may write
//! `Token` or `repoTags`. A known field matches in its exact spelling, else by simple case folding (Go's
//! `encoding/json`). Names of maps, such as annotations and hosts, are exact.
//!
//! Go lets the last of repeated fields count, and other readers the first or the exact one. [`document`] therefore
//! refuses a repeated field in any spelling: a digest must not stand for two contents. [`answer`] is for text that
//! no digest names, and takes the last.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, IgnoredAny, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde_json::Value;

/// Parses a document that a digest names, or that names content by digest.
pub fn document<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let parsed = T::deserialize(FoldingDecoder { inner: &mut parser, repeated: RepeatedFields::Refused })?;
    parser.end()?;
    Ok(parsed)
}

/// Parses an answer, or a file of this machine: the last of repeated fields counts, and text behind the value is
/// ignored.
pub fn answer<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    T::deserialize(FoldingDecoder { inner: &mut parser, repeated: RepeatedFields::LastCounts })
}

/// As [`document`], of a value that is parsed already.
pub fn of_value<T: DeserializeOwned>(value: Value) -> Result<T, serde_json::Error> {
    T::deserialize(FoldingDecoder { inner: value, repeated: RepeatedFields::Refused })
}

/// The list in the field `name` of an object, under the spelling that it has there. An absent or `null` list, which
/// Go writes for an empty one, becomes an empty list. `None` if there is something else.
pub fn list_mut<'a>(object: &'a mut Value, name: &str) -> Option<&'a mut Vec<Value>> {
    let fields = object.as_object_mut()?;
    let written = fields.keys().find(|written| is_same(written, name)).cloned();
    let value = fields.entry(written.unwrap_or_else(|| name.to_owned())).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut()
}

/// Whether `written` is `name` by simple case folding; `name` is ASCII.
fn is_same(written: &str, name: &str) -> bool {
    // The two letters beyond ASCII that fold into it.
    let folded = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    written.chars().map(folded).eq(name.chars().map(folded))
}

/// What a field that is written twice means.
#[derive(Clone, Copy)]
enum RepeatedFields {
    /// An error of the type's own visitor.
    Refused,
    /// As in Go.
    LastCounts,
}

/// A deserializer that folds the names of the fields of structures.
struct FoldingDecoder<D> {
    inner: D,
    repeated: RepeatedFields,
}

/// The value that `null` stands for.
#[derive(Clone, Copy)]
enum ZeroValue {
    /// `null` itself.
    Null,
    Bool,
    Number,
    Text,
    List,
    Object,
}

/// Forwards to a visitor, with its nested values folded too.
struct FoldingVisitor<V> {
    visitor: V,
    zero: ZeroValue,
    /// The fields of a structure; `None` for a map.
    fields: Option<&'static [&'static str]>,
    repeated: RepeatedFields,
}

impl<'de, D: Deserializer<'de>> FoldingDecoder<D> {
    fn visit<V: Visitor<'de>>(
        self,
        visitor: V,
        zero: ZeroValue,
        fields: Option<&'static [&'static str]>,
    ) -> Result<V::Value, D::Error> {
        let repeated = self.repeated;
        self.inner.deserialize_any(FoldingVisitor { visitor, zero, fields, repeated })
    }
}

/// Methods that differ in the value of `null` only.
macro_rules! of_any {
    ($zero:ident: $($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.visit(visitor, ZeroValue::$zero, None)
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for FoldingDecoder<D> {
    type Error = D::Error;

    of_any!(Null: deserialize_any deserialize_unit);
    of_any!(Bool: deserialize_bool);
    of_any!(Number: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8
        deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64);
    of_any!(Text: deserialize_char deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf
        deserialize_identifier);
    of_any!(List: deserialize_seq);
    of_any!(Object: deserialize_map);

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.visit(visitor, ZeroValue::Object, Some(fields))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let repeated = self.repeated;
        self.inner.deserialize_option(FoldingVisitor {
            visitor,
            zero: ZeroValue::Null,
            fields: None,
            repeated,
        })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let repeated = self.repeated;
        let visitor = FoldingVisitor { visitor, zero: ZeroValue::Null, fields: None, repeated };
        self.inner.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.visit(visitor, ZeroValue::List, None)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.visit(visitor, ZeroValue::List, None)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.visit(visitor, ZeroValue::Null, None)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_ignored_any(visitor)
    }
}

/// Methods that pass a plain value on.
macro_rules! plain {
    ($($method:ident($value:ty))*) => {
        $(fn $method<E: Error>(self, value: $value) -> Result<V::Value, E> {
            self.visitor.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for FoldingVisitor<V> {
    type Value = V::Value;

    plain!(visit_bool(bool) visit_i64(i64) visit_i128(i128) visit_u64(u64) visit_u128(u128) visit_f64(f64)
        visit_str(&str) visit_borrowed_str(&'de str) visit_string(String) visit_bytes(&[u8])
        visit_borrowed_bytes(&'de [u8]) visit_byte_buf(Vec<u8>));

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        match self.zero {
            ZeroValue::Null => self.visitor.visit_unit(),
            ZeroValue::Bool => self.visitor.visit_bool(false),
            ZeroValue::Number => self.visitor.visit_u64(0),
            ZeroValue::Text => self.visitor.visit_str(""),
            ZeroValue::List => self.visitor.visit_seq(SeqDeserializer::<_, E>::new(std::iter::empty::<()>())),
            ZeroValue::Object => {
                self.visitor.visit_map(MapDeserializer::<_, E>::new(std::iter::empty::<(&str, ())>()))
            }
        }
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(FoldingDecoder { inner, repeated: self.repeated })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(FoldingDecoder { inner, repeated: self.repeated })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        if self.fields.is_some() {
            return Err(A::Error::invalid_type(Unexpected::Seq, &self.visitor));
        }
        self.visitor.visit_seq(FoldingAccess { inner, fields: None, repeated: self.repeated })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut inner: A) -> Result<V::Value, A::Error> {
        let Self { visitor, fields, repeated, .. } = self;
        let (Some(fields), RepeatedFields::LastCounts) = (fields, repeated) else {
            return visitor.visit_map(FoldingAccess { inner, fields, repeated });
        };
        let mut last: Vec<Option<Value>> = vec![None; fields.len()];
        while let Some(key) = inner.next_key_seed(KeyText)? {
            match field_of(fields, &key).and_then(|field| fields.iter().position(|known| *known == field)) {
                Some(field) => match inner.next_value()? {
                    Value::Null => {}
                    value => last[field] = Some(value),
                },
                None => {
                    inner.next_value::<IgnoredAny>()?;
                }
            }
        }
        let entries = fields.iter().zip(last).filter_map(|(field, value)| Some((*field, FoundValue(value?))));
        let entries = MapDeserializer::<_, serde_json::Error>::new(entries);
        let folded = FoldingAccess { inner: entries, fields: None, repeated };
        visitor.visit_map(folded).map_err(A::Error::custom)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_enum(inner)
    }
}

/// A parsed value of a field.
struct FoundValue(Value);

impl<'de> IntoDeserializer<'de, serde_json::Error> for FoundValue {
    type Deserializer = Value;

    fn into_deserializer(self) -> Value {
        self.0
    }
}

/// Passes elements and values on, folded.
struct FoldingAccess<A> {
    inner: A,
    /// The fields of a structure; `None` for a map or a list.
    fields: Option<&'static [&'static str]>,
    repeated: RepeatedFields,
}

/// The field that `written` means: the one of this spelling, else the first in another case.
fn field_of(fields: &'static [&'static str], written: &str) -> Option<&'static str> {
    let exact = fields.iter().find(|field| **field == written);
    exact.or_else(|| fields.iter().find(|field| is_same(written, field))).copied()
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for FoldingAccess<A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.inner.next_element_seed(FoldingSeed { seed, repeated: self.repeated })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for FoldingAccess<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Some(fields) = self.fields else { return self.inner.next_key_seed(seed) };
        let Some(key) = self.inner.next_key_seed(KeyText)? else { return Ok(None) };
        let key = match (field_of(fields, &key), &key) {
            (Some(field), _) => seed.deserialize(BorrowedStrDeserializer::new(field)),
            (None, Cow::Borrowed(key)) => seed.deserialize(BorrowedStrDeserializer::new(key)),
            (None, Cow::Owned(key)) => seed.deserialize(StrDeserializer::new(key)),
        };
        key.map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.inner.next_value_seed(FoldingSeed { seed, repeated: self.repeated })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// A nested value.
struct FoldingSeed<S> {
    seed: S,
    repeated: RepeatedFields,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for FoldingSeed<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.seed.deserialize(FoldingDecoder { inner, repeated: self.repeated })
    }
}

/// The text of a key, borrowed where it has no escapes.
struct KeyText;

impl<'de> DeserializeSeed<'de> for KeyText {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
        inner.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeyText {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct SomeDocument {
        media_type: String,
        size: i64,
        is_good: bool,
        labels: BTreeMap<String, String>,
        parts: Vec<SomeDocument>,
        inner: Option<Box<SomeDocument>>,
        any: Value,
    }

    fn sized(size: i64) -> SomeDocument {
        SomeDocument { size, ..SomeDocument::default() }
    }

    #[test]
    fn fields_match_in_any_case_at_every_depth_and_names_of_maps_stay() {
        let text = r#"{"MEDIATYPE":"a","Size":1,"unknown":[{"Size":[]}],"Labels":{"Size":"x","size":"y"},
            "partS":[{"\u017fize":2,"IS_GOOD":true}],"Inner":{"siZe":3},"Any":{"Size":4}}"#;
        for parsed in [document::<SomeDocument>(text.as_bytes()), answer(text.as_bytes())] {
            let parsed = parsed.unwrap();
            assert_eq!((parsed.media_type.as_str(), parsed.size), ("a", 1));
            assert_eq!((parsed.labels["Size"].as_str(), parsed.labels["size"].as_str()), ("x", "y"));
            assert_eq!(parsed.parts, [sized(2)]);
            assert_eq!(parsed.inner, Some(Box::new(sized(3))));
            assert_eq!(parsed.any, serde_json::json!({"Size": 4}));
        }
    }

    #[test]
    fn null_is_an_absent_value() {
        let text = r#"{"mediaType":null,"size":null,"isGood":null,"labels":null,"parts":null,"inner":null,"any":null}"#;
        assert_eq!(document::<SomeDocument>(text.as_bytes()).unwrap(), SomeDocument::default());
        assert_eq!(answer::<SomeDocument>(text.as_bytes()).unwrap(), SomeDocument::default());
        assert_eq!(document::<SomeDocument>(br#"{"parts":[null]}"#).unwrap().parts, [sized(0)]);
        assert_eq!(answer::<SomeDocument>(br#"{"size":1,"SIZE":null}"#).unwrap(), sized(1));
    }

    #[test]
    fn a_repeated_field_is_refused_in_documents_and_counts_last_in_answers() {
        for text in [r#"{"size":1,"Size":2}"#, r#"{"Size":1,"size":2}"#, r#"{"size":1,"size":2}"#] {
            let error = document::<SomeDocument>(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("duplicate field `size`"), "{error}");
            assert_eq!(answer::<SomeDocument>(text.as_bytes()).unwrap(), sized(2), "{text}");
            let nested = format!(r#"{{"parts":[{text}]}}"#);
            assert!(document::<SomeDocument>(nested.as_bytes()).is_err());
            assert_eq!(answer::<SomeDocument>(nested.as_bytes()).unwrap().parts, [sized(2)]);
        }
    }

    #[test]
    fn wrong_types_and_text_behind_the_value_are_errors_of_documents() {
        for bad in [r#"{"size":"1"}"#, r#"{"size":1.5}"#, "[]", r#"{"labels":[]}"#, r#"{"inner":1}"#] {
            assert!(document::<SomeDocument>(bad.as_bytes()).is_err(), "{bad}");
            assert!(answer::<SomeDocument>(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(document::<SomeDocument>(b"{} {}").is_err());
        assert_eq!(answer::<SomeDocument>(b"{} x").unwrap(), SomeDocument::default());
    }

    #[test]
    fn a_list_of_a_value_is_found_in_its_own_spelling_or_made() {
        for (before, after) in [
            (r#"{"Manifests":[1],"x":2}"#, r#"{"Manifests":[1,0],"x":2}"#),
            (r#"{"manifests":null}"#, r#"{"manifests":[0]}"#),
            (r#"{"x":2}"#, r#"{"x":2,"manifests":[0]}"#),
        ] {
            let mut value = serde_json::from_str(before).unwrap();
            list_mut(&mut value, "manifests").unwrap().push(0.into());
            assert_eq!(value.to_string(), after);
        }
        assert_eq!(list_mut(&mut serde_json::json!({"manifests": {}}), "manifests"), None);
    }
}
