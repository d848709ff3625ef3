//! Heads as pickles.

#![no_main]

mod allocations;

use std::path::Path;

use capvec::model::checkpoint::parse_head;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Other formats have targets of their own.
    if bytes.first() != Some(&0x80) {
        return;
    }
    allocations::in_proportion(bytes.len(), allocations::BYTES_PER_BYTE, || {
        if let Ok(head) = parse_head(bytes.to_vec(), Path::new("head.pkl")) {
            assert_eq!(head.weight.len(), head.hidden * head.dim);
            assert_eq!(head.bias.len(), head.dim);
        }
    });
});
