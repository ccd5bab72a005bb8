//! The host as it is: the only part of the preflight that touches it.

use std::fmt;
use std::io;

use io_uring::{IoUring, Probe, cqueue, squeue};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Machine;
use crate::config::machine::read_value;
use crate::host::memory_available;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// What `uname -r` prints.
    pub kernel_release: String,
    /// kernel.io_uring_disabled: 0 allows all, 1 a group, 2 nobody. `None` before kernel 6.6, which had no such switch.
    pub io_uring_disabled: Option<u32>,
    /// Why a ring could not be set up; `None` when it could.
    pub ring_refusal: Option<RingRefusal>,
    /// RLIMIT_MEMLOCK, in bytes.
    pub memlock: Limit,
    /// RLIMIT_NOFILE.
    pub nofile: Limit,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory that can still be taken, in bytes.
    pub memory_bytes_available: u64,
    /// What allows no more than that, when it is not the host itself.
    pub memory_bounded_by: Option<String>,
    /// net.core.somaxconn.
    pub somaxconn: u32,
    /// net.netfilter.nf_conntrack_max; `None` when connections are not tracked.
    pub conntrack_max: Option<u64>,
    /// Connections that are tracked now.
    pub conntrack_count: Option<u64>,
}

impl Host {
    /// Raises the soft limits to the hard ones, then looks.
    pub fn prepare() -> Host {
        let memlock = Limit::raise(Resource::Memlock);
        let nofile = Limit::raise(Resource::Nofile);
        let machine = Machine::read();
        let (memory_bytes_available, memory_bounded_by) = memory_available();
        Host {
            kernel_release: read_value("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned()),
            io_uring_disabled: read_value("/proc/sys/kernel/io_uring_disabled"),
            ring_refusal: try_ring().err(),
            memlock,
            nofile,
            cores: machine.cores,
            memory_bytes_available,
            memory_bounded_by,
            somaxconn: machine.somaxconn,
            conntrack_max: read_value("/proc/sys/net/netfilter/nf_conntrack_max"),
            conntrack_count: read_value("/proc/sys/net/netfilter/nf_conntrack_count"),
        }
    }
}

/// A resource limit; `u64::MAX` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What counts.
    pub soft: u64,
    /// What the soft limit can be raised to without privileges.
    pub hard: u64,
    /// The soft limit as it was before it was raised.
    pub before: u64,
}

impl Limit {
    fn raise(resource: Resource) -> Limit {
        let before = getrlimit(resource);
        if before.current != before.maximum {
            // A sandbox may forbid it. Then the old limit stays, and is what is judged.
            let _ = setrlimit(resource, Rlimit { current: before.maximum, maximum: before.maximum });
        }
        let after = getrlimit(resource);
        let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        Limit { soft: number(after.current), hard: number(after.maximum), before: number(before.current) }
    }

    /// The soft limit, and what it was.
    pub fn describe(&self, write: impl Fn(u64) -> String) -> String {
        let write = |limit| if limit == u64::MAX { "unlimited".to_owned() } else { write(limit) };
        if self.before == self.soft {
            write(self.soft)
        } else {
            format!("{} (soft limit raised from {})", write(self.soft), write(self.before))
        }
    }
}

/// Which call on a ring was refused, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingRefusal {
    /// The system call.
    pub call: &'static str,
    /// What the kernel said.
    pub error: RingError,
}

/// An error of the system, in a form that can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingError {
    /// Its class.
    pub kind: io::ErrorKind,
    /// Its text.
    pub text: String,
}

impl fmt::Display for RingRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.error.text)
    }
}

/// Makes each of the three system calls once, since a seccomp profile may know only some of them.
fn try_ring() -> Result<(), RingRefusal> {
    let refused = |call| {
        move |error: io::Error| RingRefusal { call, error: RingError { kind: error.kind(), text: error.to_string() } }
    };
    let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    let ring = builder.build(RING_ENTRIES).map_err(refused("io_uring_setup"))?;
    ring.submitter().register_probe(&mut Probe::new()).map_err(refused("io_uring_register"))?;
    ring.submitter().submit().map_err(refused("io_uring_enter"))?;
    Ok(())
}

/// The ring is only tried: as few as will do.
const RING_ENTRIES: u32 = 4;
