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
pub const PAGODA_E4M3: pagoda_dtype = 3;
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
    pub offsets: *const i32,
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
    pub num_groups: i32,
    pub block_tokens: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_skinny_gemm_params"][::core::mem::size_of::<pagoda_skinny_gemm_params>() - 104usize];
    ["Alignment of pagoda_skinny_gemm_params"][::core::mem::align_of::<pagoda_skinny_gemm_params>() - 8usize];
    ["Offset of field: pagoda_skinny_gemm_params::out"][::core::mem::offset_of!(pagoda_skinny_gemm_params, out) - 0usize];
    ["Offset of field: pagoda_skinny_gemm_params::x"][::core::mem::offset_of!(pagoda_skinny_gemm_params, x) - 8usize];
    ["Offset of field: pagoda_skinny_gemm_params::w"][::core::mem::offset_of!(pagoda_skinny_gemm_params, w) - 16usize];
    ["Offset of field: pagoda_skinny_gemm_params::bias"][::core::mem::offset_of!(pagoda_skinny_gemm_params, bias) - 24usize];
    ["Offset of field: pagoda_skinny_gemm_params::residual"][::core::mem::offset_of!(pagoda_skinny_gemm_params, residual) - 32usize];
    ["Offset of field: pagoda_skinny_gemm_params::offsets"][::core::mem::offset_of!(pagoda_skinny_gemm_params, offsets) - 40usize];
    ["Offset of field: pagoda_skinny_gemm_params::num_tokens"][::core::mem::offset_of!(pagoda_skinny_gemm_params, num_tokens) - 48usize];
    ["Offset of field: pagoda_skinny_gemm_params::n"][::core::mem::offset_of!(pagoda_skinny_gemm_params, n) - 52usize];
    ["Offset of field: pagoda_skinny_gemm_params::k"][::core::mem::offset_of!(pagoda_skinny_gemm_params, k) - 56usize];
    ["Offset of field: pagoda_skinny_gemm_params::ld_out"][::core::mem::offset_of!(pagoda_skinny_gemm_params, ld_out) - 60usize];
    ["Offset of field: pagoda_skinny_gemm_params::out_dtype"][::core::mem::offset_of!(pagoda_skinny_gemm_params, out_dtype) - 64usize];
    ["Offset of field: pagoda_skinny_gemm_params::gated"][::core::mem::offset_of!(pagoda_skinny_gemm_params, gated) - 68usize];
    ["Offset of field: pagoda_skinny_gemm_params::kernel"][::core::mem::offset_of!(pagoda_skinny_gemm_params, kernel) - 72usize];
    ["Offset of field: pagoda_skinny_gemm_params::block_n"][::core::mem::offset_of!(pagoda_skinny_gemm_params, block_n) - 76usize];
    ["Offset of field: pagoda_skinny_gemm_params::split_k"][::core::mem::offset_of!(pagoda_skinny_gemm_params, split_k) - 80usize];
    ["Offset of field: pagoda_skinny_gemm_params::num_stages"][::core::mem::offset_of!(pagoda_skinny_gemm_params, num_stages) - 84usize];
    ["Offset of field: pagoda_skinny_gemm_params::max_ctas"][::core::mem::offset_of!(pagoda_skinny_gemm_params, max_ctas) - 88usize];
    ["Offset of field: pagoda_skinny_gemm_params::programmatic"]
        [::core::mem::offset_of!(pagoda_skinny_gemm_params, programmatic) - 92usize];
    ["Offset of field: pagoda_skinny_gemm_params::num_groups"][::core::mem::offset_of!(pagoda_skinny_gemm_params, num_groups) - 96usize];
    ["Offset of field: pagoda_skinny_gemm_params::block_tokens"]
        [::core::mem::offset_of!(pagoda_skinny_gemm_params, block_tokens) - 100usize];
};
unsafe extern "C" {
    pub fn pagoda_skinny_gemm(params: *const pagoda_skinny_gemm_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_wide_gemm_params {
    pub out: *mut ::core::ffi::c_void,
    pub x: *const ::core::ffi::c_void,
    pub w: *const ::core::ffi::c_void,
    pub bias: *const f32,
    pub offsets: *const i32,
    pub num_rows: i32,
    pub num_groups: i32,
    pub n: i32,
    pub k: i32,
    pub ld_out: i32,
    pub gated: i32,
    pub block_rows: i32,
    pub block_cols: i32,
    pub cluster: i32,
    pub num_ranges: i32,
    pub raster: i32,
    pub max_ctas: i32,
    pub programmatic: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_wide_gemm_params"][::core::mem::size_of::<pagoda_wide_gemm_params>() - 96usize];
    ["Alignment of pagoda_wide_gemm_params"][::core::mem::align_of::<pagoda_wide_gemm_params>() - 8usize];
    ["Offset of field: pagoda_wide_gemm_params::out"][::core::mem::offset_of!(pagoda_wide_gemm_params, out) - 0usize];
    ["Offset of field: pagoda_wide_gemm_params::x"][::core::mem::offset_of!(pagoda_wide_gemm_params, x) - 8usize];
    ["Offset of field: pagoda_wide_gemm_params::w"][::core::mem::offset_of!(pagoda_wide_gemm_params, w) - 16usize];
    ["Offset of field: pagoda_wide_gemm_params::bias"][::core::mem::offset_of!(pagoda_wide_gemm_params, bias) - 24usize];
    ["Offset of field: pagoda_wide_gemm_params::offsets"][::core::mem::offset_of!(pagoda_wide_gemm_params, offsets) - 32usize];
    ["Offset of field: pagoda_wide_gemm_params::num_rows"][::core::mem::offset_of!(pagoda_wide_gemm_params, num_rows) - 40usize];
    ["Offset of field: pagoda_wide_gemm_params::num_groups"][::core::mem::offset_of!(pagoda_wide_gemm_params, num_groups) - 44usize];
    ["Offset of field: pagoda_wide_gemm_params::n"][::core::mem::offset_of!(pagoda_wide_gemm_params, n) - 48usize];
    ["Offset of field: pagoda_wide_gemm_params::k"][::core::mem::offset_of!(pagoda_wide_gemm_params, k) - 52usize];
    ["Offset of field: pagoda_wide_gemm_params::ld_out"][::core::mem::offset_of!(pagoda_wide_gemm_params, ld_out) - 56usize];
    ["Offset of field: pagoda_wide_gemm_params::gated"][::core::mem::offset_of!(pagoda_wide_gemm_params, gated) - 60usize];
    ["Offset of field: pagoda_wide_gemm_params::block_rows"][::core::mem::offset_of!(pagoda_wide_gemm_params, block_rows) - 64usize];
    ["Offset of field: pagoda_wide_gemm_params::block_cols"][::core::mem::offset_of!(pagoda_wide_gemm_params, block_cols) - 68usize];
    ["Offset of field: pagoda_wide_gemm_params::cluster"][::core::mem::offset_of!(pagoda_wide_gemm_params, cluster) - 72usize];
    ["Offset of field: pagoda_wide_gemm_params::num_ranges"][::core::mem::offset_of!(pagoda_wide_gemm_params, num_ranges) - 76usize];
    ["Offset of field: pagoda_wide_gemm_params::raster"][::core::mem::offset_of!(pagoda_wide_gemm_params, raster) - 80usize];
    ["Offset of field: pagoda_wide_gemm_params::max_ctas"][::core::mem::offset_of!(pagoda_wide_gemm_params, max_ctas) - 84usize];
    ["Offset of field: pagoda_wide_gemm_params::programmatic"][::core::mem::offset_of!(pagoda_wide_gemm_params, programmatic) - 88usize];
};
unsafe extern "C" {
    pub fn pagoda_wide_gemm(params: *const pagoda_wide_gemm_params, stream: pagoda_stream) -> pagoda_status;
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
    pub stream_dtype: pagoda_dtype,
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
    ["Offset of field: pagoda_rms_norm_params::stream_dtype"][::core::mem::offset_of!(pagoda_rms_norm_params, stream_dtype) - 52usize];
    ["Offset of field: pagoda_rms_norm_params::kind"][::core::mem::offset_of!(pagoda_rms_norm_params, kind) - 56usize];
};
unsafe extern "C" {
    pub fn pagoda_rms_norm(params: *const pagoda_rms_norm_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_resolve_tokens_params {
    pub token_ids: *mut i32,
    pub token_source: *const i32,
    pub last_tokens: *const i32,
    pub num_tokens: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_resolve_tokens_params"][::core::mem::size_of::<pagoda_resolve_tokens_params>() - 32usize];
    ["Alignment of pagoda_resolve_tokens_params"][::core::mem::align_of::<pagoda_resolve_tokens_params>() - 8usize];
    ["Offset of field: pagoda_resolve_tokens_params::token_ids"][::core::mem::offset_of!(pagoda_resolve_tokens_params, token_ids) - 0usize];
    ["Offset of field: pagoda_resolve_tokens_params::token_source"]
        [::core::mem::offset_of!(pagoda_resolve_tokens_params, token_source) - 8usize];
    ["Offset of field: pagoda_resolve_tokens_params::last_tokens"]
        [::core::mem::offset_of!(pagoda_resolve_tokens_params, last_tokens) - 16usize];
    ["Offset of field: pagoda_resolve_tokens_params::num_tokens"]
        [::core::mem::offset_of!(pagoda_resolve_tokens_params, num_tokens) - 24usize];
};
unsafe extern "C" {
    pub fn pagoda_resolve_tokens(params: *const pagoda_resolve_tokens_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_scatter_ints_params {
    pub dst: *mut i32,
    pub index: *const i32,
    pub values: *const i32,
    pub count: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_scatter_ints_params"][::core::mem::size_of::<pagoda_scatter_ints_params>() - 32usize];
    ["Alignment of pagoda_scatter_ints_params"][::core::mem::align_of::<pagoda_scatter_ints_params>() - 8usize];
    ["Offset of field: pagoda_scatter_ints_params::dst"][::core::mem::offset_of!(pagoda_scatter_ints_params, dst) - 0usize];
    ["Offset of field: pagoda_scatter_ints_params::index"][::core::mem::offset_of!(pagoda_scatter_ints_params, index) - 8usize];
    ["Offset of field: pagoda_scatter_ints_params::values"][::core::mem::offset_of!(pagoda_scatter_ints_params, values) - 16usize];
    ["Offset of field: pagoda_scatter_ints_params::count"][::core::mem::offset_of!(pagoda_scatter_ints_params, count) - 24usize];
};
unsafe extern "C" {
    pub fn pagoda_scatter_ints(params: *const pagoda_scatter_ints_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_gather_rows_params {
    pub out: *mut ::core::ffi::c_void,
    pub table: *const ::core::ffi::c_void,
    pub index: *const i32,
    pub num_rows: i32,
    pub num_table_rows: i32,
    pub cols: i32,
    pub scale: f32,
    pub out_dtype: pagoda_dtype,
    pub table_dtype: pagoda_dtype,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_gather_rows_params"][::core::mem::size_of::<pagoda_gather_rows_params>() - 48usize];
    ["Alignment of pagoda_gather_rows_params"][::core::mem::align_of::<pagoda_gather_rows_params>() - 8usize];
    ["Offset of field: pagoda_gather_rows_params::out"][::core::mem::offset_of!(pagoda_gather_rows_params, out) - 0usize];
    ["Offset of field: pagoda_gather_rows_params::table"][::core::mem::offset_of!(pagoda_gather_rows_params, table) - 8usize];
    ["Offset of field: pagoda_gather_rows_params::index"][::core::mem::offset_of!(pagoda_gather_rows_params, index) - 16usize];
    ["Offset of field: pagoda_gather_rows_params::num_rows"][::core::mem::offset_of!(pagoda_gather_rows_params, num_rows) - 24usize];
    ["Offset of field: pagoda_gather_rows_params::num_table_rows"]
        [::core::mem::offset_of!(pagoda_gather_rows_params, num_table_rows) - 28usize];
    ["Offset of field: pagoda_gather_rows_params::cols"][::core::mem::offset_of!(pagoda_gather_rows_params, cols) - 32usize];
    ["Offset of field: pagoda_gather_rows_params::scale"][::core::mem::offset_of!(pagoda_gather_rows_params, scale) - 36usize];
    ["Offset of field: pagoda_gather_rows_params::out_dtype"][::core::mem::offset_of!(pagoda_gather_rows_params, out_dtype) - 40usize];
    ["Offset of field: pagoda_gather_rows_params::table_dtype"][::core::mem::offset_of!(pagoda_gather_rows_params, table_dtype) - 44usize];
};
unsafe extern "C" {
    pub fn pagoda_gather_rows(params: *const pagoda_gather_rows_params, stream: pagoda_stream) -> pagoda_status;
}
pub const PAGODA_SILU: pagoda_activation = 0;
pub const PAGODA_GELU_TANH: pagoda_activation = 1;
pub const PAGODA_GELU: pagoda_activation = 2;
pub type pagoda_activation = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_gated_activation_params {
    pub out: *mut ::core::ffi::c_void,
    pub gate_up: *const ::core::ffi::c_void,
    pub num_tokens: i32,
    pub cols: i32,
    pub activation: pagoda_activation,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_gated_activation_params"][::core::mem::size_of::<pagoda_gated_activation_params>() - 32usize];
    ["Alignment of pagoda_gated_activation_params"][::core::mem::align_of::<pagoda_gated_activation_params>() - 8usize];
    ["Offset of field: pagoda_gated_activation_params::out"][::core::mem::offset_of!(pagoda_gated_activation_params, out) - 0usize];
    ["Offset of field: pagoda_gated_activation_params::gate_up"][::core::mem::offset_of!(pagoda_gated_activation_params, gate_up) - 8usize];
    ["Offset of field: pagoda_gated_activation_params::num_tokens"]
        [::core::mem::offset_of!(pagoda_gated_activation_params, num_tokens) - 16usize];
    ["Offset of field: pagoda_gated_activation_params::cols"][::core::mem::offset_of!(pagoda_gated_activation_params, cols) - 20usize];
    ["Offset of field: pagoda_gated_activation_params::activation"]
        [::core::mem::offset_of!(pagoda_gated_activation_params, activation) - 24usize];
};
unsafe extern "C" {
    pub fn pagoda_gated_activation(params: *const pagoda_gated_activation_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_soft_cap_params {
    pub x: *mut f32,
    pub count: i64,
    pub cap: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_soft_cap_params"][::core::mem::size_of::<pagoda_soft_cap_params>() - 24usize];
    ["Alignment of pagoda_soft_cap_params"][::core::mem::align_of::<pagoda_soft_cap_params>() - 8usize];
    ["Offset of field: pagoda_soft_cap_params::x"][::core::mem::offset_of!(pagoda_soft_cap_params, x) - 0usize];
    ["Offset of field: pagoda_soft_cap_params::count"][::core::mem::offset_of!(pagoda_soft_cap_params, count) - 8usize];
    ["Offset of field: pagoda_soft_cap_params::cap"][::core::mem::offset_of!(pagoda_soft_cap_params, cap) - 16usize];
};
unsafe extern "C" {
    pub fn pagoda_soft_cap(params: *const pagoda_soft_cap_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_add_bias_params {
    pub out: *mut ::core::ffi::c_void,
    pub bias: *const f32,
    pub num_tokens: i32,
    pub cols: i32,
    pub dtype: pagoda_dtype,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_add_bias_params"][::core::mem::size_of::<pagoda_add_bias_params>() - 32usize];
    ["Alignment of pagoda_add_bias_params"][::core::mem::align_of::<pagoda_add_bias_params>() - 8usize];
    ["Offset of field: pagoda_add_bias_params::out"][::core::mem::offset_of!(pagoda_add_bias_params, out) - 0usize];
    ["Offset of field: pagoda_add_bias_params::bias"][::core::mem::offset_of!(pagoda_add_bias_params, bias) - 8usize];
    ["Offset of field: pagoda_add_bias_params::num_tokens"][::core::mem::offset_of!(pagoda_add_bias_params, num_tokens) - 16usize];
    ["Offset of field: pagoda_add_bias_params::cols"][::core::mem::offset_of!(pagoda_add_bias_params, cols) - 20usize];
    ["Offset of field: pagoda_add_bias_params::dtype"][::core::mem::offset_of!(pagoda_add_bias_params, dtype) - 24usize];
};
unsafe extern "C" {
    pub fn pagoda_add_bias(params: *const pagoda_add_bias_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_rope_kv_params {
    pub qkv: *mut ::core::ffi::c_void,
    pub kv: *mut ::core::ffi::c_void,
    pub kv_scales: *const f32,
    pub positions: *const i32,
    pub slot_mapping: *const i32,
    pub cos: *const f32,
    pub sin: *const f32,
    pub q_norm: *const f32,
    pub k_norm: *const f32,
    pub num_tokens: i32,
    pub num_heads: i32,
    pub num_kv_heads: i32,
    pub head_dim: i32,
    pub rotary_dim: i32,
    pub interleaved: i32,
    pub block_size: i32,
    pub eps: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_rope_kv_params"][::core::mem::size_of::<pagoda_rope_kv_params>() - 104usize];
    ["Alignment of pagoda_rope_kv_params"][::core::mem::align_of::<pagoda_rope_kv_params>() - 8usize];
    ["Offset of field: pagoda_rope_kv_params::qkv"][::core::mem::offset_of!(pagoda_rope_kv_params, qkv) - 0usize];
    ["Offset of field: pagoda_rope_kv_params::kv"][::core::mem::offset_of!(pagoda_rope_kv_params, kv) - 8usize];
    ["Offset of field: pagoda_rope_kv_params::kv_scales"][::core::mem::offset_of!(pagoda_rope_kv_params, kv_scales) - 16usize];
    ["Offset of field: pagoda_rope_kv_params::positions"][::core::mem::offset_of!(pagoda_rope_kv_params, positions) - 24usize];
    ["Offset of field: pagoda_rope_kv_params::slot_mapping"][::core::mem::offset_of!(pagoda_rope_kv_params, slot_mapping) - 32usize];
    ["Offset of field: pagoda_rope_kv_params::cos"][::core::mem::offset_of!(pagoda_rope_kv_params, cos) - 40usize];
    ["Offset of field: pagoda_rope_kv_params::sin"][::core::mem::offset_of!(pagoda_rope_kv_params, sin) - 48usize];
    ["Offset of field: pagoda_rope_kv_params::q_norm"][::core::mem::offset_of!(pagoda_rope_kv_params, q_norm) - 56usize];
    ["Offset of field: pagoda_rope_kv_params::k_norm"][::core::mem::offset_of!(pagoda_rope_kv_params, k_norm) - 64usize];
    ["Offset of field: pagoda_rope_kv_params::num_tokens"][::core::mem::offset_of!(pagoda_rope_kv_params, num_tokens) - 72usize];
    ["Offset of field: pagoda_rope_kv_params::num_heads"][::core::mem::offset_of!(pagoda_rope_kv_params, num_heads) - 76usize];
    ["Offset of field: pagoda_rope_kv_params::num_kv_heads"][::core::mem::offset_of!(pagoda_rope_kv_params, num_kv_heads) - 80usize];
    ["Offset of field: pagoda_rope_kv_params::head_dim"][::core::mem::offset_of!(pagoda_rope_kv_params, head_dim) - 84usize];
    ["Offset of field: pagoda_rope_kv_params::rotary_dim"][::core::mem::offset_of!(pagoda_rope_kv_params, rotary_dim) - 88usize];
    ["Offset of field: pagoda_rope_kv_params::interleaved"][::core::mem::offset_of!(pagoda_rope_kv_params, interleaved) - 92usize];
    ["Offset of field: pagoda_rope_kv_params::block_size"][::core::mem::offset_of!(pagoda_rope_kv_params, block_size) - 96usize];
    ["Offset of field: pagoda_rope_kv_params::eps"][::core::mem::offset_of!(pagoda_rope_kv_params, eps) - 100usize];
};
unsafe extern "C" {
    pub fn pagoda_rope_kv(params: *const pagoda_rope_kv_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_attention_params {
    pub out: *mut ::core::ffi::c_void,
    pub qkv: *const ::core::ffi::c_void,
    pub kv: *mut ::core::ffi::c_void,
    pub kv_scales: *const f32,
    pub cu_seqlens_q: *const i32,
    pub context_lens: *const i32,
    pub block_tables: *const i32,
    pub num_tokens: i32,
    pub num_seqs: i32,
    pub num_heads: i32,
    pub num_kv_heads: i32,
    pub head_dim: i32,
    pub block_size: i32,
    pub max_blocks_per_seq: i32,
    pub window: i32,
    pub scale: f32,
    pub soft_cap: f32,
    pub num_blocks: i32,
    pub tickets: *mut i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_attention_params"][::core::mem::size_of::<pagoda_attention_params>() - 112usize];
    ["Alignment of pagoda_attention_params"][::core::mem::align_of::<pagoda_attention_params>() - 8usize];
    ["Offset of field: pagoda_attention_params::out"][::core::mem::offset_of!(pagoda_attention_params, out) - 0usize];
    ["Offset of field: pagoda_attention_params::qkv"][::core::mem::offset_of!(pagoda_attention_params, qkv) - 8usize];
    ["Offset of field: pagoda_attention_params::kv"][::core::mem::offset_of!(pagoda_attention_params, kv) - 16usize];
    ["Offset of field: pagoda_attention_params::kv_scales"][::core::mem::offset_of!(pagoda_attention_params, kv_scales) - 24usize];
    ["Offset of field: pagoda_attention_params::cu_seqlens_q"][::core::mem::offset_of!(pagoda_attention_params, cu_seqlens_q) - 32usize];
    ["Offset of field: pagoda_attention_params::context_lens"][::core::mem::offset_of!(pagoda_attention_params, context_lens) - 40usize];
    ["Offset of field: pagoda_attention_params::block_tables"][::core::mem::offset_of!(pagoda_attention_params, block_tables) - 48usize];
    ["Offset of field: pagoda_attention_params::num_tokens"][::core::mem::offset_of!(pagoda_attention_params, num_tokens) - 56usize];
    ["Offset of field: pagoda_attention_params::num_seqs"][::core::mem::offset_of!(pagoda_attention_params, num_seqs) - 60usize];
    ["Offset of field: pagoda_attention_params::num_heads"][::core::mem::offset_of!(pagoda_attention_params, num_heads) - 64usize];
    ["Offset of field: pagoda_attention_params::num_kv_heads"][::core::mem::offset_of!(pagoda_attention_params, num_kv_heads) - 68usize];
    ["Offset of field: pagoda_attention_params::head_dim"][::core::mem::offset_of!(pagoda_attention_params, head_dim) - 72usize];
    ["Offset of field: pagoda_attention_params::block_size"][::core::mem::offset_of!(pagoda_attention_params, block_size) - 76usize];
    ["Offset of field: pagoda_attention_params::max_blocks_per_seq"]
        [::core::mem::offset_of!(pagoda_attention_params, max_blocks_per_seq) - 80usize];
    ["Offset of field: pagoda_attention_params::window"][::core::mem::offset_of!(pagoda_attention_params, window) - 84usize];
    ["Offset of field: pagoda_attention_params::scale"][::core::mem::offset_of!(pagoda_attention_params, scale) - 88usize];
    ["Offset of field: pagoda_attention_params::soft_cap"][::core::mem::offset_of!(pagoda_attention_params, soft_cap) - 92usize];
    ["Offset of field: pagoda_attention_params::num_blocks"][::core::mem::offset_of!(pagoda_attention_params, num_blocks) - 96usize];
    ["Offset of field: pagoda_attention_params::tickets"][::core::mem::offset_of!(pagoda_attention_params, tickets) - 104usize];
};
unsafe extern "C" {
    pub fn pagoda_attention_prefill(params: *const pagoda_attention_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_shared_prefixes {
    pub groups: *const i32,
    pub members: *const i32,
    pub lens: *const i32,
    pub partials: *mut f32,
    pub max_partials: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_shared_prefixes"][::core::mem::size_of::<pagoda_shared_prefixes>() - 40usize];
    ["Alignment of pagoda_shared_prefixes"][::core::mem::align_of::<pagoda_shared_prefixes>() - 8usize];
    ["Offset of field: pagoda_shared_prefixes::groups"][::core::mem::offset_of!(pagoda_shared_prefixes, groups) - 0usize];
    ["Offset of field: pagoda_shared_prefixes::members"][::core::mem::offset_of!(pagoda_shared_prefixes, members) - 8usize];
    ["Offset of field: pagoda_shared_prefixes::lens"][::core::mem::offset_of!(pagoda_shared_prefixes, lens) - 16usize];
    ["Offset of field: pagoda_shared_prefixes::partials"][::core::mem::offset_of!(pagoda_shared_prefixes, partials) - 24usize];
    ["Offset of field: pagoda_shared_prefixes::max_partials"][::core::mem::offset_of!(pagoda_shared_prefixes, max_partials) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_attention_decode_params {
    pub attention: pagoda_attention_params,
    pub prefixes: pagoda_shared_prefixes,
    pub partials: *mut f32,
    pub counters: *mut i32,
    pub cos: *const f32,
    pub sin: *const f32,
    pub q_norm: *const f32,
    pub k_norm: *const f32,
    pub rotary_dim: i32,
    pub interleaved: i32,
    pub eps: f32,
    pub split_len: i32,
    pub max_partials: i32,
    pub num_ctas: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_attention_decode_params"][::core::mem::size_of::<pagoda_attention_decode_params>() - 224usize];
    ["Alignment of pagoda_attention_decode_params"][::core::mem::align_of::<pagoda_attention_decode_params>() - 8usize];
    ["Offset of field: pagoda_attention_decode_params::attention"]
        [::core::mem::offset_of!(pagoda_attention_decode_params, attention) - 0usize];
    ["Offset of field: pagoda_attention_decode_params::prefixes"]
        [::core::mem::offset_of!(pagoda_attention_decode_params, prefixes) - 112usize];
    ["Offset of field: pagoda_attention_decode_params::partials"]
        [::core::mem::offset_of!(pagoda_attention_decode_params, partials) - 152usize];
    ["Offset of field: pagoda_attention_decode_params::counters"]
        [::core::mem::offset_of!(pagoda_attention_decode_params, counters) - 160usize];
    ["Offset of field: pagoda_attention_decode_params::cos"][::core::mem::offset_of!(pagoda_attention_decode_params, cos) - 168usize];
    ["Offset of field: pagoda_attention_decode_params::sin"][::core::mem::offset_of!(pagoda_attention_decode_params, sin) - 176usize];
    ["Offset of field: pagoda_attention_decode_params::q_norm"][::core::mem::offset_of!(pagoda_attention_decode_params, q_norm) - 184usize];
    ["Offset of field: pagoda_attention_decode_params::k_norm"][::core::mem::offset_of!(pagoda_attention_decode_params, k_norm) - 192usize];
    ["Offset of field: pagoda_attention_decode_params::rotary_dim"]
        [::core::mem::offset_of!(pagoda_attention_decode_params, rotary_dim) - 200usize];
    ["Offset of field: pagoda_attention_decode_params::interleaved"]
        [::core::mem::offset_of!(pagoda_attention_decode_params, interleaved) - 204usize];
    ["Offset of field: pagoda_attention_decode_params::eps"][::core::mem::offset_of!(pagoda_attention_decode_params, eps) - 208usize];
    ["Offset of field: pagoda_attention_decode_params::split_len"]
        [::core::mem::offset_of!(pagoda_attention_decode_params, split_len) - 212usize];
    ["Offset of field: pagoda_attention_decode_params::max_partials"]
        [::core::mem::offset_of!(pagoda_attention_decode_params, max_partials) - 216usize];
    ["Offset of field: pagoda_attention_decode_params::num_ctas"]
        [::core::mem::offset_of!(pagoda_attention_decode_params, num_ctas) - 220usize];
};
unsafe extern "C" {
    pub fn pagoda_attention_decode(params: *const pagoda_attention_decode_params, stream: pagoda_stream) -> pagoda_status;
}
unsafe extern "C" {
    pub fn pagoda_attention_prefix(params: *const pagoda_attention_decode_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_copy_blocks_params {
    pub kv: *mut ::core::ffi::c_void,
    pub pairs: *const i32,
    pub block_bytes: i64,
    pub num_pairs: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_copy_blocks_params"][::core::mem::size_of::<pagoda_copy_blocks_params>() - 32usize];
    ["Alignment of pagoda_copy_blocks_params"][::core::mem::align_of::<pagoda_copy_blocks_params>() - 8usize];
    ["Offset of field: pagoda_copy_blocks_params::kv"][::core::mem::offset_of!(pagoda_copy_blocks_params, kv) - 0usize];
    ["Offset of field: pagoda_copy_blocks_params::pairs"][::core::mem::offset_of!(pagoda_copy_blocks_params, pairs) - 8usize];
    ["Offset of field: pagoda_copy_blocks_params::block_bytes"][::core::mem::offset_of!(pagoda_copy_blocks_params, block_bytes) - 16usize];
    ["Offset of field: pagoda_copy_blocks_params::num_pairs"][::core::mem::offset_of!(pagoda_copy_blocks_params, num_pairs) - 24usize];
};
unsafe extern "C" {
    pub fn pagoda_copy_blocks(params: *const pagoda_copy_blocks_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_xor_words_params {
    pub out: *mut u32,
    pub data: *const ::core::ffi::c_void,
    pub num_bytes: i64,
    pub num_ctas: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_xor_words_params"][::core::mem::size_of::<pagoda_xor_words_params>() - 32usize];
    ["Alignment of pagoda_xor_words_params"][::core::mem::align_of::<pagoda_xor_words_params>() - 8usize];
    ["Offset of field: pagoda_xor_words_params::out"][::core::mem::offset_of!(pagoda_xor_words_params, out) - 0usize];
    ["Offset of field: pagoda_xor_words_params::data"][::core::mem::offset_of!(pagoda_xor_words_params, data) - 8usize];
    ["Offset of field: pagoda_xor_words_params::num_bytes"][::core::mem::offset_of!(pagoda_xor_words_params, num_bytes) - 16usize];
    ["Offset of field: pagoda_xor_words_params::num_ctas"][::core::mem::offset_of!(pagoda_xor_words_params, num_ctas) - 24usize];
};
unsafe extern "C" {
    pub fn pagoda_xor_words(params: *const pagoda_xor_words_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_grouped_gemm_params {
    pub out: *mut ::core::ffi::c_void,
    pub x: *const ::core::ffi::c_void,
    pub w: *const ::core::ffi::c_void,
    pub bias: *const f32,
    pub row_map: *const i32,
    pub offsets: *const i32,
    pub w_stride: i64,
    pub num_rows: i32,
    pub num_groups: i32,
    pub n: i32,
    pub k: i32,
    pub ld_out: i32,
    pub row_div: i32,
    pub out_dtype: pagoda_dtype,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_grouped_gemm_params"][::core::mem::size_of::<pagoda_grouped_gemm_params>() - 88usize];
    ["Alignment of pagoda_grouped_gemm_params"][::core::mem::align_of::<pagoda_grouped_gemm_params>() - 8usize];
    ["Offset of field: pagoda_grouped_gemm_params::out"][::core::mem::offset_of!(pagoda_grouped_gemm_params, out) - 0usize];
    ["Offset of field: pagoda_grouped_gemm_params::x"][::core::mem::offset_of!(pagoda_grouped_gemm_params, x) - 8usize];
    ["Offset of field: pagoda_grouped_gemm_params::w"][::core::mem::offset_of!(pagoda_grouped_gemm_params, w) - 16usize];
    ["Offset of field: pagoda_grouped_gemm_params::bias"][::core::mem::offset_of!(pagoda_grouped_gemm_params, bias) - 24usize];
    ["Offset of field: pagoda_grouped_gemm_params::row_map"][::core::mem::offset_of!(pagoda_grouped_gemm_params, row_map) - 32usize];
    ["Offset of field: pagoda_grouped_gemm_params::offsets"][::core::mem::offset_of!(pagoda_grouped_gemm_params, offsets) - 40usize];
    ["Offset of field: pagoda_grouped_gemm_params::w_stride"][::core::mem::offset_of!(pagoda_grouped_gemm_params, w_stride) - 48usize];
    ["Offset of field: pagoda_grouped_gemm_params::num_rows"][::core::mem::offset_of!(pagoda_grouped_gemm_params, num_rows) - 56usize];
    ["Offset of field: pagoda_grouped_gemm_params::num_groups"][::core::mem::offset_of!(pagoda_grouped_gemm_params, num_groups) - 60usize];
    ["Offset of field: pagoda_grouped_gemm_params::n"][::core::mem::offset_of!(pagoda_grouped_gemm_params, n) - 64usize];
    ["Offset of field: pagoda_grouped_gemm_params::k"][::core::mem::offset_of!(pagoda_grouped_gemm_params, k) - 68usize];
    ["Offset of field: pagoda_grouped_gemm_params::ld_out"][::core::mem::offset_of!(pagoda_grouped_gemm_params, ld_out) - 72usize];
    ["Offset of field: pagoda_grouped_gemm_params::row_div"][::core::mem::offset_of!(pagoda_grouped_gemm_params, row_div) - 76usize];
    ["Offset of field: pagoda_grouped_gemm_params::out_dtype"][::core::mem::offset_of!(pagoda_grouped_gemm_params, out_dtype) - 80usize];
};
unsafe extern "C" {
    pub fn pagoda_grouped_gemm(params: *const pagoda_grouped_gemm_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_moe_route_params {
    pub experts: *mut i32,
    pub weights: *mut f32,
    pub offsets: *mut i32,
    pub sorted: *mut i32,
    pub tokens: *mut i32,
    pub position: *mut i32,
    pub logits: *const f32,
    pub num_tokens: i32,
    pub num_experts: i32,
    pub top_k: i32,
    pub renormalise: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_moe_route_params"][::core::mem::size_of::<pagoda_moe_route_params>() - 72usize];
    ["Alignment of pagoda_moe_route_params"][::core::mem::align_of::<pagoda_moe_route_params>() - 8usize];
    ["Offset of field: pagoda_moe_route_params::experts"][::core::mem::offset_of!(pagoda_moe_route_params, experts) - 0usize];
    ["Offset of field: pagoda_moe_route_params::weights"][::core::mem::offset_of!(pagoda_moe_route_params, weights) - 8usize];
    ["Offset of field: pagoda_moe_route_params::offsets"][::core::mem::offset_of!(pagoda_moe_route_params, offsets) - 16usize];
    ["Offset of field: pagoda_moe_route_params::sorted"][::core::mem::offset_of!(pagoda_moe_route_params, sorted) - 24usize];
    ["Offset of field: pagoda_moe_route_params::tokens"][::core::mem::offset_of!(pagoda_moe_route_params, tokens) - 32usize];
    ["Offset of field: pagoda_moe_route_params::position"][::core::mem::offset_of!(pagoda_moe_route_params, position) - 40usize];
    ["Offset of field: pagoda_moe_route_params::logits"][::core::mem::offset_of!(pagoda_moe_route_params, logits) - 48usize];
    ["Offset of field: pagoda_moe_route_params::num_tokens"][::core::mem::offset_of!(pagoda_moe_route_params, num_tokens) - 56usize];
    ["Offset of field: pagoda_moe_route_params::num_experts"][::core::mem::offset_of!(pagoda_moe_route_params, num_experts) - 60usize];
    ["Offset of field: pagoda_moe_route_params::top_k"][::core::mem::offset_of!(pagoda_moe_route_params, top_k) - 64usize];
    ["Offset of field: pagoda_moe_route_params::renormalise"][::core::mem::offset_of!(pagoda_moe_route_params, renormalise) - 68usize];
};
unsafe extern "C" {
    pub fn pagoda_moe_route(params: *const pagoda_moe_route_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_moe_combine_params {
    pub out: *mut ::core::ffi::c_void,
    pub y: *const ::core::ffi::c_void,
    pub weights: *const f32,
    pub position: *const i32,
    pub num_tokens: i32,
    pub hidden: i32,
    pub top_k: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_moe_combine_params"][::core::mem::size_of::<pagoda_moe_combine_params>() - 48usize];
    ["Alignment of pagoda_moe_combine_params"][::core::mem::align_of::<pagoda_moe_combine_params>() - 8usize];
    ["Offset of field: pagoda_moe_combine_params::out"][::core::mem::offset_of!(pagoda_moe_combine_params, out) - 0usize];
    ["Offset of field: pagoda_moe_combine_params::y"][::core::mem::offset_of!(pagoda_moe_combine_params, y) - 8usize];
    ["Offset of field: pagoda_moe_combine_params::weights"][::core::mem::offset_of!(pagoda_moe_combine_params, weights) - 16usize];
    ["Offset of field: pagoda_moe_combine_params::position"][::core::mem::offset_of!(pagoda_moe_combine_params, position) - 24usize];
    ["Offset of field: pagoda_moe_combine_params::num_tokens"][::core::mem::offset_of!(pagoda_moe_combine_params, num_tokens) - 32usize];
    ["Offset of field: pagoda_moe_combine_params::hidden"][::core::mem::offset_of!(pagoda_moe_combine_params, hidden) - 36usize];
    ["Offset of field: pagoda_moe_combine_params::top_k"][::core::mem::offset_of!(pagoda_moe_combine_params, top_k) - 40usize];
};
unsafe extern "C" {
    pub fn pagoda_moe_combine(params: *const pagoda_moe_combine_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_layer_norm_params {
    pub out: *mut ::core::ffi::c_void,
    pub residual: *mut ::core::ffi::c_void,
    pub x: *const ::core::ffi::c_void,
    pub weight: *const f32,
    pub bias: *const f32,
    pub num_tokens: i32,
    pub hidden: i32,
    pub num_threads: i32,
    pub eps: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_layer_norm_params"][::core::mem::size_of::<pagoda_layer_norm_params>() - 56usize];
    ["Alignment of pagoda_layer_norm_params"][::core::mem::align_of::<pagoda_layer_norm_params>() - 8usize];
    ["Offset of field: pagoda_layer_norm_params::out"][::core::mem::offset_of!(pagoda_layer_norm_params, out) - 0usize];
    ["Offset of field: pagoda_layer_norm_params::residual"][::core::mem::offset_of!(pagoda_layer_norm_params, residual) - 8usize];
    ["Offset of field: pagoda_layer_norm_params::x"][::core::mem::offset_of!(pagoda_layer_norm_params, x) - 16usize];
    ["Offset of field: pagoda_layer_norm_params::weight"][::core::mem::offset_of!(pagoda_layer_norm_params, weight) - 24usize];
    ["Offset of field: pagoda_layer_norm_params::bias"][::core::mem::offset_of!(pagoda_layer_norm_params, bias) - 32usize];
    ["Offset of field: pagoda_layer_norm_params::num_tokens"][::core::mem::offset_of!(pagoda_layer_norm_params, num_tokens) - 40usize];
    ["Offset of field: pagoda_layer_norm_params::hidden"][::core::mem::offset_of!(pagoda_layer_norm_params, hidden) - 44usize];
    ["Offset of field: pagoda_layer_norm_params::num_threads"][::core::mem::offset_of!(pagoda_layer_norm_params, num_threads) - 48usize];
    ["Offset of field: pagoda_layer_norm_params::eps"][::core::mem::offset_of!(pagoda_layer_norm_params, eps) - 52usize];
};
unsafe extern "C" {
    pub fn pagoda_layer_norm(params: *const pagoda_layer_norm_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_add_rows_params {
    pub out: *mut ::core::ffi::c_void,
    pub table: *const ::core::ffi::c_void,
    pub index: *const i32,
    pub num_rows: i32,
    pub num_table_rows: i32,
    pub cols: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_add_rows_params"][::core::mem::size_of::<pagoda_add_rows_params>() - 40usize];
    ["Alignment of pagoda_add_rows_params"][::core::mem::align_of::<pagoda_add_rows_params>() - 8usize];
    ["Offset of field: pagoda_add_rows_params::out"][::core::mem::offset_of!(pagoda_add_rows_params, out) - 0usize];
    ["Offset of field: pagoda_add_rows_params::table"][::core::mem::offset_of!(pagoda_add_rows_params, table) - 8usize];
    ["Offset of field: pagoda_add_rows_params::index"][::core::mem::offset_of!(pagoda_add_rows_params, index) - 16usize];
    ["Offset of field: pagoda_add_rows_params::num_rows"][::core::mem::offset_of!(pagoda_add_rows_params, num_rows) - 24usize];
    ["Offset of field: pagoda_add_rows_params::num_table_rows"][::core::mem::offset_of!(pagoda_add_rows_params, num_table_rows) - 28usize];
    ["Offset of field: pagoda_add_rows_params::cols"][::core::mem::offset_of!(pagoda_add_rows_params, cols) - 32usize];
};
unsafe extern "C" {
    pub fn pagoda_add_rows(params: *const pagoda_add_rows_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_activate_params {
    pub x: *mut ::core::ffi::c_void,
    pub count: i64,
    pub activation: pagoda_activation,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_activate_params"][::core::mem::size_of::<pagoda_activate_params>() - 24usize];
    ["Alignment of pagoda_activate_params"][::core::mem::align_of::<pagoda_activate_params>() - 8usize];
    ["Offset of field: pagoda_activate_params::x"][::core::mem::offset_of!(pagoda_activate_params, x) - 0usize];
    ["Offset of field: pagoda_activate_params::count"][::core::mem::offset_of!(pagoda_activate_params, count) - 8usize];
    ["Offset of field: pagoda_activate_params::activation"][::core::mem::offset_of!(pagoda_activate_params, activation) - 16usize];
};
unsafe extern "C" {
    pub fn pagoda_activate(params: *const pagoda_activate_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_rotate_params {
    pub qkv: *mut ::core::ffi::c_void,
    pub positions: *const i32,
    pub cos: *const f32,
    pub sin: *const f32,
    pub num_tokens: i32,
    pub num_heads: i32,
    pub head_dim: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_rotate_params"][::core::mem::size_of::<pagoda_rotate_params>() - 48usize];
    ["Alignment of pagoda_rotate_params"][::core::mem::align_of::<pagoda_rotate_params>() - 8usize];
    ["Offset of field: pagoda_rotate_params::qkv"][::core::mem::offset_of!(pagoda_rotate_params, qkv) - 0usize];
    ["Offset of field: pagoda_rotate_params::positions"][::core::mem::offset_of!(pagoda_rotate_params, positions) - 8usize];
    ["Offset of field: pagoda_rotate_params::cos"][::core::mem::offset_of!(pagoda_rotate_params, cos) - 16usize];
    ["Offset of field: pagoda_rotate_params::sin"][::core::mem::offset_of!(pagoda_rotate_params, sin) - 24usize];
    ["Offset of field: pagoda_rotate_params::num_tokens"][::core::mem::offset_of!(pagoda_rotate_params, num_tokens) - 32usize];
    ["Offset of field: pagoda_rotate_params::num_heads"][::core::mem::offset_of!(pagoda_rotate_params, num_heads) - 36usize];
    ["Offset of field: pagoda_rotate_params::head_dim"][::core::mem::offset_of!(pagoda_rotate_params, head_dim) - 40usize];
};
unsafe extern "C" {
    pub fn pagoda_rotate(params: *const pagoda_rotate_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_encoder_attention_params {
    pub out: *mut ::core::ffi::c_void,
    pub qkv: *const ::core::ffi::c_void,
    pub cu_seqlens: *const i32,
    pub num_seqs: i32,
    pub num_heads: i32,
    pub head_dim: i32,
    pub max_seq_len: i32,
    pub radius: i32,
    pub scale: f32,
    pub bias: *const f32,
    pub bias_reach: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_encoder_attention_params"][::core::mem::size_of::<pagoda_encoder_attention_params>() - 64usize];
    ["Alignment of pagoda_encoder_attention_params"][::core::mem::align_of::<pagoda_encoder_attention_params>() - 8usize];
    ["Offset of field: pagoda_encoder_attention_params::out"][::core::mem::offset_of!(pagoda_encoder_attention_params, out) - 0usize];
    ["Offset of field: pagoda_encoder_attention_params::qkv"][::core::mem::offset_of!(pagoda_encoder_attention_params, qkv) - 8usize];
    ["Offset of field: pagoda_encoder_attention_params::cu_seqlens"]
        [::core::mem::offset_of!(pagoda_encoder_attention_params, cu_seqlens) - 16usize];
    ["Offset of field: pagoda_encoder_attention_params::num_seqs"]
        [::core::mem::offset_of!(pagoda_encoder_attention_params, num_seqs) - 24usize];
    ["Offset of field: pagoda_encoder_attention_params::num_heads"]
        [::core::mem::offset_of!(pagoda_encoder_attention_params, num_heads) - 28usize];
    ["Offset of field: pagoda_encoder_attention_params::head_dim"]
        [::core::mem::offset_of!(pagoda_encoder_attention_params, head_dim) - 32usize];
    ["Offset of field: pagoda_encoder_attention_params::max_seq_len"]
        [::core::mem::offset_of!(pagoda_encoder_attention_params, max_seq_len) - 36usize];
    ["Offset of field: pagoda_encoder_attention_params::radius"]
        [::core::mem::offset_of!(pagoda_encoder_attention_params, radius) - 40usize];
    ["Offset of field: pagoda_encoder_attention_params::scale"][::core::mem::offset_of!(pagoda_encoder_attention_params, scale) - 44usize];
    ["Offset of field: pagoda_encoder_attention_params::bias"][::core::mem::offset_of!(pagoda_encoder_attention_params, bias) - 48usize];
    ["Offset of field: pagoda_encoder_attention_params::bias_reach"]
        [::core::mem::offset_of!(pagoda_encoder_attention_params, bias_reach) - 56usize];
};
unsafe extern "C" {
    pub fn pagoda_encoder_attention(params: *const pagoda_encoder_attention_params, stream: pagoda_stream) -> pagoda_status;
}
pub const PAGODA_POOL_CLS: pagoda_pooling = 0;
pub const PAGODA_POOL_LAST: pagoda_pooling = 1;
pub const PAGODA_POOL_MEAN: pagoda_pooling = 2;
pub const PAGODA_POOL_MEAN_SQRT_LEN: pagoda_pooling = 3;
pub const PAGODA_POOL_MAX: pagoda_pooling = 4;
pub const PAGODA_POOL_WEIGHTED_MEAN: pagoda_pooling = 5;
pub type pagoda_pooling = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_pool_rows_params {
    pub out: *mut ::core::ffi::c_void,
    pub x: *const ::core::ffi::c_void,
    pub cu_seqlens: *const i32,
    pub num_seqs: i32,
    pub cols: i32,
    pub pooling: pagoda_pooling,
    pub out_dtype: pagoda_dtype,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_pool_rows_params"][::core::mem::size_of::<pagoda_pool_rows_params>() - 40usize];
    ["Alignment of pagoda_pool_rows_params"][::core::mem::align_of::<pagoda_pool_rows_params>() - 8usize];
    ["Offset of field: pagoda_pool_rows_params::out"][::core::mem::offset_of!(pagoda_pool_rows_params, out) - 0usize];
    ["Offset of field: pagoda_pool_rows_params::x"][::core::mem::offset_of!(pagoda_pool_rows_params, x) - 8usize];
    ["Offset of field: pagoda_pool_rows_params::cu_seqlens"][::core::mem::offset_of!(pagoda_pool_rows_params, cu_seqlens) - 16usize];
    ["Offset of field: pagoda_pool_rows_params::num_seqs"][::core::mem::offset_of!(pagoda_pool_rows_params, num_seqs) - 24usize];
    ["Offset of field: pagoda_pool_rows_params::cols"][::core::mem::offset_of!(pagoda_pool_rows_params, cols) - 28usize];
    ["Offset of field: pagoda_pool_rows_params::pooling"][::core::mem::offset_of!(pagoda_pool_rows_params, pooling) - 32usize];
    ["Offset of field: pagoda_pool_rows_params::out_dtype"][::core::mem::offset_of!(pagoda_pool_rows_params, out_dtype) - 36usize];
};
unsafe extern "C" {
    pub fn pagoda_pool_rows(params: *const pagoda_pool_rows_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_token_edit {
    pub token: i32,
    pub value: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_token_edit"][::core::mem::size_of::<pagoda_token_edit>() - 8usize];
    ["Alignment of pagoda_token_edit"][::core::mem::align_of::<pagoda_token_edit>() - 4usize];
    ["Offset of field: pagoda_token_edit::token"][::core::mem::offset_of!(pagoda_token_edit, token) - 0usize];
    ["Offset of field: pagoda_token_edit::value"][::core::mem::offset_of!(pagoda_token_edit, value) - 4usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_sample_row {
    pub uniform: f64,
    pub logits_row: i32,
    pub slot: i32,
    pub out: i32,
    pub mask_row: i32,
    pub num_edits: i32,
    pub penalized: i32,
    pub num_logprobs: i32,
    pub given: i32,
    pub inv_temperature: f32,
    pub top_k: i32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub reserved: [i32; 3usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_sample_row"][::core::mem::size_of::<pagoda_sample_row>() - 80usize];
    ["Alignment of pagoda_sample_row"][::core::mem::align_of::<pagoda_sample_row>() - 8usize];
    ["Offset of field: pagoda_sample_row::uniform"][::core::mem::offset_of!(pagoda_sample_row, uniform) - 0usize];
    ["Offset of field: pagoda_sample_row::logits_row"][::core::mem::offset_of!(pagoda_sample_row, logits_row) - 8usize];
    ["Offset of field: pagoda_sample_row::slot"][::core::mem::offset_of!(pagoda_sample_row, slot) - 12usize];
    ["Offset of field: pagoda_sample_row::out"][::core::mem::offset_of!(pagoda_sample_row, out) - 16usize];
    ["Offset of field: pagoda_sample_row::mask_row"][::core::mem::offset_of!(pagoda_sample_row, mask_row) - 20usize];
    ["Offset of field: pagoda_sample_row::num_edits"][::core::mem::offset_of!(pagoda_sample_row, num_edits) - 24usize];
    ["Offset of field: pagoda_sample_row::penalized"][::core::mem::offset_of!(pagoda_sample_row, penalized) - 28usize];
    ["Offset of field: pagoda_sample_row::num_logprobs"][::core::mem::offset_of!(pagoda_sample_row, num_logprobs) - 32usize];
    ["Offset of field: pagoda_sample_row::given"][::core::mem::offset_of!(pagoda_sample_row, given) - 36usize];
    ["Offset of field: pagoda_sample_row::inv_temperature"][::core::mem::offset_of!(pagoda_sample_row, inv_temperature) - 40usize];
    ["Offset of field: pagoda_sample_row::top_k"][::core::mem::offset_of!(pagoda_sample_row, top_k) - 44usize];
    ["Offset of field: pagoda_sample_row::top_p"][::core::mem::offset_of!(pagoda_sample_row, top_p) - 48usize];
    ["Offset of field: pagoda_sample_row::min_p"][::core::mem::offset_of!(pagoda_sample_row, min_p) - 52usize];
    ["Offset of field: pagoda_sample_row::repetition_penalty"][::core::mem::offset_of!(pagoda_sample_row, repetition_penalty) - 56usize];
    ["Offset of field: pagoda_sample_row::presence_penalty"][::core::mem::offset_of!(pagoda_sample_row, presence_penalty) - 60usize];
    ["Offset of field: pagoda_sample_row::frequency_penalty"][::core::mem::offset_of!(pagoda_sample_row, frequency_penalty) - 64usize];
    ["Offset of field: pagoda_sample_row::reserved"][::core::mem::offset_of!(pagoda_sample_row, reserved) - 68usize];
};
pub const PAGODA_MAX_LOGPROBS: pagoda_sample_limits = 20;
pub type pagoda_sample_limits = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_token_logprobs {
    pub logprob: f32,
    pub rank: i32,
    pub num_top: i32,
    pub top_ids: [i32; 20usize],
    pub top_logprobs: [f32; 20usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_token_logprobs"][::core::mem::size_of::<pagoda_token_logprobs>() - 172usize];
    ["Alignment of pagoda_token_logprobs"][::core::mem::align_of::<pagoda_token_logprobs>() - 4usize];
    ["Offset of field: pagoda_token_logprobs::logprob"][::core::mem::offset_of!(pagoda_token_logprobs, logprob) - 0usize];
    ["Offset of field: pagoda_token_logprobs::rank"][::core::mem::offset_of!(pagoda_token_logprobs, rank) - 4usize];
    ["Offset of field: pagoda_token_logprobs::num_top"][::core::mem::offset_of!(pagoda_token_logprobs, num_top) - 8usize];
    ["Offset of field: pagoda_token_logprobs::top_ids"][::core::mem::offset_of!(pagoda_token_logprobs, top_ids) - 12usize];
    ["Offset of field: pagoda_token_logprobs::top_logprobs"][::core::mem::offset_of!(pagoda_token_logprobs, top_logprobs) - 92usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_sample_params {
    pub tokens: *mut i32,
    pub logprobs: *mut pagoda_token_logprobs,
    pub last_tokens: *mut i32,
    pub logits: *const f32,
    pub rows: *const pagoda_sample_row,
    pub masks: *const u32,
    pub edits: *const pagoda_token_edit,
    pub counts: *mut u16,
    pub workspace: *mut ::core::ffi::c_void,
    pub first_row: i32,
    pub num_rows: i32,
    pub max_rows: i32,
    pub vocab: i32,
    pub mask_stride: i32,
    pub edit_stride: i32,
    pub count_stride: i32,
    pub num_splits: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_sample_params"][::core::mem::size_of::<pagoda_sample_params>() - 104usize];
    ["Alignment of pagoda_sample_params"][::core::mem::align_of::<pagoda_sample_params>() - 8usize];
    ["Offset of field: pagoda_sample_params::tokens"][::core::mem::offset_of!(pagoda_sample_params, tokens) - 0usize];
    ["Offset of field: pagoda_sample_params::logprobs"][::core::mem::offset_of!(pagoda_sample_params, logprobs) - 8usize];
    ["Offset of field: pagoda_sample_params::last_tokens"][::core::mem::offset_of!(pagoda_sample_params, last_tokens) - 16usize];
    ["Offset of field: pagoda_sample_params::logits"][::core::mem::offset_of!(pagoda_sample_params, logits) - 24usize];
    ["Offset of field: pagoda_sample_params::rows"][::core::mem::offset_of!(pagoda_sample_params, rows) - 32usize];
    ["Offset of field: pagoda_sample_params::masks"][::core::mem::offset_of!(pagoda_sample_params, masks) - 40usize];
    ["Offset of field: pagoda_sample_params::edits"][::core::mem::offset_of!(pagoda_sample_params, edits) - 48usize];
    ["Offset of field: pagoda_sample_params::counts"][::core::mem::offset_of!(pagoda_sample_params, counts) - 56usize];
    ["Offset of field: pagoda_sample_params::workspace"][::core::mem::offset_of!(pagoda_sample_params, workspace) - 64usize];
    ["Offset of field: pagoda_sample_params::first_row"][::core::mem::offset_of!(pagoda_sample_params, first_row) - 72usize];
    ["Offset of field: pagoda_sample_params::num_rows"][::core::mem::offset_of!(pagoda_sample_params, num_rows) - 76usize];
    ["Offset of field: pagoda_sample_params::max_rows"][::core::mem::offset_of!(pagoda_sample_params, max_rows) - 80usize];
    ["Offset of field: pagoda_sample_params::vocab"][::core::mem::offset_of!(pagoda_sample_params, vocab) - 84usize];
    ["Offset of field: pagoda_sample_params::mask_stride"][::core::mem::offset_of!(pagoda_sample_params, mask_stride) - 88usize];
    ["Offset of field: pagoda_sample_params::edit_stride"][::core::mem::offset_of!(pagoda_sample_params, edit_stride) - 92usize];
    ["Offset of field: pagoda_sample_params::count_stride"][::core::mem::offset_of!(pagoda_sample_params, count_stride) - 96usize];
    ["Offset of field: pagoda_sample_params::num_splits"][::core::mem::offset_of!(pagoda_sample_params, num_splits) - 100usize];
};
unsafe extern "C" {
    pub fn pagoda_sample_workspace_bytes(vocab: i32, max_rows: i32, bytes: *mut i64) -> pagoda_status;
}
unsafe extern "C" {
    pub fn pagoda_sample_scan(params: *const pagoda_sample_params, stream: pagoda_stream) -> pagoda_status;
}
unsafe extern "C" {
    pub fn pagoda_sample_pick(params: *const pagoda_sample_params, stream: pagoda_stream) -> pagoda_status;
}
unsafe extern "C" {
    pub fn pagoda_sample_filter(params: *const pagoda_sample_params, stream: pagoda_stream) -> pagoda_status;
}
unsafe extern "C" {
    pub fn pagoda_sample_draw(params: *const pagoda_sample_params, stream: pagoda_stream) -> pagoda_status;
}
unsafe extern "C" {
    pub fn pagoda_sample_logprobs(params: *const pagoda_sample_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_set_counts_params {
    pub counts: *mut u16,
    pub tokens: *const i32,
    pub values: *const i32,
    pub num_tokens: i32,
    pub count_stride: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_set_counts_params"][::core::mem::size_of::<pagoda_set_counts_params>() - 32usize];
    ["Alignment of pagoda_set_counts_params"][::core::mem::align_of::<pagoda_set_counts_params>() - 8usize];
    ["Offset of field: pagoda_set_counts_params::counts"][::core::mem::offset_of!(pagoda_set_counts_params, counts) - 0usize];
    ["Offset of field: pagoda_set_counts_params::tokens"][::core::mem::offset_of!(pagoda_set_counts_params, tokens) - 8usize];
    ["Offset of field: pagoda_set_counts_params::values"][::core::mem::offset_of!(pagoda_set_counts_params, values) - 16usize];
    ["Offset of field: pagoda_set_counts_params::num_tokens"][::core::mem::offset_of!(pagoda_set_counts_params, num_tokens) - 24usize];
    ["Offset of field: pagoda_set_counts_params::count_stride"][::core::mem::offset_of!(pagoda_set_counts_params, count_stride) - 28usize];
};
unsafe extern "C" {
    pub fn pagoda_set_counts(params: *const pagoda_set_counts_params, stream: pagoda_stream) -> pagoda_status;
}
pub const PAGODA_W8_E4M3: pagoda_w8_code = 0;
pub const PAGODA_W8_INT8: pagoda_w8_code = 1;
pub type pagoda_w8_code = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_w8_permute_params {
    pub codes: *mut ::core::ffi::c_void,
    pub num_chunks: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_w8_permute_params"][::core::mem::size_of::<pagoda_w8_permute_params>() - 16usize];
    ["Alignment of pagoda_w8_permute_params"][::core::mem::align_of::<pagoda_w8_permute_params>() - 8usize];
    ["Offset of field: pagoda_w8_permute_params::codes"][::core::mem::offset_of!(pagoda_w8_permute_params, codes) - 0usize];
    ["Offset of field: pagoda_w8_permute_params::num_chunks"][::core::mem::offset_of!(pagoda_w8_permute_params, num_chunks) - 8usize];
};
unsafe extern "C" {
    pub fn pagoda_w8_permute(params: *const pagoda_w8_permute_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_w8_quantize_params {
    pub codes: *mut ::core::ffi::c_void,
    pub scales: *mut f32,
    pub x: *const ::core::ffi::c_void,
    pub num_rows: i32,
    pub cols: i32,
    pub group_cols: i32,
    pub ld_scales: i32,
    pub divides: i32,
    pub min_scale: f32,
    pub code: pagoda_w8_code,
    pub dtype: pagoda_dtype,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_w8_quantize_params"][::core::mem::size_of::<pagoda_w8_quantize_params>() - 56usize];
    ["Alignment of pagoda_w8_quantize_params"][::core::mem::align_of::<pagoda_w8_quantize_params>() - 8usize];
    ["Offset of field: pagoda_w8_quantize_params::codes"][::core::mem::offset_of!(pagoda_w8_quantize_params, codes) - 0usize];
    ["Offset of field: pagoda_w8_quantize_params::scales"][::core::mem::offset_of!(pagoda_w8_quantize_params, scales) - 8usize];
    ["Offset of field: pagoda_w8_quantize_params::x"][::core::mem::offset_of!(pagoda_w8_quantize_params, x) - 16usize];
    ["Offset of field: pagoda_w8_quantize_params::num_rows"][::core::mem::offset_of!(pagoda_w8_quantize_params, num_rows) - 24usize];
    ["Offset of field: pagoda_w8_quantize_params::cols"][::core::mem::offset_of!(pagoda_w8_quantize_params, cols) - 28usize];
    ["Offset of field: pagoda_w8_quantize_params::group_cols"][::core::mem::offset_of!(pagoda_w8_quantize_params, group_cols) - 32usize];
    ["Offset of field: pagoda_w8_quantize_params::ld_scales"][::core::mem::offset_of!(pagoda_w8_quantize_params, ld_scales) - 36usize];
    ["Offset of field: pagoda_w8_quantize_params::divides"][::core::mem::offset_of!(pagoda_w8_quantize_params, divides) - 40usize];
    ["Offset of field: pagoda_w8_quantize_params::min_scale"][::core::mem::offset_of!(pagoda_w8_quantize_params, min_scale) - 44usize];
    ["Offset of field: pagoda_w8_quantize_params::code"][::core::mem::offset_of!(pagoda_w8_quantize_params, code) - 48usize];
    ["Offset of field: pagoda_w8_quantize_params::dtype"][::core::mem::offset_of!(pagoda_w8_quantize_params, dtype) - 52usize];
};
unsafe extern "C" {
    pub fn pagoda_w8_quantize(params: *const pagoda_w8_quantize_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_w8_dequantize_params {
    pub out: *mut ::core::ffi::c_void,
    pub codes: *const ::core::ffi::c_void,
    pub scales: *const f32,
    pub index: *const i32,
    pub num_rows: i32,
    pub num_code_rows: i32,
    pub cols: i32,
    pub has_blocks: i32,
    pub factor: f32,
    pub code: pagoda_w8_code,
    pub out_dtype: pagoda_dtype,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_w8_dequantize_params"][::core::mem::size_of::<pagoda_w8_dequantize_params>() - 64usize];
    ["Alignment of pagoda_w8_dequantize_params"][::core::mem::align_of::<pagoda_w8_dequantize_params>() - 8usize];
    ["Offset of field: pagoda_w8_dequantize_params::out"][::core::mem::offset_of!(pagoda_w8_dequantize_params, out) - 0usize];
    ["Offset of field: pagoda_w8_dequantize_params::codes"][::core::mem::offset_of!(pagoda_w8_dequantize_params, codes) - 8usize];
    ["Offset of field: pagoda_w8_dequantize_params::scales"][::core::mem::offset_of!(pagoda_w8_dequantize_params, scales) - 16usize];
    ["Offset of field: pagoda_w8_dequantize_params::index"][::core::mem::offset_of!(pagoda_w8_dequantize_params, index) - 24usize];
    ["Offset of field: pagoda_w8_dequantize_params::num_rows"][::core::mem::offset_of!(pagoda_w8_dequantize_params, num_rows) - 32usize];
    ["Offset of field: pagoda_w8_dequantize_params::num_code_rows"]
        [::core::mem::offset_of!(pagoda_w8_dequantize_params, num_code_rows) - 36usize];
    ["Offset of field: pagoda_w8_dequantize_params::cols"][::core::mem::offset_of!(pagoda_w8_dequantize_params, cols) - 40usize];
    ["Offset of field: pagoda_w8_dequantize_params::has_blocks"]
        [::core::mem::offset_of!(pagoda_w8_dequantize_params, has_blocks) - 44usize];
    ["Offset of field: pagoda_w8_dequantize_params::factor"][::core::mem::offset_of!(pagoda_w8_dequantize_params, factor) - 48usize];
    ["Offset of field: pagoda_w8_dequantize_params::code"][::core::mem::offset_of!(pagoda_w8_dequantize_params, code) - 52usize];
    ["Offset of field: pagoda_w8_dequantize_params::out_dtype"][::core::mem::offset_of!(pagoda_w8_dequantize_params, out_dtype) - 56usize];
};
unsafe extern "C" {
    pub fn pagoda_w8_dequantize(params: *const pagoda_w8_dequantize_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_skinny_w8_params {
    pub gemm: pagoda_skinny_gemm_params,
    pub scales: *const f32,
    pub has_blocks: i32,
    pub code: pagoda_w8_code,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_skinny_w8_params"][::core::mem::size_of::<pagoda_skinny_w8_params>() - 120usize];
    ["Alignment of pagoda_skinny_w8_params"][::core::mem::align_of::<pagoda_skinny_w8_params>() - 8usize];
    ["Offset of field: pagoda_skinny_w8_params::gemm"][::core::mem::offset_of!(pagoda_skinny_w8_params, gemm) - 0usize];
    ["Offset of field: pagoda_skinny_w8_params::scales"][::core::mem::offset_of!(pagoda_skinny_w8_params, scales) - 104usize];
    ["Offset of field: pagoda_skinny_w8_params::has_blocks"][::core::mem::offset_of!(pagoda_skinny_w8_params, has_blocks) - 112usize];
    ["Offset of field: pagoda_skinny_w8_params::code"][::core::mem::offset_of!(pagoda_skinny_w8_params, code) - 116usize];
};
unsafe extern "C" {
    pub fn pagoda_skinny_w8(params: *const pagoda_skinny_w8_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_wide_w8_params {
    pub gemm: pagoda_wide_gemm_params,
    pub x_scales: *const f32,
    pub w_scales: *const f32,
    pub ld_x_scales: i32,
    pub has_blocks: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_wide_w8_params"][::core::mem::size_of::<pagoda_wide_w8_params>() - 120usize];
    ["Alignment of pagoda_wide_w8_params"][::core::mem::align_of::<pagoda_wide_w8_params>() - 8usize];
    ["Offset of field: pagoda_wide_w8_params::gemm"][::core::mem::offset_of!(pagoda_wide_w8_params, gemm) - 0usize];
    ["Offset of field: pagoda_wide_w8_params::x_scales"][::core::mem::offset_of!(pagoda_wide_w8_params, x_scales) - 96usize];
    ["Offset of field: pagoda_wide_w8_params::w_scales"][::core::mem::offset_of!(pagoda_wide_w8_params, w_scales) - 104usize];
    ["Offset of field: pagoda_wide_w8_params::ld_x_scales"][::core::mem::offset_of!(pagoda_wide_w8_params, ld_x_scales) - 112usize];
    ["Offset of field: pagoda_wide_w8_params::has_blocks"][::core::mem::offset_of!(pagoda_wide_w8_params, has_blocks) - 116usize];
};
unsafe extern "C" {
    pub fn pagoda_wide_w8(params: *const pagoda_wide_w8_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_w4_matrix {
    pub tiles: *mut ::core::ffi::c_void,
    pub book: [f32; 16usize],
    pub scale_factor: f32,
    pub n: i32,
    pub k: i32,
    pub scales_per_tile: i32,
    pub has_zeros: i32,
    pub interleaved: i32,
    pub short_scales: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_w4_matrix"][::core::mem::size_of::<pagoda_w4_matrix>() - 104usize];
    ["Alignment of pagoda_w4_matrix"][::core::mem::align_of::<pagoda_w4_matrix>() - 8usize];
    ["Offset of field: pagoda_w4_matrix::tiles"][::core::mem::offset_of!(pagoda_w4_matrix, tiles) - 0usize];
    ["Offset of field: pagoda_w4_matrix::book"][::core::mem::offset_of!(pagoda_w4_matrix, book) - 8usize];
    ["Offset of field: pagoda_w4_matrix::scale_factor"][::core::mem::offset_of!(pagoda_w4_matrix, scale_factor) - 72usize];
    ["Offset of field: pagoda_w4_matrix::n"][::core::mem::offset_of!(pagoda_w4_matrix, n) - 76usize];
    ["Offset of field: pagoda_w4_matrix::k"][::core::mem::offset_of!(pagoda_w4_matrix, k) - 80usize];
    ["Offset of field: pagoda_w4_matrix::scales_per_tile"][::core::mem::offset_of!(pagoda_w4_matrix, scales_per_tile) - 84usize];
    ["Offset of field: pagoda_w4_matrix::has_zeros"][::core::mem::offset_of!(pagoda_w4_matrix, has_zeros) - 88usize];
    ["Offset of field: pagoda_w4_matrix::interleaved"][::core::mem::offset_of!(pagoda_w4_matrix, interleaved) - 92usize];
    ["Offset of field: pagoda_w4_matrix::short_scales"][::core::mem::offset_of!(pagoda_w4_matrix, short_scales) - 96usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_w4_pack_params {
    pub matrix: pagoda_w4_matrix,
    pub codes: *const u8,
    pub scales: *const f32,
    pub zeros: *const u8,
    pub zero_plus: i32,
    pub group: i32,
    pub first_high: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_w4_pack_params"][::core::mem::size_of::<pagoda_w4_pack_params>() - 144usize];
    ["Alignment of pagoda_w4_pack_params"][::core::mem::align_of::<pagoda_w4_pack_params>() - 8usize];
    ["Offset of field: pagoda_w4_pack_params::matrix"][::core::mem::offset_of!(pagoda_w4_pack_params, matrix) - 0usize];
    ["Offset of field: pagoda_w4_pack_params::codes"][::core::mem::offset_of!(pagoda_w4_pack_params, codes) - 104usize];
    ["Offset of field: pagoda_w4_pack_params::scales"][::core::mem::offset_of!(pagoda_w4_pack_params, scales) - 112usize];
    ["Offset of field: pagoda_w4_pack_params::zeros"][::core::mem::offset_of!(pagoda_w4_pack_params, zeros) - 120usize];
    ["Offset of field: pagoda_w4_pack_params::zero_plus"][::core::mem::offset_of!(pagoda_w4_pack_params, zero_plus) - 128usize];
    ["Offset of field: pagoda_w4_pack_params::group"][::core::mem::offset_of!(pagoda_w4_pack_params, group) - 132usize];
    ["Offset of field: pagoda_w4_pack_params::first_high"][::core::mem::offset_of!(pagoda_w4_pack_params, first_high) - 136usize];
};
unsafe extern "C" {
    pub fn pagoda_w4_pack(params: *const pagoda_w4_pack_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_nf4_quantize_params {
    pub codes: *mut u8,
    pub absmax: *mut f32,
    pub largest: *mut f32,
    pub values: *const ::core::ffi::c_void,
    pub count: i64,
    pub dtype: pagoda_dtype,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_nf4_quantize_params"][::core::mem::size_of::<pagoda_nf4_quantize_params>() - 48usize];
    ["Alignment of pagoda_nf4_quantize_params"][::core::mem::align_of::<pagoda_nf4_quantize_params>() - 8usize];
    ["Offset of field: pagoda_nf4_quantize_params::codes"][::core::mem::offset_of!(pagoda_nf4_quantize_params, codes) - 0usize];
    ["Offset of field: pagoda_nf4_quantize_params::absmax"][::core::mem::offset_of!(pagoda_nf4_quantize_params, absmax) - 8usize];
    ["Offset of field: pagoda_nf4_quantize_params::largest"][::core::mem::offset_of!(pagoda_nf4_quantize_params, largest) - 16usize];
    ["Offset of field: pagoda_nf4_quantize_params::values"][::core::mem::offset_of!(pagoda_nf4_quantize_params, values) - 24usize];
    ["Offset of field: pagoda_nf4_quantize_params::count"][::core::mem::offset_of!(pagoda_nf4_quantize_params, count) - 32usize];
    ["Offset of field: pagoda_nf4_quantize_params::dtype"][::core::mem::offset_of!(pagoda_nf4_quantize_params, dtype) - 40usize];
};
unsafe extern "C" {
    pub fn pagoda_nf4_quantize(params: *const pagoda_nf4_quantize_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_absmax_params {
    pub absmax: *mut f32,
    pub values: *const ::core::ffi::c_void,
    pub count: i64,
    pub dtype: pagoda_dtype,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_absmax_params"][::core::mem::size_of::<pagoda_absmax_params>() - 32usize];
    ["Alignment of pagoda_absmax_params"][::core::mem::align_of::<pagoda_absmax_params>() - 8usize];
    ["Offset of field: pagoda_absmax_params::absmax"][::core::mem::offset_of!(pagoda_absmax_params, absmax) - 0usize];
    ["Offset of field: pagoda_absmax_params::values"][::core::mem::offset_of!(pagoda_absmax_params, values) - 8usize];
    ["Offset of field: pagoda_absmax_params::count"][::core::mem::offset_of!(pagoda_absmax_params, count) - 16usize];
    ["Offset of field: pagoda_absmax_params::dtype"][::core::mem::offset_of!(pagoda_absmax_params, dtype) - 24usize];
};
unsafe extern "C" {
    pub fn pagoda_absmax(params: *const pagoda_absmax_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_nvfp4_quantize_params {
    pub codes: *mut u8,
    pub scales: *mut f32,
    pub largest: *mut f32,
    pub absmax: *const f32,
    pub values: *const ::core::ffi::c_void,
    pub count: i64,
    pub dtype: pagoda_dtype,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_nvfp4_quantize_params"][::core::mem::size_of::<pagoda_nvfp4_quantize_params>() - 56usize];
    ["Alignment of pagoda_nvfp4_quantize_params"][::core::mem::align_of::<pagoda_nvfp4_quantize_params>() - 8usize];
    ["Offset of field: pagoda_nvfp4_quantize_params::codes"][::core::mem::offset_of!(pagoda_nvfp4_quantize_params, codes) - 0usize];
    ["Offset of field: pagoda_nvfp4_quantize_params::scales"][::core::mem::offset_of!(pagoda_nvfp4_quantize_params, scales) - 8usize];
    ["Offset of field: pagoda_nvfp4_quantize_params::largest"][::core::mem::offset_of!(pagoda_nvfp4_quantize_params, largest) - 16usize];
    ["Offset of field: pagoda_nvfp4_quantize_params::absmax"][::core::mem::offset_of!(pagoda_nvfp4_quantize_params, absmax) - 24usize];
    ["Offset of field: pagoda_nvfp4_quantize_params::values"][::core::mem::offset_of!(pagoda_nvfp4_quantize_params, values) - 32usize];
    ["Offset of field: pagoda_nvfp4_quantize_params::count"][::core::mem::offset_of!(pagoda_nvfp4_quantize_params, count) - 40usize];
    ["Offset of field: pagoda_nvfp4_quantize_params::dtype"][::core::mem::offset_of!(pagoda_nvfp4_quantize_params, dtype) - 48usize];
};
unsafe extern "C" {
    pub fn pagoda_nvfp4_quantize(params: *const pagoda_nvfp4_quantize_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_w4_dequantize_params {
    pub matrix: pagoda_w4_matrix,
    pub out: *mut ::core::ffi::c_void,
    pub order: *const i32,
    pub first_tile: i32,
    pub num_rows: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_w4_dequantize_params"][::core::mem::size_of::<pagoda_w4_dequantize_params>() - 128usize];
    ["Alignment of pagoda_w4_dequantize_params"][::core::mem::align_of::<pagoda_w4_dequantize_params>() - 8usize];
    ["Offset of field: pagoda_w4_dequantize_params::matrix"][::core::mem::offset_of!(pagoda_w4_dequantize_params, matrix) - 0usize];
    ["Offset of field: pagoda_w4_dequantize_params::out"][::core::mem::offset_of!(pagoda_w4_dequantize_params, out) - 104usize];
    ["Offset of field: pagoda_w4_dequantize_params::order"][::core::mem::offset_of!(pagoda_w4_dequantize_params, order) - 112usize];
    ["Offset of field: pagoda_w4_dequantize_params::first_tile"]
        [::core::mem::offset_of!(pagoda_w4_dequantize_params, first_tile) - 120usize];
    ["Offset of field: pagoda_w4_dequantize_params::num_rows"][::core::mem::offset_of!(pagoda_w4_dequantize_params, num_rows) - 124usize];
};
unsafe extern "C" {
    pub fn pagoda_w4_dequantize(params: *const pagoda_w4_dequantize_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_w4_gather_rows_params {
    pub matrix: pagoda_w4_matrix,
    pub out: *mut ::core::ffi::c_void,
    pub index: *const i32,
    pub num_rows: i32,
    pub scale: f32,
    pub out_dtype: pagoda_dtype,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_w4_gather_rows_params"][::core::mem::size_of::<pagoda_w4_gather_rows_params>() - 136usize];
    ["Alignment of pagoda_w4_gather_rows_params"][::core::mem::align_of::<pagoda_w4_gather_rows_params>() - 8usize];
    ["Offset of field: pagoda_w4_gather_rows_params::matrix"][::core::mem::offset_of!(pagoda_w4_gather_rows_params, matrix) - 0usize];
    ["Offset of field: pagoda_w4_gather_rows_params::out"][::core::mem::offset_of!(pagoda_w4_gather_rows_params, out) - 104usize];
    ["Offset of field: pagoda_w4_gather_rows_params::index"][::core::mem::offset_of!(pagoda_w4_gather_rows_params, index) - 112usize];
    ["Offset of field: pagoda_w4_gather_rows_params::num_rows"][::core::mem::offset_of!(pagoda_w4_gather_rows_params, num_rows) - 120usize];
    ["Offset of field: pagoda_w4_gather_rows_params::scale"][::core::mem::offset_of!(pagoda_w4_gather_rows_params, scale) - 124usize];
    ["Offset of field: pagoda_w4_gather_rows_params::out_dtype"]
        [::core::mem::offset_of!(pagoda_w4_gather_rows_params, out_dtype) - 128usize];
};
unsafe extern "C" {
    pub fn pagoda_w4_gather_rows(params: *const pagoda_w4_gather_rows_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_gather_columns_params {
    pub out: *mut ::core::ffi::c_void,
    pub x: *const ::core::ffi::c_void,
    pub order: *const i32,
    pub num_tokens: i32,
    pub k: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_gather_columns_params"][::core::mem::size_of::<pagoda_gather_columns_params>() - 32usize];
    ["Alignment of pagoda_gather_columns_params"][::core::mem::align_of::<pagoda_gather_columns_params>() - 8usize];
    ["Offset of field: pagoda_gather_columns_params::out"][::core::mem::offset_of!(pagoda_gather_columns_params, out) - 0usize];
    ["Offset of field: pagoda_gather_columns_params::x"][::core::mem::offset_of!(pagoda_gather_columns_params, x) - 8usize];
    ["Offset of field: pagoda_gather_columns_params::order"][::core::mem::offset_of!(pagoda_gather_columns_params, order) - 16usize];
    ["Offset of field: pagoda_gather_columns_params::num_tokens"]
        [::core::mem::offset_of!(pagoda_gather_columns_params, num_tokens) - 24usize];
    ["Offset of field: pagoda_gather_columns_params::k"][::core::mem::offset_of!(pagoda_gather_columns_params, k) - 28usize];
};
unsafe extern "C" {
    pub fn pagoda_gather_columns(params: *const pagoda_gather_columns_params, stream: pagoda_stream) -> pagoda_status;
}
pub const PAGODA_W4_SM80: pagoda_w4_kernel = 0;
pub const PAGODA_W4_COLUMNS: pagoda_w4_kernel = 1;
pub const PAGODA_W4_ROWS: pagoda_w4_kernel = 2;
pub type pagoda_w4_kernel = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_w4_gemm_params {
    pub w: pagoda_w4_matrix,
    pub out: *mut ::core::ffi::c_void,
    pub x: *const ::core::ffi::c_void,
    pub bias: *const f32,
    pub residual: *const ::core::ffi::c_void,
    pub partials: *mut f32,
    pub counters: *mut i32,
    pub num_tokens: i32,
    pub ld_out: i32,
    pub out_dtype: pagoda_dtype,
    pub gated: i32,
    pub kernel: pagoda_w4_kernel,
    pub split_k: i32,
    pub num_stages: i32,
    pub num_warps: i32,
    pub max_ctas: i32,
    pub programmatic: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_w4_gemm_params"][::core::mem::size_of::<pagoda_w4_gemm_params>() - 192usize];
    ["Alignment of pagoda_w4_gemm_params"][::core::mem::align_of::<pagoda_w4_gemm_params>() - 8usize];
    ["Offset of field: pagoda_w4_gemm_params::w"][::core::mem::offset_of!(pagoda_w4_gemm_params, w) - 0usize];
    ["Offset of field: pagoda_w4_gemm_params::out"][::core::mem::offset_of!(pagoda_w4_gemm_params, out) - 104usize];
    ["Offset of field: pagoda_w4_gemm_params::x"][::core::mem::offset_of!(pagoda_w4_gemm_params, x) - 112usize];
    ["Offset of field: pagoda_w4_gemm_params::bias"][::core::mem::offset_of!(pagoda_w4_gemm_params, bias) - 120usize];
    ["Offset of field: pagoda_w4_gemm_params::residual"][::core::mem::offset_of!(pagoda_w4_gemm_params, residual) - 128usize];
    ["Offset of field: pagoda_w4_gemm_params::partials"][::core::mem::offset_of!(pagoda_w4_gemm_params, partials) - 136usize];
    ["Offset of field: pagoda_w4_gemm_params::counters"][::core::mem::offset_of!(pagoda_w4_gemm_params, counters) - 144usize];
    ["Offset of field: pagoda_w4_gemm_params::num_tokens"][::core::mem::offset_of!(pagoda_w4_gemm_params, num_tokens) - 152usize];
    ["Offset of field: pagoda_w4_gemm_params::ld_out"][::core::mem::offset_of!(pagoda_w4_gemm_params, ld_out) - 156usize];
    ["Offset of field: pagoda_w4_gemm_params::out_dtype"][::core::mem::offset_of!(pagoda_w4_gemm_params, out_dtype) - 160usize];
    ["Offset of field: pagoda_w4_gemm_params::gated"][::core::mem::offset_of!(pagoda_w4_gemm_params, gated) - 164usize];
    ["Offset of field: pagoda_w4_gemm_params::kernel"][::core::mem::offset_of!(pagoda_w4_gemm_params, kernel) - 168usize];
    ["Offset of field: pagoda_w4_gemm_params::split_k"][::core::mem::offset_of!(pagoda_w4_gemm_params, split_k) - 172usize];
    ["Offset of field: pagoda_w4_gemm_params::num_stages"][::core::mem::offset_of!(pagoda_w4_gemm_params, num_stages) - 176usize];
    ["Offset of field: pagoda_w4_gemm_params::num_warps"][::core::mem::offset_of!(pagoda_w4_gemm_params, num_warps) - 180usize];
    ["Offset of field: pagoda_w4_gemm_params::max_ctas"][::core::mem::offset_of!(pagoda_w4_gemm_params, max_ctas) - 184usize];
    ["Offset of field: pagoda_w4_gemm_params::programmatic"][::core::mem::offset_of!(pagoda_w4_gemm_params, programmatic) - 188usize];
};
unsafe extern "C" {
    pub fn pagoda_w4_gemm(params: *const pagoda_w4_gemm_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_fp4_quantize_params {
    pub codes: *mut u8,
    pub scales: *mut u8,
    pub factors: *mut f32,
    pub x: *const ::core::ffi::c_void,
    pub num_tokens: i32,
    pub k: i32,
    pub ld_scales: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_fp4_quantize_params"][::core::mem::size_of::<pagoda_fp4_quantize_params>() - 48usize];
    ["Alignment of pagoda_fp4_quantize_params"][::core::mem::align_of::<pagoda_fp4_quantize_params>() - 8usize];
    ["Offset of field: pagoda_fp4_quantize_params::codes"][::core::mem::offset_of!(pagoda_fp4_quantize_params, codes) - 0usize];
    ["Offset of field: pagoda_fp4_quantize_params::scales"][::core::mem::offset_of!(pagoda_fp4_quantize_params, scales) - 8usize];
    ["Offset of field: pagoda_fp4_quantize_params::factors"][::core::mem::offset_of!(pagoda_fp4_quantize_params, factors) - 16usize];
    ["Offset of field: pagoda_fp4_quantize_params::x"][::core::mem::offset_of!(pagoda_fp4_quantize_params, x) - 24usize];
    ["Offset of field: pagoda_fp4_quantize_params::num_tokens"][::core::mem::offset_of!(pagoda_fp4_quantize_params, num_tokens) - 32usize];
    ["Offset of field: pagoda_fp4_quantize_params::k"][::core::mem::offset_of!(pagoda_fp4_quantize_params, k) - 36usize];
    ["Offset of field: pagoda_fp4_quantize_params::ld_scales"][::core::mem::offset_of!(pagoda_fp4_quantize_params, ld_scales) - 40usize];
};
unsafe extern "C" {
    pub fn pagoda_fp4_quantize(params: *const pagoda_fp4_quantize_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_fp4_gemm_params {
    pub w: pagoda_w4_matrix,
    pub out: *mut ::core::ffi::c_void,
    pub codes: *const u8,
    pub scales: *const u8,
    pub factors: *const f32,
    pub bias: *const f32,
    pub residual: *const ::core::ffi::c_void,
    pub num_tokens: i32,
    pub ld_out: i32,
    pub ld_scales: i32,
    pub out_dtype: pagoda_dtype,
    pub gated: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_fp4_gemm_params"][::core::mem::size_of::<pagoda_fp4_gemm_params>() - 176usize];
    ["Alignment of pagoda_fp4_gemm_params"][::core::mem::align_of::<pagoda_fp4_gemm_params>() - 8usize];
    ["Offset of field: pagoda_fp4_gemm_params::w"][::core::mem::offset_of!(pagoda_fp4_gemm_params, w) - 0usize];
    ["Offset of field: pagoda_fp4_gemm_params::out"][::core::mem::offset_of!(pagoda_fp4_gemm_params, out) - 104usize];
    ["Offset of field: pagoda_fp4_gemm_params::codes"][::core::mem::offset_of!(pagoda_fp4_gemm_params, codes) - 112usize];
    ["Offset of field: pagoda_fp4_gemm_params::scales"][::core::mem::offset_of!(pagoda_fp4_gemm_params, scales) - 120usize];
    ["Offset of field: pagoda_fp4_gemm_params::factors"][::core::mem::offset_of!(pagoda_fp4_gemm_params, factors) - 128usize];
    ["Offset of field: pagoda_fp4_gemm_params::bias"][::core::mem::offset_of!(pagoda_fp4_gemm_params, bias) - 136usize];
    ["Offset of field: pagoda_fp4_gemm_params::residual"][::core::mem::offset_of!(pagoda_fp4_gemm_params, residual) - 144usize];
    ["Offset of field: pagoda_fp4_gemm_params::num_tokens"][::core::mem::offset_of!(pagoda_fp4_gemm_params, num_tokens) - 152usize];
    ["Offset of field: pagoda_fp4_gemm_params::ld_out"][::core::mem::offset_of!(pagoda_fp4_gemm_params, ld_out) - 156usize];
    ["Offset of field: pagoda_fp4_gemm_params::ld_scales"][::core::mem::offset_of!(pagoda_fp4_gemm_params, ld_scales) - 160usize];
    ["Offset of field: pagoda_fp4_gemm_params::out_dtype"][::core::mem::offset_of!(pagoda_fp4_gemm_params, out_dtype) - 164usize];
    ["Offset of field: pagoda_fp4_gemm_params::gated"][::core::mem::offset_of!(pagoda_fp4_gemm_params, gated) - 168usize];
};
unsafe extern "C" {
    pub fn pagoda_fp4_gemm(params: *const pagoda_fp4_gemm_params, stream: pagoda_stream) -> pagoda_status;
}
unsafe extern "C" {
    pub fn pagoda_has_fp4_gemm() -> pagoda_status;
}
pub const PAGODA_Q4_0: pagoda_block_format = 0;
pub const PAGODA_Q4_1: pagoda_block_format = 1;
pub const PAGODA_Q5_0: pagoda_block_format = 2;
pub const PAGODA_Q5_1: pagoda_block_format = 3;
pub const PAGODA_Q8_0: pagoda_block_format = 4;
pub const PAGODA_Q4_K: pagoda_block_format = 5;
pub const PAGODA_Q5_K: pagoda_block_format = 6;
pub const PAGODA_Q6_K: pagoda_block_format = 7;
pub type pagoda_block_format = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_blocks_dequantize_params {
    pub out: *mut ::core::ffi::c_void,
    pub rows: *const ::core::ffi::c_void,
    pub index: *const i32,
    pub first_row: i32,
    pub num_rows: i32,
    pub n: i32,
    pub k: i32,
    pub factor: f32,
    pub format: pagoda_block_format,
    pub out_dtype: pagoda_dtype,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_blocks_dequantize_params"][::core::mem::size_of::<pagoda_blocks_dequantize_params>() - 56usize];
    ["Alignment of pagoda_blocks_dequantize_params"][::core::mem::align_of::<pagoda_blocks_dequantize_params>() - 8usize];
    ["Offset of field: pagoda_blocks_dequantize_params::out"][::core::mem::offset_of!(pagoda_blocks_dequantize_params, out) - 0usize];
    ["Offset of field: pagoda_blocks_dequantize_params::rows"][::core::mem::offset_of!(pagoda_blocks_dequantize_params, rows) - 8usize];
    ["Offset of field: pagoda_blocks_dequantize_params::index"][::core::mem::offset_of!(pagoda_blocks_dequantize_params, index) - 16usize];
    ["Offset of field: pagoda_blocks_dequantize_params::first_row"]
        [::core::mem::offset_of!(pagoda_blocks_dequantize_params, first_row) - 24usize];
    ["Offset of field: pagoda_blocks_dequantize_params::num_rows"]
        [::core::mem::offset_of!(pagoda_blocks_dequantize_params, num_rows) - 28usize];
    ["Offset of field: pagoda_blocks_dequantize_params::n"][::core::mem::offset_of!(pagoda_blocks_dequantize_params, n) - 32usize];
    ["Offset of field: pagoda_blocks_dequantize_params::k"][::core::mem::offset_of!(pagoda_blocks_dequantize_params, k) - 36usize];
    ["Offset of field: pagoda_blocks_dequantize_params::factor"]
        [::core::mem::offset_of!(pagoda_blocks_dequantize_params, factor) - 40usize];
    ["Offset of field: pagoda_blocks_dequantize_params::format"]
        [::core::mem::offset_of!(pagoda_blocks_dequantize_params, format) - 44usize];
    ["Offset of field: pagoda_blocks_dequantize_params::out_dtype"]
        [::core::mem::offset_of!(pagoda_blocks_dequantize_params, out_dtype) - 48usize];
};
unsafe extern "C" {
    pub fn pagoda_blocks_dequantize(params: *const pagoda_blocks_dequantize_params, stream: pagoda_stream) -> pagoda_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct pagoda_blocks_gemm_params {
    pub gemm: pagoda_skinny_gemm_params,
    pub format: pagoda_block_format,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of pagoda_blocks_gemm_params"][::core::mem::size_of::<pagoda_blocks_gemm_params>() - 112usize];
    ["Alignment of pagoda_blocks_gemm_params"][::core::mem::align_of::<pagoda_blocks_gemm_params>() - 8usize];
    ["Offset of field: pagoda_blocks_gemm_params::gemm"][::core::mem::offset_of!(pagoda_blocks_gemm_params, gemm) - 0usize];
    ["Offset of field: pagoda_blocks_gemm_params::format"][::core::mem::offset_of!(pagoda_blocks_gemm_params, format) - 104usize];
};
unsafe extern "C" {
    pub fn pagoda_blocks_gemm(params: *const pagoda_blocks_gemm_params, stream: pagoda_stream) -> pagoda_status;
}
