"""The other side of tests/interop.rs: one user on Python's `websockets`, every wait with a deadline of 10 s."""

import json
import sys

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

DEADLINE_S = 10


def send(client, **frame):
    client.send(json.dumps(frame))


def expect(client, **expected):
    got = json.loads(client.recv(timeout=DEADLINE_S))
    assert got == expected, f"waiting for {expected}, got {got}"


def speak(url):
    # The library's defaults offer permessage-deflate: the gateway may take it or leave it.
    with connect(f"{url}?user_id=python", open_timeout=DEADLINE_S) as client:
        send(client, type="ping")
        expect(client, type="pong")
        assert client.ping().wait(DEADLINE_S), "a protocol ping is answered"

        send(client, type="send_message", target_user="rust", content={"hello": "日本", "n": 1.5})
        expect(client, type="message", **{"from": "rust"}, content=["answer", "🦀"])

        # An iterable goes out as fragments.
        whole = json.dumps({"type": "send_message", "target_user": "rust", "content": "x" * 60_000})
        client.send(whole[at : at + 7_000] for at in range(0, len(whole), 7_000))
        expect(client, type="message", **{"from": "rust"}, content="got it")

        send(client, type="broadcast", content="to all")
        expect(client, type="broadcast", **{"from": "python"}, content="to all")
        expect(client, type="broadcast", **{"from": "rust"}, content="from rust")

        client.send("nonsense")
        expect(client, type="error", message="Invalid JSON")
        client.send(b"binary is ignored")
        send(client, type="send_message", target_user="python")
        expect(client, type="message", **{"from": "python"}, content=None)
        send(client, type="send_message", target_user="rust", content="done")
    assert client.close_code == 1000, client.close_code


def be_refused(url):
    with connect(url, open_timeout=DEADLINE_S) as client:
        try:
            client.recv(timeout=DEADLINE_S)
        except ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "Missing user_id"), closed
        else:
            raise AssertionError("no user id, and no Close")
    try:
        connect(f"{url}?user_id={'u' * 257}", open_timeout=DEADLINE_S)
    except InvalidStatus as refusal:
        assert refusal.response.status_code == 400, refusal
    else:
        raise AssertionError("a user id of 257 bytes is taken")


speak(sys.argv[1])
be_refused(sys.argv[1])
