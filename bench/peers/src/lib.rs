//! What the servers share: their command line, one thread, and the list of those who get every message.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;

/// Answer each message with itself, or copy it to everybody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Echo,
    Fanout,
}

/// Those who get every message.
pub struct Everybody<T>(Rc<RefCell<Vec<UnboundedSender<T>>>>);

impl<T> Clone for Everybody<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T: Clone> Everybody<T> {
    /// One more; messages come out of the receiver.
    pub fn join(&self) -> UnboundedReceiver<T> {
        let (sender, receiver) = unbounded_channel();
        self.0.borrow_mut().push(sender);
        receiver
    }

    /// Copies the message to everybody; those who are gone are forgotten.
    pub fn send(&self, message: &T) {
        self.0.borrow_mut().retain(|sender| sender.send(message.clone()).is_ok());
    }
}

/// Accepts on the port that the command line names, for ever, on one thread.
pub fn serve<T, F: Future<Output = ()> + 'static>(connection: impl Fn(TcpStream, Mode, Everybody<T>) -> F) {
    let arguments: Vec<String> = std::env::args().collect();
    let (Some(port), Some(mode)) = (arguments.get(1).and_then(|port| port.parse::<u16>().ok()), arguments.get(2)) else {
        eprintln!("usage: {} PORT echo|fanout", arguments[0]);
        std::process::exit(64);
    };
    let mode = if mode == "fanout" { Mode::Fanout } else { Mode::Echo };
    let everybody = Everybody(Rc::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            tokio::task::spawn_local(connection(stream, mode, everybody.clone()));
        }
    });
}
