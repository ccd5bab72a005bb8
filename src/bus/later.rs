//! What the bus looks at again later.

use crate::hub::envelope::UserKey;
use crate::time::Micros;

use super::call::{Incarnation, NodeId};
use super::message::PeerId;

/// What is looked at again later.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Later {
    /// A user whose call failed.
    Step(UserKey),
    /// A user who should have been registered by now.
    RegisterDeadline(UserKey),
    /// A user whose messages wait for the directory.
    Send(UserKey),
    /// A user whose other holders are not sure.
    ReadHolders(UserKey),
    /// A user whose grace ends.
    EndGrace(UserKey),
    /// A reaped life, in case something of it came late.
    ReapAgain(NodeId, Incarnation),
    /// A life of our own id.
    ReapOwn(Incarnation),
    /// Our lease is to be taken.
    Acquire,
    /// Users who wait for a peer that may still not be heard.
    OpenWithout(PeerId),
    /// A user who waits for peers that may still not be heard.
    OpenUnheard(UserKey),
}

/// An entry of the list of what is looked at later, by time.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Due {
    pub(super) at: Micros,
    pub(super) number: u64,
    pub(super) what: Later,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
