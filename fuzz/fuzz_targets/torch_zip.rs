//! Checkpoints in torch's zip format.
//!
//! A fuzzer hardly ever gets a checksum right, so a file that isn't a zip file is taken for the
//! pickle of one, with three storages beside it.

#![no_main]

mod allocations;
mod checkpoint;
mod stored_zip;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if bytes.starts_with(b"PK") {
        checkpoint::read_all(bytes.to_vec());
        return;
    }
    let numbers = [0; 64];
    let file = stored_zip::write(&[
        ("m/data.pkl", bytes),
        ("m/data/0", &numbers),
        ("m/data/1", &numbers[..24]),
        ("m/data/2", &[]),
    ]);
    checkpoint::read_all(file);
});
