"""The client against a real Consul, checked with curl; faults come from a proxy."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.agent import Agent, free_ports
from support.curl import Curl

from consulfs import consulate
from consulfs.consulate.models import duration, seconds


@pytest.fixture
def test_the_constructor_is_that_of_the_reference():
    import inspect

    names = list(inspect.signature(consulate.Consul).parameters)
    assert names == ["host", "port", "datacenter", "token", "scheme", "adapter", "verify", "cert", "timeout"]
    assert consulate.Session is consulate.Consul


def test_the_metadata_is_each_threads_own(consul, curl):
    curl.put("a", b"1")
    consul.kv.get("a")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(consul.kv.meta.index))
    thread.start()
    thread.join()
    assert seen == [None]
    assert consul.kv.meta.index is not None


def test_a_token_that_no_header_can_carry():
    with pytest.raises(ValueError, match="token") as caught:
        consulate.Consul(token="s3cret-one\ns3cret-two")
    assert "s3cret" not in str(caught.value)


def test_errors(agent, curl):
    with pytest.raises(consulate.ConnectFailed) as refused:
        consulate.Consul("127.0.0.1", free_ports(1)[0], timeout=2).status.leader()
    assert isinstance(refused.value, consulate.RequestError)
    assert refused.value.__cause__ is not None
    with Agent() as own:
        own.freeze()
        with pytest.raises(consulate.AnswerTimeout):
            consulate.Consul("127.0.0.1", own.port, timeout=0.5).status.leader()
    consul = consulate.Consul("127.0.0.1", agent.port, timeout=10)
    with pytest.raises(consulate.ACLDisabled):
        consul.acl.token_self()
    with pytest.raises(consulate.TooLarge):
        consul.kv.set("a", "x" * (512 * 1024 + 1))


def test_forbidden_and_where_the_token_goes():
    secret = "11111111-2222-3333-4444-666666666666"
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": secret}}}
    with Agent(config) as own:
        from support.proxy import Proxy

        with Proxy(own.port) as proxy:
            host, port = proxy.address.split(":")
            consul = consulate.Consul(host, int(port), token=secret, timeout=10)
            consul.kv["a"] = "1"
            assert secret not in repr(consul) + repr(vars(consul)) + "".join(seen.path for seen in proxy.requests)
            stranger = consulate.Consul(host, int(port), token="00000000-2222-3333-4444-666666666666", timeout=10)
            for call in (
                lambda: stranger.kv["a"],
                lambda: stranger.kv.set("a", "2"),
                lambda: stranger.kv.delete("a"),
                lambda: stranger.session.create(),
            ):
                with pytest.raises(consulate.Forbidden) as caught:
                    call()
                assert "00000000" not in str(caught.value)
        assert Curl(own.url, secret).get("a") == b"1"


def test_one_connection_serves_many_calls(agent, curl):
    """Pooled, and the environment is asked once: counted in system calls of a real process."""
    script = f"""
from consulfs import consulate
consul = consulate.Consul("127.0.0.1", {agent.port}, timeout=10)
for _ in range(300):
    consul.kv.get("a")
import os
links = [os.path.realpath("/proc/self/fd/" + name) for name in os.listdir("/proc/self/fd")]
print(sum("socket:" in link for link in links))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "1", done.stderr


def test_many_threads_share_a_client(consul, curl):
    def work(number):
        for step in range(20):
            consul.kv[f"k{number}"] = step
            assert consul.kv[f"k{number}"] == str(step)

    failures = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert set(curl.tree().values()) == {b"19"}


def test_a_proxy_of_the_environment_is_used(agent, proxy, curl):
    curl.put("a", b"1")
    script = "from consulfs import consulate; print(consulate.Consul('consul.invalid', 8500, timeout=10).kv.get('a'))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={"http_proxy": f"http://{proxy.address}", "PATH": "/usr/bin:/bin"},
    )
    assert "http://consul.invalid:8500/v1/kv/a" in [seen.path for seen in proxy.requests], done.stderr


@pytest.mark.parametrize(
    ("value", "text", "number"),
    [(10, "10s", 10), ("10", "10s", 10), ("1m", "1m", 60), ("1m30s", "1m30s", 90), ("200ms", "200ms", 0.2)],
)
def test_durations(value, text, number):
    assert duration(value) == text
    assert seconds(value) == pytest.approx(number)


@pytest.mark.parametrize("value", ["x", "1x", "s", "1m2"])
def test_what_is_no_duration(value):
    with pytest.raises(ValueError, match="not a duration"):
        seconds(value)


def test_the_consulate_command(agent, curl):
    command = [
        str(Path(sys.executable).with_name("consulate")),
        "--api-host",
        "127.0.0.1",
        "--api-port",
        str(agent.port),
    ]

    def run(*words):
        return subprocess.run([*command, *words], capture_output=True, text=True, timeout=60)

    assert run("kv", "set", "a", "text").returncode == 0
    assert curl.get("a") == b"text"
    assert run("kv", "get", "a").stdout == "text\n"
    assert run("kv", "ls").stdout == "a\n"
    assert run("kv", "rm", "a").returncode == 0
    assert curl.keys() == []
    assert run("kv", "get", "a").returncode == 1
    assert run("--version").stdout.startswith("consulate ")
    assert json.loads(curl("GET", "status/leader")[1])


def test_a_forked_process_has_connections_of_its_own(consul, curl):
    """Else each of the two would get answers to the other's requests."""
    for name in ("parent", "child"):
        curl.put(name, name.encode())
    consul.kv["parent"]  # there is an open connection now
    child = os.fork()
    me = "parent" if child else "child"
    try:
        right = all(consul.kv[me] == me for _ in range(300))
    except BaseException:
        right = False
    if not child:
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert right


@pytest.mark.parametrize("timeout", [0, -1, "5", True, float("nan")])
def test_what_is_no_timeout(timeout):
    with pytest.raises(ValueError, match="timeout"):
        consulate.Consul(timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        consulate.Consul("127.0.0.1", 1).kv.get("a", timeout=timeout)


@pytest.mark.parametrize("timeout", [None, 1e20, float("inf"), 5, 0.5])
def test_a_timeout(agent, timeout):
    with consulate.Consul("127.0.0.1", agent.port, timeout=timeout) as consul:
        assert consul.status.leader(timeout=timeout)


def test_port_zero_is_not_the_port_of_the_web():
    assert ":0/" in repr(consulate.Consul("127.0.0.1", 0))
