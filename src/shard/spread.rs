//! Broadcasts on their way into the queues of a shard's connections.
//!
//! Broadcasts gather in one piece of memory, which every queue then shares. A piece is spread over some hundred
//! connections a turn, so that a broadcast to a hundred thousand keeps nobody's message waiting for longer than that;
//! what is broadcast meanwhile gathers for the next piece.

use std::collections::VecDeque;

use crate::hub::effects::Wire;
use crate::time::Micros;

use super::chunk::Chunk;

/// Frames gather up to this size.
const GATHER_BYTES_MAX: usize = 64 << 10;
/// Frames above this size ride as they are.
const GATHERED_FRAME_BYTES_MAX: usize = 16 << 10;
const _: () = assert!(GATHERED_FRAME_BYTES_MAX <= GATHER_BYTES_MAX);

/// The broadcasts that have not reached every connection yet, in order.
#[derive(Default)]
pub(super) struct Spreads {
    gathered: Vec<u8>,
    /// When the bytes of each gathered frame came in.
    received: Vec<Micros>,
    ready: VecDeque<Spread>,
    /// Bytes of all of them.
    bytes: usize,
}

/// One piece and how far it has come.
pub(super) struct Spread {
    /// One frame behind the other.
    pub(super) chunk: Chunk,
    /// When the bytes of each frame came in.
    pub(super) received: Vec<Micros>,
    /// The next place to look at.
    pub(super) next: u32,
    /// Connections it was queued for.
    pub(super) reached: u64,
}

impl Spreads {
    /// Takes one more broadcast.
    pub(super) fn push(&mut self, frame: Wire<'_>, received: Micros) {
        let bytes = frame.as_slice();
        self.bytes += bytes.len();
        match frame {
            Wire::Shared(shared) if shared.len() > GATHERED_FRAME_BYTES_MAX => {
                self.seal();
                self.make_ready(Chunk::from_bytes(shared.clone()), vec![received]);
            }
            _ => {
                if self.gathered.len() + bytes.len() > GATHER_BYTES_MAX {
                    self.seal();
                }
                self.gathered.extend_from_slice(bytes);
                self.received.push(received);
            }
        }
    }

    /// The oldest piece, to go on with.
    pub(super) fn take(&mut self) -> Option<Spread> {
        if self.ready.is_empty() {
            self.seal();
        }
        self.ready.pop_front()
    }

    /// Puts back a piece that has not reached all.
    pub(super) fn put_back(&mut self, spread: Spread) {
        self.ready.push_front(spread);
    }

    /// Counts a piece out that has reached all.
    pub(super) fn finished(&mut self, spread: &Spread) {
        self.bytes -= spread.chunk.len();
    }

    /// Bytes of the pieces that have not reached all.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn seal(&mut self) {
        if !self.gathered.is_empty() {
            let chunk = Chunk::from_vec(std::mem::take(&mut self.gathered));
            let received = std::mem::take(&mut self.received);
            self.make_ready(chunk, received);
        }
    }

    fn make_ready(&mut self, chunk: Chunk, received: Vec<Micros>) {
        self.ready.push_back(Spread { chunk, received, next: 0, reached: 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn order_is_kept_whatever_the_sizes() {
        let mut spreads = Spreads::default();
        let mut sent = Vec::new();
        for number in 0..200u32 {
            let frame = vec![number as u8; [10, 1_000, 20_000, 60_000][number as usize % 4]];
            match number % 3 {
                0 => spreads.push(Wire::Copy(&frame), Micros(u64::from(number))),
                _ => spreads.push(Wire::Shared(&Bytes::from(frame.clone())), Micros(u64::from(number))),
            }
            sent.extend_from_slice(&frame);
        }
        assert_eq!(spreads.bytes(), sent.len());
        let mut got = Vec::new();
        let mut received = Vec::new();
        while let Some(spread) = spreads.take() {
            if got.is_empty() && spread.reached == 0 {
                // Put back once: it is the oldest again.
                spreads.put_back(Spread { reached: 1, ..spread });
                continue;
            }
            got.extend_from_slice(spread.chunk.as_slice());
            received.extend(spread.received.iter().map(|at| at.0));
            spreads.finished(&spread);
        }
        assert!(got == sent, "bytes in another order");
        assert_eq!(received, (0..200).collect::<Vec<u64>>());
        assert_eq!(spreads.bytes(), 0);
    }
}
