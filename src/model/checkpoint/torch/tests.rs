use std::path::Path;

use zip::CompressionMethod;

use super::super::fixtures::{
    BIAS, PickleWriter, TorchTensor, WEIGHT, f32s, state_dict, torch_file, zip,
};
use super::super::{Checkpoint, ReadError};
use super::*;

fn open(bytes: Vec<u8>) -> Result<Checkpoint, ReadError> {
    Checkpoint::parse(bytes, Path::new("model.bin"))
}

#[track_caller]
fn refuses(bytes: Vec<u8>, reason: &str) {
    let error = open(bytes).unwrap_err().to_string();
    assert!(error.contains(reason), "{error}");
}

/// One tensor over a storage of six numbers.
fn one(tensor: TorchTensor<'_>) -> Vec<u8> {
    torch_file(&[TorchTensor { storage: "0", ..tensor }], &[("0", f32s(&WEIGHT))])
}

fn matrix() -> TorchTensor<'static> {
    TorchTensor::full("w", &[2, 3], &[3, 1])
}

#[test]
fn a_shared_storage_is_read_to_its_end_once() {
    let tensors = ["first", "second"].map(|name| TorchTensor {
        name,
        storage: "0",
        storage_numbers: 6,
        skip: if name == "first" { 0 } else { 3 },
        shape: &[3],
        strides: &[1],
        ..matrix()
    });
    let bytes = torch_file(&tensors, &[("0", f32s(&WEIGHT))]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    std::fs::write(&path, &bytes).unwrap();
    let file = Checkpoint::open(&path).unwrap();
    assert_eq!(file.read("first").unwrap(), WEIGHT[..3]);
    // Who read the whole storage again would find that its checksum is wrong.
    let start = bytes.windows(24).position(|window| window == f32s(&WEIGHT)).unwrap();
    let written = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&written, &[0xff; 4], start as u64).unwrap();
    assert_eq!(file.read("second").unwrap(), WEIGHT[3..]);
    // Who reads it for the first time does.
    let anew = Checkpoint::open(&path).unwrap();
    assert!(matches!(anew.read("second"), Err(ReadError::Damaged { .. })));
}

#[test]
fn tensors_may_share_a_storage_and_be_parameters() {
    let tensors = [
        TorchTensor { storage: "0", ..matrix() },
        TorchTensor { name: "tied", storage: "0", parameter: true, ..matrix() },
        TorchTensor { name: "row", storage: "0", skip: 3, shape: &[3], strides: &[1], ..matrix() },
        // A stride where the size is 1 has no meaning.
        TorchTensor { name: "one", storage: "0", shape: &[1, 6], strides: &[99, 1], ..matrix() },
        TorchTensor { name: "scalar", storage: "0", skip: 5, shape: &[], strides: &[], ..matrix() },
        TorchTensor {
            name: "empty",
            storage: "0",
            skip: 6,
            shape: &[0, 7],
            strides: &[7, 1],
            ..matrix()
        },
    ]
    .map(|tensor| TorchTensor { storage_numbers: 6, ..tensor });
    let file = open(torch_file(&tensors, &[("0", f32s(&WEIGHT))])).unwrap();
    assert_eq!(file.read("w").unwrap(), WEIGHT);
    assert_eq!(file.read("tied").unwrap(), WEIGHT);
    assert_eq!(file.read("row").unwrap(), WEIGHT[3..]);
    assert_eq!(file.read("one").unwrap(), WEIGHT);
    assert_eq!(file.read("scalar").unwrap(), WEIGHT[5..]);
    assert!(file.read("empty").unwrap().is_empty());
    assert_eq!(file.get("one").unwrap().shape, [1, 6]);
    assert_eq!(file.names().count(), 6);
}

#[test]
fn halves_and_doubles_and_big_endian_files_are_converted() {
    let halves: Vec<u8> = BIAS.iter().flat_map(|&n| half::f16::from_f32(n).to_be_bytes()).collect();
    let brains: Vec<u8> =
        BIAS.iter().flat_map(|&n| half::bf16::from_f32(n).to_be_bytes()).collect();
    let doubles: Vec<u8> = BIAS.iter().flat_map(|&n| f64::from(n).to_be_bytes()).collect();
    let vector = |name, class| TorchTensor { class, ..TorchTensor::full(name, &[3], &[1]) };
    let pickle = state_dict(&[
        vector("h", "HalfStorage"),
        vector("b", "BFloat16Storage"),
        vector("d", "DoubleStorage"),
    ]);
    let entries: [(&str, &[u8]); 5] = [
        ("x/data.pkl", &pickle),
        ("x/data/h", &halves),
        ("x/data/b", &brains),
        ("x/data/d", &doubles),
        ("x/byteorder", b"big"),
    ];
    let file = open(zip(&entries, CompressionMethod::Stored)).unwrap();
    for name in ["h", "b", "d"] {
        assert_eq!(file.read(name).unwrap(), BIAS);
    }
}

