//! Who listens on a port of this host, as far as we may see.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

/// A process that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its name, at most 15 characters.
    pub name: String,
}

/// Who listens on the port of `addr`. `None` when it cannot be seen: processes of others are closed to all but root.
pub fn holder(addr: SocketAddr) -> Option<Holder> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inodes: Vec<&str> = tables.iter().flat_map(|table| inodes(table, addr.port())).collect();
    let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter(|process| has_one(&process.path(), &sockets)).find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(process.path().join("comm")).ok()?.trim().to_owned();
        Some(Holder { pid, name })
    })
}

fn has_one(process: &Path, sockets: &[String]) -> bool {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let mut targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
}

/// The state of a listening socket in the kernel's tables.
const LISTEN: &str = "0A";

/// The inodes of the sockets that listen on a port, of a table such as /proc/net/tcp: number, local address, remote
/// address, state, queues, timer, retransmits, user, timeout, inode.
fn inodes(table: &str, port: u16) -> impl Iterator<Item = &str> {
    table.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let local_port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (local_port == port && *state == LISTEN).then_some(*inode)
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn only_listeners_of_the_port_count() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0 20 4 30 10 -1
   2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0 100 0 0 10 0
";
        assert_eq!(inodes(table, 8080).collect::<Vec<_>>(), ["111"]);
        assert_eq!(inodes(table, 80).count(), 0);
    }

    #[test]
    fn our_own_listener_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let found = holder(listener.local_addr().expect("an address")).expect("our own descriptors are open to us");
        assert_eq!(found.pid, std::process::id());
        assert!(!found.name.is_empty());
    }
}
