//! tokio-tungstenite, tuned: small buffers, and one flush for all that is ready.

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use ringmesh_bench_peers::{Everybody, Mode, serve};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, accept_async_with_config};

/// Messages written before a flush at most.
const BATCH: usize = 64;

fn main() {
    serve(|stream, mode, everybody| async move {
        let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(4096);
        let Ok(socket) = accept_async_with_config(stream, Some(config)).await else { return };
        match mode {
            Mode::Echo => echo(socket).await,
            Mode::Fanout => fanout(socket, everybody).await,
        }
    });
}

async fn echo(mut socket: WebSocketStream<TcpStream>) {
    while let Some(Ok(message)) = socket.next().await {
        let mut next = Some(message);
        while let Some(message) = next.take() {
            if (message.is_text() || message.is_binary()) && socket.feed(message).await.is_err() {
                return;
            }
            next = socket.next().now_or_never().flatten().and_then(Result::ok);
        }
        if socket.flush().await.is_err() {
            return;
        }
    }
}

async fn fanout(mut socket: WebSocketStream<TcpStream>, everybody: Everybody<Message>) {
    let mut inbox = everybody.join();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(message)) if message.is_text() || message.is_binary() => everybody.send(&message),
                Some(Ok(_)) => {}
                _ => return,
            },
            _ = inbox.recv_many(&mut batch, BATCH) => {
                for message in batch.drain(..) {
                    if socket.feed(message).await.is_err() {
                        return;
                    }
                }
                if socket.flush().await.is_err() {
                    return;
                }
            }
        }
    }
}
