//! Counts the bytes that are allocated, so that a target can insist that they are in proportion to
//! the file's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What a reader may take whatever the file: buffers, and a zip directory that a small file can
/// claim to be as long as 65,535 entries.
const FIXED_BYTES: usize = 40 << 20;

/// What a reader may take for each byte of the file. The worst is a pickle of one-byte opcodes,
/// each of which makes an object.
pub const BYTES_PER_BYTE: usize = 300;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call is handed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(place, layout) }
    }
}

/// Runs `work` and panics when it took more memory than a file of this length justifies.
pub fn in_proportion(file_bytes: usize, bytes_per_byte: usize, work: impl FnOnce()) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    work();
    let taken = PEAK.load(Relaxed) - before;
    let allowed = FIXED_BYTES + bytes_per_byte * file_bytes;
    assert!(taken <= allowed, "{taken} bytes were taken to read {file_bytes}");
}
