//! A kernel that reads outside its memory: the fault shows as a lost context, in that call or a later one, and nothing hangs. A test binary
//! of its own, because the context is of no use afterwards. Says so where there is no GPU.
#![allow(clippy::print_stdout, unsafe_code)]

use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::step::scatter_ints;
use pagoda_kernels::{DeviceMemory, Gpu, KernelError};

#[test]
fn an_illegal_address_loses_the_context() {
    if !pagoda_kernels::available() || pagoda_kernels::probe().is_ok_and(|gpus| gpus.is_empty()) {
        println!("skipped: no GPU, or built without kernels");
        return;
    }
    let gpu = Gpu::open(0).expect("a GPU");
    let good = DeviceMemory::zeroed(&gpu, 4096).expect("memory");
    // SAFETY: a lie, and the point of this test: nothing is mapped there. Only the GPU's context suffers.
    let bad = unsafe { DeviceBytes::new(1 << 12, 4096) };
    let launched = gpu.stream().and_then(|stream| scatter_ints(good.bytes(), bad, good.bytes(), 1024, stream));
    let error = launched.and_then(|()| gpu.synchronize()).expect_err("an illegal address");
    assert!(matches!(error, KernelError::Lost { code: 700, .. }), "{error}");
    println!("{error}");
    let mut host = [0u8; 16];
    let later = gpu.copy_to_host(&mut host, good.bytes()).expect_err("the context is lost");
    assert!(matches!(later, KernelError::Lost { .. }), "{later}");
    drop((good, gpu));
}
