"""What may come instead of an answer, on real sockets: each is an exception with a name that says what was asked."""

import contextlib
import html
import json
import logging
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from support.agent import Agent, free_ports
from support.curl import Curl
from support.faulty import Faulty, http

from consulfs import consulate
from consulfs.consulate.api.txn import operation

NOBODY = "11111111-1111-1111-1111-111111111111"

# name -> (the call, what it asks for first)
CALLS = {
    "kv.get": (lambda c: c.kv.get("a"), "GET /v1/kv/a"),
    "kv.set": (lambda c: c.kv.set("a", "1"), "GET /v1/kv/a"),
    "kv.store": (lambda c: c.kv.store("a", b"1", 0, 0), "PUT /v1/txn"),
    "kv.store, large": (lambda c: c.kv.store("a", b"1", 0, 0, txn_limit=1), "PUT /v1/kv/a"),
    "kv.delete": (lambda c: c.kv.delete("a"), "DELETE /v1/kv/a"),
    "kv.acquire_lock": (lambda c: c.kv.acquire_lock("a", NOBODY), "GET /v1/kv/a"),
    "kv.release_lock": (lambda c: c.kv.release_lock("a", NOBODY), "GET /v1/kv/a"),
    "kv.names": (lambda c: c.kv.names("a"), "GET /v1/kv/a"),
    "kv.tree": (lambda c: c.kv.tree("a"), "GET /v1/kv/a"),
    "kv.tree, odd": (lambda c: c.kv.tree("a//"), "PUT /v1/txn"),
    "kv.read_many": (lambda c: c.kv.read_many(["a"]), "PUT /v1/txn"),
    "kv.stream": (lambda c: list(c.kv.stream("a")), "GET /v1/kv/a"),
    "txn": (lambda c: c.txn.execute([operation("set", "a", b"1")]), "PUT /v1/txn"),
    "session.create": (lambda c: c.session.create(), "PUT /v1/session/create"),
    "session.renew": (lambda c: c.session.renew(NOBODY), f"PUT /v1/session/renew/{NOBODY}"),
    "session.destroy": (lambda c: c.session.destroy(NOBODY), f"PUT /v1/session/destroy/{NOBODY}"),
    "session.info": (lambda c: c.session.info(NOBODY), f"GET /v1/session/info/{NOBODY}"),
    "session.list": (lambda c: c.session.list(), "GET /v1/session/list"),
    "status.leader": (lambda c: c.status.leader(), "GET /v1/status/leader"),
    "status.peers": (lambda c: c.status.peers(), "GET /v1/status/peers"),
    "agent.self": (lambda c: c.agent.self(), "GET /v1/agent/self"),
}

every_call = pytest.mark.parametrize("name", CALLS)
some_calls = pytest.mark.parametrize("name", ["kv.get", "kv.set", "kv.stream", "session.create", "txn"])


def client(server, **more):
    return consulate.Consul("127.0.0.1", server.port, **{"timeout": 10, **more})


def fails(consul, name, kind, *words):
    """The call raises exactly this, with its request named once."""
    call, what = CALLS[name]
    with pytest.raises(consulate.ConsulateException) as caught:
        call(consul)
    said = str(caught.value)
    assert type(caught.value) is kind, repr(caught.value)
    assert said.startswith(f"{what}: ")
    assert said.count(what) == 1
    for word in words:
        assert word in said
    if issubclass(kind, consulate.RequestError) and kind is not consulate.BadAnswer:
        assert caught.value.__cause__ is not None
    return caught.value


# -- no connection -------------------------------------------------------------------------------------------------


@some_calls
def test_nobody_listens(name):
    consul = consulate.Consul("127.0.0.1", free_ports(1)[0], timeout=5)
    fails(consul, name, consulate.ConnectFailed, "refused", consul._base[:-3])


@some_calls
def test_a_connection_is_never_taken(name):
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        while True:  # until its backlog is full, and the kernel drops what comes
            filler = held.enter_context(socket.socket())
            filler.settimeout(0.2)
            try:
                filler.connect(listener.getsockname())
            except socket.timeout:
                break
        consul = consulate.Consul(*listener.getsockname(), timeout=0.3)
        fails(consul, name, consulate.ConnectFailed, "timed out")


@pytest.mark.parametrize("host", ["", "x" * 300, "a..b", "two words", "[::1", "-", "ho\x00st", "a/b", "\ud800"])
def test_what_is_no_address(host):
    with pytest.raises(consulate.ConnectFailed, match=r"^GET /v1/kv/a: cannot connect to http://") as caught:
        consulate.Consul(host, 9, timeout=5).kv.get("a")
    assert caught.value.__cause__ is not None


HEAD = """
import fcntl, socket, struct, sys
link = socket.socket()
fcntl.ioctl(link, 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS: up
sys.path.insert(0, sys.argv[1])
from consulfs import consulate
"""


def in_an_own_network(tmp_path, script, *head):
    """A process that reaches its own loopback only, whose name server is 127.0.0.1."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:30\n")
    (tmp_path / "script.py").write_text(HEAD + script)
    mount = f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && "
    command = mount + f'exec "{sys.executable}" "{tmp_path}/script.py" "{Path(__file__).resolve().parents[1]}"'
    done = subprocess.run(["unshare", "-mn", "sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.root
def test_a_name_that_nobody_knows(tmp_path):
    script = """
try:
    consulate.Consul("consul.invalid", 8500, timeout=20).kv.get("a")
except consulate.ConnectFailed as error:
    print(error, type(error.__cause__.__cause__).__name__)
