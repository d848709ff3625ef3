//! Tests of whole files: what is read, what is refused, and that nothing makes a reader panic.

use std::path::Path;

use proptest::prelude::*;

use super::fixtures::{BIAS, HEADS, WEIGHT, checkpoints, f32s, safetensors_file, torch_file};
use super::fixtures::{PickleWriter, TorchTensor, zip};
use super::*;

fn open(bytes: Vec<u8>) -> Result<Checkpoint, ReadError> {
    Checkpoint::parse(bytes, Path::new("weights"))
}

/// Does everything that can be done with a file.
fn exercise(bytes: &[u8]) {
    if let Ok(file) = open(bytes.to_vec()) {
        for name in file.names().map(str::to_owned).collect::<Vec<_>>() {
            let info = file.get(&name).unwrap();
            if let Ok(numbers) = file.read(&name) {
                assert_eq!(Some(numbers.len()), elements(&info.shape));
                // No number comes from nowhere: even halves take two bytes each.
                assert!(numbers.len() * 2 <= bytes.len());
            }
        }
    }
    if let Ok(head) = parse_head(bytes.to_vec(), Path::new("head")) {
        assert_eq!(head.weight.len(), head.hidden * head.dim);
        assert_eq!(head.bias.len(), head.dim);
    }
}

fn every_file() -> Vec<(&'static str, Vec<u8>)> {
    let mut files = checkpoints().to_vec();
    files.extend(HEADS.map(|(name, bytes)| (name, bytes.to_vec())));
    files
}

#[test]
fn both_formats_of_checkpoints_are_read_alike() {
    for (format, bytes) in checkpoints() {
        let file = open(bytes.clone()).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["b", "w"], "{format}");
        assert_eq!(file.get("w").unwrap().shape, [2, 3]);
        assert_eq!(file.get("w").unwrap().dtype, Dtype::Float(Float::F32));
        assert_eq!(file.read("w").unwrap(), WEIGHT);
        assert_eq!(file.read("b").unwrap(), BIAS);
        // The same from a real file.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Checkpoint::open(&path).unwrap().read("w").unwrap(), WEIGHT);
    }
}

#[test]
fn a_failing_receiver_ends_the_stream_and_is_told_apart() {
    for (format, bytes) in checkpoints() {
        let full = open(bytes)
            .unwrap()
            .stream("w", &mut |_| Err(io::ErrorKind::StorageFull.into()))
            .unwrap_err();
        assert!(
            matches!(&full, ReadError::Sink { source, .. } if source.kind() == io::ErrorKind::StorageFull),
            "{format}: {full}"
        );
    }
}

#[test]
fn a_file_that_is_cut_while_open_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for (format, bytes) in checkpoints() {
        let path = folder.path().join(format);
        std::fs::write(&path, bytes).unwrap();
        let file = Checkpoint::open(&path).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(50).unwrap();
        let error = file.read("b").unwrap_err();
        assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    }
}

#[test]
fn no_prefix_of_any_file_is_taken_for_the_whole() {
    for (name, bytes) in every_file() {
        for len in 0..bytes.len() {
            let path = Path::new("cut");
            assert!(open(bytes[..len].to_vec()).is_err(), "{name} cut to {len}");
            assert!(parse_head(bytes[..len].to_vec(), path).is_err(), "{name} cut to {len}");
        }
    }
}

#[test]
fn no_single_changed_byte_makes_a_reader_panic() {
    for (_, bytes) in every_file() {
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff, bytes[at], bytes[at] ^ 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                exercise(&bytes);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_random_damage_makes_a_reader_panic(
        file in proptest::sample::select(every_file()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = file.1;
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        exercise(&bytes);
    }

    #[test]
    fn no_random_bytes_make_a_reader_panic(
        magic in proptest::sample::select(vec![
            b"PK\x03\x04".as_slice(), b"\x80\x02", b"\x80\x04", b"\x93NUMPY\x01\x00",
            b"\x40\0\0\0\0\0\0\0{", b"",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        exercise(&[magic, &rest].concat());
    }

    #[test]
    fn no_random_opcodes_make_a_reader_panic(
        opcodes in prop::collection::vec(
            proptest::sample::select(b"(NK\x88\x89])}t\x85\x86\x87aesuRbQq\x94h.\x00\x01".to_vec()),
            0..200,
        ),
    ) {
        let pickle = PickleWriter::new()
            .global("collections", "OrderedDict")
            .raw(&opcodes)
            .end();
        exercise(&zip(&[("x/data.pkl", &pickle)], zip::CompressionMethod::Stored));
        exercise(&PickleWriter::new().global("numpy", "dtype").raw(&opcodes).end());
    }

    #[test]
    fn floats_of_every_width_survive_both_formats(
        numbers in prop::collection::vec(any::<f32>(), 1..50),
    ) {
        let halves: Vec<_> = numbers.iter().map(|&n| half::f16::from_f32(n)).collect();
        let brains: Vec<_> = numbers.iter().map(|&n| half::bf16::from_f32(n)).collect();
        let count = numbers.len();
        let raw: [(&str, &str, Vec<u8>, Vec<f32>); 4] = [
            ("F16", "HalfStorage", halves.iter().flat_map(|n| n.to_le_bytes()).collect(),
                halves.iter().map(|n| n.to_f32()).collect()),
            ("BF16", "BFloat16Storage", brains.iter().flat_map(|n| n.to_le_bytes()).collect(),
                brains.iter().map(|n| n.to_f32()).collect()),
            ("F32", "FloatStorage", f32s(&numbers), numbers.clone()),
            ("F64", "DoubleStorage", numbers.iter().flat_map(|&n| f64::from(n).to_le_bytes()).collect(),
                numbers.clone()),
        ];
        for (dtype, class, bytes, expected) in raw {
            let header = format!(
                r#"{{"x":{{"dtype":"{dtype}","shape":[{count}],"data_offsets":[0,{}]}}}}"#,
                bytes.len()
            );
            let safe = open(safetensors_file(&header, &bytes)).unwrap();
            let shape = [count as i64];
            let tensor = TorchTensor { class, ..TorchTensor::full("x", &shape, &[1]) };
            let torch = open(torch_file(&[tensor], &[("x", bytes)])).unwrap();
            for file in [safe, torch] {
                let read: Vec<_> = file.read("x").unwrap().iter().map(|n| n.to_bits()).collect();
                let expected: Vec<_> = expected.iter().map(|n| n.to_bits()).collect();
                prop_assert_eq!(&read, &expected);
            }
        }
    }
}

// --- real files, made by torch and numpy ---

#[test]
fn the_files_of_torch_and_numpy_are_read() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (model, weights, tensors) in
        [("bert", "pytorch_model.bin", 39), ("distilbert", "model.safetensors", 36)]
    {
        let folder = golden.join(model);
        let file = Checkpoint::open(&folder.join(weights)).unwrap();
        assert_eq!(file.names().count(), tensors);
        let words = "embeddings.word_embeddings.weight";
        assert_eq!(file.get(words).unwrap().shape, [600, 32]);
        for name in file.names() {
            let mut count = 0;
            file.stream(name, &mut |chunk| {
                assert!(chunk.iter().all(|number| number.is_finite()), "{name}");
                count += chunk.len();
                Ok(())
            })
            .unwrap();
            assert_eq!(Some(count), elements(&file.get(name).unwrap().shape));
        }
        let head = read_head(&folder.join("Linear Weights.pkl")).unwrap();
        assert_eq!((head.hidden, head.dim), (32, 40));
        assert!(head.weight.iter().chain(&head.bias).all(|number| number.is_finite()));
    }
}
