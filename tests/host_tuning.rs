//! Goal: tuning/host/tune does what an operator trusts it to do: it changes nothing before it is told to, lowers nothing,
//! takes everything back, survives an interruption, refuses what does harm, and tells what is really in force.
//! Method: the script itself, in a tree of files that looks like a host; and on the real kernel, in a network namespace of
//! its own, which leaves this machine as it is.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use support::fake_host::{FakeHost, Ran, TUNE, assert_same};
use support::random::Random;
use support::{DEADLINE_SLOW, eventually};

const SYSCTL_FILE: &str = "etc/sysctl.d/60-ringmesh.conf";
const DROP_IN: &str = "etc/systemd/system/ringmesh.service.d/60-host-tuning.conf";
const SETTINGS: &str = include_str!("../tuning/host/settings");

#[test]
fn a_plan_says_what_and_why_and_changes_nothing() {
    let host = FakeHost::new();
    let before = host.everything();
    let plan = host.tune(&[]).expect(0);
    assert!(plan.out.contains("net.core.somaxconn: 4096 -> 25000"), "{}", plan.out);
    assert!(plan.out.contains("wait to be accepted") && plan.out.contains("Risk:"), "{}", plan.out);
    assert!(plan.out.contains("/etc/sysctl.d/60-ringmesh.conf: would be written"), "{}", plan.out);
    host.tune(&["verify"]).expect(1);
    assert_same(&host.everything(), &before);
}

