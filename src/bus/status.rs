//! How it stands with the bus: what its thread says and the shards look at, without a lock.

use std::sync::atomic::{
    AtomicBool, AtomicU8,
    Ordering::{Acquire, Release},
};

/// Where the bus is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum BusStage {
    /// Not connected yet: nobody could be reached from other nodes.
    Warming,
    /// Users can be registered.
    Up,
    /// Redis has been out of reach for longer than `bus_lost_after`.
    Lost,
}

impl BusStage {
    /// As `/health` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warming => "warming",
            Self::Up => "up",
            Self::Lost => "lost",
        }
    }
}

/// What the bus thread says to all. It is the only writer.
#[derive(Debug)]
pub struct BusStatus {
    stage: AtomicU8,
    takes_broadcasts: AtomicBool,
}

impl Default for BusStatus {
    fn default() -> Self {
        Self { stage: AtomicU8::new(BusStage::Warming as u8), takes_broadcasts: AtomicBool::new(false) }
    }
}

impl BusStatus {
    /// Where the bus is in its life.
    pub fn stage(&self) -> BusStage {
        match self.stage.load(Acquire) {
            0 => BusStage::Warming,
            1 => BusStage::Up,
            _ => BusStage::Lost,
        }
    }

    /// Says where the bus is in its life.
    pub fn set_stage(&self, stage: BusStage) {
        self.stage.store(stage as u8, Release);
    }

    /// Whether broadcasts of clients are taken; if not, they are answered `overloaded`.
    pub fn takes_broadcasts(&self) -> bool {
        self.takes_broadcasts.load(Acquire)
    }

    /// Says whether broadcasts are taken.
    pub fn set_takes_broadcasts(&self, takes: bool) {
        self.takes_broadcasts.store(takes, Release);
    }
}
