//! Model packages: what the worker runs, and how they are made from what others publish.

pub mod checkpoint;
pub mod compare;
pub mod graph;
pub mod import;
pub mod manifest;
pub mod network;
pub mod onnx;
pub mod package;
pub mod quantize;
pub mod synth;
pub mod tokenizer_json;