#[test]
fn apply_sets_and_keeps_a_second_one_changes_nothing_and_rollback_takes_all_back() {
    let host = FakeHost::new();
    let before = host.everything();
    host.tune(&["apply", "--connections", "400000"]).expect(0);
    for (key, value) in [
        ("net.core.somaxconn", "65535"),
        ("net.ipv4.tcp_slow_start_after_idle", "0"),
        ("net.netfilter.nf_conntrack_max", "1000000"),
        ("kernel.io_uring_disabled", "0"),
        ("vm.swappiness", "10"),
        ("fs.nr_open", "1048576"),
        ("/sys/kernel/mm/transparent_hugepage/enabled", "madvise"),
        ("/sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "performance"),
    ] {
        assert_eq!(host.value(key), value, "{key}");
    }
    let kept = host.text(SYSCTL_FILE).expect("what is read at boot");
    assert!(kept.contains("\n-net.core.somaxconn = 65535\n") && !kept.contains("hugepage"), "{kept}");
    let unit = host.text(DROP_IN).expect("limits for the unit");
    assert!(unit.contains("[Service]\nLimitNOFILE=465536\nLimitMEMLOCK=8388608\n"), "{unit}");
    let devices = host.text("etc/ringmesh/device-tuning.sh").expect("what sysctl.d does not keep");
    assert!(devices.contains("echo 'madvise' >'/sys/kernel/mm/transparent_hugepage/enabled'"), "{devices}");

    let after = host.everything();
    // The second is given no numbers: those of the first hold.
    assert!(host.tune(&["apply"]).expect(0).out.contains("\n0 changes."));
    assert_same(&host.everything(), &after);
    host.tune(&["verify"]).expect(0);

    host.tune(&["rollback"]).expect(0);
    assert_same(&host.everything(), &before);
    assert!(host.tune(&["rollback"]).expect(0).out.contains("0 changes taken back"));
}

#[test]
fn what_was_before_the_first_apply_outlives_later_ones() {
    let host = FakeHost::new();
    let before = host.everything();
    for connections in ["100000", "200000", "1000"] {
        host.tune(&["apply", "--connections", connections]).expect(0);
    }
    assert_eq!(host.value("net.core.somaxconn"), "50000", "fewer connections lower nothing");
    host.tune(&["apply", "--profile", "lb,redis"]).expect(0);
    assert_eq!(host.value("/sys/kernel/mm/transparent_hugepage/enabled"), "never");
    host.tune(&["rollback"]).expect(0);
    assert_same(&host.everything(), &before);
}

#[test]
fn larger_values_stay_whatever_they_are() {
    let mut random = Random::from_environment();
    let keys = ["net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog", "net.netfilter.nf_conntrack_max", "fs.nr_open"];
    for _ in 0..3 {
        let host = FakeHost::new();
        for key in keys {
            host.set(key, &(random.bits() >> (33 + random.below(31))).to_string());
        }
        let low = random.below(40_000);
        host.set("net.ipv4.ip_local_port_range", &format!("{low}\t{}", 40_000 + random.below(25_536)));
        let number =
            |key: &str| host.value(key).split(' ').map(|word| word.parse().expect("a number")).collect::<Vec<u64>>();
        let before = host.everything();
        let old: Vec<_> = keys.map(number).concat();
        let ports = number("net.ipv4.ip_local_port_range");
        let connections = (1 + random.below(2_000_000)).to_string();
        host.tune(&["apply", "--profile", "server,lb", "--connections", &connections]).expect(0);
        for (key, old) in keys.iter().zip(old) {
            assert!(number(key)[0] >= old, "{key} was {old}, is {}", host.value(key));
        }
        let wider = number("net.ipv4.ip_local_port_range");
        assert_eq!((wider[0], wider[1]), (ports[0].min(10_240), 65_535), "was {ports:?}");
        host.tune(&["verify"]).expect(0);
        assert!(host.tune(&["apply"]).expect(0).out.contains("\n0 changes."));
        host.tune(&["rollback"]).expect(0);
        assert_same(&host.everything(), &before);
    }
}

#[test]
fn larger_limits_of_the_unit_stay() {
    let host = FakeHost::new();
    host.write("etc/systemd/system/ringmesh.service", "[Service]\nLimitNOFILE=infinity\nLimitMEMLOCK=64M\n");
    host.tune(&["apply"]).expect(0);
    assert_eq!(host.text(DROP_IN), None, "there is nothing to raise");
    host.write("etc/systemd/system/ringmesh.service.d/10-own.conf", "[Service]\nLimitNOFILE=1024:4096\n");
    host.tune(&["verify"]).expect(1);
    host.tune(&["apply"]).expect(0);
    assert!(
        host.text(DROP_IN).is_some_and(|text| text.ends_with("[Service]\nLimitNOFILE=262144\n")),
        "the others suffice"
    );
    host.tune(&["verify"]).expect(0);
    host.write("etc/systemd/system/ringmesh.service.d/99-late.conf", "[Service]\nLimitNOFILE=1024\n");
    assert!(host.tune(&["verify"]).expect(1).out.contains("a drop-in that is read after"));
}

#[test]
fn harmful_values_are_refused_in_every_table() {
    let harmful = [
        ("net.ipv4.tcp_tw_recycle", "words 1"),
        ("net.ipv4.tcp_timestamps", "words 0"),
        ("net.ipv4.tcp_sack", "value 0"),
        ("net.ipv4.tcp_abort_on_overflow", "words 1"),
        ("net.ipv4.tcp_mem", "value 10000000, 10000000, 10000000"),
    ];
    for (key, value) in harmful {
        let host = FakeHost::new();
        let table = setting("vm.swappiness", "words 1") + &setting(key, value);
        host.write("table", &table);
        let before = host.everything();
        let path = host.path("table");
        let ran = host.tune(&["apply", "--settings", path.to_str().expect("UTF-8")]).expect(2);
        assert!(ran.errors.contains(key) && ran.errors.contains("is refused"), "{}", ran.errors);
        assert_same(&host.everything(), &before);
    }
}

/// A setting as it stands in a table.
fn setting(key: &str, value: &str) -> String {
    format!("{key}\n  operator exact\n  {value}\n  profiles server\n  scope host\n  reason r\n  source s\n  risk k\n\n")
}

#[test]
fn harmful_values_that_are_there_are_reported_and_left_to_a_person() {
    let host = FakeHost::new();
    host.tune(&["apply"]).expect(0);
    host.tune(&["verify"]).expect(0);
    host.set("net.ipv4.tcp_timestamps", "0");
    host.set("net.ipv4.tcp_mem", "10000000 10000000 10000000");
    host.write("etc/sysctl.d/20-copied.conf", "# from a guide\nnet/ipv4/tcp_tw_recycle = 1\nnet.ipv4.tcp_sack=1\n");
    let verify = host.tune(&["verify", "--json"]).expect(1);
    let harmful: Vec<_> = verify.rows().into_iter().filter(|(_, (status, _))| status == "harmful").collect();
    let keys: Vec<_> = harmful.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["net.ipv4.tcp_mem", "net.ipv4.tcp_timestamps", "net.ipv4.tcp_tw_recycle"]);
    for verb in ["plan", "apply"] {
        let ran = host.tune(&[verb]).expect(0);
        assert!(ran.out.contains("HARMFUL: net.ipv4.tcp_timestamps = 0"), "{}", ran.out);
        assert!(ran.out.contains("/etc/sysctl.d/20-copied.conf"), "{}", ran.out);
    }
    assert_eq!(host.value("net.ipv4.tcp_timestamps"), "0");
}

