//! What rides in the user data of a submission: which operation, of which use of which slot.

/// Generations count modulo 2^24: as many bits as fit beside the operation and the slot.
pub(super) const GENERATION_MASK: u32 = (1 << 24) - 1;

/// The operation that a completion belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Op {
    /// One accept. Its generation bits hold the index of the cell that receives the peer's address.
    Accept = 1,
    /// The multishot recv of a socket.
    Recv,
    /// The one send of a socket.
    Send,
    /// FIN.
    Shutdown,
    /// The end of a slot's use.
    Close,
    /// Cancels the recv of a socket.
    CancelRecv,
    /// Cancels the send of a socket.
    CancelSend,
    /// Cancels the accepts of a listener; the slot bits hold the listener.
    CancelAccepts,
    /// Cancels everything in a ring, when the engine is dropped.
    CancelAll,
}

/// `op:8 | generation:24 | slot:32`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Token {
    pub(super) op: Op,
    /// Below 2^24.
    pub(super) generation: u32,
    pub(super) slot: u32,
}

impl Token {
    pub(super) fn new(op: Op, generation: u32, slot: u32) -> Token {
        debug_assert!(generation <= GENERATION_MASK);
        Token { op, generation, slot }
    }

    pub(super) fn pack(self) -> u64 {
        (self.op as u64) << 56 | u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// None for user data that no engine wrote.
    pub(super) fn unpack(user_data: u64) -> Option<Token> {
        let op = match (user_data >> 56) as u8 {
            1 => Op::Accept,
            2 => Op::Recv,
            3 => Op::Send,
            4 => Op::Shutdown,
            5 => Op::Close,
            6 => Op::CancelRecv,
            7 => Op::CancelSend,
            8 => Op::CancelAccepts,
            9 => Op::CancelAll,
            _ => return None,
        };
        Some(Token { op, generation: (user_data >> 32) as u32 & GENERATION_MASK, slot: user_data as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_and_unpacks_every_operation() {
        let ops = [
            Op::Accept,
            Op::Recv,
            Op::Send,
            Op::Shutdown,
            Op::Close,
            Op::CancelRecv,
            Op::CancelSend,
            Op::CancelAccepts,
            Op::CancelAll,
        ];
        for op in ops {
            for (generation, slot) in [(0, 0), (1, 2), (GENERATION_MASK, u32::MAX)] {
                let token = Token::new(op, generation, slot);
                assert_eq!(Token::unpack(token.pack()), Some(token));
            }
        }
        assert_eq!(Token::unpack(0), None);
        assert_eq!(Token::unpack(u64::MAX), None);
    }
}
