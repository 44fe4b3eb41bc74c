"""A Coordinator in a process: on a thread of its own, with a key that the program brings."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import time

import pytest

from pubsub import AuthError, Coordinator, CoordinatorUnavailable, Peer, new_key
from pubsub.config import parse_address
from pubsub.relay.child import Child
from tests.integration.support import LONG, free_port, python, run_python


def test_peers_that_have_its_key_meet_there_and_others_do_not() -> None:
    key = new_key()
    with Coordinator(key=key) as coordinator:
        with Peer(coordinator.address, key=key) as one, Peer(coordinator.address, key=key) as two:
            sub = one.sub("topic")
            two.pub("topic").put({"a": 1})
            assert sub.get(timeout=LONG) == {"a": 1}
        for other in ({"key": new_key()}, {"insecure": True}):
            with Peer(coordinator.address, **other) as stranger, pytest.raises(AuthError):
                stranger.sub("topic")


def test_closed_it_is_gone_and_streams_go_on() -> None:
    threads = threading.active_count()
    coordinator = Coordinator()
    with Peer(coordinator.address) as one, Peer(coordinator.address) as two:
        sub, pub = one.sub("topic"), two.pub("topic")
        pub.wait_for_subscribers(1, timeout=LONG)
        coordinator.close()
        coordinator.close()
        pub.put(1)
        assert sub.get(timeout=LONG) == 1
    assert threading.active_count() == threads
    assert repr(coordinator) == "<Coordinator closed>"
    late = Peer(coordinator.address, connect_timeout=0.2)
    with late, pytest.raises(CoordinatorUnavailable):
        late.sub("topic")


def test_the_key_is_shown_by_nothing_and_travels_with_nothing() -> None:
    key = new_key()
    with Coordinator(key=key) as coordinator, Peer(coordinator.address, key=key) as peer:
        for shown in (repr(coordinator), repr(peer), repr(peer.settings), str(vars(peer))):
            assert key not in shown
        for each in (coordinator, peer):
            with pytest.raises(TypeError, match="belongs to its process"):
                pickle.dumps(each)


@pytest.mark.parametrize("make", [Coordinator, Peer])
@pytest.mark.parametrize(
    ("given", "kind", "why"),
    [
        ({"key": "password"}, AuthError, "the key is no key"),
        ({"key": b"bytes"}, TypeError, "key= is bytes"),
        ({"key": new_key(), "key_file": "/x"}, ValueError, "key_file= and key= are both set"),
        ({"key": new_key(), "insecure": True}, ValueError, "both set"),
        ({"keys": "x"}, TypeError, "has no setting 'keys'; it has key, host"),
    ],
)
def test_credentials_that_cannot_be_used_are_named(
    make: type, given: dict[str, object], kind: type[Exception], why: str
) -> None:
    with pytest.raises(kind, match=why):
        make(**given)


def test_it_listens_for_other_machines_only_where_something_says_who_may_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PUBSUB_KEY", "PUBSUB_KEY_FILE", "PUBSUB_INSECURE", "PUBSUB_CERT"):
        monkeypatch.delenv(name, raising=False)
    threads = threading.active_count()
    with pytest.raises(AuthError, match="can be reached from other machines, and no key"):
        Coordinator("0.0.0.0")
    assert threading.active_count() == threads
    pytest.importorskip("cryptography", reason="TLS certificates are made by it")
    with Coordinator("0.0.0.0", key=new_key()) as coordinator:
        assert coordinator.address == f"0.0.0.0:{coordinator.port}"


def test_where_it_cannot_listen_it_says_where() -> None:
    threads = threading.active_count()
    with Coordinator() as first:
        with pytest.raises(OSError, match=f"127.0.0.1:{first.port}: it is in use"):
            Coordinator(port=first.port)
        with pytest.raises(OSError, match="assign"):
            Coordinator("192.0.2.1", key=new_key())
        with pytest.raises(ValueError, match="port 65536"):
            Coordinator(port=65536)
    assert threading.active_count() == threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_keeps_nothing_of_it_open() -> None:
    coordinator = Coordinator()
    (wait, go), (wait_for_child, ready) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.write(ready, b".")
        os.read(wait, 1)
        os._exit(0)
    os.close(wait)
    try:
        os.read(wait_for_child, 1)
        coordinator.close()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", coordinator.port)) != 0
    finally:
        os.close(go)
        os.waitpid(child, 0)
        os.close(wait_for_child)
        os.close(ready)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_in_a_forked_child_nothing_of_it_waits_for_the_thread_of_the_parent() -> None:
    out = run_python(
        """
        import os, signal
        from pubsub import Coordinator, WrongContext
        coordinator = Coordinator()
        if os.fork() == 0:
            signal.alarm(10)
            try:
                coordinator.topics()
            except WrongContext:
                pass
            else:
                os._exit(1)
            coordinator.close()
            os._exit(0)
        _, status = os.wait()
        print(os.waitstatus_to_exitcode(status), coordinator.topics())
        coordinator.close()
        """
    )
    assert out.splitlines()[-1] == "0 []"


def test_it_tells_who_is_there() -> None:
    with Coordinator() as coordinator, Peer(coordinator.address, name="one") as peer:
        sub, pub = peer.sub("topic"), peer.pub("topic")
        assert coordinator.topics() == [{"topic": "topic", "publishers": 1, "subscribers": 1}]
        (row,) = coordinator.peers()
        assert (row["name"], row["pubs"], row["subs"]) == ("one", 1, 1)
        del sub, pub


def test_its_relay_is_a_process_that_is_kept_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = new_key()
    monkeypatch.setenv("PUBSUB_KEY_FILE", "/nowhere")  # which is not what the relay is to have
    with Coordinator(key=key, relay=0) as coordinator:
        assert coordinator._relay is not None
        before = _address_of_relay(coordinator, other_than="")
        process = coordinator._relay._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        _address_of_relay(coordinator, other_than=before)
        process = coordinator._relay._process
        assert process is not None
        os.kill(process.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_relay_at_all_addresses_is_told_by_one_of_them() -> None:
    with pytest.raises(ValueError, match="needs advertise="):
        Coordinator("0.0.0.0", key=new_key(), relay=0)


def test_a_relay_that_is_not_started_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(child: Child) -> None:
        begin(child)
        raise KeyboardInterrupt

    begin, port, before = Child.start, free_port(), set(threading.enumerate())
    monkeypatch.setattr(Child, "start", start)
    with pytest.raises(KeyboardInterrupt) as interrupted:  # it keeps what its frames know
        Coordinator(port=port, key=new_key(), relay=0)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    left = set(threading.enumerate()) - before
    assert "pubsub" not in {thread.name for thread in left}
    assert interrupted.type is KeyboardInterrupt


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_its_relay_ends_with_it_though_a_forked_child_lives_on() -> None:
    process = python(
        """
        import os, signal, sys, time
        from pubsub import Coordinator, new_key
        signal.alarm(60)
        coordinator = Coordinator(key=new_key(), relay=0)
        while not coordinator.relays():
            time.sleep(0.01)
        if os.fork() == 0:
            signal.alarm(60)
            sys.stdin.read()
            print("the child has lived", flush=True)
            os._exit(0)
        print(coordinator.relays()[0]["address"], flush=True)
        time.sleep(60)
        """
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        address = parse_address(process.stdout.readline().strip())
        process.kill()
        deadline = time.monotonic() + LONG
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(address) != 0:
                    break
            assert time.monotonic() < deadline, "the relay is still there"
            time.sleep(0.01)
        process.stdin.close()
        assert process.stdout.read() == "the child has lived\n"


def _address_of_relay(coordinator: Coordinator, *, other_than: str) -> str:
    deadline = time.monotonic() + LONG
    while True:
        for row in coordinator.relays():
            if row["address"] != other_than:
                return str(row["address"])
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_not_closed_it_is_at_the_end_of_its_process_after_the_peers() -> None:
    """Its thread must not run on while Python ends, which would crash now and then."""
    out = run_python(
        """
        import atexit
        atexit.register(lambda: print(coordinator, threading.active_count()))
        import threading
        from pubsub import Coordinator, Pub, Sub, connect
        atexit.register(lambda: print(peer.closed, coordinator._closed))
        coordinator = Coordinator()
        connect(coordinator.address)
        peer = Pub("topic").peer
        """
    )
    assert out.splitlines() == ["False False", "<Coordinator closed> 1"]