#[test]
fn an_interrupted_apply_is_finished_by_the_next_or_taken_back() {
    let host = FakeHost::new();
    let before = host.everything();
    // A setting whose write never ends holds the script in the middle: others are set, and it has yet to be.
    let stuck = host.path(&FakeHost::file_of("net.ipv4.tcp_slow_start_after_idle"));
    fs::remove_file(&stuck).expect("the file was there");
    assert!(Command::new("mkfifo").arg(&stuck).status().expect("mkfifo is installed").success());
    let mut command = host.command(&["apply"]);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut apply = command.stdout(Stdio::null()).spawn().expect("the script starts");
    fs::write(&stuck, "1\n").expect("the script reads what is so now");
    eventually("the settings before it", DEADLINE_SLOW, || {
        (host.value("net.ipv4.tcp_max_syn_backlog") == "25000").then_some(())
    });

    let second = host.tune(&["apply"]).expect(2);
    assert!(second.errors.contains("another apply or rollback runs"), "{}", second.errors);

    killpg(Pid::from_raw(apply.id().cast_signed()), Signal::SIGKILL).expect("the script is there");
    apply.wait().expect("it ends");
    fs::remove_file(&stuck).expect("the pipe");
    host.set("net.ipv4.tcp_slow_start_after_idle", "1");
    assert_eq!(host.value("vm.swappiness"), "60", "it was stopped in the middle");
    assert_eq!(host.text(SYSCTL_FILE), None);

    host.tune(&["apply"]).expect(0);
    host.tune(&["verify"]).expect(0);
    host.tune(&["rollback"]).expect(0);
    assert_same(&host.everything(), &before);
}

#[test]
fn what_somebody_else_has_changed_since_is_not_taken_back() {
    let host = FakeHost::new();
    let before = host.everything();
    host.tune(&["apply"]).expect(0);
    host.set("vm.swappiness", "33");
    // The kernel shows masks with as many digits as it has cores for: that is still our own value.
    host.set("/sys/class/net/wide/queues/tx-3/xps_cpus", "00000000,00000008");
    let rollback = host.tune(&["rollback"]).expect(1);
    assert!(rollback.errors.contains("vm.swappiness: 33 was set by somebody else"), "{}", rollback.errors);
    assert_eq!((host.value("vm.swappiness"), host.value("net.core.somaxconn")), ("33".into(), "4096".into()));
    assert_eq!(host.value("/sys/class/net/wide/queues/tx-3/xps_cpus"), "0");
    host.tune(&["rollback", "--force"]).expect(0);
    assert_same(&host.everything(), &before);
}

#[test]
fn a_file_of_somebody_else_stops_apply_before_it_changes_anything() {
    for file in [SYSCTL_FILE, DROP_IN, "etc/ringmesh/device-tuning.sh"] {
        let host = FakeHost::new();
        host.write(file, "# an operator's own\n");
        let before = host.everything();
        let ran = host.tune(&["apply"]).expect(2);
        assert!(ran.errors.contains(file) && ran.errors.contains("nothing was changed"), "{}", ran.errors);
        assert_same(&host.everything(), &before);
        host.tune(&["rollback"]).expect(0);
        assert_same(&host.everything(), &before);
    }
}

