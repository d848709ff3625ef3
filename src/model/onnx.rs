//! The part of the ONNX file format that capvec writes and reads back, as protobuf messages.
//!
//! Source of the format: `onnx.proto3` of the ONNX project, IR version 11. Only the fields that the
//! emitted graph uses are declared; protobuf skips unknown fields, so a fuller file still decodes.

use prost::{Enumeration, Message, Oneof};

/// The IR version that opset 23 came with.
pub const IR_VERSION: i64 = 11;

/// A whole model file.
#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    /// The version of the format itself.
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    /// The program that wrote the file.
    #[prost(string, tag = "2")]
    pub producer_name: String,
    /// That program's version.
    #[prost(string, tag = "3")]
    pub producer_version: String,
    /// The network.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// The operator sets that the nodes come from.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
}

/// A set of operators at a version.
#[derive(Clone, PartialEq, Message)]
pub struct OperatorSetIdProto {
    /// The empty string means ONNX's own operators.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// The version of the set.
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// Nodes in an order in which they can run, with their constants.
#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    /// The operations, each after those whose outputs it reads.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    /// A name for people.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The weights and the small constants.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// What the caller gives.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    /// What the caller gets.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

/// One operation.
#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    /// Names of the values read; an empty name is an absent optional input.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of the values made.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// A name for people and profilers.
    #[prost(string, tag = "3")]
    pub name: String,
    /// The operator.
    #[prost(string, tag = "4")]
    pub op_type: String,
    /// Its fixed parameters.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// The operator set that the operator is of; the empty string means ONNX's own.
    #[prost(string, tag = "7")]
    pub domain: String,
}

/// A fixed parameter of a node.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    /// The parameter's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value, where it is a float.
    #[prost(float, tag = "2")]
    pub f: f32,
    /// Its value, where it is an integer.
    #[prost(int64, tag = "3")]
    pub i: i64,
    /// Which of the values counts.
    #[prost(enumeration = "AttributeType", tag = "20")]
    pub r#type: i32,
}

/// The kinds of attribute that capvec writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum AttributeType {
    /// Not set.
    Undefined = 0,
    /// `f` counts.
    Float = 1,
    /// `i` counts.
    Int = 2,
}

/// A constant tensor: its numbers inline in `raw_data`, or in another file.
#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    /// The shape.
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// The type of its elements.
    #[prost(enumeration = "DataType", tag = "2")]
    pub data_type: i32,
    /// The name that nodes read it by.
    #[prost(string, tag = "8")]
    pub name: String,
    /// The numbers, little-endian, row-major.
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
    /// `location`, `offset` and `length` of numbers kept in another file.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// Where the numbers are.
    #[prost(enumeration = "DataLocation", tag = "14")]
    pub data_location: i32,
}

/// Element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum DataType {
    /// Not set.
    Undefined = 0,
    /// 32-bit float.
    Float = 1,
    /// 8-bit unsigned integer.
    Uint8 = 2,
    /// 8-bit signed integer.
    Int8 = 3,
    /// 32-bit signed integer.
    Int32 = 6,
    /// 64-bit signed integer.
    Int64 = 7,
    /// 16-bit float, IEEE's.
    Float16 = 10,
}

impl DataType {
    /// Returns the bytes of a number.
    ///
    /// # Panics
    ///
    /// For no type.
    pub fn width(self) -> usize {
        match self {
            DataType::Undefined => panic!("a number has a type"),
            DataType::Uint8 | DataType::Int8 => 1,
            DataType::Float16 => 2,
            DataType::Float | DataType::Int32 => 4,
            DataType::Int64 => 8,
        }
    }
}

/// Where a tensor's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum DataLocation {
    /// In this file.
    Default = 0,
    /// In the file that `external_data` names.
    External = 1,
}

/// A pair of strings.
#[derive(Clone, PartialEq, Message)]
pub struct StringStringEntryProto {
    /// The left one.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The right one.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// The name and type of a graph's input or output.
#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    /// The value's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

/// A type; capvec knows tensors only.
#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    /// Element type and shape.
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

/// A tensor's element type and shape.
#[derive(Clone, PartialEq, Message)]
pub struct TensorTypeProto {
    /// The element type.
    #[prost(enumeration = "DataType", tag = "1")]
    pub elem_type: i32,
    /// The shape.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

/// A shape, some of whose sizes may be free.
#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    /// The sizes, outermost first.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

/// A size.
#[derive(Clone, PartialEq, Message)]
pub struct DimensionProto {
    /// Fixed, or free under a name.
    #[prost(oneof = "Dimension", tags = "1, 2")]
    pub value: Option<Dimension>,
}

/// A fixed size, or the name of a free one.
#[derive(Clone, PartialEq, Oneof)]
pub enum Dimension {
    /// Fixed.
    #[prost(int64, tag = "1")]
    Value(i64),
    /// Free; equal names are equal sizes.
    #[prost(string, tag = "2")]
    Param(String),
}

/// Returns a node whose one output has the node's own name.
pub fn node(
    op_type: &str,
    name: &str,
    inputs: &[&str],
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|input| (*input).to_owned()).collect(),
        output: vec![name.into()],
        name: name.into(),
        op_type: op_type.into(),
        attribute,
        domain: String::new(),
    }
}

/// Returns a parameter that is an integer.
pub fn int_attribute(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i, ..attribute(name, AttributeType::Int) }
}

/// Returns a parameter that is a float.
pub fn float_attribute(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f, ..attribute(name, AttributeType::Float) }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: kind as i32, ..AttributeProto::default() }
}

/// Returns a constant of these numbers, little-endian and row-major.
pub fn raw_tensor(name: &str, shape: &[usize], dtype: DataType, raw_data: Vec<u8>) -> TensorProto {
    TensorProto {
        dims: shape.iter().map(|&size| size as i64).collect(),
        data_type: dtype as i32,
        name: name.into(),
        raw_data,
        external_data: Vec::new(),
        data_location: DataLocation::Default as i32,
    }
}

/// Returns an input or an output of a graph.
pub fn value(
    name: &str,
    dtype: DataType,
    shape: impl IntoIterator<Item = Dimension>,
) -> ValueInfoProto {
    let dim = shape.into_iter().map(|size| DimensionProto { value: Some(size) }).collect();
    let shape = Some(TensorShapeProto { dim });
    let tensor_type = Some(TensorTypeProto { elem_type: dtype as i32, shape });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}
