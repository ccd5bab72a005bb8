//! Connections begun: at their time, from an address that has a port left.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;

use super::end::error_name;
use super::{Driver, Net, State};
use crate::sys;

/// Connections from one loopback source address. connect(2) looks for a free port among those of one parity first, 14,000
/// of the usual range, one after the other: with most of them taken it tries thousands for a single connection.
const CONNECTIONS_PER_SOURCE: u32 = 4_000;
/// Connecting is hopeless when so many attempts failed and fewer succeeded: the rest is not tried.
const FAILURES_HOPELESS: u64 = 200;

impl Net {
    pub(super) fn begin_connections(&mut self) {
        // A bound for each turn, so that answers are read while a storm goes out.
        for _ in 0..64 {
            let interval_ns = self.config.connect_interval_ns;
            let waits = interval_ns > 0 && sys::now_ns() < self.next_begin_ns;
            if waits || self.under_way >= self.config.concurrency {
                return;
            }
            let index = if self.next < self.connections.len() {
                if self.tally.failed >= FAILURES_HOPELESS && self.tally.failed > self.tally.opened {
                    self.tally.failed += (self.connections.len() - self.next) as u64;
                    self.tally.error("connecting given up: more attempts failed than succeeded");
                    self.next = self.connections.len();
                    return;
                }
                self.next += 1;
                self.next - 1
            } else if let Some(index) = self.again.pop_front() {
                index
            } else {
                return;
            };
            let user = self.user(index);
            let address = self.target(index).address;
            let source = source_address(address.ip(), user);
            let started_ns = sys::now_ns();
            // The first attempt sets the schedule, the others keep to it.
            self.next_begin_ns = self.next_begin_ns.max(started_ns.saturating_sub(interval_ns * 64)) + interval_ns;
            let generation = self.connections[index].generation;
            let token = index as u64 | u64::from(generation) << 32;
            let socket =
                sys::connect(address, source).and_then(|socket| self.epoll.add(socket.as_fd(), token).map(|()| socket));
            match socket {
                Ok(socket) => {
                    let connection = &mut self.connections[index];
                    connection.socket = Some(socket);
                    connection.state = State::Connecting;
                    connection.ready = false;
                    connection.started_ns = started_ns;
                    connection.since_ns = started_ns;
                    self.under_way += 1;
                    let deadline_ns = started_ns + self.config.connect_timeout.as_nanos() as u64;
                    self.begun.push_back((deadline_ns, index, generation));
                }
                Err(error) => {
                    self.tally.failed += 1;
                    self.tally.error(&format!("connect: {}", error_name(&error)));
                }
            }
        }
    }

    pub(super) fn expire<D: Driver>(&mut self, driver: &mut D, now_ns: u64) {
        while let Some(&(deadline_ns, index, generation)) = self.begun.front() {
            let connection = &self.connections[index];
            let done = connection.generation != generation || connection.ready || connection.state == State::Down;
            if !done && deadline_ns > now_ns {
                return;
            }
            self.begun.pop_front();
            if !done {
                self.fail(driver, index, "timed out");
            }
        }
    }
}

/// Where a user's connection comes from: on loopback one of many addresses, so that ports do not run out.
fn source_address(target: IpAddr, user: u32) -> Option<IpAddr> {
    match target {
        IpAddr::V4(address) if address.is_loopback() => {
            let number = 2 + user / CONNECTIONS_PER_SOURCE;
            Some(IpAddr::V4(Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(127, 0, 0, 0)) + number)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_spread_over_loopback_and_only_there() {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(source_address(loopback, 0), Some("127.0.0.2".parse().expect("an address")));
        assert_eq!(source_address(loopback, CONNECTIONS_PER_SOURCE), Some("127.0.0.3".parse().expect("an address")));
        assert_eq!(source_address("10.0.0.1".parse().expect("an address"), 7), None);
    }
}
