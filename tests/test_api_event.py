"""User events against a real Consul, checked with curl."""

import base64
import json
import threading

import pytest
from support.agent import Agent
from support.curl import Curl

from consulfs import consulate


@pytest.fixture(scope="module")
def agent():
    with Agent() as agent:
        yield agent


@pytest.fixture
def seen(agent):
    """The events of a name, by curl, as soon as there are any."""

    def ask(name):
        curl = Curl(agent.url)
        for _ in range(100):
            status, text = curl("GET", f"event/list?name={name}")
            assert status == 200
            if json.loads(text):
                return json.loads(text)
            threading.Event().wait(0.1)
        return []

    return ask


@pytest.mark.parametrize(
    ("payload", "stored"), [("é", "é".encode()), (b"\xff\x00", b"\xff\x00"), (None, None), ('{"a": 1}', b'{"a": 1}')]
)
def test_an_event_carries_its_payload_as_it_is(consul, seen, payload, stored):
    name = f"payload-{(stored or b'').hex()}"
    event_id = consul.event.fire(name, payload)
    (event,) = seen(name)
    assert event["ID"] == event_id
    assert (None if event["Payload"] is None else base64.b64decode(event["Payload"])) == stored
    assert consul.event.list(name) == [event]


def test_filters_travel_with_the_event_and_decide_who_takes_it(consul, agent, seen):
    curl = Curl(agent.url)
    service = json.dumps({"Name": "web", "Tags": ["v1"]}).encode()
    assert curl("PUT", "agent/service/register", service)[0] == 200
    try:
        taken = consul.event.fire("filtered", "x", node="te.t", service="^web$", tag="v[12]")
        (event,) = seen("filtered")
        assert (event["ID"], event["NodeFilter"], event["ServiceFilter"], event["TagFilter"]) == (
            taken, "te.t", "^web$", "v[12]",
        )  # fmt: skip
        consul.event.fire("filtered", "y", node="other")
        consul.event.fire("filtered", "y", service="web", tag="v3")
        last = consul.event.fire("filtered", "z", service="web")
        for _ in range(100):
            events = consul.event.list("filtered")
            if events[-1]["ID"] == last:
                break
            threading.Event().wait(0.1)
        assert [each["ID"] for each in events] == [taken, last]
    finally:
        curl("PUT", "agent/service/deregister/web")


def test_a_tag_needs_a_service(consul):
    with pytest.raises(ValueError, match="service"):
        consul.event.fire("never", tag="v1")
    assert consul.event.list("never") == []


def test_a_list_is_a_list_whatever_is_in_it(consul, seen):
    """The filters by node, service and tag are asked for; 1.8.7 leaves all events in."""
    consul.event.fire("odd name/of it")
    (event,) = seen("odd%20name/of%20it")
    assert consul.event.list("nothing of that name") == []
    assert event in consul.event.list()
    assert consul.event.list("odd name/of it", node="nobody", service="none", tag="none") == [event]


def test_a_list_waits_for_the_next_event(consul, agent):
    consul.event.fire("first")
    consul.event.list("waited-for")
    index = consul.event.meta.index
    threading.Timer(0.3, lambda: Curl(agent.url)("PUT", "event/fire/waited-for", b"now")).start()
    (event,) = consul.event.list("waited-for", index=index, wait="30s")
    assert base64.b64decode(event["Payload"]) == b"now"
    assert consul.event.meta.index != index
    assert consul.event.list("waited-for", index=consul.event.meta.index, wait="100ms") == [event]


def test_the_datacenter_of_the_call_comes_before_the_clients(agent, seen):
    with consulate.Consul("127.0.0.1", agent.port, datacenter="nowhere", timeout=10) as consul:
        event_id = consul.event.fire("here", datacenter="dc1")
        assert [each["ID"] for each in seen("here")] == [event_id]
        with pytest.raises(consulate.ServerError, match="No path to datacenter"):
            consul.event.fire("there")
    with pytest.raises(consulate.ServerError, match="No path to datacenter"):
        consulate.Consul("127.0.0.1", agent.port, timeout=10).event.fire("there", datacenter="nowhere")


def test_too_much_for_gossip(consul):
    with pytest.raises(consulate.ServerError, match="512 bytes"):
        consul.event.fire("large", "x" * 600)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_no_event_of_such_a_name(consul, name):
    with pytest.raises(ValueError, match="cannot be a name"):
        consul.event.fire(name)


def test_strangers_are_refused():
    master = "11111111-2222-3333-4444-666666666666"
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": master}}}
    with Agent(config) as agent:
        stranger = consulate.Consul("127.0.0.1", agent.port, timeout=10)
        with pytest.raises(consulate.Forbidden):
            stranger.event.fire("deploy")
        owner = consulate.Consul("127.0.0.1", agent.port, token=master, timeout=10)
        event_id = owner.event.fire("deploy")
        for _ in range(100):
            if owner.event.list("deploy"):
                break
            threading.Event().wait(0.1)
        assert [each["ID"] for each in owner.event.list("deploy")] == [event_id]
        assert stranger.event.list() == []
