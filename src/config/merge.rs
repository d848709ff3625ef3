//! Holds what the layers give against the defaults, key by key.
//!
//! Deserializing the whole would stop at the first fault. So each option is tried by itself: all
//! faults are found, and each is named by its path. Whatever passes is looked at together: files,
//! relations, and what librdkafka says.

use serde_json::{Map, Value};

use super::Config;
use super::fault::{ConfigError, Fault};
use super::login;
use super::properties::goes_elsewhere;
use super::together::refused_together;
use super::words::due;

/// Returns the configuration that the layers come to, where `faults`, found so far, are none and no
/// others are found.
pub(super) fn from_tree(given: Value, mut faults: Vec<Fault>) -> Result<Config, ConfigError> {
    let defaults = serde_json::to_value(Config::default()).expect("options are plain data");
    let mut config = defaults.clone();
    merge(&mut Vec::new(), &given, &defaults, &mut config, &mut faults);

    let mut config: Config =
        serde_json::from_value(config).expect("each option has been tried by itself");
    faults.extend(config.read_files());
    faults.extend(config.faults(&faults));
    let is_new = |fault: &Fault| faults.iter().all(|known| known.path != fault.path);
    faults.extend(login::faults(&config.kafka).into_iter().filter(is_new).collect::<Vec<_>>());
    if faults.is_empty() {
        faults.extend(refused_together(&config));
    }
    match faults.is_empty() {
        true => Ok(config),
        false => Err(ConfigError::Faults(faults)),
    }
}

/// Takes over each given option into `config` where it can be read, and notes a fault where not.
fn merge(
    path: &mut Vec<String>,
    given: &Value,
    defaults: &Value,
    config: &mut Value,
    faults: &mut Vec<Fault>,
) {
    let (Value::Object(given), Value::Object(known)) = (given, defaults) else {
        faults.push(Fault::new(path.join("."), "a section is due, with options in it"));
        return;
    };
    for (key, value) in given {
        path.push(key.clone());
        match known.get(key) {
            None => {
                let elsewhere =
                    (path.len() == 2 && path[0] == "kafka").then(|| goes_elsewhere(key));
                let of_section = (path.len() == 1).then(|| in_a_section(key, known)).flatten();
                let near = closest(key, known).map(str::to_owned).or(of_section);
                let message = match (elsewhere.flatten(), near) {
                    (Some(place), _) => format!("no such option; {place}"),
                    (None, Some(near)) => format!("no such option; is it {near}?"),
                    (None, None) => "no such option".into(),
                };
                faults.push(Fault::new(path.join("."), message));
            }
            // A value that is no table may hold a secret, and isn't quoted.
            Some(_) if is_properties(path) && !value.is_object() => {
                faults.push(Fault::new(path.join("."), "a table of properties is due"));
            }
            Some(default @ Value::Object(_)) if !is_properties(path) => {
                merge(path, value, default, &mut config[key.as_str()], faults);
            }
            Some(default) => match try_option(path, as_kind_of(value, default)) {
                Ok(value) => config[key.as_str()] = value,
                Err(message) => faults.push(Fault::new(path.join("."), message)),
            },
        }
        path.pop();
    }
}

/// Returns whether an option is a free map of librdkafka's properties.
fn is_properties(path: &[String]) -> bool {
    path == ["kafka", "librdkafka"] || path == ["kafka", "librdkafka_files"]
}

/// Returns the value if a configuration with it and nothing else can be read.
fn try_option(path: &[String], value: Value) -> Result<Value, String> {
    let tree = path
        .iter()
        .rev()
        .fold(value.clone(), |inner, key| Value::Object(Map::from_iter([(key.clone(), inner)])));
    match serde_json::from_value::<Config>(tree) {
        Ok(_) => Ok(value),
        Err(error) => Err(due(&value, &error.to_string())),
    }
}

/// Variables and flags are text; returns it as the number or the boolean that the option is.
fn as_kind_of(value: &Value, default: &Value) -> Value {
    match (value, default) {
        (Value::String(text), Value::Number(_) | Value::Bool(_)) => {
            serde_json::from_str(text.trim()).unwrap_or_else(|_| value.clone())
        }
        _ => value.clone(),
    }
}

