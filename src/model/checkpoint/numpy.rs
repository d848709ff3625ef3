//! Numpy's arrays as pickles keep them.
//!
//! Up to protocol 4 an array is a call of `_reconstruct` whose state holds shape, dtype, order and
//! bytes; in protocol 5 it is a call of `_frombuffer` with the same as arguments. Protocol 2 has no
//! byte strings: bytes are a text of which each character is one byte, in a call of
//! `_codecs.encode`. Numpy 2 moved its modules from `numpy.core` to `numpy._core`.
//! Format: `numpy/_core/src/multiarray/methods.c` (`array_reduce`), `descriptor.c`
//! (`arraydescr_reduce`).

use std::borrow::Cow;

use super::elements;
use super::number::{ByteOrder, Dtype, Float};
use super::pickle::{Node, NodeId, Pickle};

/// The most dimensions that numpy allows. The limit also keeps a small `.npz` file from giving a
/// long shape to each of many arrays.
pub(super) const NUMPY_RANK_MAX: usize = 64;

/// An array's description, the same in pickles and `.npy` files.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ArrayInfo {
    pub shape: Vec<usize>,
    pub float: Float,
    pub byte_order: ByteOrder,
    /// Whether the first index runs fastest.
    pub column_major: bool,
}

/// An array in a pickle.
#[derive(Debug)]
pub(super) struct PickledArray<'a> {
    pub info: ArrayInfo,
    bytes: PickledBytes<'a>,
}

/// Bytes as they are, or as a text with one character for each.
#[derive(Clone, Copy, Debug)]
enum PickledBytes<'a> {
    Plain(&'a [u8]),
    Latin1(&'a str),
}

/// The functions and classes that an array may name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Known {
    Reconstruct,
    FromBuffer,
    Array,
    Dtype,
    Encode,
}

/// The closed list of functions and classes.
pub(super) fn known(module: &str, name: &str) -> Option<Known> {
    match (module, name) {
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
            Some(Known::Reconstruct)
        }
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Some(Known::FromBuffer),
        ("numpy", "ndarray") => Some(Known::Array),
        ("numpy", "dtype") => Some(Known::Dtype),
        ("_codecs", "encode") => Some(Known::Encode),
        _ => None,
    }
}

/// Understands a name such as `<f4`; the order before it may be missing.
pub(super) fn parse_dtype(name: &str) -> Option<(Dtype, Option<ByteOrder>)> {
    let (order, kind) = match name.split_at_checked(1) {
        Some(("<", kind)) => (Some(ByteOrder::Little), kind),
        Some((">", kind)) => (Some(ByteOrder::Big), kind),
        Some(("|", kind)) => (None, kind),
        _ => (None, name),
    };
    let dtype = match kind {
        "f2" => Dtype::Float(Float::F16),
        "f4" => Dtype::Float(Float::F32),
        "f8" => Dtype::Float(Float::F64),
        "b1" => Dtype::Other("bool"),
        "i1" => Dtype::Other("int8"),
        "i2" => Dtype::Other("int16"),
        "i4" => Dtype::Other("int32"),
        "i8" => Dtype::Other("int64"),
        "u1" => Dtype::Other("uint8"),
        "u2" => Dtype::Other("uint16"),
        "u4" => Dtype::Other("uint32"),
        "u8" => Dtype::Other("uint64"),
        "O" | "O8" | "O4" => Dtype::Other("Python objects"),
        _ => return None,
    };
    Some((dtype, order))
}

