//! Linear layers: splits the stacked parts into tasks of whole rows and picks the kernel by the number of tokens.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use super::blocks::{Blocks, ForFormat, for_format};
use super::coded::{CodedFill, CodedMatVec, Decoder, ForCode, factors_len, for_code};
use super::matmul::{FillPanel, MatMul, panel_stride};
use super::matvec::MatVec;
use super::scratch::with_scratch;
use super::threads::SharedMut;
use super::{CpuDevice, CpuWeight};
use crate::device::{HostMatrix, Linear};
use crate::weights::quant::CodedMatrix;

/// Weight bytes of a decode task: some microseconds of work.
const VECTOR_TASK_BYTES: usize = 32 << 10;
/// Bytes of a panel of dequantised rows.
const PANEL_BYTES: usize = 160 << 10;
/// Rows of a panel are a multiple of this where there are enough: whole tiles at every level.
const PANEL_ROWS: usize = 6;
/// Rows of a panel from which on the inputs are read seldom enough.
const WIDE_ROWS: usize = 48;
/// Tokens of a task at least, where those of a step are split: each task fills its panel anew.
const MIN_TOKENS: usize = 128;
/// Tokens of a whole tile.
const TILE_TOKENS: usize = 4;
/// Tasks of a thread, so that none waits long for another.
const TASKS_PER_THREAD: usize = 4;

impl CpuDevice {
    /// out[t, :] = x[t, :] · wᵀ + bias; out `[tokens, linear.n]`, x `[tokens, linear.k]`.
    pub(super) fn linear_slices(&self, out: &mut [f32], x: &[f32], tokens: usize, linear: &Linear<CpuDevice>) {
        assert_eq!((out.len(), x.len()), (tokens * linear.n, tokens * linear.k), "shapes of a linear layer [{}, {}]", linear.n, linear.k);
        if tokens == 0 {
            return;
        }
        let out = SharedMut::new(out);
        let mut first = 0;
        // Parts with columns in the same order go together: all of them, but for GPTQ's act order.
        while let Some(part) = linear.parts.get(first) {
            let order = order_of(part);
            let count = linear.parts[first..].iter().take_while(|part| order_of(part) == order).count();
            let run = Run { linear, first, count, tokens };
            match order {
                None => self.run_parts(&out, x, &run),
                Some(order) => {
                    let mut ordered = self.ordered_inputs.lock();
                    ordered.clear();
                    ordered.extend(x.chunks_exact(linear.k).flat_map(|x| order.iter().map(|column| x[*column as usize])));
                    self.run_parts(&out, &ordered, &run);
                }
            }
            first += count;
        }
    }

    fn run_parts(&self, out: &SharedMut<'_, f32>, x: &[f32], run: &Run<'_>) {
        let linear = run.linear;
        let split = if run.tokens == 1 {
            Split { rows: self.vector_rows(run), tokens: 1 }
        } else {
            Split::new((linear.n, linear.k), run.tokens, self.pool.threads())
        };
        let blocks = run.tokens.div_ceil(split.tokens);
        let panels: usize = run.parts().iter().map(|part| part.host.n().div_ceil(split.rows)).sum();
        self.pool.run(panels * blocks, |task| {
            let rows = locate(run, split.rows, task / blocks);
            let first = task % blocks * split.tokens;
            let tokens = first..(first + split.tokens).min(run.tokens);
            if run.tokens == 1 { self.vector_task(out, x, &rows) } else { self.panel_task(out, x, tokens, (linear.n, &rows)) }
        });
    }

    fn vector_rows(&self, run: &Run<'_>) -> usize {
        let row_bytes = run.parts().iter().map(|part| part.host.row_bytes()).max().unwrap_or(1).max(1);
        (VECTOR_TASK_BYTES / row_bytes).max(4).next_multiple_of(4)
    }

    fn vector_task(&self, out: &SharedMut<'_, f32>, x: &[f32], rows: &Rows<'_>) {
        // SAFETY: every task has columns of its own.
        let out = unsafe { out.slice(rows.column, rows.len) };
        match &rows.part.host {
            HostMatrix::Rows(host) => {
                let weight = host.rows(rows.start, rows.len);
                for_format(host.format, VectorTask { device: self, weight, x, out: &mut *out });
            }
            HostMatrix::Coded(matrix) => with_scratch(factors_len(matrix, 4), |factors| {
                for_code(matrix, CodedVector { device: self, matrix, first: rows.start, x, out: &mut *out, factors });
            }),
        }
        if let Some(bias) = rows.bias {
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
    }

    fn panel_task(&self, out: &SharedMut<'_, f32>, x: &[f32], tokens: Range<usize>, (out_cols, rows): (usize, &Rows<'_>)) {
        let (k, len) = (rows.part.host.k(), rows.len);
        let panel_len = len * panel_stride(k);
        let factors_len = match &rows.part.host {
            HostMatrix::Rows(_) => 0,
            HostMatrix::Coded(matrix) => factors_len(matrix, 1),
        };
        with_scratch(panel_len + factors_len, |scratch| {
            let (panel, factors) = scratch.split_at_mut(panel_len);
            match &rows.part.host {
                HostMatrix::Rows(host) => {
                    let weight = host.rows(rows.start, len);
                    for_format(host.format, PanelTask { device: self, weight, k, panel: &mut *panel });
                }
                HostMatrix::Coded(matrix) => {
                    for_code(matrix, CodedPanel { device: self, matrix, first: rows.start, panel: &mut *panel, factors });
                }
            }
            let (first, x) = (tokens.start * out_cols + rows.column, &x[tokens.start * k..tokens.end * k]);
            self.dispatch.run(MatMul { rows: len, x, k, bias: rows.bias, out, out_cols, first, panel });
        });
    }
}