"""
    said = in_an_own_network(tmp_path, script)
    assert said.startswith("GET /v1/kv/a: cannot connect to http://consul.invalid:8500: ")
    assert said.strip().endswith("gaierror")


@pytest.mark.root
def test_a_name_server_that_does_not_answer(tmp_path):
    script = """
silent = socket.socket(type=socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 53))
try:
    consulate.Consul("consul.example", 8500, timeout=0.5).kv.get("a")
except consulate.ConnectFailed as error:
    print(error)
"""
    assert "the name consul.example was not resolved in time" in in_an_own_network(tmp_path, script)


# -- no answer in time ---------------------------------------------------------------------------------------------


@some_calls
def test_an_answer_does_not_come(name):
    with Faulty(None) as server:
        fails(client(server, timeout=0.3), name, consulate.AnswerTimeout, "in time")


def test_a_frozen_agent_and_its_return():
    with Agent() as own, client(own, timeout=0.5) as consul:
        consul.kv["a"] = "1"
        own.freeze()
        fails(consul, "kv.get", consulate.AnswerTimeout)
        fails(consul, "kv.stream", consulate.AnswerTimeout)
        own.resume()
        assert consul.kv.get("a", timeout=30) == "1"


def test_a_body_that_is_not_taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        consul = consulate.Consul(*listener.getsockname(), timeout=0.5)
        with pytest.raises(consulate.AnswerTimeout, match=r"^PUT /v1/kv/a: no answer"):
            consul.kv._write("kv/a", b"x" * (64 << 20))


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-Hal", http(b"[", length=100)])
@pytest.mark.parametrize("name", ["kv.get", "kv.stream"])
def test_an_answer_stops_half_way(name, head):
    def begin(line):
        yield head
        server.ended.wait()

    with Faulty(begin) as server:
        fails(client(server, timeout=0.3), name, consulate.AnswerTimeout)


def test_a_blocking_query_may_take_longer_than_the_timeout(agent, curl):
    curl.put("a", b"1")
    with client(agent, timeout=0.5) as consul:
        consul.kv.get("a")
        index = consul.kv.meta.index
        assert consul.kv.get("a", index=index, wait="2s") == "1"
        assert next(consul.kv.stream("a", index=index, wait=2)).value == b"1"
    with Faulty(None) as server, pytest.raises(consulate.AnswerTimeout):
        client(server, timeout=0.3).kv.get("a", index=1, wait="300ms")


def test_no_time_limit_at_all(agent, curl):
    curl.put("a", b"1")
    with client(agent, timeout=None) as consul:
        assert consul.kv.get("a") == "1"
        with pytest.raises(consulate.AnswerTimeout), Faulty(None) as server:
            client(server, timeout=None).kv.get("a", timeout=0.2)


# -- not what Consul would say -------------------------------------------------------------------------------------


@every_call
def test_a_page_instead_of_an_answer(name):
    """Of a proxy that wants a login, with status 200."""
    page = b"<html><body>Please log in</body></html>"
    with Faulty(http(page, headers=["Content-Type: text/html"]), closes=False) as server:
        error = fails(client(server), name, consulate.BadAnswer, "wanted")
        assert "<html>" in str(error)
        assert len(server.requests) == 1


RECORD = {"Key": "a", "Value": "MQ==", "Flags": 0, "CreateIndex": 1, "ModifyIndex": 2, "LockIndex": 0}

SHAPES = [
    3, 1.5, True, False, None, "text", [], {}, [{}], [3], [None], [[]], ["text"], [True], {"a": 1}, {"ID": 3},
    {"ID": None},     {"Results": 3}, {"Results": "ab"}, {"Results": [3]}, {"Results": [{}]}, {"Results": [{"KV": 3}]},
    {"Results": [{"KV": {}}]}, {"Results": []}, {"Results": None}, {"Results": {"KV": 1}}, [RECORD],
    {"Results": [{"KV": {**RECORD, "Value": 3}}]},
    *([{**RECORD, **wrong}] for wrong in (
        {"Key": 3}, {"Key": None}, {"Value": 3}, {"Value": "!!!!"}, {"Value": "MQ"}, {"Value": "\xfc"}, {"Value": []},
        {"Flags": "x"}, {"ModifyIndex": []}, {"Flags": None}, {"Session": 3},
    )),
]  # fmt: skip

# What is an answer, or means nothing there; everything else is refused. None stands for all of those below.
FINE = {
    "kv.get": ["null", "[]", json.dumps([RECORD])],
    "kv.set": [],  # two answers of different shapes are needed
    "kv.store": [json.dumps({"Results": [{"KV": {**RECORD, "Value": 3}}]})],  # the value is known
    "kv.store, large": ["true"],
    "kv.delete": ["true"],
    "kv.acquire_lock": [],  # two answers of different shapes
    "kv.release_lock": ["null", "[]", json.dumps([RECORD])],  # nothing is held
    "kv.names": ["null", "[]", '["text"]'],
    "kv.tree": ["null", "[]", json.dumps([RECORD])],
    "kv.tree, odd": ['{"Results": []}', '{"Results": null}'],
    "kv.read_many": ['{"Results": []}', '{"Results": null}'],
    "kv.stream": ["null", "[]", json.dumps([RECORD])],
    "txn": ['{"Results": []}', '{"Results": null}', json.dumps({"Results": [{"KV": {**RECORD, "Value": 3}}]})],
    "session.create": [],
    "session.renew": ["[{}]", *(json.dumps(each) for each in SHAPES if isinstance(each, list) and "Key" in str(each))],
    "session.destroy": ["true", "false"],
    "session.info": ["null", "[]", "[{}]"],
    "session.list": ["null", "[]", "[{}]"],
    "status.leader": ['"text"'],
    "status.peers": ["null", "[]", '["text"]'],
    "agent.self": None,  # any object, and null
}


@every_call
def test_json_of_another_shape(name):
    answers = iter(())
    with Faulty(lambda line: http(next(answers).encode()), closes=False) as server, client(server) as consul:
        for shape in map(json.dumps, SHAPES):
            # A read before a write is told that there is nothing, so that the write is met by the shape.
            answers = iter([shape, shape, shape])
            call, what = CALLS[name]
            try:
                call(consul)
            except consulate.StaleIndex:  # Consul's "false": another index
                assert (name, shape) == ("kv.store, large", "false")
            except consulate.ConcurrentChange:
                raise
            except consulate.BadAnswer as error:
                assert str(error).startswith(f"{what}: ") or str(error).startswith("PUT /v1/txn: "), error
                assert FINE[name] is None or shape not in FINE[name], (name, shape, error)
            else:
                fine = shape in ("null",) or shape.startswith("{") if FINE[name] is None else shape in FINE[name]
                rows = name.startswith("session.") and shape.startswith("[{")
                assert fine or rows, (name, shape)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"  ", b"[", b"[{}", b"[{]", b'["\xff"]', b"[1] 2", b"nan", b"[" * 3000, b"{" * 3000, b"1" * 10_000,
        b"\x00", b"\xef\xbb\xbf<html>",
    ],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
@pytest.mark.parametrize("name", ["kv.get", "kv.stream", "txn", "session.create", "status.leader"])
def test_a_body_that_is_no_json(name, body):
    with Faulty(http(body)) as server:
        fails(client(server), name, consulate.BadAnswer)


MORE = {
    "health.service": lambda c: c.health.service("s"),
    "kv.set_record": lambda c: c.kv.set_record("a", 1, "x"),
    "session.create": lambda c: c.session.create(),
    "session.renew": lambda c: c.session.renew(NOBODY),
    "event.fire": lambda c: c.event.fire("e"),
    "query.create": lambda c: c.query.create(service="s", name="q"),
    "query.explain": lambda c: c.query.explain("q"),
    "query.execute": lambda c: c.query.execute("q"),
    "config.apply": lambda c: c.config.apply({"Kind": "service-defaults", "Name": "s"}),
    "config.delete": lambda c: c.config.delete("service-defaults", "s", cas=3),
    "intentions.create": lambda c: c.connect.intentions.create("a", "b"),
    "intentions.check": lambda c: c.connect.intentions.check("a", "b"),
    "intentions.match": lambda c: c.connect.intentions.match("source", ["a"]),
    "connect.agent_authorize": lambda c: c.connect.agent_authorize("a", "b", "c"),
    "discovery_chain": lambda c: c.connect.discovery_chain("s"),
    "discovery_chain, overrides": lambda c: c.connect.discovery_chain("s", overrides={"OverrideProtocol": "http"}),
    "ca.roots": lambda c: c.connect.ca.roots(),
    "ca.configuration": lambda c: c.connect.ca.configuration(),
    "ca.agent_leaf": lambda c: c.connect.ca.agent_leaf("s"),
    "operator.usage": lambda c: c.operator.usage(),
    "raft.configuration": lambda c: c.operator.raft.configuration(),
    "raft.transfer_leader": lambda c: c.operator.raft.transfer_leader(),
    "autopilot.update": lambda c: c.operator.autopilot.update({}),
    "autopilot.health": lambda c: c.operator.autopilot.health(),
    "catalog.register": lambda c: c.catalog.register("n", "127.0.0.1"),
    "catalog.deregister": lambda c: c.catalog.deregister("n"),
    "agent.self": lambda c: c.agent.self(),
    "agent.host": lambda c: c.agent.host(),
    "agent.version": lambda c: c.agent.version(),
    "agent.metrics": lambda c: c.agent.metrics(),
    "txn.apply": lambda c: c.txn.apply([operation("set", "a", b"")]),
    "txn.execute": lambda c: c.txn.execute([operation("set", "a", b"")]),
    "status.leader": lambda c: c.status.leader(),
    "acl.list": lambda c: c.acl.list(),
    "acl.create": lambda c: c.acl.create("x"),
    "acl.update": lambda c: c.acl.update("i", "x"),
    "acl.info": lambda c: c.acl.info("i"),
    "acl.clone": lambda c: c.acl.clone("i"),
    "acl.destroy": lambda c: c.acl.destroy("i"),
    "acl.bootstrap": lambda c: c.acl.bootstrap(),
    "acl.replication": lambda c: c.acl.replication(),
    "acl.authorize": lambda c: c.acl.authorize([("key", "read", "a")]),
    "acl.login": lambda c: c.acl.login("m", "b"),
    "acl.oidc_auth_url": lambda c: c.acl.oidc_auth_url("m", "u"),
    "acl.oidc_callback": lambda c: c.acl.oidc_callback("m", "s", "c"),
    "acl.tokens.create": lambda c: c.acl.tokens.create(),
    "acl.tokens.clone": lambda c: c.acl.tokens.clone(NOBODY),
    "acl.tokens.delete": lambda c: c.acl.tokens.delete(NOBODY),
    "acl.tokens.update": lambda c: c.acl.tokens.update(NOBODY, description="x"),
    "acl.policies.create": lambda c: c.acl.policies.create("p"),
    "acl.auth_methods.create": lambda c: c.acl.auth_methods.create("m", "jwt"),
    "acl.binding_rules.create": lambda c: c.acl.binding_rules.create("m"),
    "acl.templated_policies.list": lambda c: c.acl.templated_policies.list(),
    "acl.templated_policies.preview": lambda c: c.acl.templated_policies.preview("t"),
}


@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("shape", ["{}", "[1]", '"x"', "3", '{"ID": null}'])
def test_no_method_takes_another_shape_for_an_answer(name, shape):
    takes_and_gives(MORE[name], shape)


@pytest.mark.parametrize("shape", ["{}", "[1]", '"x"', "3", '{"ID": null}'])
def test_no_read_takes_another_shape_for_an_answer(shape):
    for call in READS.values():
        takes_and_gives(call, shape)


def takes_and_gives(call, shape):
    """BadAnswer, or an object of which the caller is promised no more than that it is one."""
    given = json.loads(shape)
    with Faulty(http(shape.encode()), closes=False) as server, client(server) as consul:
        try:
            found = call(consul)
        except consulate.BadAnswer:
            return
        except consulate.NotFound as error:
            assert "no such ACL" in str(error) or "nothing to update" in str(error)
            return
        assert isinstance(given, (dict, str))
        assert found in (given, None, [], [given]) or (found is False and isinstance(given, dict)), found


def test_a_transactions_refusal_of_another_shape():
    odd = [3, None, [], {}, {"Errors": None}, {"Errors": []}, {"Errors": 3}, {"Errors": [3]}, {"Errors": [{}]}]
    odd += [{"Errors": [{"OpIndex": 0, "What": 3}]}, {"Errors": [{"OpIndex": "x", "What": "index is stale"}]}]
    for shape in [*map(json.dumps, odd), "<html>"]:
        with Faulty(http(shape.encode(), "409 Conflict")) as server:
            fails(client(server), "txn", consulate.BadAnswer)
            fails(client(server), "kv.read_many", consulate.BadAnswer)


def test_headers_that_make_no_sense():
    odd = ["X-Consul-Index: many", "X-Consul-LastContact: -", "X-Consul-KnownLeader: maybe", "X-Consul-Index: \xb2"]
    with Faulty(http(b"[]", headers=odd), closes=False) as server, client(server) as consul:
        assert consul.kv.get("a") is None
        assert (consul.kv.meta.index, consul.kv.meta.last_contact, consul.kv.meta.known_leader) == (None, None, False)
        assert list(consul.kv.stream()) == []


def test_an_option_that_there_is_not():
    with Faulty(http(b"[]"), closes=False) as server, client(server) as consul:
        for call in (
            lambda: consul.kv.get("a", consistancy="consistent"),
            lambda: consul.kv.get("a//b", consistancy="consistent"),
            lambda: list(consul.kv.stream("a", consistancy="consistent")),
            lambda: consul.catalog.nodes(consistancy="consistent"),
            lambda: consul.acl.list(consistancy="consistent"),
            lambda: consul.agent.checks(consistancy="consistent"),
            lambda: consul.txn.execute([operation("get", "a")], consistancy="consistent"),
        ):
            with pytest.raises(TypeError, match="no option consistancy"):
                call()
        assert server.requests == []


# -- broken answers ------------------------------------------------------------------------------------------------

LONG = json.dumps([RECORD] * 3000).encode()

BROKEN = {
    "nothing": b"",
    "half a status line": b"HTTP/1.",
    "half the headers": b"HTTP/1.1 200 OK\r\nContent-Le",
    "garbage": b"\x16\x03\x01 garbage \x00\xff\r\n\r\n" * 5,
    "another protocol": b"220 mail.example ESMTP\r\n",
    "an odd status": b"HTTP/1.1 abc OK\r\n\r\n",
    "half of the body": http(LONG[:-1000], length=len(LONG)),
    "none of the body": http(b"", length=1000),
    "half of the chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"%x\r\n" % len(LONG) + LONG + b"\r\n",
    "half of a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(LONG) + LONG[:-1000],
    "chunks without a size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n" + LONG,
    "a long header": [b"HTTP/1.1 200 OK\r\nX: ", *[b"x" * 10_000] * 100],
    "many headers": [b"HTTP/1.1 200 OK\r\n", *[b"X-Again: and again\r\n"] * 10_000],
    "a long status line": [b"HTTP/1.1 200 ", *[b"x" * 10_000] * 100],
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n[]x",
    "not compressed at all": http(b"[]", headers=["Content-Encoding: gzip"]),
    "more than there is memory for": http(b"[]", length=10**15),
}  # fmt: skip


# http.client takes an end among the headers for their end, and urllib3 gives nothing for what does not decompress;
# lengths beyond memory are met where a body is read at once. What is left of such answers is no JSON.
MAYBE_NONE = {"half the headers", "not compressed at all", "more than there is memory for"}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("name", ["kv.get", "kv.set", "kv.stream", "txn", "session.create", "status.leader"])
def test_an_answer_that_breaks(name, fault):
    with Faulty(BROKEN[fault]) as server, client(server) as consul:
        if fault in MAYBE_NONE:
            with pytest.raises((consulate.ConnectionBroken, consulate.BadAnswer), match=CALLS[name][1]):
                CALLS[name][0](consul)
        else:
            fails(consul, name, consulate.ConnectionBroken, "broke")
        assert len(server.requests) == 1  # whatever it was, it is not asked again behind the caller's back
        server.answer = http(b"[]")
        assert consul.kv.get("a") is None


def test_a_stream_that_breaks_has_given_what_came():
    with Faulty(BROKEN["half of the body"]) as server, client(server) as consul:
        seen = []
        with pytest.raises(consulate.ConnectionBroken, match=r"^GET /v1/kv/: "):
            for record in consul.kv.stream():
                seen.append(record)
        assert 0 < len(seen) < 3000


def test_an_answer_that_was_not_asked_for():
    """Two answers in one, or more bytes than its length: the rest is nobody's answer."""
    record = {**RECORD, "Value": "c3RyYXk="}
    stray = http(json.dumps([record]).encode())
    for rest in (stray, b"]]]", b"\r\n" + stray, [b"", stray]):
        pieces = [b"".join(rest)] if isinstance(rest, list) else [rest]
        answers = iter([[http(json.dumps([RECORD]).encode()), *pieces], [http(b"[]")]])
        with Faulty(lambda line, answers=answers: next(answers), closes=False) as server, client(server) as consul:
            assert consul.kv.get("a") == "1"
            threading.Event().wait(0.1)  # until the rest is there
            assert consul.kv.get("b") is None
    with Faulty(http(b"[]]]", length=2), closes=False) as server, client(server) as consul:
        for _ in range(5):
            assert consul.kv.get("a") is None


