//! `capvec model import` on checkpoints made here: which tensor goes where, and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use capvec::model::import::{Import, import};
use capvec::model::manifest::Precision;
use capvec::model::network::{Family, Network, WeightSource};
use capvec::model::package::{Existing, Package, TOKENIZER, WEIGHTS};
use capvec::model::tokenizer_json::{TokenizerConfig, from_vocabulary};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\nworld\n";

fn network(family: Family) -> Network {
    Network {
        family,
        vocabulary: 6,
        positions: 16,
        hidden: 8,
        layers: 2,
        heads: 2,
        feed_forward: 12,
        layer_norm_epsilon: 1e-12,
        dim: 5,
    }
}

/// The tensors that a checkpoint of the network has, with numbers that tell them apart.
fn tensors(network: &Network) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut tensors = BTreeMap::new();
    let mut number = 0.0;
    let mut add = |name: &str, shape: Vec<usize>| {
        let elements = shape.iter().product();
        let numbers = std::iter::repeat_with(|| {
            number += 1.0;
            // An eighth of a whole number below 2^24 is exact in f32.
            (number % 99_991.0) / 8.0
        });
        tensors.insert(name.to_owned(), (shape, numbers.take(elements).collect()));
    };
    for weight in network.weights() {
        match weight.source {
            WeightSource::Stacked(names) => {
                let mut shape = weight.shape.clone();
                shape[0] /= names.len();
                names.iter().for_each(|name| add(name, shape.clone()));
            }
            WeightSource::Positions { positions, token_types } => {
                add(&positions, weight.shape);
                token_types.iter().for_each(|name| add(name, vec![2, network.hidden]));
            }
            WeightSource::HeadWeight | WeightSource::HeadBias => add(&weight.name, weight.shape),
        }
    }
    tensors
}

