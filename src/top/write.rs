//! Numbers as a person reads them: at most seven characters, whatever their size. Pure.

use std::time::Duration;

/// Nothing to show.
pub const NONE: &str = "-";

/// `12345678` is `12.3M`.
pub fn number(value: f64) -> String {
    scaled(value, 1000.0, &["", "k", "M", "G", "T"])
}

/// `12345678` is `11.8MiB`.
pub fn bytes(value: f64) -> String {
    scaled(value, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// `0.00123` is `1.23ms`.
pub fn seconds(value: f64) -> String {
    match value {
        value if value < 1e-3 => format!("{:.0}µs", value * 1e6),
        value if value < 1.0 => format!("{}ms", digits(value * 1e3)),
        value => format!("{}s", digits(value)),
    }
}

/// `0.5` is `50%`.
pub fn percent(value: f64) -> String {
    format!("{:.0}%", value * 100.0)
}

/// `93784` seconds are `1d2h`.
pub fn uptime(value: Duration) -> String {
    let seconds = value.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h{minutes}m"),
        (days, hours, ..) => format!("{days}d{hours}h"),
    }
}

/// What is there as `write` writes it, and a dash for what is not.
pub fn maybe(value: Option<f64>, write: fn(f64) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), write)
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut units = units.iter();
    let mut unit = units.next().unwrap_or(&"");
    // What would be rounded to a whole step takes the next unit.
    while value.abs() >= step - 0.5 {
        let Some(next) = units.next() else { break };
        unit = next;
        value /= step;
    }
    format!("{}{unit}", digits(value))
}

/// Three digits that count; whole numbers without a point.
fn digits(value: f64) -> String {
    let text = match value.abs() {
        magnitude if magnitude >= 99.95 => return format!("{value:.0}"),
        magnitude if magnitude >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.256, "0.26"),
            (7.0, "7"),
            (12.34, "12.3"),
            (99.96, "100"),
            (999.0, "999"),
            (999.7, "1k"),
            (51_234.0, "51.2k"),
            (1_000_000.0, "1M"),
            (2.5e15, "2500T"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(bytes(1023.0), "1023B");
        assert_eq!(bytes(1536.0), "1.5KiB");
        assert_eq!(bytes(24.0 * 1024.0 * 1024.0 * 1024.0), "24GiB");
    }

    #[test]
    fn times_have_a_unit_that_fits() {
        for (value, text) in
            [(0.00005, "50µs"), (0.00123, "1.23ms"), (0.25, "250ms"), (1.5, "1.5s"), (30.0, "30s"), (0.0, "0µs")]
        {
            assert_eq!(seconds(value), text);
        }
        for (value, text) in [(59, "59s"), (61, "1m1s"), (3_661, "1h1m"), (93_784, "1d2h")] {
            assert_eq!(uptime(Duration::from_secs(value)), text);
        }
        assert_eq!(maybe(None, seconds), "-");
        assert_eq!(maybe(Some(0.42), percent), "42%");
    }
}
