//! Which GPUs are here, asked of the driver that is loaded at run time. Called by `pagoda doctor` and by the choice of a device.
//!
//! Without a driver, or with one that does not work, the answer is an empty list or an error, never a panic.

use cudarc::driver::{result, sys};

use crate::status::{KernelError, Result, is_sticky};

/// One GPU as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// Index of the driver.
    pub ordinal: usize,
    /// Product name.
    pub name: String,
    /// Compute capability: (9, 0) is Hopper.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub num_sms: u32,
    /// All of its memory.
    pub memory_bytes: usize,
    /// Newest CUDA version the driver speaks: 13000 is 13.0.
    pub driver_version: u32,
}

/// Versions of the CUDA runtime inside this binary and of the driver below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// Of the runtime linked into this binary: 13000 is 13.0.
    pub runtime_version: i32,
    /// Newest CUDA that the driver speaks; 0 without a driver.
    pub driver_version: i32,
}

/// The GPUs of this machine; empty without a driver.
///
/// # Errors
/// `Driver` when there is a driver that refuses to start or to describe a device.
pub fn probe() -> Result<Vec<GpuInfo>> {
    // SAFETY: only opens and closes the driver's library; its initialisers are NVIDIA's.
    if !unsafe { sys::is_culib_present() } {
        return Ok(Vec::new());
    }
    match result::init() {
        Ok(()) => {}
        Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE | sys::CUresult::CUDA_ERROR_STUB_LIBRARY)) => return Ok(Vec::new()),
        Err(error) => return Err(driver_error("cuInit", error)),
    }
    let mut driver_version = 0;
    // SAFETY: the driver is initialised and writes one int to the pointer it is given.
    let answer = unsafe { sys::cuDriverGetVersion(&mut driver_version) };
    answer.result().map_err(|e| driver_error("cuDriverGetVersion", e))?;
    let count = result::device::get_count().map_err(|e| driver_error("cuDeviceGetCount", e))?;
    (0..count).map(|ordinal| describe(ordinal, driver_version.unsigned_abs())).collect()
}

fn describe(ordinal: i32, driver_version: u32) -> Result<GpuInfo> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
    };
    let device = result::device::get(ordinal).map_err(|e| driver_error("cuDeviceGet", e))?;
    let attribute = |which| {
        // SAFETY: `device` came from `device::get`.
        let value = unsafe { result::device::get_attribute(device, which) };
        value.map(i32::unsigned_abs).map_err(|e| driver_error("cuDeviceGetAttribute", e))
    };
    // SAFETY: `device` came from `device::get`.
    let memory = unsafe { result::device::total_mem(device) };
    Ok(GpuInfo {
        ordinal: ordinal.unsigned_abs() as usize,
        name: result::device::get_name(device).map_err(|e| driver_error("cuDeviceGetName", e))?,
        compute_capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_sms: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: memory.map_err(|e| driver_error("cuDeviceTotalMem", e))?,
        driver_version,
    })
}

pub(crate) fn driver_error(call: &str, error: result::DriverError) -> KernelError {
    let code = error.0 as u32;
    match is_sticky(code) {
        true => KernelError::Lost { call: call.into(), code, text: format!("{:?}", error.0) },
        false => KernelError::Driver(format!("{call}: {error:?}")),
    }
}

/// What keeps `gpu` from running this binary's kernels: a driver older than the runtime linked in.
pub(crate) fn check_driver(gpu: &GpuInfo, runtime_version: i32) -> Result<()> {
    // A driver runs every runtime of its own major version (CUDA minor version compatibility).
    if gpu.driver_version / 1000 >= runtime_version.unsigned_abs() / 1000 {
        return Ok(());
    }
    let dotted = |version: u32| format!("{}.{}", version / 1000, version % 1000 / 10);
    let (has, needs) = (dotted(gpu.driver_version), dotted(runtime_version.unsigned_abs() / 1000 * 1000));
    Err(KernelError::Driver(format!("the NVIDIA driver speaks CUDA {has}, this binary needs {needs} or later: update the driver")))
}

/// Versions of the linked runtime and of the driver.
///
/// # Errors
/// `NotBuilt` without kernels; `Cuda` when the runtime does not answer.
#[cfg(have_cuda_kernels)]
pub fn runtime_info() -> Result<RuntimeInfo> {
    let mut info = crate::sys::pagoda_runtime_info { runtime_version: 0, driver_version: 0 };
    // SAFETY: writes one struct to the pointer, which is valid for the call.
    let status = unsafe { crate::sys::pagoda_get_runtime_info(&mut info) };
    crate::status::check("runtime_info", status, String::new)?;
    Ok(RuntimeInfo { runtime_version: info.runtime_version, driver_version: info.driver_version })
}

/// Versions of the linked runtime and of the driver.
///
/// # Errors
/// `NotBuilt`: this binary holds no runtime.
#[cfg(not(have_cuda_kernels))]
pub fn runtime_info() -> Result<RuntimeInfo> {
    Err(KernelError::NotBuilt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_answers_on_any_machine() {
        for gpu in probe().expect("a driver that is there works") {
            assert!(!gpu.name.is_empty() && gpu.memory_bytes > 0 && gpu.compute_capability.0 > 0, "{gpu:?}");
        }
    }

    #[test]
    fn an_old_driver_is_refused_in_words() {
        let gpu = |driver_version| GpuInfo {
            ordinal: 0,
            name: "x".into(),
            compute_capability: (9, 0),
            num_sms: 1,
            memory_bytes: 1,
            driver_version,
        };
        assert_eq!(check_driver(&gpu(13000), 13020), Ok(()));
        let message = check_driver(&gpu(12080), 13000).expect_err("too old").to_string();
        assert!(message.contains("speaks CUDA 12.8, this binary needs 13.0 or later"), "{message}");
    }

    #[test]
    fn runtime_info_is_there_exactly_with_kernels() {
        match runtime_info() {
            Ok(info) => assert!(crate::available() && info.runtime_version >= 12000, "{info:?}"),
            Err(error) => assert!(!crate::available() && error == KernelError::NotBuilt, "{error}"),
        }
    }
}
