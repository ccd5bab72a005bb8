//! What was read about a cluster, as it is shown: a row for each life of a node, and the sums. Pure.

use std::time::Duration;

use crate::bus::call::{Incarnation, NodeId};
use crate::bus::survey::{Known, NodeFound, ServerFound, Survey};

/// A value that may be missing, or may have been asked of a server that did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown<T> {
    /// This.
    Is(T),
    /// There is none.
    Nothing,
    /// Nobody could say.
    Unknown,
}

impl<T> Shown<T> {
    fn of(value: Known<Option<T>>) -> Shown<T> {
        match value {
            Some(Some(value)) => Shown::Is(value),
            Some(None) => Shown::Nothing,
            None => Shown::Unknown,
        }
    }

    /// The value, if there is one.
    pub fn value(self) -> Option<T> {
        match self {
            Shown::Is(value) => Some(value),
            Shown::Nothing | Shown::Unknown => None,
        }
    }
}

/// Whose program a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Ringmesh,
    /// Another one, which speaks only the contract.
    Foreign,
    /// What would tell is out of reach.
    Unknown,
}

/// How it stands with a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has its lease; of a foreign node, it hears its channel.
    Up,
    /// Its lease has lapsed, and nobody has declared it dead: it may come back. Or it has none yet, or no more.
    NoLease,
    /// It has ended, and its users are not all taken off the directory yet.
    Dead,
    /// What would tell is out of reach.
    Unknown,
}

/// A life of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The node.
    pub node: NodeId,
    /// Its kind.
    pub kind: Kind,
    /// How it stands.
    pub state: State,
    /// Which life; foreign nodes have none, and a node that starts or ends has none either.
    pub life: Shown<Incarnation>,
    /// What is left of the lease.
    pub lease: Shown<Duration>,
    /// The node's connections, at its newest life.
    pub connections: Shown<u64>,
    /// Users that this life has in the directory.
    pub users: Shown<u64>,
    /// Whether somebody hears the node's contract channel, at its newest life.
    pub hears_contract: Shown<bool>,
    /// Whether somebody hears the node's link, at its newest life.
    pub hears_link: Shown<bool>,
    /// How long the slowest of the node's own last probes took.
    pub lag: Shown<Duration>,
}

/// Sums over all rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Nodes of ours that have their lease.
    pub nodes: usize,
    /// Foreign nodes.
    pub foreign: usize,
    /// Lives that have ended, or whose lease has lapsed.
    pub gone: usize,
    /// Of all nodes.
    pub connections: Shown<u64>,
    /// Of nodes that are up; who is on two counts twice.
    pub users: Shown<u64>,
}

/// All that is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// By the nodes' names, the newest life first.
    pub rows: Vec<Row>,
    /// Their sums.
    pub totals: Totals,
    /// The servers that answer.
    pub servers: Vec<ServerFound>,
    /// Why others do not.
    pub out_of_reach: Vec<String>,
}

impl View {
    /// Draws the conclusions.
    pub fn new(survey: Survey) -> View {
        let rows: Vec<Row> = survey.nodes.into_iter().flat_map(rows).collect();
        let is_up = |row: &&Row| row.state == State::Up;
        let has_life = |row: &&Row| row.life != Shown::Nothing;
        let is_ours = |row: &&Row| row.kind == Kind::Ringmesh;
        let totals = Totals {
            nodes: rows.iter().filter(is_ours).filter(is_up).count(),
            foreign: rows.iter().filter(|row| row.kind == Kind::Foreign).count(),
            gone: rows.iter().filter(|row| matches!(row.state, State::NoLease | State::Dead)).filter(has_life).count(),
            connections: sum(rows.iter().map(|row| row.connections)),
            users: sum(rows.iter().filter(|row| matches!(row.state, State::Up | State::Unknown)).map(|row| row.users)),
        };
        View { rows, totals, servers: survey.servers, out_of_reach: survey.out_of_reach }
    }
}

