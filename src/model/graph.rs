//! Emits the ONNX graph of an encoder that does no work on padding.
//!
//! All captions of a batch are one `[tokens, hidden]` matrix. Matrix products, layer norms and the
//! feed-forward step see that matrix and nothing else. Attention alone must keep captions apart:
//! for it the tokens are gathered into `rows` of `width` slots, several captions to a row where
//! they fit, under a mask that lets a slot see its own caption only, and then gathered back. Mean
//! pooling and the projection are inside the graph.
//!
//! The form is the one that measured fastest on ONNX Runtime's CPU kernels: `Gemm` with bias, `Add`
//! and `LayerNormalization`, opset-20 `Gelu` (erf), and attention of products and a softmax. What
//! the inputs mean is in [`INPUTS`]; [`crate::batch::packing`] makes them. It and what is below
//! here alone know the form.
//!
//! The precision changes no step, but of which nodes a step is made: `builder` and `attention` know
//! that.

mod attention;
mod builder;

use super::manifest::Precision;
use super::network::{Network, Weight, WeightSource};
use super::onnx::{
    DataLocation, DataType, Dimension, GraphProto, IR_VERSION, ModelProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, raw_tensor, value,
};
use attention::Attention;
use builder::{Builder, CONTRIBUTED};

/// The operator set that the graph is written in: the first with `Attention`.
pub const OPSET: i64 = 23;

/// The name of the form, for the manifest: a worker refuses a package of a form it can't feed.
pub const FORM: &str = "rows-v2";

/// An input of the graph.
pub struct GraphInput {
    /// Its name.
    pub name: &'static str,
    /// Its element type.
    pub dtype: DataType,
    /// The names of its sizes.
    pub shape: &'static [&'static str],
}

/// The inputs of the graph, in order.
pub const INPUTS: [GraphInput; 8] = [
    // The tokens of all captions, one caption after the other.
    GraphInput { name: "token_ids", dtype: DataType::Int64, shape: &["tokens"] },
    // The place of each token in its caption, from 0.
    GraphInput { name: "token_positions", dtype: DataType::Int64, shape: &["tokens"] },
    // The slot of each token: row * width + place in the row.
    GraphInput { name: "token_slots", dtype: DataType::Int64, shape: &["tokens"] },
    // The token in each slot; 0 in a free slot.
    GraphInput { name: "slot_tokens", dtype: DataType::Int64, shape: &["rows", "width"] },
    // 1 + the caption in each slot; 0 in a free slot.
    GraphInput { name: "slot_captions", dtype: DataType::Int32, shape: &["rows", "width"] },
    // 1 + each caption of a row; -1 at a free place.
    GraphInput { name: "row_captions", dtype: DataType::Int32, shape: &["rows", "places"] },
    // The place of each caption: row * places + place in the row.
    GraphInput { name: "caption_places", dtype: DataType::Int64, shape: &["captions"] },
    // The number of tokens of each caption.
    GraphInput { name: "caption_lengths", dtype: DataType::Float, shape: &["captions"] },
];

/// The name of the graph's one output, float32 `[captions, dim]`.
pub const OUTPUT: &str = "embedding";

/// Returns the name of the scales of a quantized matrix.
pub fn scales_of(weight: &str) -> String {
    format!("{weight}.scales")
}

/// Returns the type that a weight which isn't quantized is stored in.
pub fn weight_type(precision: Precision, weight: &Weight) -> DataType {
    let is_of_head = matches!(weight.source, WeightSource::HeadWeight | WeightSource::HeadBias);
    match precision {
        Precision::Fp16 if !is_of_head => DataType::Float16,
        Precision::Fp16 | Precision::Fp32 | Precision::Int8 => DataType::Float,
    }
}

/// Where the numbers of a weight lie in the data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The name of the weight.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The type of its numbers.
    pub dtype: DataType,
    /// Bytes from the beginning of the file.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// Returns the model whose weights lie in the file `data_file` as `weights` says.
pub fn emit(
    network: &Network,
    precision: Precision,
    weights: &[External],
    data_file: &str,
) -> ModelProto {
    let mut graph = Builder::new(precision);
    graph.initializers.extend(weights.iter().map(|w| external(w, data_file)));

    let attention = Attention::new(&mut graph, network);
    let mut hidden = embeddings(&mut graph, network);
    for layer in 0..network.layers {
        hidden = transformer_layer(&mut graph, network, layer, &hidden, &attention);
    }
    pool_and_project(&mut graph, network, &hidden);

    ModelProto {
        ir_version: IR_VERSION,
        producer_name: "capvec".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        opset_import: vec![
            OperatorSetIdProto { domain: String::new(), version: OPSET },
            OperatorSetIdProto { domain: CONTRIBUTED.into(), version: 1 },
        ],
        graph: Some(GraphProto {
            node: graph.nodes,
            name: format!("{}-encoder", network.family.as_str()),
            initializer: graph.initializers,
            input: INPUTS
                .iter()
                .map(|i| value(i.name, i.dtype, i.shape.iter().copied().map(free)))
                .collect(),
            output: vec![value(
                OUTPUT,
                DataType::Float,
                [free("captions"), Dimension::Value(network.dim as i64)],
            )],
        }),
    }
}

