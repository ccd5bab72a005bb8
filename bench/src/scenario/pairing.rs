//! Which users talk to each other, by the shards that their connections are on. Pure.

use serde::{Deserialize, Serialize};

/// How users are put into pairs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pairs {
    /// Both of a pair are on one shard.
    Same,
    /// The two of a pair are on different shards.
    Other,
    /// Neighbours by number, wherever they are.
    #[default]
    Mixed,
}

/// What became of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Pairing {
    /// What was asked for.
    pub pairs: Pairs,
    /// Pairs that were made.
    pub made: u64,
    /// Talking connections for which no partner was left; they stay silent.
    pub alone: u64,
    /// Talking connections on each shard, from shard 0 on; empty when nobody asked.
    pub by_shard: Vec<u64>,
}

/// The partner of each connection, given the shard of each; one whose shard is not known gets none.
pub fn partners(pairs: Pairs, shards: &[Option<usize>]) -> Vec<Option<usize>> {
    let mut groups = by_shard(shards);
    let mut partners = vec![None; shards.len()];
    let mut join = |one: usize, two: usize| {
        partners[one] = Some(two);
        partners[two] = Some(one);
    };
    match pairs {
        Pairs::Same => {
            groups.iter().flat_map(|group| group.chunks_exact(2)).for_each(|pair| join(pair[0], pair[1]));
        }
        // One each of the two largest groups: the way that leaves the fewest alone.
        Pairs::Other => loop {
            groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
            let [first, second, ..] = groups.as_mut_slice() else { break };
            let (Some(one), Some(two)) = (first.pop(), second.pop()) else { break };
            join(one, two);
        },
        Pairs::Mixed => (1..shards.len()).step_by(2).for_each(|at| join(at - 1, at)),
    }
    partners
}

impl Pairing {
    /// Sums up what [`partners`] gave.
    pub fn new(pairs: Pairs, shards: &[Option<usize>], partners: &[Option<usize>]) -> Self {
        let talking = partners.iter().flatten().count() as u64;
        Self {
            pairs,
            made: talking / 2,
            alone: partners.len() as u64 - talking,
            by_shard: by_shard(shards).iter().map(|group| group.len() as u64).collect(),
        }
    }

    /// Adds another worker's pairs of the same run.
    pub fn merge(&mut self, other: &Self) {
        self.made += other.made;
        self.alone += other.alone;
        self.by_shard.resize(self.by_shard.len().max(other.by_shard.len()), 0);
        self.by_shard.iter_mut().zip(&other.by_shard).for_each(|(own, more)| *own += more);
    }
}

fn by_shard(shards: &[Option<usize>]) -> Vec<Vec<usize>> {
    let mut groups = vec![Vec::new(); shards.iter().flatten().max().map_or(0, |last| last + 1)];
    for (index, shard) in shards.iter().enumerate() {
        if let Some(shard) = shard {
            groups[*shard].push(index);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pairs hold what was asked for, both ways; the number of those left alone.
    fn alone(pairs: Pairs, shards: &[Option<usize>]) -> u64 {
        let partners = partners(pairs, shards);
        for (index, partner) in partners.iter().enumerate() {
            let Some(partner) = *partner else { continue };
            assert_ne!(partner, index);
            assert_eq!(partners[partner], Some(index));
            match pairs {
                Pairs::Same => assert!(shards[index].is_some() && shards[index] == shards[partner]),
                Pairs::Other => assert!(shards[index].is_some() && shards[index] != shards[partner]),
                Pairs::Mixed => assert_eq!(partner, index ^ 1),
            }
        }
        Pairing::new(pairs, shards, &partners).alone
    }

    #[test]
    fn as_many_pairs_are_made_as_the_shards_allow() {
        let on = |shards: &[usize]| shards.iter().map(|shard| Some(*shard)).collect::<Vec<_>>();
        assert_eq!(alone(Pairs::Same, &on(&[0, 1, 0, 1])), 0);
        assert_eq!(alone(Pairs::Same, &on(&[0, 1, 1, 1])), 2);
        assert_eq!(alone(Pairs::Other, &on(&[0, 0, 1, 1])), 0);
        assert_eq!(alone(Pairs::Other, &on(&[0, 0, 0, 1])), 2);
        assert_eq!(alone(Pairs::Other, &on(&[0, 0, 0, 0, 1, 1, 2, 2])), 0);
        assert_eq!(alone(Pairs::Other, &on(&[0, 0])), 2);
        assert_eq!(alone(Pairs::Mixed, &on(&[0, 0, 1])), 1);
    }

    #[test]
    fn a_connection_on_no_known_shard_gets_no_partner() {
        let shards = [Some(0), None, Some(1), None];
        assert_eq!(alone(Pairs::Same, &shards), 4);
        assert_eq!(alone(Pairs::Other, &shards), 2);
    }

    #[test]
    fn the_sum_says_where_the_connections_are() {
        let shards = [Some(0), Some(1), Some(1), Some(1)];
        let mut pairing = Pairing::new(Pairs::Other, &shards, &partners(Pairs::Other, &shards));
        assert_eq!(pairing, Pairing { pairs: Pairs::Other, made: 1, alone: 2, by_shard: vec![1, 3] });
        pairing.merge(&Pairing { pairs: Pairs::Other, made: 2, alone: 0, by_shard: vec![0, 0, 4] });
        assert_eq!((pairing.made, pairing.by_shard), (3, vec![1, 3, 4]));
    }
}
