//! Waiting on file descriptors inside a glommio executor.
//!
//! glommio polls sockets only, so an eventfd is dressed as a stream: its poll is armed as for any stream, and the
//! read that follows readiness fails with ENOTSOCK without taking anything from the eventfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::AsyncRead;
use glommio::net::TcpStream;
use rustix::event::{EventfdFlags, eventfd};

/// Watches one descriptor for readability.
pub(super) struct Watch {
    fd: OwnedFd,
    /// Present while a poll is armed: it stays armed through turns that something else has woken.
    armed: Option<TcpStream>,
}

impl Watch {
    /// A watch of the same open file.
    pub(super) fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { fd: fd.try_clone_to_owned()?, armed: None })
    }

    /// A watch of a descriptor that is always readable: awaiting it lets everything else of the executor run, the
    /// reactor included, which a plain yield does not.
    pub(super) fn always_readable() -> io::Result<Self> {
        Self::new(eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?.as_fd())
    }

    /// Ready when the descriptor is readable.
    pub(super) fn poll_readable(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let stream = match &mut self.armed {
            Some(stream) => stream,
            None => match self.fd.try_clone() {
                Ok(fd) => self.armed.insert(stream_of(fd)),
                // Out of descriptors: looking again at once is dearer than waiting, and never hangs.
                Err(_) => return Poll::Ready(()),
            },
        };
        match Pin::new(stream).poll_read(context, &mut [0; 1]) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => {
                self.armed = None;
                Poll::Ready(())
            }
        }
    }
}

fn stream_of(fd: OwnedFd) -> TcpStream {
    TcpStream::from(glommio_socket2::Socket::from(std::net::TcpStream::from(fd)))
}
