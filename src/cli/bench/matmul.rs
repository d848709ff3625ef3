//! The machine's rate of matrix products: the two products of a feed-forward step of 768 and 3,072,
//! over 1,024 rows, in the same ONNX Runtime with the same settings as the network.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use ort::environment::Environment;
use ort::session::Session;
use ort::value::TensorRef;
use prost::Message;

use crate::embed::onnx::build_session;
use crate::model::graph::OPSET;
use crate::model::onnx::{
    AttributeProto, AttributeType, DataLocation, DataType, Dimension, DimensionProto, GraphProto,
    IR_VERSION, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};

const ROWS: usize = 1024;
const HIDDEN: usize = 768;
const INNER: usize = 3072;

/// A measurement takes at least this long.
const MEASURE: Duration = Duration::from_millis(150);

/// The two products.
pub struct MatrixProducts {
    products: Vec<(Session, Vec<f32>, usize)>,
}

impl MatrixProducts {
    /// Loads both graphs and runs each once.
    ///
    /// # Errors
    ///
    /// When ONNX Runtime refuses them.
    pub fn load(environment: &Environment, threads: usize) -> anyhow::Result<MatrixProducts> {
        let folder = tempfile::tempdir()?;
        let mut products = Vec::new();
        for (inner, outer) in [(HIDDEN, INNER), (INNER, HIDDEN)] {
            let path = folder.path().join(format!("{inner}x{outer}.onnx"));
            std::fs::write(&path, graph(inner, outer).encode_to_vec())?;
            products.push((load(environment, &path, threads)?, numbers(ROWS * inner), inner));
        }
        let mut products = MatrixProducts { products };
        products.run()?;
        Ok(products)
    }

    /// Returns the floating-point operations a second.
    ///
    /// # Errors
    ///
    /// When ONNX Runtime fails.
    pub fn measure(&mut self) -> anyhow::Result<f64> {
        let (started, mut runs) = (Instant::now(), 0);
        while started.elapsed() < MEASURE {
            self.run()?;
            runs += 1;
        }
        let operations = runs * self.products.len() * 2 * ROWS * HIDDEN * INNER;
        Ok(operations as f64 / started.elapsed().as_secs_f64())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        for (session, input, width) in &mut self.products {
            let input = TensorRef::from_array_view(([ROWS, *width], &input[..]))?;
            session.run(ort::inputs![input]).context("the matrix product fails")?;
        }
        Ok(())
    }
}

fn load(environment: &Environment, path: &Path, threads: usize) -> anyhow::Result<Session> {
    build_session(environment, path, threads)
        .context("ONNX Runtime can't load the graph of a matrix product")
}

/// One linear step, as the network's graph has them: `[ROWS, inner]` to `[ROWS, outer]`.
fn graph(inner: usize, outer: usize) -> ModelProto {
    let node = NodeProto {
        input: ["x", "weight", "bias"].map(String::from).to_vec(),
        output: vec!["y".into()],
        name: "product".into(),
        op_type: "Gemm".into(),
        attribute: vec![AttributeProto {
            name: "transB".into(),
            f: 0.0,
            i: 1,
            r#type: AttributeType::Int as i32,
        }],
    };
    ModelProto {
        ir_version: IR_VERSION,
        producer_name: "capvec".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        graph: Some(GraphProto {
            node: vec![node],
            name: "matrix-product".into(),
            initializer: vec![tensor("weight", &[outer, inner]), tensor("bias", &[outer])],
            input: vec![value("x", &[ROWS, inner])],
            output: vec![value("y", &[ROWS, outer])],
        }),
    }
}

/// Numbers of the size of activations: a product of zeros, or of denormal numbers, would have a speed
/// of its own.
fn numbers(number: usize) -> Vec<f32> {
    (0..number).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect()
}

fn tensor(name: &str, shape: &[usize]) -> TensorProto {
    let numbers = numbers(shape.iter().product());
    TensorProto {
        dims: shape.iter().map(|&n| n as i64).collect(),
        data_type: DataType::Float as i32,
        name: name.into(),
        raw_data: numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
        external_data: Vec::new(),
        data_location: DataLocation::Default as i32,
    }
}

fn value(name: &str, shape: &[usize]) -> ValueInfoProto {
    let fixed = |&n: &usize| DimensionProto { value: Some(Dimension::Value(n as i64)) };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: DataType::Float as i32,
                shape: Some(TensorShapeProto { dim: shape.iter().map(fixed).collect() }),
            }),
        }),
    }
}
