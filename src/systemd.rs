//! What systemd is told about a node (sd_notify(3)): that it is ready, that it lives, that it stops and for how long.
//! Where systemd does not ask, nothing is said.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use std::{ffi::OsStr, io};

/// What a stop takes beyond the node's own times: threads that end, memory that is given back.
const STOP_RESERVE: Duration = Duration::from_secs(10);

/// The way to the service manager.
#[derive(Debug)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
}

impl Supervisor {
    /// The one that started this process, if NOTIFY_SOCKET names one. A socket that cannot be reached is logged: then
    /// systemd waits for a node that it never hears of.
    pub fn from_environment() -> Supervisor {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Supervisor { socket: None };
        };
        match connect(&name) {
            Ok(socket) => Supervisor { socket: Some(socket) },
            Err(error) => {
                tracing::warn!(?name, %error, "NOTIFY_SOCKET cannot be reached: systemd will not hear that the node is ready");
                Supervisor { socket: None }
            }
        }
    }

    /// Every shard accepts.
    pub fn ready(&self) {
        self.tell("READY=1\nSTATUS=running");
    }

    /// The main thread lives, and so does every shard: it looks at them before it says so.
    pub fn alive(&self, connections: u64) {
        self.tell(&format!("WATCHDOG=1\nSTATUS={connections} connections"));
    }

    /// The node begins to stop, and needs `at_most` for it. systemd waits for so long, even where its unit says less.
    pub fn stopping(&self, at_most: Duration) {
        let needed = at_most + STOP_RESERVE;
        self.tell(&format!("STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC={}", needed.as_micros()));
    }

    fn tell(&self, state: &str) {
        if let Some(socket) = &self.socket {
            // A manager that does not read must not stop the watchdog. It hears the next one.
            let _ = socket.send(state.as_bytes());
        }
    }
}

/// A path, or, after an @, a name that is in no file system.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let addr = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&addr)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
