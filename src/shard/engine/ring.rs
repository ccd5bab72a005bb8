//! One io_uring: its table of sockets, its buffers, and what waits to be submitted.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};

use super::buffers::{Provider, RecvBuf};
use super::config::{EngineConfig, EngineError};
use super::slot::{Recv, Slots};
use super::token::{Op, Token};
use crate::shard::chunk::Chunk;

/// The one group of buffers of a ring.
const BUFFER_GROUP: u16 = 0;
const ENTER_GETEVENTS: u32 = EnterFlags::GETEVENTS.bits();

/// One completion, copied out of the queue.
#[derive(Clone, Copy)]
pub(super) struct Completion {
    pub(super) ring: u16,
    pub(super) result: i32,
    pub(super) flags: u32,
    pub(super) user_data: u64,
}

/// One io_uring with a table of sockets and the buffers it receives into.
pub(super) struct Ring {
    uring: IoUring,
    pub(super) slots: Slots,
    pub(super) buffers: Provider,
    /// Entries that found the submission queue full and the kernel unwilling. They go before any later one.
    backlog: VecDeque<squeue::Entry>,
    submit_batch: usize,
    /// Accepts, recvs and sends whose last completion is to come: while there is one, the kernel may touch memory of
    /// ours.
    in_flight: u32,
    /// Connections whose recv found no buffer, first come first served: slot and generation.
    pub(super) starved: VecDeque<(u32, u32)>,
}

