//! Attention among the tokens of a caption.
//!
//! The tokens of each part (queries, keys, values) are gathered into rows of slots, several
//! captions to a row, under a mask that lets a slot see its own caption only; what comes out is
//! gathered back. There are two forms.
//!
//! For CPUs (fp32, int8) a gather takes each head's numbers to where the products read them, and
//! another from where they wrote them; the products and the softmax are nodes of their own. ONNX
//! Runtime's `Attention` splits, copies and transposes before and after: the whole step took it 1.2
//! to 1.4 times as long.
//!
//! For GPUs (fp16) `Attention` is left whole, for kernels that keep the products' output out of the
//! device's memory. A gather for each part writes what it reads; to gather all and split them after
//! would move the numbers twice.

use super::builder::Builder;
use crate::model::manifest::Precision;
use crate::model::network::Network;
use crate::model::onnx::{DataType, float_attribute, int_attribute};

/// A query, a key and a value of each token lie side by side, in this order.
const PARTS: [&str; 3] = ["query", "key", "value"];

/// What all layers' attention reads.
pub struct Attention {
    heads: usize,
    hidden: usize,
    /// Which slots see which.
    mask: String,
    /// For each part, which of `[tokens * parts * heads, size]` is where in `[rows, heads, width]`;
    /// at fp16 which of `[tokens * parts, hidden]` is where in `[rows, width]`.
    indices: [String; 3],
    /// Where attention's output of each token is: which of `[rows, heads, width]`, as
    /// `[tokens, heads]`; at fp16 which of `[rows, width]`, as `[tokens]`.
    back: String,
}

impl Attention {
    /// Adds the nodes that all layers share.
    pub fn new(graph: &mut Builder, network: &Network) -> Attention {
        let (heads, hidden) = (network.heads, network.hidden);
        let same = same_caption(graph);
        let (mask, indices, back) = match graph.precision {
            Precision::Fp16 => (same, parts_of_slots(graph), "token_slots".into()),
            Precision::Fp32 | Precision::Int8 => {
                let seen = graph.float_scalar("scalar.float.0", 0.0);
                // Whatever is added to it, nothing is left of it after a softmax.
                let unseen = graph.float_scalar("scalar.float.lowest", f32::MIN);
                let mask = graph.node("Where", "mask.numbers", &[&same, &seen, &unseen]);
                (mask, heads_of_slots(graph, heads), heads_of_tokens(graph, heads))
            }
        };
        Attention { heads, hidden, mask, indices, back }
    }

    /// `[tokens, 3 * hidden]` to `[tokens, hidden]`.
    pub fn layer(&self, graph: &mut Builder, layer: usize, qkv: &str) -> String {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let flat = graph.flat(self.hidden);
        match graph.precision {
            Precision::Fp16 => {
                let attended = self.of_rows(graph, &name, qkv);
                let slots = graph.node("Reshape", &name("slots"), &[&attended, &flat]);
                graph.node("Gather", &name("tokens"), &[&slots, &self.back])
            }
            Precision::Fp32 | Precision::Int8 => {
                let attended = self.of_heads(graph, &name, qkv);
                let of_head = self.of_head(graph);
                let slots = graph.node("Reshape", &name("slots"), &[&attended, &of_head]);
                let heads = graph.node("Gather", &name("heads"), &[&slots, &self.back]);
                graph.node("Reshape", &name("tokens"), &[&heads, &flat])
            }
        }
    }

    /// The shape `[any, size]`.
    fn of_head(&self, graph: &mut Builder) -> String {
        graph.int64("shape.heads", &[-1, (self.hidden / self.heads) as i64])
    }

    /// `[rows, heads, width, size]`, of products and a softmax.
    fn of_heads(&self, graph: &mut Builder, name: &impl Fn(&str) -> String, qkv: &str) -> String {
        let of_head = self.of_head(graph);
        let [query, key, value] = self.parts(graph, name, qkv, &of_head);
        let scale = 1.0 / ((self.hidden / self.heads) as f32).sqrt();
        let attributes = vec![int_attribute("transB", 1), float_attribute("alpha", scale)];
        let scores = graph.contributed("FusedMatMul", &name("scores"), &[&query, &key], attributes);
        let seen = graph.node("Add", &name("seen"), &[&scores, &self.mask]);
        let last = vec![int_attribute("axis", -1)];
        let weights = graph.node_with("Softmax", &name("weights"), &[&seen], last);
        graph.node("MatMul", &name("attention"), &[&weights, &value])
    }

