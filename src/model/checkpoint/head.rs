//! The head: the linear layer that makes the encoder's mean a vector.
//!
//! It is published as a pickle of a list of two numpy arrays, `[hidden, dim]` and `[dim]`. The
//! other formats are those into which careful people convert it.
//!
//! Which array is which is told by rank, never by name: a file holds one matrix and one vector of
//! floats. Which way round the matrix is, is told by the vector's length, which is `dim`. Only when
//! the matrix is square does that say nothing. Then it is taken as `[hidden, dim]`, numpy's way,
//! except in a safetensors or torch file under a name that is `weight` or ends in `.weight`: so
//! torch's `Linear` calls a matrix that it keeps as `[dim, hidden]`.

use std::path::Path;
use std::sync::Arc;

use super::archive::{self, Archive};
use super::input::{Input, Quoted};
use super::npz::{self, NpzArray};
use super::number::Dtype;
use super::numpy::{self, PickledArray, transposed};
use super::pickle::{Node, Pickle};
use super::{Checkpoint, ReadError, elements};

/// The largest file with a pickle, and the largest matrix in any file. Published heads have 2 to 3
/// MB.
const HEAD_BYTES_MAX: usize = 256 << 20;

const WANTED: &str =
    "a head (a pickle of two numpy arrays, .npz, .safetensors or torch's zip format)";

/// The linear layer behind the encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// How many numbers it takes, as many as the encoder gives.
    pub hidden: usize,
    /// How many numbers a vector has.
    pub dim: usize,
    /// Row-major `[hidden, dim]`.
    pub weight: Vec<f32>,
    /// `[dim]`.
    pub bias: Vec<f32>,
}

/// An array that may be one of the two.
struct Candidate<T> {
    name: String,
    shape: Vec<usize>,
    /// What it takes to read the numbers.
    of: T,
}

/// How a square matrix is meant.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Square {
    HiddenByDim,
    DimByHidden,
}

/// Reads a head from a file. The format is told by the content.
///
/// # Errors
///
/// When the file can't be read, is of no known format, is damaged, asks for anything but arrays, or
/// doesn't hold exactly one matrix and one vector that belong together.
pub fn read_head(path: &Path) -> Result<Head, ReadError> {
    of_input(Arc::new(Input::open(path)?))
}

/// Reads a head that lies in memory; `path` only names it in errors. Tests and fuzzers use it.
///
/// # Errors
///
/// As [`read_head`].
pub fn parse_head(bytes: Vec<u8>, path: &Path) -> Result<Head, ReadError> {
    of_input(Arc::new(Input::of_bytes(bytes, path)))
}

fn of_input(input: Arc<Input>) -> Result<Head, ReadError> {
    let start = input.start()?;
    if start.starts_with(archive::MAGIC) {
        let archive = Archive::open(&input)?;
        if archive.entries().iter().any(|entry| entry.name.ends_with(".npy")) {
            return of_npz(&input, &archive);
        }
        return of_checkpoint(&Checkpoint::of_input(input)?);
    }
    if super::safetensors::looks_like(&start, input.len_bytes()) {
        return of_checkpoint(&Checkpoint::of_input(input)?);
    }
    if start.starts_with(npz::NPY_MAGIC) {
        let reason = "one array alone is no head; put weight and bias into one file with np.savez";
        return Err(input.refused("byte 0", reason));
    }
    if start.starts_with(b"\x80") && !Input::is_legacy_torch(&start) {
        return of_pickle(&input);
    }
    Err(input.unknown(&start, WANTED))
}

/// A pickle of a list, or tuple, of two arrays.
fn of_pickle(input: &Input) -> Result<Head, ReadError> {
    if input.len_bytes() > HEAD_BYTES_MAX as u64 {
        let reason = format!("{} bytes are more than any head has", input.len_bytes());
        return Err(input.refused("byte 0", reason));
    }
    let bytes = input.read_range("byte 0", 0, input.len_bytes())?;
    let pickle = Pickle::read(&bytes, &numpy::known).map_err(|e| e.within(input, "pickle"))?;
    let place = |id| format!("pickle, byte {}", pickle.offset(id));
    let (Node::List(items) | Node::Tuple(items)) = pickle.node(pickle.root()) else {
        let reason = "a list of two numpy arrays is expected here";
        return Err(input.refused(place(pickle.root()), reason));
    };
    let &[first, second] = items.as_slice() else {
        let reason = format!("two numpy arrays are expected here, not {} things", items.len());
        return Err(input.refused(place(pickle.root()), reason));
    };
    let mut arrays = Vec::new();
    for id in [first, second] {
        let array = numpy::array(&pickle, id).map_err(|e| input.refused(place(id), e))?;
        let shape = array.info.shape.clone();
        arrays.push(Candidate { name: place(id), shape, of: (id, array) });
    }
    let (matrix, vector) = pick(input, arrays)?;
    let read = |(id, array): &(_, PickledArray<'_>)| {
        array.read().map_err(|e| input.damaged(place(*id), e))
    };
    let (weight, bias) = (read(&matrix.of)?, read(&vector.of)?);
    assemble(input, &matrix.shape, weight, bias, Square::HiddenByDim)
}

