//! Reads everything in a checkpoint.

use std::path::Path;

use capvec::model::checkpoint::Checkpoint;

use crate::allocations::{BYTES_PER_BYTE, in_proportion};

/// How many tensors are read: those of one file may all be the same numbers.
const TENSORS_MAX: usize = 16;

pub fn read_all(bytes: Vec<u8>) {
    let file_bytes = bytes.len();
    in_proportion(file_bytes, BYTES_PER_BYTE, || {
        let Ok(file) = Checkpoint::parse(bytes, Path::new("weights")) else {
            return;
        };
        for name in file.names().take(TENSORS_MAX) {
            let shape = &file.get(name).expect("a listed tensor can be got").shape;
            if let Ok(numbers) = file.read(name) {
                assert_eq!(numbers.len(), shape.iter().product::<usize>());
                assert!(numbers.len() * 2 <= file_bytes);
            }
        }
    });
}
