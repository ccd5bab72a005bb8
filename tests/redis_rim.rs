//! Goal: harness works.
mod support;
use support::redis::*;
#[test]
fn harness() {
    let mut one = RedisServer::start();
    let mut c = one.connect();
    let _: () = redis::cmd("PING").query(&mut c).unwrap();
    one.kill();
    one.start_again();
    println!("{}", one.url());
    let pw = RedisServer::with_password("secret");
    println!("{} {}", pw.url(), pw.ask(&["PING"]));
    let tls = RedisServer::with_tls();
    println!("{} {}", tls.url(), tls.ask(&["PING"]));
    let t = std::time::Instant::now();
    let s = Sentinels::start();
    println!("{} {:?} {:?}", s.url(), s.master_port(), t.elapsed());
    let t = std::time::Instant::now();
    let s = RedisCluster::start(3, 1);
    println!("{} {:?}", s.url(), t.elapsed());
}
