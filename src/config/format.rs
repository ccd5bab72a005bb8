//! How a setting's text is read and written back.
//!
//! Each format is a type, so that the table of settings states it beside the setting, and flags, variables, file and
//! help all read the same syntax.

use std::marker::PhantomData;
use std::time::Duration;

/// One syntax of setting values.
pub trait Format {
    /// What the text stands for.
    type Value;
    /// What the help calls the value.
    const PLACEHOLDER: &'static str;
    /// Whether TOML takes a written value without quotes.
    const BARE: bool = false;
    /// Whether the value is a list: its elements stand between commas, or the flag is given more than once.
    const LIST: bool = false;
    /// What a flag without a value says, where it may stand alone; such a setting is a TOML boolean too.
    const ALONE: Option<&'static str> = None;

    /// The sentence that an error ends with: `expected …`.
    fn expected() -> String;
    /// The value of a text; `None` when it has none.
    fn read(text: &str) -> Option<Self::Value>;
    /// A text that reads as this value again, without secrets.
    fn write(value: &Self::Value) -> String;
    /// What an error may repeat of a text that could not be read.
    fn without_secrets(text: &str) -> String {
        text.to_owned()
    }
}

/// Milliseconds in an hour: the longest duration that any setting takes.
pub const HOUR_MS: u64 = 3_600_000;
/// Bytes in a KiB.
pub const KIB: u64 = 1 << 10;
/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in a GiB.
pub const GIB: u64 = 1 << 30;

/// A whole number in `MIN..=MAX`.
pub struct Count<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

impl<T, const MIN: u64, const MAX: u64> Format for Count<T, MIN, MAX>
where
    T: TryFrom<u64> + ToString,
{
    type Value = T;
    const PLACEHOLDER: &'static str = "N";
    const BARE: bool = true;

    fn expected() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }

    fn read(text: &str) -> Option<T> {
        let number = digits(text)?;
        (MIN..=MAX).contains(&number).then(|| T::try_from(number).ok())?
    }

    fn write(value: &T) -> String {
        value.to_string()
    }
}

/// A span of `MIN_MS..=MAX_MS` milliseconds: `500ms`, `30s`, `2m`, `1h`; a bare number is seconds.
pub struct Time<const MIN_MS: u64, const MAX_MS: u64>;

