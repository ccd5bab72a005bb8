//! Takes the users of a dead life off the directory. It runs as long as it takes, in small steps, under a claim that
//! lapses, so that another node goes on if this one dies too.

use std::time::Duration;

use redis::{Value, cmd};
use tokio::time::{Instant, sleep};

use super::super::call::Incarnation;
use super::super::keys;
use super::super::scripts::Name;
use super::Reply;
use super::caller::Ticket;
use super::open::{number, string};
use super::session::Rim;

/// How long a claim holds; renewed with every step.
const CLAIM: Duration = Duration::from_secs(15);
/// Users of a step, about.
const STEP: usize = 500;

/// Carries out the call.
pub(super) async fn run(rim: &Rim, ticket: Ticket, node: &str, incarnation: Incarnation) {
    if !keys::is_node_id(node) {
        return ticket.answer(Reply::Reaped(true));
    }
    match rim.claim(node, incarnation, CLAIM).await {
        Some(false) => return ticket.answer(Reply::Reaped(false)),
        // Dropping the ticket fails the call.
        None => return,
        Some(true) => {}
    }
    let outcome = rim.reap(node, incarnation).await;
    rim.claim(node, incarnation, Duration::ZERO).await;
    match outcome {
        Some(true) => ticket.answer(Reply::Reaped(true)),
        Some(false) => ticket.answer(Reply::Reaped(false)),
        None => {}
    }
}

impl Rim {
    /// Takes, keeps or (zero) gives up the right to reap a life.
    async fn claim(&self, node: &str, incarnation: Incarnation, hold: Duration) -> Option<bool> {
        let key = keys::claim(node, incarnation);
        let mut command = self.servers.scripts().call(Name::Claim, &[&key]);
        command.arg(&self.token).arg(hold.as_millis() as u64);
        Some(number(&self.ask(&key, command).await?)? == 1)
    }

    /// `Some(false)` when another node has taken the claim meanwhile.
    async fn reap(&self, node: &str, incarnation: Incarnation) -> Option<bool> {
        let lives = keys::lives(node);
        let on_record = match self.ask(&lives, cmd("SMEMBERS").arg(&lives).take()).await? {
            Value::Set(lives) | Value::Array(lives) => lives,
            _ => return None,
        };
        // A life before one that is dead is dead as well, and perhaps nobody else will ever see to it.
        let mut dead: Vec<Incarnation> =
            on_record.iter().filter_map(number).filter(|life| *life < incarnation).collect();
        dead.push(incarnation);
        for life in dead {
            let mut is_done = true;
            for bucket in 0..keys::BUCKETS {
                match self.reap_bucket(node, incarnation, life, bucket).await {
                    Some(true) => {}
                    Some(false) => return Some(false),
                    // The users of a cluster's other masters don't wait for those of one that is out of reach.
                    None => is_done = false,
                }
            }
            if !is_done {
                return None;
            }
            self.ask(&lives, cmd("SREM").arg(&lives).arg(life).take()).await?;
        }
        self.delete_numbers(node).await?;
        self.strike_off(node, incarnation).await?;
        Some(true)
    }

    async fn reap_bucket(&self, node: &str, claimed: Incarnation, life: Incarnation, bucket: usize) -> Option<bool> {
        let key = self.tags.bucket(node, life, bucket);
        let mut cursor = 0;
        loop {
            let question = cmd("HSCAN").arg(&key).arg(cursor).arg("COUNT").arg(STEP).take();
            let Value::Array(parts) = self.ask(&key, question).await? else { return None };
            cursor = number(parts.first()?)?;
            let Value::Array(fields) = parts.get(1)? else { return None };
            let users: Vec<String> = fields.chunks(2).filter_map(|pair| string(&pair[0])).collect();
            if !users.is_empty() {
                if !self.claim(node, claimed, CLAIM).await? || !self.reap_users(node, claimed, life, &users).await? {
                    return Some(false);
                }
                // Those, and no others: one that is listed late is found when the life is looked at again.
                self.ask(&key, cmd("HDEL").arg(&key).arg(&users).take()).await?;
            }
            if cursor == 0 {
                return Some(true);
            }
        }
    }

    /// Also waits for the end of graces that the life has left behind.
    async fn reap_users(&self, node: &str, claimed: Incarnation, life: Incarnation, users: &[String]) -> Option<bool> {
        let mut users: Vec<&String> = users.iter().collect();
        loop {
            let requests = users.iter().map(|user| self.reap_user(node, user, life));
            let answers = self.servers.ask_all(requests.collect()).await;
            let (mut in_grace, mut left_ms) = (Vec::new(), 0);
            for (user, answer) in users.into_iter().zip(answers) {
                let left = number(&answer?.ok()?)?;
                if left > 0 {
                    in_grace.push(user);
                    left_ms = left_ms.max(left);
                }
            }
            if in_grace.is_empty() {
                return Some(true);
            }
            let until = Instant::now() + Duration::from_millis(left_ms);
            while Instant::now() < until {
                sleep(until.saturating_duration_since(Instant::now()).min(CLAIM / 3)).await;
                if !self.claim(node, claimed, CLAIM).await? {
                    return Some(false);
                }
            }
            users = in_grace;
        }
    }
}
