//! The buffers that a ring receives into.
//!
//! One mapping holds the ring of buffer descriptors, which the kernel reads, and the buffers behind it. A buffer is
//! either provided (the kernel may write to it) or lent (a [`RecvBuf`] owns it); it changes hands only by a completion
//! and by [`Provider::provide_returned`].
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

/// Received bytes, in a buffer lent by the ring: it goes back there when this is dropped.
///
/// While many are held, others cannot receive: copy what must stay.
pub struct RecvBuf {
    pool: Rc<Pool>,
    len: u32,
    buffer: u16,
}

impl Deref for RecvBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `lend` was given a buffer that the kernel had handed out, `len` lies within it, and the kernel gets
        // it back only after this is dropped. The kernel or the fresh mapping wrote every byte of it.
        unsafe { std::slice::from_raw_parts(self.pool.buffer(self.buffer).as_ptr(), self.len as usize) }
    }
}

impl DerefMut for RecvBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; and each buffer is lent to one RecvBuf only, so this is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.pool.buffer(self.buffer).as_ptr(), self.len as usize) }
    }
}

impl Drop for RecvBuf {
    fn drop(&mut self) {
        self.pool.returned.borrow_mut().push(self.buffer);
    }
}

impl std::fmt::Debug for RecvBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBuf").field("len", &self.len).field("buffer", &self.buffer).finish()
    }
}

/// The mapping, shared by the ring and the buffers it lent: it lives until the last of them is gone.
struct Pool {
    base: NonNull<u8>,
    mapped_bytes: usize,
    /// Where the buffers begin, behind the descriptors.
    buffers_at: usize,
    buffer_bytes: usize,
    /// Buffers that came back and are not provided yet. It has room for all, so that it never grows.
    returned: RefCell<Vec<u16>>,
}

impl Pool {
    fn map(count: u16, buffer_bytes: u32) -> io::Result<Pool> {
        let descriptors = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(4096);
        let mapped_bytes = descriptors + usize::from(count) * buffer_bytes as usize;
        // SAFETY: a new private mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let returned = RefCell::new(Vec::with_capacity(usize::from(count)));
        Ok(Pool { base, mapped_bytes, buffers_at: descriptors, buffer_bytes: buffer_bytes as usize, returned })
    }

    fn buffer(&self, buffer: u16) -> NonNull<u8> {
        let offset = self.buffers_at + usize::from(buffer) * self.buffer_bytes;
        assert!(offset + self.buffer_bytes <= self.mapped_bytes, "buffer {buffer} is not of this pool");
        // SAFETY: the assertion keeps the offset within the mapping.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map`, and nobody refers to it any more: no RecvBuf, for each holds an Rc; no
        // operation in the kernel, for the ring's owner leaks its Rc while there is one.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped_bytes) };
    }
}

/// The ring's end of the buffers: hands them to the kernel and takes them from completions.
pub(super) struct Provider {
    pool: Rc<Pool>,
    count: u16,
    /// The tail of the ring of descriptors, as last published.
    tail: u16,
    /// Buffers that the kernel has, or has used in completions that were not looked at yet.
    provided: u16,
}

impl Provider {
    /// Maps `count` buffers (a power of two) and fills the ring of descriptors with them.
    pub(super) fn new(count: u16, buffer_bytes: u32) -> io::Result<Provider> {
        let pool = Pool::map(count, buffer_bytes)?;
        pool.returned.borrow_mut().extend(0..count);
        let mut provider = Provider { pool: Rc::new(pool), count, tail: 0, provided: 0 };
        provider.provide_returned();
        Ok(provider)
    }

    /// The address of the ring of descriptors, for its registration.
    pub(super) fn ring_address(&self) -> u64 {
        self.pool.base.as_ptr() as u64
    }

    /// Buffers in the ring of descriptors.
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// Whether the kernel has a buffer to receive into.
    pub(super) fn available(&self) -> u16 {
        self.provided
    }

    /// Whether buffers came back that the kernel does not have yet.
    pub(super) fn has_returned(&self) -> bool {
        !self.pool.returned.borrow().is_empty()
    }

    /// Gives the kernel every buffer that came back.
    pub(super) fn provide_returned(&mut self) {
        let mut returned = self.pool.returned.borrow_mut();
        if returned.is_empty() {
            return;
        }
        let entries = self.pool.base.as_ptr().cast::<BufRingEntry>();
        for buffer in returned.drain(..) {
            let index = usize::from(self.tail & (self.count - 1));
            // SAFETY: `index` is below `count`, so the descriptor lies in the mapping; the kernel does not read
            // descriptors at or past the tail, and no more than `count` buffers are ever provided.
            let entry = unsafe { &mut *entries.add(index) };
            entry.set_addr(self.pool.buffer(buffer).as_ptr() as u64);
            entry.set_len(self.pool.buffer_bytes as u32);
            entry.set_bid(buffer);
            self.tail = self.tail.wrapping_add(1);
            self.provided += 1;
        }
        // SAFETY: the tail is a field of the first descriptor, which is in the mapping, aligned, and written by nobody
        // else. The kernel reads it concurrently, hence the atomic store; Release shows it the descriptors first.
        unsafe { AtomicU16::from_ptr(BufRingEntry::tail(entries).cast_mut()) }.store(self.tail, Ordering::Release);
    }

    /// The buffer that a completion names. Call it once for each completion that names one, and for no other.
    pub(super) fn lend(&mut self, buffer: u16, len: u32) -> RecvBuf {
        assert!(buffer < self.count && len as usize <= self.pool.buffer_bytes, "the kernel named a foreign buffer");
        self.provided = self.provided.saturating_sub(1);
        RecvBuf { pool: Rc::clone(&self.pool), len, buffer }
    }

    /// Keeps the mapping for ever, because the kernel may still write to it.
    pub(super) fn leak(&self) {
        std::mem::forget(Rc::clone(&self.pool));
    }
}
