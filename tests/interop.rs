//! Goal: a client that nobody of this project wrote, in another language, can do all that the contract offers.
//! Method: `support/interop.py` drives Python's `websockets` (which offers permessage-deflate) against a gateway, with this
//! test as the other user. `make test` installs the library.

mod support;

use std::process::Command;

use serde_json::json;
use support::client::{broadcast_from, message_from};
use support::{Gateway, python};

#[test]
fn pythons_websockets_speaks_with_the_gateway() {
    let gateway = Gateway::start();
    let mut rust = gateway.client("rust");
    let mut child = Command::new(python::interpreter())
        .arg(python::path("interop.py"))
        .arg(format!("ws://{}/ws", gateway.addr))
        .spawn()
        .expect("Python with `websockets`: run `make test-tools`, or set TEST_PYTHON");
    rust.expect(&message_from("python", json!({"hello": "日本", "n": 1.5})));
    rust.send_to("python", r#"["answer","🦀"]"#);
    rust.expect(&message_from("python", "x".repeat(60_000)));
    rust.send_to("python", r#""got it""#);
    rust.expect(&broadcast_from("python", "to all"));
    rust.broadcast(r#""from rust""#);
    // Between a broadcast and a message no order is promised.
    let mut last = [rust.next_json(), rust.next_json()];
    last.sort_by_key(|frame| frame["type"].to_string());
    assert_eq!(last, [broadcast_from("rust", "from rust"), message_from("python", "done")]);
    let status = child.wait().expect("the script ends");
    assert!(status.success(), "the script says why above: {status}");
    gateway.wait_for_connections(1);
}
