//! Emits the ONNX graph of an encoder that does no work on padding.
//!
//! All captions of a batch are one `[tokens, hidden]` matrix. Matrix products, layer norms and the
//! feed-forward step see that matrix and nothing else. Attention alone must keep captions apart: for
//! it the tokens are gathered into `rows` of `width` slots, several captions to a row where they
//! fit, under a mask that lets a slot see its own caption only, and then gathered back. Mean pooling
//! and the projection are inside the graph.
//!
//! The form is the one that measured fastest on ONNX Runtime's CPU kernels: `Gemm` with bias, `Add`
//! and `LayerNormalization`, opset-23 `Attention` with a boolean mask, opset-20 `Gelu` (erf). What
//! the inputs mean is in [`INPUTS`]; [`crate::batch::packing`] makes them. These two files are the
//! only ones that know the form.
//!
//! In an int8 graph the products of the linear steps are of integers. Each token's numbers are scaled
//! so that the largest becomes 127, which depends on that token alone: a caption's vector is the same
//! in every company. The stock dynamic quantization scales the whole batch by its largest number. The
//! token's side is unsigned with 128 for 0, for which the CPU's instructions (VNNI) are; signed
//! numbers on both sides took 5 to 9 times as long.
//!
//! In an fp16 graph, which is for GPUs, a step's bias goes into the operator behind it where ONNX Runtime
//! has one that takes it: `BiasGelu`, and `SkipLayerNormalization` for the sum and the layer norm. A GPU
//! is bounded by its memory there, and `Gemm` with a bias writes its output twice. Numbers are stored in
//! 16 bits; products, layer norms and the softmax are summed in 32, and from pooling on the numbers are
//! stored in 32 too. Every operator has a kernel for the CPU or is computed there in 32 bits, so that
//! the graph can be tried without a GPU.

use super::manifest::Precision;
use super::network::{Network, Weight, WeightSource};
use super::onnx::{
    AttributeProto, AttributeType, DataLocation, DataType, Dimension, DimensionProto, GraphProto,
    IR_VERSION, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// The operator set that the graph is written in: the first with `Attention`.
pub const OPSET: i64 = 23;

/// The name of the form, for the manifest: a worker refuses a package of a form it can't feed.
pub const FORM: &str = "rows-v2";

/// An input of the graph.
pub struct Input {
    /// Its name.
    pub name: &'static str,
    /// Its element type.
    pub dtype: DataType,
    /// The names of its sizes.
    pub shape: &'static [&'static str],
}

/// The inputs of the graph, in order.
pub const INPUTS: [Input; 8] = [
    // The tokens of all captions, one caption after the other.
    Input { name: "token_ids", dtype: DataType::Int64, shape: &["tokens"] },
    // The place of each token in its caption, from 0.
    Input { name: "token_positions", dtype: DataType::Int64, shape: &["tokens"] },
    // The slot of each token: row * width + place in the row.
    Input { name: "token_slots", dtype: DataType::Int64, shape: &["tokens"] },
    // The token in each slot; 0 in a free slot.
    Input { name: "slot_tokens", dtype: DataType::Int64, shape: &["rows", "width"] },
    // 1 + the caption in each slot; 0 in a free slot.
    Input { name: "slot_captions", dtype: DataType::Int32, shape: &["rows", "width"] },
    // 1 + each caption of a row; -1 at a free place.
    Input { name: "row_captions", dtype: DataType::Int32, shape: &["rows", "places"] },
    // The place of each caption: row * places + place in the row.
    Input { name: "caption_places", dtype: DataType::Int64, shape: &["captions"] },
    // The number of tokens of each caption.
    Input { name: "caption_lengths", dtype: DataType::Float, shape: &["captions"] },
];

/// The name of the graph's one output, float32 `[captions, dim]`.
pub const OUTPUT: &str = "embedding";

/// The set of ONNX Runtime's own operators.
const CONTRIBUTED: &str = "com.microsoft";

/// What 0 is among the unsigned integers that a token's numbers become.
const ZERO_POINT: u8 = 128;

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
    let mut graph = Builder { nodes: Vec::new(), initializers: Vec::new(), precision };
    graph.initializers.extend(weights.iter().map(|w| external(w, data_file)));

    let mask = attention_mask(&mut graph);
    let mut hidden = embeddings(&mut graph, network);
    for layer in 0..network.layers {
        hidden = transformer_layer(&mut graph, network, layer, &hidden, &mask);
    }
    pool_and_project(&mut graph, network, &hidden);

    ModelProto {
        ir_version: IR_VERSION,
        producer_name: "capvec".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        opset_import: operator_sets(precision),
        graph: Some(GraphProto {
            node: graph.nodes,
            name: format!("{}-encoder", network.family.as_str()),
            initializer: graph.initializers,
            input: INPUTS.iter().map(|i| value(i.name, i.dtype, i.shape, None)).collect(),
            output: vec![value(OUTPUT, DataType::Float, &["captions"], Some(network.dim))],
        }),
    }
}

