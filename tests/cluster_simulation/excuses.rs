//! What excuses a message that is lost, late, repeated or out of order. Each excuse is as wide as the promise that it
//! limits: it names the nodes and the time that it hangs on.

use std::collections::BTreeMap;

use crate::world::{Client, ENTERED_WITHIN, Loss, MS, S, Upheaval, World};

/// How long a route may lead to a node that the user has left.
const STALE_ROUTE: u64 = 40 * S;
/// How long what was held up is under way once everybody can be reached again.
const RECOVERS_WITHIN: u64 = 5 * S;
/// When a node that is back has answered.
const ANSWERED_WITHIN: u64 = 3 * S;

/// A message that takes longer has waited.
const LATE: u64 = 100 * MS;
/// How long a declaration of a death takes to be seen by all, and how long after a loss of data who did not come back is
/// taken for dead.
const SEEN_WITHIN: u64 = 5 * S;
const TAKEN_FOR_DEAD_WITHIN: u64 = 20 * S;

/// What was said: on which process, when, and to which user; `None`: by a service, or to all.
#[derive(Clone, Copy)]
pub struct Said {
    pub process: Option<usize>,
    pub user: Option<usize>,
    pub sent_at: u64,
}

/// A time at which a process could not be reached.
struct Absence {
    process: usize,
    since: u64,
    until: u64,
    /// The upheaval that it is.
    upheaval: Option<usize>,
}

impl Absence {
    fn overlaps(&self, since: u64, until: u64) -> bool {
        self.since <= until && self.until >= since
    }
}

pub struct Excuses<'a> {
    world: &'a World,
    absences: Vec<Absence>,
    /// When each user had connections on each process, or asked for them.
    stays: BTreeMap<(usize, usize), Vec<(u64, u64)>>,
}

impl<'a> Excuses<'a> {
    pub fn new(world: &'a World) -> Self {
        let outages = world.outages.iter().map(|outage| Absence {
            process: outage.process,
            since: outage.since,
            until: outage.until,
            upheaval: None,
        });
        let upheavals = world.upheavals.iter().enumerate().map(|(at, upheaval)| Absence {
            process: upheaval.process,
            since: upheaval.since,
            until: known_to_all(upheaval, &world.losses),
            upheaval: Some(at),
        });
        let mut stays: BTreeMap<(usize, usize), Vec<(u64, u64)>> = BTreeMap::new();
        for client in &world.clients {
            let stay = (client.asked_at, client.closed_at.unwrap_or(u64::MAX));
            stays.entry((client.user, client.process)).or_default().push(stay);
        }
        Self { world, absences: outages.chain(upheavals).collect(), stays }
    }

    /// Whether a user had a connection on a process, or asked for one, between these times.
    fn was_on(&self, user: usize, process: usize, since: u64, until: u64) -> bool {
        let stays = self.stays.get(&(user, process)).into_iter().flatten();
        stays.into_iter().any(|&(asked, closed)| asked <= until && closed >= since)
    }

    /// When a message has arrived at a connection, or somewhere, if it is not lost: soon, unless a node that it may meet
    /// cannot be reached.
    pub fn arrives_by(&self, said: &Said, client: Option<&Client>) -> u64 {
        self.arrives_by_but_for(said, client, None)
    }

    /// Whether a connection of the user went, after a message was said, without having had it: it comes back from there,
    /// while others have it.
    pub fn may_come_back(&self, said: &Said, number: u64) -> bool {
        let of_user = self.world.clients.iter().filter(|client| Some(client.user) == said.user);
        let mut left = of_user.filter(|client| client.closed_at.is_some_and(|closed| closed >= said.sent_at));
        left.any(|client| client.asked_at <= said.sent_at && client.received.iter().all(|&(got, _)| got != number))
    }

    /// Whether nothing held a message up, and nothing the answer that it had arrived.
    pub fn meets_nothing(&self, said: &Said, until: u64) -> bool {
        let was_on =
            |process| self.was_on(said.user?, process, said.sent_at.saturating_sub(STALE_ROUTE), until).then_some(());
        let concerns = |absence: &Absence| {
            absence.overlaps(said.sent_at, until)
                && (said.process == Some(absence.process) || was_on(absence.process).is_some())
        };
        let is_doubtful = self.world.losses.iter().any(|loss| loss.since <= until);
        let is_slow = self.world.stalls.iter().any(|stall| stall.0 <= until && stall.1 >= said.sent_at);
        let is_held_up = self.arrives_by(said, None) > self.arrives_at(said);
        let loses = self.world.faults.loses_one_in > 0;
        let is_clogged = said.process.is_some_and(|process| self.was_clogged(process, said.sent_at, until));
        !loses && !is_clogged && !is_doubtful && !is_slow && !is_held_up && !self.absences.iter().any(concerns)
    }

