//! The shape of an encoder: its family and its sizes, and the list of its weights.
//!
//! [`Network::weights`] is the one place that knows which tensors a network has, in which order
//! they lie in the package's data file, and under which names a Hugging Face checkpoint keeps them.
//! The importer fills the list from a checkpoint, `synth` from a random generator, and
//! [`graph`](super::graph) refers to the same names.

use serde::{Deserialize, Serialize};

/// The families of encoder that can be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// BERT, with token types (segment embeddings), of which captions use the first.
    Bert,
    /// DistilBERT: no token types, other names.
    DistilBert,
}

impl Family {
    /// The name that Hugging Face's `config.json` has for the family in `model_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Family::Bert => "bert",
            Family::DistilBert => "distilbert",
        }
    }
}

/// The sizes of an encoder and of its head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// The family, which decides the tensors' names.
    pub family: Family,
    /// Number of entries of the vocabulary.
    pub vocabulary: usize,
    /// Number of positions, the longest input that the network can take, in tokens.
    pub positions: usize,
    /// Width of the token matrix.
    pub hidden: usize,
    /// Number of transformer layers.
    pub layers: usize,
    /// Number of attention heads; divides `hidden`.
    pub heads: usize,
    /// Width of the feed-forward step.
    pub feed_forward: usize,
    /// The small number that layer normalisation adds to the variance.
    pub layer_norm_epsilon: f32,
    /// Numbers in a vector.
    pub dim: usize,
}

/// What a weight is, which decides how it is filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightSource {
    /// These tensors of the checkpoint, one below the other.
    Stacked(Vec<String>),
    /// The checkpoint's position embeddings, to each of which the row of token type 0 is added: all
    /// tokens of a caption have that type, so the sum is the same for every caption.
    Positions {
        /// Name of the position embeddings.
        positions: String,
        /// Name of the token type embeddings, where the family has them.
        token_types: Option<String>,
    },
    /// The head's matrix, `[hidden, dim]`.
    HeadWeight,
    /// The head's bias, `[dim]`.
    HeadBias,
}

/// What kind of numbers a weight holds; random weights are scaled by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// A table that tokens look rows up in.
    Embedding,
    /// A matrix, with the width of what it is multiplied with.
    Matrix {
        /// Number of products that are summed for each output.
        fan_in: usize,
    },
    /// An added vector.
    Bias,
    /// The multiplying vector of a layer normalisation.
    Scale,
}

/// A weight of the emitted graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The name of the initializer.
    pub name: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// Where its numbers come from.
    pub source: WeightSource,
    /// What it is.
    pub kind: WeightKind,
}

/// Far above any encoder's sizes, and low enough that no product of two of them overflows.
const SIZE_MAX: usize = 1 << 24;

/// Far above any encoder's number of layers.
const LAYERS_MAX: usize = 1 << 10;

impl Weight {
    /// Returns the number of its elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns whether it is the matrix of a linear step in a layer, `[out, in]`: those make nearly
    /// all of a forward pass, and are what a lower precision is for.
    pub fn is_layer_matrix(&self) -> bool {
        matches!(self.kind, WeightKind::Matrix { .. }) && self.source != WeightSource::HeadWeight
    }
}

impl Network {
    /// Checks that there can be an encoder of these sizes, and that no product of two of them
    /// overflows. `named` says what the reader of a message calls a size.
    ///
    /// # Errors
    ///
    /// With the first size that can't be.
    pub fn check(&self, named: fn(&'static str) -> &'static str) -> Result<(), String> {
        let sizes = [
            ("vocabulary", self.vocabulary, SIZE_MAX),
            ("positions", self.positions, SIZE_MAX),
            ("hidden", self.hidden, SIZE_MAX),
            ("layers", self.layers, LAYERS_MAX),
            ("heads", self.heads, SIZE_MAX),
            ("feed_forward", self.feed_forward, SIZE_MAX),
            ("dim", self.dim, SIZE_MAX),
        ];
        for (name, size, most) in sizes {
            if !(1..=most).contains(&size) {
                return Err(format!("{} is {size}, and not 1 to {most}", named(name)));
            }
        }
        let Network { hidden, heads, .. } = self;
        if !hidden.is_multiple_of(*heads) {
            let (of_hidden, of_heads) = (named("hidden"), named("heads"));
            return Err(format!("{of_hidden} {hidden} is no multiple of {of_heads} {heads}"));
        }
        Ok(())
    }

    /// Returns every weight, in the order of the data file.
    pub fn weights(&self) -> Vec<Weight> {
        let names = Names { family: self.family };
        let (hidden, inner) = (self.hidden, self.feed_forward);
        let mut list = List(Vec::new());

        list.push(
            "embeddings.words",
            &[self.vocabulary, hidden],
            WeightKind::Embedding,
            WeightSource::Stacked(vec!["embeddings.word_embeddings.weight".into()]),
        );
        list.push(
            "embeddings.positions",
            &[self.positions, hidden],
            WeightKind::Embedding,
            WeightSource::Positions {
                positions: "embeddings.position_embeddings.weight".into(),
                token_types: match self.family {
                    Family::Bert => Some("embeddings.token_type_embeddings.weight".into()),
                    Family::DistilBert => None,
                },
            },
        );
        list.layer_norm("embeddings.norm", hidden, "embeddings.LayerNorm");

        for layer in 0..self.layers {
            let part = |part: Part| names.layer(layer, part);
            let prefix = format!("layers.{layer}");
            let projections = [part(Part::Query), part(Part::Key), part(Part::Value)];
            list.linear(&format!("{prefix}.qkv"), hidden, 3 * hidden, &projections);
            list.linear(&format!("{prefix}.out"), hidden, hidden, &[part(Part::Out)]);
            list.layer_norm(&format!("{prefix}.norm1"), hidden, &part(Part::AttentionNorm));
            list.linear(&format!("{prefix}.up"), hidden, inner, &[part(Part::Up)]);
            list.linear(&format!("{prefix}.down"), inner, hidden, &[part(Part::Down)]);
            list.layer_norm(&format!("{prefix}.norm2"), hidden, &part(Part::OutputNorm));
        }

        let head = WeightKind::Matrix { fan_in: hidden };
        list.push("head.weight", &[hidden, self.dim], head, WeightSource::HeadWeight);
        list.push("head.bias", &[self.dim], WeightKind::Bias, WeightSource::HeadBias);
        list.0
    }

    /// Returns the number of parameters.
    pub fn parameters(&self) -> usize {
        self.weights().iter().map(Weight::elements).sum()
    }
}

struct List(Vec<Weight>);

impl List {
    fn push(&mut self, name: &str, shape: &[usize], kind: WeightKind, source: WeightSource) {
        self.0.push(Weight { name: name.into(), shape: shape.into(), source, kind });
    }

