//! What a run showed: rates, latencies and their percentiles, as one JSON line and one row of a table.

use pagoda_engine::core::EngineStats;
use serde_json::json;

use super::workload::Workload;

/// One request's times, in seconds from when it was sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// To the first token.
    pub ttft_s: f64,
    /// To the last token.
    pub total_s: f64,
    /// Output tokens.
    pub num_tokens: usize,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: usize,
    /// Sequences that ran when the first token came.
    pub num_running: usize,
}

/// All requests of one run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Of the requests that ended well.
    pub timings: Vec<Timing>,
    /// What the others said.
    pub errors: Vec<String>,
    /// From the first request to the last token.
    pub wall_s: f64,
    /// The engine's numbers before and after; None for an engine in another process.
    pub stats: Option<(EngineStats, EngineStats)>,
}

/// The figures of one workload: the median run of several by wall time.
pub struct Figures {
    workload: Workload,
    run: Run,
    num_runs: usize,
    /// (longest - shortest) / median wall time.
    spread: f64,
}

impl Figures {
    /// Of at least one run.
    pub fn new(workload: Workload, mut runs: Vec<Run>) -> Figures {
        runs.sort_by(|a, b| a.wall_s.total_cmp(&b.wall_s));
        let (num_runs, median) = (runs.len(), runs.len() / 2);
        let spread = (runs[num_runs - 1].wall_s - runs[0].wall_s) / runs[median].wall_s;
        Figures { workload, run: runs.swap_remove(median), num_runs, spread }
    }

    fn num_out(&self) -> usize {
        self.run.timings.iter().map(|timing| timing.num_tokens).sum()
    }

    /// Output tokens a second, of all requests together.
    pub fn out_tok_s(&self) -> f64 {
        self.num_out() as f64 / self.run.wall_s
    }

    fn total_tok_s(&self) -> f64 {
        (self.num_out() + self.run.timings.len() * self.workload.input_len) as f64 / self.run.wall_s
    }

    /// Milliseconds between two tokens of a request, sorted.
    fn tpot_ms(&self) -> Vec<f64> {
        let several = self.run.timings.iter().filter(|timing| timing.num_tokens > 1);
        sorted(several.map(|timing| (timing.total_s - timing.ttft_s) * 1e3 / (timing.num_tokens - 1) as f64).collect())
    }

    fn ttft_ms(&self) -> Vec<f64> {
        sorted(self.run.timings.iter().map(|timing| timing.ttft_s * 1e3).collect())
    }

    fn num_running(&self) -> usize {
        self.run.timings.iter().map(|timing| timing.num_running).max().unwrap_or(0)
    }

    /// Share of allocated KV slots that held no token, over the steps of the run.
    fn kv_waste(&self) -> Option<f64> {
        let (before, after) = self.run.stats?;
        let allocated = after.kv_slots_allocated - before.kv_slots_allocated;
        let used = after.kv_slots_used - before.kv_slots_used;
        Some(if allocated == 0 { 0.0 } else { 1.0 - used as f64 / allocated as f64 })
    }

    /// Head of the table.
    pub const HEADER: &str = "label                     requests    in   out   wall s   out tok/s   all tok/s  TPOT ms      p99  TTFT ms      p99  \
                              kv waste  host us  spread\n";

    /// One line of the table.
    pub fn row(&self, label: &str) -> String {
        let (workload, tpot, ttft) = (&self.workload, self.tpot_ms(), self.ttft_ms());
        let host = self.host_us_per_step();
        let text = |value: Option<f64>, digits: usize| value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"));
        let mut row = format!("{label:<25} {:>8} {:>5} {:>5}", workload.requests, workload.input_len, workload.output_len);
        row.push_str(&format!(" {:>8.2} {:>11.1} {:>11.1}", self.run.wall_s, self.out_tok_s(), self.total_tok_s()));
        for (values, share) in [(&tpot, 0.5), (&tpot, 0.99), (&ttft, 0.5), (&ttft, 0.99)] {
            row.push_str(&format!(" {:>8.2}", percentile(values, share)));
        }
        let waste = text(self.kv_waste().map(|waste| waste * 100.0), 1);
        row.push_str(&format!(" {waste:>8}% {:>8} {:>6.1}%\n", text(host, 0), self.spread * 100.0));
        if let Some(error) = self.run.errors.first() {
            row.push_str(&format!("  {} requests failed, the first: {error}\n", self.run.errors.len()));
        }
        row
    }

