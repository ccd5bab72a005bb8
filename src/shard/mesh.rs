//! Channels between shards. Only this file names glommio's: a batch goes out with `try_send_to`, never waiting, and
//! a task for each peer puts what arrives into the shard's inbox.
//!
//! Awaiting `send_to` in the loop that also receives deadlocks two shards that answer each other; the credits of
//! [`crate::hub::links`] keep what waits here bounded instead.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

use glommio::GlommioError;
use glommio::channels::channel_mesh::{Full, MeshBuilder, Senders};

use crate::hub::links::Batch;
use crate::ids::ShardId;

/// Batches on their way between two shards; beyond that they wait, merged into one, in the outbox.
const BATCHES_MAX: usize = 512;

/// A shard's right to join the mesh. It may cross threads; the end it turns into may not.
#[derive(Clone)]
pub struct MeshTicket {
    /// A node of one shard has no mesh.
    builder: Option<MeshBuilder<Batch, Full>>,
}

impl MeshTicket {
    /// The ticket of a node with so many shards; each shard takes a clone.
    pub fn new(shards: u16) -> Self {
        let builder = (shards > 1).then(|| MeshBuilder::full(usize::from(shards), BATCHES_MAX));
        Self { builder }
    }

    /// Joins, once all shards do. What arrives goes to `inbox` from then on. The shard's id is its place in the mesh.
    pub(super) async fn join(self, inbox: &Rc<Inbox>) -> std::io::Result<(ShardId, MeshEnd)> {
        let Some(builder) = self.builder else { return Ok((ShardId(0), MeshEnd { senders: None })) };
        let (senders, mut receivers) =
            builder.join().await.map_err(|error| std::io::Error::other(error.to_string()))?;
        for (peer, receiver) in receivers.streams() {
            let inbox = Rc::clone(inbox);
            let peer = ShardId(peer as u16);
            glommio::spawn_local(async move {
                while let Some(batch) = receiver.recv().await {
                    inbox.push(peer, batch);
                }
            })
            .detach();
        }
        Ok((ShardId(senders.peer_id() as u16), MeshEnd { senders: Some(senders) }))
    }
}

/// A shard's sending end.
pub(super) struct MeshEnd {
    senders: Option<Senders<Batch>>,
}

impl MeshEnd {
    /// Sends a batch, or hands it back when the channel is full.
    ///
    /// # Errors
    /// The batch, to be tried again later.
    pub(super) fn try_send(&self, peer: ShardId, batch: Batch) -> Result<(), Batch> {
        let Some(senders) = &self.senders else { return Err(batch) };
        match senders.try_send_to(peer.index(), batch) {
            Ok(()) => Ok(()),
            Err(
                GlommioError::WouldBlock(glommio::ResourceType::Channel(batch))
                | GlommioError::Closed(glommio::ResourceType::Channel(batch)),
            ) => Err(batch),
            // No other error carries the batch; none is known for a channel between shards that live as long as the node.
            Err(error) => panic!("the mesh failed towards shard {peer}: {error}"),
        }
    }
}

/// What has come for the shard's loop, from the other tasks of its executor.
#[derive(Default)]
pub(super) struct Inbox {
    batches: RefCell<Vec<(ShardId, Batch)>>,
    ticked: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Inbox {
    fn push(&self, peer: ShardId, batch: Batch) {
        self.batches.borrow_mut().push((peer, batch));
        self.wake();
    }

    /// Time has passed.
    pub(super) fn tick(&self) {
        self.ticked.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Takes what has arrived.
    pub(super) fn take(&self) -> Vec<(ShardId, Batch)> {
        self.ticked.set(false);
        self.batches.take()
    }

    /// Whether there is anything for the loop; if not, `waker` is woken when there is.
    pub(super) fn is_ready(&self, waker: &Waker) -> bool {
        if self.ticked.get() || !self.batches.borrow().is_empty() {
            return true;
        }
        *self.waker.borrow_mut() = Some(waker.clone());
        false
    }
}
