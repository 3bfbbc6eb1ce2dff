//! Durations with the precision to which they are known: `61µs`, `1.203s`, `30–31s`, `≥5.000s`, `unknown`.

use crate::names::Age;

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const S: u64 = 1_000 * MS;

/// The time spent in a state.
pub fn span(age: Age) -> String {
    match (age.min_ns, age.max_ns) {
        (0, None) => "unknown".to_owned(),
        (min, None) => format!("≥{}", rounded(min, Unit::of(min), 3, Round::Down)),
        (min, Some(max)) if max <= min => exact(min),
        (min, Some(max)) => interval(min, max),
    }
}

/// A time that is known.
pub fn exact(ns: u64) -> String {
    let unit = Unit::of(ns);
    let decimals = if unit.ns == US { 0 } else { 3 };
    rounded(ns, unit, decimals, Round::Nearest)
}

#[derive(Clone, Copy)]
struct Unit {
    ns: u64,
    name: &'static str,
}

impl Unit {
    fn of(ns: u64) -> Self {
        match ns {
            0..MS => Self { ns: US, name: "µs" },
            MS..S => Self { ns: MS, name: "ms" },
            _ => Self { ns: S, name: "s" },
        }
    }
}

#[derive(Clone, Copy)]
enum Round {
    Down,
    Up,
    Nearest,
}

fn rounded(ns: u64, unit: Unit, decimals: usize, round: Round) -> String {
    format!("{}{}", digits(ns, unit, decimals, round), unit.name)
}

fn digits(ns: u64, unit: Unit, decimals: usize, round: Round) -> String {
    let step = (unit.ns / 10u64.pow(decimals as u32)).max(1);
    let steps = match round {
        Round::Down => ns / step,
        Round::Up => ns.div_ceil(step),
        Round::Nearest => ns.saturating_add(step / 2) / step,
    };
    let per_unit = unit.ns / step;
    match decimals {
        0 => steps.to_string(),
        _ => format!("{}.{:0decimals$}", steps / per_unit, steps % per_unit),
    }
}

/// Rounded outwards, so that what is proven stays so, with no more digits than the bounds need to differ.
fn interval(min: u64, max: u64) -> String {
    let unit = Unit::of(max);
    let width = max - min;
    let decimals = (0..3).find(|decimals| unit.ns / 10u64.pow(*decimals) <= width).unwrap_or(3) as usize;
    let (low, high) = (digits(min, unit, decimals, Round::Down), digits(max, unit, decimals, Round::Up));
    format!("{low}–{high}{}", unit.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_says_what_is_proven() {
        for (min, max, text) in [
            (0, Some(0), "0µs"),
            (61_400, Some(61_400), "61µs"),
            (999_999, Some(999_999), "1000µs"),
            (12_345_678, Some(12_345_678), "12.346ms"),
            (1_203_000_000, Some(1_203_000_000), "1.203s"),
            (61_953_000_000, Some(61_953_000_000), "61.953s"),
            (30_200_000_000, Some(30_900_000_000), "30.2–30.9s"),
            (30_200_000_000, Some(31_200_000_000), "30–32s"),
            (30_000_000_000, Some(31_000_000_000), "30–31s"),
            (0, Some(1_500_000_000), "0–2s"),
            (999_000_000, Some(1_000_400_000), "0.999–1.001s"),
            (10_001_000, Some(10_001_001), "10.001–10.002ms"),
            (5_000_000_000, None, "≥5.000s"),
            (0, None, "unknown"),
            (u64::MAX, Some(u64::MAX), "18446744073.709s"),
        ] {
            assert_eq!(span(Age { min_ns: min, max_ns: max }), text);
        }
    }
}