# -- Consul's own refusals -----------------------------------------------------------------------------------------


def test_there_is_no_leader():
    """A server of three that is alone."""
    config = {"performance": {"rpc_hold_timeout": "200ms"}}  # else each request waits for a leader for seven seconds
    with Agent(config, keeps_data=True, servers=3) as alone, client(alone, timeout=60) as consul:
        for name in ("kv.get", "kv.stream", "txn", "session.create", "session.list", "kv.delete"):
            error = fails(consul, name, consulate.NoLeader, "No cluster leader")
            assert error.status == 500
        assert consul.status.leader() == ""
        assert consul.agent.self()["Config"]["NodeName"] == "test"


def test_sessions_that_do_not_exist(agent, curl):
    with client(agent) as consul:
        for session in (NOBODY, "xyz"):
            for call in (
                lambda: consul.kv.acquire_lock("a", session),  # noqa: B023 - called at once
                lambda: consul.txn.execute([operation("lock", "a", b"", session=session)]),  # noqa: B023 - called at once
                lambda: consul.session.renew(session),  # noqa: B023 - called at once
            ):
                with pytest.raises(consulate.UnknownSession, match=r"^PUT /v1/") as caught:
                    call()
                assert isinstance(caught.value, consulate.NotFound)
        assert consul.session.info(NOBODY) is None
        assert consul.session.destroy(NOBODY) is True
        assert consul.kv.release_lock("a", NOBODY) is False
    assert curl.keys() == []


