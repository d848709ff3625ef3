//! Heads as `.npz` files.

#![no_main]

mod allocations;

use std::path::Path;

use allocations::{BYTES_PER_BYTE, in_proportion};
use capvec::model::checkpoint::parse_head;
use libfuzzer_sys::fuzz_target;

/// What may be taken for each byte beyond that: a deflate stream can grow by a factor of 1032, its
/// halves become floats of twice the size, and a vector that grows is there twice, up to half of it
/// empty.
const INFLATED: usize = 1032 * 2 * 4;

fuzz_target!(|bytes: &[u8]| {
    if !bytes.starts_with(b"PK") {
        return;
    }
    in_proportion(bytes.len(), BYTES_PER_BYTE + INFLATED, || {
        if let Ok(head) = parse_head(bytes.to_vec(), Path::new("head.npz")) {
            assert_eq!(head.weight.len(), head.hidden * head.dim);
            assert_eq!(head.bias.len(), head.dim);
        }
    });
});
