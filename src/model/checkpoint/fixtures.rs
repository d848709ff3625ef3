//! Small files of every format for the tests, made by writers that can also lie.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Heads that numpy wrote, see `testdata/make.py`.
pub(super) const HEADS: [(&str, &[u8]); 25] = [
    ("numpy1 protocol 2 rows", include_bytes!("testdata/numpy1_protocol2_rows.pkl")),
    ("numpy1 protocol 2 columns", include_bytes!("testdata/numpy1_protocol2_columns.pkl")),
    ("numpy1 protocol 3 rows", include_bytes!("testdata/numpy1_protocol3_rows.pkl")),
    ("numpy1 protocol 3 columns", include_bytes!("testdata/numpy1_protocol3_columns.pkl")),
    ("numpy1 protocol 4 rows", include_bytes!("testdata/numpy1_protocol4_rows.pkl")),
    ("numpy1 protocol 4 columns", include_bytes!("testdata/numpy1_protocol4_columns.pkl")),
    ("numpy1 protocol 5 rows", include_bytes!("testdata/numpy1_protocol5_rows.pkl")),
    ("numpy1 protocol 5 columns", include_bytes!("testdata/numpy1_protocol5_columns.pkl")),
    ("numpy2 protocol 2 rows", include_bytes!("testdata/numpy2_protocol2_rows.pkl")),
    ("numpy2 protocol 2 columns", include_bytes!("testdata/numpy2_protocol2_columns.pkl")),
    ("numpy2 protocol 3 rows", include_bytes!("testdata/numpy2_protocol3_rows.pkl")),
    ("numpy2 protocol 3 columns", include_bytes!("testdata/numpy2_protocol3_columns.pkl")),
    ("numpy2 protocol 4 rows", include_bytes!("testdata/numpy2_protocol4_rows.pkl")),
    ("numpy2 protocol 4 columns", include_bytes!("testdata/numpy2_protocol4_columns.pkl")),
    ("numpy2 protocol 5 rows", include_bytes!("testdata/numpy2_protocol5_rows.pkl")),
    ("numpy2 protocol 5 columns", include_bytes!("testdata/numpy2_protocol5_columns.pkl")),
    ("a tuple of f2", include_bytes!("testdata/numpy2_tuple_f2.pkl")),
    ("f8", include_bytes!("testdata/numpy2_f8.pkl")),
    ("big-endian f4 and f8", include_bytes!("testdata/numpy2_big_endian.pkl")),
    ("strided", include_bytes!("testdata/numpy2_strided.pkl")),
    ("read-only", include_bytes!("testdata/numpy2_readonly.pkl")),
    ("positional npz", include_bytes!("testdata/positional.npz")),
    ("named npz with integers", include_bytes!("testdata/named.npz")),
    ("packed npz", include_bytes!("testdata/packed.npz")),
    ("npz of columns, f8 and f2", include_bytes!("testdata/columns.npz")),
];

/// What every file among [`HEADS`] holds.
pub(super) const WEIGHT: [f32; 6] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
pub(super) const BIAS: [f32; 3] = [6.0, 7.0, 8.0];

/// A tensor to be written in torch's format.
#[derive(Clone)]
pub(super) struct TorchTensor<'a> {
    pub name: &'a str,
    pub class: &'a str,
    pub storage: &'a str,
    pub storage_numbers: i64,
    pub skip: i64,
    pub shape: &'a [i64],
    pub strides: &'a [i64],
    pub parameter: bool,
    pub negated: bool,
}

/// Writes a pickle, opcode by opcode.
#[derive(Default)]
pub(super) struct PickleWriter(Vec<u8>);

// === impl TorchTensor ===

