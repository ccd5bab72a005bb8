//! `ringmesh doctor`: the preflight, and all else on this host that can be seen to stand in a node's way.
//!
//! `survey` looks, with `ports` and `redis`; `judge` judges what it saw; `show` prints. A warning is only given for what
//! will bite under the settings that are judged: what is merely usual elsewhere is none. Nothing on the host is changed.

mod judge;
mod ports;
mod redis;
mod show;
mod survey;

pub use show::{as_json, as_table};

use crate::config::Config;
use crate::preflight::{self, Report};

/// Looks at this host and judges it for a node with these settings. Takes as long as Redis takes to answer, ten seconds
/// at most for each server.
pub fn run(config: &Config) -> Report {
    let mut report = preflight::run(config);
    report.findings.extend(judge::judge(config, &survey::Survey::look(config)));
    report
}
