//! io_uring for the control server: direct descriptors, multishot recv into a ring of buffers, one send a socket.
//!
//! A ring's table of descriptors is bounded by RLIMIT_NOFILE: more connections take several rings, all of them served by
//! one thread. The others signal an eventfd that the first one polls, so that one wait is enough.
//!
//! The interface is safe: memory that the kernel may touch belongs to the ring, and is never freed, because the control
//! server lives as long as its process.

use std::alloc::{Layout, alloc_zeroed};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, DestinationSlot, Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};

/// Buffers of the ring: few, so that they stay in the cache (128 measured 7 % better than 1024).
const BUFFERS: u16 = 128;
const BUFFER_BYTES: usize = 4096;
const BUFFER_GROUP: u16 = 0;
const PAGE_BYTES: usize = 4096;
const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 16_384;
/// IORING_ENTER_GETEVENTS of io_uring_enter(2).
const ENTER_GETEVENTS: u32 = 1;

const _: () = assert!(BUFFERS.is_power_of_two() && (BUFFERS as usize * size_of::<BufRingEntry>()) <= PAGE_BYTES);

/// What has happened to a slot.
#[derive(Clone, Copy, Debug)]
pub enum Completion {
    /// The accept armed for this slot ended: the slot is a connection now, or an errno says why not.
    Accepted { slot: u32, errno: i32 },
    /// Bytes came; give the buffer back with [`Ring::recycle`]. Without `more`, receive again.
    Received { slot: u32, buffer: u16, bytes: usize, more: bool },
    /// The receive ended: 0 for the peer's end, ENOBUFS when there was no buffer, or another errno.
    Ended { slot: u32, errno: i32 },
    /// The send is over, whatever came of it.
    Sent { slot: u32 },
    /// The slot is free.
    Closed { slot: u32 },
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Operation {
    Accept,
    Receive,
    Send,
    Shutdown,
    Close,
    /// Another ring has something to do.
    Nested,
}

impl Operation {
    const ALL: [Self; 6] = [Self::Accept, Self::Receive, Self::Send, Self::Shutdown, Self::Close, Self::Nested];
}

/// One ring, its buffers, and whether it has something to do.
struct Part {
    ring: IoUring,
    buffers: Buffers,
    ready: bool,
}

impl Part {
    fn new(slots: u32) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        builder.setup_submit_all().setup_cqsize(COMPLETIONS);
        let ring: IoUring = builder.build(SUBMISSIONS)?;
        ring.submitter().register_files_sparse(slots)?;
        let mut buffers = Buffers::new();
        // SAFETY: the entries are page-aligned, as many as said, and never freed.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(buffers.entries as u64, BUFFERS, BUFFER_GROUP, 0)?;
        }
        (0..BUFFERS).for_each(|buffer| buffers.give(buffer));
        Ok(Self { ring, buffers, ready: false })
    }

    /// Submits what is queued and lets the kernel do what it has put off, without waiting.
    fn run(&mut self) -> io::Result<()> {
        let queued = self.ring.submission().len() as u32;
        // SAFETY: no argument is passed.
        match unsafe { self.ring.submitter().enter::<()>(queued, 0, ENTER_GETEVENTS, None) } {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }
}

/// Rings with their slots and buffers, as one.
pub struct Ring {
    parts: Vec<Part>,
    /// Slots of each ring; slot `n` is slot `n % slots_each` of ring `n / slots_each`.
    slots_each: u32,
    listener: OwnedFd,
    /// Signalled by every ring but the first.
    wake: OwnedFd,
    /// The first ring's poll of it has to be armed.
    unwatched: bool,
    /// The bytes under way in each slot; unchanged while a send is in flight.
    sending: ManuallyDrop<Vec<Vec<u8>>>,
    in_flight: Vec<bool>,
}

impl Ring {
    /// `slots` slots, at most `slots_each_max` of them in one ring, which accept from `listener`.
    ///
    /// # Errors
    /// When the kernel forbids io_uring, or `slots_each_max` is above the descriptor limit.
    pub fn new(listener: OwnedFd, slots: u32, slots_each_max: u32) -> io::Result<Self> {
        let rings = slots.div_ceil(slots_each_max).max(1);
        let slots_each = slots.div_ceil(rings);
        let parts = (0..rings).map(|_| Part::new(slots_each)).collect::<io::Result<Vec<_>>>()?;
        let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        for part in &parts[1..] {
            part.ring.submitter().register_eventfd(wake.as_raw_fd())?;
        }
        let unwatched = parts.len() > 1;
        let sending = ManuallyDrop::new(vec![Vec::new(); slots as usize]);
        let in_flight = vec![false; slots as usize];
        Ok(Self { parts, slots_each, listener, wake, unwatched, sending, in_flight })
    }

