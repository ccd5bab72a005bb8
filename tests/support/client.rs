//! A client on tungstenite: somebody else's idea of RFC 6455 than the gateway's own codec.

use std::net::{IpAddr, SocketAddr, TcpStream};

use serde_json::{Value, json};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{HandshakeError, Message, WebSocket};

use super::{DEADLINE_SLOW, eventually, http};

/// A connected client. It blocks, at most for the deadline of each read.
pub struct Client {
    socket: WebSocket<TcpStream>,
    /// The user id it connected with.
    pub user: String,
}

impl Client {
    /// Connects as `user`.
    ///
    /// # Panics
    /// When the answer is anything but a valid 101.
    pub fn connect(addr: SocketAddr, user: &str) -> Client {
        Client::connect_from(None, addr, user)
    }

    /// The same, trying again while the answer is 503, as a client does whose node is busy for a moment.
    pub fn connect_patiently(addr: SocketAddr, user: &str) -> Client {
        eventually("a 101", DEADLINE_SLOW, || {
            let url = format!("ws://{addr}{}", http::ws_target(user));
            match tungstenite::client::client_with_config(url, http::open(addr), Some(config())) {
                Ok((socket, _)) => Some(Client { socket, user: user.to_owned() }),
                Err(HandshakeError::Failure(tungstenite::Error::Http(response))) if response.status() == 503 => {
                    println!("{user} is answered 503");
                    None
                }
                Err(error) => panic!("{user} gets no 101: {error}"),
            }
        })
    }

    /// The same from a given source address.
    pub fn connect_from(source: Option<IpAddr>, addr: SocketAddr, user: &str) -> Client {
        let stream = http::open_from(source, addr);
        let url = format!("ws://{addr}{}", http::ws_target(user));
        let socket = match tungstenite::client::client_with_config(url, stream, Some(config())) {
            Ok((socket, _)) => socket,
            Err(error) => panic!("{user} gets no 101: {error}"),
        };
        Client { socket, user: user.to_owned() }
    }

    /// The socket below, for options and for use by two threads.
    pub fn stream(&self) -> &TcpStream {
        self.socket.get_ref()
    }

    /// Sends a JSON frame.
    pub fn send(&mut self, frame: &Value) {
        self.send_text(&frame.to_string());
    }

    /// Sends a text frame.
    pub fn send_text(&mut self, text: &str) {
        self.send_message(Message::text(text));
    }

    /// Sends a frame of any kind.
    pub fn send_message(&mut self, message: Message) {
        if let Err(error) = self.socket.send(message) {
            panic!("{} can't send: {error}", self.user);
        }
    }

    /// Sends `content`, raw JSON, to `target`.
    pub fn send_to(&mut self, target: &str, content: &str) {
        let target = Value::from(target);
        self.send_text(&format!(r#"{{"type":"send_message","target_user":{target},"content":{content}}}"#));
    }

    /// Broadcasts `content`, raw JSON.
    pub fn broadcast(&mut self, content: &str) {
        self.send_text(&format!(r#"{{"type":"broadcast","content":{content}}}"#));
    }

    /// The next message that is no ping or pong; pings are answered on the way.
    pub fn next(&mut self) -> Message {
        loop {
            match self.socket.read() {
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(message) => return message,
                Err(error) => panic!("{} waits for a message: {error}", self.user),
            }
        }
    }

    /// The next message of any kind; pings are answered by the following call.
    pub fn next_of_any_kind(&mut self) -> Result<Message, tungstenite::Error> {
        self.socket.read()
    }

    /// The text of the next message.
    pub fn next_text(&mut self) -> String {
        match self.next() {
            Message::Text(text) => text.to_string(),
            other => panic!("{} waits for a text, and gets {other:?}", self.user),
        }
    }

    /// The JSON of the next message.
    pub fn next_json(&mut self) -> Value {
        let text = self.next_text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error} in {text:?}", self.user))
    }

    /// The next message, and no other before it, must be `expected`.
    #[track_caller]
    pub fn expect(&mut self, expected: &Value) {
        let got = self.next_json();
        assert_eq!(&got, expected, "what {} gets next", self.user);
    }

    /// Pings, and the pong must be the very next message: the connection lives, all sent before was taken, and nothing
    /// has been answered that the test did not read.
    #[track_caller]
    pub fn expect_pong(&mut self) {
        self.send(&json!({"type": "ping"}));
        self.expect(&json!({"type": "pong"}));
    }

    /// The next message must be an error frame; returns its text and its code.
    #[track_caller]
    pub fn expect_error(&mut self) -> (String, Option<String>) {
        let frame = self.next_json();
        assert_eq!(frame["type"], "error", "{} gets {frame}", self.user);
        let message = frame["message"].as_str().unwrap_or_else(|| panic!("`message` in {frame}"));
        (message.to_owned(), frame["code"].as_str().map(str::to_owned))
    }

    /// The next message must be a Close with this code, and the stream must end after it; returns the reason.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) -> String {
        let reason = match self.next() {
            Message::Close(Some(frame)) => {
                assert_eq!(u16::from(frame.code), code, "the close code, with reason {:?}", frame.reason.as_str());
                frame.reason.to_string()
            }
            other => panic!("{} waits for Close {code}, and gets {other:?}", self.user),
        };
        self.expect_end();
        reason
    }

    /// The stream must end with nothing more in it.
    #[track_caller]
    pub fn expect_end(&mut self) {
        match self.socket.read() {
            Err(tungstenite::Error::ConnectionClosed) => {}
            other => panic!("{} waits for the end of the stream, and gets {other:?}", self.user),
        }
    }

    /// The close handshake, from our side.
    ///
    /// # Panics
    /// When the gateway does not answer the Close.
    pub fn close(mut self) {
        self.socket.close(None).expect("a Close can be sent");
        loop {
            match self.socket.read() {
                Ok(_) => {}
                Err(tungstenite::Error::ConnectionClosed) => return,
                Err(error) => panic!("{} closes: {error}", self.user),
            }
        }
    }

    /// Ends the connection as a dying client does: with no Close frame.
    pub fn vanish(self) {
        drop(self);
    }

    /// Sets how long a read may take.
    pub fn set_deadline(&self, deadline: std::time::Duration) {
        self.stream().set_read_timeout(Some(deadline)).expect("a read timeout");
    }
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(16 * 1024)
}

/// What the target of a `send_message` gets.
pub fn message_from(from: &str, content: impl Into<Value>) -> Value {
    json!({"type": "message", "from": from, "content": content.into()})
}

/// What everybody gets of a `broadcast`.
pub fn broadcast_from(from: &str, content: impl Into<Value>) -> Value {
    json!({"type": "broadcast", "from": from, "content": content.into()})
}