#[test]
fn in_a_container_nothing_is_changed() {
    let marked = FakeHost::new();
    marked.write(".dockerenv", "");
    let unmarked = FakeHost::new();
    let namespace = unmarked.path("proc/self/ns/pid");
    fs::remove_file(&namespace).expect("the link");
    std::os::unix::fs::symlink("pid:[4026532311]", &namespace).expect("another");
    for host in [marked, unmarked] {
        let before = host.everything();
        let ran = host.tune(&["apply"]).expect(1);
        assert!(ran.out.contains("In a container nothing is changed"), "{}", ran.out);
        assert!(ran.out.contains("net.core.somaxconn"), "it says what is missing: {}", ran.out);
        assert_eq!(host.tune(&["verify", "--json"]).expect(1).json()["place"], "container");
        assert!(host.tune(&["rollback"]).expect(2).errors.contains("a container"));
        assert_same(&host.everything(), &before);
        host.tune(&["apply", "--assume-host"]).expect(0);
        assert_eq!(host.value("net.core.somaxconn"), "25000");
    }
}

#[test]
fn verify_shows_what_is_in_force_and_not_only_what_is_set() {
    let host = FakeHost::new();
    let limits = |nofile: &str| {
        let limits = format!(
            "Limit                     Soft Limit           Hard Limit           Units\n\
             Max locked memory         8388608              8388608              bytes\n\
             Max open files            1024                 {nofile:<20} files\n"
        );
        host.write("proc/4242/limits", &limits);
        host.write("proc/4242/comm", "ringmesh\n");
    };
    limits("1048576");
    host.set_counters(7, 9);
    let programs = tempfile::tempdir().expect("a temporary folder");
    let verify = |queue: u32| {
        // What `ss -Hltn` prints of a listener: state, connections that wait, and how many may.
        let line = format!("LISTEN 0      {queue}        0.0.0.0:8080      0.0.0.0:*");
        let longer = "LISTEN 3      65535        0.0.0.0:8080      0.0.0.0:*";
        put_program(programs.path(), "ss", &format!("#!/bin/sh\necho '{line}'\necho '{longer}'\n"));
        let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").expect("a PATH"));
        let ran = Ran::of(host.command(&["verify", "--json"]).env("PATH", path));
        let rows = ran.rows();
        (ran, move |key: &str| rows[key].0.clone())
    };
    let (_, status) = verify(25_000);
    assert_eq!(status("ListenOverflows"), "note", "before apply, it is what apply is for");
    host.tune(&["apply"]).expect(0);
    let (ran, status) = verify(25_000);
    assert_eq!(ran.code, 0, "{}", ran.out);
    for key in ["process/4242/nofile", "process/4242/memlock", "listen queue :8080", "ListenOverflows", "SoftnetDrops"]
    {
        assert_eq!(status(key), "ok", "{key}");
    }

    host.set_counters(8, 9);
    limits("20000");
    host.write("proc/net/softnet_stat", "00000010 0000000a 00000000\n");
    host.set("net.netfilter.nf_conntrack_count", "240000");
    host.write("proc/net/sockstat", "TCP: inuse 5 orphan 0 tw 0 alloc 6 mem 383000\n");
    let (ran, status) = verify(4096);
    assert_eq!(ran.code, 1, "{}", ran.out);
    let differ = [
        "process/4242/nofile",
        "listen queue :8080",
        "ListenOverflows",
        "SoftnetDrops",
        "conntrack table",
        "memory of all sockets",
        "net.core.netdev_max_backlog",
    ];
    for key in differ {
        assert_eq!(status(key), "drift", "{key}");
    }
    assert_eq!((status("ListenDrops"), status("net.core.somaxconn")), ("ok".into(), "ok".into()));

    // The counters began anew with a boot.
    host.set_counters(0, 0);
    host.set("kernel.random.boot_id", "second-boot");
    assert_eq!(verify(25_000).1("ListenOverflows"), "ok");
}

fn put_program(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    let mut file = fs::File::create(&path).expect("a file");
    file.write_all(text.as_bytes()).expect("its text");
    file.set_permissions(fs::Permissions::from_mode(0o755)).expect("its mode");
}

