"""Sessions against a real Consul, checked with curl."""

import inspect
import json
import threading

import pytest
from support.agent import Agent
from support.curl import Curl
from support.waiting import until

from consulfs import consulate

NO_SESSION = "8f246b77-f3e1-ff88-5b48-8ec93abf3e05"


@pytest.fixture(scope="module")
def agent():
    """An agent with a check of its node and one of a service, and with a second node in its catalog."""
    with Agent() as agent:
        curl = Curl(agent.url)
        for path, body in [
            ("agent/service/register", {"Name": "web", "Check": {"CheckID": "web-alive", "TTL": "1h"}}),
            ("agent/check/register", {"Name": "disk", "TTL": "1h"}),
            ("catalog/register", {"Node": "other", "Address": "10.0.0.1"}),
        ]:
            assert curl("PUT", path, json.dumps(body).encode())[0] == 200
        for check in ("web-alive", "disk"):
            assert curl("PUT", f"agent/check/pass/{check}")[0] == 200
        until(lambda: b"web-alive" in curl("GET", "health/state/passing")[1])
        yield agent


@pytest.fixture
def curl(agent):
    """On an agent without sessions and keys."""
    curl = Curl(agent.url)
    yield curl
    for each in json.loads(curl("GET", "session/list")[1]):
        assert curl("PUT", f"session/destroy/{each['ID']}")[0] == 200
    curl.delete_all()


def stored(curl, session):
    found = json.loads(curl("GET", f"session/info/{session}")[1])
    return found[0] if found else None


def test_the_signature_is_that_of_the_reference():
    parameters = list(inspect.signature(consulate.api.Session.create).parameters)
    assert parameters[:7] == ["self", "name", "behavior", "node", "delay", "ttl", "checks"]


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({}, {"Name": "", "Behavior": "release", "Node": "test", "LockDelay": 15 * 10**9, "TTL": ""}),
        ({"name": "é", "behavior": "delete", "node": "test"}, {"Name": "é", "Behavior": "delete", "Node": "test"}),
        ({"node": "other", "checks": []}, {"Node": "other", "NodeChecks": []}),
        ({"delay": 0, "ttl": 30}, {"LockDelay": 0, "TTL": "30s"}),
        ({"delay": 2, "ttl": "1m"}, {"LockDelay": 2 * 10**9, "TTL": "1m"}),
        ({"delay": "1500ms", "ttl": "86400"}, {"LockDelay": 1500 * 10**6, "TTL": "86400s"}),
        ({"checks": ["disk"]}, {"Checks": ["disk"], "NodeChecks": ["serfHealth"]}),
        ({"node_checks": []}, {"NodeChecks": [], "ServiceChecks": None}),
        ({"node_checks": ["serfHealth", "disk"]}, {"NodeChecks": ["serfHealth", "disk"]}),
        (
            {"node_checks": ["disk"], "service_checks": ["web-alive"]},
            {"NodeChecks": ["disk"], "ServiceChecks": [{"ID": "web-alive", "Namespace": ""}]},
        ),
        ({"service_checks": [{"ID": "web-alive"}]}, {"ServiceChecks": [{"ID": "web-alive", "Namespace": ""}]}),
    ],
)
def test_a_session_is_created_as_it_was_asked_for(consul, curl, arguments, fields):
    session = consul.session.create(**arguments)
    found = stored(curl, session)
    assert {name: found[name] for name in fields} == fields
    assert consul.session.info(session) == found


def test_a_session_ends_with_its_service_check(consul, curl):
    session = consul.session.create(service_checks=["web-alive"])
    assert curl("PUT", "agent/check/fail/web-alive")[0] == 200
    try:
        until(lambda: not stored(curl, session))
        assert consul.session.info(session) is None
        with pytest.raises(consulate.ServerError, match="critical"):
            consul.session.create(service_checks=["web-alive"])
    finally:
        curl("PUT", "agent/check/pass/web-alive")


def test_sessions_are_listed_always_as_a_list(consul, curl):
    assert consul.session.list() == []
    here, there = consul.session.create(), consul.session.create(node="other", checks=[])
    rows = json.loads(curl("GET", "session/list")[1])
    assert consul.session.list(consistency="consistent") == rows
    assert {each["ID"] for each in rows} == {here, there}
    assert [each["ID"] for each in consul.session.node("other")] == [there]
    assert consul.session.node("nobody", stale=True) == []
    consul.session.destroy(here)
    assert [each["ID"] for each in consul.session.list()] == [there]


def test_destroying_releases_or_deletes_what_is_locked(consul, curl):
    for behavior, left in (("release", b"held"), ("delete", None)):
        session = consul.session.create(behavior=behavior, delay=0)
        assert curl("PUT", f"kv/{behavior}?acquire={session}", b"held")[1].strip() == b"true"
        assert consul.session.destroy(session) is True
        assert stored(curl, session) is None
        assert curl.get(behavior) == left
    assert "Session" not in curl.record("release")
    assert consul.session.destroy(NO_SESSION) is True


def test_renewing(consul, curl):
    session = consul.session.create(ttl=10, name="mine")
    assert consul.session.renew(session) == stored(curl, session)
    with pytest.raises(consulate.UnknownSession):
        consul.session.renew(NO_SESSION)


@pytest.mark.parametrize("way", ["info", "list", "node"])
def test_a_blocking_query_sees_the_end_of_a_session(consul, curl, way):
    session = consul.session.create()
    method = getattr(consul.session, way)
    arguments = {"info": [session], "list": [], "node": ["test"]}[way]
    assert method(*arguments)
    index = consul.session.meta.index
    threading.Timer(0.3, lambda: curl("PUT", f"session/destroy/{session}")).start()
    assert not method(*arguments, index=index, wait="30s")


def test_what_cannot_be_created(consul, curl):
    for wrong in ({"node_checks": []}, {"service_checks": ["web-alive"]}):
        with pytest.raises(ValueError, match="checks"):
            consul.session.create(checks=["serfHealth"], **wrong)
    for wrong, words in [
        ({"behavior": "explode"}, "Invalid Behavior"),
        ({"ttl": 5}, "Invalid Session TTL"),
        ({"node": "nobody"}, "Missing node"),
        ({"node_checks": ["none"]}, "Missing check 'none'"),
        ({"service_checks": ["none"]}, "Missing check 'none'"),
    ]:
        with pytest.raises((consulate.ServerError, consulate.ClientError), match=words):
            consul.session.create(**wrong)
    with pytest.raises(ValueError, match="cannot be a name"):
        consul.session.info("")
    assert consul.session.info("no-id") is None
    for call in (consul.session.renew, consul.session.destroy):
        with pytest.raises(consulate.UnknownSession, match="UUID"):
            call("no-id")
    assert json.loads(curl("GET", "session/list")[1]) == []


def test_strangers_are_refused():
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": NO_SESSION}}}
    with Agent(config) as agent:
        session = consulate.Consul("127.0.0.1", agent.port, token=NO_SESSION, timeout=10).session.create(ttl=10)
        stranger = consulate.Consul("127.0.0.1", agent.port, timeout=10).session
        for call in (stranger.create, lambda: stranger.renew(session), lambda: stranger.destroy(session)):
            with pytest.raises(consulate.Forbidden):
                call()
        assert (stranger.list(), stranger.node("test"), stranger.info(session)) == ([], [], None)
        assert stored(Curl(agent.url, NO_SESSION), session)
