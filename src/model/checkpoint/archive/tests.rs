use std::path::Path;

use super::super::fixtures::zip;
use super::*;

/// Where a field stands in an entry of the directory.
const PACKED_SIZE: usize = 20;
const SIZE: usize = 24;
const FLAGS: usize = 8;
const METHOD: usize = 10;
const NAME: usize = 46;
const HEADER: usize = 42;

fn open(bytes: Vec<u8>) -> Result<Archive, ReadError> {
    Archive::open(&Arc::new(Input::of_bytes(bytes, Path::new("x.zip"))))
}

/// Two entries, `a` and `b`, of ten bytes each.
fn two() -> Vec<u8> {
    zip(&[("a", b"0123456789"), ("b", b"abcdefghij")], CompressionMethod::Stored)
}

/// Overwrites a field of the directory's entry for `a`, the first.
fn forged(field: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = two();
    let start = file.windows(4).position(|window| window == b"PK\x01\x02").unwrap() + field;
    file[start..start + bytes.len()].copy_from_slice(bytes);
    file
}

#[track_caller]
fn refuses(bytes: Vec<u8>, reason: &str) {
    let error = open(bytes).unwrap_err().to_string();
    assert!(error.contains(reason), "{error}");
}

#[test]
fn entries_are_listed_and_read() {
    let archive = open(two()).unwrap();
    let names: Vec<_> = archive.entries().iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let (index, entry) = archive.find("b").unwrap();
    assert_eq!((entry.len_bytes, entry.stored), (10, true));
    assert_eq!(archive.read(index, 10).unwrap(), b"abcdefghij");
    let error = archive.read(index, 9).unwrap_err().to_string();
    assert!(error.contains("larger than the 9 bytes"), "{error}");
    assert!(archive.find("c").is_none());
}

#[test]
fn sizes_that_lie_are_refused() {
    let both = |size: u32| [size.to_le_bytes(), size.to_le_bytes()].concat();
    // Into the next entry, past the directory, past the file.
    refuses(forged(PACKED_SIZE, &both(11)), "overlap");
    refuses(forged(PACKED_SIZE, &both(100)), "overlap");
    refuses(forged(PACKED_SIZE, &both(0xffff_fff0)), "overlap");
    // 10 bytes that are to be 11, or a gigabyte.
    refuses(forged(SIZE, &11_u32.to_le_bytes()), "can't be 11 bytes");
    let mut bomb = forged(SIZE, &(1_u32 << 30).to_le_bytes());
    let at = bomb.windows(4).position(|window| window == b"PK\x01\x02").unwrap() + METHOD;
    bomb[at] = 8;
    refuses(bomb, "can't be 1073741824 bytes");
}

#[test]
fn two_entries_in_one_place_or_of_one_name_are_refused() {
    let mut file = two();
    let first = file.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    // The second entry's local header becomes that of the first.
    let second = first + NAME + 1;
    assert_eq!(&file[second..second + 4], b"PK\x01\x02");
    file[second + HEADER..second + HEADER + 4].copy_from_slice(&[0; 4]);
    refuses(file, "overlap");
    refuses(forged(NAME, b"b"), "same name");
}

#[test]
fn what_is_not_read_is_refused() {
    refuses(forged(FLAGS, &[1]), "encrypted");
    refuses(forged(METHOD, &[12]), "is packed with");
    refuses(forged(NAME, b"\xff"), "isn't UTF-8");
    refuses(two()[..30].to_vec(), "truncated");
    let mut shifted = vec![0; 7];
    shifted.extend(two());
    refuses(shifted, "zip directory");
}
