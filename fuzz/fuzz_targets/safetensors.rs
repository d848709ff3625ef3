//! Checkpoints in the safetensors format.

#![no_main]

mod allocations;
mod checkpoint;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if !bytes.starts_with(b"PK") {
        checkpoint::read_all(bytes.to_vec());
    }
});