#[test]
fn verify_tells_drift_from_an_error_and_sees_what_a_boot_would_bring() {
    let host = FakeHost::new();
    host.tune(&["apply"]).expect(0);
    host.write("etc/sysctl.d/99-late.conf", "net.core.somaxconn = 128\nvm.swappiness = 5\n");
    let ran = host.tune(&["verify"]).expect(1);
    assert!(ran.out.contains("at boot /etc/sysctl.d/99-late.conf sets 128"), "{}", ran.out);
    assert!(!ran.out.contains("sets 5"), "which is small enough: {}", ran.out);
    host.write("etc/sysctl.d/99-late.conf", "");
    host.tune(&["verify"]).expect(0);
    host.set("vm.swappiness", "60");
    assert_eq!(host.tune(&["verify", "--json"]).expect(1).json()["status"], "drift");
    host.write(&FakeHost::file_of("vm.swappiness"), "");
    assert_eq!(host.tune(&["verify", "--json"]).expect(2).json()["status"], "error");
}

#[test]
fn queues_interrupts_and_clocks_follow_the_hardware() {
    let host = FakeHost::new();
    host.tune(&["apply"]).expect(0);
    for (key, value) in [
        ("/sys/class/net/wide/queues/tx-2/xps_cpus", "00000004"),
        ("/sys/class/net/wide/queues/rx-2/rps_cpus", "0"),
        ("/sys/class/net/narrow/queues/tx-0/xps_cpus", "0"),
        ("/sys/class/net/narrow/queues/rx-0/rps_cpus", "0000000f"),
        ("/sys/class/net/narrow/queues/rx-0/rps_flow_cnt", "32768"),
        ("/proc/irq/39/smp_affinity_list", "0-3"),
        ("/proc/irq/42/smp_affinity_list", "2"),
    ] {
        assert_eq!(host.value(key), value, "{key}");
    }
    host.tune(&["rollback"]).expect(0);
    host.write("proc/77/comm", "irqbalance\n");
    let ran = host.tune(&["apply"]).expect(0);
    assert_eq!(host.value("/proc/irq/42/smp_affinity_list"), "0-3", "irqbalance would undo it");
    assert!(ran.out.contains("scaling_governor: powersave -> performance"), "{}", ran.out);
}

#[test]
fn every_setting_can_be_explained() {
    let host = FakeHost::new();
    let keys: Vec<&str> = SETTINGS.lines().filter(|line| !line.is_empty() && !line.starts_with([' ', '#'])).collect();
    assert!(keys.len() > 30, "{keys:?}");
    let all = host.tune(&["explain"]).expect(0).out;
    for key in keys {
        assert!(all.contains(key), "{key}");
    }
    let one = host.tune(&["explain", "net.core.somaxconn", "--connections", "80000"]).expect(0).out;
    assert!(one.contains("20000, with 80000 connections, 16384 MiB and 4 cores") && one.contains("https://"), "{one}");
    let left = host.tune(&["explain", "net.ipv4.tcp_mem"]).expect(0).out;
    assert!(left.contains("leave") && left.contains("refused"), "{left}");
}

#[test]
fn a_wrong_command_line_says_what_is_right() {
    let host = FakeHost::new();
    let before = host.everything();
    for (arguments, said) in [
        (vec!["aply"], "there is no verb aply; known are plan, apply"),
        (vec!["apply", "verify"], "two verbs"),
        (vec!["--conections", "5"], "no option --conections"),
        (vec!["apply", "--connections"], "--connections needs a value"),
        (vec!["apply", "--connections", "many"], "a whole number from 1 to 100000000"),
        (vec!["apply", "--connections", "0"], "a whole number"),
        (vec!["apply", "--connections", "999999999999999999999"], "a whole number"),
        (vec!["apply", "--connections=5"], "--connections 5"),
        (vec!["apply", "--profile", "sever"], "known are server, lb, loadgen, redis"),
        (vec!["apply", "--profile", ""], "--profile needs a value"),
        (vec!["apply", "--profile", "lb,"], "or several with commas"),
        (vec!["verify", "--pid", "99999"], "no such process"),
        (vec!["verify", "--port", "70000"], "a number from 1 to 65535"),
        (vec!["apply", "--json"], "--json goes with plan and verify"),
        (vec!["explain", "net.core.nothing"], "nothing is known about \"net.core.nothing\""),
        (vec!["apply", "--settings", "/nowhere"], "there is no such table"),
    ] {
        let ran = host.tune(&arguments).expect(2);
        assert!(ran.errors.contains(said), "{arguments:?}: {}", ran.errors);
    }
    assert_same(&host.everything(), &before);
}

