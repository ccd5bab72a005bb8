//! Sizes of an engine, and why one can't be made.

use std::io;

use thiserror::Error;

/// The sizes of an [`Engine`](super::Engine).
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sockets open at the same time over all rings, accepts that wait for a client included.
    pub sockets_max: u32,
    /// Sockets of one ring: at most the soft RLIMIT_NOFILE, which the kernel applies to each ring's table.
    pub slots_per_ring: u32,
    /// Buffers that each ring receives into: a power of two, at most 32768. Few stay in the processor's cache.
    pub buffers_per_ring: u16,
    /// Bytes of one such buffer.
    pub buffer_bytes: u32,
    /// Entries of each submission queue: a power of two.
    pub submission_entries: u32,
    /// Entries of each completion queue: a power of two, at least `submission_entries`. What does not fit is kept by
    /// the kernel, but ends the recv it belongs to, which costs a new one.
    pub completion_entries: u32,
    /// Completions taken in one turn, over all rings.
    pub turn_events_max: usize,
    /// Bytes after which a socket waits for the next turn. One buffer more may come.
    pub turn_bytes_max: usize,
    /// Operations after which what is queued goes to the kernel without waiting for the end of the turn, so that the
    /// first of thousands of sends leaves early.
    pub submit_batch: usize,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            sockets_max: 16_384,
            slots_per_ring: 16_384,
            buffers_per_ring: 128,
            buffer_bytes: 4096,
            submission_entries: 4096,
            completion_entries: 16_384,
            turn_events_max: 128,
            turn_bytes_max: 64 << 10,
            submit_batch: 128,
        }
    }
}

impl EngineConfig {
    pub(super) fn check(&self) -> Result<(), EngineError> {
        let wrong = |what| Err(EngineError::Config(what));
        if self.sockets_max == 0 || self.slots_per_ring == 0 {
            return wrong("sockets_max and slots_per_ring must be at least 1");
        }
        if !self.buffers_per_ring.is_power_of_two() || self.buffers_per_ring > 1 << 15 {
            return wrong("buffers_per_ring must be a power of two and at most 32768");
        }
        if self.buffer_bytes == 0 {
            return wrong("buffer_bytes must be at least 1");
        }
        if !self.submission_entries.is_power_of_two() || !self.completion_entries.is_power_of_two() {
            return wrong("submission_entries and completion_entries must be powers of two");
        }
        if self.completion_entries < self.submission_entries {
            return wrong("completion_entries must be at least submission_entries");
        }
        if self.turn_events_max == 0 || self.turn_bytes_max == 0 || self.submit_batch == 0 {
            return wrong("turn_events_max, turn_bytes_max and submit_batch must be at least 1");
        }
        Ok(())
    }
}

/// Why an engine, or one more ring of it, could not be made.
#[derive(Debug, Error)]
pub enum EngineError {
    /// A size that no ring can have.
    #[error("engine sizes: {0}")]
    Config(&'static str),
    /// The kernel refused a call.
    #[error("{call}: {source}{}{}", if remedy.is_empty() { "" } else { ": " }, remedy)]
    Kernel {
        /// The call that failed.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What an operator can do about it; empty when nothing particular is known.
        remedy: &'static str,
    },
}

impl EngineError {
    pub(super) fn kernel(call: &'static str, source: io::Error) -> EngineError {
        let remedy = match (call, source.raw_os_error()) {
            (_, Some(libc::ENOSYS)) => "this kernel has no io_uring: 6.1 or newer is needed",
            ("io_uring_setup", Some(libc::EPERM)) => {
                "io_uring is forbidden here: allow io_uring_setup, io_uring_enter and io_uring_register in the \
                 container's seccomp profile, and set sysctl kernel.io_uring_disabled=0"
            }
            (_, Some(libc::EINVAL)) => "this kernel lacks a needed feature of io_uring: 6.1 or newer is needed",
            ("IORING_REGISTER_FILES2", Some(libc::EMFILE)) => {
                "slots_per_ring passes the soft limit of open files: raise it (ulimit -n, LimitNOFILE=) or set fewer \
                 slots"
            }
            (_, Some(libc::EMFILE)) => "the limit of open files is reached: raise it (ulimit -n, LimitNOFILE=)",
            (_, Some(libc::ENOMEM)) => {
                "too little memory may be locked, or none is left: raise the limit (ulimit -l, LimitMEMLOCK=)"
            }
            _ => "",
        };
        EngineError::Kernel { call, source, remedy }
    }
}

impl From<EngineError> for io::Error {
    fn from(error: EngineError) -> io::Error {
        let kind = match &error {
            EngineError::Config(_) => io::ErrorKind::InvalidInput,
            EngineError::Kernel { source, .. } => source.kind(),
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_sizes_that_no_ring_can_have() {
        assert!(EngineConfig::default().check().is_ok());
        let wrong = [
            EngineConfig { sockets_max: 0, ..EngineConfig::default() },
            EngineConfig { buffers_per_ring: 100, ..EngineConfig::default() },
            EngineConfig { submission_entries: 100, ..EngineConfig::default() },
            EngineConfig { completion_entries: 1024, ..EngineConfig::default() },
            EngineConfig { turn_events_max: 0, ..EngineConfig::default() },
        ];
        for config in wrong {
            assert!(matches!(config.check(), Err(EngineError::Config(_))), "{config:?}");
        }
    }

    #[test]
    fn names_the_call_and_the_remedy() {
        let error = EngineError::kernel("io_uring_setup", io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(error.starts_with("io_uring_setup: ") && error.contains("seccomp"), "{error}");
    }
}
