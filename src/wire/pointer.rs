//! Reads one value out of a JSON text by its JSON Pointer (RFC 6901), without building a tree.
//!
//! The text is checked to be JSON from end to end. Of keys that a text has twice, the last counts,
//! as for most JSON readers.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A parsed pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    tokens: Vec<String>,
}

impl FromStr for Pointer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Pointer { tokens: Vec::new() });
        }
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!(
                "{text:?} is no JSON pointer: one begins with a slash, as /caption"
            ));
        };
        let mut tokens = Vec::new();
        for token in rest.split('/') {
            let escapes_hold = token
                .split('~')
                .skip(1)
                .all(|after| after.starts_with('0') || after.starts_with('1'));
            if !escapes_hold {
                return Err(format!(
                    "{text:?} is no JSON pointer: ~ stands only in ~0 (for ~) and ~1 (for /)"
                ));
            }
            tokens.push(token.replace("~1", "/").replace("~0", "~"));
        }
        Ok(Pointer { tokens })
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for token in &self.tokens {
            write!(f, "/{}", token.replace('~', "~0").replace('/', "~1"))?;
        }
        Ok(())
    }
}

/// What a pointer points at.
#[derive(Clone, Debug, PartialEq)]
pub enum Found<'a> {
    /// A string.
    Text(Cow<'a, str>),
    /// A whole number.
    Integer(i128),
    /// Something else, by its name.
    Other(&'static str),
}

impl Pointer {
    /// Returns what the pointer points at in `json`, or `None` where there is nothing.
    ///
    /// # Errors
    ///
    /// When the text isn't one JSON value, or the way to what is found is deeper than 128 levels.
    pub fn find<'a>(&self, json: &'a str) -> Result<Option<Found<'a>>, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let found = Seek(&self.tokens).deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(found)
    }
}

/// Looks for the rest of a pointer in the value that comes next.
struct Seek<'p>(&'p [String]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = Option<Found<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Seek<'_> {
    /// Returns `found` where the pointer ends here; a scalar has nothing below it.
    fn here<'de>(&self, found: Found<'de>) -> Option<Found<'de>> {
        self.0.is_empty().then_some(found)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = Option<Found<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(self.here(Found::Text(Cow::Borrowed(text))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.is_empty().then(|| Found::Text(Cow::Owned(text.to_owned()))))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(self.here(Found::Integer(number.into())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(self.here(Found::Integer(number.into())))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(self.here(Found::Other("a number with a fraction")))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(self.here(Found::Other("a boolean")))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(self.here(Found::Other("null")))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Some((wanted, rest)) = self.0.split_first() else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Some(Found::Other("an object")));
        };
        let mut found = None;
        while let Some(is_wanted) = map.next_key_seed(KeyIs(wanted))? {
            if is_wanted {
                found = map.next_value_seed(Seek(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let Some((wanted, rest)) = self.0.split_first() else {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Some(Found::Other("a list")));
        };
        // An index is digits without a leading zero.
        let is_index = wanted == "0"
            || (wanted.bytes().all(|b| b.is_ascii_digit()) && !wanted.starts_with('0'));
        let wanted = is_index.then(|| wanted.parse::<usize>().ok()).flatten();
        let mut index = 0;
        let mut found = None;
        loop {
            if wanted == Some(index) {
                match list.next_element_seed(Seek(rest))? {
                    Some(value) => found = value,
                    None => return Ok(found),
                }
            } else if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            index += 1;
        }
    }
}

/// Reads a key and tells whether it is the wanted one.
struct KeyIs<'p>(&'p str);

impl<'de> DeserializeSeed<'de> for KeyIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn find<'a>(pointer: &str, json: &'a str) -> Option<Found<'a>> {
        pointer.parse::<Pointer>().unwrap().find(json).unwrap()
    }

    fn text(text: &str) -> Option<Found<'_>> {
        Some(Found::Text(Cow::Borrowed(text)))
    }

    #[test]
    fn finds_at_any_depth() {
        let json = r#"{"a": [1, {"b/c": "x", "~": "t"}], "caption": "Älg\n", "n": 1.5, "": "e"}"#;
        assert_eq!(find("/caption", json), text("Älg\n"));
        assert_eq!(find("/a/1/b~1c", json), text("x"));
        assert_eq!(find("/a/1/~0", json), text("t"));
        assert_eq!(find("/", json), text("e"));
        assert_eq!(find("/a/0", json), Some(Found::Integer(1)));
        assert_eq!(find("/a/01", json), None);
        assert_eq!(find("/a/7", json), None);
        assert_eq!(find("/n", json), Some(Found::Other("a number with a fraction")));
        assert_eq!(find("/a", json), Some(Found::Other("a list")));
        assert_eq!(find("", json), Some(Found::Other("an object")));
        assert_eq!(find("/caption/deeper", json), None);
        assert_eq!(find("/Caption", json), None);
        assert_eq!(find("/~01", r#"{"~1": "x", "/": "y"}"#), text("x"));
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        assert_eq!(find("/a", r#"{"a": "1", "a": "2"}"#), text("2"));
    }

    #[test]
    fn what_follows_the_value_is_checked_too() {
        let pointer: Pointer = "/a".parse().unwrap();
        assert!(pointer.find(r#"{"a": "x", oops}"#).is_err());
        assert!(pointer.find(r#"{"a": "x"} {"#).is_err());
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(pointer.find(&format!(r#"{{"b": {deep}, "a": "x"}}"#)).is_ok());
        assert!(pointer.find(&deep).is_ok_and(|f| f.is_none()));
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        assert!("caption".parse::<Pointer>().unwrap_err().contains("/caption"));
        assert!("/a~2".parse::<Pointer>().is_err());
        assert!("/a~".parse::<Pointer>().is_err());
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-c~/\"\\\\é]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c0-1~/]{0,2}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_tree(
            value in json(),
            tokens in prop::collection::vec("[a-c0-1~/]{0,2}|[0-3]", 0..4),
        ) {
            let pointer = Pointer { tokens };
            let json = value.to_string();
            let expected = value.pointer(&pointer.to_string()).map(|v| match v {
                Value::String(s) => Found::Text(Cow::Owned(s.clone())),
                Value::Number(n) => Found::Integer(n.as_i64().unwrap().into()),
                Value::Null => Found::Other("null"),
                Value::Bool(_) => Found::Other("a boolean"),
                Value::Array(_) => Found::Other("a list"),
                Value::Object(_) => Found::Other("an object"),
            });
            prop_assert_eq!(pointer.find(&json).unwrap(), expected);
            prop_assert_eq!(pointer.to_string().parse::<Pointer>().unwrap(), pointer);
        }

        #[test]
        fn never_panics(json in ".{0,60}", pointer in "(/[a-c~/0-9]{0,3}){0,3}") {
            if let Ok(pointer) = pointer.parse::<Pointer>() {
                drop(pointer.find(&json));
            }
        }
    }
}