    /// Adds matrix and bias of a linear step. A checkpoint keeps a matrix as `[out, in]`, so
    /// several that read the same input become one by lying one below the other.
    fn linear(&mut self, name: &str, input: usize, output: usize, modules: &[String]) {
        let stacked = |suffix: &str| {
            WeightSource::Stacked(modules.iter().map(|m| format!("{m}.{suffix}")).collect())
        };
        let kind = WeightKind::Matrix { fan_in: input };
        self.push(&format!("{name}.weight"), &[output, input], kind, stacked("weight"));
        self.push(&format!("{name}.bias"), &[output], WeightKind::Bias, stacked("bias"));
    }

    fn layer_norm(&mut self, name: &str, width: usize, module: &str) {
        let one = |suffix: &str| WeightSource::Stacked(vec![format!("{module}.{suffix}")]);
        self.push(&format!("{name}.scale"), &[width], WeightKind::Scale, one("weight"));
        self.push(&format!("{name}.bias"), &[width], WeightKind::Bias, one("bias"));
    }
}

/// The parts of a layer that have weights.
#[derive(Clone, Copy)]
enum Part {
    Query,
    Key,
    Value,
    Out,
    AttentionNorm,
    Up,
    Down,
    OutputNorm,
}

/// The names that `transformers` gives to a layer's modules.
struct Names {
    family: Family,
}

impl Names {
    fn layer(&self, layer: usize, part: Part) -> String {
        match self.family {
            Family::Bert => {
                let module = match part {
                    Part::Query => "attention.self.query",
                    Part::Key => "attention.self.key",
                    Part::Value => "attention.self.value",
                    Part::Out => "attention.output.dense",
                    Part::AttentionNorm => "attention.output.LayerNorm",
                    Part::Up => "intermediate.dense",
                    Part::Down => "output.dense",
                    Part::OutputNorm => "output.LayerNorm",
                };
                format!("encoder.layer.{layer}.{module}")
            }
            Family::DistilBert => {
                let module = match part {
                    Part::Query => "attention.q_lin",
                    Part::Key => "attention.k_lin",
                    Part::Value => "attention.v_lin",
                    Part::Out => "attention.out_lin",
                    Part::AttentionNorm => "sa_layer_norm",
                    Part::Up => "ffn.lin1",
                    Part::Down => "ffn.lin2",
                    Part::OutputNorm => "output_layer_norm",
                };
                format!("transformer.layer.{layer}.{module}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_encoder_has_are_told_under_the_readers_names() {
        let tiny = crate::model::synth::Preset::Tiny.network();
        assert_eq!(tiny.check(|name| name), Ok(()));
        let told = |network: Network| network.check(|name| &name[..2]).unwrap_err();
        let said = told(Network { heads: 3, ..tiny.clone() });
        assert_eq!(said, "hi 64 is no multiple of he 3");
        assert_eq!(told(Network { heads: 0, ..tiny.clone() }), "he is 0, and not 1 to 16777216");
        assert_eq!(told(Network { layers: 1025, ..tiny }), "la is 1025, and not 1 to 1024");
    }

    #[test]
    fn m_bert_base_69_has_178_million_parameters() {
        let network = crate::model::synth::Preset::MBertBase69.network();
        let head = 768 * 640 + 640;
        // bert-base-multilingual-cased without its pooler and without the second token type, the
        // first one being folded into the positions.
        assert_eq!(network.parameters(), 177_853_440 - 768 * 768 - 768 - 2 * 768 + head);
    }

    #[test]
    fn names_are_unique() {
        let network = crate::model::synth::Preset::Tiny.network();
        let mut names: Vec<_> = network.weights().into_iter().map(|w| w.name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
