//! What a panic means: contained, it costs one connection; anywhere else in a shard, the process.
//!
//! State that can't be trusted serves nobody: a supervisor starts the node again.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// What is left of a contained panic; the hook has logged it.
#[derive(Debug)]
pub struct Panicked;

/// Runs `f`, and survives it. Only for code that touches nothing but its arguments, which the caller then drops.
///
/// # Errors
/// `f` panicked.
#[inline]
pub fn contain<T>(f: impl FnOnce() -> T) -> Result<T, Panicked> {
    CONTAINED.set(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CONTAINED.set(false);
    result.map_err(|_| Panicked)
}

/// Has every panic logged with its place, and ends the process by `exit` on those that are not contained.
pub fn install_hook(exit: fn() -> !) {
    std::panic::set_hook(Box::new(move |info| {
        log(info);
        if !CONTAINED.get() {
            exit();
        }
    }));
}

fn log(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info.payload_as_str().unwrap_or("no message");
    let contained = CONTAINED.get();
    tracing::error!(thread, place, contained, "panic: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_contained_and_the_next_call_is_fresh() {
        assert!(contain(|| panic!("within")).is_err());
        assert!(!CONTAINED.get());
        assert_eq!(contain(|| 5).unwrap(), 5);
    }
}
