//! The real nginx and HAProxy with the files of tuning/proxy, in which only addresses, ports and paths are put in the place
//! of others, in front of three nodes.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{DEADLINE, DEADLINE_SLOW, Gateway, eventually, http};

/// A way through a proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    NginxHttp,
    NginxStream,
    HaproxyHttp,
    HaproxyTcp,
}

impl Route {
    /// Whether the proxy knows what HTTP is.
    pub fn is_http(self) -> bool {
        matches!(self, Route::NginxHttp | Route::HaproxyHttp)
    }

    /// The name of HAProxy's backend.
    fn backend(self) -> &'static str {
        if self.is_http() { "ringmesh" } else { "ringmesh_tcp" }
    }
}

/// The address that connections to the loopback come from when nobody chose another: the proxies'.
pub const PROXY_HOST: &str = "127.0.0.1";
/// Ports of each node: for clients and for proxies that speak HTTP, and for those that pass bytes on.
const HTTP_PORT: u16 = 8080;
const PROXY_PORT: u16 = 8082;

/// Three nodes and a proxy. All have addresses that no other test has, on which ports need not be looked for, and where a
/// node that starts again finds its own free.
pub struct Proxied {
    proxy: Proxy,
    route: Route,
    pub nodes: Vec<Node>,
    /// Where clients connect.
    pub addr: SocketAddr,
}

/// A node that can be stopped and started again where it was.
pub struct Node {
    host: Ipv4Addr,
    flags: Vec<(String, String)>,
    running: Option<Gateway>,
}

impl Node {
    pub fn gateway(&self) -> &Gateway {
        self.running.as_ref().expect("the node runs")
    }

    pub fn connections(&self) -> u64 {
        self.gateway().connections()
    }

    fn start(&mut self) {
        let listen = format!("{0}:{HTTP_PORT},{0}:{PROXY_PORT},proxy", self.host);
        let mut flags = vec![("--listen", listen.as_str()), ("--trusted-proxies", PROXY_HOST)];
        flags.extend(self.flags.iter().map(|(flag, value)| (flag.as_str(), value.as_str())));
        self.running = Some(Gateway::with(&flags));
    }

    /// Signals the node; it has ended when this returns.
    pub fn stop(&mut self, signal: Signal) {
        let mut gateway = self.running.take().expect("the node runs");
        gateway.signal(signal);
        gateway.wait_for_exit(DEADLINE_SLOW);
    }

    /// Ends it at once though it drains: a second order counts when it comes a second later.
    pub fn end(&mut self) {
        self.running.take().expect("the node runs").signal_until_it_ends(Signal::SIGTERM, 143);
    }

    /// Starts it again, on the same addresses.
    pub fn restart(&mut self) {
        assert!(self.running.is_none(), "the node runs");
        self.start();
    }
}

impl Proxied {
    /// Three nodes with these flags each, and the proxy in front of them.
    pub fn start(route: Route, flags: &[(&str, &str)]) -> Proxied {
        Proxied::start_each(route, [flags; 3])
    }

    /// The same, with flags of its own for each node.
    pub fn start_each(route: Route, flags: [&[(&str, &str)]; 3]) -> Proxied {
        let hosts = OwnHosts::next();
        let nodes = flags.iter().enumerate().map(|(number, flags)| {
            let flags = flags.iter().map(|(flag, value)| ((*flag).to_owned(), (*value).to_owned())).collect();
            let mut node = Node { host: hosts.node(number), flags, running: None };
            node.start();
            node
        });
        let nodes = nodes.collect();
        let proxy = match route {
            Route::NginxHttp | Route::NginxStream => Proxy::nginx(&hosts),
            Route::HaproxyHttp | Route::HaproxyTcp => Proxy::haproxy(&hosts),
        };
        let addr = SocketAddr::new(IpAddr::V4(hosts.proxy()), if route.is_http() { PROXY_HTTP } else { PROXY_TCP });
        let proxied = Proxied { proxy, route, nodes, addr };
        eventually("a proxy that accepts", DEADLINE_SLOW, || TcpStream::connect(addr).ok());
        proxied
    }