fn of_npz(input: &Input, archive: &Archive) -> Result<Head, ReadError> {
    let mut arrays = Vec::new();
    for array in npz::read_index(input, archive)? {
        // Arrays of other numbers have nothing to do with a head.
        if let Some(info) = &array.info {
            let (name, shape) = (array.name.clone(), info.shape.clone());
            arrays.push(Candidate { name, shape, of: array });
        }
    }
    let (matrix, vector) = pick(input, arrays)?;
    let read = |array: &NpzArray| npz::read(input, archive, array, HEAD_BYTES_MAX);
    let (weight, bias) = (read(&matrix.of)?, read(&vector.of)?);
    assemble(input, &matrix.shape, weight, bias, Square::HiddenByDim)
}

fn of_checkpoint(file: &Checkpoint) -> Result<Head, ReadError> {
    let mut tensors = Vec::new();
    for (name, info) in &file.tensors {
        if matches!(info.dtype, Dtype::Float(_)) {
            let (name, shape) = (name.clone(), info.shape.clone());
            tensors.push(Candidate { name, shape, of: () });
        }
    }
    let (matrix, vector) = pick(&file.input, tensors)?;
    let square = match matrix.name.rsplit('.').next() {
        Some("weight") => Square::DimByHidden,
        _ => Square::HiddenByDim,
    };
    // Some other model's file may have but one matrix too: don't read it only to find that out.
    let numbers = elements(&matrix.shape);
    if numbers.is_none_or(|numbers| numbers > HEAD_BYTES_MAX / 4) {
        let reason = format!("a matrix of shape {:?} is too large", matrix.shape);
        return Err(file.input.refused(format!("tensor {}", Quoted(&matrix.name)), reason));
    }
    let (weight, bias) = (file.read(&matrix.name)?, file.read(&vector.name)?);
    assemble(&file.input, &matrix.shape, weight, bias, square)
}

/// Finds the only matrix and the only vector.
fn pick<T>(
    input: &Input,
    arrays: Vec<Candidate<T>>,
) -> Result<(Candidate<T>, Candidate<T>), ReadError> {
    let mut found: Vec<_> = arrays
        .iter()
        .take(4)
        .map(|array| format!("{} {:?}", Quoted(&array.name), array.shape))
        .collect();
    if arrays.len() > found.len() {
        found.push(format!("and {} more", arrays.len() - found.len()));
    }
    let (mut matrices, mut vectors) = (Vec::new(), Vec::new());
    for array in arrays {
        match array.shape.len() {
            2 => matrices.push(array),
            1 => vectors.push(array),
            _ => {}
        }
    }
    match (matrices.pop(), vectors.pop()) {
        (Some(matrix), Some(vector)) if matrices.is_empty() && vectors.is_empty() => {
            Ok((matrix, vector))
        }
        _ => {
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            let reason = format!(
                "a head is one matrix and one vector of floats; the file's arrays: {found}"
            );
            Err(input.refused("arrays", reason))
        }
    }
}

/// Turns the matrix the right way round.
fn assemble(
    input: &Input,
    shape: &[usize],
    weight: Vec<f32>,
    bias: Vec<f32>,
    square: Square,
) -> Result<Head, ReadError> {
    let dim = bias.len();
    let (hidden, weight) = match *shape {
        [rows, columns] if columns == dim && (rows != dim || square == Square::HiddenByDim) => {
            (rows, weight)
        }
        [rows, columns] if rows == dim => (columns, transposed(&weight, rows, columns)),
        _ => {
            let reason = format!("a matrix of shape {shape:?} and a bias of {dim} don't fit");
            return Err(input.damaged("arrays", reason));
        }
    };
    if hidden == 0 || dim == 0 {
        return Err(input.damaged("arrays", "they are empty"));
    }
    Ok(Head { hidden, dim, weight, bias })
}

#[cfg(test)]
mod tests;
