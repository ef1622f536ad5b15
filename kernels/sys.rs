//! Declarations of include/pagoda.h, made by bindgen (feature `bindgen`) and committed, so that a build needs no libclang.
//! Not edited by hand: tests/bindings.rs compares it with a fresh one and, with PAGODA_BLESS=1, rewrites it.
#![allow(missing_docs, non_camel_case_types, non_upper_case_globals)]

#[repr(C)]
#[derive(Debug)]
pub struct CUstream_st {
    _unused: [u8; 0],
}
pub type pagoda_stream = *mut CUstream_st;
pub const PAGODA_OK: pagoda_status = 0;
pub const PAGODA_INVALID_ARGUMENT: pagoda_status = 1;
pub const PAGODA_UNSUPPORTED: pagoda_status = 2;
pub const PAGODA_CUDA_ERROR: pagoda_status = 65536;
pub const PAGODA_STATUS_MAX: pagoda_status = 2147483647;
pub type pagoda_status = ::core::ffi::c_uint;
pub const PAGODA_F32: pagoda_dtype = 0;
pub const PAGODA_F16: pagoda_dtype = 1;
pub const PAGODA_BF16: pagoda_dtype = 2;
pub type pagoda_dtype = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_runtime_info {
    pub runtime_version: i32,
    pub driver_version: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_runtime_info"][::core::mem::size_of::<pagoda_runtime_info>() - 8usize];
    ["Alignment of pagoda_runtime_info"][::core::mem::align_of::<pagoda_runtime_info>() - 4usize];
    ["Offset of field: pagoda_runtime_info::runtime_version"][::core::mem::offset_of!(pagoda_runtime_info, runtime_version) - 0usize];
    ["Offset of field: pagoda_runtime_info::driver_version"][::core::mem::offset_of!(pagoda_runtime_info, driver_version) - 4usize];
};
unsafe extern "C" {
    pub fn pagoda_get_runtime_info(info: *mut pagoda_runtime_info) -> pagoda_status;
}
unsafe extern "C" {
    pub fn pagoda_status_string(status: pagoda_status) -> *const ::core::ffi::c_char;
}
pub const PAGODA_SKINNY_GEMV: pagoda_skinny_kernel = 0;
pub const PAGODA_SKINNY_SM80: pagoda_skinny_kernel = 1;
pub const PAGODA_SKINNY_SM90: pagoda_skinny_kernel = 2;
pub type pagoda_skinny_kernel = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_skinny_gemm_params {
    pub out: *mut ::core::ffi::c_void,
    pub x: *const ::core::ffi::c_void,
    pub w: *const ::core::ffi::c_void,
    pub bias: *const f32,
    pub residual: *const ::core::ffi::c_void,
    pub num_tokens: i32,
    pub n: i32,
    pub k: i32,
    pub ld_out: i32,
    pub out_dtype: pagoda_dtype,
    pub gated: i32,
    pub kernel: pagoda_skinny_kernel,
    pub block_n: i32,
    pub split_k: i32,
    pub num_stages: i32,
    pub max_ctas: i32,
    pub programmatic: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_skinny_gemm_params"][::core::mem::size_of::<pagoda_skinny_gemm_params>() - 88usize];
    ["Alignment of pagoda_skinny_gemm_params"][::core::mem::align_of::<pagoda_skinny_gemm_params>() - 8usize];
    ["Offset of field: pagoda_skinny_gemm_params::out"][::core::mem::offset_of!(pagoda_skinny_gemm_params, out) - 0usize];
    ["Offset of field: pagoda_skinny_gemm_params::x"][::core::mem::offset_of!(pagoda_skinny_gemm_params, x) - 8usize];
    ["Offset of field: pagoda_skinny_gemm_params::w"][::core::mem::offset_of!(pagoda_skinny_gemm_params, w) - 16usize];
    ["Offset of field: pagoda_skinny_gemm_params::bias"][::core::mem::offset_of!(pagoda_skinny_gemm_params, bias) - 24usize];
    ["Offset of field: pagoda_skinny_gemm_params::residual"][::core::mem::offset_of!(pagoda_skinny_gemm_params, residual) - 32usize];
    ["Offset of field: pagoda_skinny_gemm_params::num_tokens"][::core::mem::offset_of!(pagoda_skinny_gemm_params, num_tokens) - 40usize];
    ["Offset of field: pagoda_skinny_gemm_params::n"][::core::mem::offset_of!(pagoda_skinny_gemm_params, n) - 44usize];
    ["Offset of field: pagoda_skinny_gemm_params::k"][::core::mem::offset_of!(pagoda_skinny_gemm_params, k) - 48usize];
    ["Offset of field: pagoda_skinny_gemm_params::ld_out"][::core::mem::offset_of!(pagoda_skinny_gemm_params, ld_out) - 52usize];
    ["Offset of field: pagoda_skinny_gemm_params::out_dtype"][::core::mem::offset_of!(pagoda_skinny_gemm_params, out_dtype) - 56usize];
    ["Offset of field: pagoda_skinny_gemm_params::gated"][::core::mem::offset_of!(pagoda_skinny_gemm_params, gated) - 60usize];
    ["Offset of field: pagoda_skinny_gemm_params::kernel"][::core::mem::offset_of!(pagoda_skinny_gemm_params, kernel) - 64usize];
    ["Offset of field: pagoda_skinny_gemm_params::block_n"][::core::mem::offset_of!(pagoda_skinny_gemm_params, block_n) - 68usize];
    ["Offset of field: pagoda_skinny_gemm_params::split_k"][::core::mem::offset_of!(pagoda_skinny_gemm_params, split_k) - 72usize];
    ["Offset of field: pagoda_skinny_gemm_params::num_stages"][::core::mem::offset_of!(pagoda_skinny_gemm_params, num_stages) - 76usize];
    ["Offset of field: pagoda_skinny_gemm_params::max_ctas"][::core::mem::offset_of!(pagoda_skinny_gemm_params, max_ctas) - 80usize];
    ["Offset of field: pagoda_skinny_gemm_params::programmatic"]
        [::core::mem::offset_of!(pagoda_skinny_gemm_params, programmatic) - 84usize];
};
unsafe extern "C" {
    pub fn pagoda_skinny_gemm(params: *const pagoda_skinny_gemm_params, stream: pagoda_stream) -> pagoda_status;
}
pub const PAGODA_NORM: pagoda_norm_kind = 0;
pub const PAGODA_ADD_NORM: pagoda_norm_kind = 1;
pub const PAGODA_NORM_ADD: pagoda_norm_kind = 2;
pub type pagoda_norm_kind = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_rms_norm_params {
    pub out: *mut ::core::ffi::c_void,
    pub residual: *mut ::core::ffi::c_void,
    pub x: *const ::core::ffi::c_void,
    pub weight: *const f32,
    pub num_tokens: i64,
    pub hidden: i32,
    pub num_threads: i32,
    pub eps: f32,
    pub dtype: pagoda_dtype,
    pub kind: pagoda_norm_kind,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_rms_norm_params"][::core::mem::size_of::<pagoda_rms_norm_params>() - 64usize];
    ["Alignment of pagoda_rms_norm_params"][::core::mem::align_of::<pagoda_rms_norm_params>() - 8usize];
    ["Offset of field: pagoda_rms_norm_params::out"][::core::mem::offset_of!(pagoda_rms_norm_params, out) - 0usize];
    ["Offset of field: pagoda_rms_norm_params::residual"][::core::mem::offset_of!(pagoda_rms_norm_params, residual) - 8usize];
    ["Offset of field: pagoda_rms_norm_params::x"][::core::mem::offset_of!(pagoda_rms_norm_params, x) - 16usize];
    ["Offset of field: pagoda_rms_norm_params::weight"][::core::mem::offset_of!(pagoda_rms_norm_params, weight) - 24usize];
    ["Offset of field: pagoda_rms_norm_params::num_tokens"][::core::mem::offset_of!(pagoda_rms_norm_params, num_tokens) - 32usize];
    ["Offset of field: pagoda_rms_norm_params::hidden"][::core::mem::offset_of!(pagoda_rms_norm_params, hidden) - 40usize];
    ["Offset of field: pagoda_rms_norm_params::num_threads"][::core::mem::offset_of!(pagoda_rms_norm_params, num_threads) - 44usize];
    ["Offset of field: pagoda_rms_norm_params::eps"][::core::mem::offset_of!(pagoda_rms_norm_params, eps) - 48usize];
    ["Offset of field: pagoda_rms_norm_params::dtype"][::core::mem::offset_of!(pagoda_rms_norm_params, dtype) - 52usize];
    ["Offset of field: pagoda_rms_norm_params::kind"][::core::mem::offset_of!(pagoda_rms_norm_params, kind) - 56usize];
};
unsafe extern "C" {
    pub fn pagoda_rms_norm(params: *const pagoda_rms_norm_params, stream: pagoda_stream) -> pagoda_status;
}
