//! A report as a table for people and as JSON for programs. Pure.

use serde_json::json;

use crate::preflight::{Finding, Report, Severity};

/// `ok`, `warn` or `fail`.
fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Warning => "warn",
        Severity::Fatal => "fail",
    }
}

/// The terminal's code for its colour.
fn colour(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "32",
        Severity::Warning => "33",
        Severity::Fatal => "1;31",
    }
}

/// A line for each finding; what is wanted and what to do below those that are not as they should be; a summary.
pub fn as_table(report: &Report, colours: bool) -> String {
    let width = report.findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { what, severity, found, wanted, remedy } in &report.findings {
        let mark = format!("{:4}", word(*severity));
        let mark = if colours { format!("\x1b[{}m{mark}\x1b[0m", colour(*severity)) } else { mark };
        text += &format!("{mark}  {what:width$}  {found}\n");
        if *severity != Severity::Ok {
            let indent = 4 + 2 + width + 2;
            text += &format!("{:indent$}wanted: {wanted}\n{:indent$}remedy: {remedy}\n", "", "");
        }
    }
    text + &summary(report)
}

fn summary(report: &Report) -> String {
    let count = |severity| report.of(severity).count();
    let (warnings, failures) = (count(Severity::Warning), count(Severity::Fatal));
    let verdict = match report.severity() {
        Severity::Ok => "a node will do well here",
        Severity::Warning => "a node would start, and may fall short of its settings",
        Severity::Fatal => "a node would not start, or never be ready",
    };
    let all = report.findings.len();
    format!("\n{all} checks, {warnings} to be warned of, {failures} failed: {verdict}.\n")
}

/// One object: the worst status, and each finding.
pub fn as_json(report: &Report) -> String {
    let finding = |finding: &Finding| {
        let Finding { what, severity, found, wanted, remedy } = finding;
        json!({"check": what, "status": word(*severity), "found": found, "wanted": wanted, "remedy": remedy})
    };
    let findings: Vec<_> = report.findings.iter().map(finding).collect();
    let whole = json!({"status": word(report.severity()), "version": env!("CARGO_PKG_VERSION"), "findings": findings});
    format!("{whole:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::judged;

    fn report() -> Report {
        let finding =
            |what, severity| judged(what, severity, "this".to_owned(), "that".to_owned(), "do the other".to_owned());
        Report { findings: vec![finding("a", Severity::Ok), finding("longer", Severity::Warning)] }
    }

    #[test]
    fn only_what_is_wrong_takes_more_than_a_line() {
        let table = as_table(&report(), false);
        let expected = "\
ok    a       this
warn  longer  this
              wanted: that
              remedy: do the other

2 checks, 1 to be warned of, 0 failed: a node would start, and may fall short of its settings.
";
        assert_eq!(table, expected);
        assert!(as_table(&report(), true).contains("\x1b[33mwarn\x1b[0m  longer"));
    }

    #[test]
    fn json_has_all_of_it() {
        let json: serde_json::Value = serde_json::from_str(&as_json(&report())).expect("JSON");
        assert_eq!((&json["status"], &json["findings"][1]["status"]), (&"warn".into(), &"warn".into()));
        assert_eq!(json["findings"][1]["remedy"], "do the other");
        assert_eq!(json["findings"][0]["remedy"], "");
    }
}
