//! Linear layers: splits the stacked parts into tasks of whole rows and picks the kernel by the number of tokens.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use super::blocks::{Blocks, ForFormat, for_format};
use super::matmul::{FillPanel, MatMul, panel_stride};
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
            let rows = locate(linear, rows, task);
            if tokens == 1 { self.vector_task(&out, x, &rows) } else { self.panel_task(&out, x, linear.n, &rows) }
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

    fn vector_task(&self, out: &SharedMut<'_, f32>, x: &[f32], rows: &Rows<'_>) {
        // SAFETY: every task has columns of its own.
        let out = unsafe { out.slice(rows.column, rows.len) };
        for_format(rows.part.host.format, VectorTask { device: self, weight: rows.bytes(), x, out: &mut *out });
        if let Some(bias) = rows.bias {
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
    }

    fn panel_task(&self, out: &SharedMut<'_, f32>, x: &[f32], out_cols: usize, rows: &Rows<'_>) {
        let (k, len) = (rows.part.host.k, rows.len);
        with_scratch(len * panel_stride(k), |panel| {
            for_format(rows.part.host.format, PanelTask { device: self, weight: rows.bytes(), k, panel: &mut *panel });
            self.dispatch.run(MatMul { rows: len, x, k, bias: rows.bias, out, out_cols, column: rows.column, panel });
        });
    }
}

struct VectorTask<'a> {
    device: &'a CpuDevice,
    weight: &'a [u8],
    x: &'a [f32],
    out: &'a mut [f32],
}

impl ForFormat for VectorTask<'_> {
    fn run<F: Blocks>(self) {
        self.device.dispatch.run(MatVec::<F> { weight: self.weight, x: self.x, out: self.out, blocks: PhantomData });
    }
}

struct PanelTask<'a> {
    device: &'a CpuDevice,
    weight: &'a [u8],
    k: usize,
    panel: &'a mut [f32],
}

impl ForFormat for PanelTask<'_> {
    fn run<F: Blocks>(self) {
        self.device.dispatch.run(FillPanel::<F> { weight: self.weight, k: self.k, panel: self.panel, blocks: PhantomData });
    }
}

/// Rows of one part, and where their outputs go.
struct Rows<'a> {
    part: &'a CpuWeight,
    start: usize,
    len: usize,
    /// First column of the output.
    column: usize,
    bias: Option<&'a [f32]>,
}

impl Rows<'_> {
    fn bytes(&self) -> &[u8] {
        self.part.rows(self.start, self.len)
    }
}

/// The rows of task `task`, where a task has up to `rows` rows of one part.
fn locate(linear: &Linear<CpuDevice>, rows: usize, mut task: usize) -> Rows<'_> {
    let mut column = 0;
    for part in &linear.parts {
        let tasks = part.host.n.div_ceil(rows);
        if task < tasks {
            let (start, len) = (task * rows, rows.min(part.host.n - task * rows));
            let column = column + start;
            let bias = linear.bias.as_ref().map(|bias| &bias.values.as_slice()[column..column + len]);
            return Rows { part, start, len, column, bias };
        }
        task -= tasks;
        column += part.host.n;
    }
    unreachable!("the tasks of all parts were counted")
}
