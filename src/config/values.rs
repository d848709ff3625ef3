//! Values that are text to the types: what is wrong with one by itself, in words, and how a
//! duration is written.

use std::time::Duration;

use humantime_serde::re::humantime::{FormattedDuration, format_duration};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The longest name of a topic, in bytes.
const TOPIC_BYTES_MAX: usize = 249;

/// Returns a duration as the configuration has it, such as `15m`.
pub fn as_written(duration: Duration) -> FormattedDuration {
    format_duration(duration)
}

/// Returns what is wrong with the list of addresses, if it isn't empty. A port may be left out:
/// librdkafka takes 9092.
pub(super) fn fault_of_brokers(brokers: &str) -> Option<String> {
    let several = brokers.split(',').count() > 1;
    brokers.split(',').map(str::trim).enumerate().find_map(|(before, entry)| {
        let which = if several { format!("entry {} ", before + 1) } else { String::new() };
        let lower = entry.to_lowercase();
        if let Some(scheme) =
            ["http://", "https://"].iter().find(|scheme| lower.starts_with(**scheme))
        {
            let example = "\"host:9092\", or \"host1:9092,host2:9092\" for several";
            return Some(format!(
                "{which}begins with {scheme}, which brokers don't speak; an address is {example}"
            ));
        }
        if several && entry.is_empty() {
            return Some(format!("{which}is empty; a list is such as \"host1:9092,host2:9092\""));
        }
        if entry.contains(char::is_whitespace) {
            let example = "such as \"host1:9092,host2:9092\"";
            return Some(format!(
                "{which}has white space in it; commas separate addresses, {example}"
            ));
        }
        let address = entry.rsplit_once("://").map_or(entry, |(_, address)| address);
        let (host, port) = address.rsplit_once(':')?;
        // An address of IPv6 has colons of its own.
        let is_port = !host.contains(':') || host.ends_with(']');
        (is_port && !port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| {
            format!("{which}has the port {port:?}; one is of 1 to 65535, as in \"host:9092\"")
        })
    })
}

/// Returns what is wrong with the name of a topic, if it isn't empty. Of a pattern, which begins
/// with `^`, librdkafka would read every topic that fits.
pub(super) fn fault_of_topic(name: &str) -> Option<String> {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
    let is_name = name.chars().all(is_letter) && name.len() <= TOPIC_BYTES_MAX;
    (!name.trim().is_empty() && (!is_name || [".", ".."].contains(&name))).then(|| {
        format!(
            "is {name:?}, which no topic is called: names have at most {TOPIC_BYTES_MAX} of the letters \
             a to z and A to Z, digits, dots, underscores and hyphens"
        )
    })
}

/// Returns what is wrong with the log's filter. A word alone that isn't a level would be the name
/// of a target, of which there is none, and the log would be empty.
pub(super) fn fault_of_filter(filter: &str) -> Option<String> {
    if filter.trim().is_empty() {
        return Some("names no level; info is usual".into());
    }
    if let Err(error) = filter.parse::<EnvFilter>() {
        return Some(error.to_string());
    }
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let is_target = |word: &str| {
        let crate_name = word.split("::").next().unwrap_or_default();
        ["capvec", "librdkafka"].contains(&crate_name)
    };
    let wrong = filter.split(',').map(str::trim).find(|directive| {
        !directive.contains(['=', '[']) && !is_level(directive) && !is_target(directive)
    })?;
    Some(format!(
        "{wrong:?} is no level; those are error, warn, info, debug, trace and off, and of a target it \
         is such as capvec::kafka=debug"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_no_broker_has_are_refused() {
        for good in
            ["", "b", "b:9092", "a:1, b:2", "SASL_SSL://b:9092", "[::1]:9092", "[::1]", "::1"]
        {
            assert_eq!(fault_of_brokers(good), None, "{good}");
        }
        for (wrong, expected) in [
            ("http://b:9092", "begins with http://"),
            ("a:1, HTTPS://b", "entry 2 begins with https://"),
            ("a:1,", "entry 2 is empty"),
            ("a:1, ,b:2", "entry 2 is empty"),
            ("a:1 b:2", "has white space in it"),
            ("a:1,b:99999", "entry 2 has the port \"99999\""),
            ("SSL://b:9092/", "has the port \"9092/\""),
            ("[::1]:kafka", "has the port \"kafka\""),
            ("b:0", "has the port \"0\""),
            ("b:", "has the port \"\""),
        ] {
            let said = fault_of_brokers(wrong).unwrap();
            assert!(said.starts_with(expected) && said.contains(":9092\""), "{wrong}: {said}");
        }
    }

    #[test]
    fn names_that_no_topic_has_are_refused() {
        let longest = "t".repeat(TOPIC_BYTES_MAX);
        for good in ["", " ", "captions.v1_a-B", &longest] {
            assert_eq!(fault_of_topic(good), None, "{good}");
        }
        let longer = longest.clone() + "t";
        for wrong in [&longer, "a b", " captions", "^captions", "bilder-ö", ".."] {
            assert!(fault_of_topic(wrong).is_some(), "{wrong}");
        }
    }

    #[test]
    fn a_filter_that_would_silence_the_log_is_refused() {
        for good in [
            "info",
            "INFO",
            "off",
            "info,capvec::kafka=debug",
            "capvec::kafka",
            "warn,librdkafka=debug",
        ] {
            assert_eq!(fault_of_filter(good), None, "{good}");
        }
        for wrong in ["", " ", "warning", "inof", "info,verbose", "capvec=warning"] {
            assert!(fault_of_filter(wrong).is_some(), "{wrong}");
        }
    }
}