fn operator_sets(precision: Precision) -> Vec<OperatorSetIdProto> {
    let onnx = OperatorSetIdProto { domain: String::new(), version: OPSET };
    match precision {
        Precision::Fp32 => vec![onnx],
        Precision::Fp16 | Precision::Int8 => {
            vec![onnx, OperatorSetIdProto { domain: CONTRIBUTED.into(), version: 1 }]
        }
    }
}

/// `[rows, 1, width, width]`, true where two slots hold tokens of one caption. Free slots see each
/// other: a slot that saw nothing would make the softmax divide by zero.
fn attention_mask(graph: &mut Builder) -> String {
    let last = graph.int64("axis.2", &[2]);
    let middle = graph.int64("axis.1", &[1]);
    let queries = graph.node("Unsqueeze", "mask.queries", &["slot_captions", &last]);
    let keys = graph.node("Unsqueeze", "mask.keys", &["slot_captions", &middle]);
    let same = graph.node("Equal", "mask.same", &[&queries, &keys]);
    graph.node("Unsqueeze", "mask", &[&same, &middle])
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
    mask: &str,
) -> String {
    let name = |part: &str| format!("layers.{layer}.{part}");

    let qkv = graph.linear(&name("qkv"), input);
    let rows = graph.node("Gather", &name("rows"), &[&qkv, "slot_tokens"]);
    let [query, key, value] = graph.split3(&name("split"), &rows);
    let attended = graph.attention(&name("attention"), [&query, &key, &value, mask], network.heads);
    let flat = graph.flat(network);
    let slots = graph.node("Reshape", &name("slots"), &[&attended, &flat]);
    let tokens = graph.node("Gather", &name("tokens"), &[&slots, "token_slots"]);
    let epsilon = network.layer_norm_epsilon;
    let middle = graph.linear_beside(&name("out"), &tokens, input, &name("norm1"), epsilon);
    let inner = graph.linear_gelu(&name("up"), &middle, &name("gelu"));
    graph.linear_beside(&name("down"), &inner, &middle, &name("norm2"), epsilon)
}

/// Sums each caption's tokens, divides by their number, and projects. `[CLS]` and `[SEP]` count, as in
/// the published forward pass.
///
/// The sums are products of the rows of slots with `[places, width]` matrices of ones and zeros, a row
/// at a time: one product of all captions with all tokens would grow with the batch's square, and at
/// the sizes that suit a GPU it would be felt.
fn pool_and_project(graph: &mut Builder, network: &Network, hidden: &str) {
    let second = graph.int64("axis.1", &[1]);
    let last = graph.int64("axis.2", &[2]);
    let rows = graph.node("Gather", "pool.rows", &[hidden, "slot_tokens"]);
    let rows = match graph.precision {
        Precision::Fp16 => graph.cast("pool.rows.float", &rows, DataType::Float),
        Precision::Fp32 | Precision::Int8 => rows,
    };
    let places = graph.node("Unsqueeze", "pool.places", &["row_captions", &last]);
    let slots = graph.node("Unsqueeze", "pool.slots", &["slot_captions", &second]);
    let member = graph.node("Equal", "pool.member", &[&places, &slots]);
    let ones = graph.cast("pool.ones", &member, DataType::Float);
    let sums = graph.node("MatMul", "pool.sums", &[&ones, &rows]);
    let flat = graph.flat(network);
    let sums = graph.node("Reshape", "pool.flat", &[&sums, &flat]);
    let sums = graph.node("Gather", "pool.captions", &[&sums, "caption_places"]);
    let lengths = graph.node("Unsqueeze", "pool.lengths", &["caption_lengths", &second]);
    let means = graph.node("Div", "pool.means", &[&sums, &lengths]);
    graph.node("Gemm", OUTPUT, &[&means, "head.weight", "head.bias"]);
}

struct Builder {
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    precision: Precision,
}

impl Builder {
    /// Adds a node whose one output has the node's own name, and returns that name.
    fn node(&mut self, op_type: &str, name: &str, inputs: &[&str]) -> String {
        self.node_with(op_type, name, inputs, Vec::new())
    }