    /// Whether a process had so much to do between these times that answers came late: something of it did.
    fn was_clogged(&self, process: usize, since: u64, until: u64) -> bool {
        let of_process = self.world.clients.iter().filter(|client| client.process == process);
        of_process.flat_map(|client| &client.received).any(|&(number, received_at)| {
            let sent_at = self.world.messages[number as usize].sent_at;
            sent_at <= until && received_at >= since && received_at - sent_at > LATE + 20 * self.world.faults.latency
        })
    }

    /// When a message has arrived at the latest that nothing holds up.
    fn arrives_at(&self, said: &Said) -> u64 {
        said.sent_at + 300 * MS + 20 * self.world.faults.latency + self.slow()
    }

    /// How much later things are where they are slow all the time.
    fn slow(&self) -> u64 {
        let losses = if self.world.faults.loses_one_in > 0 { 5 * S } else { 0 };
        losses + if self.world.had_slow_shards { S } else { 0 }
    }

    fn arrives_by_but_for(&self, said: &Said, client: Option<&Client>, upheaval: Option<usize>) -> u64 {
        let faults = &self.world.faults;
        let slow = self.slow();
        let mut end = self.arrives_at(said);
        let meets = |process: usize, end: u64| {
            said.process == Some(process)
                || client.is_some_and(|client| client.process == process)
                || said
                    .user
                    .is_some_and(|user| self.was_on(user, process, said.sent_at.saturating_sub(STALE_ROUTE), end))
        };
        loop {
            let absences = self.absences.iter().filter(|absence| upheaval.is_none() || absence.upheaval != upheaval);
            let absences = absences.filter(|absence| meets(absence.process, end));
            let times = absences.map(|absence| (absence.since, absence.until)).chain(self.world.stalls.iter().copied());
            let losses = self.world.losses.iter().map(|loss| (loss.at, loss.at));
            // The home of the sender's node keeps what is said to a user who is about to open there.
            let opens_beside = |other: &&Client| Some(other.user) == said.user && Some(other.process) == said.process;
            let answered = |client: &Client| client.opened_at.or(client.closed_at).unwrap_or(u64::MAX);
            let openings = self.world.clients.iter().filter(opens_beside);
            let kept = openings
                .map(|opening| (opening.asked_at, answered(opening)))
                .filter(|&(asked, answered)| asked <= said.sent_at && answered >= said.sent_at)
                .map(|(_, answered)| answered.saturating_add(300 * MS + 20 * faults.latency + slow));
            if let Some(kept) = kept.max().filter(|kept| *kept > end) {
                end = kept;
                continue;
            }
            let later = times
                .chain(losses)
                .map(|(since, until)| (since, until.saturating_add(RECOVERS_WITHIN)))
                .filter(|&(since, until)| since <= end && until >= said.sent_at)
                .map(|(_, until)| until)
                .max();
            match later {
                Some(later) if later > end => end = later,
                _ => return end,
            }
        }
    }

    /// Whether a message may be lost for a connection; `None`: for every connection of the user.
    pub fn may_be_lost(&self, said: &Said, client: Option<&Client>) -> bool {
        let upheavals = self.world.upheavals.iter().enumerate();
        let with_a_node = upheavals.into_iter().any(|(at, upheaval)| {
            let process = upheaval.process;
            // Who lives after all says it again in its next life; only what was to come to its own connections is lost.
            let concerns = match upheaval.was_declared {
                false => said.process == Some(process) && said.sent_at <= upheaval.since,
                true => client.is_some_and(|client| client.process == process) && said.sent_at <= gone_until(upheaval),
            };
            // It must have been under way when that befell: a moment, or as long as somebody could not be reached.
            concerns && self.arrives_by_but_for(said, client, Some(at)) >= upheaval.since
        });
        with_a_node || client.is_some_and(|client| self.misses_a_holder(said, client))
    }

    /// Whether a message goes through a node that has the user too and could not be asked when the connection was let in, and
    /// has not answered yet: it does not know that it has to pass the message on.
    fn misses_a_holder(&self, said: &Said, client: &Client) -> bool {
        let first = self.first_of_stay(client);
        let Some(((holder, opened), user)) = said.process.zip(first.opened_at).zip(said.user) else { return false };
        let does_not_know = |since: u64| said.sent_at <= self.answers_by(holder, since);
        let was_let_in_past = first.let_in_past.contains(&holder) && does_not_know(opened);
        // The client's node was declared dead, and has entered its users again.
        let entered_past = self.world.upheavals.iter().any(|upheaval| {
            (upheaval.process, upheaval.was_declared) == (client.process, true)
                && upheaval.until <= said.sent_at
                && self.is_absent(holder, upheaval.until, gone_until(upheaval))
                && does_not_know(upheaval.until)
        });
        (was_let_in_past || entered_past) && self.was_on(user, holder, said.sent_at, said.sent_at)
    }

