//! The nodes that a step of the forward pass is made of, by precision.
//!
//! In an int8 graph the products of the linear steps are of integers. Each token's numbers are
//! scaled so that the largest becomes 127, which depends on that token alone: a caption's vector is
//! the same in every company. The stock dynamic quantization scales the whole batch by its largest
//! number. The token's side is unsigned with 128 for 0, for which the CPU's instructions (VNNI)
//! are; signed numbers on both sides took 5 to 9 times as long.
//!
//! In an fp16 graph, which is for GPUs, a step's bias goes into the operator behind it where ONNX
//! Runtime has one that takes it: `BiasGelu`, and `SkipLayerNormalization` for the sum and the
//! layer norm. A GPU is bounded by its memory there, and `Gemm` with a bias writes its output
//! twice. Numbers are stored in 16 bits; products, layer norms and the softmax are summed in 32,
//! and from pooling on the numbers are stored in 32 too. Every operator has a kernel for the CPU or
//! is computed there in 32 bits, so that the graph can be tried without a GPU.

use super::scales_of;
use crate::model::manifest::Precision;
use crate::model::onnx::{
    AttributeProto, DataType, NodeProto, TensorProto, float_attribute, int_attribute, node,
    raw_tensor,
};

/// The set of ONNX Runtime's own operators.
pub const CONTRIBUTED: &str = "com.microsoft";

/// What 0 is among the unsigned integers that a token's numbers become.
const ZERO_POINT: u8 = 128;

/// How far GELU goes below 0 at most (0.16997, at -0.75), rounded up. Where a token's highest
/// number is above that, as it is in trained networks among some thousands, the lowest needn't be
/// looked for.
const GELU_BELOW: f32 = 0.17;

/// What stands for the largest number of a token whose numbers are all 0. A 127th of it is no
/// denormal number, which would become 0.
const LEAST: f32 = 1e-30;

/// A graph that is being made.
pub struct Builder {
    /// Each after those whose outputs it reads.
    pub nodes: Vec<NodeProto>,
    /// The weights and the small constants.
    pub initializers: Vec<TensorProto>,
    /// What the steps are made for.
    pub precision: Precision,
}

impl Builder {
    /// Returns a graph without nodes and weights.
    pub fn new(precision: Precision) -> Builder {
        Builder { nodes: Vec::new(), initializers: Vec::new(), precision }
    }

    /// Adds a node whose one output has the node's own name, and returns that name.
    pub fn node(&mut self, op_type: &str, name: &str, inputs: &[&str]) -> String {
        self.node_with(op_type, name, inputs, Vec::new())
    }

    /// As [`Self::node`], with attributes.
    pub fn node_with(
        &mut self,
        op_type: &str,
        name: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> String {
        self.nodes.push(node(op_type, name, inputs, attribute));
        name.into()
    }

    /// A node of ONNX Runtime's own operators.
    pub fn contributed(
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

    /// The same numbers as 32-bit floats.
    pub fn cast_to_float(&mut self, name: &str, input: &str) -> String {
        let attributes = vec![int_attribute("to", DataType::Float as i64)];
        self.node_with("Cast", name, &[input], attributes)
    }

    /// `[tokens, in]` to `[tokens, out]`.
    pub fn linear(&mut self, name: &str, input: &str) -> String {
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
    pub fn linear_gelu(&mut self, name: &str, input: &str, gelu: &str) -> String {
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
    pub fn linear_beside(
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
    pub fn sum_and_norm(
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

    /// The product of 8-bit integers, in float again: each token's numbers times 127 over the
    /// token's largest, rounded, times the matrix, times the token's scale and each output's.
    fn integer_product(&mut self, name: &str, input: &str, weight: &str) -> String {
        let part = |part: &str| format!("{name}.{part}");
        let last = self.int64("axis.1", &[1]);
        let range = self.float_scalar("scalar.1/127", 1.0 / 127.0);
        let one = self.float_scalar("scalar.float.1", 1.0);
        let zero_point = self.zero_point();
        let zero_points = self.zero_points();

        let largest = self.largest(name, input, &last);
        let scale = self.node("Mul", &part("scale"), &[&largest, &range]);
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

    /// The largest of each token's numbers without their signs, `[tokens]`, and more than 0 also
    /// where all of them are 0: there will be divided by it.
    fn largest(&mut self, name: &str, input: &str, last: &str) -> String {
        let reduce = |graph: &mut Builder, reduce: &str| {
            let drop = vec![int_attribute("keepdims", 0)];
            graph.node_with(reduce, &format!("{name}.{reduce}"), &[input, last], drop)
        };
        let highest = reduce(self, "ReduceMax");
        let output = format!("{name}.largest");
        if self.nodes.iter().any(|node| node.op_type == "Gelu" && node.name == input) {
            let least = self.float_scalar("scalar.gelu", GELU_BELOW);
            return self.node("Max", &output, &[&highest, &least]);
        }
        // Two reductions are faster than one of absolute values, which have to be written first.
        let lowest = reduce(self, "ReduceMin");
        let below = self.node("Neg", &format!("{name}.below"), &[&lowest]);
        let least = self.float_scalar("scalar.least", LEAST);
        self.node("Max", &output, &[&highest, &below, &least])
    }

    /// `[tokens]`, for the operator wants a zero point with each scale.
    fn zero_points(&mut self) -> String {
        let name = "zero_points";
        if !self.nodes.iter().any(|node| node.name == name) {
            let shape = self.node("Shape", "zero_points.shape", &["token_ids"]);
            let zero_point = self.zero_point();
            self.node("Expand", name, &[&zero_point, &shape]);
        }
        name.into()
    }

    fn layer_norm(&mut self, name: &str, input: &str, epsilon: f32) -> String {
        let (scale, bias) = (format!("{name}.scale"), format!("{name}.bias"));
        let attributes = vec![int_attribute("axis", -1), float_attribute("epsilon", epsilon)];
        self.node_with("LayerNormalization", name, &[input, &scale, &bias], attributes)
    }

    /// Adds a small constant vector once, and returns its name.
    pub fn int64(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, &[values.len()], DataType::Int64, bytes)
    }

    /// The shape `[any, hidden]`.
    pub fn flat(&mut self, hidden: usize) -> String {
        self.int64("shape.flat", &[-1, hidden as i64])
    }

    /// As [`Self::int64`], of the shape `[numbers, 1]`.
    pub fn int64_column(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, &[values.len(), 1], DataType::Int64, bytes)
    }

    /// Adds a constant number once, and returns its name.
    pub fn float_scalar(&mut self, name: &str, value: f32) -> String {
        self.constant(name, &[], DataType::Float, value.to_le_bytes().to_vec())
    }

    fn zero_point(&mut self) -> String {
        self.constant("scalar.zero", &[], DataType::Uint8, vec![ZERO_POINT])
    }

    fn constant(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: DataType,
        raw_data: Vec<u8>,
    ) -> String {
        if !self.initializers.iter().any(|t| t.name == name) {
            self.initializers.push(raw_tensor(name, shape, dtype, raw_data));
        }
        name.into()
    }
}
