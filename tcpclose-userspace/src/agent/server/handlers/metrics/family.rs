//! A metric family while it is filled, by its descriptor.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use crate::metrics::descriptors::{Descriptor, MetricKind};

/// The number of series of a family in Prometheus.
pub fn series_of(family: &MetricFamily) -> usize {
    let each = |metric: &Metric| match family.get_field_type() {
        // The buckets, +Inf, sum and count.
        MetricType::HISTOGRAM => metric.get_histogram().get_bucket().len() + 3,
        _ => 1,
    };
    family.get_metric().iter().map(each).sum()
}

/// A metric family that is being filled.
pub struct Family {
    descriptor: &'static Descriptor,
    pub metrics: Vec<Metric>,
}

impl Family {
    pub fn new(descriptor: &'static Descriptor) -> Self {
        Self { descriptor, metrics: Vec::new() }
    }

    /// Adds a sample; `labels` are the values of the descriptor's labels.
    pub fn add(&mut self, labels: &[&str], value: f64) {
        let mut metric = self.labelled(labels);
        if self.descriptor.kind == MetricKind::Counter {
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

    pub fn with(mut self, labels: &[&str], value: f64) -> Self {
        self.add(labels, value);
        self
    }

    pub fn labelled(&self, values: &[&str]) -> Metric {
        debug_assert_eq!(values.len(), self.descriptor.labels.len(), "{}", self.descriptor.name);
        let pairs = self.descriptor.labels.iter().zip(values).map(|(&name, &value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        });
        Metric::from_label(pairs.collect())
    }

    pub fn done(self) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.descriptor.name.to_owned());
        family.set_help(self.descriptor.help.to_owned());
        family.set_field_type(match self.descriptor.kind {
            MetricKind::Counter => MetricType::COUNTER,
            MetricKind::Gauge => MetricType::GAUGE,
            MetricKind::Histogram => MetricType::HISTOGRAM,
        });
        family.set_metric(self.metrics);
        family
    }
}

/// A family of one sample without labels.
pub fn single(descriptor: &'static Descriptor, value: f64) -> Family {
    Family::new(descriptor).with(&[], value)
}