    /// Whether a process could not be reached at any moment between these times.
    pub fn is_out_throughout(&self, process: usize, since: u64, until: u64) -> bool {
        let covers = |absence: &Absence| absence.process == process && absence.since <= since && absence.until >= until;
        self.absences.iter().any(covers)
    }

    /// Whether nothing kept a process, or Redis, from working between these times, nor just before.
    pub fn is_at_work(&self, process: usize, since: u64, until: u64) -> bool {
        let before = since.saturating_sub(S);
        let has_stall = self.world.stalls.iter().any(|stall| stall.0 <= until && stall.1 >= before);
        !has_stall && !self.is_absent(process, before, until)
    }

    fn is_absent(&self, process: usize, since: u64, until: u64) -> bool {
        self.absences.iter().any(|absence| absence.process == process && absence.overlaps(since, until))
    }

    /// The connection that the user's node was registered for, which those that came after it found.
    fn first_of_stay<'b>(&'b self, client: &'b Client) -> &'b Client {
        let mut first = client;
        loop {
            let is_earlier = |other: &&Client| {
                (other.process, other.user) == (client.process, client.user)
                    && other.opened_at < first.opened_at
                    && other.opened_at.is_some()
                    && other.closed_at.is_none_or(|closed| closed > first.asked_at)
            };
            match self.world.clients.iter().filter(is_earlier).min_by_key(|other| other.opened_at) {
                Some(earlier) => first = earlier,
                None => return first,
            }
        }
    }

    /// When a process that could not be asked is back, and has answered.
    fn answers_by(&self, process: usize, from: u64) -> u64 {
        let mut end = from;
        loop {
            let is_near = |absence: &&Absence| {
                absence.process == process && absence.overlaps(from, end.saturating_add(ANSWERED_WITHIN))
            };
            let absences = self.absences.iter().filter(is_near).map(|absence| absence.until);
            let until = end.saturating_add(ANSWERED_WITHIN);
            let stalls = self.world.stalls.iter().filter(|stall| stall.0 <= until && stall.1 >= from);
            match absences.chain(stalls.map(|stall| stall.1)).max() {
                Some(later) if later > end => end = later,
                _ => return until,
            }
        }
    }

    /// Whether data was lost after a connection's end was written, and with it that.
    pub fn removal_was_lost(&self, client: &Client) -> bool {
        let Some(closed) = client.closed_at else { return false };
        let written_by = self.answers_by(client.process, closed).saturating_add(RECOVERS_WITHIN);
        self.world.losses.iter().any(|loss| closed <= loss.at && loss.since <= written_by)
    }

    /// Times within a connection's at which its node was not in the directory: it was declared dead though it lives.
    pub fn is_out_of_the_directory(&self, process: usize, at: u64) -> bool {
        self.world.upheavals.iter().any(|upheaval| {
            (upheaval.process, upheaval.was_declared) == (process, true)
                && upheaval.since <= at
                && at <= gone_until(upheaval)
        })
    }

    /// When a user was there, connection by connection, without the times at which the connection's node was not in the
    /// directory.
    pub fn presence(&self, user: usize) -> Vec<(u64, u64)> {
        let mut times = Vec::new();
        for client in self.world.clients.iter().filter(|client| client.user == user) {
            let Some(mut opened) = client.opened_at else { continue };
            let closed = client.closed_at.unwrap_or(u64::MAX);
            let of_process = |upheaval: &&Upheaval| upheaval.process == client.process && upheaval.was_declared;
            let mut out: Vec<&Upheaval> = self.world.upheavals.iter().filter(of_process).collect();
            out.sort_by_key(|upheaval| upheaval.since);
            for upheaval in out {
                if opened < upheaval.since.min(closed) {
                    times.push((opened, upheaval.since.min(closed)));
                }
                opened = opened.max(gone_until(upheaval));
            }
            if opened < closed {
                times.push((opened, closed));
            }
        }
        times.sort_unstable();
        times
    }
}

/// When all others know that a process is gone: who has not seen the declaration before data was lost learns it later.
fn known_to_all(upheaval: &Upheaval, losses: &[Loss]) -> u64 {
    let mut until = gone_until(upheaval);
    let died = !upheaval.was_declared && until < u64::MAX;
    for loss in losses.iter().filter(|loss| died && loss.at >= upheaval.since) {
        if loss.at <= until.saturating_add(SEEN_WITHIN) {
            until = until.max(loss.at + TAKEN_FOR_DEAD_WITHIN);
        }
    }
    until
}

/// Until when a process was gone for the others: of who was declared dead, until it has entered its users again.
fn gone_until(upheaval: &Upheaval) -> u64 {
    let entered_within = if upheaval.was_declared { ENTERED_WITHIN } else { 0 };
    upheaval.until.saturating_add(entered_within)
}
