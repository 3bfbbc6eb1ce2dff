//! Metric families in the types of the prometheus crate.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// Series of a family in Prometheus.
pub fn series_of(family: &MetricFamily) -> usize {
    let each = |metric: &Metric| match family.get_field_type() {
        // The buckets, +Inf, sum and count.
        MetricType::HISTOGRAM => metric.get_histogram().get_bucket().len() + 3,
        _ => 1,
    };
    family.get_metric().iter().map(each).sum()
}

/// A metric family under construction.
pub struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    pub metrics: Vec<Metric>,
}

impl Family {
    pub fn new(name: &'static str, help: &'static str, kind: MetricType) -> Self {
        Self { name, help, kind, metrics: Vec::new() }
    }

    pub fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    pub fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    pub fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        let mut metric = labelled(labels);
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    pub fn with(mut self, labels: &[(&str, &str)], value: f64) -> Self {
        self.add(labels, value);
        self
    }

    pub fn done(self) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(self.kind);
        family.set_metric(self.metrics);
        family
    }
}

pub fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pairs = labels.iter().map(|&(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}
