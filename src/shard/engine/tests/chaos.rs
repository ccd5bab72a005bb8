//! Everything at once, in an order that a seed decides: whatever is done to connections that share few slots, a client
//! gets nothing but a prefix of its own bytes, and as many as the engine says, and no connection hangs.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::support::*;
use crate::ids::ConnId;
use crate::shard::chunk::Chunk;
use crate::shard::engine::EngineConfig;

const THREADS: u64 = 3;
const CLIENTS_PER_THREAD: u64 = 120;

/// A small generator of random numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// What the echoing application knows of a connection.
#[derive(Default)]
struct Echo {
    /// Received bytes that were handed to a send.
    taken: usize,
    /// Bytes that the engine says were sent.
    went: usize,
    /// A send ended early: nothing may follow.
    broken: bool,
    closing: bool,
}

#[test]
fn nobody_gets_foreign_bytes_and_nobody_hangs() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let config = EngineConfig {
        sockets_max: 10,
        slots_per_ring: 5,
        buffers_per_ring: 8,
        buffer_bytes: 512,
        submission_entries: 8,
        completion_entries: 16,
        turn_bytes_max: 4096,
        ..small()
    };
    let mut bed = Bed::new(config, 3);
    let address = bed.address;
    let clients: Vec<_> = (0..THREADS).map(|n| std::thread::spawn(move || be_clients(address, seed, n))).collect();
    let mut echoes: HashMap<ConnId, Echo> = HashMap::new();
    let total = (THREADS * CLIENTS_PER_THREAD) as usize;
    bed.until("the end of every client", |bed| {
        bed.turn();
        for (id, _, result) in std::mem::take(&mut bed.sent) {
            let echo = echoes.entry(id).or_default();
            echo.went += result.unwrap_or(0);
            echo.broken |= echo.went != echo.taken;
        }
        let open: Vec<ConnId> = bed.accepted.iter().map(|(id, _)| *id).filter(|id| !bed.closed.contains(id)).collect();
        for id in open {
            let echo = echoes.entry(id).or_default();
            let all = bed.received.get(&id).map_or(&[][..], Vec::as_slice);
            let over = bed.ended.iter().any(|(of, _)| *of == id) || echo.broken;
            if all.len() > echo.taken && !bed.engine.is_sending(id) && !echo.broken && !echo.closing {
                let chunk = Chunk::from_vec(all[echo.taken..].to_vec());
                bed.engine.send(id, chunk).expect("none is in flight");
                echo.taken = all.len();
            }
            match dice.below(400) {
                0 | 1 => bed.engine.pause_reading(id),
                2 => bed.engine.cancel_send(id),
                3 => echo.closing = true,
                _ => bed.engine.resume_reading(id),
            }
            if echo.closing || over && !bed.engine.is_sending(id) {
                echo.closing = true;
                bed.engine.close(id);
            }
        }
        bed.closed.len() == total
    });
    // A port that two clients had, one after the other, can't be told apart.
    let mut went: HashMap<SocketAddr, Vec<usize>> = HashMap::new();
    for (id, peer) in &bed.accepted {
        went.entry(*peer).or_default().push(echoes[id].went);
    }
    for client in clients {
        for (peer, got, saw_fin) in client.join().expect("client") {
            if let [went] = went[&peer][..] {
                assert!(if saw_fin { got == went } else { got <= went }, "{peer}: {got} of {went}, FIN: {saw_fin}");
            }
        }
    }
    assert_eq!((bed.engine.open_sockets(), bed.accepts_failed.len()), (0, 0));
}

/// Clients one after the other. Answers of each its address, how many bytes it got, and whether it saw FIN.
fn be_clients(address: SocketAddr, seed: u64, thread: u64) -> Vec<(SocketAddr, usize, bool)> {
    (0..CLIENTS_PER_THREAD)
        .map(|n| {
            let mut dice = Dice(seed ^ (thread << 32) ^ n);
            let client = connect(address);
            let local = client.local_addr().expect("address");
            let bytes = pattern(dice.below(60_000), seed ^ (thread << 40) ^ (n << 8));
            let (got, to_the_end) = be_client(client, &bytes, &mut dice);
            (local, got, to_the_end)
        })
        .collect()
}

fn be_client(client: TcpStream, bytes: &[u8], dice: &mut Dice) -> (usize, bool) {
    let leaves_early = dice.below(4) == 0;
    let leaves_after = dice.below(bytes.len() + 1);
    let mut writing = client.try_clone().expect("clone");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for piece in bytes.chunks(3000) {
                if writing.write_all(piece).is_err() {
                    return;
                }
            }
            let _ = writing.shutdown(std::net::Shutdown::Write);
        });
        let mut client = client;
        let mut got = 0;
        let mut piece = vec![0; 1 + dice.below(5000)];
        loop {
            if leaves_early && got >= leaves_after {
                let _ = client.shutdown(std::net::Shutdown::Both);
                return (got, false);
            }
            match client.read(&mut piece) {
                Ok(0) => return (got, true),
                Ok(n) => {
                    assert!(got + n <= bytes.len() && piece[..n] == bytes[got..got + n], "foreign bytes");
                    got += n;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "a client waits in vain");
                    return (got, false);
                }
            }
        }
    })
}
