"""One agent a session, one mount a module, an empty store a test."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

from support.acl import MASTER, guarded_agent
from support.agent import Agent, die_with_parent
from support.curl import Curl
from support.mount import SOON_LOST, Mount
from support.proxy import Proxy
from support.sessions import destroy_session, make_session

from consulfs import consulate

# A property does not depend on how slow the machine is: under load one example has taken more than the 200 ms.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

for variable in [name for name in os.environ if name.startswith("CONSUL_")]:
    del os.environ[variable]


workers: list[Any] = []
"""Of the process that hands out the tests, where several run them."""


def interrupt(*_: object) -> None:
    """An interrupted or ended run unwinds like a failed one, so that no mount and no agent is left."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A worker may get both, from the terminal and from its controller: the second must not end the unwinding.
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


def pytest_configure(config: pytest.Config) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    if hasattr(config, "workerinput"):
        die_with_parent()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodeready(node: Any) -> None:
    workers.append(node)


def pytest_keyboard_interrupt() -> None:
    # They would be told to end after their test, and be killed ten seconds later. A mount whose Consul is gone may
    # take longer to unwind.
    for each in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each.gateway._io.popen.pid, signal.SIGTERM)
    for each in workers:
        with contextlib.suppress(each.channel.RemoteError, each.channel.TimeoutError, EOFError):
            each.channel.waitclose(60)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root: mount(8) and mount namespaces")


@pytest.fixture(scope="session")
def plain_agent() -> Iterator[Agent]:
    with Agent() as agent:
        yield agent


@pytest.fixture(scope="session")
def agent(plain_agent: Agent) -> Agent:
    """Where a module defines an agent of its own under this name, all fixtures below are on that one."""
    return plain_agent


@pytest.fixture
def curl(agent: Agent) -> Iterator[Curl]:
    """The independent client, on an empty store."""
    curl = Curl(agent.url)
    curl.delete_all()
    yield curl
    curl.delete_all()


@pytest.fixture(scope="session")
def guarded() -> Iterator[Agent]:
    """An agent with ACLs."""
    with guarded_agent() as agent:
        yield agent


@pytest.fixture
def admin(guarded: Agent) -> Curl:
    """Who may do everything there, on an empty store."""
    curl = Curl(guarded.url, MASTER)
    curl.delete_all()
    return curl


@pytest.fixture
def consul(agent: Agent, curl: Curl) -> Iterator[consulate.Consul]:
    """A client of an empty store."""
    with consulate.Consul("127.0.0.1", agent.port, timeout=30) as consul:
        yield consul


@pytest.fixture
def mnt(agent: Agent, curl: Curl) -> Iterator[Mount]:
    """A fresh mount of an empty store."""
    with Mount(agent.address) as mount:
        yield mount


@pytest.fixture
def proxy(agent: Agent) -> Iterator[Proxy]:
    with Proxy(agent.port) as proxy:
        yield proxy


@pytest.fixture
def counted(proxy: Proxy, curl: Curl) -> Iterator[Mount]:
    """A fresh mount of an empty store that talks through the proxy."""
    with Mount(proxy.address) as mount:
        yield mount


@pytest.fixture
def proxied(proxy: Proxy, curl: Curl) -> Iterator[Mount]:
    """The same, and it soon takes an answer for lost."""
    with Mount(proxy.address, SOON_LOST) as mount:
        yield mount


@pytest.fixture
def contender(curl: Curl) -> Iterator[str]:
    """The session of another client of Consul."""
    session = make_session(curl)
    yield session
    destroy_session(curl, session)
