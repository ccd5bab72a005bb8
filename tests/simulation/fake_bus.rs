//! A bus that knows no other node: it registers users late or not at all, says that they are elsewhere and that they
//! are not, brings messages for users who may have left, and writes down what it is given.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bytes::Bytes;
use ringmesh::hub::bus::{FromBus, ToBus};
use ringmesh::hub::envelope::{UserKey, home_of};
use ringmesh::ids::ShardId;
use ringmesh::shard::port::BusPort;

use super::{Rng, number_of, text_frame};

/// What the bus knows of a user of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stay {
    /// Waits for an answer.
    Arriving,
    Registered,
}

pub struct FakeBus {
    shards: u16,
    port: BusPort,
    /// Towards each shard, not handed over yet.
    out: Vec<VecDeque<FromBus>>,
    /// From each shard, drained and not taken yet.
    heard: Vec<VecDeque<ToBus>>,
    /// The number of the last message that was handed over, for each shard.
    pushed: Vec<u64>,
    stays: BTreeMap<String, (UserKey, Stay)>,
    /// Unicasts of this node by name (`message-7`), and whether they were delivered here.
    pub unicasts: HashMap<String, bool>,
    pub broadcasts: HashMap<String, u32>,
    /// Messages that were brought and handed back.
    pub returned: HashSet<String>,
    /// Fences that have not been answered, for each shard in order, with the number of the message once it has one.
    fences: Vec<VecDeque<(u64, Option<u64>)>>,
    numbers: u64,
    pub refusals: u64,
    pub registrations: u64,
}

impl FakeBus {
    pub fn new(port: BusPort) -> Self {
        let shards = port.shards();
        Self {
            shards,
            port,
            out: (0..shards).map(|_| VecDeque::new()).collect(),
            heard: (0..shards).map(|_| VecDeque::new()).collect(),
            pushed: vec![0; usize::from(shards)],
            stays: BTreeMap::new(),
            unicasts: HashMap::new(),
            broadcasts: HashMap::new(),
            returned: HashSet::new(),
            fences: (0..shards).map(|_| VecDeque::new()).collect(),
            numbers: 0,
            refusals: 0,
            registrations: 0,
        }
    }

    /// Takes what the shards have handed over into what was heard of them.
    pub fn drain(&mut self) {
        self.port.drain(|shard, message| self.heard[shard.index()].push_back(message));
        for shard in (0..self.shards).map(ShardId) {
            let heard = self.heard[shard.index()].iter();
            let answered = heard.filter(|message| matches!(message, ToBus::Fenced { .. })).count();
            let handled = self.port.handled(shard);
            for &(fence, number) in self.fences[shard.index()].iter().skip(answered) {
                assert!(number.is_none_or(|number| number > handled), "{fence} is handled, and its answer is not here");
            }
        }
    }

    /// Takes some of what was heard of a shard.
    pub fn take_some(&mut self, shard: ShardId, messages_max: usize) {
        let some = messages_max.min(self.heard[shard.index()].len());
        for message in self.heard[shard.index()].drain(..some).collect::<Vec<_>>() {
            self.take(shard, message);
        }
    }

    /// Hands the shards what there is for them, as far as there is room.
    pub fn hand_over(&mut self) {
        for shard in (0..self.shards).map(ShardId) {
            while self.port.has_room(shard)
                && let Some(message) = self.out[shard.index()].pop_front()
            {
                let fence = if let FromBus::Fence { fence } = message { Some(fence) } else { None };
                let number = self.port.push(shard, message);
                self.pushed[shard.index()] = number;
                for (_, unknown) in self.fences[shard.index()].iter_mut().filter(|(known, _)| Some(*known) == fence) {
                    *unknown = Some(number);
                }
            }
        }
        self.port.flush();
    }

