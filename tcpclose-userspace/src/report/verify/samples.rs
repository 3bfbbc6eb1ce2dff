//! The samples of one scrape, read back from Prometheus' text format.

use std::collections::BTreeMap;

/// Name, labels and value of each.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<(String, BTreeMap<String, String>, f64)>);

impl Samples {
    /// Lines that are none are skipped: what is missing shows in the comparison.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// The sum of the samples of `name` that have all of `labels`; 0 where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|(_, value)| value).sum()
    }

    /// The value of `label` in the first sample of `name` that has all of `labels`.
    pub fn label(&self, name: &str, labels: &[(&str, &str)], label: &str) -> Option<String> {
        self.select(name, labels).next()?.0.get(label).cloned()
    }

    fn select<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a BTreeMap<String, String>, f64)> {
        let has = |of: &BTreeMap<String, String>| {
            labels.iter().all(|&(key, value)| of.get(key).is_some_and(|v| v == value))
        };
        self.0.iter().filter(move |(n, of, _)| n == name && has(of)).map(|(_, of, value)| (of, *value))
    }
}

/// `name{key="value",…} 1`. The agent's labels hold neither commas nor quotes.
fn sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}').split(',').filter_map(|label| {
        let (key, value) = label.split_once('=')?;
        Some((key.to_owned(), value.trim_matches('"').to_owned()))
    });
    Some((name.to_owned(), labels.collect(), value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let samples = Samples::parse(
            "# HELP a b\n# TYPE a gauge\na{state=\"close_wait\",port=\"80\"} 3\na{state=\"close_wait\",port=\"other\"} 4\n\
             a{state=\"last_ack\"} 1\nab 7\nhook{hook=\"state\",backend=\"btf\"} 1\nbroken\nbroken{ x\n",
        );
        assert_eq!(samples.sum("a", &[("state", "close_wait")]), 7.0);
        assert_eq!((samples.sum("a", &[]), samples.sum("ab", &[]), samples.sum("c", &[])), (8.0, 7.0, 0.0));
        assert_eq!(samples.label("hook", &[("hook", "state")], "backend").as_deref(), Some("btf"));
        assert_eq!(samples.label("hook", &[("hook", "time_wait")], "backend"), None);
    }
}
