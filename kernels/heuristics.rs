//! Shape to launch configuration. Pure, so that it is tested without a GPU.

/// 16-byte vectors a thread of a row kernel holds at most (`kMaxVecs` in cuda/norm.cuh).
const MAX_VECS_PER_THREAD: usize = 4;
const WARP: usize = 32;
const MAX_THREADS: usize = 1024;

/// Threads of the CTA that normalises one row of `row_bytes` bytes; None when a row is no whole number of vectors or too long.
///
/// One vector a thread while that fits, else as many vectors as needed, spread evenly.
pub fn rms_norm_threads(row_bytes: usize) -> Option<u32> {
    if row_bytes == 0 || !row_bytes.is_multiple_of(16) || row_bytes / 16 > MAX_VECS_PER_THREAD * MAX_THREADS {
        return None;
    }
    let num_vecs = row_bytes / 16;
    let vecs_per_thread = num_vecs.div_ceil(MAX_THREADS);
    let threads = num_vecs.div_ceil(vecs_per_thread).next_multiple_of(WARP);
    u32::try_from(threads).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rms_norm_threads_cover_the_row() {
        for row_bytes in (16..=MAX_VECS_PER_THREAD * MAX_THREADS * 16).step_by(16) {
            let threads = rms_norm_threads(row_bytes).expect("supported") as usize;
            assert!(threads.is_multiple_of(WARP) && threads <= MAX_THREADS, "{row_bytes}: {threads}");
            assert!(row_bytes / 16 <= threads * MAX_VECS_PER_THREAD, "{row_bytes}: {threads}");
        }
        for bad in [0, 8, 24, MAX_VECS_PER_THREAD * MAX_THREADS * 16 + 16] {
            assert_eq!(rms_norm_threads(bad), None, "{bad}");
        }
    }
}