#[test]
fn integers_and_views_are_listed_and_refused_by_name() {
    let tensors = [
        TorchTensor { name: "ids", class: "LongStorage", storage: "none", ..matrix() },
        TorchTensor { name: "turned", storage: "0", strides: &[1, 2], ..matrix() },
        TorchTensor { name: "negated", storage: "0", negated: true, ..matrix() },
        TorchTensor { storage: "0", ..matrix() },
    ];
    let file = open(torch_file(&tensors, &[("0", f32s(&WEIGHT))])).unwrap();
    assert_eq!(file.get("ids").unwrap().dtype, Dtype::Other("int64"));
    let error = file.read("ids").unwrap_err().to_string();
    assert!(error.contains("tensor `ids`: its numbers are int64"), "{error}");
    let error = file.read("turned").unwrap_err().to_string();
    assert!(error.contains("tensor `turned`: its numbers aren't contiguous"), "{error}");
    let error = file.read("negated").unwrap_err().to_string();
    assert!(error.contains("tensor `negated`: its numbers are the negative"), "{error}");
    assert_eq!(file.read("w").unwrap(), WEIGHT);
    assert!(matches!(file.read("other"), Err(ReadError::Missing { .. })));
}

#[test]
fn a_tensor_outside_of_its_storage_is_refused() {
    refuses(one(TorchTensor { skip: 1, ..matrix() }), "past its storage of 6");
    refuses(one(TorchTensor { skip: i64::MAX, ..matrix() }), "past its storage of 6");
    refuses(one(TorchTensor { skip: -1, ..matrix() }), "its offset is no size");
    refuses(one(TorchTensor { shape: &[3, 3], ..matrix() }), "past its storage of 6");
    let huge = TorchTensor { shape: &[1 << 62, 1 << 62], strides: &[1 << 62, 1], ..matrix() };
    refuses(one(TorchTensor { storage_numbers: 6, ..huge }), "past its storage of 6");
    refuses(one(TorchTensor { shape: &[-2, -3], ..matrix() }), "no list of sizes");
    refuses(one(TorchTensor { strides: &[1], ..matrix() }), "different lengths");
    refuses(
        one(TorchTensor { shape: &[1; 17], strides: &[1; 17], ..matrix() }),
        "no list of sizes",
    );
    refuses(
        one(TorchTensor { storage_numbers: 7, ..matrix() }),
        "isn't whole in entry `model/data/0`",
    );
    refuses(one(TorchTensor { storage_numbers: i64::MAX, ..matrix() }), "isn't whole");
    let elsewhere = torch_file(&[matrix()], &[("0", f32s(&WEIGHT))]);
    refuses(elsewhere, "no entry for its storage `w`");
}

#[test]
fn a_hostile_pickle_in_a_checkpoint_is_refused_with_entry_and_byte() {
    let hostile = PickleWriter::new().global("os", "system").text("true").raw(b"\x85R").end();
    let file = zip(&[("x/data.pkl", &hostile)], CompressionMethod::Stored);
    refuses(file, "model.bin: entry `x/data.pkl`, byte 2: it asks for `os.system`");
    // Neither does a key lead out of the archive.
    refuses(
        torch_file(&[TorchTensor { storage: "../../w", ..matrix() }], &[("w", f32s(&WEIGHT))]),
        "no entry for its storage `../../w`",
    );
}

#[test]
fn what_is_no_state_dict_is_refused_with_advice() {
    let list = PickleWriter::new().raw(b"]").end();
    refuses(zip(&[("x/data.pkl", &list)], CompressionMethod::Stored), "state_dict()");
    let nested = PickleWriter::new().raw(b"}").text("model").raw(b"}s").end();
    refuses(zip(&[("x/data.pkl", &nested)], CompressionMethod::Stored), "no tensor in the dict");
    let twice =
        [TorchTensor { storage: "0", ..matrix() }, TorchTensor { storage: "0", ..matrix() }];
    refuses(torch_file(&twice, &[("0", f32s(&WEIGHT))]), "tensor `w` is there twice");
    refuses(zip(&[("x/other", b"")], CompressionMethod::Stored), "torch.save");
    let two: [(&str, &[u8]); 2] = [("x/data.pkl", &list), ("y/data.pkl", &list)];
    refuses(zip(&two, CompressionMethod::Stored), "two entries named data.pkl");
    let script: [(&str, &[u8]); 2] = [("x/data.pkl", &list), ("x/constants.pkl", &list)];
    refuses(zip(&script, CompressionMethod::Stored), "TorchScript");
    let order: [(&str, &[u8]); 2] = [("x/data.pkl", &list), ("x/byteorder", b"middle")];
    refuses(zip(&order, CompressionMethod::Stored), "neither little nor big");
}

#[test]
fn packed_numbers_are_refused() {
    let pickle = state_dict(&[matrix()]);
    let numbers = f32s(&WEIGHT);
    let entries: [(&str, &[u8]); 2] = [("x/data.pkl", &pickle), ("x/data/w", &numbers)];
    refuses(zip(&entries, CompressionMethod::Deflated), "isn't whole");
}

#[test]
fn older_formats_are_refused_with_the_way_to_convert_them() {
    let legacy = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    refuses(legacy, "before version 1.6; save it again with a current torch: torch.save(");
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    refuses(tar, "it is a tar file");
    refuses(b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "git lfs pull");
    refuses(Vec::new(), "the file is empty");
}

#[test]
fn wrong_numbers_are_found_by_their_checksum() {
    let mut file = torch_file(&[matrix()], &[("w", f32s(&[1234.5; 6]))]);
    let at = file.windows(4).position(|window| window == 1234.5_f32.to_le_bytes()).unwrap();
    file[at] ^= 1;
    let error = open(file).unwrap().read("w").unwrap_err().to_string();
    assert!(error.contains("entry `model/data/w`") && error.contains("damaged"), "{error}");
}
