//! The device's rate of matrix products, in the same ONNX Runtime with the same settings as the
//! network.
//!
//! On the CPU they are the two products of a feed-forward step of 768 and 3,072, over 1,024 rows. A
//! GPU would mostly copy those numbers to itself and back, so there a large square matrix is
//! multiplied with itself again and again, one number goes in, and one row comes out.

use std::time::{Duration, Instant};

use half::f16;
use ort::session::Session;
use ort::value::TensorRef;
use prost::Message;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::embed::library;
use crate::embed::onnx::{LoadError, Settings, build_session};
use crate::model::graph::OPSET;
use crate::model::manifest::Precision;
use crate::model::onnx::{
    DataType, Dimension, GraphProto, IR_VERSION, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, ValueInfoProto, int_attribute, node, raw_tensor, value,
};

const ROWS: usize = 1024;
const HIDDEN: usize = 768;
const INNER: usize = 3072;

/// The side of a GPU's matrix, and the products in a row.
const SIDE: usize = 4096;
const CHAIN: usize = 16;

/// A measurement takes at least this long.
const MEASURE: Duration = Duration::from_millis(150);

/// The products.
pub struct MatrixProducts {
    products: Vec<Product>,
}

struct Product {
    session: Session,
    input: Vec<f32>,
    shape: Vec<usize>,
    operations: f64,
}

impl MatrixProducts {
    /// Loads the graphs and runs each once. On a GPU the numbers have the precision of a package.
    ///
    /// # Errors
    ///
    /// When ONNX Runtime refuses them.
    pub fn load(settings: &Settings<'_>, precision: Precision) -> anyhow::Result<MatrixProducts> {
        let mut products = Vec::new();
        if settings.device.is_gpu() {
            let dtype = match precision {
                Precision::Fp16 => DataType::Float16,
                Precision::Fp32 | Precision::Int8 => DataType::Float,
            };
            let operations = (CHAIN * 2 * SIDE * SIDE * SIDE) as f64;
            let session = load(&chain(dtype, SIDE, CHAIN), settings)?;
            products.push(Product { session, input: vec![1.0], shape: vec![1], operations });
        } else {
            for (inner, outer) in [(HIDDEN, INNER), (INNER, HIDDEN)] {
                let operations = (2 * ROWS * inner * outer) as f64;
                let session = load(&linear(inner, outer), settings)?;
                let (input, shape) = (numbers(ROWS * inner), vec![ROWS, inner]);
                products.push(Product { session, input, shape, operations });
            }
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
        let (started, mut operations) = (Instant::now(), 0.0);
        while started.elapsed() < MEASURE {
            operations += self.run()?;
        }
        Ok(operations / started.elapsed().as_secs_f64())
    }

    fn run(&mut self) -> ort::Result<f64> {
        let mut operations = 0.0;
        for product in &mut self.products {
            let input = TensorRef::from_array_view((&product.shape[..], &product.input[..]))?;
            product.session.run(ort::inputs![input])?;
            operations += product.operations;
        }
        Ok(operations)
    }
}

fn load(model: &ModelProto, settings: &Settings<'_>) -> Result<Session, LoadError> {
    let environment = library::environment(settings.library)?;
    let file = tempfile::NamedTempFile::new().and_then(|file| {
        std::fs::write(file.path(), model.encode_to_vec())?;
        Ok(file)
    });
    let file = file.map_err(|e| LoadError::Session {
        path: "a matrix product".into(),
        device: settings.device,
        reason: e.to_string(),
    })?;
    build_session(&environment, file.path(), settings, None)
}

/// One linear step, as the network's graph has them: `[ROWS, inner]` to `[ROWS, outer]`.
fn linear(inner: usize, outer: usize) -> ModelProto {
    let product = node("Gemm", "y", &["x", "weight", "bias"], vec![int_attribute("transB", 1)]);
    let weights = vec![tensor("weight", &[outer, inner]), tensor("bias", &[outer])];
    model(vec![product], weights, &[ROWS, inner], &[ROWS, outer])
}

/// A matrix of one number, multiplied with another so many times; its first row comes out.
fn chain(dtype: DataType, side: usize, products: usize) -> ModelProto {
    let to = |dtype: DataType| vec![int_attribute("to", dtype as i64)];
    let mut nodes = vec![
        node("Cast", "number", &["x"], to(dtype)),
        node("Expand", "product.0", &["number", "shape"], Vec::new()),
    ];
    for number in 0..products {
        let (from, name) = (format!("product.{number}"), format!("product.{}", number + 1));
        nodes.push(node("MatMul", &name, &[&from, "weight"], Vec::new()));
    }
    let last = format!("product.{products}");
    nodes.push(node("Gather", "row", &[&last, "first"], Vec::new()));
    nodes.push(node("Cast", "y", &["row"], to(DataType::Float)));
    let weights = vec![
        random_matrix("weight", side, dtype),
        whole_numbers("shape", &[2], &[side as i64; 2]),
        whole_numbers("first", &[], &[0]),
    ];
    model(nodes, weights, &[1], &[side])
}

fn model(
    node: Vec<NodeProto>,
    initializer: Vec<TensorProto>,
    from: &[usize],
    to: &[usize],
) -> ModelProto {
    ModelProto {
        ir_version: IR_VERSION,
        producer_name: "capvec".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        graph: Some(GraphProto {
            node,
            name: "matrix-product".into(),
            initializer,
            input: vec![floats("x", from)],
            output: vec![floats("y", to)],
        }),
    }
}

/// Numbers of the size of activations: a product of zeros, or of denormal numbers, would have a
/// speed of its own.
fn numbers(number: usize) -> Vec<f32> {
    (0..number).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect()
}

fn tensor(name: &str, shape: &[usize]) -> TensorProto {
    let bytes = numbers(shape.iter().product()).iter().flat_map(|n| n.to_le_bytes()).collect();
    raw_tensor(name, shape, DataType::Float, bytes)
}

/// A matrix with which a row keeps its length, more or less, however often it is multiplied.
fn random_matrix(name: &str, side: usize, dtype: DataType) -> TensorProto {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let deviation = (side as f32).sqrt().recip();
    let numbers = (0..side * side).map(|_| {
        let normal: f32 = StandardNormal.sample(&mut random);
        deviation * normal
    });
    let bytes = match dtype {
        DataType::Float16 => numbers.flat_map(|n| f16::from_f32(n).to_le_bytes()).collect(),
        _ => numbers.flat_map(|n| n.to_le_bytes()).collect(),
    };
    raw_tensor(name, &[side, side], dtype, bytes)
}

fn whole_numbers(name: &str, shape: &[usize], numbers: &[i64]) -> TensorProto {
    let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    raw_tensor(name, shape, DataType::Int64, bytes)
}

fn floats(name: &str, shape: &[usize]) -> ValueInfoProto {
    value(name, DataType::Float, shape.iter().map(|&size| Dimension::Value(size as i64)))
}
