//! The Prometheus text format, version 0.0.4, read strictly: a line that does not parse fails the test.

use std::collections::BTreeMap;

/// One line of values.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The name with any `_bucket`, `_sum` or `_count`.
    pub name: String,
    /// Label names and values, unescaped.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }
}

/// A whole scrape.
#[derive(Debug, Default)]
pub struct Metrics {
    /// In the order of the text.
    pub samples: Vec<Sample>,
    /// `# TYPE` by metric.
    pub types: BTreeMap<String, String>,
    /// `# HELP` by metric.
    pub helps: BTreeMap<String, String>,
}

impl Metrics {
    /// Parses a scrape.
    ///
    /// # Panics
    /// At the first line that the format does not allow.
    pub fn parse(text: &str) -> Metrics {
        assert!(text.ends_with('\n'), "the last line of a scrape ends with a line feed");
        let mut metrics = Metrics::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("a HELP text in {line:?}"));
                assert!(metrics.helps.insert(name.into(), help.into()).is_none(), "two HELP lines for {name}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("a type in {line:?}"));
                let known = ["counter", "gauge", "histogram", "summary", "untyped"];
                assert!(known.contains(&kind), "an unknown type in {line:?}");
                assert!(metrics.types.insert(name.into(), kind.into()).is_none(), "two TYPE lines for {name}");
            } else if !line.is_empty() && !line.starts_with('#') {
                metrics.samples.push(parse_sample(line));
            }
        }
        metrics
    }

    /// All samples of this name.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// The sum over all samples of this name that carry these labels; 0 when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |sample: &&Sample| labels.iter().all(|(key, value)| sample.label(key) == Some(value));
        self.named(name).filter(carries).map(|sample| sample.value).sum()
    }

    /// The metric a sample belongs to: its name, less what a histogram adds to it.
    pub fn family<'a>(&self, sample: &'a Sample) -> &'a str {
        for suffix in ["_bucket", "_sum", "_count"] {
            if let Some(family) = sample.name.strip_suffix(suffix)
                && self.types.get(family).is_some_and(|kind| kind == "histogram" || kind == "summary")
            {
                return family;
            }
        }
        &sample.name
    }
}

/// `name{label="value",...} number`, with no timestamp.
fn parse_sample(line: &str) -> Sample {
    let name_end = line.find(['{', ' ']).unwrap_or_else(|| panic!("a value in {line:?}"));
    let name = &line[..name_end];
    assert!(is_name(name), "a metric name in {line:?}");
    let mut labels = BTreeMap::new();
    let mut rest = &line[name_end..];
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("a label in {line:?}"));
            assert!(is_name(key), "a label name in {line:?}");
            let (value, after) = unescape(after).unwrap_or_else(|| panic!("an ended label value in {line:?}"));
            assert!(labels.insert(key.to_owned(), value).is_none(), "one label twice in {line:?}");
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let value = match rest.trim() {
        "+Inf" => f64::INFINITY,
        number => number.parse().unwrap_or_else(|_| panic!("a number in {line:?}")),
    };
    Sample { name: name.to_owned(), labels, value }
}

/// `[a-zA-Z_:][a-zA-Z0-9_:]*`
fn is_name(text: &str) -> bool {
    let ok = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
    !text.is_empty() && text.bytes().all(ok) && !text.as_bytes()[0].is_ascii_digit()
}

/// A label value up to its closing quote, and what follows it.
fn unescape(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            (_, other) => value.push(other),
        }
    }
}
