//! What the library is told of a product: host objects, destroyed with their owners.

use std::ffi::c_void;

use cudarc::cublaslt::{result, sys};

use super::{Matmul, PlanKey, WORKSPACE_BYTES, library_error};
use crate::status::Result;

/// CUBLAS_OP_T of cublasOperation_t, which cudarc declares for cuBLAS alone.
const OP_TRANSPOSED: i32 = 1;

/// Operation, bias and types of a product.
pub(super) struct Operation(pub sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new(bias: Option<u64>) -> Result<Operation> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let operation = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F)
            .map(Operation)
            .map_err(library_error)?;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &OP_TRANSPOSED)?;
        if let Some(bias) = bias {
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &(sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32))?;
            operation.set_bias(bias)?;
        }
        Ok(operation)
    }

    /// Sets the address of the bias.
    pub fn set_bias(&self, address: u64) -> Result<()> {
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address)
    }

    /// Sets an attribute to a plain value.
    fn set<T: Copy>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the attributes set here are integers and addresses of the size of `T`, read before the call returns.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }
            .map_err(library_error)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Shape and type of one matrix.
pub(super) struct Layout(pub sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(dtype: sys::cudaDataType, rows: usize, cols: usize, ld: usize) -> Result<Layout> {
        result::create_matrix_layout(dtype, rows as u64, cols as u64, ld as i64).map(Layout).map_err(library_error)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// All that describes a product; `w` and `x` as columns, see the head of the module above.
pub(super) struct Descriptors {
    pub operation: Operation,
    pub w: Layout,
    pub x: Layout,
    pub out: Layout,
}

impl Descriptors {
    /// Of the products of `key`; `p` is the first of them.
    pub fn new(key: &PlanKey, p: &Matmul) -> Result<Descriptors> {
        let bf16 = sys::cudaDataType::CUDA_R_16BF;
        Ok(Descriptors {
            operation: Operation::new(p.bias.map(|bias| bias.address()))?,
            w: Layout::new(bf16, key.k, key.n, key.k)?,
            x: Layout::new(bf16, key.k, key.num_tokens, key.k)?,
            out: Layout::new(key.out_dtype, key.n, key.num_tokens, key.ld_out)?,
        })
    }
}

/// What algorithms may need.
pub(super) struct Preference(pub sys::cublasLtMatmulPreference_t);

impl Preference {
    /// Operands aligned to `alignment` bytes, and our workspace.
    pub fn new(alignment: u32) -> Result<Preference> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = result::create_matmul_pref().map(Preference).map_err(library_error)?;
        let workspace = WORKSPACE_BYTES as u64;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the attributes used here are a u64 and u32s, read before the call returns.
            unsafe { result::set_matmul_pref_attribute(preference.0, attribute, value, size) }.map_err(library_error)
        };
        set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::ptr::from_ref(&workspace).cast(), size_of_val(&workspace))?;
        for attribute in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(attribute, std::ptr::from_ref(&alignment).cast(), size_of_val(&alignment))?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