/// What one task of a product of several tokens computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    /// Rows of the weight: a panel that stays in the caches.
    rows: usize,
    /// Tokens.
    tokens: usize,
}

impl Split {
    /// Of a product with `[n, k]` weights. Rows are split first; where many threads would get thin panels, each of which reads all inputs,
    /// tokens are split too. An output is the same whatever the split.
    fn new((n, k): (usize, usize), tokens: usize, threads: usize) -> Split {
        let whole = |rows: usize| (rows / PANEL_ROWS * PANEL_ROWS).max(PANEL_ROWS);
        let (fitting, wanted) = (PANEL_BYTES / (panel_stride(k) * 4), TASKS_PER_THREAD * threads);
        let (shared, wide) = (whole(fitting.min(n / wanted)), whole(fitting.min(WIDE_ROWS)));
        let blocks = wanted.div_ceil(n.div_ceil(wide)).min(tokens / MIN_TOKENS);
        if shared >= wide || blocks < 2 {
            return Split { rows: shared, tokens };
        }
        Split { rows: wide, tokens: tokens.div_ceil(blocks).next_multiple_of(TILE_TOKENS) }
    }
}

/// Neighbouring parts that read the same inputs.
struct Run<'a> {
    linear: &'a Linear<CpuDevice>,
    first: usize,
    count: usize,
    tokens: usize,
}

impl Run<'_> {
    fn parts(&self) -> &[CpuWeight] {
        &self.linear.parts[self.first..self.first + self.count]
    }
}

fn order_of(part: &CpuWeight) -> Option<&[u32]> {
    match &part.host {
        HostMatrix::Coded(matrix) => matrix.order.as_deref(),
        HostMatrix::Rows(_) => None,
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

struct CodedVector<'a> {
    device: &'a CpuDevice,
    matrix: &'a CodedMatrix,
    first: usize,
    x: &'a [f32],
    out: &'a mut [f32],
    factors: &'a mut [f32],
}

impl ForCode for CodedVector<'_> {
    fn run<C: Decoder>(self) {
        let CodedVector { device, matrix, first, x, out, factors } = self;
        device.dispatch.run(CodedMatVec::<C> { matrix, first, x, out, factors, code: PhantomData });
    }
}

struct CodedPanel<'a> {
    device: &'a CpuDevice,
    matrix: &'a CodedMatrix,
    first: usize,
    panel: &'a mut [f32],
    factors: &'a mut [f32],
}

impl ForCode for CodedPanel<'_> {
    fn run<C: Decoder>(self) {
        let CodedPanel { device, matrix, first, panel, factors } = self;
        device.dispatch.run(CodedFill::<C> { matrix, first, panel, factors, code: PhantomData });
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

/// The rows of task `task`, where a task has up to `rows` rows of one part.
fn locate<'a>(run: &Run<'a>, rows: usize, mut task: usize) -> Rows<'a> {
    let linear = run.linear;
    let mut column: usize = linear.parts[..run.first].iter().map(|part| part.host.n()).sum();
    for part in &linear.parts[run.first..run.first + run.count] {
        let n = part.host.n();
        let tasks = n.div_ceil(rows);
        if task < tasks {
            let (start, len) = (task * rows, rows.min(n - task * rows));
            let column = column + start;
            let bias = linear.bias.as_ref().map(|bias| &bias.values.as_slice()[column..column + len]);
            return Rows { part, start, len, column, bias };
        }
        task -= tasks;
        column += n;
    }
    unreachable!("the tasks of all parts were counted")
}

#[cfg(test)]
mod tests {
    use super::Split;

    #[test]
    fn tokens_are_split_where_panels_would_be_thin() {
        for (shape, tokens, threads, expected) in [
            // Few threads, few tokens, or many rows: only rows are split.
            ((384, 384), 1024, 2, (48, 1024)),
            ((384, 384), 200, 16, (6, 200)),
            ((18_944, 3584), 1024, 16, (6, 1024)),
            ((1536, 384), 1024, 4, (96, 1024)),
            // Eight panels of 48 rows, four of 24, and as many blocks as give each thread its tasks.
            ((384, 384), 1024, 16, (48, 128)),
            ((384, 1536), 1024, 16, (24, 256)),
            ((1536, 384), 1024, 16, (48, 512)),
            ((384, 384), 300, 16, (48, 152)),
        ] {
            let split = Split::new(shape, tokens, threads);
            assert_eq!((split.rows, split.tokens), expected, "{shape:?}, {tokens} tokens, {threads} threads");
        }
    }
}