    /// Waits until HAProxy calls a node `UP` or `DOWN`.
    pub fn wait_for_status(&self, number: usize, status: &str) {
        let server = format!("node{}", number + 1);
        let what = format!("{server} is {status} for HAProxy");
        eventually(&what, DEADLINE_SLOW, || {
            let table = self.proxy.haproxy_command("show stat");
            let mut rows = table.lines().map(|row| row.split(',').collect::<Vec<_>>());
            let names = rows.next().expect("the names of the columns");
            let column = names.iter().position(|name| *name == "status").expect("a column status");
            let row = rows.find(|row| row[0] == self.route.backend() && row[1] == server).expect("a row of the server");
            // A server that is on its way to the other state reads `UP 1/2`.
            (row[column] == status).then_some(())
        });
    }

    /// Asks for `/ws` from this address, with these header fields added, and keeps the connection.
    pub fn ask(&self, source: &str, fields: &str) -> (http::Response, TcpStream) {
        let mut stream = http::open_from(Some(source.parse().expect("an address")), self.addr);
        let head = http::upgrade_head("/ws?user_id=alice");
        let head = format!("{}{fields}\r\n", head.strip_suffix("\r\n").expect("a head ends with an empty line"));
        stream.write_all(head.as_bytes()).expect("the head is taken");
        (http::read_response(&mut stream), stream)
    }

    /// How many connections each node has.
    pub fn connections(&self) -> Vec<u64> {
        self.nodes.iter().map(Node::connections).collect()
    }
}

/// Ports of the proxies, for HTTP and for TCP.
const PROXY_HTTP: u16 = 7080;
const PROXY_TCP: u16 = 7000;

/// Addresses of the loopback that no other process and no other test of this one has.
pub struct OwnHosts {
    test: u8,
    process: [u8; 2],
}

impl OwnHosts {
    /// Addresses that were not given out before.
    pub fn next() -> OwnHosts {
        static TESTS: AtomicU8 = AtomicU8::new(0);
        let [.., high, low] = std::process::id().to_be_bytes();
        OwnHosts { test: TESTS.fetch_add(1, Ordering::Relaxed) % 40, process: [high, low] }
    }

    fn host(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 64 + 4 * self.test + number, self.process[0], self.process[1])
    }

    fn proxy(&self) -> Ipv4Addr {
        self.host(3)
    }

    /// The address of a node.
    pub fn node(&self, number: usize) -> Ipv4Addr {
        self.host(u8::try_from(number).expect("three nodes"))
    }
}

/// A proxy's process, in a folder of its own.
struct Proxy {
    child: Child,
    folder: TempDir,
}

impl Proxy {
    fn nginx(hosts: &OwnHosts) -> Proxy {
        let folder = nginx_files(hosts, false);
        let config = folder.path().join("nginx.conf");
        Proxy::spawn(folder, program("nginx").arg("-c").arg(config).args(["-g", "daemon off;"]))
    }

    fn haproxy(hosts: &OwnHosts) -> Proxy {
        let folder = haproxy_files(hosts, false);
        let config = folder.path().join("haproxy.cfg");
        Proxy::spawn(folder, program("haproxy").arg("-db").arg("-f").arg(config))
    }

    fn spawn(folder: TempDir, command: &mut Command) -> Proxy {
        let log = File::create(folder.path().join("stderr.log")).expect("a log");
        let command = command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        Proxy { child: command.spawn().expect("the proxy starts (make test-tools installs it)"), folder }
    }

    fn haproxy_command(&self, command: &str) -> String {
        let mut socket = UnixStream::connect(self.folder.path().join("admin.sock")).expect("HAProxy's socket");
        socket.set_read_timeout(Some(DEADLINE)).expect("a read timeout");
        writeln!(socket, "{command}").expect("the command is taken");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Both end at once, nginx with its workers, which SIGKILL would leave behind.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "log") {
                    let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    eprintln!("--- {} ---\n{text}---", entry.path().display());
                }
            }
        }
    }
}

/// A program of Debian's /usr/sbin, which is in the path of root only.
fn program(name: &str) -> Command {
    let sbin = Path::new("/usr/sbin").join(name);
    Command::new(if sbin.exists() { sbin } else { PathBuf::from(name) })
}