fn write_safetensors(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    let bytes: BTreeMap<&String, (Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, numbers))| {
            let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            (name, (shape.clone(), bytes))
        })
        .collect();
    let views = bytes.iter().map(|(name, (shape, bytes))| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A checkpoint folder with its head, in a temporary folder.
struct Checkpoint {
    folder: tempfile::TempDir,
}

impl Checkpoint {
    fn write(network: &Network, rename: impl Fn(&str) -> String) -> Checkpoint {
        let folder = tempfile::tempdir().unwrap();
        let (head, encoder): (BTreeMap<_, _>, BTreeMap<_, _>) =
            tensors(network).into_iter().partition(|(name, _)| name.starts_with("head."));
        let encoder = encoder.into_iter().map(|(name, t)| (rename(&name), t)).collect();
        write_safetensors(&folder.path().join("model.safetensors"), &encoder);
        write_safetensors(&folder.path().join("head.safetensors"), &head);
        let config = match network.family {
            Family::Bert => serde_json::json!({
                "model_type": "bert", "vocab_size": 6, "max_position_embeddings": 16,
                "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
                "intermediate_size": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
            }),
            Family::DistilBert => serde_json::json!({
                "model_type": "distilbert", "vocab_size": 6, "max_position_embeddings": 16,
                "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "activation": "gelu",
            }),
        };
        let checkpoint = Checkpoint { folder };
        std::fs::write(checkpoint.path("config.json"), config.to_string()).unwrap();
        let json = from_vocabulary(VOCAB, &TokenizerConfig::default()).unwrap();
        std::fs::write(checkpoint.path("tokenizer.json"), json).unwrap();
        checkpoint
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn import(&self, max_tokens: Option<usize>) -> Result<Package, String> {
        let out = self.path("package");
        let request = Import {
            checkpoint: self.folder.path(),
            head: &self.path("head.safetensors"),
            out: &out,
            existing: Existing::Replace,
            name: Some("made-here".into()),
            max_tokens,
            precision: Precision::Fp32,
        };
        import(&request, &mut |_| ()).map_err(|e| e.to_string())?;
        let left = std::fs::read_dir(self.folder.path()).unwrap();
        let left = left
            .filter(|f| f.as_ref().unwrap().file_name().to_string_lossy().starts_with(".capvec"));
        assert_eq!(left.count(), 0, "nothing is left behind");
        Ok(Package::open(&out).unwrap())
    }
}

/// The numbers of the data file, in the network's order, without the padding between weights.
fn numbers_of(package: &Package) -> Vec<f32> {
    let bytes = std::fs::read(package.path.join(WEIGHTS)).unwrap();
    let mut numbers = Vec::new();
    let mut offset: usize = 0;
    for weight in package.manifest.network.weights() {
        offset = offset.next_multiple_of(4096);
        let end = offset + 4 * weight.elements();
        let range = bytes[offset..end].chunks_exact(4);
        numbers.extend(range.map(|b| f32::from_le_bytes(b.try_into().unwrap())));
        offset = end;
    }
    assert_eq!(offset, bytes.len());
    numbers
}

/// What the data file must hold, by the definition of each weight.
fn expected(network: &Network) -> Vec<f32> {
    let tensors = tensors(network);
    let of = |name: &str| tensors[name].1.clone();
    let mut numbers = Vec::new();
    for weight in network.weights() {
        match weight.source {
            WeightSource::Stacked(names) => names.iter().for_each(|n| numbers.extend(of(n))),
            WeightSource::Positions { positions, token_types } => {
                let types = token_types.map_or(vec![0.0; network.hidden], |name| of(&name));
                let positions = of(&positions);
                numbers.extend(
                    positions.iter().enumerate().map(|(i, p)| p + types[i % network.hidden]),
                );
            }
            WeightSource::HeadWeight | WeightSource::HeadBias => numbers.extend(of(&weight.name)),
        }
    }
    numbers
}

#[test]
fn every_tensor_of_both_families_goes_to_its_place() {
    for family in [Family::Bert, Family::DistilBert] {
        let network = network(family);
        let checkpoint = Checkpoint::write(&network, str::to_owned);
        let package = checkpoint.import(None).unwrap();
        assert_eq!(package.manifest.network, network);
        assert_eq!(package.manifest.max_tokens, 16, "the network has no more positions");
        assert!(package.manifest.model_id.starts_with("made-here@"));
        assert!(numbers_of(&package) == expected(&network), "{family:?}");
    }
}

#[test]
fn older_names_and_a_larger_models_prefix_are_known() {
    let network = network(Family::Bert);
    let rename = |name: &str| {
        let older = match name.contains("LayerNorm") {
            true => name.replace(".weight", ".gamma").replace(".bias", ".beta"),
            false => name.to_owned(),
        };
        format!("bert.{older}")
    };
    let checkpoint = Checkpoint::write(&network, rename);
    let package = checkpoint.import(Some(9)).unwrap();
    assert_eq!(package.manifest.max_tokens, 9);
    assert!(numbers_of(&package) == expected(&network));
}

#[test]
fn a_published_tokenizer_is_taken_as_it_is() {
    let checkpoint = Checkpoint::write(&network(Family::Bert), str::to_owned);
    let package = checkpoint.import(None).unwrap();
    let taken = std::fs::read(package.path.join(TOKENIZER)).unwrap();
    assert_eq!(taken, std::fs::read(checkpoint.path("tokenizer.json")).unwrap());
}

#[test]
fn what_does_not_fit_is_refused_by_its_name() {
    let network = network(Family::Bert);
    let checkpoint =
        Checkpoint::write(&network, |name| name.replace("layer.1.output", "layer.1.oops"));
    let error = checkpoint.import(None).unwrap_err();
    assert!(error.contains("encoder.layer.1.output.dense.weight is missing"), "{error}");
    assert!(!checkpoint.path("package").exists());

    let checkpoint = Checkpoint::write(&network, str::to_owned);
    assert!(checkpoint.import(Some(17)).unwrap_err().contains("16 positions"));
    assert!(checkpoint.import(Some(2)).unwrap_err().contains("at least 3"));

    let config = |key: &str, value: serde_json::Value| {
        let path = checkpoint.path("config.json");
        let before = std::fs::read_to_string(&path).unwrap();
        let mut object: serde_json::Value = serde_json::from_str(&before).unwrap();
        object[key] = value;
        std::fs::write(&path, object.to_string()).unwrap();
        let error = checkpoint.import(None).unwrap_err();
        std::fs::write(&path, before).unwrap();
        error
    };
    assert!(config("hidden_act", "relu".into()).contains("\"relu\""));
    assert!(config("position_embedding_type", "relative_key".into()).contains("relative_key"));
    assert!(config("num_attention_heads", 3.into()).contains("no multiple"));
    assert!(config("vocab_size", 5.into()).contains("[6, 8]"));
    assert!(config("vocab_size", 0.into()).contains("vocab_size is 0"));
    assert!(config("intermediate_size", 13.into()).contains("[12, 8] and not [13, 8]"));
    assert!(config("hidden_size", u64::MAX.into()).contains("hidden_size"));
}