    fn host_us_per_step(&self) -> Option<f64> {
        let (before, after) = self.run.stats?;
        Some((after.host_us - before.host_us) as f64 / (after.num_steps - before.num_steps).max(1) as f64)
    }

    /// The JSON line.
    pub fn json(&self, label: &str) -> serde_json::Value {
        let round = |value: f64| (value * 1e4).round() / 1e4;
        let (tpot, ttft, workload) = (self.tpot_ms(), self.ttft_ms(), &self.workload);
        json!({
            "label": label,
            "wall_s": round(self.run.wall_s),
            "out_tok_s": round(self.out_tok_s()),
            "total_tok_s": round(self.total_tok_s()),
            "tpot_p50": round(percentile(&tpot, 0.5)),
            "tpot_p99": round(percentile(&tpot, 0.99)),
            "ttft_p50": round(percentile(&ttft, 0.5)),
            "ttft_p99": round(percentile(&ttft, 0.99)),
            "requests": workload.requests,
            "errors": self.run.errors.len(),
            "input_len": workload.input_len,
            "output_len": workload.output_len,
            "cached_tokens": self.run.timings.iter().map(|timing| timing.cached_tokens).sum::<usize>(),
            "kv_waste": self.kv_waste().map(round),
            "max_running": self.num_running(),
            "num_steps": self.run.stats.map(|(before, after)| after.num_steps - before.num_steps),
            "num_preemptions": self.run.stats.map(|(before, after)| after.num_preemptions - before.num_preemptions),
            "host_us_per_step": self.host_us_per_step().map(round),
            "runs": self.num_runs,
            "spread": round(self.spread),
        })
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The value below which `share` of the sorted values lie; 0 of none.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let idx = (sorted.len() as f64 * share) as usize;
    sorted.get(idx.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_computed_from_timings() {
        let timing = |ttft_s, total_s, num_tokens| Timing { ttft_s, total_s, num_tokens, cached_tokens: 8, num_running: 2 };
        let workload = Workload::plain("x", 3, 10, 5);
        let after = EngineStats { kv_slots_allocated: 100, kv_slots_used: 97, num_steps: 10, host_us: 50, ..EngineStats::default() };
        let timings = vec![timing(0.1, 0.5, 5), timing(0.2, 1.0, 5), timing(0.3, 2.0, 1)];
        let run = |wall_s| Run { timings: timings.clone(), errors: Vec::new(), wall_s, stats: Some((EngineStats::default(), after)) };
        let figures = Figures::new(workload, vec![run(2.2), run(1.9), run(2.0)]);
        let json = figures.json("x");
        for (key, expected) in [
            ("wall_s", 2.0),
            ("out_tok_s", 5.5),
            ("total_tok_s", 20.5),
            ("ttft_p50", 200.0),
            ("ttft_p99", 300.0),
            ("tpot_p50", 200.0),
            ("kv_waste", 0.03),
            ("host_us_per_step", 5.0),
            ("cached_tokens", 24.0),
            ("runs", 3.0),
            ("spread", 0.15),
        ] {
            assert_eq!(json[key].as_f64(), Some(expected), "{key}: {json}");
        }
        assert_eq!(figures.row("x").lines().count(), 1);
        let failed = Figures::new(workload, vec![Run { errors: vec!["status 500".into()], wall_s: 1.0, ..Run::default() }]);
        assert_eq!(failed.json("x")["errors"], 1);
        assert!(failed.row("x").contains("1 requests failed, the first: status 500"));
    }

    #[test]
    fn percentiles_of_few_values() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        for (share, expected) in [(0.5, 101.0), (0.99, 199.0), (1.0, 200.0)] {
            assert_eq!(percentile(&values, share), expected);
        }
        assert_eq!((percentile(&[], 0.5), percentile(&[7.0], 0.99)), (0.0, 7.0));
    }
}
