//! A strict reader of Prometheus' text format: what it takes, any scraper takes.

use std::collections::{BTreeMap, HashSet};

/// Samples by `name{label="value",...}` with the labels in order of their names.
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Reads a whole answer; panics at whatever a scraper may refuse.
    pub fn parse(text: &str) -> Scrape {
        let (mut samples, mut families) = (BTreeMap::new(), HashSet::new());
        let mut family = (String::new(), String::new());
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(kind != "counter" || name.ends_with("_total"), "{line}");
                assert!(families.insert(name.to_owned()), "{name} comes twice");
                family = (name.to_owned(), kind.to_owned());
            } else if !line.starts_with("# HELP ") {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = split(series);
                let suffix = name.strip_prefix(&family.0).unwrap_or_else(|| panic!("{line} is outside of its family"));
                let allowed: &[&str] = if family.1 == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(allowed.contains(&suffix), "{line}");
                let value: f64 = value.parse().unwrap();
                assert!(value.is_finite() && value >= 0.0, "{line}");
                assert!(samples.insert(key(&name, &labels), value).is_none(), "{series} comes twice");
            }
        }
        let scrape = Scrape(samples);
        families.iter().for_each(|name| scrape.check_histogram(name));
        scrape
    }

    /// Buckets grow, and the last one is the count.
    fn check_histogram(&self, name: &str) {
        for (series, count) in self.0.iter().filter(|(series, _)| split(series).0 == format!("{name}_count")) {
            let labels = split(series).1;
            let mut buckets = Vec::new();
            for (series, value) in self.0.iter().filter(|(series, _)| split(series).0 == format!("{name}_bucket")) {
                let mut own = split(series).1;
                let bound = own.remove("le").unwrap();
                if own == labels {
                    buckets.push((bound.parse::<f64>().unwrap(), *value));
                }
            }
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{series}");
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{series}");
        }
    }

    /// The value of `name` for model `m` with further labels.
    pub fn of(&self, name: &str, further: &[(&str, &str)]) -> f64 {
        let mut labels = BTreeMap::from([("engine".to_owned(), "0".to_owned()), ("model_name".to_owned(), "m".to_owned())]);
        labels.extend(further.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        let key = key(name, &labels);
        *self.0.get(&key).unwrap_or_else(|| panic!("no {key}"))
    }

    /// Names of all families' samples.
    pub fn names(&self) -> HashSet<String> {
        self.0.keys().map(|series| split(series).0).collect()
    }
}

fn key(name: &str, labels: &BTreeMap<String, String>) -> String {
    format!("{name}{labels:?}")
}

/// Name and labels of a series, as it is written or as `key` wrote it.
fn split(series: &str) -> (String, BTreeMap<String, String>) {
    let Some((name, labels)) = series.split_once('{') else { return (series.to_owned(), BTreeMap::new()) };
    let labels = labels.strip_suffix('}').unwrap();
    let pairs = labels.split(',').map(|pair| pair.trim()).filter(|pair| !pair.is_empty());
    let unquoted = |text: &str| text.trim().trim_matches('"').to_owned();
    let pair = |pair: &str| {
        let (label, value) = pair.split_once(['=', ':']).unwrap();
        assert!(value.trim().starts_with('"') && value.ends_with('"'), "{series}");
        (unquoted(label), unquoted(value))
    };
    (name.to_owned(), pairs.map(pair).collect())
}
