//! `capvec model import` on checkpoints made here: which tensor goes where, and what is refused.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use capvec::model::import::{Import, import};
use capvec::model::manifest::Precision;
use capvec::model::network::{Family, Network, WeightSource};
use capvec::model::package::{Existing, Package, TOKENIZER, WEIGHTS};
use capvec::model::tokenizer_json::{TokenizerConfig, from_vocabulary};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

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
        let imported = import(&request, &mut |_| ());
        let left = std::fs::read_dir(self.folder.path()).unwrap();
        let left = left
            .filter(|f| f.as_ref().unwrap().file_name().to_string_lossy().starts_with(".capvec"));
        assert_eq!(left.count(), 0, "nothing is left behind");
        imported.map_err(|e| format!("{:#}", anyhow::Error::from(e)))?;
        Ok(Package::open(&out).unwrap())
    }

    /// Imports with a file changed, which is as before then.
    fn import_with(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<Package, String> {
        let path = self.path(name);
        let before = std::fs::read_to_string(&path).unwrap();
        let mut changed: Value = serde_json::from_str(&before).unwrap();
        change(&mut changed);
        std::fs::write(&path, changed.to_string()).unwrap();
        let result = self.import(None);
        std::fs::write(&path, before).unwrap();
        result
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

    let config = |key: &str, value: Value| {
        checkpoint.import_with("config.json", |c| c[key] = value).unwrap_err()
    };
    assert!(config("hidden_act", "relu".into()).contains("\"relu\""));
    assert!(config("position_embedding_type", "relative_key".into()).contains("relative_key"));
    assert!(config("num_attention_heads", 3.into()).contains("no multiple"));
    assert!(config("vocab_size", 5.into()).contains("[6, 8]"));
    assert!(config("vocab_size", 0.into()).contains("vocab_size is 0"));
    assert!(config("intermediate_size", 13.into()).contains("[12, 8] and not [13, 8]"));
    assert!(config("hidden_size", u64::MAX.into()).contains("hidden_size"));
    assert!(config("is_decoder", true.into()).contains("is_decoder"));

    let whole = checkpoint.path("model.safetensors");
    std::fs::rename(&whole, checkpoint.path("model-00001-of-00001.safetensors")).unwrap();
    std::fs::write(checkpoint.path("model.safetensors.index.json"), "{}").unwrap();
    assert!(checkpoint.import(None).unwrap_err().contains("max_shard_size"));
}

#[test]
fn a_tokenizer_that_would_give_other_ids_or_take_all_memory_is_refused() {
    let checkpoint = Checkpoint::write(&network(Family::Bert), str::to_owned);
    let refused = |change: &dyn Fn(&mut Value)| {
        let error = checkpoint.import_with("tokenizer.json", change).unwrap_err();
        assert!(error.contains("tokenizer.json"), "{error}");
        error
    };
    let added = |content: &str, id: u64| {
        serde_json::json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false,
        })
    };
    let adds = |token: Value| {
        refused(&move |t| t["added_tokens"].as_array_mut().unwrap().push(token.clone()))
    };
    assert!(
        refused(&|t| t["model"]["vocab"]["zz"] = 2_147_483_646.into()).contains("2147483647 ids")
    );
    assert!(adds(added("hello", 4_294_967_290)).contains("4294967291 ids"));
    assert!(adds(added("zz", 5)).contains("7 ids where the network knows 6"), "it would get 6");
    assert!(adds(added(&"z".repeat(70_000), 5)).contains("ids"));
    assert!(
        refused(&|t| {
            drop(t["model"]["vocab"].as_object_mut().unwrap().remove("hello"));
            t["added_tokens"].as_array_mut().unwrap().push(added(&"z".repeat(70_000), 4));
        })
        .contains("70000 bytes")
    );
    let most: u64 = 10_000_000_000_000;
    assert!(
        refused(&|t| t["model"]["max_input_chars_per_word"] = most.into())
            .contains("max_input_chars")
    );
    assert!(
        refused(&|t| drop(t["model"]["vocab"].as_object_mut().unwrap().remove("[UNK]")))
            .contains("\"[UNK]\", for unknown words")
    );
    // What is looked for in normalised text: beside what it takes for spaces, and behind itself.
    let with_flags = |content: &str, flags: &[&str]| {
        let mut token = added(content, 4);
        flags.iter().for_each(|flag| token[*flag] = true.into());
        token
    };
    let takes = |token: Value| {
        let change = |t: &mut Value| t["added_tokens"].as_array_mut().unwrap().push(token);
        checkpoint.import_with("tokenizer.json", change).map(drop)
    };
    assert!(adds(with_flags("hello", &["normalized", "rstrip"])).contains("white space"));
    assert!(adds(with_flags("hello", &["normalized", "lstrip"])).contains("white space"));
    takes(with_flags("hello", &["lstrip", "rstrip"])).unwrap();
    takes(with_flags("hello", &["normalized"])).unwrap();
    let named = |token: &'static str| {
        move |t: &mut Value| {
            let vocab = t["model"]["vocab"].as_object_mut().unwrap();
            let id = vocab.remove("hello").unwrap();
            vocab.insert(token.into(), id);
            let mut token = added(token, 4);
            token["normalized"] = true.into();
            t["added_tokens"].as_array_mut().unwrap().push(token);
        }
    };
    assert!(refused(&named("aa-")).contains("\"aa-\""), "a a a - has it behind its first letter");
    assert!(refused(&named("Aa-")).contains("\"Aa-\""), "where capitals are taken off");
    checkpoint.import_with("tokenizer.json", named("a-a")).map(drop).unwrap();

    assert!(
        refused(&|t| t["truncation"] = serde_json::json!({
            "direction": "Left", "max_length": 16, "strategy": "LongestFirst", "stride": 0,
        }))
        .contains("beginning")
    );

    let of_template = "/post_processor/special_tokens/[CLS]/ids/0";
    assert!(refused(&|t| *t.pointer_mut(of_template).unwrap() = 99.into()).contains("id 99"));

    let path = checkpoint.path("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text + &" ".repeat(32 << 20)).unwrap();
    let error = checkpoint.import(None).map(drop).unwrap_err();
    assert!(error.contains("tokenizer.json") && error.contains("has more than"), "{error}");
}