fn embeddings(graph: &mut Builder, network: &Network) -> String {
    let words = graph.node("Gather", "embeddings.word", &["embeddings.words", "token_ids"]);
    let places =
        graph.node("Gather", "embeddings.position", &["embeddings.positions", "token_positions"]);
    graph.sum_and_norm("embeddings.norm", [&words, &places], None, network.layer_norm_epsilon)
}

fn transformer_layer(
    graph: &mut Builder,
    network: &Network,
    layer: usize,
    input: &str,
    attention: &Attention,
) -> String {
    let name = |part: &str| format!("layers.{layer}.{part}");

    let qkv = graph.linear(&name("qkv"), input);
    let tokens = attention.layer(graph, layer, &qkv);
    let epsilon = network.layer_norm_epsilon;
    let middle = graph.linear_beside(&name("out"), &tokens, input, &name("norm1"), epsilon);
    let inner = graph.linear_gelu(&name("up"), &middle, &name("gelu"));
    graph.linear_beside(&name("down"), &inner, &middle, &name("norm2"), epsilon)
}

/// Sums each caption's tokens, divides by their number, and projects. `[CLS]` and `[SEP]` count, as
/// in the published forward pass.
///
/// The sums are products of the rows of slots with `[places, width]` matrices of ones and zeros, a
/// row at a time: one product of all captions with all tokens would grow with the batch's square,
/// and at the sizes that suit a GPU it would be felt.
fn pool_and_project(graph: &mut Builder, network: &Network, hidden: &str) {
    let second = graph.int64("axis.1", &[1]);
    let last = graph.int64("axis.2", &[2]);
    let rows = graph.node("Gather", "pool.rows", &[hidden, "slot_tokens"]);
    let rows = match graph.precision {
        Precision::Fp16 => graph.cast_to_float("pool.rows.float", &rows),
        Precision::Fp32 | Precision::Int8 => rows,
    };
    let places = graph.node("Unsqueeze", "pool.places", &["row_captions", &last]);
    let slots = graph.node("Unsqueeze", "pool.slots", &["slot_captions", &second]);
    let member = graph.node("Equal", "pool.member", &[&places, &slots]);
    let ones = graph.cast_to_float("pool.ones", &member);
    let sums = graph.node("MatMul", "pool.sums", &[&ones, &rows]);
    let flat = graph.flat(network.hidden);
    let sums = graph.node("Reshape", "pool.flat", &[&sums, &flat]);
    let sums = graph.node("Gather", "pool.captions", &[&sums, "caption_places"]);
    let lengths = graph.node("Unsqueeze", "pool.lengths", &["caption_lengths", &second]);
    let means = graph.node("Div", "pool.means", &[&sums, &lengths]);
    graph.node("Gemm", OUTPUT, &[&means, "head.weight", "head.bias"]);
}

/// A weight, whose numbers lie in the data file.
fn external(weight: &External, data_file: &str) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
    TensorProto {
        external_data: vec![
            entry("location", data_file.into()),
            entry("offset", weight.offset.to_string()),
            entry("length", weight.length.to_string()),
        ],
        data_location: DataLocation::External as i32,
        ..raw_tensor(&weight.name, &weight.shape, weight.dtype, Vec::new())
    }
}

/// A size that is another one in every batch.
fn free(name: &str) -> Dimension {
    Dimension::Param(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synth::Preset;
    use std::collections::HashSet;

    #[test]
    fn every_value_is_made_before_it_is_read_and_every_weight_is_read() {
        let network = Preset::Tiny.network();
        for precision in [Precision::Fp32, Precision::Fp16, Precision::Int8] {
            let place = |name: String, shape: Vec<usize>| External {
                name,
                shape,
                dtype: DataType::Float,
                offset: 0,
                length: 0,
            };
            let mut weights = Vec::new();
            for weight in network.weights() {
                if precision == Precision::Int8 && weight.is_layer_matrix() {
                    weights.push(place(scales_of(&weight.name), vec![weight.shape[0]]));
                }
                weights.push(place(weight.name, weight.shape));
            }
            let graph = emit(&network, precision, &weights, "model.onnx.data").graph.unwrap();

            let mut made: HashSet<_> = graph.initializer.iter().map(|t| t.name.clone()).collect();
            assert_eq!(made.len(), graph.initializer.len(), "a constant is there once");
            made.extend(graph.input.iter().map(|i| i.name.clone()));
            let mut read = HashSet::new();
            for node in &graph.node {
                for input in &node.input {
                    assert!(made.contains(input), "{} reads {input} before it is made", node.name);
                    read.insert(input.clone());
                }
                for output in &node.output {
                    assert!(made.insert(output.clone()), "{output} is made twice");
                }
            }
            for weight in &weights {
                assert!(read.contains(&weight.name), "{} is never read", weight.name);
            }
            assert!(made.contains(OUTPUT));
        }
    }
}