const TIME_UNITS: [(&str, u64); 4] = [("h", HOUR_MS), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl<const MIN_MS: u64, const MAX_MS: u64> Format for Time<MIN_MS, MAX_MS> {
    type Value = Duration;
    const PLACEHOLDER: &'static str = "TIME";

    fn expected() -> String {
        let (min, max) = (in_units(MIN_MS, &TIME_UNITS), in_units(MAX_MS, &TIME_UNITS));
        format!("a duration such as 500ms, 30s, 2m or 1h (a bare number is seconds), from {min} to {max}")
    }

    fn read(text: &str) -> Option<Duration> {
        let (number, unit) = number_and_unit(text)?;
        let unit = if unit.is_empty() { "s" } else { unit };
        let scale = TIME_UNITS.iter().find(|(name, _)| *name == unit)?.1;
        let ms = number.checked_mul(scale)?;
        (MIN_MS..=MAX_MS).contains(&ms).then(|| Duration::from_millis(ms))
    }

    fn write(value: &Duration) -> String {
        in_units(value.as_millis() as u64, &TIME_UNITS)
    }
}

/// A number of bytes in `MIN..=MAX`: `65536`, `64KiB`, `64k`, `1MiB`; every unit is a power of 1024.
pub struct Size<const MIN: u64, const MAX: u64>;

const SIZE_UNITS: [(&str, u64); 4] = [("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("", 1)];

impl<const MIN: u64, const MAX: u64> Format for Size<MIN, MAX> {
    type Value = usize;
    const PLACEHOLDER: &'static str = "SIZE";

    fn expected() -> String {
        let (min, max) = (size_text(MIN), size_text(MAX));
        format!("a size such as 65536 (bytes), 64KiB, 64k or 1MiB, from {min} to {max}")
    }

    fn read(text: &str) -> Option<usize> {
        let (number, unit) = number_and_unit(text)?;
        let scale = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => KIB,
            "m" | "mib" => MIB,
            "g" | "gib" => GIB,
            _ => return None,
        };
        let bytes = number.checked_mul(scale)?;
        (MIN..=MAX).contains(&bytes).then(|| usize::try_from(bytes).ok())?
    }

    fn write(value: &usize) -> String {
        size_text(*value as u64)
    }
}

/// Bytes in the largest unit that divides them: `65536` is `64KiB`.
pub fn size_text(bytes: u64) -> String {
    in_units(bytes, &SIZE_UNITS)
}

/// A duration as the settings take it, to the millisecond.
pub fn duration_text(duration: Duration) -> String {
    in_units(duration.as_millis() as u64, &TIME_UNITS)
}

/// Bytes of a node id at most: it becomes a part of Redis keys and channel names.
pub const NODE_ID_BYTES_MAX: usize = 128;

/// A node id; empty stands for the host's name.
pub struct NodeName;

impl Format for NodeName {
    type Value = String;
    const PLACEHOLDER: &'static str = "ID";

    fn expected() -> String {
        format!("1 to {NODE_ID_BYTES_MAX} characters of A-Z a-z 0-9 . _ -")
    }

    fn read(text: &str) -> Option<String> {
        (text.is_empty() || is_node_id(text)).then(|| text.to_owned())
    }

    fn write(value: &String) -> String {
        value.clone()
    }
}

/// Whether a text can name a node in keys and channels.
pub fn is_node_id(text: &str) -> bool {
    let fits = (1..=NODE_ID_BYTES_MAX).contains(&text.len());
    fits && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Yes or no: `true` or `false`. The flag alone says yes.
pub struct Switch;

impl Format for Switch {
    type Value = bool;
    const PLACEHOLDER: &'static str = "true|false";
    const BARE: bool = true;
    const ALONE: Option<&'static str> = Some("true");

    fn expected() -> String {
        "true or false".to_owned()
    }

    fn read(text: &str) -> Option<bool> {
        match text {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => None,
        }
    }

    fn write(value: &bool) -> String {
        value.to_string()
    }
}

/// What is logged: a level, or directives such as `info,ringmesh::hub=debug`.
pub struct LogDirectives;

const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl Format for LogDirectives {
    type Value = String;
    const PLACEHOLDER: &'static str = "LEVEL";

    fn expected() -> String {
        format!("one of {}, or directives such as info,ringmesh::hub=debug", LOG_LEVELS.join(" "))
    }

    fn read(text: &str) -> Option<String> {
        // EnvFilter takes a bare word that is no level for a target and logs all of it: `verbose` would say nothing
        // of this node and `inof` would pass unnoticed. So a bare word must be a level here.
        let known = text.split(',').all(|directive| match directive.rsplit_once('=') {
            Some((target, level)) => !target.is_empty() && is_log_level(level),
            None => is_log_level(directive),
        });
        // Its parser also cuts texts that are not ASCII in the middle of a character, and panics.
        let readable = known && text.is_ascii() && tracing_subscriber::EnvFilter::builder().parse(text).is_ok();
        readable.then(|| text.to_owned())
    }

    fn write(value: &String) -> String {
        value.clone()
    }
}

fn is_log_level(text: &str) -> bool {
    LOG_LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text.trim()))
}

/// The shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for a person.
    Text,
    /// One JSON object a line, the fields of the event beside its message.
    Json,
}

impl Format for LogFormat {
    type Value = LogFormat;
    const PLACEHOLDER: &'static str = "text|json";

    fn expected() -> String {
        "text or json".to_owned()
    }

    fn read(text: &str) -> Option<LogFormat> {
        match text {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        }
    }

    fn write(value: &LogFormat) -> String {
        match value {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        }
    }
}

/// `64KiB` is (64, "KiB"); thousands may be set apart by `_`, as in TOML.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((digits(number)?, unit.trim_start()))
}

fn digits(text: &str) -> Option<u64> {
    let begins_with_digit = text.starts_with(|c: char| c.is_ascii_digit());
    begins_with_digit.then(|| text.replace('_', "").parse().ok())?
}