#[test]
fn a_broken_table_names_its_line_and_runs_nothing() {
    let host = FakeHost::new();
    let path = host.path("table");
    let evil = host.path("evil");
    for (table, said) in [
        (setting("vm.swappiness", &format!("value cpus[$(touch {})]", evil.display())), "is no formula"),
        (setting("vm.swappiness", "value cores * 2"), "a formula knows no \"cores\""),
        (setting("vm.swappiness", "valeu 2"), ":3: \"valeu\" is no field"),
        (setting("vm.swappiness", "when 1"), "needs one of the fields value, words and computed"),
        (setting("vm.swappiness", "words 1").replace("exact", "about"), "\"about\" is no operator"),
        (setting("vm.swappiness", "words 1").replace("scope host", "scope moon"), "\"moon\" is no scope"),
        (setting("vm.swappiness", "words 1").replace("  risk k\n", ""), "lacks the field \"risk\""),
        (String::new(), "the table is empty"),
    ] {
        host.write("table", &table);
        let ran = host.tune(&["plan", "--settings", path.to_str().expect("UTF-8")]).expect(2);
        assert!(ran.errors.contains(said), "{}", ran.errors);
    }
    assert!(!evil.exists(), "a table must not run programs");
}

#[test]
fn shellcheck_finds_nothing() {
    let output = Command::new("shellcheck").args(["-x", "-a", "-P", "SCRIPTDIR", TUNE]).output();
    let output = output.expect("shellcheck: run `make test-tools`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The script on the real kernel, in a network namespace of its own.
fn in_a_namespace(script: &str) -> Ran {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new("unshare");
    // Without root, in a user namespace of its own as well.
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--net", "bash", "-euc", script]).env("STATE", folder.path()).env("TUNE", TUNE).stdin(Stdio::null());
    Ran::of(&mut command)
}

#[test]
fn on_the_real_kernel_a_namespace_is_tuned_verified_and_put_back() {
    let ran = in_a_namespace(
        r#"
        settings() { sysctl -a 2>/dev/null | grep -E '^net\.(core|ipv4)\.' | grep -v fib_multipath_hash_seed; }
        tune() { "$TUNE" "$1" --assume-host --state "$STATE" --profile server,lb "${@:2}"; }
        before=$(settings)
        tune apply --quiet
        test "$(cat /proc/sys/net/core/somaxconn)" -ge 25000
        test "$(tr '\t' ' ' </proc/sys/net/ipv4/ip_local_port_range)" = '10240 65535'
        tune apply --quiet
        tune verify --json >"$STATE/verified"
        tune rollback --quiet
        test "$(settings)" = "$before"
        "#,
    )
    .expect(0);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines[1], "0 changes.", "{}", ran.out);
    assert!(!lines[0].starts_with("0 "), "{}", ran.out);
}

#[test]
fn what_the_kernel_refuses_is_an_error_and_is_not_kept() {
    let host = FakeHost::new();
    let table =
        setting("net.ipv4.tcp_migrate_req", "words 7") + &setting("net.ipv4.tcp_slow_start_after_idle", "words 0");
    host.write("table", &table.replace("scope host", "scope namespace"));
    let table = host.path("table");
    let ran = in_a_namespace(&format!(
        r#""$TUNE" apply --assume-host --state "$STATE" --settings '{}' || code=$?
        cat /proc/sys/net/ipv4/tcp_slow_start_after_idle
        exit $code"#,
        table.display()
    ))
    .expect(2);
    assert!(ran.errors.contains("tcp_migrate_req: not set to 7"), "{}", ran.errors);
    assert!(ran.errors.contains("1 settings were not taken"), "{}", ran.errors);
    assert!(ran.out.ends_with("\n0\n"), "the other one is set: {}", ran.out);
}

#[test]
fn a_namespace_has_no_old_values_but_those_it_is_given_a_folder_for() {
    let ran = in_a_namespace(r#""$TUNE" apply --assume-host"#).expect(2);
    assert!(ran.errors.contains("--state FOLDER"), "{}", ran.errors);
}