#[test]
fn two_files_that_say_two_things_of_the_tokenizer_are_refused() {
    let checkpoint = Checkpoint::write(&network(Family::Bert), str::to_owned);
    let with_options = |options: Value| {
        std::fs::write(checkpoint.path("tokenizer_config.json"), options.to_string()).unwrap();
        checkpoint.import(None).map(drop)
    };
    let error = with_options(serde_json::json!({"do_lower_case": false})).unwrap_err();
    assert!(
        error.contains("do_lower_case is false, and tokenizer.json has lowercase true"),
        "{error}"
    );
    let other_class = "PreTrainedTokenizerFast";
    with_options(serde_json::json!({"do_lower_case": false, "tokenizer_class": other_class}))
        .unwrap();
    with_options(serde_json::json!({"do_lower_case": true})).unwrap();
    with_options(serde_json::json!({"do_lower_case": true, "strip_accents": true})).unwrap();
    with_options(serde_json::json!({})).unwrap();
    let error = with_options(serde_json::json!({"tokenize_chinese_chars": false})).unwrap_err();
    assert!(error.contains("tokenize_chinese_chars"), "{error}");
    // Not BERT's, and it goes by the options as BERT's does.
    let electra =
        serde_json::json!({"do_lower_case": false, "tokenizer_class": "ElectraTokenizerFast"});
    assert!(with_options(electra).unwrap_err().contains("do_lower_case is false"));
    let error = with_options(serde_json::json!({"truncation_side": "left"})).unwrap_err();
    assert!(error.contains("truncation_side"), "{error}");
    with_options(serde_json::json!({"truncation_side": "right"})).unwrap();

    // Hugging Face adds the tokens that tokenizer.json doesn't have.
    let own = serde_json::json!({"cls_token": "[CLS]", "additional_special_tokens": ["[SEP]"]});
    with_options(own).unwrap();
    let foreign = [
        serde_json::json!({"additional_special_tokens": ["[SEP]", "<img>"]}),
        serde_json::json!({"added_tokens_decoder": {"5": {"content": "<img>"}}}),
        serde_json::json!({"mask_token": {"content": "<img>", "lstrip": false}}),
    ];
    for options in &foreign {
        let error = with_options(options.clone()).unwrap_err();
        assert!(error.contains("\"<img>\"") && error.contains("tokenizer_config.json"), "{error}");
    }
    with_options(serde_json::json!({})).unwrap();
    let others = [
        ("special_tokens_map.json", foreign[0].to_string()),
        ("added_tokens.json", r#"{"<img>": 5}"#.into()),
    ];
    for (name, text) in others {
        std::fs::write(checkpoint.path(name), text).unwrap();
        let error = checkpoint.import(None).unwrap_err();
        assert!(error.contains("\"<img>\"") && error.contains(name), "{error}");
        std::fs::remove_file(checkpoint.path(name)).unwrap();
    }

    // Hugging Face takes capitals off where no file says otherwise.
    std::fs::remove_file(checkpoint.path("tokenizer_config.json")).unwrap();
    let cased = |t: &mut Value| t["normalizer"]["lowercase"] = false.into();
    let error = checkpoint.import_with("tokenizer.json", cased).unwrap_err();
    assert!(
        error.contains("it isn't there: do_lower_case is true (the default)")
            && error.contains("tokenizer_config.json"),
        "{error}"
    );

    // Beside vocab.txt, tokens that are added to it.
    std::fs::remove_file(checkpoint.path("tokenizer.json")).unwrap();
    std::fs::write(checkpoint.path("vocab.txt"), VOCAB).unwrap();
    let own = serde_json::json!({
        "unk_token": "[UNK]", "sep_token": {"content": "[SEP]", "lstrip": false}, "pad_token": "[PAD]",
        "cls_token": "[CLS]", "mask_token": null, "additional_special_tokens": ["[MASK]"],
    });
    let foreign = [
        serde_json::json!({"additional_special_tokens": ["[MASK]", "<img>"]}),
        serde_json::json!({"additional_special_tokens": [{"content": "<img>", "lstrip": false}]}),
        serde_json::json!({"extra_special_tokens": {"image_token": "<img>"}}),
        serde_json::json!({"extra_special_tokens": ["<img>"]}),
        serde_json::json!({"unk_token": "<img>"}),
        serde_json::json!({"bos_token": {"content": "<img>"}}),
    ];
    with_options(own.clone()).unwrap();
    let class = |class: &str| serde_json::json!({ "tokenizer_class": class });
    with_options(class("DistilBertTokenizerFast")).unwrap();
    let error = with_options(class("BertJapaneseTokenizer")).unwrap_err();
    assert!(error.contains("BertJapaneseTokenizer") && error.contains("_config.json"), "{error}");
    with_options(serde_json::json!({})).unwrap();
    let japanese = |c: &mut Value| c["tokenizer_class"] = "BertJapaneseTokenizer".into();
    let error = checkpoint.import_with("config.json", japanese).unwrap_err();
    assert!(error.contains("/config.json") && error.contains("BertJapaneseTokenizer"), "{error}");
    let alone = serde_json::json!({"mask_token": {"content": "[MASK]", "single_word": true}});
    assert!(with_options(alone).unwrap_err().contains("\"[MASK]\""), "it must stand alone");
    let decoded = serde_json::json!({"added_tokens_decoder": {"5": {"content": "<img>"}}});
    for options in foreign.iter().chain([&decoded]) {
        let error = with_options(options.clone()).unwrap_err();
        assert!(error.contains("\"<img>\"") && error.contains("tokenizer_config.json"), "{error}");
    }
    std::fs::remove_file(checkpoint.path("tokenizer_config.json")).unwrap();
    let map = checkpoint.path("special_tokens_map.json");
    let with_map = |map_json: &Value| {
        std::fs::write(&map, map_json.to_string()).unwrap();
        checkpoint.import(None).map(drop)
    };
    with_map(&own).unwrap();
    for special in &foreign {
        let error = with_map(special).unwrap_err();
        assert!(error.contains("\"<img>\"") && error.contains("special_tokens_map"), "{error}");
    }
    let error = with_map(&serde_json::json!({"unk_token": "[PAD]"})).unwrap_err();
    assert!(error.contains("\"[PAD]\""), "in another's place: {error}");
    std::fs::remove_file(&map).unwrap();
    let added = checkpoint.path("added_tokens.json");
    std::fs::write(&added, r#"{"[MASK]": 5}"#).unwrap();
    checkpoint.import(None).unwrap();
    std::fs::write(&added, r#"{"<img>": 5}"#).unwrap();
    assert!(checkpoint.import(None).unwrap_err().contains("added_tokens.json"));
}

#[test]
fn a_tokenizer_that_hugging_face_would_make_otherwise_is_refused() {
    let checkpoint = Checkpoint::write(&network(Family::Bert), str::to_owned);
    let refused = |change: &dyn Fn(&mut Value), named: &str| {
        let error = checkpoint.import_with("tokenizer.json", change).map(drop).unwrap_err();
        assert!(error.contains("/tokenizer.json") && error.contains(named), "{named}: {error}");
    };
    // Its library makes these parts itself.
    let clean_text = |t: &mut Value| t["normalizer"]["clean_text"] = false.into();
    refused(&clean_text, "normalizer/clean_text is false");
    refused(&|t| t["normalizer"] = Value::Null, "normalizer/type is null");
    refused(&|t| t["pre_tokenizer"]["type"] = "WhitespaceSplit".into(), "pre_tokenizer/type");
    refused(&|t| t["model"]["max_input_chars_per_word"] = 50.into(), "is 50, and BERT's is 100");
    refused(&|t| t["model"]["unk_token"] = "hello".into(), "the unk_token is \"[UNK]\"");
    let of_template = "/post_processor/special_tokens/[CLS]/ids/0";
    refused(&|t| *t.pointer_mut(of_template).unwrap() = 5.into(), "the cls_token is \"[CLS]\"");
    let without_sep = |t: &mut Value| {
        t["added_tokens"].as_array_mut().unwrap().retain(|token| token["content"] != "[SEP]");
    };
    refused(&without_sep, "the sep_token is \"[SEP]\"");

    let with_options = |options: Value| {
        std::fs::write(checkpoint.path("tokenizer_config.json"), options.to_string()).unwrap();
        checkpoint.import(None).map(drop)
    };
    let listed = |flag: &str, set: bool| {
        let listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].iter().enumerate();
        let listed = listed.map(|(id, token)| {
            (id.to_string(), serde_json::json!({ "content": token, flag: set }))
        });
        serde_json::json!({ "added_tokens_decoder": Value::Object(listed.collect()) })
    };
    with_options(listed("single_word", false)).unwrap();
    for flag in ["single_word", "normalized"] {
        let error = with_options(listed(flag, true)).unwrap_err();
        assert!(error.contains("_config.json") && error.contains("\"[PAD]\""), "{flag}: {error}");
    }
    let mut fewer = listed("single_word", false);
    drop(fewer["added_tokens_decoder"].as_object_mut().unwrap().remove("3"));
    let error = with_options(fewer).unwrap_err();
    assert!(error.contains("\"[SEP]\" isn't in the added_tokens_decoder"), "{error}");
    for other in ["unk_token", "cls_token", "sep_token"] {
        let error = with_options(serde_json::json!({ other: "[PAD]" })).unwrap_err();
        assert!(error.contains(&format!("the {other} is \"[PAD]\"")), "{error}");
    }
    let splits = serde_json::json!({"split_special_tokens": true});
    assert!(with_options(splits.clone()).unwrap_err().contains("split_special_tokens"));

    // It would give a token that is missing the next id, where there is an embedding for that.
    let larger = Network { vocabulary: 7, ..network(Family::Bert) };
    let larger = Checkpoint::write(&larger, str::to_owned);
    let error = larger.import_with("config.json", |c| c["vocab_size"] = 7.into());
    let error = error.map(drop).unwrap_err();
    assert!(error.contains("\"[MASK]\" isn't in the vocabulary"), "{error}");

    // A class of no model's own is what the file says.
    with_options(serde_json::json!({"tokenizer_class": "PreTrainedTokenizerFast"})).unwrap();
    checkpoint.import_with("tokenizer.json", clean_text).map(drop).unwrap();

    std::fs::remove_file(checkpoint.path("tokenizer.json")).unwrap();
    std::fs::write(checkpoint.path("vocab.txt"), VOCAB).unwrap();
    with_options(listed("normalized", false)).unwrap();
    assert!(with_options(listed("normalized", true)).unwrap_err().contains("\"[PAD]\""));
    assert!(with_options(splits).unwrap_err().contains("split_special_tokens"));
    with_options(serde_json::json!({})).unwrap();
    let trailing = VOCAB.replace("hello", "hello\u{a0}");
    std::fs::write(checkpoint.path("vocab.txt"), trailing).unwrap();
    assert!(checkpoint.import(None).unwrap_err().contains("line 5: the token \"hello\\u{a0}\""));
}

#[test]
fn a_link_into_a_cache_is_the_file_that_it_is_called() {
    let plain = Checkpoint::write(&network(Family::Bert), str::to_owned);
    let id = plain.import(None).unwrap().manifest.model_id;
    let linked = Checkpoint::write(&network(Family::Bert), str::to_owned);
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::rename(linked.path(name), linked.path(&format!("blob-of-{name}"))).unwrap();
        symlink(linked.path(&format!("blob-of-{name}")), linked.path(name)).unwrap();
    }
    assert_eq!(linked.import(None).unwrap().manifest.model_id, id);

    std::fs::remove_file(linked.path("config.json")).unwrap();
    symlink("/dev/zero", linked.path("config.json")).unwrap();
    let error = linked.import(None).unwrap_err();
    assert!(error.contains("config.json"), "{error}");
}
