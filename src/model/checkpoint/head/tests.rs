use super::super::fixtures::{
    BIAS, HEADS, PickleWriter, TorchTensor, WEIGHT, checkpoints, f32s, safetensors_file, torch_file,
};
use super::*;

fn parse(bytes: &[u8]) -> Result<Head, ReadError> {
    parse_head(bytes.to_vec(), Path::new("head"))
}

#[track_caller]
fn refuses(bytes: &[u8], reason: &str) {
    let error = parse(bytes).unwrap_err().to_string();
    assert!(error.contains(reason), "{error}");
}

/// A safetensors file with a matrix of this name and shape, and a bias.
fn safetensors_head(name: &str, shape: [usize; 2], weight: &[f32], bias: &[f32]) -> Vec<u8> {
    let (middle, end) = (weight.len() * 4, (weight.len() + bias.len()) * 4);
    let header = format!(
        r#"{{"{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[0,{middle}]}},
            "b":{{"dtype":"F32","shape":[{}],"data_offsets":[{middle},{end}]}}}}"#,
        bias.len(),
    );
    safetensors_file(&header, &f32s(&[weight, bias].concat()))
}

#[test]
fn every_way_to_write_a_head_is_read_the_same() {
    let expected = Head { hidden: 2, dim: 3, weight: WEIGHT.into(), bias: BIAS.into() };
    for (name, bytes) in HEADS {
        assert_eq!(parse(bytes).expect(name), expected, "{name}");
    }
    for (name, bytes) in checkpoints() {
        assert_eq!(parse(&bytes).expect(name), expected, "{name}");
    }
    assert_eq!(parse(include_bytes!("../testdata/big_endian.npz")).unwrap(), expected);
    assert_eq!(parse(include_bytes!("../testdata/numpy2_transposed.pkl")).unwrap(), expected);
}

#[test]
fn the_length_of_the_bias_tells_which_way_round_the_matrix_is() {
    // Torch keeps [dim, hidden].
    let linear = safetensors_head("linear.weight", [3, 2], &[0., 3., 1., 4., 2., 5.], &BIAS);
    let head = parse(&linear).unwrap();
    assert_eq!((head.hidden, head.dim, head.weight), (2, 3, WEIGHT.to_vec()));
    // A name means nothing where the lengths say it.
    let raw = safetensors_head("linear.weight", [2, 3], &WEIGHT, &BIAS);
    assert_eq!(parse(&raw).unwrap().weight, WEIGHT);
    let unfit = safetensors_head("w", [2, 3], &WEIGHT, &BIAS[..1]);
    refuses(&unfit, "a matrix of shape [2, 3] and a bias of 1 don't fit");
}

#[test]
fn the_name_decides_only_where_the_matrix_is_square() {
    let square = [1., 2., 3., 4.];
    let read = |name| parse(&safetensors_head(name, [2, 2], &square, &BIAS[..2])).unwrap().weight;
    assert_eq!(read("weight"), [1., 3., 2., 4.]);
    assert_eq!(read("LinearTransformation.weight"), [1., 3., 2., 4.]);
    assert_eq!(read("W"), square);
    assert_eq!(read("my_weight"), square);
    assert_eq!(read("weight.T"), square);
}

#[test]
fn a_torch_file_with_a_linear_layer_is_a_head() {
    let tensors = [
        TorchTensor { parameter: true, ..TorchTensor::full("fc.weight", &[3, 2], &[2, 1]) },
        TorchTensor::full("fc.bias", &[3], &[1]),
    ];
    let weight = f32s(&[0., 3., 1., 4., 2., 5.]);
    let file = torch_file(&tensors, &[("fc.weight", weight), ("fc.bias", f32s(&BIAS))]);
    assert_eq!(parse(&file).unwrap().weight, WEIGHT);
}

#[test]
fn what_is_no_head_is_refused_by_what_it_is() {
    let file = |bytes: &'static [u8]| bytes;
    refuses(
        file(include_bytes!("../testdata/numpy2_refused_objects.pkl")),
        "other numbers than floats",
    );
    refuses(
        file(include_bytes!("../testdata/numpy2_refused_integers.pkl")),
        "other numbers than floats",
    );
    refuses(
        file(include_bytes!("../testdata/numpy2_refused_dict.pkl")),
        "a list of two numpy arrays",
    );
    refuses(file(include_bytes!("../testdata/numpy2_refused_three.pkl")), "not 3 things");
    refuses(file(include_bytes!("../testdata/refused_objects.npz")), "one matrix and one vector");
    refuses(file(include_bytes!("../testdata/refused_alone.npy")), "np.savez");
    refuses(b"{\"weight\": 1}", "it is not a head");
    refuses(b"", "the file is empty");
    refuses(b"<!DOCTYPE html>", "web page");
    let legacy = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    refuses(legacy, "before version 1.6");
    let both = [TorchTensor::full("a", &[2, 3], &[3, 1]), TorchTensor::full("b", &[2, 3], &[3, 1])];
    let both = torch_file(&both, &[("a", f32s(&WEIGHT)), ("b", f32s(&WEIGHT))]);
    refuses(&both, "`a` [2, 3], `b` [2, 3]");
    let empty = safetensors_head("w", [0, 3], &[], &BIAS);
    refuses(&empty, "they are empty");
}

