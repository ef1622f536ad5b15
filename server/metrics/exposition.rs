//! `Exposition`: Prometheus' text format 0.0.4, one family after the other.

use std::fmt::Write;

use super::histogram::Snapshot;

/// Name and value.
pub(crate) type Label<'a> = (&'a str, &'a str);

/// Text under construction.
#[derive(Default)]
pub(crate) struct Exposition(String);

impl Exposition {
    /// Begins a family; its samples follow before the next one begins.
    pub(crate) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample of a gauge or counter.
    pub(crate) fn sample(&mut self, name: &str, labels: &[Label], value: f64) {
        self.0.push_str(name);
        if !labels.is_empty() {
            self.0.push('{');
            for (idx, (label, value)) in labels.iter().enumerate() {
                let comma = if idx > 0 { "," } else { "" };
                let _ = write!(self.0, "{comma}{label}=\"{}\"", escaped(value));
            }
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// The samples of a histogram.
    pub(crate) fn histogram(&mut self, name: &str, labels: &[Label], snapshot: &Snapshot) {
        let bounds = snapshot.bounds.iter().map(|bound| format!("{bound:?}")).chain(["+Inf".to_owned()]);
        let bucket = format!("{name}_bucket");
        for (bound, count) in bounds.zip(&snapshot.cumulative) {
            self.sample(&bucket, &[labels, &[("le", bound.as_str())]].concat(), *count as f64);
        }
        let count = snapshot.cumulative.last().copied().unwrap_or_default();
        self.sample(&format!("{name}_sum"), labels, snapshot.sum);
        self.sample(&format!("{name}_count"), labels, count as f64);
    }

    /// The text.
    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

/// A label's value as it stands between quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::histogram::Histogram;

    #[test]
    fn text() {
        let mut text = Exposition::default();
        text.family("a", "gauge", "An a.");
        text.sample("a", &[], 0.5);
        text.sample("a", &[("m", "q\"\\\n")], 1e9);
        text.family("h", "histogram", "An h.");
        let histogram = Histogram::new(&[0.001, 2.0]);
        histogram.add(1.5);
        text.histogram("h", &[("m", "x")], &histogram.snapshot());
        let expected = r#"# HELP a An a.
# TYPE a gauge
a 0.5
a{m="q\"\\\n"} 1000000000
# HELP h An h.
# TYPE h histogram
h_bucket{m="x",le="0.001"} 0
h_bucket{m="x",le="2.0"} 1
h_bucket{m="x",le="+Inf"} 1
h_sum{m="x"} 1.5
h_count{m="x"} 1
"#;
        assert_eq!(text.into_text(), expected);
    }
}
