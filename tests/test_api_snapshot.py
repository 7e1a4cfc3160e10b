"""Snapshots of a real Consul, checked with curl and `consul snapshot`; broken answers come from a proxy or a socket."""

import gc
import gzip
import io
import os
import random
import shutil
import socket
import subprocess
import threading
import tracemalloc

import pytest
from support.agent import Agent, consul_command
from support.curl import Curl
from support.proxy import Proxy
from support.server import Server
from support.waiting import until

from consulfs import consulate
from consulfs.consulate.adapters import MAX_CONNECTIONS
from consulfs.consulate.api.snapshot import Archive

MASTER = "11111111-2222-3333-4444-666666666666"
LARGE = 1 << 19
MANY = 80  # of LARGE: 40 MiB


@pytest.fixture(scope="module")
def agent():
    with Agent() as agent:
        yield agent


def inspect(path):
    command = [consul_command(), "snapshot", "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)


def test_a_snapshot_is_saved_and_restored(consul, curl, tmp_path):
    curl.put("a", b"1", 7)
    path = tmp_path / "state.snap"
    size = consul.snapshot.save_to(path)
    assert consul.snapshot.meta.index == int(inspect(path)["Index"])
    assert (os.listdir(tmp_path), path.stat().st_size) == (["state.snap"], size)
    assert path.stat().st_mode & 0o777 == 0o600
    curl.put("b", b"2")
    curl.delete("a")
    assert consul.snapshot.restore(path) is True
    assert (curl.tree(), curl.flags("a")) == ({"a": b"1"}, 7)


@pytest.mark.parametrize("kind", ["bytes", "str", "file"])
def test_what_is_restored_may_be(consul, curl, tmp_path, kind):
    curl.put("a", b"1")
    path = tmp_path / "by-consul.snap"
    command = [consul_command(), "snapshot", "save", f"-http-addr={curl.url[:-3]}", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    curl.delete_all()
    with open(path, "rb") as file:
        source = {"bytes": path.read_bytes(), "str": str(path), "file": file}[kind]
        assert consul.snapshot.restore(source, dc="dc1", timeout=30) is True
    assert curl.tree() == {"a": b"1"}


def test_a_stream_is_read_in_pieces_of_any_size_and_consul_takes_them(agent, consul, curl, tmp_path):
    curl.put("a", b"1")
    with consul.snapshot.save() as archive:
        one = archive.read(10)
        pieces = [one, *iter(lambda: archive.read(1000), b"")]
    assert len(one) == 10
    assert all(len(piece) == 1000 for piece in pieces[1:-1])
    with consul.snapshot.save(stale=True, dc="dc1", timeout=10) as archive:
        whole = b"".join(archive)
    with consul.snapshot.save() as archive:
        assert archive.read(0) == b""
        at_once = archive.read()
        assert archive.read() == b""
    file = io.BytesIO()
    with consul.snapshot.save() as archive:
        shutil.copyfileobj(archive, file)
    written = io.BytesIO()
    assert consul.snapshot.save_to(written) == len(written.getvalue())
    for number, content in enumerate((b"".join(pieces), whole, at_once, file.getvalue(), written.getvalue())):
        (tmp_path / f"{number}").write_bytes(content)
        assert inspect(tmp_path / f"{number}")


def test_an_unread_stream_lets_its_connection_go(agent, consul, curl):
    for _ in range(5):
        with consul.snapshot.save() as archive:
            archive.read(1)
        archive.close()
    assert consul.status.leader()


def leave(stream):
    pass


def read_all(stream):
    stream.read() if hasattr(stream, "read") else list(stream)


def read_pieces(stream):
    while isinstance(stream, Archive) and stream.read(1000):
        pass


def iterate(stream):
    for _ in stream:
        pass


def begin(stream):
    next(iter(stream))


class Ring:
    """Something that only the garbage collector can remove."""

    def __init__(self, stream):
        self.stream, self.itself = stream, self


@pytest.mark.parametrize("use", [leave, read_all, read_pieces, iterate, begin, Ring])
@pytest.mark.parametrize("kind", ["snapshot", "kv"])
def test_a_stream_that_is_read_or_dropped_lets_its_connection_go(agent, curl, kind, use):
    for number in range(20):
        curl.put(f"a/{number}", b"x" * 5000)
    ask = {"snapshot": lambda: consul.snapshot.save(), "kv": lambda: consul.kv.stream("a")}[kind]
    with consulate.Consul("127.0.0.1", agent.port, timeout=10) as consul:
        for _ in range(MAX_CONNECTIONS + 20):
            use(ask())
            if use is Ring:
                gc.collect(0)
        assert consul.status.leader()
    with consulate.Consul("127.0.0.1", agent.port, timeout=10) as consul:
        kept = []
        for _ in range(MAX_CONNECTIONS + 20):
            kept.append(ask())  # read to the end, and neither closed nor dropped
            iterate(kept[-1])
        assert consul.status.leader()


def test_what_is_left_may_be_read_after_an_iteration_and_the_end_comes_again(agent, consul, curl):
    whole = consul.snapshot.save().read()
    with Proxy(agent.port) as proxy:
        host, port = proxy.address.split(":")
        asked = consulate.Consul(host, int(port), timeout=10)
        proxy.fault = lambda seen: (200, whole)
        archive = asked.snapshot.save()
        first = next(iter(archive))
        assert first + archive.read() == whole
        assert archive.read() == archive.read(5) == b""


def test_a_page_is_no_success_of_a_restore(agent, curl):
    with Proxy(agent.port) as proxy:
        host, port = proxy.address.split(":")
        consul = consulate.Consul(host, int(port), timeout=10)
        proxy.fault = lambda seen: (200, b"<html>welcome</html>")
        with pytest.raises(consulate.BadAnswer, match="PUT /v1/snapshot: wanted JSON"):
            consul.snapshot.restore(b"x")


def test_options_are_in_the_uri(agent, curl):
    with Proxy(agent.port) as proxy:
        host, port = proxy.address.split(":")
        consul = consulate.Consul(host, int(port), datacenter="dc1", token="anonymous", timeout=10)
        consul.snapshot.save_to(io.BytesIO(), stale=True)
        consul.snapshot.save_to(io.BytesIO())
        with pytest.raises(consulate.ServerError, match="No path to datacenter"):
            consul.snapshot.save(dc="other")
        with pytest.raises(consulate.ServerError, match="No path to datacenter"):
            consul.snapshot.restore(b"x", dc="other")
        assert [seen.path for seen in proxy.requests] == [
            "/v1/snapshot?dc=dc1&stale=", "/v1/snapshot?dc=dc1", "/v1/snapshot?dc=other", "/v1/snapshot?dc=other",
        ]  # fmt: skip


# -- what goes wrong -----------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path):
    """A snapshot that is there already."""
    path = tmp_path / "state.snap"
    path.write_bytes(b"the one before")
    yield path
    assert path.read_bytes() == b"the one before"
    assert os.listdir(tmp_path) == ["state.snap"]


def test_an_answer_that_is_cut_half_way_leaves_no_file(agent, curl, old):
    assert curl("PUT", "kv/a", random.Random(1).randbytes(LARGE))[0] == 200
    with Proxy(agent.port) as proxy:
        host, port = proxy.address.split(":")
        consul = consulate.Consul(host, int(port), timeout=10)
        proxy.fault = lambda seen: "half"
        with pytest.raises(consulate.ConnectionBroken):
            consul.snapshot.save_to(old)
        with pytest.raises(consulate.ConnectionBroken):
            consul.snapshot.save_to(old.with_name("new.snap"))
        with pytest.raises(consulate.ConnectionBroken), consul.snapshot.save() as archive:
            while archive.read(4096):
                pass
        proxy.fault = lambda seen: "cut"
        with pytest.raises(consulate.ConnectionBroken, match="GET /v1/snapshot"):
            consul.snapshot.save_to(old)


def test_chunks_that_end_before_their_end(agent, curl, old):
    """As Consul sends them itself: without a length that could be missed."""
    with consulate.Consul("127.0.0.1", agent.port, timeout=10) as consul:
        whole = consul.snapshot.save().read()
    chunk = b"%x\r\n%s\r\n" % (len(whole) // 2, whole[: len(whole) // 2])
    for rest in (b"", b"ff\r\nhalf a chunk"):
        with Speaker(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + rest) as port:
            consul = consulate.Consul("127.0.0.1", port, timeout=10)
            with pytest.raises(consulate.ConnectionBroken):
                consul.snapshot.save_to(old)
        with Speaker(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + rest) as port:
            archive = consulate.Consul("127.0.0.1", port, timeout=10).snapshot.save()
            with pytest.raises(consulate.ConnectionBroken), archive:
                while archive.read(100):
                    pass


class Speaker:
    """Says one thing to the first who asks, and hangs up."""

    def __init__(self, words: bytes) -> None:
        self.words = words

    def __enter__(self) -> int:
        self.server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.speak, daemon=True).start()
        return self.server.getsockname()[1]

    def speak(self) -> None:
        connection, _ = self.server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(self.words)

    def __exit__(self, *_: object) -> None:
        self.server.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda whole: whole[: len(whole) // 2], "before it was whole"),
        (lambda whole: whole[:-1], "before it was whole"),
        (lambda whole: b"", "before it was whole"),
        (lambda whole: whole[: len(whole) // 2] + b"Failed to read state", "no snapshot|before it was whole"),
        (lambda whole: whole + b"Failed to read state", "after the snapshot's end"),
        (lambda whole: whole[:-6] + b"\0" + whole[-5:], "no snapshot"),
        (lambda whole: b"<html>a proxy's page</html>", "no snapshot"),
    ],
    ids=["half", "a-byte-short", "nothing", "words-inside", "words-after", "checksum", "page"],
)
def test_a_whole_answer_with_no_whole_archive_leaves_no_file(agent, curl, old, change, words):
    with consulate.Consul("127.0.0.1", agent.port, timeout=10) as consul:
        whole = consul.snapshot.save().read()
    with Proxy(agent.port) as proxy:
        host, port = proxy.address.split(":")
        consul = consulate.Consul(host, int(port), timeout=10)
        proxy.fault = lambda seen: (200, change(whole))
        with pytest.raises(consulate.BadAnswer, match=words):
            consul.snapshot.save_to(old)
        with pytest.raises(consulate.BadAnswer, match=words), consul.snapshot.save() as archive:
            archive.read()
        with pytest.raises(consulate.BadAnswer, match=words), consul.snapshot.save() as archive:
            while archive.read(64):
                pass


def test_a_disk_that_takes_no_more_leaves_no_file(consul, curl, old):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        consul.snapshot.save_to(Full())
    with pytest.raises(FileNotFoundError):
        consul.snapshot.save_to(old.parent / "no" / "folder")
    assert consul.status.leader()


def test_a_link_stays_a_link(consul, curl, tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    consul.snapshot.save_to(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert inspect(tmp_path / "real")


def test_a_fifo_is_written_as_it_is(consul, curl, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["cat", str(tmp_path / "fifo")], stdout=subprocess.PIPE) as reader:
        thread = threading.Thread(target=lambda: (tmp_path / "read").write_bytes(reader.stdout.read()))
        thread.start()
        size = consul.snapshot.save_to(tmp_path / "fifo")
        thread.join()
    assert (tmp_path / "fifo").is_fifo()
    assert (tmp_path / "read").stat().st_size == size
    assert inspect(tmp_path / "read")
    assert consul.snapshot.save_to("/dev/null") > 0
    assert not os.path.isfile("/dev/null")


def test_a_name_may_be_long_and_errors_name_it(consul, curl, tmp_path):
    path = tmp_path / ("x" * 255)
    path.write_bytes(b"old")
    path.chmod(0o644)
    assert consul.snapshot.save_to(path) == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    for wrong in (tmp_path / "nowhere" / "a", tmp_path, path / "a", tmp_path / ("x" * 256)):
        with pytest.raises(OSError) as error:
            consul.snapshot.save_to(wrong)
        assert error.value.filename == str(wrong)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        consul.snapshot.save_to(tmp_path / "loop")
    assert (tmp_path / "loop").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["loop", path.name]


@pytest.mark.parametrize(
    ("junk", "words"),
    [
        (b"no snapshot", "failed to decompress snapshot"),
        (gzip.compress(b"no tar"), "failed to read snapshot|snapshot"),
        (random.Random(2).randbytes(8 << 20), "failed to decompress snapshot"),
    ],
    ids=["text", "gzip", "large"],
)
def test_what_is_no_snapshot_is_refused_and_changes_nothing(consul, curl, tmp_path, junk, words):
    curl.put("a", b"1")
    (tmp_path / "junk").write_bytes(junk)
    for source in (junk, tmp_path / "junk"):
        with pytest.raises(consulate.ServerError, match=words):
            consul.snapshot.restore(source)
    assert curl.tree() == {"a": b"1"}


def test_without_a_leader_only_a_stale_snapshot_is_to_be_had(tmp_path):
    with Agent() as leader, Server(joins=[leader.serf]) as second:
        Curl(leader.url).put("a", b"1")
        until(lambda: Curl(second.url)("GET", "kv/a?stale&raw")[1] == b"1")
        leader.stop()
        consul = consulate.Consul("127.0.0.1", second.port, timeout=30)
        with pytest.raises((consulate.ServerError, consulate.RequestError)):
            consul.snapshot.save_to(tmp_path / "none.snap")
        assert consul.snapshot.save_to(tmp_path / "stale.snap", stale=True)
        assert os.listdir(tmp_path) == ["stale.snap"]
        with Agent() as other:
            assert consulate.Consul("127.0.0.1", other.port, timeout=30).snapshot.restore(tmp_path / "stale.snap")
            assert Curl(other.url).tree() == {"a": b"1"}


def test_files_that_cannot_be_restored(consul, curl, tmp_path):
    (tmp_path / "text").write_text("text")
    with open(tmp_path / "text") as text, pytest.raises(ValueError, match="binary"):
        consul.snapshot.restore(text)
    with pytest.raises(FileNotFoundError):
        consul.snapshot.restore(tmp_path / "none")


def test_strangers_are_refused(tmp_path):
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER}}}
    with Agent(config) as agent:
        stranger = consulate.Consul("127.0.0.1", agent.port, timeout=10)
        with pytest.raises(consulate.Forbidden):
            stranger.snapshot.save_to(tmp_path / "state.snap")
        with pytest.raises(consulate.Forbidden):
            stranger.snapshot.restore(b"x")
        assert os.listdir(tmp_path) == []
        assert consulate.Consul("127.0.0.1", agent.port, token=MASTER).snapshot.save_to(tmp_path / "state.snap")
        assert inspect(tmp_path / "state.snap")


def test_a_large_store_takes_little_memory(consul, curl, tmp_path):
    """Saved and restored piece by piece: a fraction of what the store holds."""
    source = random.Random(3)
    for number in range(MANY):
        assert curl("PUT", f"kv/large/{number}", source.randbytes(LARGE))[0] == 200
    path = tmp_path / "large.snap"
    tracemalloc.start()
    try:
        size = consul.snapshot.save_to(path)
        assert size == path.stat().st_size > MANY * LARGE
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        curl.delete_all()
        tracemalloc.reset_peak()
        consul.snapshot.restore(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert len(curl.keys()) == MANY