impl<'a> TorchTensor<'a> {
    /// An `f32` tensor that fills a storage of its own name.
    pub fn full(name: &'a str, shape: &'a [i64], strides: &'a [i64]) -> TorchTensor<'a> {
        TorchTensor {
            name,
            class: "FloatStorage",
            storage: name,
            storage_numbers: shape.iter().product(),
            skip: 0,
            shape,
            strides,
            parameter: false,
            negated: false,
        }
    }
}

// === impl PickleWriter ===

impl PickleWriter {
    pub fn new() -> Self {
        PickleWriter(vec![0x80, 2])
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    pub fn text(self, text: &str) -> Self {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }

    pub fn int(self, n: i64) -> Self {
        self.raw(&[0x8a, 8]).raw(&n.to_le_bytes())
    }

    pub fn ints(self, numbers: &[i64]) -> Self {
        numbers.iter().fold(self.raw(b"("), |pickle, &n| pickle.int(n)).raw(b"t")
    }

    pub fn tensor(self, tensor: &TorchTensor<'_>) -> Self {
        let pickle = match tensor.parameter {
            true => self.global("torch._utils", "_rebuild_parameter").raw(b"("),
            false => self,
        };
        let pickle = pickle
            .global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"((")
            .text("storage")
            .global("torch", tensor.class)
            .text(tensor.storage)
            .text("cpu")
            .int(tensor.storage_numbers)
            .raw(b"tQ")
            .int(tensor.skip)
            .ints(tensor.shape)
            .ints(tensor.strides)
            .raw(b"\x89")
            .global("collections", "OrderedDict")
            .raw(b")R");
        let pickle = match tensor.negated {
            true => pickle.raw(b"}").text("neg").raw(b"\x88s"),
            false => pickle,
        };
        let pickle = pickle.raw(b"tR");
        match tensor.parameter {
            true => pickle.raw(b"\x88").global("collections", "OrderedDict").raw(b")RtR"),
            false => pickle,
        }
    }

    pub fn end(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// Returns the pickle of a state dict as torch writes it.
pub(super) fn state_dict(tensors: &[TorchTensor<'_>]) -> Vec<u8> {
    let mut pickle = PickleWriter::new().global("collections", "OrderedDict").raw(b")R(");
    for tensor in tensors {
        pickle = pickle.text(tensor.name).tensor(tensor);
    }
    // The modules' versions, which nobody here reads.
    pickle.raw(b"u}").text("_metadata").raw(b"}sb").end()
}

/// Returns a zip file.
pub(super) fn zip(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in entries {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Returns a checkpoint in torch's format; storages come with their bytes.
pub(super) fn torch_file(tensors: &[TorchTensor<'_>], storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let pickle = state_dict(tensors);
    let names: Vec<_> = storages.iter().map(|(key, _)| format!("model/data/{key}")).collect();
    let mut entries = vec![("model/data.pkl", pickle.as_slice())];
    for (name, (_, bytes)) in names.iter().zip(storages) {
        entries.push((name, bytes));
    }
    entries.push(("model/byteorder", b"little"));
    entries.push(("model/version", b"3\n"));
    zip(&entries, CompressionMethod::Stored)
}

/// Returns the numbers' bytes, little-endian.
pub(super) fn f32s(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// Returns a safetensors file with a header as it stands.
pub(super) fn safetensors_file(header: &str, numbers: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), numbers].concat()
}

/// A checkpoint of each format with the tensors `w` and `b`, those of [`HEADS`].
pub(super) fn checkpoints() -> [(&'static str, Vec<u8>); 2] {
    let tensors = [TorchTensor::full("w", &[2, 3], &[3, 1]), TorchTensor::full("b", &[3], &[1])];
    let torch = torch_file(&tensors, &[("w", f32s(&WEIGHT)), ("b", f32s(&BIAS))]);
    let header = r#"{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
        "b":{"dtype":"F32","shape":[3],"data_offsets":[24,36]}}"#;
    let numbers = [f32s(&WEIGHT), f32s(&BIAS)].concat();
    [("torch", torch), ("safetensors", safetensors_file(header, &numbers))]
}
