//! A tree of files in which tuning/host/tune sees a host: four cores, 16 GiB, one network card with a queue for each core and
//! one with a single queue. And the script itself, run in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// The script under test.
pub const TUNE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/host/tune");

/// What the kernel shows on a host that nobody has tuned.
const UNTUNED: [(&str, &str); 24] = [
    ("fs.nr_open", "524288"),
    ("fs.file-max", "9223372036854775807"),
    ("kernel.io_uring_disabled", "2"),
    ("kernel.numa_balancing", "1"),
    ("kernel.random.boot_id", "first-boot"),
    ("net.core.netdev_max_backlog", "1000"),
    ("net.core.rps_sock_flow_entries", "0"),
    ("net.core.somaxconn", "4096"),
    ("net.ipv4.ip_local_port_range", "32768\t60999"),
    ("net.ipv4.tcp_abort_on_overflow", "0"),
    ("net.ipv4.tcp_max_syn_backlog", "2048"),
    ("net.ipv4.tcp_mem", "287901\t383869\t575802"),
    ("net.ipv4.tcp_migrate_req", "0"),
    ("net.ipv4.tcp_notsent_lowat", "4294967295"),
    ("net.ipv4.tcp_sack", "1"),
    ("net.ipv4.tcp_slow_start_after_idle", "1"),
    ("net.ipv4.tcp_syncookies", "1"),
    ("net.ipv4.tcp_timestamps", "1"),
    ("net.ipv4.tcp_tw_reuse", "2"),
    ("net.netfilter.nf_conntrack_buckets", "16384"),
    ("net.netfilter.nf_conntrack_count", "100"),
    ("net.netfilter.nf_conntrack_max", "65536"),
    ("vm.overcommit_memory", "0"),
    ("vm.swappiness", "60"),
];

/// A host in a temporary folder.
pub struct FakeHost {
    folder: TempDir,
}

impl FakeHost {
    /// One that nobody has tuned.
    pub fn new() -> FakeHost {
        // In memory where that is possible: the script waits for the disk after each file that must outlive a reboot.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let host = FakeHost { folder: folder.expect("a temporary folder") };
        for (key, value) in UNTUNED {
            host.set(key, value);
        }
        let processors: String = (0..4).map(|core| format!("processor\t: {core}\nflags\t: sse2\n\n")).collect();
        host.write("proc/cpuinfo", &processors);
        host.write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:        9000000 kB\n");
        host.set_counters(0, 0);
        host.write("proc/net/softnet_stat", "00000010 00000000 00000000\n");
        host.write("proc/net/sockstat", "sockets: used 9\nTCP: inuse 5 orphan 0 tw 0 alloc 6 mem 3\n");
        host.link("proc/self/ns/pid", "pid:[4026531836]");
        host.link("proc/self/ns/user", "user:[4026531837]");
        host.write("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n");
        for core in 0..4 {
            let folder = format!("sys/devices/system/cpu/cpu{core}/cpufreq");
            host.write(&format!("{folder}/scaling_governor"), "powersave\n");
            host.write(&format!("{folder}/scaling_available_governors"), "performance powersave\n");
        }
        host.card("wide", 4);
        host.card("narrow", 1);
        let mut interrupts = "           CPU0       CPU1       CPU2       CPU3\n".to_owned();
        for (irq, name) in [(39, "wide-async"), (40, "wide-TxRx-0"), (41, "wide-TxRx-1"), (42, "wide-TxRx-2")]
            .into_iter()
            .chain([(43, "wide-TxRx-3")])
        {
            interrupts += &format!(" {irq}:          0          0   PCI-MSI {irq}-edge      {name}\n");
            host.write(&format!("sys/class/net/wide/device/msi_irqs/{irq}"), "msi\n");
            host.write(&format!("proc/irq/{irq}/smp_affinity_list"), "0-3\n");
        }
        host.write("proc/interrupts", &interrupts);
        host
    }

    fn card(&self, name: &str, queues: usize) {
        fs::create_dir_all(self.path(&format!("sys/class/net/{name}/device"))).expect("a folder");
        for queue in 0..queues {
            for (file, value) in [("rx", "rps_cpus"), ("tx", "xps_cpus")] {
                self.write(&format!("sys/class/net/{name}/queues/{file}-{queue}/{value}"), "0\n");
            }
            self.write(&format!("sys/class/net/{name}/queues/rx-{queue}/rps_flow_cnt"), "0\n");
        }
    }