STATUSES = {
    301: consulate.Redirected, 400: consulate.ClientError, 401: consulate.ACLDisabled, 403: consulate.Forbidden,
    405: consulate.ClientError, 410: consulate.Gone, 413: consulate.TooLarge, 429: consulate.RateLimited,
    500: consulate.ServerError, 502: consulate.ServerError, 503: consulate.ServerError, 504: consulate.ServerError,
    404: consulate.NotFound,
}  # fmt: skip


@pytest.mark.parametrize("status", STATUSES)
def test_every_refusal_has_a_name_and_the_servers_words(status):
    with Faulty(http(b"the server's words", f"{status} Reason", ["Location: /elsewhere"]), closes=False) as server:
        consul = client(server)
        words = "/elsewhere" if status == 301 else "the server's words"
        for name in ("session.create", "txn", "agent.self", "kv.get", "kv.stream"):
            assert fails(consul, name, STATUSES[status], str(status), words).status == status


ROLE = f"acl/role/{NOBODY}"

# what is read -> the call; each would say "there is nothing" if any 404 were one
READS = {
    "kv/a": lambda c: c.kv.get("a"),
    "kv/": lambda c: c.kv.keys(),
    "kv/b": lambda c: c.kv.find("b"),
    "kv/c": lambda c: list(c.kv.stream("c")),
    "session/list": lambda c: c.session.list(),
    f"session/info/{NOBODY}": lambda c: c.session.info(NOBODY),
    "session/node/n": lambda c: c.session.node("n"),
    "catalog/datacenters": lambda c: c.catalog.datacenters(),
    "catalog/nodes": lambda c: c.catalog.nodes(),
    "catalog/node/n": lambda c: c.catalog.node("n"),
    "catalog/node-services/n": lambda c: c.catalog.node_services("n"),
    "catalog/services": lambda c: c.catalog.services(),
    "catalog/service/s": lambda c: c.catalog.service("s"),
    "catalog/connect/s": lambda c: c.catalog.connect("s"),
    "catalog/gateway-services/g": lambda c: c.catalog.gateway_services("g"),
    "health/checks/s": lambda c: c.health.checks("s"),
    "health/node/n": lambda c: c.health.node("n"),
    "health/service/s": lambda c: c.health.service("s"),
    "health/state/any": lambda c: c.health.state("any"),
    "agent/checks": lambda c: c.agent.checks(),
    "agent/services": lambda c: c.agent.services(),
    "agent/members": lambda c: c.agent.members(),
    "agent/service/s": lambda c: c.agent.service.info("s"),
    "agent/health/service/name/s": lambda c: c.agent.service.health_by_name("s"),
    "agent/health/service/id/s": lambda c: c.agent.service.health_by_id("s"),
    "event/list": lambda c: c.event.list(),
    "query": lambda c: c.query.list(),
    f"query/{NOBODY}": lambda c: c.query.read(NOBODY),
    "config/k": lambda c: c.config.list("k"),
    "config/k/n": lambda c: c.config.get("k", "n"),
    "connect/intentions": lambda c: c.connect.intentions.list(),
    f"connect/intentions/{NOBODY}": lambda c: c.connect.intentions.read(NOBODY),
    "connect/intentions/exact": lambda c: c.connect.intentions.read_exact("a", "b"),
    "coordinate/nodes": lambda c: c.coordinate.nodes(),
    "coordinate/datacenters": lambda c: c.coordinate.datacenters(),
    "coordinate/node/n": lambda c: c.coordinate.node("n"),
    "status/peers": lambda c: c.status.peers(),
    "acl/tokens": lambda c: c.acl.tokens.list(),
    "acl/policies": lambda c: c.acl.policies.list(),
    ROLE: lambda c: c.acl.roles.read(NOBODY),
    "acl/auth-method/m": lambda c: c.acl.auth_methods.read("m"),
    f"acl/binding-rule/{NOBODY}": lambda c: c.acl.binding_rules.read(NOBODY),
    "acl/templated-policy/name/builtin/dns": lambda c: c.acl.templated_policies.read("builtin/dns"),
    "operator/keyring": lambda c: c.operator.keyring.list(),
}
SILENT = {"coordinate/node/n", ROLE, "acl/auth-method/m", f"acl/binding-rule/{NOBODY}"}
"""Whose own 404 is without a word, and so like that of a Consul that has not got the endpoint."""


