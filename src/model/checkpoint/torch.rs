//! The index of a checkpoint in torch's zip format, which `torch.save` writes since version 1.6.
//!
//! A zip file of stored entries: `<prefix>/data.pkl` is a pickle of the state dict, in which each
//! tensor is a call of `_rebuild_tensor_v2` over a storage that is given by its key; the numbers
//! are in `<prefix>/data/<key>`. Several tensors may share a storage. Format:
//! `torch/serialization.py`, `torch/_utils.py` and `caffe2/serialize/inline_container.cc`.
//!
//! # Invariants
//!
//! - The numbers of a tensor that can be read lie within an entry, and that within the file.
//! - A tensor of integers, with gaps between its rows, or of what its storage holds the negative of
//!   is listed, and refused when asked for.

use std::collections::{BTreeMap, HashMap};

use super::archive::{Archive, Entry};
use super::input::{Input, Quoted};
use super::number::{ByteOrder, Dtype, Float};
use super::pickle::{Node, NodeId, Pickle};
use super::{Data, RANK_MAX, ReadError, TensorInfo, elements};

/// The largest `data.pkl`. That of a model with 200 tensors has about 20 KB.
const PICKLE_BYTES_MAX: u64 = 64 << 20;

/// What to do about a file of anything else than a state dict.
const SAVE_STATE_DICT: &str = "save the encoder's state_dict() alone";

/// What a checkpoint has beside its numbers.
pub(super) struct Index {
    pub byte_order: ByteOrder,
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// The functions and classes that a state dict may name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    OrderedDict,
    Parameter,
    Tensor,
    Storage(Dtype),
}

/// Reads the tensors of one `data.pkl`.
struct Reader<'a> {
    input: &'a Input,
    /// The name of the pickle's entry.
    pickle_name: String,
    pickle: Pickle<'a, Known>,
    /// The entries with numbers, by the storage's key.
    storages: HashMap<&'a str, (usize, &'a Entry)>,
}

/// Reads the names, shapes and places of all tensors.
pub(super) fn read_index(input: &Input, archive: &Archive) -> Result<Index, ReadError> {
    let prefix = find_prefix(input, archive)?;
    let pickle_name = format!("{prefix}/data.pkl");
    let place = || format!("entry {}", Quoted(&pickle_name));
    let Some((pickle_index, _)) = archive.find(&pickle_name) else {
        return Err(input.damaged(place(), "it is missing"));
    };
    let bytes = archive.read(pickle_index, PICKLE_BYTES_MAX)?;
    let pickle = Pickle::read(&bytes, &known).map_err(|e| e.within(input, &place()))?;

    let folder = format!("{prefix}/data/");
    let mut storages = HashMap::new();
    for (index, entry) in archive.entries().iter().enumerate() {
        if let Some(key) = entry.name.strip_prefix(&folder) {
            storages.insert(key, (index, entry));
        }
    }
    let byte_order = read_byte_order(input, archive, &prefix)?;
    let tensors = Reader { input, pickle_name, pickle, storages }.tensors()?;
    Ok(Index { byte_order, tensors })
}

/// Finds the folder that holds everything. It is named after the file that was first saved.
fn find_prefix(input: &Input, archive: &Archive) -> Result<String, ReadError> {
    let mut prefixes = archive
        .entries()
        .iter()
        .filter_map(|entry| entry.name.strip_suffix("/data.pkl"))
        .filter(|prefix| !prefix.contains('/'));
    let place = "zip directory";
    match (prefixes.next(), prefixes.next()) {
        (Some(prefix), None) => {
            if archive.find(&format!("{prefix}/constants.pkl")).is_some() {
                let reason = "it is a TorchScript program and not a checkpoint; load it with \
                              torch.jit.load and save its state_dict()";
                return Err(input.refused(place, reason));
            }
            Ok(prefix.to_owned())
        }
        (Some(_), Some(_)) => Err(input.damaged(place, "there are two entries named data.pkl")),
        (None, _) => {
            let reason = "there is no entry data.pkl: it isn't a file that torch.save wrote";
            Err(input.refused(place, reason))
        }
    }
}