    /// `[rows, width, hidden]`, of one operator.
    fn of_rows(&self, graph: &mut Builder, name: &impl Fn(&str) -> String, qkv: &str) -> String {
        let flat = graph.flat(self.hidden);
        let [query, key, value] = self.parts(graph, name, qkv, &flat);
        let heads = self.heads as i64;
        let attributes = vec![
            int_attribute("q_num_heads", heads),
            int_attribute("kv_num_heads", heads),
            int_attribute("softmax_precision", DataType::Float as i64),
        ];
        let inputs = [query.as_str(), &key, &value, &self.mask];
        graph.node_with("Attention", &name("attention"), &inputs, attributes)
    }

    /// The queries, keys and values, of pieces of that shape, where the slots have them.
    fn parts(
        &self,
        graph: &mut Builder,
        name: &impl Fn(&str) -> String,
        qkv: &str,
        shape: &str,
    ) -> [String; 3] {
        let pieces = graph.node("Reshape", &name("pieces"), &[qkv, shape]);
        [0, 1, 2]
            .map(|part| graph.node("Gather", &name(PARTS[part]), &[&pieces, &self.indices[part]]))
    }
}

/// `[rows, width]` for each part: its number among those of all tokens.
fn parts_of_slots(graph: &mut Builder) -> [String; 3] {
    let a_token = graph.int64("parts.a_token", &[PARTS.len() as i64]);
    let first = graph.node("Mul", "parts.first", &["slot_tokens", &a_token]);
    [0, 1, 2].map(|part| {
        let name = format!("parts.{}", PARTS[part]);
        let number = graph.int64(&format!("{name}.number"), &[part as i64]);
        graph.node("Add", &name, &[&first, &number])
    })
}

/// `[rows, heads, width]` for each part: the head's number among those of all tokens.
fn heads_of_slots(graph: &mut Builder, heads: usize) -> [String; 3] {
    let middle = graph.int64("axis.1", &[1]);
    let tokens = graph.node("Unsqueeze", "heads.tokens", &["slot_tokens", &middle]);
    let a_token = graph.int64("heads.a_token", &[(PARTS.len() * heads) as i64]);
    let first = graph.node("Mul", "heads.first", &[&tokens, &a_token]);
    [0, 1, 2].map(|part| {
        let numbers: Vec<i64> = (part * heads..(part + 1) * heads).map(|h| h as i64).collect();
        let name = format!("heads.{}", PARTS[part]);
        let numbers = graph.int64_column(&format!("{name}.numbers"), &numbers);
        graph.node("Add", &name, &[&first, &numbers])
    })
}

/// `[tokens, heads]`: the number among all heads' slots, `[rows, heads, width]`.
fn heads_of_tokens(graph: &mut Builder, heads: usize) -> String {
    let middle = graph.int64("axis.1", &[1]);
    let second = vec![int_attribute("start", 1), int_attribute("end", 2)];
    let width = graph.node_with("Shape", "back.width", &["slot_tokens"], second);
    let row = graph.node("Div", "back.row", &["token_slots", &width]);
    let row_slots = graph.node("Mul", "back.row_slots", &[&row, &width]);
    // A token's slot counts the slots of the rows before once, and there are as many for each head.
    let other_heads = graph.int64("back.other_heads", &[heads as i64 - 1]);
    let more = graph.node("Mul", "back.more", &[&row_slots, &other_heads]);
    let first = graph.node("Add", "back.first", &["token_slots", &more]);
    let first = graph.node("Unsqueeze", "back.tokens", &[&first, &middle]);
    let numbers: Vec<i64> = (0..heads as i64).collect();
    let numbers = graph.int64("back.heads", &numbers);
    let before = graph.node("Mul", "back.before", &[&numbers, &width]);
    graph.node("Add", "back", &[&first, &before])
}

/// `[rows, 1, width, width]`, true where two slots hold tokens of one caption. Free slots see each
/// other: a slot that saw nothing would make the softmax divide by zero.
fn same_caption(graph: &mut Builder) -> String {
    let last = graph.int64("axis.2", &[2]);
    let middle = graph.int64("axis.1", &[1]);
    let queries = graph.node("Unsqueeze", "mask.queries", &["slot_captions", &last]);
    let keys = graph.node("Unsqueeze", "mask.keys", &["slot_captions", &middle]);
    let same = graph.node("Equal", "mask.same", &[&queries, &keys]);
    graph.node("Unsqueeze", "mask", &[&same, &middle])
}
