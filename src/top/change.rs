//! What two scrapes say together: rates, and quantiles of what happened between them. Pure.

use super::exposition::{Sample, Scrape};

/// A later scrape beside an earlier one of the same process.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// The later one.
    pub now: &'a Scrape,
    /// The earlier one, and the seconds from it to the later one. `None` before there are two, and after a restart, when
    /// all counters have begun anew.
    before: Option<(&'a Scrape, f64)>,
}

impl<'a> Change<'a> {
    /// From `before` to `now`, so many seconds apart.
    pub fn new(before: Option<(&'a Scrape, f64)>, now: &'a Scrape) -> Change<'a> {
        let started = |scrape: &Scrape| scrape.sum("process_start_time_seconds", &[]);
        let same_process = |&(before, seconds): &(&Scrape, f64)| started(before) == started(now) && seconds > 0.0;
        Change { now, before: before.filter(same_process) }
    }

    /// How much the sum of these counters grew each second; `None` when there is no such counter, or nothing to compare.
    pub fn rate(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let (before, seconds) = self.before?;
        let grown = self.now.sum(name, labels)? - before.sum(name, labels)?;
        Some(grown.max(0.0) / seconds)
    }

    /// The rates of a counter by the values of one of its labels, summed over all others, in the order of the text.
    pub fn rates_by(&self, name: &str, label: &str) -> Vec<(String, f64)> {
        let mut rates: Vec<(String, f64)> = Vec::new();
        for value in self.now.named(name).iter().filter_map(|sample| sample.label(label)) {
            if !rates.iter().any(|(known, _)| known == value) {
                rates.extend(self.rate(name, &[(label, value)]).map(|rate| (value.to_owned(), rate)));
            }
        }
        rates
    }

    /// The quantile (0 to 1) of a histogram's observations since the earlier scrape, in the histogram's unit, as
    /// Prometheus' `histogram_quantile` computes it: linear within a bucket, and the highest bound for what lies above
    /// it. `None` when nothing was observed.
    pub fn quantile(&self, quantile: f64, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let (before, _) = self.before?;
        let name = format!("{name}_bucket");
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for sample in self.now.with(&name, labels) {
            let bound = bound(sample)?;
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += sample.value,
                None => buckets.push((bound, sample.value)),
            }
        }
        for sample in before.with(&name, labels) {
            let bound = bound(sample)?;
            buckets.iter_mut().filter(|(known, _)| *known == bound).for_each(|(_, count)| *count -= sample.value);
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let observed = buckets.last()?.1;
        let rank = quantile * observed;
        let at = buckets.iter().position(|&(_, count)| count >= rank).filter(|_| observed > 0.0)?;
        let (low, below) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
        let (high, count) = buckets[at];
        if high.is_infinite() {
            return Some(low);
        }
        Some(if count > below { low + (high - low) * (rank - below) / (count - below) } else { high })
    }

    /// The mean of what a histogram observed since the earlier scrape.
    pub fn mean(&self, name: &str) -> Option<f64> {
        let sum = self.rate(&format!("{name}_sum"), &[])?;
        let count = self.rate(&format!("{name}_count"), &[])?;
        (count > 0.0).then(|| sum / count)
    }
}

/// The upper bound of a bucket.
fn bound(sample: &Sample) -> Option<f64> {
    match sample.label("le")? {
        "+Inf" => Some(f64::INFINITY),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(text: &str) -> Scrape {
        Scrape::parse(text).expect("the test's text is right")
    }

    #[test]
    fn rates_are_differences_by_time_and_sum_over_labels() {
        let before = scrape("c{shard=\"0\",t=\"a\"} 10\nc{shard=\"1\",t=\"a\"} 5\nc{shard=\"0\",t=\"b\"} 7\n");
        let now = scrape("c{shard=\"0\",t=\"a\"} 30\nc{shard=\"1\",t=\"a\"} 5\nc{shard=\"0\",t=\"b\"} 8\n");
        let change = Change::new(Some((&before, 2.0)), &now);
        assert_eq!(change.rate("c", &[]), Some(10.5));
        assert_eq!(change.rate("c", &[("shard", "1")]), Some(0.0));
        assert_eq!(change.rate("d", &[]), None);
        assert_eq!(change.rates_by("c", "t"), [("a".to_owned(), 10.0), ("b".to_owned(), 0.5)]);
        assert_eq!(Change::new(None, &now).rate("c", &[]), None);
    }

    #[test]
    fn a_restart_begins_anew() {
        let before = scrape("process_start_time_seconds 1\nc 100\n");
        let now = scrape("process_start_time_seconds 2\nc 3\n");
        assert_eq!(Change::new(Some((&before, 2.0)), &now).rate("c", &[]), None);
        assert_eq!(Change::new(Some((&now, 2.0)), &now).rate("c", &[]), Some(0.0));
    }

    #[test]
    fn quantiles_are_of_what_came_between() {
        let histogram = |counts: [u32; 4]| {
            let [a, b, c, d] = counts;
            let line = |bound: &str, count| format!("h_bucket{{shard=\"0\",le=\"{bound}\"}} {count}\n");
            scrape(&[line("0.1", a), line("0.2", b), line("0.4", c), line("+Inf", d)].concat())
        };
        let before = histogram([1000, 1000, 1000, 1000]);
        let quantile = |counts, q| Change::new(Some((&before, 1.0)), &histogram(counts)).quantile(q, "h", &[]);
        // 50 in the first bucket, 50 in the second.
        assert_eq!(quantile([1050, 1100, 1100, 1100], 0.5), Some(0.1));
        assert!(quantile([1050, 1100, 1100, 1100], 0.99).is_some_and(|q| (q - 0.198).abs() < 1e-9));
        // All above the last bound: it is known to be at least that.
        assert_eq!(quantile([1000, 1000, 1000, 1100], 0.99), Some(0.4));
        assert_eq!(quantile([1000, 1000, 1000, 1000], 0.99), None);
        assert_eq!(Change::new(None, &before).quantile(0.5, "h", &[]), None);
    }

    #[test]
    fn quantiles_of_several_shards_add_their_buckets() {
        let before = scrape("h_bucket{shard=\"0\",le=\"1\"} 0\nh_bucket{shard=\"0\",le=\"+Inf\"} 0\n");
        let now = scrape(
            "h_bucket{shard=\"0\",le=\"1\"} 10\nh_bucket{shard=\"0\",le=\"2\"} 10\nh_bucket{shard=\"0\",le=\"+Inf\"} 10\n\
             h_bucket{shard=\"1\",le=\"1\"} 0\nh_bucket{shard=\"1\",le=\"2\"} 30\nh_bucket{shard=\"1\",le=\"+Inf\"} 30\n",
        );
        let change = Change::new(Some((&before, 1.0)), &now);
        assert_eq!(change.quantile(0.25, "h", &[]), Some(1.0));
        assert_eq!(change.quantile(1.0, "h", &[]), Some(2.0));
        assert_eq!(change.quantile(0.5, "h", &[("shard", "0")]), Some(0.5));
    }

    #[test]
    fn means_are_of_what_came_between() {
        let before = scrape("h_sum 10\nh_count 5\n");
        let now = scrape("h_sum 40\nh_count 15\n");
        assert_eq!(Change::new(Some((&before, 2.0)), &now).mean("h"), Some(3.0));
        assert_eq!(Change::new(Some((&now, 2.0)), &now).mean("h"), None);
    }
}
