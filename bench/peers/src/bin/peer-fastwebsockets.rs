//! fastwebsockets: its own echo loop; for the fan-out, frames that are encoded once and written many at a time.

use bytes::Bytes;
use fastwebsockets::{FragmentCollector, OpCode, Role, WebSocketError, after_handshake_split, upgrade};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ringmesh_bench_peers::{Everybody, Mode, serve};
use tokio::io::AsyncWriteExt as _;

/// Frames written at once at most.
const BATCH: usize = 64;

fn main() {
    serve(|stream, mode, everybody: Everybody<Bytes>| async move {
        let service = service_fn(move |request: Request<Incoming>| accept(request, mode, everybody.clone()));
        // A client that is no WebSocket is not served; there is nobody to tell.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    });
}

async fn accept(
    mut request: Request<Incoming>,
    mode: Mode,
    everybody: Everybody<Bytes>,
) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let (response, upgraded) = upgrade::upgrade(&mut request)?;
    tokio::task::spawn_local(async move {
        let result = match mode {
            Mode::Echo => echo(upgraded).await,
            Mode::Fanout => fanout(upgraded, everybody).await,
        };
        // The end of a connection shows as an error here.
        drop(result);
    });
    Ok(response)
}

async fn echo(upgraded: upgrade::UpgradeFut) -> Result<(), WebSocketError> {
    let mut socket = upgraded.await?;
    socket.set_writev(true);
    let mut socket = FragmentCollector::new(socket);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            _ => {}
        }
    }
}

async fn fanout(upgraded: upgrade::UpgradeFut, everybody: Everybody<Bytes>) -> Result<(), WebSocketError> {
    let (read, mut write) = tokio::io::split(upgraded.await?.into_inner());
    let mut inbox = everybody.join();
    tokio::task::spawn_local(async move {
        let (mut batch, mut bytes) = (Vec::with_capacity(BATCH), Vec::new());
        while inbox.recv_many(&mut batch, BATCH).await > 0 {
            bytes.clear();
            batch.drain(..).for_each(|frame: Bytes| bytes.extend_from_slice(&frame));
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let (mut read, _) = after_handshake_split(read, tokio::io::sink(), Role::Server);
    loop {
        let frame = read.read_frame(&mut |_| async { Ok::<_, std::io::Error>(()) }).await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => everybody.send(&encode(&frame.payload)),
            _ => {}
        }
    }
}

/// A text frame (RFC 6455 5.2), as a server sends it.
fn encode(payload: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(payload.len() + 4);
    frame.push(0x81);
    if payload.len() < 126 {
        frame.push(payload.len() as u8);
    } else {
        frame.push(126);
        frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    frame.extend_from_slice(payload);
    frame.into()
}