@pytest.mark.parametrize("path", READS)
def test_a_404_that_is_not_of_the_thing_asked_for_is_no_nothing(path):
    """Of another server on a wrong port, of a proxy, and of a Consul that has not got the endpoint."""
    page = b"<html><head><title>404 Not Found</title></head></html>"
    for body, headers in ((page, ["Content-Type: text/html"]), (page, []), (b"oops", ["Content-Type: text/html"])):
        wanted = pytest.raises(consulate.BadAnswer, match=f"^GET /v1/{path}: wanted an answer of Consul's")
        with Faulty(http(body, "404 Not Found", headers)) as server, client(server) as consul, wanted:
            READS[path](consul)
    for body in (b"404 page not found", b"Not Found", b'{"detail": "Not Found"}', b"[]", b"null", b""):
        with Faulty(http(body, "404 Not Found")) as server, client(server) as consul:
            if body or path not in SILENT:
                with pytest.raises(consulate.NotFound, match=f"^GET /v1/{path}: 404 ") as caught:
                    READS[path](consul)
                assert caught.value.status == 404
            else:
                assert not READS[path](consul)


def test_consuls_own_404_is_a_nothing(agent, curl):
    with client(agent) as consul:
        assert (consul.kv.get("a"), consul.kv.keys(), consul.kv.find("a"), list(consul.kv.stream())) == (
            None,
            [],
            {},
            [],
        )
        assert consul.kv.meta.index
        assert consul.agent.service.info("s") is None
        assert consul.agent.service.health_by_name("s") is None
        assert consul.agent.service.health_by_id("s") is None
        assert consul.query.read(NOBODY) is None
        assert consul.config.get("service-defaults", "s") is None
        assert consul.connect.intentions.read(NOBODY) is None
        assert consul.coordinate.node("n") == []
    later = {  # as since 1.11 and 1.13
        ROLE: b"Requested role does not exist: ACL not found",
        "agent/service/s": b'Unknown service ID "s". Ensure that the service ID is passed, not the service name.',
        "agent/health/service/name/s": b"ServiceName s Not Found",
        "agent/health/service/id/s": b"ServiceId s not found",
    }
    for path, words in later.items():
        with Faulty(http(words, "404 Not Found")) as server, client(server) as consul:
            assert READS[path](consul) is None