    /// Where a file of the host is.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file.trim_start_matches('/'))
    }

    /// Writes a file, and the folders above it.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().expect("it is in the tree")).expect("folders");
        fs::write(path, text).expect("a file");
    }

    fn link(&self, file: &str, target: &str) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().expect("it is in the tree")).expect("folders");
        symlink(target, path).expect("a link");
    }

    /// The file of a setting: of a sysctl by its key, of a device by its path.
    pub fn file_of(key: &str) -> String {
        if key.starts_with('/') { key.to_owned() } else { format!("proc/sys/{}", key.replace('.', "/")) }
    }

    /// Sets a value as the kernel shows it.
    pub fn set(&self, key: &str, value: &str) {
        self.write(&FakeHost::file_of(key), &format!("{value}\n"));
    }

    /// A value, with single blanks in it.
    #[track_caller]
    pub fn value(&self, key: &str) -> String {
        let text =
            fs::read_to_string(self.path(&FakeHost::file_of(key))).unwrap_or_else(|error| panic!("{key}: {error}"));
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The text of a file; `None` when there is none.
    pub fn text(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.path(file)).ok()
    }

    /// What the kernel counts: full listen queues, and SYNs that were dropped.
    pub fn set_counters(&self, overflows: u64, drops: u64) {
        let text = format!(
            "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 {overflows} {drops}\nIpExt: In\nIpExt: 1\n"
        );
        self.write("proc/net/netstat", &text);
    }

    /// Every file below the tree with its text, blanks made single, and links with their target; the lock alone is left out.
    /// Of a choice in brackets, that word: what is written to such a file, the kernel would show in brackets.
    pub fn everything(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        gather(self.folder.path(), &mut found);
        found.remove(&self.path("var/lib/ringmesh/host-tuning/lock"));
        found
    }

    /// The script with these arguments, to be run in this host.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        // A script that hangs is one that failed.
        command.args(["--kill-after=5", "120", TUNE]);
        command.arg("--root").arg(self.folder.path()).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs the script.
    pub fn tune(&self, arguments: &[&str]) -> Ran {
        Ran::of(&mut self.command(arguments))
    }
}

/// What differs between two looks at everything.
#[track_caller]
pub fn assert_same(now: &BTreeMap<PathBuf, String>, before: &BTreeMap<PathBuf, String>) {
    for (path, text) in now.iter().chain(before) {
        assert_eq!(now.get(path), before.get(path), "{}, of which one look shows {text}", path.display());
    }
}

/// How the script ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub errors: String,
}

impl Ran {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Ran {
        let Output { status, stdout, stderr } = command.output().expect("bash is installed");
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        let code = status.code().unwrap_or_else(|| panic!("the script was ended by a signal: {status}"));
        Ran { code, out: text(stdout), errors: text(stderr) }
    }

    /// The same run, which must have ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.errors);
        self
    }

    /// The rows of `--json`: by key, the status and what is so now.
    #[track_caller]
    pub fn rows(&self) -> BTreeMap<String, (String, String)> {
        let rows = self.json()["rows"].as_array().expect("rows").clone();
        let text = |row: &serde_json::Value, name: &str| row[name].as_str().expect("a string").to_owned();
        rows.iter().map(|row| (text(row, "key"), (text(row, "status"), text(row, "now")))).collect()
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {}", self.out))
    }
}

fn gather(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_symlink() {
            let target = fs::read_link(&path).expect("a link");
            found.insert(path, target.to_string_lossy().into_owned());
        } else if path.is_dir() {
            gather(&path, found);
        } else {
            let text = fs::read_to_string(&path).expect("text");
            let chosen =
                text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word.to_owned());
            let single = || text.split_whitespace().collect::<Vec<_>>().join(" ");
            let is_choice = path.ends_with("transparent_hugepage/enabled");
            found.insert(path, chosen.filter(|_| is_choice).unwrap_or_else(single));
        }
    }
}
