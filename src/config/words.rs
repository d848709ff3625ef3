//! What is due where a value can't be read, in the words of whoever writes it and not in those of
//! Rust.

use serde_json::Value;

/// How the end of serde's sentence reads, and what is due.
const DUE: [(&str, &str); 8] = [
    ("expected usize", "a whole number is due"),
    ("expected a nonzero usize", "a whole number above 0 is due"),
    ("expected f64", "a number is due"),
    ("expected a boolean", "true or false is due"),
    ("expected a duration", "a duration such as \"5s\" is due"),
    ("expected a string", "text is due"),
    ("expected path string", "a path is due"),
    ("socket address", "an IP address with a port is due, such as \"0.0.0.0:9180\""),
];

/// Returns the value and what is due in its place, of a value that serde refuses with `message`.
///
/// Secrets are kept in properties of librdkafka, which any text is for: no value that comes here is
/// one.
pub(super) fn due(value: &Value, message: &str) -> String {
    let found = DUE.iter().find(|(words, _)| match *words {
        "socket address" => message.contains("socket address"),
        words => message.ends_with(words),
    });
    let due = found.map(|(_, due)| (*due).to_owned()).or_else(|| one_of(message));
    match (due, value) {
        (Some(due), Value::Object(_)) => format!("is a table; {due}"),
        (Some(due), Value::Array(_)) => format!("is a list; {due}"),
        (Some(due), scalar) => format!("is {scalar}; {due}"),
        (None, _) => message.into(),
    }
}

/// Returns the words of which one is due, if serde's sentence has them.
fn one_of(message: &str) -> Option<String> {
    let (_, words) = message.strip_prefix("unknown variant ")?.rsplit_once(", expected ")?;
    Some(format!("{} is due", words.replace('`', "\"")))
}

#[cfg(test)]
mod tests {
    /// Returns the fault of an option's value, both as in TOML.
    fn said(section: &str, key: &str, value: &str) -> String {
        let text = format!("[{section}]\n{key} = {value}\n");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let error = crate::config::load(Some(file.path()), &[]).unwrap_err().to_string();
        let option = format!("  {section}.{key}: ");
        let line = error.lines().find_map(|line| line.strip_prefix(&option));
        line.unwrap_or_else(|| panic!("{option}: {error}")).into()
    }

    #[test]
    fn what_is_due_is_told_in_plain_words() {
        for (section, key, value, expected) in [
            ("batch", "tokens_max", "\"many\"", "is \"many\"; a whole number is due"),
            ("batch", "tokens_max", "-2", "is -2; a whole number is due"),
            ("batch", "tokens_max", "1.5", "is 1.5; a whole number is due"),
            ("batch", "captions_max", "0", "is 0; a whole number above 0 is due"),
            ("batch", "captions_max", "\"many\"", "is \"many\"; a whole number above 0 is due"),
            ("batch", "captions_max", "[1]", "is a list; a whole number above 0 is due"),
            ("batch", "wait_max", "\"5\"", "is \"5\"; a duration such as \"5s\" is due"),
            ("batch", "wait_max", "5", "is 5; a duration such as \"5s\" is due"),
            ("batch", "wait_max", "\"soon\"", "is \"soon\"; a duration such as \"5s\" is due"),
            ("reject", "breaker_share", "\"half\"", "is \"half\"; a number is due"),
            ("model", "verify", "\"maybe\"", "is \"maybe\"; true or false is due"),
            ("model", "package", "3", "is 3; a path is due"),
            ("input", "topic", "3", "is 3; text is due"),
            (
                "admin",
                "listen",
                "9180",
                "is 9180; an IP address with a port is due, such as \"0.0.0.0:9180\"",
            ),
            (
                "admin",
                "listen",
                "\"9180\"",
                "is \"9180\"; an IP address with a port is due, such as \"0.0.0.0:9180\"",
            ),
        ] {
            assert_eq!(said(section, key, value), expected, "{section}.{key} = {value}");
        }
        assert_eq!(said("input", "format", "\"xml\""), "is \"xml\"; \"json\" or \"text\" is due");
        assert_eq!(
            said("log", "format", "\"xml\""),
            "is \"xml\"; one of \"auto\", \"text\", \"json\" is due"
        );
    }
}