/// Reads the byte order, which torch notes since version 2.1. Those before wrote on little-endian
/// machines, or couldn't be read anywhere else.
fn read_byte_order(input: &Input, archive: &Archive, prefix: &str) -> Result<ByteOrder, ReadError> {
    let Some((index, entry)) = archive.find(&format!("{prefix}/byteorder")) else {
        return Ok(ByteOrder::Little);
    };
    match archive.read(index, 16)?.as_slice() {
        b"little" => Ok(ByteOrder::Little),
        b"big" => Ok(ByteOrder::Big),
        _ => {
            let place = format!("entry {}", Quoted(&entry.name));
            Err(input.damaged(place, "it is neither little nor big"))
        }
    }
}

/// The closed list of functions and classes.
fn known(module: &str, name: &str) -> Option<Known> {
    let dtype = match (module, name) {
        ("collections", "OrderedDict") => return Some(Known::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => return Some(Known::Tensor),
        ("torch._utils", "_rebuild_parameter") => return Some(Known::Parameter),
        ("torch", "HalfStorage") => Dtype::Float(Float::F16),
        ("torch", "BFloat16Storage") => Dtype::Float(Float::Bf16),
        ("torch", "FloatStorage") => Dtype::Float(Float::F32),
        ("torch", "DoubleStorage") => Dtype::Float(Float::F64),
        ("torch", "BoolStorage") => Dtype::Other("bool"),
        ("torch", "ByteStorage") => Dtype::Other("uint8"),
        ("torch", "CharStorage") => Dtype::Other("int8"),
        ("torch", "ShortStorage") => Dtype::Other("int16"),
        ("torch", "IntStorage") => Dtype::Other("int32"),
        ("torch", "LongStorage") => Dtype::Other("int64"),
        _ => return None,
    };
    Some(Known::Storage(dtype))
}

// === impl Reader ===

impl Reader<'_> {
    fn tensors(&self) -> Result<BTreeMap<String, TensorInfo>, ReadError> {
        let root = self.pickle.root();
        let items = match self.pickle.node(root) {
            Node::Dict(items) => items,
            Node::Call(call) if call.function == Known::OrderedDict => &call.items,
            _ => return Err(self.refused(root, "it holds no state dict", SAVE_STATE_DICT)),
        };
        let mut tensors = BTreeMap::new();
        for &(key, value) in items {
            // Other things may lie beside the tensors, such as the number of an epoch.
            let (Some(name), Some(tensor)) = (self.pickle.text(key), self.tensor_call(value))
            else {
                continue;
            };
            let info = self.tensor(name, tensor)?;
            if tensors.insert(name.to_owned(), info).is_some() {
                let reason = format!("tensor {} is there twice", Quoted(name));
                return Err(self.damaged(key, &reason));
            }
        }
        if tensors.is_empty() {
            return Err(self.refused(root, "there is no tensor in the dict", SAVE_STATE_DICT));
        }
        Ok(tensors)
    }

    /// Returns the node of a tensor's call; a parameter is a tensor in a wrapper.
    fn tensor_call(&self, id: NodeId) -> Option<NodeId> {
        let (call, args) = self.pickle.call(id)?;
        match (call.function, args) {
            (Known::Tensor, _) => Some(id),
            (Known::Parameter, &[tensor, ..]) => {
                let (inner, _) = self.pickle.call(tensor)?;
                (inner.function == Known::Tensor).then_some(tensor)
            }
            _ => None,
        }
    }

    fn tensor(&self, name: &str, id: NodeId) -> Result<TensorInfo, ReadError> {
        let malformed = |what: &str| self.damaged(id, &format!("tensor {}: {what}", Quoted(name)));
        let Some((_, &[storage, skip, shape, strides, ref rest @ ..])) = self.pickle.call(id)
        else {
            return Err(malformed("arguments are missing"));
        };
        let skip = self.pickle.size(skip).ok_or_else(|| malformed("its offset is no size"))?;
        let (Some(shape), Some(strides)) =
            (self.pickle.sizes(shape, RANK_MAX), self.pickle.sizes(strides, RANK_MAX))
        else {
            return Err(malformed("its shape or strides are no list of sizes"));
        };
        if shape.len() != strides.len() {
            return Err(malformed("its shape and its strides have different lengths"));
        }
        let (dtype, key, storage_numbers) =
            self.storage(storage).ok_or_else(|| malformed("its storage isn't understood"))?;
        let Dtype::Float(float) = dtype else {
            let data = Data::Refused("it holds no floats");
            return Ok(TensorInfo { shape, dtype, data });
        };

        // Behind whether it needs a gradient, and hooks: bits that say how the numbers are meant.
        let is_view = rest.get(2).is_some_and(
            |&bits| matches!(self.pickle.node(bits), Node::Dict(bits) if !bits.is_empty()),
        );
        if is_view {
            let reason = "its numbers are the negative of those in the file, or otherwise not \
                          them; save the checkpoint again with tensor.clone()";
            return Ok(TensorInfo { shape, dtype, data: Data::Refused(reason) });
        }
        let &(index, entry) = self.storages.get(key).ok_or_else(|| {
            malformed(&format!("there is no entry for its storage {}", Quoted(key)))
        })?;
        let storage_bytes = (storage_numbers as u64).checked_mul(float.size_bytes() as u64);
        if !entry.stored || storage_bytes.is_none_or(|bytes| bytes > entry.len_bytes) {
            let reason = format!(
                "its storage of {storage_numbers} numbers isn't whole in entry {}, which has {} bytes",
                Quoted(&entry.name),
                entry.len_bytes
            );
            return Err(malformed(&reason));
        }
        if !is_contiguous(&shape, &strides) {
            let reason = "its numbers aren't contiguous in row-major order; save the checkpoint again \
                          with tensor.contiguous()";
            return Ok(TensorInfo { shape, dtype, data: Data::Refused(reason) });
        }
        let end = elements(&shape).and_then(|count| skip.checked_add(count));
        if end.is_none_or(|end| end > storage_numbers) {
            let reason = format!(
                "shape {shape:?} from number {skip} on reaches past its storage of {storage_numbers}"
            );
            return Err(malformed(&reason));
        }
        // Not past the storage, whose size in bytes doesn't overflow.
        let skip = skip as u64 * float.size_bytes() as u64;
        Ok(TensorInfo { shape, dtype, data: Data::Entry { index, skip } })
    }

    /// Takes a storage's description apart: its type, its key and how many numbers it has.
    fn storage(&self, id: NodeId) -> Option<(Dtype, &str, usize)> {
        let Node::Persistent(description) = self.pickle.node(id) else {
            return None;
        };
        // The one before the last is the device.
        let &[kind, class, key, _, numbers] = self.pickle.tuple(*description)? else {
            return None;
        };
        let Node::Global(Known::Storage(dtype)) = self.pickle.node(class) else {
            return None;
        };
        if self.pickle.text(kind) != Some("storage") {
            return None;
        }
        Some((*dtype, self.pickle.text(key)?, self.pickle.size(numbers)?))
    }

    fn place(&self, id: NodeId) -> String {
        format!("entry {}, byte {}", Quoted(&self.pickle_name), self.pickle.offset(id))
    }

    fn damaged(&self, id: NodeId, reason: &str) -> ReadError {
        self.input.damaged(self.place(id), reason)
    }

    fn refused(&self, id: NodeId, reason: &str, advice: &str) -> ReadError {
        self.input.refused(self.place(id), format!("{reason}; {advice}"))
    }
}

/// Whether the numbers of a tensor follow each other without gaps. Where a size is 1 the stride is
/// never taken, and torch writes anything there.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = Some(1_usize);
    elements(shape) == Some(0)
        || shape.iter().zip(strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || expected == Some(stride);
            expected = expected.and_then(|stride| stride.checked_mul(size));
            fits
        })
}

#[cfg(test)]
mod tests;
