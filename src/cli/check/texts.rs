//! Where text stands in a message in which no caption was found.

use std::collections::VecDeque;

use serde_json::Value;

/// Most places of text that are named of a message.
const PLACES_MAX: usize = 8;

/// Most names that a place of text has above it, itself included.
const DEPTH_MAX: usize = 4;

/// Most characters that are told of a name: it may be of any length.
const NAME_CHARS_MAX: usize = 40;

/// Returns where text stands in a message in which no caption was found. Names alone are told: what
/// stands there is for none but its readers.
pub(super) fn texts_in_words(json: &[u8]) -> String {
    let mut places = places_of_text(json);
    if places.is_empty() {
        return ", and text nowhere".into();
    }
    let more = if places.len() > PLACES_MAX { " and elsewhere" } else { "" };
    places.truncate(PLACES_MAX);
    format!(", but text at {}{more}", places.join(", "))
}

/// Returns pointers to texts of a JSON, one more than are told at most, those with the fewest names
/// first.
fn places_of_text(json: &[u8]) -> Vec<String> {
    let Ok(json) = serde_json::from_slice::<Value>(json) else { return Vec::new() };
    let mut places = Vec::new();
    let mut left = VecDeque::from([(String::new(), 0, &json)]);
    while let Some((place, depth, value)) = left.pop_front() {
        match value {
            Value::String(_) if place.is_empty() => places.push("\"\"".into()),
            Value::String(_) if places.len() <= PLACES_MAX => places.push(place),
            Value::Object(map) if depth < DEPTH_MAX => {
                left.extend(
                    map.iter().map(|(name, value)| {
                        (format!("{place}/{}", shown(name)), depth + 1, value)
                    }),
                );
            }
            // The others of a list are mostly as its first.
            Value::Array(list) if depth < DEPTH_MAX => {
                left.extend(list.first().map(|value| (format!("{place}/0"), depth + 1, value)));
            }
            _ => {}
        }
    }
    places
}

/// Returns a name as it stands in a pointer, and not at any length. It may have a terminal's
/// commands in it.
fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(NAME_CHARS_MAX).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    shown.replace(char::is_control, " ").replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn places_of_text_are_bounded_and_harmless() {
        let places = |json: Value| places_of_text(json.to_string().as_bytes());
        assert_eq!(places(json!("a")), ["\"\""]);
        assert_eq!(places(json!({"a/b~": ["x", "y"], "z": "t"})), ["/z", "/a~1b~0/0"]);
        assert_eq!(places(json!({"\u{1b}[2J": "x"})), ["/ [2J"]);
        let long = "ä".repeat(NAME_CHARS_MAX + 1);
        assert_eq!(places(json!({ long: "x" })), [format!("/{}…", "ä".repeat(NAME_CHARS_MAX))]);
        assert_eq!(places(json!({"1": {"2": {"3": {"4": "x"}}}})), ["/1/2/3/4"]);
        assert_eq!(places(json!({"1": {"2": {"3": {"4": {"5": "x"}}}}})), [""; 0]);
        let many: serde_json::Map<_, _> = (0..100).map(|i| (i.to_string(), "x".into())).collect();
        let said = texts_in_words(Value::Object(many).to_string().as_bytes());
        assert_eq!(said, ", but text at /0, /1, /10, /11, /12, /13, /14, /15 and elsewhere");
    }
}
