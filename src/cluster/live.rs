//! The view that goes on in a terminal.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use crate::bus::redis::Surveyor;
use crate::bus::survey::Survey;
use crate::config::RedisUrl;
use crate::top::{self, Line, Subject, Tone};

use super::view::View;
use super::{ClusterError, runtime, show};

/// From one look to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Shows the cluster until `q` or Ctrl-C.
///
/// # Errors
/// See [`ClusterError`]; a Redis out of reach is shown, and asked again.
pub fn watch(redis: Option<&RedisUrl>) -> Result<(), ClusterError> {
    let redis = redis.ok_or(ClusterError::NoRedis)?.clone();
    if !stdout().is_terminal() {
        return Err(ClusterError::NoTerminal);
    }
    let runtime = runtime()?;
    let subject = Cluster { redis: redis.to_string(), view: None };
    let begin = move || {
        let mut surveyor: Option<Surveyor> = None;
        move || {
            runtime.block_on(async {
                // Dropped where anything is amiss, so that the next look connects anew.
                let mut looking = match surveyor.take() {
                    Some(looking) => looking,
                    None => Surveyor::connect(redis.clone()).await?,
                };
                let survey = looking.look().await?;
                surveyor = survey.out_of_reach.is_empty().then_some(looking);
                Ok(survey)
            })
        }
    };
    Ok(top::watch(subject, INTERVAL, begin)?)
}

struct Cluster {
    redis: String,
    view: Option<View>,
}

impl Subject for Cluster {
    type Answer = Survey;

    fn heading(&self) -> Line {
        Line::of(Tone::Faint, format!("ringmesh cluster  {}  every {INTERVAL:?}  q quits", self.redis))
    }

    fn take(&mut self, survey: Survey) {
        self.view = Some(View::new(survey));
    }

    fn lines(&self, _: usize) -> Option<Vec<Line>> {
        self.view.as_ref().map(show::lines)
    }
}