def test_a_refusal_without_words_or_of_binary_ones():
    for body in (b"", b"\xff\xfe\x00", b"x" * 1_000_000):
        with Faulty(http(body, "500 Reason")) as server:
            assert len(str(fails(client(server), "kv.get", consulate.ServerError, "500"))) < 1000
            assert len(str(fails(client(server), "kv.stream", consulate.ServerError, "500"))) < 1000


def test_a_large_body_is_refused_while_it_is_sent(agent, curl):
    with client(agent) as consul:
        for size in (600_000, 8 << 20):
            with pytest.raises(consulate.TooLarge, match=r"^PUT /v1/kv/a: 413"):
                consul.kv.store("a", b"x" * size, 0, 0)
        with pytest.raises(consulate.TooLarge, match=r"^PUT /v1/txn: 413"):
            consul.txn.execute([operation("set", "a", b"x" * 600_000)])
    assert curl.keys() == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(agent, curl, status):
    curl.put("other", b"untouched")
    for target in ("/v1/kv/other", f"{agent.url}/kv/other", "//other"):
        with Faulty(http(b"", f"{status} Moved", [f"Location: {target}"]), closes=False) as server:
            with client(server) as consul:
                for name in ("kv.get", "kv.delete", "kv.store", "kv.store, large", "kv.stream", "session.create"):
                    assert fails(consul, name, consulate.Redirected, target, "not followed").status == status
            assert len(server.requests) == 6
            assert "other" not in "".join(server.lines)
    assert curl.tree() == {"other": b"untouched"}