#[test]
fn a_hostile_pickle_is_refused_with_what_it_asks_for() {
    let pickle = PickleWriter::new().global("os", "system").text("true").raw(b"\x85R").end();
    refuses(&pickle, "head: pickle, byte 2: it asks for `os.system`");
    let pickle = PickleWriter::new().global("numpy.core.multiarray", "scalar").end();
    refuses(&pickle, "`numpy.core.multiarray.scalar`");
    // What torch may ask for, a head may not.
    let pickle = PickleWriter::new().global("torch._utils", "_rebuild_tensor_v2").end();
    refuses(&pickle, "`torch._utils._rebuild_tensor_v2`");
}

/// A list of two arrays, where the first has this shape and dtype and 24 bytes.
fn forged(shape: &[i64], dtype: &str) -> Vec<u8> {
    let array = |pickle: PickleWriter, shape: &[i64], dtype: &str, bytes: &[u8]| {
        pickle
            .global("numpy._core.numeric", "_frombuffer")
            .raw(b"(\x96")
            .raw(&(bytes.len() as u64).to_le_bytes())
            .raw(bytes)
            .global("numpy", "dtype")
            .text(dtype)
            .raw(b"\x85R")
            .ints(shape)
            .text("C")
            .raw(b"tR")
    };
    let pickle = array(PickleWriter::new().raw(b"("), shape, dtype, &f32s(&WEIGHT));
    array(pickle, &[3], "f4", &f32s(&BIAS)).raw(b"t").end()
}

#[test]
fn a_forged_shape_is_refused_before_anything_is_allocated() {
    assert_eq!(parse(&forged(&[2, 3], "f4")).unwrap().weight, WEIGHT);
    assert_eq!(parse(&forged(&[4, 3], "f2")).unwrap().hidden, 4);
    refuses(&forged(&[3, 3], "f4"), "can't have 24 bytes");
    refuses(&forged(&[1, 3], "f4"), "can't have 24 bytes");
    refuses(&forged(&[1 << 40, 3], "f4"), "can't have 24 bytes");
    refuses(&forged(&[1 << 62, 1 << 62], "f4"), "can't have 24 bytes");
    refuses(&forged(&[0, i64::MAX], "f4"), "can't have 24 bytes");
    refuses(&forged(&[-2, -3], "f4"), "no list of sizes");
    refuses(&forged(&[2, 3], "f16"), "unknown numbers");
    refuses(&forged(&[2, 3], "=f4"), "unknown numbers");
    refuses(&forged(&[6], "f4"), "one matrix and one vector");
    refuses(&forged(&[1; 65], "f4"), "no list of sizes");
}

#[test]
fn an_empty_matrix_of_endless_columns_is_refused_at_once() {
    // Column-major, which is turned round number by number.
    let pickle = |shape: &[i64]| {
        PickleWriter::new()
            .raw(b"(")
            .global("numpy._core.numeric", "_frombuffer")
            .raw(b"q\x00(C\x00")
            .global("numpy", "dtype")
            .text("f4")
            .raw(b"\x85Rq\x01")
            .ints(shape)
            .text("F")
            .raw(b"tRh\x00(C\x04\0\0\0\0h\x01")
            .ints(&[1])
            .text("C")
            .raw(b"tRt")
            .end()
    };
    refuses(&pickle(&[i64::MAX, 0]), "don't fit");
    refuses(&pickle(&[0, i64::MAX]), "don't fit");
    refuses(&pickle(&[1, 0]), "they are empty");
    refuses(&pickle(&[0, 1]), "they are empty");
}

#[test]
fn an_array_that_holds_itself_is_no_array() {
    // A list of itself twice, and an array whose state is the array.
    refuses(b"\x80\x02]q\x00(h\x00h\x00e.", "no numpy array");
    let pickle = PickleWriter::new()
        .raw(b"(")
        .global("numpy.core.multiarray", "_reconstruct")
        .global("numpy", "ndarray")
        .raw(b"\x85Rq\x00h\x00bh\x00t");
    refuses(&pickle.end(), "an array without content");
}
