"""What programs written for consulate 0.7.0 do: its documented examples, import paths and signatures."""

import importlib
import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.agent import Agent
from support.curl import Curl

from consulfs import consulate

# As the documents have them but for two misprints (`values` is called, `self.session` is `session`) and print().
EXAMPLES = """
import consulate

# An instance for the local agent, and all of its service checks
session = consulate.Consul()
checks = session.agent.checks()
print('checks', checks)

# With a token
session = consulate.Consul(token='5d24c96b4f6a4aefb99602ce9b60d16b')
session.kv['release_flag'] = True

# The old name of the class
session = consulate.Session()
session.kv['release_flag'] = True
try:
    should_release_feature = session.kv['release_flag']
except AttributeError:
    should_release_feature = False
print('release', should_release_feature)
del session.kv['release_flag']
try:
    should_release_feature = session.kv['release_flag']
except AttributeError:
    should_release_feature = False
print('release', should_release_feature)

session.kv['flag'] = 1
session.kv['foo'] = 'bar'
session.kv['bar'] = 'baz'
session.kv['baz'] = 'qux'
session.kv.set_record('corgie', 128, 'dog')
print(len(session.kv))
for key in session.kv:
    print('Key "{0}" set'.format(key))
for key, value in session.kv.iteritems():
    print('{0}: {1}'.format(key, value))
for value in session.kv.values():
    print(value)
for key in session.kv.find('fl'):
    print('Key "{0}" found'.format(key))
if "foo" in session.kv:
    print('Already Set')
print(session.kv.items())
print(session.kv.find('b'))
print(session.kv.keys())
print(session.kv.records())

consul = consulate.Consul()
with consul.lock.acquire('my-key'):
    print('Locked: {}'.format(consul.lock.key))

consul.catalog.register(
    'foobar', '10.1.10.12',
    service={'ID': 'redis1', 'Service': 'redis', 'Tags': ['master', 'v1'], 'Port': 8000},
    check={
        'Node': 'foobar',
        'CheckID': 'service:redis1',
        'Name': 'Redis health check',
        'Notes': 'Script based health check',
        'Status': 'passing',
        'ServiceID': 'redis1'
    })
print(consul.catalog.node('foobar')['Services']['redis1']['Tags'])
print(consul.health.checks('redis')[0]['Status'])
"""

PRINTED = """
checks []
release true
release False
5
Key "bar" set
Key "baz" set
Key "corgie" set
Key "flag" set
Key "foo" set
bar: baz
baz: qux
corgie: dog
flag: 1
foo: bar
baz
qux
dog
1
bar
Key "flag" found
Already Set
{'bar': 'baz', 'baz': 'qux', 'corgie': 'dog', 'flag': '1', 'foo': 'bar'}
{'bar': 'baz', 'baz': 'qux'}
['bar', 'baz', 'corgie', 'flag', 'foo']
[('bar', 0, 'baz'), ('baz', 0, 'qux'), ('corgie', 128, 'dog'), ('flag', 0, '1'), ('foo', 0, 'bar')]
Locked: consulate/locks/my-key
['master', 'v1']
passing
"""