/// The largest unit of which `amount` is a whole number; units descend and the last of them is 1.
fn in_units(amount: u64, units: &[(&str, u64)]) -> String {
    let (name, scale) = match amount {
        // Zero is a multiple of everything; `0s` and `0` read better than `0h` and `0GiB`.
        0 => units.iter().find(|(name, _)| *name == "s").copied().unwrap_or(("", 1)),
        _ => units.iter().find(|(_, scale)| amount.is_multiple_of(*scale)).copied().unwrap_or(("", 1)),
    };
    format!("{}{name}", amount / scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type AnyTime = Time<0, HOUR_MS>;
    type AnySize = Size<0, { u64::MAX }>;

    fn ms(text: &str) -> Option<u128> {
        AnyTime::read(text).map(|duration| duration.as_millis())
    }

    #[test]
    fn durations_have_units_and_a_bare_number_is_seconds() {
        assert_eq!(ms("500ms"), Some(500));
        assert_eq!(ms("30s"), Some(30_000));
        assert_eq!(ms("30"), Some(30_000));
        assert_eq!(ms("2m"), Some(120_000));
        assert_eq!(ms("1h"), Some(3_600_000));
        for bad in
            ["", "s", "-1s", "+1s", "1.5s", "30x", "30 s s", "2h", "99999999999999999999s", "18446744073709551615h"]
        {
            assert_eq!(ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(AnySize::read("65536"), Some(65_536));
        assert_eq!(AnySize::read("65_536"), Some(65_536));
        for text in ["64KiB", "64k", "64K", "64kib", "64 KiB"] {
            assert_eq!(AnySize::read(text), Some(65_536), "{text}");
        }
        assert_eq!(AnySize::read("1MiB"), Some(1 << 20));
        assert_eq!(AnySize::read("2g"), Some(2 << 30));
        // 64KB is 64,000 to some and 65,536 to others, so it is neither.
        for bad in ["", "KiB", "64KB", "_1", "1e3", "17179869184GiB"] {
            assert_eq!(AnySize::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn bounds_are_inclusive() {
        type Small = Count<u32, 1, 10>;
        assert_eq!(Small::read("1"), Some(1));
        assert_eq!(Small::read("10"), Some(10));
        assert_eq!(Small::read("0"), None);
        assert_eq!(Small::read("11"), None);
        assert_eq!(Small::read("-1"), None);
    }

    #[test]
    fn node_ids_fit_into_keys_and_channels() {
        assert_eq!(NodeName::read("eu-1_a.b"), Some("eu-1_a.b".to_owned()));
        assert!(NodeName::read(&"n".repeat(NODE_ID_BYTES_MAX)).is_some());
        assert_eq!(NodeName::read(&"n".repeat(NODE_ID_BYTES_MAX + 1)), None);
        for bad in ["a b", "a:b", "a*", "ü", "a\n"] {
            assert_eq!(NodeName::read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_switch_is_on_or_off() {
        for (text, value) in [("true", true), ("1", true), ("on", true), ("false", false), ("0", false), ("no", false)]
        {
            assert_eq!(Switch::read(text), Some(value), "{text}");
            assert_eq!(Switch::read(&Switch::write(&value)), Some(value));
        }
        for bad in ["", "2", "True", "maybe"] {
            assert_eq!(Switch::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_misspelt_log_level_is_refused() {
        for good in ["info", "INFO", "off", "warn,ringmesh::hub=debug", "ringmesh=trace"] {
            assert!(LogDirectives::read(good).is_some(), "{good}");
        }
        for bad in ["", "inof", "info,", "ringmesh=loud", "=info", "ringmesh::hub"] {
            assert_eq!(LogDirectives::read(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_as_the_same_value(time_ms in 0..=HOUR_MS, bytes in 0..=1_usize << 40) {
            let time = Duration::from_millis(time_ms);
            prop_assert_eq!(AnyTime::read(&AnyTime::write(&time)), Some(time));
            prop_assert_eq!(AnySize::read(&AnySize::write(&bytes)), Some(bytes));
        }

        #[test]
        fn no_text_makes_a_format_panic(text in ".{0,40}") {
            let _ = AnyTime::read(&text);
            let _ = AnySize::read(&text);
            let _ = LogDirectives::read(&text);
            let _ = LogDirectives::read(&format!("{text}=debug"));
            let _ = LogDirectives::read(&format!("warn,[{text}]=debug"));
        }
    }
}
