use std::path::Path;

use super::super::Checkpoint;
use super::super::fixtures::safetensors_file;
use super::*;

#[track_caller]
fn refuses(bytes: Vec<u8>, reason: &str) {
    let error = Checkpoint::parse(bytes, Path::new("x")).unwrap_err().to_string();
    assert!(error.contains(reason), "{error}");
}

fn tensor(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn integers_are_listed_and_refused_by_name() {
    let header = tensor("I64", "[2]", "[0,16]");
    let file = Checkpoint::parse(safetensors_file(&header, &[0; 16]), Path::new("x")).unwrap();
    assert_eq!(file.get("t").unwrap().dtype, Dtype::Other("int64"));
    let error = file.read("t").unwrap_err().to_string();
    assert_eq!(error, "x: tensor `t`: its numbers are int64, and only floats can be read");
}

#[test]
fn metadata_and_padding_are_passed_over() {
    let header = r#"{"__metadata__":{"format":"pt"},"t":{"dtype":"F16","shape":[],"data_offsets":[0,2]}}     "#;
    let file = Checkpoint::parse(safetensors_file(header, &[0, 0x3c]), Path::new("x")).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["t"]);
    assert_eq!(file.read("t").unwrap(), [1.0]);
}

#[test]
fn a_header_that_lies_is_refused() {
    let file = |header: &str| safetensors_file(header, &[0; 16]);
    // Shapes and offsets that don't fit each other, the file, or a number.
    refuses(file(&tensor("F32", "[5]", "[0,16]")), "isn't understood");
    refuses(file(&tensor("F32", "[5]", "[0,20]")), "truncated");
    refuses(file(&tensor("F32", "[3]", "[0,12]")), "truncated");
    refuses(file(&tensor("F32", "[3]", "[4,16]")), "isn't understood");
    refuses(file(&tensor("F32", "[4]", "[16,0]")), "isn't understood");
    refuses(file(&tensor("F32", "[-4]", "[0,16]")), "isn't understood");
    refuses(file(&tensor("F32", "[4611686018427387904,4]", "[0,16]")), "isn't understood");
    refuses(file(&tensor("F32", "[4]", "[18446744073709551600,18446744073709551615]")), "isn't");
    refuses(file(&tensor("F99", "[4]", "[0,16]")), "isn't understood");
    refuses(file(&tensor("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,4]", "[0,16]")), "17 dimensions");
    refuses(file("{"), "isn't understood");
    refuses(file(&format!("{{\"t\":{}1", "[".repeat(10_000))), "isn't understood");
    // Two tensors over the same bytes.
    let twice = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},
        "b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    refuses(file(twice), "isn't understood");
}

#[test]
fn a_header_longer_than_the_file_or_the_limit_is_refused_before_it_is_read() {
    let with_len = |len: u64| [&len.to_le_bytes(), b"{".as_slice(), &[b' '; 100]].concat();
    refuses(with_len(102), "reach past the end of the file at 109");
    refuses(with_len(HEADER_BYTES_MAX), "reach past the end");
    refuses(with_len(u64::MAX), "it is not safetensors");
    refuses(vec![8, 0, 0, 0, 0, 0, 0, 0], "it is not safetensors");
}