    fn take(&mut self, shard: ShardId, message: ToBus) {
        match message {
            ToBus::Arrived { user } => {
                let before = self.stays.insert(user.name.to_string(), (user, Stay::Arriving));
                assert_eq!(before, None, "who has arrived arrives once");
            }
            ToBus::Left { user } => {
                let before = self.stays.remove(user.name.as_str()).map(|(_, stay)| stay);
                assert_eq!(before, Some(Stay::Registered), "{} leaves", user.name);
            }
            ToBus::Unicast { frame, delivered_here, .. } => {
                let before = self.unicasts.insert(number_of(&frame), delivered_here);
                assert_eq!(before, None, "a message goes to the bus once");
            }
            ToBus::Returned { ticket } => assert!(self.returned.insert(ticket.to_string()), "handed back twice"),
            ToBus::Broadcast { frame } => *self.broadcasts.entry(number_of(&frame)).or_default() += 1,
            ToBus::Fenced { fence } => {
                assert_eq!(self.fences[shard.index()].pop_front().map(|(expected, _)| expected), Some(fence));
            }
        }
    }

    /// Does something, as a seed will have it. The number and the user of a message that it brings.
    pub fn act(&mut self, rng: &mut Rng, number: u64) -> Option<(u64, String)> {
        let known: Vec<(UserKey, Stay)> = self.stays.values().cloned().collect();
        match rng.below(8) {
            0 => {
                self.numbers += 1;
                let shard = rng.below(usize::from(self.shards));
                self.fences[shard].push_back((self.numbers, None));
                self.out[shard].push_back(FromBus::Fence { fence: self.numbers });
                None
            }
            1..=3 => {
                self.answer_one(rng, 6);
                None
            }
            _ if known.is_empty() => None,
            4 => {
                let (user, stay) = known[rng.below(known.len())].clone();
                if stay == Stay::Registered {
                    let elsewhere = rng.one_in(2);
                    self.push(&user.clone(), FromBus::Elsewhere { user, elsewhere });
                }
                None
            }
            _ => {
                let (user, stay) = known[rng.below(known.len())].clone();
                let frame =
                    Bytes::from(text_frame(&format!(r#"{{"type":"message","from":"far","content":"{number}/far"}}"#)));
                let early = stay == Stay::Arriving;
                self.push(&user.clone(), FromBus::Unicast { target: user.clone(), frame, ticket: number, early });
                Some((number, user.name.to_string()))
            }
        }
    }

    /// Answers a user who arrives, one in `odds` with a refusal.
    pub fn answer_one(&mut self, rng: &mut Rng, odds: u64) {
        let arriving = self.stays.values().filter(|(_, stay)| *stay == Stay::Arriving);
        let arriving: Vec<UserKey> = arriving.map(|(user, _)| user.clone()).collect();
        if arriving.is_empty() {
            return;
        }
        let user = arriving[rng.below(arriving.len())].clone();
        if rng.one_in(odds) {
            self.refusals += 1;
            self.stays.remove(user.name.as_str());
            self.push(&user.clone(), FromBus::NotRegistered { user });
        } else {
            self.registrations += 1;
            self.stays.insert(user.name.to_string(), (user.clone(), Stay::Registered));
            let elsewhere = rng.one_in(3);
            self.push(&user.clone(), FromBus::Registered { user, elsewhere });
        }
    }

    fn push(&mut self, user: &UserKey, message: FromBus) {
        self.out[home_of(user.hash, self.shards).index()].push_back(message);
    }

    /// Whether all has been said and answered.
    pub fn is_quiet(&self) -> bool {
        self.out.iter().all(VecDeque::is_empty)
            && self.heard.iter().all(VecDeque::is_empty)
            && (0..self.shards).all(|shard| self.port.handled(ShardId(shard)) == self.pushed[usize::from(shard)])
            && self.fences.iter().all(VecDeque::is_empty)
            && self.stays.values().all(|(_, stay)| *stay == Stay::Registered)
    }

    /// Who is registered.
    pub fn users(&self) -> HashSet<String> {
        self.stays.keys().cloned().collect()
    }
}
