//! Waking somebody who sleeps, and nobody who does not: a system call only when there is a sleeper.

use std::sync::atomic::{
    AtomicU8,
    Ordering::{Relaxed, SeqCst},
};

/// Up, and nothing has come since it last looked.
const UP: u8 = 0;
/// Something has come since it last looked.
const RUNG: u8 = 1;
/// Sleeps, or is about to.
const ASLEEP: u8 = 2;

/// A bell on one who sleeps. Whoever brings something rings after it; the sleeper looks after [`Bell::look`], and sleeps
/// only when [`Bell::sleep`] agrees. One of the two always sees the other: both change the same word.
#[derive(Debug, Default)]
pub(super) struct Bell(AtomicU8);

impl Bell {
    /// Something has been brought. Whether the sleeper has to be woken.
    pub(super) fn ring(&self) -> bool {
        self.0.swap(RUNG, SeqCst) == ASLEEP
    }

    /// Whether it was rung since the last look.
    pub(super) fn is_rung(&self) -> bool {
        self.0.load(Relaxed) == RUNG
    }

    /// Said by the sleeper before it looks for what was brought.
    pub(super) fn look(&self) {
        self.0.swap(UP, SeqCst);
    }

    /// Said by the sleeper before it sleeps; false when it has to look instead.
    pub(super) fn sleep(&self) -> bool {
        !matches!(self.0.compare_exchange(UP, ASLEEP, SeqCst, SeqCst), Err(RUNG))
    }

    /// Said by the sleeper when it is up again, for whatever reason.
    pub(super) fn wake(&self) {
        // It may have been rung meanwhile, and then it stays so.
        let _ = self.0.compare_exchange(ASLEEP, UP, SeqCst, SeqCst);
    }
}
