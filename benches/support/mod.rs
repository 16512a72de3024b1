//! What the benchmarks share: guests of a few instructions, the bare `KVM_RUN` loop they are compared with,
//! and the arithmetic of comparing.

#![allow(dead_code)] // each benchmark uses its own part

pub mod bare;
pub mod guests;
pub mod lodger_loop;
pub mod process;

use std::time::Duration;

/// How often two measurements are repeated, in turn.
const ROUNDS: usize = 15;

/// How often to measure: `wanted` times, or once where benchmarks are only tried (`-- --test`).
pub fn rounds(wanted: usize) -> usize {
    if std::env::args().any(|argument| argument == "--test") { 1 } else { wanted }
}

/// Measures two things in turn, so that a change of the machine's speed hits both, and prints their medians
/// and the median of the pairwise ratios.
pub fn compare(
    name: &str,
    unit_count: u64,
    mut bare: impl FnMut() -> Duration,
    mut ours: impl FnMut() -> Duration,
) -> f64 {
    let mut pairs = Vec::with_capacity(ROUNDS);
    for round in 0..rounds(ROUNDS) {
        // Who goes first alternates as well.
        let pair = if round % 2 == 0 {
            let bare = bare();
            (bare, ours())
        } else {
            let ours = ours();
            (bare(), ours)
        };
        pairs.push(pair);
    }
    let each = |duration: Duration| duration.as_secs_f64() * 1e6 / unit_count as f64;
    let bare = median(pairs.iter().map(|pair| each(pair.0)));
    let ours = median(pairs.iter().map(|pair| each(pair.1)));
    let ratio = median(pairs.iter().map(|pair| pair.1.as_secs_f64() / pair.0.as_secs_f64()));
    println!("{name:<28} bare {bare:8.3} µs   lodger {ours:8.3} µs   ratio {ratio:.3}");
    ratio
}

/// The median.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