/// Understands the node of an array, or says what is wrong with it.
pub(super) fn array<'a>(
    pickle: &Pickle<'a, Known>,
    id: NodeId,
) -> Result<PickledArray<'a>, &'static str> {
    let (call, args) = pickle.call(id).ok_or("it is no numpy array")?;
    let (shape, dtype, column_major, bytes) = match (call.function, args) {
        (Known::Reconstruct, &[class, ..]) => {
            if !matches!(pickle.node(class), Node::Global(Known::Array)) {
                return Err("it is of a class derived from numpy's arrays");
            }
            let state = call.state.and_then(|state| pickle.tuple(state));
            // The first is the version of this layout, 1 since numpy has it.
            let Some(&[_, shape, dtype, column_major, bytes]) = state else {
                return Err("an array without content");
            };
            let Node::Bool(column_major) = pickle.node(column_major) else {
                return Err("an array whose order is neither of rows nor of columns");
            };
            (shape, dtype, *column_major, bytes)
        }
        (Known::FromBuffer, &[bytes, dtype, shape, order]) => {
            let column_major = match pickle.text(order) {
                Some("C") => false,
                Some("F") => true,
                _ => return Err("an array whose order is neither of rows nor of columns"),
            };
            (shape, dtype, column_major, bytes)
        }
        _ => return Err("it is no numpy array"),
    };
    let shape =
        pickle.sizes(shape, NUMPY_RANK_MAX).ok_or("an array whose shape is no list of sizes")?;
    let (dtype, byte_order) = read_dtype(pickle, dtype).ok_or("an array of unknown numbers")?;
    let Dtype::Float(float) = dtype else {
        return Err("an array of other numbers than floats");
    };
    let bytes = read_bytes(pickle, bytes).ok_or("an array whose content is no byte string")?;
    Ok(PickledArray { info: ArrayInfo { shape, float, byte_order, column_major }, bytes })
}

/// A dtype is `numpy.dtype("f4", False, True)`, and its state begins with a version and the order.
fn read_dtype(pickle: &Pickle<'_, Known>, id: NodeId) -> Option<(Dtype, ByteOrder)> {
    let (call, args) = pickle.call(id)?;
    let (Known::Dtype, &[name, ..]) = (call.function, args) else {
        return None;
    };
    let (dtype, order) = parse_dtype(pickle.text(name)?)?;
    let Some(state) = call.state else {
        return Some((dtype, order.unwrap_or(ByteOrder::Little)));
    };
    let &[_, order, ..] = pickle.tuple(state)? else {
        return None;
    };
    match pickle.text(order)? {
        // A bar where the order doesn't matter.
        "<" | "|" => Some((dtype, ByteOrder::Little)),
        ">" => Some((dtype, ByteOrder::Big)),
        _ => None,
    }
}

fn read_bytes<'a>(pickle: &Pickle<'a, Known>, id: NodeId) -> Option<PickledBytes<'a>> {
    if let Node::Bytes(bytes) = pickle.node(id) {
        return Some(PickledBytes::Plain(bytes));
    }
    let (call, args) = pickle.call(id)?;
    let (Known::Encode, &[text, encoding]) = (call.function, args) else {
        return None;
    };
    if !matches!(pickle.text(encoding)?, "latin1" | "latin-1") {
        return None;
    }
    Some(PickledBytes::Latin1(pickle.text(text)?))
}

// === impl ArrayInfo ===

impl ArrayInfo {
    /// Returns how many bytes the numbers take, or nothing when that overflows.
    pub fn len_bytes(&self) -> Option<usize> {
        elements(&self.shape)?.checked_mul(self.float.size_bytes())
    }

    /// Brings the numbers, decoded in the order in which they lie, into row-major order.
    pub fn to_rows(&self, numbers: Vec<f32>) -> Vec<f32> {
        match *self.shape.as_slice() {
            [rows, columns] if self.column_major => transposed(&numbers, columns, rows),
            _ => numbers,
        }
    }
}

/// Returns a row-major matrix of this shape with rows and columns exchanged.
pub(super) fn transposed(numbers: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    debug_assert_eq!(Some(numbers.len()), rows.checked_mul(columns));
    // An empty matrix may have any number of columns, too many to go through.
    if numbers.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::with_capacity(numbers.len());
    for column in 0..columns {
        out.extend(numbers.iter().skip(column).step_by(columns));
    }
    out
}

// === impl PickledArray ===

impl PickledArray<'_> {
    /// Decodes the numbers, row-major. Nothing is allocated unless the bytes are there.
    pub fn read(&self) -> Result<Vec<f32>, String> {
        let bytes = match self.bytes {
            PickledBytes::Plain(bytes) => Cow::Borrowed(bytes),
            PickledBytes::Latin1(text) => {
                let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
                Cow::Owned(bytes.ok_or("a character of an array's content is no byte")?)
            }
        };
        if self.info.len_bytes() != Some(bytes.len()) {
            let (shape, len) = (&self.info.shape, bytes.len());
            return Err(format!("an array of shape {shape:?} can't have {len} bytes"));
        }
        let mut numbers = Vec::with_capacity(bytes.len() / self.info.float.size_bytes());
        self.info.float.decode(self.info.byte_order, &bytes, &mut numbers);
        Ok(self.info.to_rows(numbers))
    }
}