def test_consuls_own_redirects_are_not_met(agent, curl):
    curl.put("a/b", b"untouched")
    with client(agent) as consul:
        for name in ("", ".", ".."):
            with pytest.raises(ValueError, match="cannot be a name"):
                consul.session.info(name)
        with pytest.raises(consulate.Redirected, match=r"GET /v1/kv/a//b: 301 to /v1/kv/a/b, not followed"):
            consul.kv._read("kv/a//b")
        with pytest.raises(consulate.Redirected):
            consul.kv._write("kv/a//b", b"x")
        with pytest.raises(consulate.Redirected):
            consul.kv._stream("GET", "kv/a//b", {})
        with pytest.raises(consulate.Redirected, match="301 to /v1/kv/a/b, not followed"):
            consul.session.info("../../kv/a/b")  # Consul takes %2F for a slash
    assert curl.tree() == {"a/b": b"untouched"}


# -- connections over time -----------------------------------------------------------------------------------------


def test_after_the_agents_restart_the_first_call_works():
    with Agent() as own, client(own) as reader, client(own) as writer, client(own) as streamer:
        for consul in (reader, writer, streamer):
            assert consul.kv.get("a") is None
        own.stop()
        fails(reader, "kv.get", consulate.ConnectFailed)
        own.start()
        assert list(streamer.kv.stream()) == []
        writer.kv["a"] = "1"
        assert reader.kv.get("a") == "1"
        own.stop()
        own.start()
        with client(own) as fresh:
            writer.kv.store("b", b"2", 0, 0)  # one request alone, on a connection whose other end is gone
            assert fresh.kv.get("b") == "2"


@pytest.mark.parametrize("name", ["kv.get", "kv.delete", "kv.stream", "session.create"])
def test_a_connection_that_the_server_closed_while_it_was_idle(name):
    call, _ = CALLS[name]
    good = {"kv.delete": b"true", "session.create": b'{"ID": "x"}'}.get(name, b"[]")
    with Faulty(http(good), closes=False) as server, client(server) as consul:
        for _ in range(3):
            call(consul)
            server.hang_up()
        assert len(server.requests) == 3


def hanging_up(*answers):
    """A server whose connections end after their answer, from the second request on."""
    later = iter(answers)

    def answer(line):
        server.closes = len(server.requests) > 1
        return next(later)

    server = Faulty(answer, closes=False)
    return server


@pytest.mark.parametrize("name", ["kv.get", "kv.stream", "session.list"])
def test_a_read_meets_the_end_of_an_idle_connection(name):
    """The server hangs up just as the request comes: a read is asked once more, on a connection of its own."""
    with hanging_up(http(b"[]"), b"", http(b"[]")) as server, client(server) as consul:
        consul.kv.get("a")
        CALLS[name][0](consul)
        assert len(server.requests) == 3
        assert server.lines[1] == server.lines[2]
    with hanging_up(http(b"[]"), b"", b"") as server, client(server) as consul:
        consul.kv.get("a")
        fails(consul, name, consulate.ConnectionBroken)
        assert len(server.requests) == 3  # once more, and no more


@pytest.mark.parametrize("name", ["kv.store", "kv.delete", "session.create"])
def test_a_write_meets_the_end_of_an_idle_connection(name):
    """Whether it was applied cannot be known: said, not repeated."""
    with hanging_up(http(b"[]"), b"") as server, client(server) as consul:
        consul.kv.get("a")
        fails(consul, name, consulate.ConnectionBroken)
        assert len(server.requests) == 2


def test_close_and_use_again(agent, curl):
    consul = client(agent)
    for number in range(3):
        consul.kv["a"] = number
        stream = consul.kv.stream()
        next(stream)
        consul.close()
        assert consul.kv["a"] == str(number)
        stream.close()
        consul.close()
        consul.close()
    with consul:
        assert consul.kv["a"] == "2"


def test_two_hundred_threads_get_their_own_answers(agent, curl):
    failures, begin = [], threading.Barrier(200)
    with client(agent, timeout=60) as consul:

        def work(number):
            try:
                begin.wait(60)
                record = None
                for step in range(3):
                    key, value = f"t/{number}", f"{number} {step}"
                    record = consul.kv.store(key, value.encode(), number, record.modify_index if record else 0)
                    assert consul.kv.get(key) == value
                    assert consul.kv.read(key) == record
                    assert consul.kv.meta.index == record.modify_index
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        assert failures == []
        pool, _ = consul._adapter._find_route(consul._base[:-3])
        assert pool.num_connections <= 100
    assert curl.tree() == {f"t/{number}": f"{number} 2".encode() for number in range(200)}


def test_failures_give_their_connections_back():
    """More of them than a client has connections: none is lost, or the last would wait for ever."""
    answers = {"kv.get": BROKEN["half of the body"], "kv.stream": BROKEN["half of the chunks"], "txn": b""}
    for name, answer in answers.items():
        with Faulty(answer) as server, client(server) as consul:
            for _ in range(120):
                fails(consul, name, consulate.ConnectionBroken)
            server.answer = http(b"[]")
            assert consul.kv.get("a") is None
    with Faulty(http(LONG), closes=False) as server, client(server) as consul:
        for _ in range(120):
            next(consul.kv.stream())  # left at its first record
    with Faulty(http(b"no", "500 Error"), closes=False) as server, client(server) as consul:
        for _ in range(120):
            fails(consul, "kv.stream", consulate.ServerError)


def test_more_streams_than_connections():
    with Faulty(http(LONG), closes=False) as server, client(server, timeout=0.2) as consul:
        held = [consul.kv.stream() for _ in range(100)]
        for each in held:
            next(each)
        fails(consul, "kv.get", consulate.ConnectFailed, "every connection is in use")
        fails(consul, "kv.stream", consulate.ConnectFailed, "every connection is in use")
        held.pop().close()
        assert len(consul.kv.tree("")) == 3000


