"""A Consul that listens on a Unix domain socket."""

import contextlib
import os
import socket
import threading
from importlib.metadata import metadata

import pytest
from support.agent import Agent
from support.curl import Curl
from support.faulty import Faulty, http
from support.proxy import Proxy

from consulfs import consulate


class SocketCurl(Curl):
    """The independent client through the socket."""

    def __init__(self, path):
        super().__init__("http://localhost/v1")
        self.path = path

    def __call__(self, method, path, body=None):
        import subprocess

        command = ["curl", "-s", "--path-as-is", "--unix-socket", self.path, "-X", method, "-w", "\n%{http_code}"]
        command += [f"{self.url}/{path}"] + (["--data-binary", "@-"] if body is not None else [])
        text, _, status = subprocess.run(command, input=body, capture_output=True).stdout.rpartition(b"\n")
        return int(status or 0), text


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("s") / "consul.sock")
    with Agent({"addresses": {"http": f"unix://{path}"}}, reached_by=path):
        yield path


@pytest.fixture
def by_socket(path):
    curl = SocketCurl(path)
    curl.delete_all()
    yield curl
    curl.delete_all()


def unix(path, **more):
    adapter = consulate.adapters.UnixSocketRequest
    return consulate.Consul(str(path), None, scheme="http+unix", adapter=adapter, **{"timeout": 10, **more})


def test_as_the_reference_writes_it(path, by_socket):
    consul = consulate.Consul(path, None, scheme="http+unix", adapter=consulate.adapters.UnixSocketRequest)
    consul.kv["a"] = "1"
    assert by_socket.get("a") == b"1"
    consul.kv.set_record("a//odd", 5, "2")
    assert (by_socket.get("a//odd"), by_socket.flags("a//odd")) == (b"2", 5)
    assert consul.kv.items() == {"a": "1", "a//odd": "2"}
    session = consul.session.create("by socket")
    assert [each["Name"] for each in consul.session.list()] == ["by socket"]
    assert consul.session.destroy(session) is True
    assert consul.status.leader().startswith("127.0.0.1:")
    consul.close()
    assert "a" in consul.kv  # a closed client connects anew
    consul.close()


def test_the_scheme_alone_is_enough(path, by_socket):
    by_socket.put("a", b"1")
    with consulate.Consul(path, None, scheme="http+unix") as consul:
        assert isinstance(consul._adapter, consulate.adapters.UnixSocketRequest)
        assert consul.kv["a"] == "1"


@pytest.mark.parametrize("name", ["with space", "100%", "%2F", "ünïcode", "a?b#c&d", "a@b:80", "[x]", "..."])
def test_paths_with_odd_characters(path, by_socket, tmp_path, name):
    by_socket.put("a", b"1")
    (tmp_path / name).mkdir()
    odd = tmp_path / name / name
    odd.symlink_to(path)
    with unix(odd) as consul:
        assert consul.kv["a"] == "1"
        assert [record.value for record in consul.kv.stream()] == [b"1"]


def test_a_blocking_query_and_its_timeout(path, by_socket):
    by_socket.put("a", b"1")
    with unix(path, timeout=0.5) as consul:
        consul.kv.get("a")
        index = consul.kv.meta.index
        assert consul.kv.get("a", index=index, wait="1500ms") == "1"  # longer than the timeout, and no timeout
        timer = threading.Timer(0.3, lambda: by_socket.put("a", b"2"))
        timer.start()
        assert consul.kv.get("a", index=index, wait="30s") == "2"
        timer.join()


def test_threads_share_it_and_large_values_pass(path, by_socket):
    values, failures = {f"k{n}": bytes([n]) * 200_000 for n in range(12)}, []
    with unix(path) as consul:

        def work(key):
            try:
                for _ in range(5):
                    consul.kv.set(key, values[key])
                    assert consul.kv.read(key).value == values[key]
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(key,)) for key in values]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert {record.key: record.value for record in consul.kv.stream()} == values == by_socket.tree()


def test_no_proxy_of_the_environment_is_asked(path, by_socket, agent, monkeypatch):
    by_socket.put("a", b"1")
    with Proxy(agent.port) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://{proxy.address}")
        with unix(path) as consul:
            assert consul.kv["a"] == "1"
        assert proxy.requests == []


def fails(path, kind, words):
    with unix(path, timeout=0.5) as consul:
        for call, what in (
            (lambda: consul.kv.get("a"), "GET /v1/kv/a"),
            (lambda: list(consul.kv.stream()), "GET /v1/kv/"),
        ):
            with pytest.raises(kind, match=words) as caught:
                call()
            assert str(caught.value).startswith(f"{what}: ")
            assert str(caught.value).count(what) == 1
            if kind is not consulate.BadAnswer:  # whose cause, a decoder's error, would carry the whole answer
                assert caught.value.__cause__ is not None


def test_sockets_that_cannot_be_reached(path, tmp_path):
    fails(tmp_path / "missing", consulate.ConnectFailed, "No such file")
    (tmp_path / "file").write_text("")
    fails(tmp_path / "file", consulate.ConnectFailed, "refused")
    fails(tmp_path, consulate.ConnectFailed, "refused")
    fails(tmp_path / "file" / "below", consulate.ConnectFailed, "Not a directory")
    fails(tmp_path / ("long" * 30), consulate.ConnectFailed, "too long")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    fails(tmp_path / "round", consulate.ConnectFailed, "symbolic links")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left"))
    fails(tmp_path / "left", consulate.ConnectFailed, "refused")


def test_a_socket_without_permission(path, tmp_path):
    own = tmp_path / "own.sock"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(own))
        listener.listen()
        own.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may do anything
        try:
            fails(own, consulate.ConnectFailed, "Permission denied")
        finally:
            os.seteuid(user)


def test_a_listener_that_does_not_answer_or_accept(tmp_path):
    silent = tmp_path / "silent"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(silent))
        listener.listen(4)
        fails(silent, consulate.AnswerTimeout, "in time")
        with contextlib.ExitStack() as held:
            while True:  # until its backlog is full: connect() says EAGAIN then
                client = held.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
                client.setblocking(False)
                try:
                    client.connect(str(silent))
                except BlockingIOError:
                    break
            fails(silent, consulate.ConnectFailed, "timed out")


def test_answers_that_are_none(tmp_path):
    path = str(tmp_path / "odd.sock")
    for answer, kind in (
        (http(b"<html>", length=100), consulate.ConnectionBroken),
        (http(b"<html>"), consulate.BadAnswer),
        (b"garbage\r\n\r\n", consulate.ConnectionBroken),
        (b"", consulate.ConnectionBroken),
    ):
        with Faulty(answer, path=path):
            fails(path, kind, "wanted" if kind is consulate.BadAnswer else "broke")
        os.unlink(path)


def test_the_agent_restarts(tmp_path):
    path = str(tmp_path / "consul.sock")
    with Agent({"addresses": {"http": f"unix://{path}"}}, reached_by=path) as own, unix(path) as consul:
        consul.kv["a"] = "1"
        own.stop()
        with pytest.raises(consulate.ConnectFailed):
            consul.kv.get("a")
        own.start()
        assert consul.kv.get("a") is None  # all was in memory
        own.stop()
        own.start()
        consul.kv.store("a", b"2", 0, 0)  # on a pooled connection whose other end is gone
        assert SocketCurl(path).get("a") == b"2"


def test_requirements_may_name_the_extra_of_consulate():
    assert "unixsocket" in metadata("consulfs").get_all("Provides-Extra")
