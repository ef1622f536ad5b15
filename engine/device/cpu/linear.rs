//! Linear layers: splits the stacked parts into tasks of whole rows and picks the kernel by the number of tokens.
#![allow(unsafe_code)]

use super::matmul::{MatMul, panel_stride};
use super::matvec::MatVec;
use super::scratch::with_scratch;
use super::threads::SharedMut;
use super::{CpuDevice, CpuWeight};
use crate::device::Linear;

/// Weight bytes of a decode task: some microseconds of work.
const VECTOR_TASK_BYTES: usize = 32 << 10;
/// Bytes of a panel of dequantised rows.
const PANEL_BYTES: usize = 160 << 10;
/// Rows of a panel are a multiple of this where there are enough: whole tiles at every level.
const PANEL_ROWS: usize = 6;

impl CpuDevice {
    /// out[t, :] = x[t, :] · wᵀ + bias; out `[tokens, linear.n]`, x `[tokens, linear.k]`.
    pub(super) fn linear_slices(&self, out: &mut [f32], x: &[f32], tokens: usize, linear: &Linear<CpuDevice>) {
        assert_eq!((out.len(), x.len()), (tokens * linear.n, tokens * linear.k), "shapes of a linear layer [{}, {}]", linear.n, linear.k);
        if tokens == 0 {
            return;
        }
        let rows = if tokens == 1 { self.vector_rows(linear) } else { self.panel_rows(linear) };
        let tasks = linear.parts.iter().map(|part| part.host.n.div_ceil(rows)).sum();
        let out = SharedMut::new(out);
        self.pool.run(tasks, |task| {
            let (part, start, column) = locate(&linear.parts, rows, task);
            let len = rows.min(part.host.n - start);
            let bias = linear.bias.as_ref().map(|bias| &bias.values.as_slice()[column..column + len]);
            if tokens == 1 {
                self.vector_task(&out, x, part, start, len, column, bias)
            } else {
                self.panel_task(&out, x, part, start, len, linear.n, column, bias)
            }
        });
    }

    fn vector_rows(&self, linear: &Linear<CpuDevice>) -> usize {
        let row_bytes = linear.parts.iter().map(|part| part.host.row_bytes()).max().unwrap_or(1).max(1);
        (VECTOR_TASK_BYTES / row_bytes).max(4).next_multiple_of(4)
    }

    fn panel_rows(&self, linear: &Linear<CpuDevice>) -> usize {
        let fitting = PANEL_BYTES / (panel_stride(linear.k) * 4);
        let shared = linear.n / (4 * self.pool.threads());
        (fitting.min(shared) / PANEL_ROWS * PANEL_ROWS).max(PANEL_ROWS)
    }

    fn vector_task(
        &self,
        out: &SharedMut<'_, f32>,
        x: &[f32],
        part: &CpuWeight,
        start: usize,
        len: usize,
        column: usize,
        bias: Option<&[f32]>,
    ) {
        // SAFETY: every task has columns of its own.
        let out = unsafe { out.slice(column, len) };
        self.dispatch.run(MatVec { format: part.host.format, weight: part.rows(start, len), x, out: &mut *out });
        if let Some(bias) = bias {
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
    }

    fn panel_task(
        &self,
        out: &SharedMut<'_, f32>,
        x: &[f32],
        part: &CpuWeight,
        start: usize,
        len: usize,
        out_cols: usize,
        column: usize,
        bias: Option<&[f32]>,
    ) {
        let (format, k) = (part.host.format, part.host.k);
        with_scratch(len * panel_stride(k), |panel| {
            let weight = part.rows(start, len);
            self.dispatch.run(MatMul { format, weight, rows: len, x, k, bias, out, out_cols, column, panel });
        });
    }
}

/// The part, its first row and the output column of task `task`, where a task has `rows` rows of one part.
fn locate(parts: &[CpuWeight], rows: usize, mut task: usize) -> (&CpuWeight, usize, usize) {
    let mut column = 0;
    for part in parts {
        let tasks = part.host.n.div_ceil(rows);
        if task < tasks {
            return (part, task * rows, column + task * rows);
        }
        task -= tasks;
        column += part.host.n;
    }
    unreachable!("the tasks of all parts were counted")
}