# -- the token -----------------------------------------------------------------------------------------------------

SECRET = "5ec4e7aa-2222-3333-4444-666666666666"


def everything_said(error):
    """Of an exception and all that it comes from."""
    seen, todo = [], [error]
    while todo:
        each = todo.pop()
        if each is not None and each not in seen:
            seen.append(each)
            todo += [each.__cause__, each.__context__]
            yield from (str(each), repr(each), repr(vars(each)), repr(each.args))


def test_the_token_is_in_its_header_and_nowhere_else(caplog, capfd):
    """With everything logged, through every fault and every kind of refusal."""
    caplog.set_level(logging.DEBUG)
    for name in list(logging.root.manager.loggerDict):
        caplog.set_level(logging.DEBUG, name)
    answers = [*BROKEN.values(), *(http(b"words", f"{status} Reason", ["Location: /x"]) for status in STATUSES)]
    answers += [http(b"<html>"), http(b"[3]"), http(b"{}")]
    said = []
    for answer in answers:
        with Faulty(answer) as server, client(server, token=SECRET) as consul:
            for call, _ in CALLS.values():
                try:
                    call(consul)
                except consulate.ConsulateException as error:
                    said += everything_said(error)
            assert server.requests
            for request in server.requests:
                assert [line for line in request.split("\r\n") if SECRET in line] == [f"X-Consul-Token: {SECRET}"]
            said += [repr(consul), str(consul), repr(vars(consul)), repr(consul._adapter), repr(vars(consul._adapter))]
            said += [str(endpoint) + repr(endpoint) for endpoint in vars(consul).values()]
    with Faulty(None) as silent, client(silent, token=SECRET, timeout=0.1) as consul:
        said += everything_said(fails(consul, "kv.get", consulate.AnswerTimeout))
    nobody = consulate.Consul("127.0.0.1", free_ports(1)[0], token=SECRET)
    said += everything_said(fails(nobody, "kv.get", consulate.ConnectFailed))
    assert len(said) > 1000
    assert [text for text in said if SECRET in text] == []
    assert "urllib3" in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in "".join(capfd.readouterr())


def test_a_server_that_repeats_the_token(caplog):
    """In its words, its pages, its JSON, its first line and its redirects, whole and cut off."""
    odd = 'to"ken <of> mine\\'
    for secret in (SECRET, odd):
        texts = [secret, json.dumps(secret), html.escape(secret), quote(secret, safe="")]
        texts += ["x" * (pad - 10) + secret for pad in range(95, 106)] + ["x" * 170 + secret, "x" * 480 + secret]
        answers = []
        for text in texts:
            body = text.encode()
            answers += [http(body), http(b"<p>" + body), http(b"[" + body), http(json.dumps([text]).encode())]
            answers += [
                http(json.dumps([{**RECORD, "Key": 3, "Value": text}]).encode()),
                b"HTTP/9 " + body + b"\r\n\r\n",
            ]
            answers += [
                http(body, f"{status} Reason", [f"Location: /{text}"]) for status in (301, 400, 403, 404, 409, 500)
            ]
        seen = 0
        for answer in answers:
            with Faulty(answer) as server, client(server, token=secret) as consul:
                for name in ("kv.get", "kv.stream", "txn", "session.create", "status.leader", "agent.self"):
                    with contextlib.suppress(consulate.KeyMissing):
                        try:
                            CALLS[name][0](consul)
                        except consulate.ConsulateException as error:
                            told = "".join(everything_said(error))
                            assert secret[:8] not in told, (answer, told)
                            seen += 1
        assert seen > len(answers) * 4


def test_a_token_that_cannot_be_sent():
    """As the classes are made in the reference, by hand."""
    for kind in (consulate.api.KV, consulate.api.Session, consulate.api.Catalog, consulate.api.ACL):
        for token in (f"{SECRET}\nX-Other: 1", f"{SECRET}\u20ac", SECRET.encode(), 3):
            with pytest.raises(ValueError, match="the token") as caught:
                kind("http://127.0.0.1:9/v1", consulate.adapters.Request(), token=token)
            assert SECRET not in "".join(everything_said(caught.value))


def test_answers_with_secrets_in_them_are_not_quoted():
    for call in (
        lambda c: c.query.list(),
        lambda c: c.query.read(NOBODY),
        lambda c: c.query.create(service="s", name="q"),
        lambda c: c.query.explain("q"),
        lambda c: c.connect.ca.agent_leaf("s"),
        lambda c: c.connect.ca.configuration(),
        lambda c: c.operator.keyring.list(),
        lambda c: c.acl.tokens.list(),
    ):
        broken = json.dumps({"Token": SECRET, "PrivateKeyPEM": SECRET, "Keys": {SECRET: 1}}).encode()
        for body in (broken[:-1], b"[[" + broken + b"]]", b"[3, " + broken + b"]", b"3" + broken):
            wanted = pytest.raises(consulate.BadAnswer, match=r"\d+ bytes of something else")
            with Faulty(http(body)) as server, client(server) as consul, wanted as caught:
                call(consul)
            assert SECRET not in "".join(everything_said(caught.value))


def test_a_wrong_token_is_refused_by_name():
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": NOBODY}}}
    with Agent(config) as own, client(own, token=SECRET) as consul:
        for name in ("kv.get", "kv.stream", "kv.delete", "txn", "session.create", "session.list"):
            error = fails(consul, name, consulate.Forbidden)
            assert error.status == 403
            assert SECRET not in "".join(everything_said(error))
        assert Curl(own.url, NOBODY).keys() == []
