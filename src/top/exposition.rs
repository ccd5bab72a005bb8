//! Prometheus' text format, version 0.0.4: from text to samples. Pure.

use std::collections::BTreeMap;
use std::fmt;

/// One number of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Names and values of the labels, in the order of the text, unescaped.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// All that one answer of `/metrics` said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    samples: BTreeMap<String, Vec<Sample>>,
}

/// A line that is not of the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl Scrape {
    /// Reads a whole answer. Comments, `# HELP`, `# TYPE` and timestamps are passed over.
    ///
    /// # Errors
    /// The first line that is not of the format.
    pub fn parse(text: &str) -> Result<Scrape, ParseError> {
        let mut scrape = Scrape::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim_matches([' ', '\t']);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, sample) = sample(line).map_err(|what| ParseError { line: at + 1, what })?;
            match scrape.samples.get_mut(name) {
                Some(samples) => samples.push(sample),
                None => drop(scrape.samples.insert(name.to_owned(), vec![sample])),
            }
        }
        Ok(scrape)
    }

    /// The samples of this name, in the order of the text.
    pub fn named(&self, name: &str) -> &[Sample] {
        self.samples.get(name).map_or(&[], Vec::as_slice)
    }

    /// The samples of this name that carry all these labels.
    pub fn with<'a>(&'a self, name: &str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        let carries = |sample: &&Sample| labels.iter().all(|&(key, value)| sample.label(key) == Some(value));
        self.named(name).iter().filter(carries)
    }

    /// Their sum; `None` when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.with(name, labels).map(|sample| sample.value).reduce(|sum, value| sum + value)
    }
}

/// `name{label="value",...} value [timestamp]`
fn sample(line: &str) -> Result<(&str, Sample), &'static str> {
    let (name, rest) = name(line, ":").ok_or("no metric name")?;
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inner) => labels(inner)?,
        None => (Vec::new(), rest),
    };
    let mut words = rest.split_ascii_whitespace();
    let value = words.next().and_then(number).ok_or("no value")?;
    let is_timestamp = words.next().is_none_or(|word| word.parse::<i64>().is_ok());
    if !is_timestamp || words.next().is_some() {
        return Err("more than a value and a timestamp");
    }
    Ok((name, Sample { labels, value }))
}

/// Names and values, and what stands behind them.
type Labels<'a> = (Vec<(String, String)>, &'a str);

/// Labels up to their closing brace, and what follows it.
fn labels(text: &str) -> Result<Labels<'_>, &'static str> {
    let mut labels = Vec::new();
    let mut rest = text.trim_start();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (key, after) = name(rest, "").ok_or("no label name")?;
        let after = after.trim_start().strip_prefix('=').ok_or("a label without =")?;
        let after = after.trim_start().strip_prefix('"').ok_or("a label value without quotes")?;
        let (value, after) = quoted(after).ok_or("a label value that does not end")?;
        labels.push((key.to_owned(), value));
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim_start(),
            None if rest.starts_with('}') => {}
            None => return Err("labels without a comma in between"),
        }
    }
}

/// A name of letters, digits, `_` and what is in `also`, that begins with no digit; and what follows it.
fn name<'a>(text: &'a str, also: &str) -> Option<(&'a str, &'a str)> {
    let belongs = |character: char| character.is_ascii_alphanumeric() || character == '_' || also.contains(character);
    let end = text.find(|character| !belongs(character)).unwrap_or(text.len());
    let is_name = end > 0 && !text.as_bytes()[0].is_ascii_digit();
    is_name.then(|| text.split_at(end))
}

/// A label value up to its closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            (_, other) => value.push(other),
        }
    }
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        // What Rust takes beside numbers, such as `infinity`, is no value of the format.
        _ if text.ends_with(|last: char| last.is_ascii_alphabetic()) => None,
        _ => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_format_is_read() {
        let text = "\
# HELP http_requests_total The total number of HTTP requests.
# TYPE http_requests_total counter
http_requests_total{method=\"post\",code=\"200\"} 1027 1395066363000
http_requests_total{method=\"post\",code=\"400\"}    3 1395066363000

# Escaping in label values:
msdos_file_access_time_seconds{path=\"C:\\\\DIR\\\\FILE.TXT\",error=\"Cannot find file:\\n\\\"FILE.TXT\\\"\"} 1.458255915e9
metric_without_timestamp_and_labels 12.47
something_weird{problem=\"division by zero\"} +Inf -3982045
a:rule { x = \"1\" , } NaN
rpc_duration_seconds_bucket{le=\"0.05\"} 24054
";
        let scrape = Scrape::parse(text).expect("the format's own example");
        assert_eq!(scrape.sum("http_requests_total", &[]), Some(1030.0));
        assert_eq!(scrape.sum("http_requests_total", &[("code", "400"), ("method", "post")]), Some(3.0));
        assert_eq!(scrape.sum("http_requests_total", &[("code", "500")]), None);
        let file = &scrape.named("msdos_file_access_time_seconds")[0];
        assert_eq!(file.label("path"), Some("C:\\DIR\\FILE.TXT"));
        assert_eq!(file.label("error"), Some("Cannot find file:\n\"FILE.TXT\""));
        assert_eq!(scrape.sum("something_weird", &[]), Some(f64::INFINITY));
        assert!(scrape.sum("a:rule", &[("x", "1")]).is_some_and(f64::is_nan));
        assert_eq!(scrape.named("absent"), &[]);
    }

    #[test]
    fn what_is_no_sample_is_refused_with_its_line() {
        for (line, what) in [
            ("<html>", "no metric name"),
            ("1st 2", "no metric name"),
            ("name", "no value"),
            ("name x", "no value"),
            ("name infinity", "no value"),
            ("name 1 2 3", "more than a value and a timestamp"),
            ("name 1 then", "more than a value and a timestamp"),
            ("name{1=\"a\"} 1", "no label name"),
            ("name{a} 1", "a label without ="),
            ("name{a=b} 1", "a label value without quotes"),
            ("name{a=\"b} 1", "a label value that does not end"),
            ("name{a=\"b\\", "a label value that does not end"),
            ("name{a=\"b\"c=\"d\"} 1", "labels without a comma in between"),
            ("name{", "no label name"),
        ] {
            let refused = Scrape::parse(&format!("# fine\n{line}\n")).expect_err(line);
            assert_eq!(refused, ParseError { line: 2, what }, "{line}");
        }
    }
}