/// Returns the path of the option of this name that is in a section, if one is. The section may
/// stand before it, as in `kafka_brokers`.
fn in_a_section(key: &str, sections: &Map<String, Value>) -> Option<String> {
    sections.iter().find_map(|(section, options)| {
        let rest = key.strip_prefix(section.as_str()).and_then(|rest| rest.strip_prefix('_'));
        let option = [Some(key), rest].into_iter().flatten().find(|key| options.get(key).is_some());
        option.map(|option| format!("{section}.{option}"))
    })
}

/// Returns the known key that differs least from `key`, if one is near enough to be meant. Its
/// words may stand in another order: `tokens_max` is `max_tokens` to many.
pub(super) fn closest<'a>(key: &str, known: &'a Map<String, Value>) -> Option<&'a str> {
    let key = key.to_lowercase();
    let distance = |candidate: &str| {
        let as_written = strsim::damerau_levenshtein(&key, candidate);
        as_written.min(strsim::damerau_levenshtein(&sorted(&key), &sorted(candidate)))
    };
    known
        .keys()
        .map(|candidate| (distance(candidate), candidate.as_str()))
        .min()
        .filter(|(distance, _)| *distance <= key.len().div_ceil(3))
        .map(|(_, candidate)| candidate)
}

/// Returns the words of a name in the order of the alphabet.
fn sorted(name: &str) -> String {
    let mut words: Vec<&str> = name.split('_').collect();
    words.sort_unstable();
    words.join("_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::fixtures::{MINIMAL, faults, load_layers, load_text};

    #[test]
    fn every_fault_is_told_at_once_by_its_path() {
        let text = r#"
            kafka = { brokers = "b:9092", gruop = "g" }
            input = { topic = "x", format = "xml", pointer = "caption" }
            output = { topic = "x" }
            batch = { tokens_max = -2, wait_max = "soon" }
            colour = "red"
            pointer = "/caption"
            kafka_client_id = "me"
            INPUT = {}
        "#;
        let faults = faults(load_text(text, &[("CAPVEC__TOKENIZE__THREADS", "many")]));
        for expected in [
            "kafka.gruop: no such option; is it group?",
            "kafka.group: is required",
            "input.format: ",
            "input.pointer: ",
            "output.topic: ",
            "model.package: is required",
            "batch.tokens_max: ",
            "batch.wait_max: ",
            "tokenize.threads: ",
            "colour: no such option",
            "pointer: no such option; is it input.pointer?",
            "kafka_client_id: no such option; is it kafka.client_id?",
            "INPUT: no such option; is it input?",
        ] {
            assert!(faults.iter().any(|f| f.starts_with(expected)), "{expected}\n{faults:#?}");
        }
        assert_eq!(faults.len(), 13, "{faults:#?}");
    }

    #[test]
    fn of_a_section_that_is_none_its_options_are_not_missed_too() {
        let faults = faults(load_layers(MINIMAL, &[], &[("kafka", "1"), ("input", "2")]));
        let due = |section| format!("{section}: a section is due, with options in it");
        assert_eq!(faults, [due("input"), due("kafka")]);
    }

    #[test]
    fn an_option_is_found_whose_words_stand_in_another_order() {
        let faults = faults(load_text("[batch]\nmax_tokens = 1", &[]));
        let due = "batch.max_tokens: no such option; is it tokens_max?";
        assert!(faults.iter().any(|fault| fault == due), "{faults:#?}");
        let defaults = serde_json::to_value(Config::default()).unwrap();
        let mut tried = 0;
        for known in defaults.as_object().unwrap().values().filter_map(Value::as_object) {
            for option in known.keys() {
                let Some((rest, word)) = option.rsplit_once('_') else { continue };
                if ["max", "min"].contains(&word) {
                    assert_eq!(closest(&format!("{word}_{rest}"), known), Some(option.as_str()));
                    tried += 1;
                }
            }
        }
        assert!(tried >= 7, "{tried}");
        let batch = defaults["batch"].as_object().unwrap();
        assert_eq!(closest("max_token", batch), Some("tokens_max"), "misspelt, too");
        assert_eq!(closest("colour", batch), None);
    }
}
