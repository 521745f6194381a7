//! The memory of programs whose threads hand large data to each other.
#![expect(unsafe_code, reason = "the heap of the C library is set up by a raw call")]

use nix::libc;

/// Memory that each thread's heap keeps, for what it allocates next.
const KEPT_BYTES: libc::c_int = 32 << 20;
/// Larger allocations are mappings of their own.
const MAPPED_BYTES: libc::c_int = 4 << 20;

/// Keeps freed memory for the next allocation, up to 32 MiB for each thread that allocates.
///
/// One thread frees here what another one took. The C library gives such memory back to the kernel
/// piece by piece, only to fault it in again: a sixth of the work of a conversion. A program
/// that lives long and idles does better without this.
pub fn keep_freed() {
    // SAFETY: mallopt takes two numbers, and may be called at any time. That it refuses them
    // (it returns 0 then) costs speed alone.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
    }
}
