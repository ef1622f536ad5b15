//! Log probabilities of one row: the chosen token, its rank, the best alternatives.

use super::vector;

/// One token's logprob with its rank and the best alternatives.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Token the entry is about.
    pub token: u32,
    /// Its log probability (of the raw logits: before temperature and penalties, as OpenAI's API reports them).
    pub logprob: f32,
    /// 1 + number of tokens with a higher logit.
    pub rank: u32,
    /// The best `top` tokens, descending.
    pub top: Vec<(u32, f32)>,
}

/// Logprobs of a row; logits: `[vocab]` f32, sums in f64; NaN counts as -inf. Equal logits are listed by id.
pub fn token_logprobs(logits: &[f32], token: u32, top: usize) -> TokenLogprobs {
    let max = vector::max(logits);
    let log_sum = if max.is_finite() { f64::from(max) + vector::sum_exp(logits, max).ln() } else { f64::from(max) };
    let logprob = |logit: f32| {
        let value = (f64::from(logit) - log_sum) as f32;
        if value.is_nan() { if logit == f32::INFINITY { 0.0 } else { f32::NEG_INFINITY } } else { value }
    };
    let chosen = logits[token as usize];
    TokenLogprobs {
        token,
        logprob: logprob(chosen),
        rank: 1 + vector::count_above(logits, if chosen.is_nan() { f32::NEG_INFINITY } else { chosen }),
        top: best(logits, top).into_iter().map(|(id, logit)| (id, logprob(logit))).collect(),
    }
}

/// The `count` largest logits, descending, equal ones by id. A row is read once; few elements beat the smallest kept one.
fn best(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    const CHUNK: usize = 64;
    let mut kept: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    if count == 0 {
        return kept;
    }
    for (index, chunk) in logits.chunks(CHUNK).enumerate() {
        let beaten = |kept: &[(u32, f32)], x: f32| kept.len() == count && x <= kept[count - 1].1;
        if beaten(&kept, vector::max(chunk)) {
            continue;
        }
        for (offset, &x) in chunk.iter().enumerate() {
            if x.is_nan() || beaten(&kept, x) {
                continue;
            }
            let at = kept.partition_point(|&(_, y)| y >= x);
            kept.insert(at, ((index * CHUNK + offset) as u32, x));
            kept.truncate(count);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_row_by_hand() {
        // softmax of [1, 3, 2, 3] has the sum e^-2 + 1 + e^-1 + 1 at max 3
        let lse = 3.0 + (2.0 + (-1.0f64).exp() + (-2.0f64).exp()).ln();
        let got = token_logprobs(&[1.0, 3.0, 2.0, 3.0], 2, 3);
        assert_eq!((got.token, got.rank), (2, 3));
        assert!((f64::from(got.logprob) - (2.0 - lse)).abs() < 1e-6);
        assert_eq!(got.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(got.top[2].1, got.logprob);
        assert!(token_logprobs(&[1.0, 2.0], 0, 0).top.is_empty());
        assert_eq!(token_logprobs(&[1.0, 2.0], 0, 9).top.len(), 2);
    }

    #[test]
    fn top_agrees_with_a_sort() {
        let row: Vec<f32> = (0..10_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 / 100.0).collect();
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
        let got = token_logprobs(&row, order[7], 20);
        assert_eq!(got.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), order[..20]);
        let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        assert!((f64::from(got.top[0].1) - (f64::from(row[order[0] as usize]) - total)).abs() < 1e-5);
    }

    #[test]
    fn broken_rows_give_numbers() {
        for row in [[f32::NAN; 3], [f32::NEG_INFINITY; 3], [f32::INFINITY, 0.0, f32::NAN]] {
            let got = token_logprobs(&row, 2, 2);
            assert_eq!(got.logprob, f32::NEG_INFINITY, "{row:?}");
            assert!(got.top.iter().all(|(_, logprob)| !logprob.is_nan()));
        }
    }
}
