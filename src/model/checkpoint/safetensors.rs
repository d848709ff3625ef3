//! The index of a safetensors file.
//!
//! Eight bytes with the header's length, the header as JSON, then the numbers, little-endian. The
//! header's meaning is checked by the `safetensors` crate: no overflow, no gap, no overlap. Only
//! the header is read here. Format: <https://huggingface.co/docs/safetensors>.

use std::collections::BTreeMap;

use ::safetensors::tensor::{self, Metadata};

use super::input::{Input, Quoted};
use super::number::{Dtype, Float};
use super::{Data, RANK_MAX, ReadError, TensorInfo};

/// The length of the header's length.
const PREFIX_BYTES: u64 = 8;

/// The largest header. That of a model with 200 tensors has about 20 KB.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// Tells whether a file of this start and length may be a safetensors file.
pub(super) fn looks_like(start: &[u8], len_bytes: u64) -> bool {
    let (Some(prefix), Some(b'{')) = (start.first_chunk(), start.get(PREFIX_BYTES as usize)) else {
        return false;
    };
    // A truncated file still looks like one: its length is for `read_index` to complain about.
    u64::from_le_bytes(*prefix) <= len_bytes.max(HEADER_BYTES_MAX)
}

/// Reads the names, shapes and places of all tensors.
pub(super) fn read_index(input: &Input) -> Result<BTreeMap<String, TensorInfo>, ReadError> {
    let place = "safetensors header";
    let prefix = input.read_range(place, 0, PREFIX_BYTES)?;
    let header_bytes = prefix.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if header_bytes > HEADER_BYTES_MAX {
        let reason = format!("{header_bytes} bytes are more than any encoder's header has");
        return Err(input.refused(place, reason));
    }
    let header = input.read_range(place, PREFIX_BYTES, header_bytes)?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| input.damaged(place, format!("it isn't understood: {e}")))?;

    let numbers_start = PREFIX_BYTES + header_bytes;
    let expected = numbers_start.checked_add(metadata.data_len() as u64);
    if expected != Some(input.len_bytes()) {
        let reason = format!(
            "its tensors take {} bytes where {} follow; is the file truncated?",
            metadata.data_len(),
            input.len_bytes() - numbers_start
        );
        return Err(input.damaged(place, reason));
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        if info.shape.len() > RANK_MAX {
            let reason = format!("tensor {} has {} dimensions", Quoted(&name), info.shape.len());
            return Err(input.refused(place, reason));
        }
        let data = Data::Range { start: numbers_start + info.data_offsets.0 as u64 };
        let info = TensorInfo { shape: info.shape.clone(), dtype: dtype(info.dtype), data };
        tensors.insert(name, info);
    }
    Ok(tensors)
}

fn dtype(dtype: tensor::Dtype) -> Dtype {
    match dtype {
        tensor::Dtype::F16 => Dtype::Float(Float::F16),
        tensor::Dtype::BF16 => Dtype::Float(Float::Bf16),
        tensor::Dtype::F32 => Dtype::Float(Float::F32),
        tensor::Dtype::F64 => Dtype::Float(Float::F64),
        tensor::Dtype::BOOL => Dtype::Other("bool"),
        tensor::Dtype::U8 => Dtype::Other("uint8"),
        tensor::Dtype::I8 => Dtype::Other("int8"),
        tensor::Dtype::U16 => Dtype::Other("uint16"),
        tensor::Dtype::I16 => Dtype::Other("int16"),
        tensor::Dtype::U32 => Dtype::Other("uint32"),
        tensor::Dtype::I32 => Dtype::Other("int32"),
        tensor::Dtype::U64 => Dtype::Other("uint64"),
        tensor::Dtype::I64 => Dtype::Other("int64"),
        _ => Dtype::Other("of a rare kind"),
    }
}

#[cfg(test)]
mod tests;
