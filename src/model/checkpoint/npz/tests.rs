use std::path::Path;
use std::sync::Arc;

use zip::CompressionMethod;

use super::super::fixtures::{BIAS, WEIGHT, f32s, zip};
use super::super::number::Float;
use super::super::{Head, parse_head};
use super::*;

/// An `.npy` file with a header as it stands.
fn npy(header: &str, numbers: &[u8]) -> Vec<u8> {
    let len = (header.len() as u16).to_le_bytes();
    [NPY_MAGIC, &[1, 0], &len, header.as_bytes(), numbers].concat()
}

fn header(shape: &str) -> String {
    format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")
}

fn head_of(weight: &[u8], method: CompressionMethod) -> Result<Head, ReadError> {
    let bias = npy(&header("(3,)"), &f32s(&BIAS));
    let file = zip(&[("W.npy", weight), ("b.npy", &bias)], method);
    parse_head(file, Path::new("head.npz"))
}

#[track_caller]
fn refuses(weight: &[u8], reason: &str) {
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let error = head_of(weight, method).unwrap_err().to_string();
        assert!(error.contains("`W.npy`") && error.contains(reason), "{error}");
    }
}

#[test]
fn headers_are_understood() {
    let expected = Header {
        shape: vec![2, 3],
        column_major: true,
        dtype: Dtype::Float(Float::F64),
        byte_order: ByteOrder::Big,
    };
    for text in [
        "{'descr': '>f8', 'fortran_order': True, 'shape': (2, 3), }          \n",
        "{'descr':'>f8','fortran_order':True,'shape':(2,3)}",
        "{\"shape\": (2L, 3L,), \"descr\": \">f8\", \"fortran_order\": True}\n",
    ] {
        assert_eq!(parse_header(text).as_ref(), Some(&expected), "{text}");
    }
    for (shape, sizes) in [("()", vec![]), ("(7,)", vec![7]), ("(0, 4)", vec![0, 4])] {
        assert_eq!(parse_header(&header(shape)).unwrap().shape, sizes);
    }
}

#[test]
fn what_is_no_header_is_not_understood() {
    for text in [
        "",
        "{}",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'more': 1}",
        "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (+2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3) x}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, , 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 99999999999999999999)}",
        "{'descr': '<\\x66', 'fortran_order': False, 'shape': (2, 3)}",
        &header(&format!("({})", "1, ".repeat(65))),
        "__import__('os').system('true')",
    ] {
        assert_eq!(parse_header(text), None, "{text}");
    }
}

#[test]
fn an_array_must_be_as_long_as_its_header_says() {
    let numbers = f32s(&WEIGHT);
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let head = head_of(&npy(&header("(2, 3)"), &numbers), method).unwrap();
        assert_eq!(head.weight, WEIGHT);
    }
    for shape in ["(1, 3)", "(3, 3)", "(4611686018427387904, 4611686018427387904)", "(0, 3)"] {
        refuses(&npy(&header(shape), &numbers), "can't have");
    }
    refuses(b"", "too early");
    refuses(b"\x93NUMPY\x01\x00\xff\xff", "65535 bytes");
    refuses(b"\x93NUMPY\x04\x00", "unknown version");
    refuses(b"something else", "no .npy file");
    refuses(&npy("{}", b""), "isn't understood: `{}`");
}

#[test]
fn a_deflate_bomb_is_refused_without_inflating_it() {
    // 512 MiB of zeros in half a MiB: a shape that fits, and more than any head has.
    const SIZE: usize = 512 << 20;
    let mut bytes = npy(&header(&format!("({}, 3)", SIZE / 12)), b"");
    let start = bytes.len();
    bytes.resize(start + SIZE / 12 * 12, 0);
    let error = head_of(&bytes, CompressionMethod::Deflated).unwrap_err().to_string();
    assert!(error.contains("`W.npy`") && error.contains("too large"), "{error}");
}

#[test]
fn packed_numbers_have_a_checksum_too() {
    let weight = npy(&header("(2, 3)"), &f32s(&WEIGHT));
    let file = zip(&[("W.npy", &weight)], CompressionMethod::Deflated);
    // The checksum stands in the directory, 16 bytes behind its mark.
    let at = file.windows(4).position(|window| window == b"PK\x01\x02").unwrap() + 16;
    let mut damaged = file.clone();
    damaged[at] ^= 1;
    let read = |file| {
        let input = Arc::new(Input::of_bytes(file, Path::new("x")));
        let archive = Archive::open(&input)?;
        let arrays = read_index(&input, &archive)?;
        read(&input, &archive, &arrays[0], 100)
    };
    assert_eq!(read(file).unwrap(), WEIGHT);
    let error = read(damaged).unwrap_err().to_string();
    assert!(error.contains("invalid checksum"), "{error}");
}