fn sum(values: impl Iterator<Item = Shown<u64>>) -> Shown<u64> {
    values.fold(Shown::Is(0), |sum, value| match (sum, value) {
        (Shown::Is(sum), Shown::Is(value)) => Shown::Is(sum + value),
        (sum, Shown::Nothing) => sum,
        _ => Shown::Unknown,
    })
}

/// A node's lives, the newest first; a foreign node has none, and one row all the same.
fn rows(found: NodeFound) -> Vec<Row> {
    let lease = found.lease.flatten();
    let lives = found.lives.as_deref().unwrap_or_default();
    let newest = lease.map(|lease| lease.incarnation).or(lives.iter().map(|life| life.incarnation).max());
    let newest = newest.or(found.registered);
    let life = newest.and_then(|newest| lives.iter().find(|life| life.incarnation == newest));
    let is_declared_dead = life.and_then(|life| life.is_declared_dead);
    let kind = match (newest, found.lease, &found.lives) {
        (Some(_), ..) => Kind::Ringmesh,
        // Links are ours alone: it has just connected, or is about to end.
        (None, Some(_), Some(_)) if found.hears_link == Some(true) => Kind::Ringmesh,
        (None, Some(_), Some(_)) => Kind::Foreign,
        _ => Kind::Unknown,
    };
    let state = match (kind, found.lease, is_declared_dead) {
        (Kind::Foreign, ..) | (Kind::Ringmesh, Some(Some(_)), _) => State::Up,
        (Kind::Ringmesh, Some(None), Some(true)) => State::Dead,
        (Kind::Ringmesh, Some(None), Some(false)) => State::NoLease,
        (Kind::Ringmesh, Some(None), None) if newest.is_none() => State::NoLease,
        _ => State::Unknown,
    };
    let missing = || if kind == Kind::Unknown { Shown::Unknown } else { Shown::Nothing };
    let own = Row {
        node: found.node.clone(),
        kind,
        state,
        life: newest.map_or_else(missing, Shown::Is),
        lease: Shown::of(found.lease.map(|lease| lease.map(|lease| lease.left))),
        connections: Shown::of(found.connections),
        users: if newest.is_none() { missing() } else { Shown::of(life.and_then(|life| life.users).map(Some)) },
        hears_contract: Shown::of(found.hears_contract.map(Some)),
        hears_link: Shown::of(if kind == Kind::Foreign { Some(None) } else { found.hears_link.map(Some) }),
        lag: Shown::of(found.lag),
    };
    let earlier = lives.iter().rev().filter(|life| Some(life.incarnation) != newest).map(|life| Row {
        node: found.node.clone(),
        kind: Kind::Ringmesh,
        state: State::Dead,
        life: Shown::Is(life.incarnation),
        lease: Shown::Nothing,
        connections: Shown::Nothing,
        users: Shown::of(life.users.map(Some)),
        hears_contract: Shown::Nothing,
        hears_link: Shown::Nothing,
        lag: Shown::Nothing,
    });
    [own].into_iter().chain(earlier).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bus::survey::{Lease, LifeFound};

    /// A node that is well, in its life 20.
    pub fn well(node: &str) -> NodeFound {
        NodeFound {
            node: node.into(),
            registered: Some(20),
            lease: Some(Some(Lease { incarnation: 20, left: Duration::from_millis(8_200) })),
            lives: Some(vec![LifeFound { incarnation: 20, is_declared_dead: Some(false), users: Some(3) }]),
            connections: Some(Some(4)),
            lag: Some(Some(Duration::from_micros(300))),
            hears_contract: Some(true),
            hears_link: Some(true),
        }
    }

    /// A node of another implementation.
    pub fn foreign(node: &str) -> NodeFound {
        let lives = Some(Vec::new());
        NodeFound { registered: None, lease: Some(None), lives, lag: Some(None), hears_link: Some(false), ..well(node) }
    }

    /// Without a server that has its slot.
    fn unknown(node: &str) -> NodeFound {
        NodeFound { lease: None, lives: None, connections: None, lag: None, hears_link: None, ..well(node) }
    }

    pub fn view(nodes: Vec<NodeFound>) -> View {
        let server = ServerFound {
            address: "127.0.0.1:6379".to_owned(),
            round_trips: [200, 210, 900].map(Duration::from_micros).into(),
        };
        View::new(Survey { nodes, servers: vec![server], out_of_reach: Vec::new() })
    }

    fn state(node: NodeFound) -> State {
        view(vec![node]).rows[0].state
    }

    #[test]
    fn a_lease_is_what_makes_a_node_live() {
        assert_eq!(state(well("a")), State::Up);
        let lapsed = NodeFound { lease: Some(None), ..well("a") };
        assert_eq!(state(lapsed.clone()), State::NoLease);
        let mut dead = lapsed;
        dead.lives = Some(vec![LifeFound { incarnation: 20, is_declared_dead: Some(true), users: Some(3) }]);
        assert_eq!(state(dead), State::Dead);
        let only_leased = NodeFound { registered: None, ..well("a") };
        assert_eq!(state(only_leased), State::Up, "the registry was lost, and is written again by the next renewal");
    }

    #[test]
    fn an_earlier_life_has_a_row_of_its_own_and_its_users_are_not_counted() {
        let mut node = well("a");
        let life = |incarnation, users| LifeFound { incarnation, is_declared_dead: Some(false), users: Some(users) };
        node.lives = Some(vec![life(5, 1), life(10, 7), life(20, 3)]);
        let view = view(vec![node]);
        let rows: Vec<_> = view.rows.iter().map(|row| (row.life.value(), row.state, row.users.value())).collect();
        let expected = [(20, State::Up, 3), (10, State::Dead, 7), (5, State::Dead, 1)];
        assert_eq!(rows, expected.map(|(life, state, users)| (Some(life), state, Some(users))));
        assert_eq!(view.rows[1].connections, Shown::Nothing, "the counter is the newest life's");
        let Totals { nodes, gone, users, connections, .. } = view.totals;
        assert_eq!((nodes, gone, users, connections), (1, 2, Shown::Is(3), Shown::Is(4)));
    }

    #[test]
    fn a_foreign_node_is_one_of_which_nothing_of_ours_is_known() {
        let view = view(vec![foreign("f"), well("a")]);
        let row = &view.rows[0];
        assert_eq!(
            (row.kind, row.state, row.life, row.users),
            (Kind::Foreign, State::Up, Shown::Nothing, Shown::Nothing)
        );
        assert_eq!((row.hears_contract, row.hears_link), (Shown::Is(true), Shown::Nothing));
        let Totals { nodes, foreign, connections, users, .. } = view.totals;
        assert_eq!((nodes, foreign, connections, users), (1, 1, Shown::Is(8), Shown::Is(3)));
    }

    #[test]
    fn who_hears_a_link_is_ours_also_without_a_life() {
        let view = view(vec![NodeFound { hears_link: Some(true), ..foreign("a") }]);
        let Row { kind, state, life, users, .. } = view.rows[0];
        assert_eq!((kind, state, life, users), (Kind::Ringmesh, State::NoLease, Shown::Nothing, Shown::Nothing));
        assert_eq!((view.totals.nodes, view.totals.foreign, view.totals.gone), (0, 0, 0));
    }

    #[test]
    fn what_nobody_could_say_is_no_absence() {
        let view = view(vec![unknown("a"), NodeFound { registered: None, ..unknown("b") }]);
        let seen: Vec<_> = view.rows.iter().map(|row| (row.kind, row.state)).collect();
        assert_eq!(seen, [(Kind::Ringmesh, State::Unknown), (Kind::Unknown, State::Unknown)]);
        assert_eq!(view.rows[0].life, Shown::Is(20));
        assert_eq!(view.rows[0].lease, Shown::Unknown);
        assert_eq!((view.totals.connections, view.totals.users), (Shown::Unknown, Shown::Unknown));
        assert_eq!((view.totals.nodes, view.totals.gone), (0, 0));
    }
}