def run(script: str, folder: Path) -> str:
    """In a network namespace of its own with an agent on 8500, as the examples want it."""
    program = folder / "example.py"
    program.write_text(script)
    here = Path(__file__).parent
    launcher = f"""
        import subprocess, sys
        sys.path.insert(0, {str(here)!r})
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        from support.agent import Agent
        agent = Agent()
        agent.port = 8500
        with agent:
            sys.exit(subprocess.run([sys.executable, {str(program)!r}]).returncode)
    """
    (folder / "launch.py").write_text(textwrap.dedent(launcher))
    command = ["unshare", "--net", "--map-root-user", sys.executable, str(folder / "launch.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_examples_of_the_reference_run_unchanged(tmp_path):
    script = EXAMPLES.replace("import consulate", "from consulfs import consulate")
    assert run(script, tmp_path).strip() == PRINTED.strip()


def test_a_unix_socket_as_the_reference_writes_it(tmp_path):
    path = f"{tmp_path}/consul.sock"
    with Agent({"addresses": {"http": f"unix://{path}"}}, reached_by=path):
        consul = consulate.Consul(path, None, scheme="http+unix", adapter=consulate.adapters.UnixSocketRequest)
        assert consul.agent.services() == []
        consul.kv["a"] = "1"
        ask = ["curl", "-s", "--unix-socket", path, "http://localhost/v1/kv/a?raw"]
        assert subprocess.run(ask, capture_output=True).stdout == b"1"


SIGNATURES = {
    "ACL.clone": ["acl_id"],
    "ACL.create": ["name", ("acl_type", "client"), ("rules", None)],
    "ACL.destroy": ["acl_id"],
    "ACL.info": ["acl_id"],
    "ACL.list": [],
    "ACL.update": ["acl_id", "name", ("acl_type", "client"), ("rules", None)],
    "Agent.checks": [],
    "Agent.force_leave": ["node"],
    "Agent.join": ["address", ("wan", False)],
    "Agent.members": [],
    "Agent.services": [],
    "Agent.Check.deregister": ["check_id"],
    "Agent.Check.register": [
        "name", ("script", None), ("check_id", None), ("interval", None), ("ttl", None), ("notes", None),
        ("http", None),
    ],
    "Agent.Check.ttl_fail": ["check_id"],
    "Agent.Check.ttl_pass": ["check_id"],
    "Agent.Check.ttl_warn": ["check_id"],
    "Agent.Service.deregister": ["service_id"],
    "Agent.Service.register": [
        "name", ("service_id", None), ("address", None), ("port", None), ("tags", None), ("check", None),
        ("interval", None), ("ttl", None), ("httpcheck", None),
    ],
    "Catalog.datacenters": [],
    "Catalog.deregister": ["node", ("datacenter", None), ("check_id", None), ("service_id", None)],
    "Catalog.node": ["node_id"],
    "Catalog.nodes": [],
    "Catalog.register": ["node", "address", ("datacenter", None), ("service", None), ("check", None)],
    "Catalog.service": ["service_id"],
    "Catalog.services": [],
    "Event.fire": ["name", ("payload", None), ("datacenter", None), ("node", None), ("service", None), ("tag", None)],
    "Event.list": [("name", None)],
    "Health.checks": ["service_id"],
    "Health.node": ["node_id"],
    "Health.service": ["service_id", ("tag", None), ("passing", None)],
    "Health.state": ["state"],
    "KV.acquire_lock": ["item", "session", ("value", None), ("cas", None), ("flags", None)],
    "KV.delete": ["item", ("recurse", False)],
    "KV.find": ["prefix", ("separator", None)],
    "KV.get": ["item", ("default", None), ("raw", False)],
    "KV.get_record": ["item"],
    "KV.items": [],
    "KV.iteritems": [],
    "KV.keys": [],
    "KV.records": [("key", None)],
    "KV.release_lock": ["item", "session"],
    "KV.set": ["item", "value"],
    "KV.set_record": ["item", ("flags", 0), ("value", None), ("replace", True)],
    "KV.values": [],
    "Lock.acquire": [("key", None), ("value", None)],
    "Lock.prefix": ["value"],
    "Session.create": [
        ("name", None), ("behavior", "release"), ("node", None), ("delay", None), ("ttl", None), ("checks", None),
    ],
    "Session.destroy": ["session_id"],
    "Session.info": ["session_id"],
    "Session.list": [],
    "Session.node": ["node"],
    "Session.renew": ["session_id"],
    "Status.leader": [],
    "Status.peers": [],
}  # fmt: skip
"""Every method of the reference with its positional parameters and their defaults."""


def found(name: str):
    thing = consulate.api
    for part in name.split("."):
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signatures_of_the_reference(name):
    parameters = [
        each.name if each.default is each.empty else (each.name, each.default)
        for each in list(inspect.signature(found(name)).parameters.values())[1:]
        if each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    known = len(SIGNATURES[name])
    assert parameters[:known] == SIGNATURES[name]
    assert all(isinstance(each, tuple) for each in parameters[known:]), "what is new has a default"


@pytest.mark.parametrize("name", ["ACL", "Agent", "Catalog", "Event", "Health", "KV", "Session", "Status"])
def test_the_classes_are_where_the_reference_has_them_and_built_alike(name, agent):
    module = importlib.import_module(f"consulfs.consulate.api.{name.lower()}")
    adapter = consulate.adapters.Request()
    made = getattr(module, name)(f"http://{agent.address}/v1", adapter, None, None)
    assert isinstance(made, type(getattr(consulate.Consul(), name.lower())))
    adapter.close()


def test_the_third_argument_of_the_catalog_has_two_names(agent):
    adapter = consulate.adapters.Request()
    uri = f"http://{agent.address}/v1"
    for made in (consulate.api.Catalog(uri, adapter, dc="dc1"), consulate.api.Catalog(uri, adapter, datacenter="dc1")):
        assert made.datacenters() == ["dc1"]


def test_the_exceptions_stand_at_package_level_and_in_their_module():
    for name in ("ConsulateException", "ClientError", "ServerError", "Forbidden", "NotFound", "RequestError",
                 "ACLDisabled", "LockFailure"):  # fmt: skip
        assert getattr(consulate, name) is getattr(consulate.exceptions, name)
        assert issubclass(getattr(consulate, name), consulate.exceptions.ConsulateException)
    assert consulate.exceptions.LockError is consulate.LockFailure


def test_an_adapter_of_ones_own(agent, curl):
    """The reference's `adapter` is a class whose methods may be overridden."""
    seen = []

    class Mine(consulate.adapters.Request):
        def get(self, uri, timeout=None):
            seen.append(uri)
            return super().get(uri, timeout=timeout)

    with consulate.Consul("127.0.0.1", agent.port, adapter=Mine) as consul:
        consul.kv["a"] = "1"
        assert consul.kv["a"] == "1"
    assert Curl(agent.url).get("a") == b"1"
    assert all(uri == f"http://{agent.address}/v1/kv/a" for uri in seen)
    assert len(seen) == 2