    /// Waits for the next connection in this slot.
    ///
    /// # Errors
    /// Those of io_uring_enter(2), when the queue was full.
    pub fn accept(&mut self, slot: u32) -> io::Result<()> {
        let destination = DestinationSlot::try_from_slot_target(self.fixed(slot)).ok();
        let entry = opcode::Accept::new(Fd(self.listener.as_raw_fd()), std::ptr::null_mut(), std::ptr::null_mut())
            .file_index(destination)
            .build();
        self.push(Operation::Accept, slot, entry)
    }

    /// Receives from this slot until the receive ends.
    ///
    /// # Errors
    /// Those of io_uring_enter(2), when the queue was full.
    pub fn receive(&mut self, slot: u32) -> io::Result<()> {
        self.push(Operation::Receive, slot, opcode::RecvMulti::new(Fixed(self.fixed(slot)), BUFFER_GROUP).build())
    }

    /// True while a send of this slot is under way.
    pub fn is_sending(&self, slot: u32) -> bool {
        self.in_flight[slot as usize]
    }

    /// Sends `bytes`, which come back empty. Does nothing while a send is under way.
    ///
    /// # Errors
    /// Those of io_uring_enter(2), when the queue was full.
    pub fn send(&mut self, slot: u32, bytes: &mut Vec<u8>) -> io::Result<()> {
        let index = slot as usize;
        if self.in_flight[index] || bytes.is_empty() {
            return Ok(());
        }
        let fixed = Fixed(self.fixed(slot));
        let sending = &mut self.sending[index];
        sending.clear();
        std::mem::swap(sending, bytes);
        let entry = opcode::Send::new(fixed, sending.as_ptr(), sending.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.in_flight[index] = true;
        self.push(Operation::Send, slot, entry)
    }

    /// Ends both directions, so that an armed receive ends.
    ///
    /// # Errors
    /// Those of io_uring_enter(2), when the queue was full.
    pub fn shutdown(&mut self, slot: u32) -> io::Result<()> {
        self.push(Operation::Shutdown, slot, opcode::Shutdown::new(Fixed(self.fixed(slot)), libc::SHUT_RDWR).build())
    }

    /// Frees the slot. Only when nothing of it is under way.
    ///
    /// # Errors
    /// Those of io_uring_enter(2), when the queue was full.
    pub fn close(&mut self, slot: u32) -> io::Result<()> {
        self.push(Operation::Close, slot, opcode::Close::new(Fixed(self.fixed(slot))).build())
    }

    /// Submits what is queued, without waiting.
    ///
    /// # Errors
    /// Those of io_uring_enter(2).
    pub fn submit(&mut self) -> io::Result<()> {
        for part in &mut self.parts {
            if !part.ring.submission().is_empty() {
                part.ring.submit()?;
            }
        }
        Ok(())
    }

    /// Submits, waits for at least one completion, and takes at most `limit` of them from each ring.
    ///
    /// # Errors
    /// Those of io_uring_enter(2) other than EINTR.
    pub fn turn(&mut self, limit: usize, into: &mut Vec<Completion>) -> io::Result<()> {
        into.clear();
        self.watch_others()?;
        for part in &mut self.parts[1..] {
            if !part.ring.submission().is_empty() {
                part.ring.submit()?;
            }
        }
        if self.parts.iter().any(|part| part.ready) {
            self.parts[0].run()?;
        } else {
            match self.parts[0].ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        self.take(0, limit, into);
        for number in 1..self.parts.len() {
            if self.parts[number].ready {
                self.parts[number].run()?;
                self.take(number, limit, into);
            }
        }
        Ok(())
    }

    /// Has the first ring say when another one has something to do. The eventfd is never read: each signal is an edge.
    fn watch_others(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.unwatched) {
            let poll = opcode::PollAdd::new(Fd(self.wake.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
            self.push_to(0, Operation::Nested, 0, poll)?;
            // What they had before the poll was armed is no news to the poll.
            self.parts[1..].iter_mut().for_each(|part| part.ready = true);
        }
        Ok(())
    }

    /// Takes the completions of one ring; it stays ready while there are more. An enter does twenty pieces of what was
    /// put off and leaves the rest, of which no eventfd tells: only the flag does.
    fn take(&mut self, number: usize, limit: usize, into: &mut Vec<Completion>) {
        let first_buffer = number as u16 * BUFFERS;
        for _ in 0..limit {
            let Some(entry) = self.parts[number].ring.completion().next() else {
                let part = &mut self.parts[number];
                let submission = part.ring.submission();
                part.ready = submission.taskrun() || submission.cq_overflow();
                return;
            };
            let slot = entry.user_data() as u32;
            let result = entry.result();
            into.push(match Operation::ALL[(entry.user_data() >> 32) as usize] {
                Operation::Accept => Completion::Accepted { slot, errno: (-result).max(0) },
                Operation::Receive => match cqueue::buffer_select(entry.flags()) {
                    Some(buffer) if result > 0 => {
                        let more = cqueue::more(entry.flags());
                        Completion::Received { slot, buffer: first_buffer + buffer, bytes: result as usize, more }
                    }
                    _ => Completion::Ended { slot, errno: -result },
                },
                Operation::Send => {
                    self.in_flight[slot as usize] = false;
                    Completion::Sent { slot }
                }
                Operation::Shutdown => continue,
                Operation::Close => Completion::Closed { slot },
                Operation::Nested => {
                    self.parts[1..].iter_mut().for_each(|part| part.ready = true);
                    self.unwatched |= !cqueue::more(entry.flags());
                    continue;
                }
            });
        }
        self.parts[number].ready = true;
    }

    /// What a [`Completion::Received`] brought.
    pub fn received(&mut self, buffer: u16, bytes: usize) -> &mut [u8] {
        self.parts[usize::from(buffer / BUFFERS)].buffers.slice(buffer % BUFFERS, bytes)
    }

    /// Gives the buffer of a [`Completion::Received`] back to the kernel.
    pub fn recycle(&mut self, buffer: u16) {
        self.parts[usize::from(buffer / BUFFERS)].buffers.give(buffer % BUFFERS);
    }

    /// The slot's number within its ring.
    fn fixed(&self, slot: u32) -> u32 {
        slot % self.slots_each
    }

    fn push(&mut self, operation: Operation, slot: u32, entry: squeue::Entry) -> io::Result<()> {
        self.push_to((slot / self.slots_each) as usize, operation, slot, entry)
    }

    fn push_to(&mut self, number: usize, operation: Operation, slot: u32, entry: squeue::Entry) -> io::Result<()> {
        let entry = entry.user_data((operation as u64) << 32 | u64::from(slot));
        let ring = &mut self.parts[number].ring;
        if ring.submission().is_full() {
            ring.submit()?;
        }
        // SAFETY: the only memory an entry points to is `sending[slot]`, which is neither changed nor freed before the
        // send's completion; the listener and the other rings, whose descriptors it names, live as long as this one.
        unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)
    }
}

/// The memory of the provided buffers: one page of entries, then the buffers.
struct Buffers {
    entries: *mut BufRingEntry,
    data: *mut u8,
    tail: u16,
}

impl Buffers {
    fn new() -> Self {
        let bytes = PAGE_BYTES + usize::from(BUFFERS) * BUFFER_BYTES;
        let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("constant, valid layout");
        // SAFETY: the layout is not empty. The memory is never freed: the kernel may write to it until the process ends.
        let base = unsafe { alloc_zeroed(layout) };
        assert!(!base.is_null(), "no memory for the buffers");
        // SAFETY: the allocation is one page longer than the buffers.
        let data = unsafe { base.add(PAGE_BYTES) };
        Self { entries: base.cast(), data, tail: 0 }
    }

    fn slice(&mut self, buffer: u16, bytes: usize) -> &mut [u8] {
        assert!(buffer < BUFFERS && bytes <= BUFFER_BYTES);
        // SAFETY: within the allocation (asserted), and the kernel does not write to a buffer it has handed out.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(usize::from(buffer) * BUFFER_BYTES), bytes) }
    }

    fn give(&mut self, buffer: u16) {
        assert!(buffer < BUFFERS);
        let index = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: the index is below BUFFERS, the memory lives for ever, and the kernel reads entries below the tail only.
        let entry = unsafe { &mut *self.entries.add(index) };
        // SAFETY: the buffer's number was asserted.
        entry.set_addr(unsafe { self.data.add(usize::from(buffer) * BUFFER_BYTES) } as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies within the first entry, is aligned, and only this thread writes it.
        unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut()) }.store(self.tail, Ordering::Release);
    }
}
