//! The checkpoint's `config.json`: of which family the network is, and its sizes.
//!
//! What would make another forward pass than the graph's is refused: another activation, another
//! kind of positions, a decoder.

use std::path::Path;

use serde::Deserialize;

use super::ImportError;
use super::files::read_to_string;
use crate::model::network::{Family, Network};

/// The file's name.
pub const CONFIG: &str = "config.json";

/// What both families add to a variance where nobody says otherwise.
const LAYER_NORM_EPSILON: f32 = 1e-12;

/// The keys of `config.json` that decide the graph, under the names of both families.
#[derive(Deserialize)]
struct HuggingFaceConfig {
    model_type: String,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

/// Returns the network that the file describes, without the head's `dim`.
pub fn read_config(path: &Path) -> Result<Network, ImportError> {
    let wrong = |reason: String| ImportError::Config { path: path.into(), reason };
    let text = read_to_string(path)?;
    let raw: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| wrong(format!("not JSON: {e}")))?;
    // The family comes first: another family's file lacks keys, and that isn't what is wrong.
    let family = match raw.get("model_type").and_then(serde_json::Value::as_str) {
        Some("bert") => Family::Bert,
        Some("distilbert") => Family::DistilBert,
        Some(other) => {
            return Err(wrong(format!(
                "the family {other:?} can't be imported; bert and distilbert can"
            )));
        }
        None => return Err(wrong("no model_type; which family is it?".into())),
    };
    let config: HuggingFaceConfig =
        serde_json::from_value(raw).map_err(|e| wrong(e.to_string()))?;
    debug_assert_eq!(config.model_type, family.as_str());

    match config.hidden_act.as_deref() {
        None | Some("gelu") => {}
        Some(other) => {
            return Err(wrong(format!("the activation {other:?} can't be imported; gelu can")));
        }
    }
    match config.position_embedding_type.as_deref() {
        None | Some("absolute") => {}
        Some(other) => {
            return Err(wrong(format!(
                "position embeddings of type {other:?} can't be imported; absolute ones can"
            )));
        }
    }
    if config.is_decoder {
        return Err(wrong(
            "is_decoder is true: each token would see those before it alone, which can't be imported"
                .into(),
        ));
    }
    let layer_norm_epsilon = match family {
        Family::Bert => config.layer_norm_eps.unwrap_or(LAYER_NORM_EPSILON),
        // Hugging Face's DistilBERT looks at no such key.
        Family::DistilBert => LAYER_NORM_EPSILON,
    };
    if !(0.0..1.0).contains(&layer_norm_epsilon) {
        return Err(wrong(format!("layer_norm_eps is {layer_norm_epsilon}, and not 0 to 1")));
    }
    Ok(Network {
        family,
        vocabulary: config.vocab_size,
        positions: config.max_position_embeddings,
        hidden: config.hidden_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        feed_forward: config.intermediate_size,
        layer_norm_epsilon,
        dim: 0,
    })
}

/// Checks the sizes, of which the file has all but the head's.
pub fn check_sizes(network: &Network, path: &Path) -> Result<(), ImportError> {
    let wrong = |reason| ImportError::Config { path: path.into(), reason };
    network.check(named).map_err(wrong)
}

/// Returns what a size of the network is called in the file, by BERT's names.
fn named(size: &'static str) -> &'static str {
    match size {
        "vocabulary" => "vocab_size",
        "positions" => "max_position_embeddings",
        "hidden" => "hidden_size",
        "layers" => "num_hidden_layers",
        "heads" => "num_attention_heads",
        "feed_forward" => "intermediate_size",
        "dim" => "the head's dim",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synth::Preset;

    #[test]
    fn the_epsilon_is_one_that_hugging_face_goes_by() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONFIG);
        let read = |family: &str, epsilon: &str| {
            let text = format!(
                "{{\"model_type\": \"{family}\", \"vocab_size\": 6, \"hidden_size\": 8, \
                 \"max_position_embeddings\": 16, \"num_hidden_layers\": 2, \
                 \"num_attention_heads\": 2, \"intermediate_size\": 12, \
                 \"layer_norm_eps\": {epsilon}}}"
            );
            std::fs::write(&path, text).unwrap();
            read_config(&path).map(|network| network.layer_norm_epsilon).map_err(|e| e.to_string())
        };
        assert_eq!(read("bert", "1e-5"), Ok(1e-5));
        assert_eq!(read("bert", "null"), Ok(1e-12));
        assert_eq!(read("distilbert", "1e-5"), Ok(1e-12));
        for none in ["-1e-12", "1e39"] {
            assert!(read("bert", none).unwrap_err().contains("layer_norm_eps is"), "{none}");
        }
    }

    #[test]
    fn a_size_is_told_by_its_name_in_the_file() {
        let tiny = Preset::Tiny.network();
        let path = Path::new(CONFIG);
        assert!(check_sizes(&tiny, path).is_ok());
        for (network, key) in [
            (Network { vocabulary: 0, ..tiny.clone() }, "vocab_size"),
            (Network { positions: 0, ..tiny.clone() }, "max_position_embeddings"),
            (Network { hidden: 0, ..tiny.clone() }, "hidden_size"),
            (Network { layers: 0, ..tiny.clone() }, "num_hidden_layers"),
            (Network { heads: 0, ..tiny.clone() }, "num_attention_heads"),
            (Network { feed_forward: 0, ..tiny.clone() }, "intermediate_size"),
            (Network { dim: 0, ..tiny }, "the head's dim"),
        ] {
            let error = check_sizes(&network, path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {key} is 0,")), "{error}");
        }
    }
}