impl Ring {
    /// A ring of `slots` sockets that signals `wake`, until [`Ring::notify`] says otherwise.
    pub(super) fn open(config: &EngineConfig, slots: u32, wake: BorrowedFd<'_>) -> Result<Ring, EngineError> {
        let failed = |call| move |source| EngineError::kernel(call, source);
        let uring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(config.completion_entries)
            .build(config.submission_entries)
            .map_err(failed("io_uring_setup"))?;
        uring.submitter().register_files_sparse(slots).map_err(failed("IORING_REGISTER_FILES2"))?;
        let buffers = Provider::new(config.buffers_per_ring, config.buffer_bytes).map_err(failed("mmap"))?;
        // SAFETY: the descriptors lie page-aligned in the provider's mapping, which outlives the ring: the engine drops
        // a ring's IoUring first, and leaks the mapping if an operation may still use it.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(buffers.ring_address(), buffers.count(), BUFFER_GROUP, 0)
        }
        .map_err(failed("IORING_REGISTER_PBUF_RING"))?;
        uring.submitter().register_eventfd(wake.as_raw_fd()).map_err(failed("IORING_REGISTER_EVENTFD"))?;
        Ok(Ring {
            uring,
            slots: Slots::new(slots),
            buffers,
            backlog: VecDeque::new(),
            submit_batch: config.submit_batch.min(config.submission_entries as usize),
            in_flight: 0,
            starved: VecDeque::new(),
        })
    }

    /// Accepts one client of `listener` into `slot`, with `cell` receiving its address.
    pub(super) fn accept(
        &mut self,
        listener: BorrowedFd<'_>,
        slot: u32,
        (cell, address, len): (u32, *mut libc::sockaddr, *mut libc::socklen_t),
    ) {
        let target = types::DestinationSlot::try_from_slot_target(slot).ok();
        debug_assert!(target.is_some());
        let entry = opcode::Accept::new(types::Fd(listener.as_raw_fd()), address, len).file_index(target).build();
        self.in_flight += 1;
        self.push(entry, Token::new(Op::Accept, cell, slot));
    }

    /// Receives from `slot` until told otherwise.
    pub(super) fn recv(&mut self, slot: u32, generation: u32) {
        self.in_flight += 1;
        let entry = opcode::RecvMulti::new(types::Fixed(slot), BUFFER_GROUP).build();
        self.push(entry, Token::new(Op::Recv, generation, slot));
    }

    /// Sends all of `chunk`, a handle of which the caller must keep until the completion.
    pub(super) fn send(&mut self, slot: u32, generation: u32, chunk: &Chunk) {
        let bytes = chunk.as_slice();
        // WAITALL: the kernel goes on after a short write by itself, and a cancelled send tells what was sent.
        let entry = opcode::Send::new(types::Fixed(slot), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.in_flight += 1;
        self.push(entry, Token::new(Op::Send, generation, slot));
    }

    /// Sends FIN.
    pub(super) fn shutdown_write(&mut self, slot: u32, generation: u32) {
        let entry = opcode::Shutdown::new(types::Fixed(slot), libc::SHUT_WR).build();
        self.push(entry, Token::new(Op::Shutdown, generation, slot));
    }

    /// Empties `slot`. It must be the last operation of its use.
    pub(super) fn close(&mut self, slot: u32, generation: u32) {
        self.push(opcode::Close::new(types::Fixed(slot)).build(), Token::new(Op::Close, generation, slot));
    }

    /// Ends the recv ([`Op::CancelRecv`]) or the send ([`Op::CancelSend`]) of a connection.
    pub(super) fn cancel(&mut self, op: Op, slot: u32, generation: u32) {
        let target = if op == Op::CancelRecv { Op::Recv } else { Op::Send };
        let entry = opcode::AsyncCancel::new(Token::new(target, generation, slot).pack()).build();
        self.push(entry, Token::new(op, generation, slot));
    }

    /// Ends the accepts of a listener.
    pub(super) fn cancel_accepts(&mut self, fd: BorrowedFd<'_>, listener: u16) {
        let which = types::CancelBuilder::fd(types::Fd(fd.as_raw_fd())).all();
        self.push(opcode::AsyncCancel2::new(which).build(), Token::new(Op::CancelAccepts, 0, u32::from(listener)));
    }

    /// Ends everything.
    pub(super) fn cancel_all(&mut self) {
        let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        self.push(entry, Token::new(Op::CancelAll, 0, 0));
    }

    /// Accepts, recvs and sends whose last completion is to come.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Arms the recv of a connection that was queued for it, if it is still wanted.
    pub(super) fn rearm(&mut self, index: u32, generation: u32) {
        let Some(slot) = self.slots.of(index, generation) else { return };
        slot.awaits_rearm = false;
        if slot.may_arm() {
            slot.recv = Recv::Armed;
            self.recv(index, generation);
        }
    }

    /// Arms recvs that had found no buffer: as many as there are buffers, since more would only fail again.
    ///
    /// Completions that were not looked at yet hold buffers too, so the count is true only when there are none. Arming on
    /// a count that is too high makes more failures in each turn than the turn takes in, and an overloaded shard would
    /// come to do nothing else.
    pub(super) fn feed_starved(&mut self) {
        if self.starved.is_empty() || self.has_completions() {
            return;
        }
        for _ in 0..self.buffers.available() {
            let Some((slot, generation)) = self.starved.pop_front() else { return };
            self.rearm(slot, generation);
        }
    }

    /// Whether [`Ring::feed_starved`] would do something in the next turn.
    pub(super) fn can_feed_starved(&self) -> bool {
        !self.starved.is_empty()
            && !self.has_completions()
            && (self.buffers.available() > 0 || self.buffers.has_returned())
    }

    /// Whether something waits to be submitted.
    pub(super) fn has_unsubmitted(&self) -> bool {
        !self.backlog.is_empty() || !self.submission().is_empty()
    }

    /// Whether completions wait to be taken.
    fn has_completions(&self) -> bool {
        // SAFETY: `self` is borrowed and not Sync, so there is no other handle of the completion queue.
        !unsafe { self.uring.completion_shared() }.is_empty()
    }

    /// Whether there is nothing to submit, to run in the kernel, or to reap.
    pub(super) fn is_quiet(&self) -> bool {
        !self.has_completions() && !self.has_unsubmitted() && !self.kernel_has_work()
    }

    /// Submits what is queued, runs what the kernel deferred, and makes completions visible; no system call if there is
    /// nothing of that kind.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        if self.has_unsubmitted() || self.kernel_has_work() { self.enter(ENTER_GETEVENTS) } else { Ok(()) }
    }

    /// As [`Ring::turn`], but asks the kernel in any case.
    pub(super) fn turn_for_certain(&mut self) -> io::Result<()> {
        self.enter(ENTER_GETEVENTS)
    }

    /// Submits what is queued.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.has_unsubmitted() { self.enter(0) } else { Ok(()) }
    }

    /// Copies at most `count_max` completions of ring number `ring` to `to`; answers how many.
    pub(super) fn reap(&mut self, ring: u16, count_max: usize, to: &mut VecDeque<Completion>) -> usize {
        let before = to.len();
        let completions = self.uring.completion().take(count_max);
        to.extend(completions.map(|entry| Completion {
            ring,
            result: entry.result(),
            flags: entry.flags(),
            user_data: entry.user_data(),
        }));
        to.len() - before
    }

    /// The buffer that a completion carries, and whether more completions of the same operation will follow. To be
    /// called exactly once for each completion of an accept, a recv or a send.
    pub(super) fn take_buffer(&mut self, done: &Completion) -> (Option<RecvBuf>, bool) {
        let more = cqueue::more(done.flags);
        if !more {
            self.in_flight -= 1;
        }
        let len = done.result.max(0) as u32;
        (cqueue::buffer_select(done.flags).map(|buffer| self.buffers.lend(buffer, len)), more)
    }

    /// Whether completions are to signal the eventfd.
    pub(super) fn notify(&mut self, enabled: bool) {
        let queue = self.uring.completion();
        if enabled {
            queue.enable_eventfd();
            // The kernel makes work visible and then looks at this flag: looking for work must come after setting it.
            fence(Ordering::SeqCst);
        } else {
            queue.disable_eventfd();
        }
    }

    /// Whether the kernel holds back work or completions until it is entered.
    fn kernel_has_work(&self) -> bool {
        let queue = self.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// The submission queue, to be looked at only.
    fn submission(&self) -> squeue::SubmissionQueue<'_> {
        // SAFETY: `self` is borrowed and not Sync, and no method keeps a handle, so there is no other one.
        unsafe { self.uring.submission_shared() }
    }

    fn push(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.pack());
        if self.uring.submission().is_full() || !self.backlog.is_empty() {
            // A failure is seen again, and reported, in the next turn.
            let _ = self.enter(0);
        }
        if !self.backlog.is_empty() || !self.queue(&entry) {
            self.backlog.push_back(entry);
        } else if self.uring.submission().len() >= self.submit_batch {
            let _ = self.enter(0);
        }
    }

    /// Puts an entry into the submission queue; answers false if that is full.
    fn queue(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what an entry points to stays valid until its last completion. The bytes of a send: their chunk lies
        // in the slot until then, and nobody appends to a chunk of several handles. The cell of an accept: boxed, and
        // given back only by its completion. The buffers of a recv: in the provider's mapping. Descriptors: a listener
        // is closed after its last accept. Where an engine ends before its operations, all of these are leaked.
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }

    fn enter(&mut self, flags: u32) -> io::Result<()> {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.queue(&entry) {
                self.backlog.push_front(entry);
                break;
            }
        }
        let to_submit = self.uring.submission().len() as u32;
        // SAFETY: no argument is passed, and the flags are those of a plain submission.
        match unsafe { self.uring.submitter().enter::<libc::sigset_t>(to_submit, 0, flags, None) } {
            Ok(_) => Ok(()),
            // Interrupted, short of memory for the moment, or completions must be reaped first: the next turn goes on.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
