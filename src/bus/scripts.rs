//! The scripts that change the directory and the leases, each in a file of its own with the race that it closes.
//!
//! They are called by their SHA-1; a server that does not know one (it restarted, or a replica took over) is given all
//! of them and asked again. A script names its keys as a Redis Cluster wants it, all of one slot.

use redis::{Cmd, Script, cmd};

/// A script by what it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name {
    /// Enters a node as a holder of a user.
    Register,
    /// Takes a node off a user's holders.
    Unregister,
    /// Publishes the offline that a grace held back.
    EndGrace,
    /// Where a user is.
    Locate,
    /// Renews a user's TTL.
    Renew,
    /// Takes a dead life off a user's holders.
    Reap,
    /// Takes users off a bucket.
    Unlist,
    /// Takes a lease.
    Acquire,
    /// Renews a lease.
    RenewLease,
    /// Gives up a lease.
    Release,
    /// Declares a life dead.
    DeclareDead,
    /// Takes, keeps or gives up a claim.
    Claim,
    /// Enters a life in the registry.
    Enrol,
    /// Strikes a life off the registry.
    StrikeOff,
    /// Reads the registry.
    Look,
}

impl Name {
    /// Whether its answer begins with the run's marker: its first key is then the marker's, and its first argument a text
    /// for a new one.
    pub fn answers_run(self) -> bool {
        matches!(self, Name::Register | Name::Locate | Name::Renew | Name::Enrol | Name::Look)
    }
}

/// What stands in front of scripts.
const SHARED: &str = include_str!("scripts/shared.lua");
const USER: &str = concat!(include_str!("scripts/shared.lua"), include_str!("scripts/user.lua"));
const RUN: &str = concat!(include_str!("scripts/shared.lua"), include_str!("scripts/run.lua"));
const USER_RUN: &str =
    concat!(include_str!("scripts/shared.lua"), include_str!("scripts/user.lua"), include_str!("scripts/run.lua"));

/// What stands in front of each script, and the script, in the order of [`Name`].
const SOURCES: [(&str, &str); 15] = [
    (USER_RUN, include_str!("scripts/register.lua")),
    (USER, include_str!("scripts/unregister.lua")),
    (USER, include_str!("scripts/end_grace.lua")),
    (USER_RUN, include_str!("scripts/locate.lua")),
    (USER_RUN, include_str!("scripts/renew.lua")),
    (USER, include_str!("scripts/reap.lua")),
    ("", include_str!("scripts/unlist.lua")),
    (SHARED, include_str!("scripts/acquire.lua")),
    ("", include_str!("scripts/renew_lease.lua")),
    ("", include_str!("scripts/release.lua")),
    ("", include_str!("scripts/declare_dead.lua")),
    ("", include_str!("scripts/claim.lua")),
    (RUN, include_str!("scripts/enrol.lua")),
    ("", include_str!("scripts/strike_off.lua")),
    (RUN, include_str!("scripts/look.lua")),
];
const _: () = assert!(SOURCES.len() == Name::Look as usize + 1);

/// All scripts, ready to be called.
pub struct Scripts {
    all: Vec<(String, Script)>,
}

impl Scripts {
    /// Puts the sources together.
    pub fn new() -> Scripts {
        let all = SOURCES.iter().map(|(shared, own)| {
            let source = [*shared, *own].concat();
            let script = Script::new(&source);
            (source, script)
        });
        Scripts { all: all.collect() }
    }

    /// For who calls none.
    pub fn none() -> Scripts {
        Scripts { all: Vec::new() }
    }

    /// A call, to which the arguments are added.
    pub fn call(&self, name: Name, keys: &[&str]) -> Cmd {
        let mut command = cmd("EVALSHA");
        command.arg(self.all[name as usize].1.get_hash()).arg(keys.len()).arg(keys);
        command
    }

    /// The commands that make them known to a server.
    pub fn load(&self) -> impl Iterator<Item = Cmd> {
        self.all.iter().map(|(source, _)| cmd("SCRIPT").arg("LOAD").arg(source).take())
    }
}

impl Default for Scripts {
    fn default() -> Self {
        Self::new()
    }
}