    fn node_with(
        &mut self,
        op_type: &str,
        name: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> String {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|s| s.to_string()).collect(),
            output: vec![name.into()],
            name: name.into(),
            op_type: op_type.into(),
            attribute,
            domain: String::new(),
        });
        name.into()
    }

    /// A node of ONNX Runtime's own operators.
    fn contributed(
        &mut self,
        op_type: &str,
        name: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> String {
        let output = self.node_with(op_type, name, inputs, attribute);
        self.nodes.last_mut().expect("it has just been added").domain = CONTRIBUTED.into();
        output
    }

    fn cast(&mut self, name: &str, input: &str, to: DataType) -> String {
        self.node_with("Cast", name, &[input], vec![int_attribute("to", to as i64)])
    }

    /// `[tokens, in]` to `[tokens, out]`.
    fn linear(&mut self, name: &str, input: &str) -> String {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        match self.precision {
            Precision::Fp32 | Precision::Fp16 => {
                let attributes = vec![int_attribute("transB", 1)];
                self.node_with("Gemm", name, &[input, &weight, &bias], attributes)
            }
            Precision::Int8 => {
                let product = self.integer_product(&format!("{name}.int8"), input, &weight);
                self.node("Add", name, &[&product, &bias])
            }
        }
    }

    /// A linear step without its bias, and the bias.
    fn product(&mut self, name: &str, input: &str) -> (String, String) {
        let weight = format!("{name}.weight");
        let attributes = vec![int_attribute("transB", 1)];
        (self.node_with("Gemm", name, &[input, &weight], attributes), format!("{name}.bias"))
    }

    /// A linear step, and GELU.
    fn linear_gelu(&mut self, name: &str, input: &str, gelu: &str) -> String {
        match self.precision {
            Precision::Fp32 | Precision::Int8 => {
                let output = self.linear(name, input);
                self.node("Gelu", gelu, &[&output])
            }
            Precision::Fp16 => {
                let (product, bias) = self.product(name, input);
                self.contributed("BiasGelu", gelu, &[&product, &bias], Vec::new())
            }
        }
    }

    /// A linear step, its sum with `beside`, and a layer norm of that.
    fn linear_beside(
        &mut self,
        name: &str,
        input: &str,
        beside: &str,
        norm: &str,
        epsilon: f32,
    ) -> String {
        match self.precision {
            Precision::Fp32 | Precision::Int8 => {
                let output = self.linear(name, input);
                self.sum_and_norm(norm, [beside, &output], None, epsilon)
            }
            Precision::Fp16 => {
                let (product, bias) = self.product(name, input);
                self.sum_and_norm(norm, [&product, beside], Some(&bias), epsilon)
            }
        }
    }

    /// The layer norm of a sum, with a bias in it at fp16 only.
    fn sum_and_norm(
        &mut self,
        name: &str,
        of: [&str; 2],
        bias: Option<&str>,
        epsilon: f32,
    ) -> String {
        if self.precision != Precision::Fp16 {
            debug_assert!(bias.is_none(), "the bias is in the sum already");
            let sum = self.node("Add", &format!("{name}.sum"), &of);
            return self.layer_norm(name, &sum, epsilon);
        }
        let (scale, shift) = (format!("{name}.scale"), format!("{name}.bias"));
        let inputs: Vec<&str> =
            of.into_iter().chain([scale.as_str(), shift.as_str()]).chain(bias).collect();
        let attributes = vec![float_attribute("epsilon", epsilon)];
        self.contributed("SkipLayerNormalization", name, &inputs, attributes)
    }

    /// The product of 8-bit integers, in float again: each token's numbers times 127 over the token's
    /// largest, rounded, times the matrix, times the token's scale and each output's.
    fn integer_product(&mut self, name: &str, input: &str, weight: &str) -> String {
        let part = |part: &str| format!("{name}.{part}");
        let last = self.int64("axis.1", &[1]);
        let range = self.float_scalar("scalar.1/127", 1.0 / 127.0);
        // A token of zeros must not divide by zero.
        let least = self.float_scalar("scalar.least", f32::MIN_POSITIVE);
        let one = self.float_scalar("scalar.float.1", 1.0);
        let zero_point = self.uint8_scalar("scalar.zero", ZERO_POINT);
        let zero_points = self.zero_points();

        let sizes = self.node("Abs", &part("sizes"), &[input]);
        let keep = vec![int_attribute("keepdims", 0)];
        let largest = self.node_with("ReduceMax", &part("largest"), &[&sizes, &last], keep);
        let scale = self.node("Mul", &part("scale"), &[&largest, &range]);
        let scale = self.node("Max", &part("scales"), &[&scale, &least]);
        let rows = vec![int_attribute("axis", 0)];
        let inputs = [input, &scale, &zero_points];
        let integers = self.node_with("QuantizeLinear", &part("tokens"), &inputs, rows);
        let scales = scales_of(weight);
        let inputs: [&str; 5] = [&integers, weight, &one, &scales, &zero_point];
        let product =
            self.contributed("MatMulIntegerToFloat", &part("product"), &inputs, Vec::new());
        let column = self.node("Unsqueeze", &part("column"), &[&scale, &last]);
        self.node("Mul", name, &[&product, &column])
    }

    /// `[tokens]`, for the operator wants a zero point with each scale.
    fn zero_points(&mut self) -> String {
        let name = "zero_points";
        if !self.nodes.iter().any(|node| node.name == name) {
            let shape = self.node("Shape", "zero_points.shape", &["token_ids"]);
            let zero_point = self.uint8_scalar("scalar.zero", ZERO_POINT);
            self.node("Expand", name, &[&zero_point, &shape]);
        }
        name.into()
    }

    fn layer_norm(&mut self, name: &str, input: &str, epsilon: f32) -> String {
        let (scale, bias) = (format!("{name}.scale"), format!("{name}.bias"));
        let attributes = vec![int_attribute("axis", -1), float_attribute("epsilon", epsilon)];
        self.node_with("LayerNormalization", name, &[input, &scale, &bias], attributes)
    }

    fn split3(&mut self, name: &str, input: &str) -> [String; 3] {
        let outputs = ["query", "key", "value"].map(|part| format!("{name}.{part}"));
        self.nodes.push(NodeProto {
            input: vec![input.into()],
            output: outputs.to_vec(),
            name: name.into(),
            op_type: "Split".into(),
            attribute: vec![int_attribute("axis", -1), int_attribute("num_outputs", 3)],
            domain: String::new(),
        });
        outputs
    }

    fn attention(&mut self, name: &str, inputs: [&str; 4], heads: usize) -> String {
        let heads = heads as i64;
        let mut attributes =
            vec![int_attribute("q_num_heads", heads), int_attribute("kv_num_heads", heads)];
        if self.precision == Precision::Fp16 {
            attributes.push(int_attribute("softmax_precision", DataType::Float as i64));
        }
        self.node_with("Attention", name, &inputs, attributes)
    }

    /// Adds a small constant vector once, and returns its name.
    fn int64(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, DataType::Int64, vec![values.len() as i64], bytes)
    }

    /// The shape `[slots, hidden]`.
    fn flat(&mut self, network: &Network) -> String {
        self.int64("shape.flat", &[-1, network.hidden as i64])
    }

    fn float_scalar(&mut self, name: &str, value: f32) -> String {
        self.constant(name, DataType::Float, Vec::new(), value.to_le_bytes().to_vec())
    }

    fn uint8_scalar(&mut self, name: &str, value: u8) -> String {
        self.constant(name, DataType::Uint8, Vec::new(), vec![value])
    }

    fn constant(
        &mut self,
        name: &str,
        dtype: DataType,
        dims: Vec<i64>,
        raw_data: Vec<u8>,
    ) -> String {
        if !self.initializers.iter().any(|t| t.name == name) {
            self.initializers.push(TensorProto {
                dims,
                data_type: dtype as i32,
                name: name.into(),
                raw_data,
                external_data: Vec::new(),
                data_location: DataLocation::Default as i32,
            });
        }
        name.into()
    }
}

fn external(weight: &External, data_file: &str) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
    TensorProto {
        dims: weight.shape.iter().map(|&n| n as i64).collect(),
        data_type: weight.dtype as i32,
        name: weight.name.clone(),
        raw_data: Vec::new(),
        external_data: vec![
            entry("location", data_file.into()),
            entry("offset", weight.offset.to_string()),
            entry("length", weight.length.to_string()),
        ],
        data_location: DataLocation::External as i32,
    }
}

fn value(name: &str, dtype: DataType, free: &[&str], last: Option<usize>) -> ValueInfoProto {
    let free = free.iter().map(|s| Dimension::Param(s.to_string()));
    let fixed = last.map(|n| Dimension::Value(n as i64));
    let dim = free.chain(fixed).map(|d| DimensionProto { value: Some(d) }).collect();
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: dtype as i32,
                shape: Some(TensorShapeProto { dim }),
            }),
        }),
    }
}

fn int_attribute(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), f: 0.0, i, r#type: AttributeType::Int as i32 }
}

fn float_attribute(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f, i: 0, r#type: AttributeType::Float as i32 }
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