/// What a proxy says of its files of tuning/proxy when every alternative in them is used, TLS included.
pub fn check_with_every_alternative(route: Route) -> (bool, String) {
    let hosts = OwnHosts::next();
    let (folder, mut command) = match route {
        Route::NginxHttp | Route::NginxStream => {
            let folder = nginx_files(&hosts, true);
            let mut command = program("nginx");
            command.args(["-t", "-c"]).arg(folder.path().join("nginx.conf"));
            (folder, command)
        }
        Route::HaproxyHttp | Route::HaproxyTcp => {
            let folder = haproxy_files(&hosts, true);
            let mut command = program("haproxy");
            command.args(["-c", "-f"]).arg(folder.path().join("haproxy.cfg"));
            (folder, command)
        }
    };
    let (certificate, key) = (folder.path().join("ringmesh.crt"), folder.path().join("ringmesh.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"])
        .args(["-subj", "/CN=localhost", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl runs (make test-tools installs it)");
    assert!(made.status.success(), "{made:?}");
    let both = [certificate, key].map(|path| std::fs::read(path).expect("openssl wrote it")).concat();
    std::fs::write(folder.path().join("ringmesh.pem"), both).expect("a file of the test");
    let output = command.output().expect("the proxy runs (make test-tools installs it)");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn nginx_files(hosts: &OwnHosts, every_alternative: bool) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().display().to_string();
    let mut process = Template::read("nginx/nginx.conf");
    process.put("pid /run/", &format!("pid {path}/"));
    process.put("/var/log/nginx/", &format!("{path}/"));
    // Where the package's build put them, nobody but root may write.
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {path}/{name};"));
    process.put("http {\n", &format!("http {{\n{}\n", temporary.join("\n")));
    process.write(&folder, "nginx.conf");
    for (file, ports) in [
        ("ringmesh-http.conf", [(80, PROXY_HTTP), (443, 7443)]),
        ("ringmesh-stream.conf", [(8000, PROXY_TCP), (8443, 7444)]),
    ] {
        let mut template = Template::read(&format!("nginx/{file}"));
        if every_alternative {
            template.use_alternatives();
        }
        for (theirs, ours) in ports {
            template.put(&format!("listen {theirs} "), &format!("listen {}:{ours} ", hosts.proxy()));
        }
        template.put("/etc/nginx/ringmesh", &format!("{path}/ringmesh"));
        if file == "ringmesh-http.conf" {
            template.put("/var/log/nginx/", &format!("{path}/"));
        }
        template.put_nodes(hosts);
        template.write(&folder, file);
    }
    folder
}

fn haproxy_files(hosts: &OwnHosts, every_alternative: bool) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().display().to_string();
    let mut template = Template::read("haproxy/haproxy.cfg");
    if every_alternative {
        template.use_alternatives();
    }
    // Who has no need to give privileges up can't.
    template.put("    user haproxy\n    group haproxy\n    chroot /var/lib/haproxy\n", "");
    template.put("/run/haproxy/admin.sock", &format!("{path}/admin.sock"));
    template.put("/etc/haproxy/ringmesh.pem", &format!("{path}/ringmesh.pem"));
    // The longer ones first, since `:80` begins `:8000` too.
    for (theirs, ours) in [(8000, PROXY_TCP), (8443, 7444), (80, PROXY_HTTP), (443, 7443)] {
        template.put(&format!("bind :{theirs}"), &format!("bind {}:{ours}", hosts.proxy()));
    }
    template.put_nodes(hosts);
    template.write(&folder, "haproxy.cfg");
    folder
}

/// A file of tuning/proxy on its way into a test.
struct Template {
    name: String,
    text: String,
}

impl Template {
    fn read(name: &str) -> Template {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning/proxy").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Template { name: name.to_owned(), text }
    }

    /// Puts one text in the place of another, which must be there.
    fn put(&mut self, theirs: &str, ours: &str) {
        assert!(self.text.contains(theirs), "{} has no {theirs:?}", self.name);
        self.text = self.text.replace(theirs, ours);
    }

    fn put_nodes(&mut self, hosts: &OwnHosts) {
        for number in 0..3 {
            self.put(&format!("10.0.0.1{}:", number + 1), &format!("{}:", hosts.node(number)));
        }
    }

    /// Takes the mark off each line that begins with # and no space.
    fn use_alternatives(&mut self) {
        let used = self.text.lines().map(|line| {
            let begin = line.trim_start();
            match begin.strip_prefix('#').filter(|rest| rest.starts_with(|first: char| !first.is_whitespace())) {
                Some(rest) => format!("{}{rest}\n", &line[..line.len() - begin.len()]),
                None => format!("{line}\n"),
            }
        });
        let used: String = used.collect();
        assert_ne!(used, self.text, "{} has no alternatives", self.name);
        self.text = used;
    }

    fn write(&self, folder: &TempDir, name: &str) {
        std::fs::write(folder.path().join(name), &self.text).expect("a file of the test");
    }
}
