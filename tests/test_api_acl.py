"""Access control against a real Consul with ACLs, checked with curl and with the consul command."""

import base64
import json
import logging
import os
import subprocess
import threading
import traceback

import pytest
from support.agent import Agent, consul_command
from support.curl import Curl
from support.proxy import Proxy

from consulfs import consulate
from consulfs.consulate.api.acl import ACL

MASTER = "11111111-2222-3333-4444-555555555555"
UNKNOWN = "99999999-2222-3333-4444-555555555555"
ANONYMOUS = "00000000-0000-0000-0000-000000000002"
GLOBAL = "00000000-0000-0000-0000-000000000001"
OLD_RULES = 'key "a" {\n  policy = "read"\n}'
NEW_RULES = 'key_prefix "a" {\n  policy = "read"\n}'
FIRM = {"enabled": True, "default_policy": "deny"}


@pytest.fixture(scope="module")
def guarded():
    with Agent({"acl": {**FIRM, "tokens": {"master": MASTER}}}) as agent:
        yield agent


@pytest.fixture
def admin(guarded):
    """The independent client; afterwards nothing is left but what Consul has itself."""
    curl = Curl(guarded.url, MASTER)
    yield curl
    for method in ask(curl, "acl/auth-methods"):
        assert curl("DELETE", f"acl/auth-method/{method['Name']}")[0] == 200
    for row in ask(curl, "acl/list"):
        if row["ID"] not in (MASTER, "anonymous"):
            assert curl("PUT", f"acl/destroy/{row['ID']}")[0] == 200
    own = ask(curl, "acl/token/self")["AccessorID"]
    for kind, plural, key in (("token", "tokens", "AccessorID"), ("role", "roles", "ID"), ("policy", "policies", "ID")):
        for row in ask(curl, f"acl/{plural}"):
            if row[key] not in (own, ANONYMOUS, GLOBAL):
                assert curl("DELETE", f"acl/{kind}/{row[key]}")[0] == 200


@pytest.fixture
def consul(guarded, admin):
    with client(guarded) as consul:
        yield consul


def client(agent, token=MASTER, **options):
    host, port = agent.address.split(":")
    return consulate.Consul(host, int(port), token=token, timeout=20, **options)


def ask(curl, path):
    status, text = curl("GET", path)
    assert status == 200, (path, text)
    return json.loads(text)


def cli(agent, *words):
    """What the consul command says, as JSON."""
    done = subprocess.run(
        [consul_command(), "acl", *words, "-format=json"],
        env={"CONSUL_HTTP_ADDR": agent.address, "CONSUL_HTTP_TOKEN": MASTER, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def names(links):
    return [each["Name"] for each in links]


# -- legacy --------------------------------------------------------------------------------------------------


def test_the_legacy_calls_are_those_of_the_reference(consul, admin):
    acl_id = consul.acl.create("first", rules=OLD_RULES)
    shown = ask(admin, f"acl/info/{acl_id}")[0]
    assert (shown["Name"], shown["Type"], shown["Rules"]) == ("first", "client", OLD_RULES)
    assert consul.acl.info(acl_id) == shown
    assert consul.acl.list() == ask(admin, "acl/list")
    assert consul.acl.meta.index is not None

    copied = consul.acl.clone(acl_id)
    assert copied != acl_id
    twin = ask(admin, f"acl/info/{copied}")[0]
    assert (twin["Name"], twin["Type"], twin["Rules"]) == ("first", "client", OLD_RULES)

    assert consul.acl.update(copied, "second", "management") is True
    changed = ask(admin, f"acl/info/{copied}")[0]
    assert (changed["Name"], changed["Type"], changed["Rules"]) == ("second", "management", "")
    assert consul.acl.update("of-my-own", "third", rules=OLD_RULES) is True
    assert ask(admin, "acl/info/of-my-own")[0]["Rules"] == OLD_RULES

    for each in (acl_id, copied, "of-my-own"):
        assert consul.acl.destroy(each) is True
        assert ask(admin, f"acl/info/{each}") == []
        with pytest.raises(consulate.NotFound, match=r"^GET /v1/acl/list: there is no such ACL"):
            consul.acl.info(each)
        with pytest.raises(consulate.NotFound, match=r"^GET /v1/acl/list: there is no such ACL"):
            consul.acl.clone(each)
        with pytest.raises(consulate.NotFound, match=r"^GET /v1/acl/token/self: there is no such ACL"):
            consul.acl.destroy(each)


def test_a_legacy_acl_is_shown_to_whoever_knows_it(guarded, consul, admin):
    """Without the right to the list it is the same, however it is made."""
    made = [
        consul.acl.create("client", rules=OLD_RULES),
        consul.acl.create("without rules"),
        consul.acl.create("management", "management"),
    ]
    assert consul.acl.update("of-my-own", "named") is True
    role = consul.acl.roles.create("r")["Name"]
    modern = [
        consul.acl.tokens.create(description="x")["SecretID"],
        consul.acl.tokens.create(roles=[role])["SecretID"],
    ]
    for token in (None, UNKNOWN, made[0], modern[0]):
        with client(guarded, token) as stranger:
            for each in (*made, "of-my-own", MASTER):
                assert [stranger.acl.info(each)] == ask(admin, f"acl/info/{each}")
                assert stranger.acl.meta.index is not None
            for each in (*modern, UNKNOWN):
                assert ask(admin, f"acl/info/{each}") == []
                with pytest.raises(consulate.NotFound):
                    stranger.acl.info(each)
    with pytest.raises(consulate.NotFound):
        consul.acl.info(modern[0])
    with pytest.raises(consulate.NotFound):
        consul.acl.clone(modern[0])
    assert consul.acl.destroy(modern[0]) is True
    assert modern[0] not in [each.get("SecretID") for each in cli(guarded, "token", "list")]


def test_what_a_legacy_call_refuses(guarded, consul, admin):
    acl_id = consul.acl.create("client", rules=OLD_RULES)
    with client(guarded, acl_id) as limited:
        for call in (
            lambda: limited.acl.create("x"),
            lambda: limited.acl.update("x", "x"),
            lambda: limited.acl.list(),
            lambda: limited.acl.clone(acl_id),
            lambda: limited.acl.destroy(acl_id),
        ):
            with pytest.raises(consulate.Forbidden):
                call()
    with pytest.raises(ValueError, match="'client' or 'management'"):
        consul.acl.create("x", "root")
    for odd in ("", " x", "x\n", "€"):
        with pytest.raises(ValueError, match="header"):
            consul.acl.destroy(odd)
        with pytest.raises(ValueError, match="header"):
            consul.acl.update(odd, "x")
    with pytest.raises(consulate.ServerError, match="anonymous"):
        consul.acl.destroy("anonymous")
    with pytest.raises(consulate.ServerError, match="rule compilation failed"):
        consul.acl.create("x", rules="key {")
    modern = consul.acl.tokens.create(policies=[{"ID": GLOBAL}])["SecretID"]
    with pytest.raises(consulate.ServerError, match="non-legacy"):
        consul.acl.update(modern, "x")
    assert consul.acl.info(acl_id)["Name"] == "client"


def test_a_legacy_acl_without_an_accessor_is_waited_for_and_then_said(guarded, consul, admin):
    """As the servers leave it for up to a second, or for good while some of them are older than 1.4."""
    acl_id = consul.acl.create("x")
    raw = json.dumps({**consul.acl.token_self(), "SecretID": acl_id, "AccessorID": ""}).encode()
    with Proxy(guarded.port) as proxy, client(proxy) as consul:
        proxy.fault = lambda seen: (200, raw) if seen.path.startswith("/v1/acl/token/self") else None
        with pytest.raises(consulate.ServerError, match="no AccessorID yet"):
            consul.acl.destroy(acl_id)
        assert ask(admin, f"acl/info/{acl_id}") != []
        proxy.fault = lambda seen: None
        assert consul.acl.destroy(acl_id) is True
        # At once after it was made: the wait is a blocking query.
        for number in range(3):
            assert consul.acl.destroy(consul.acl.create(f"x{number}")) is True
    assert [each for each in ask(admin, "acl/list") if each["Name"].startswith("x")] == []


@pytest.mark.parametrize(
    ("status", "text"),
    [(410, "Endpoint {} for the legacy ACL system was removed in Consul 1.11."), (404, "")],
)
def test_a_server_without_legacy_acls_says_what_to_use(guarded, consul, status, text):
    """As servers from 1.11 on answer (agent/acl_endpoint_legacy.go there); only 1.8 is here."""
    old = ("create", "update", "destroy", "info", "list", "clone", "rules")

    def modern(seen):
        path = seen.path.split("?")[0]
        return (status, text.format(path).encode()) if path.split("/")[3] in old else None

    with Proxy(guarded.port) as proxy:
        proxy.fault = modern
        with client(proxy) as consul:
            for call in (
                lambda: consul.acl.create("x"),
                lambda: consul.acl.update("x", "x"),
                lambda: consul.acl.info(MASTER),
                lambda: consul.acl.clone(MASTER),
                lambda: consul.acl.list(),
            ):
                with pytest.raises(consulate.Gone, match=r"use acl\.tokens and acl\.policies") as gone:
                    call()
                assert gone.value.status == status
            for call in (lambda: consul.acl.translate("x"), lambda: consul.acl.translate_token(ANONYMOUS)):
                with pytest.raises(consulate.Gone, match="older version"):
                    call()
            # By its SecretID a token is deleted there too.
            token = consul.acl.tokens.create()
            assert consul.acl.destroy(token["SecretID"]) is True
            assert consul.acl.tokens.read(token["AccessorID"]) is None


def test_legacy_rules_are_translated(guarded, consul, admin):
    assert consul.acl.translate(OLD_RULES) == NEW_RULES
    consul.acl.update("of-my-own", "x", rules=OLD_RULES)
    accessor = accessor_of(consul, "of-my-own")
    assert consul.acl.translate_token(accessor) == NEW_RULES
    assert admin("GET", f"acl/rules/translate/{accessor}") == (200, NEW_RULES.encode())
    with pytest.raises(consulate.NotFound):
        consul.acl.translate_token(UNKNOWN)
    with client(guarded, "of-my-own") as limited, pytest.raises(consulate.Forbidden):
        limited.acl.translate(OLD_RULES)


def accessor_of(consul, acl_id):
    """The AccessorID of a legacy ACL, once the servers have given it one."""
    with consulate.Consul(*consul_address(consul), token=acl_id, timeout=20) as own:
        token = own.acl.token_self()
        while not token["AccessorID"]:
            token = own.acl.token_self(index=own.acl.meta.index, wait="5s")
        return token["AccessorID"]


def consul_address(consul):
    host, port = consul._base.split("/")[2].split(":")
    return host, int(port)


# -- tokens --------------------------------------------------------------------------------------------------


def test_tokens(guarded, consul, admin):
    policy = consul.acl.policies.create("p")
    role = consul.acl.roles.create("r", policies=["p"])
    made = consul.acl.tokens.create(
        accessor_id="22222222-2222-3333-4444-555555555555",
        secret_id="33333333-2222-3333-4444-555555555555",
        description="of a test",
        policies=["p", {"ID": GLOBAL}],
        roles=["r"],
        service_identities=["web", {"ServiceName": "db"}],
        node_identities=[{"NodeName": "n", "Datacenter": "dc1"}],
        local=True,
        expiration_ttl=3600,
    )
    accessor = made["AccessorID"]
    assert (accessor, made["SecretID"][:8]) == ("22222222-2222-3333-4444-555555555555", "33333333")
    shown = cli(guarded, "token", "read", "-id", accessor)
    assert made == shown == consul.acl.tokens.read(accessor)
    assert names(made["Policies"]) == ["p", "global-management"]
    assert names(made["Roles"]) == ["r"]
    assert [each["ServiceName"] for each in made["ServiceIdentities"]] == ["db", "web"]  # sorted
    assert made["NodeIdentities"] == [{"NodeName": "n", "Datacenter": "dc1"}]
    assert made["Local"] is True
    assert made["ExpirationTime"][:13] != made["CreateTime"][:13]

    # Consul itself would forget everything but the description.
    changed = consul.acl.tokens.update(accessor, description="new")
    mine = ("Hash", "ModifyIndex", "Description")
    assert {k: v for k, v in changed.items() if k not in mine} == {k: v for k, v in made.items() if k not in mine}
    assert changed["Description"] == "new"
    assert changed == ask(admin, f"acl/token/{accessor}")
    changed = consul.acl.tokens.update(accessor, policies=[{"ID": policy["ID"]}], service_identities=[], roles=None)
    assert (names(changed["Policies"]), names(changed["Roles"])) == (["p"], ["r"])
    assert "ServiceIdentities" not in changed

    twin = consul.acl.tokens.clone(accessor)
    other = consul.acl.tokens.clone(accessor, "twin")
    assert (twin["Description"], other["Description"]) == ("new", "twin")
    assert ask(admin, f"acl/token/{twin['AccessorID']}")["Policies"] == changed["Policies"]
    assert len({made["SecretID"], twin["SecretID"], other["SecretID"]}) == 3
    assert sorted(map(str, consul.acl.tokens.list())) == sorted(map(str, ask(admin, "acl/tokens")))
    three = sorted(each["AccessorID"] for each in (made, twin, other))
    assert sorted(each["AccessorID"] for each in consul.acl.tokens.list(policy=policy["ID"])) == three
    assert sorted(each["AccessorID"] for each in consul.acl.tokens.list(role=role["ID"])) == three

    with client(guarded, made["SecretID"]) as own:
        assert own.acl.tokens.read_self() == own.acl.token_self() == changed
    assert consul.acl.tokens.delete(accessor) is True
    assert consul.acl.tokens.read(accessor) is None
    assert admin("GET", f"acl/token/{accessor}")[0] == 403
    timed = consul.acl.tokens.create(expiration_time=twin["ExpirationTime"])
    assert cli(guarded, "token", "read", "-id", timed["AccessorID"])["ExpirationTime"] == twin["ExpirationTime"]


def test_what_a_token_cannot_be(consul, admin):
    before = len(consul.acl.tokens.list())
    for wrong in ({"policies": "p"}, {"roles": {"Name": "r"}}, {"node_identities": "n"}):
        with pytest.raises(ValueError, match="list"):
            consul.acl.tokens.create(**wrong)
    with pytest.raises(TypeError, match="'polices' is none of the fields"):
        consul.acl.tokens.create(polices=["p"])
    with pytest.raises(consulate.ServerError, match="No such ACL policy"):
        consul.acl.tokens.create(policies=["none"])
    with pytest.raises(ValueError, match="name or an ID"):
        consul.acl.tokens.delete("")
    assert len(consul.acl.tokens.list()) == before


def test_what_is_not_there(consul, admin):
    acl = consul.acl
    for each in (acl.tokens, acl.policies, acl.roles, acl.auth_methods, acl.binding_rules):
        assert each.read(UNKNOWN) is None
        assert each.delete(UNKNOWN) is True
        with pytest.raises(consulate.NotFound):
            each.update(UNKNOWN, description="x")
    assert acl.policies.read_by_name("none") is None
    assert acl.roles.read_by_name("none") is None
    with pytest.raises(consulate.NotFound):
        acl.tokens.clone(UNKNOWN)


def test_a_legacy_token_never_loses_its_rules_unasked(consul, admin):
    acl_id = consul.acl.create("old", rules=OLD_RULES)
    accessor = accessor_of(consul, acl_id)
    with pytest.raises(ValueError, match="rules"):
        consul.acl.tokens.update(accessor, description="new", policies=[])
    assert ask(admin, f"acl/info/{acl_id}")[0]["Rules"] == OLD_RULES
    consul.acl.policies.create("p", rules=NEW_RULES)
    moved = consul.acl.tokens.update(accessor, policies=["p"])
    assert (moved["SecretID"], moved["Description"], names(moved["Policies"])) == (acl_id, "old", ["p"])
    assert ask(admin, f"acl/info/{acl_id}") == []


# -- policies, roles, auth methods, rules --------------------------------------------------------------------


def test_policies(guarded, consul, admin):
    made = consul.acl.policies.create("p", rules=NEW_RULES, description="d", datacenters=["dc1"])
    policy = made["ID"]
    assert made == cli(guarded, "policy", "read", "-id", policy)
    assert made == consul.acl.policies.read(policy) == consul.acl.policies.read_by_name("p")
    assert (made["Rules"], made["Description"], made["Datacenters"]) == (NEW_RULES, "d", ["dc1"])
    changed = consul.acl.policies.update(policy, description="new")
    assert (changed["Name"], changed["Rules"], changed["Datacenters"]) == ("p", NEW_RULES, ["dc1"])
    consul.acl.policies.update(policy, name="q", rules="", datacenters=[])
    shown = cli(guarded, "policy", "read", "-name", "q")
    assert (shown["ID"], shown["Rules"], shown["Description"]) == (policy, "", "new")
    assert not shown.get("Datacenters")
    assert consul.acl.policies.list() == ask(admin, "acl/policies")
    assert sorted(names(consul.acl.policies.list())) == ["global-management", "q"]
    assert consul.acl.policies.delete(policy) is True
    assert names(ask(admin, "acl/policies")) == ["global-management"]
    with pytest.raises(ValueError, match="list"):
        consul.acl.policies.create("p", datacenters="dc1")


def test_roles(guarded, consul, admin):
    policy = consul.acl.policies.create("p")
    made = consul.acl.roles.create(
        "r",
        description="d",
        policies=["p"],
        service_identities=["web", {"ServiceName": "db", "Datacenters": ["dc1"]}],
        node_identities=[{"NodeName": "n", "Datacenter": "dc1"}],
    )
    role = made["ID"]
    assert made == cli(guarded, "role", "read", "-id", role)
    assert made == consul.acl.roles.read(role) == consul.acl.roles.read_by_name("r")
    changed = consul.acl.roles.update(role, name="s")
    mine = ("Hash", "ModifyIndex", "Name")
    assert {k: v for k, v in changed.items() if k not in mine} == {k: v for k, v in made.items() if k not in mine}
    assert changed == cli(guarded, "role", "read", "-name", "s")
    consul.acl.roles.create("other")
    assert consul.acl.roles.list() == ask(admin, "acl/roles")
    assert names(consul.acl.roles.list(policy=policy["ID"])) == ["s"]
    assert consul.acl.roles.update(role, policies=[]).get("Policies") is None
    assert consul.acl.roles.delete(role) is True
    assert names(ask(admin, "acl/roles")) == ["other"]


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    """(the file of an RSA key, the PEM of its public half)"""
    path = tmp_path_factory.mktemp("jwt") / "key.pem"
    subprocess.run(["openssl", "genrsa", "-out", str(path), "2048"], check=True, capture_output=True)
    public = subprocess.run(["openssl", "rsa", "-in", str(path), "-pubout"], check=True, capture_output=True)
    return path, public.stdout.decode()


def jwt(key_file, **claims):
    """A JWT that is signed with RS256 by openssl."""

    def encoded(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    parts = (
        {"alg": "RS256", "typ": "JWT"},
        {"iss": "tests", "aud": "consul", "iat": 1000000000, "exp": 4102444800, **claims},
    )
    text = b".".join(encoded(json.dumps(part).encode()) for part in parts)
    command = ["openssl", "dgst", "-sha256", "-sign", str(key_file)]
    signature = subprocess.run(command, input=text, check=True, capture_output=True).stdout
    return (text + b"." + encoded(signature)).decode()


@pytest.fixture
def method(consul, key):
    config = {
        "JWTValidationPubKeys": [key[1]],
        "BoundIssuer": "tests",
        "BoundAudiences": ["consul"],
        "ClaimMappings": {"user": "name"},
    }
    return consul.acl.auth_methods.create(
        "m",
        "jwt",
        config=config,
        description="d",
        display_name="shown",
        max_token_ttl=300,
        token_locality="global",
    )


def test_auth_methods(guarded, consul, admin, method, key):
    assert method == cli(guarded, "auth-method", "read", "-name", "m") == consul.acl.auth_methods.read("m")
    assert (method["Type"], method["MaxTokenTTL"], method["TokenLocality"]) == ("jwt", "5m0s", "global")
    changed = consul.acl.auth_methods.update("m", description="new", max_token_ttl="10m")
    assert changed == ask(admin, "acl/auth-method/m")
    assert (changed["Description"], changed["MaxTokenTTL"], changed["DisplayName"]) == ("new", "10m0s", "shown")
    assert changed["Config"] == method["Config"]
    assert consul.acl.auth_methods.list() == ask(admin, "acl/auth-methods")
    assert names(consul.acl.auth_methods.list()) == ["m"]
    assert consul.acl.auth_methods.delete("m") is True
    assert ask(admin, "acl/auth-methods") == []


def test_binding_rules(guarded, consul, admin, method):
    made = consul.acl.binding_rules.create(
        "m", bind_type="service", bind_name="${value.name}", selector="value.name==web", description="d"
    )
    rule = made["ID"]
    assert made == cli(guarded, "binding-rule", "read", "-id", rule) == consul.acl.binding_rules.read(rule)
    changed = consul.acl.binding_rules.update(rule, bind_type="role", bind_name="r")
    assert changed == ask(admin, f"acl/binding-rule/{rule}")
    assert (changed["BindType"], changed["BindName"]) == ("role", "r")
    assert (changed["Selector"], changed["Description"], changed["AuthMethod"]) == ("value.name==web", "d", "m")
    assert consul.acl.binding_rules.list() == ask(admin, "acl/binding-rules") == [changed]
    assert consul.acl.binding_rules.list(auth_method="m") == [changed]
    assert consul.acl.binding_rules.list(auth_method="none") == []
    assert consul.acl.binding_rules.delete(rule) is True
    assert ask(admin, "acl/binding-rules") == []


def test_login_and_logout(guarded, consul, admin, method, key, tmp_path):
    consul.acl.binding_rules.create("m", bind_type="service", bind_name="${value.name}", selector="value.name==web")
    bearer = jwt(key[0], user="web")
    with client(guarded, None) as nobody:
        token = nobody.acl.login("m", bearer, {"host": "h1"})
        shown = cli(guarded, "token", "read", "-id", token["AccessorID"])
        assert token == shown
        assert token["ServiceIdentities"] == [{"ServiceName": "web"}]
        assert (token["AuthMethod"], "h1" in token["Description"]) == ("m", True)
        found = consul.acl.tokens.list(auth_method="m")
        assert [each["AccessorID"] for each in found] == [token["AccessorID"]]
        assert consul.acl.tokens.update(token["AccessorID"], description="new")["AuthMethod"] == "m"
        assert nobody.acl.logout(token["SecretID"]) is True
        assert admin("GET", f"acl/token/{token['AccessorID']}")[0] == 403
        with pytest.raises(consulate.Forbidden):
            nobody.acl.logout(token["SecretID"])

        again = nobody.acl.login("m", bearer)
        with client(guarded, again["SecretID"]) as own:
            assert own.acl.logout() is True
        assert consul.acl.tokens.list(auth_method="m") == []

        subprocess.run(["openssl", "genrsa", "-out", str(tmp_path / "other.pem"), "2048"], check=True)
        for kind, wrong in (
            (consulate.Forbidden, jwt(key[0], user="db")),
            (consulate.ServerError, jwt(key[0], user="web", exp=1000000001)),
            (consulate.ServerError, jwt(tmp_path / "other.pem", user="web")),
        ):
            with pytest.raises(kind) as refused:
                nobody.acl.login("m", wrong)
            assert wrong not in str(refused.value)
    with pytest.raises(consulate.Forbidden):
        consul.acl.logout()


# -- the system ----------------------------------------------------------------------------------------------


def test_bootstrap():
    with Agent({"acl": {"enabled": True, "default_policy": "allow"}}) as fresh:
        with Proxy(fresh.port) as proxy, client(proxy, None) as consul:
            token = consul.acl.bootstrap()
            assert names(token["Policies"]) == ["global-management"]
            assert ask(Curl(fresh.url, token["SecretID"]), "acl/token/self")["AccessorID"] == token["AccessorID"]
            with pytest.raises(consulate.Forbidden, match="bootstrap no longer allowed"):
                consul.acl.bootstrap(bootstrap_secret=UNKNOWN)
            assert json.loads(proxy.requests[-1].body) == {"BootstrapSecret": UNKNOWN}
        with client(fresh, token["SecretID"]) as consul:
            # A bootstrap token is shown by the legacy API as well, to everybody who knows it.
            assert [consul.acl.info(token["SecretID"])] == ask(Curl(fresh.url), f"acl/info/{token['SecretID']}")


def test_replication(guarded, consul, admin):
    assert (
        consul.acl.replication(consistency="consistent")
        == consul.acl.replication(stale=True)
        == ask(admin, "acl/replication")
    )
    assert consul.acl.replication()["Enabled"] is False


def test_acls_that_are_off(agent):
    with client(agent, None) as consul:
        for call in (
            lambda: consul.acl.list(),
            lambda: consul.acl.create("x"),
            lambda: consul.acl.info("x"),
            lambda: consul.acl.destroy("x"),
            lambda: consul.acl.bootstrap(),
            lambda: consul.acl.token_self(),
            lambda: consul.acl.tokens.read(UNKNOWN),
            lambda: consul.acl.policies.create("x"),
            lambda: consul.acl.roles.list(),
            lambda: consul.acl.login("m", "x"),
        ):
            with pytest.raises(consulate.ACLDisabled):
                call()


def test_rights_are_asked_for(guarded, consul, admin):
    consul.acl.policies.create("p", rules=NEW_RULES)
    secret = consul.acl.tokens.create(policies=["p"])["SecretID"]
    with client(guarded, secret) as limited:
        asked = [("key", "read", "a/b"), ("key", "write", "a/b"), ("key", "read", "z")]
        assert limited.acl.authorize(asked) == [True, False, False]


def test_who_may_read_may_not_write(guarded, consul, admin):
    consul.acl.policies.create("reader", rules='acl = "read"')
    token = consul.acl.tokens.create(policies=["reader"])
    with client(guarded, token["SecretID"]) as reader:
        acl = reader.acl
        assert acl.tokens.read(token["AccessorID"])["SecretID"] == "<hidden>"
        assert acl.policies.read_by_name("reader")["Rules"] == 'acl = "read"'
        assert acl.tokens.read(UNKNOWN) is None
        for call in (
            lambda: acl.tokens.create(),
            lambda: acl.tokens.update(token["AccessorID"], description="x"),
            lambda: acl.tokens.clone(token["AccessorID"]),
            lambda: acl.tokens.delete(token["AccessorID"]),
            lambda: acl.policies.create("x"),
            lambda: acl.roles.create("x"),
            lambda: acl.auth_methods.create("x", "jwt"),
            lambda: acl.binding_rules.create("x", bind_type="service", bind_name="x"),
        ):
            with pytest.raises(consulate.Forbidden):
                call()
    with client(guarded, UNKNOWN) as stranger:
        for call in (
            lambda: stranger.acl.tokens.read(token["AccessorID"]),
            lambda: stranger.acl.policies.list(),
            lambda: stranger.acl.tokens.clone(token["AccessorID"]),
            lambda: stranger.acl.token_self(),
        ):
            with pytest.raises(consulate.Forbidden):
                call()
    assert ask(admin, f"acl/token/{token['AccessorID']}") == token


def test_an_id_that_is_no_uuid(consul):
    acl = consul.acl
    for odd in ("nope", "x" * 36, "1111-" + "1" * 31):
        for items in (acl.tokens, acl.policies, acl.roles, acl.binding_rules):
            assert items.read(odd) is None
            with pytest.raises(consulate.NotFound):
                items.delete(odd)
            with pytest.raises(consulate.NotFound):
                items.update(odd, description="x")
        for call in (acl.tokens.clone, acl.translate_token):
            with pytest.raises(consulate.NotFound) as caught:
                call(odd)
            assert caught.type is consulate.NotFound


def test_a_change_can_be_waited_for(guarded, consul, admin):
    """Blocking queries, as Consul documents them for every read of tokens, policies, roles, methods and rules."""
    consul.acl.policies.list()
    index = consul.acl.policies.meta.index
    timer = threading.Timer(0.3, admin, ("PUT", "acl/policy", b'{"Name": "late"}'))
    timer.start()
    while "late" not in names(consul.acl.policies.list(index=index, wait="20s")):
        index = consul.acl.policies.meta.index
    timer.join()
    for read in (
        consul.acl.list,
        consul.acl.token_self,
        consul.acl.tokens.list,
        consul.acl.roles.list,
        consul.acl.auth_methods.list,
        consul.acl.binding_rules.list,
    ):
        read(stale=True)
        assert read(index=1, wait="1s") == read(consistency="consistent")


def test_the_options_go_where_consul_documents_them(guarded, consul):
    with Proxy(guarded.port) as proxy, client(proxy, datacenter="dc1") as consul:
        token = consul.acl.tokens.create()["AccessorID"]
        consul.acl.tokens.read(token, expanded=True)
        assert proxy.requests[-1].path == f"/v1/acl/token/{token}?expanded=true&dc=dc1"
        with pytest.raises(consulate.ClientError, match="Enterprise"):
            consul.acl.tokens.list(auth_method="m", auth_method_ns="team")
        assert proxy.requests[-1].path == "/v1/acl/tokens?authmethod=m&authmethod-ns=team&dc=dc1"
        consul.acl.tokens.list(service_name="web")
        assert proxy.requests[-1].path == "/v1/acl/tokens?servicename=web&dc=dc1"
        consul.acl.tokens.delete(token)
        assert proxy.requests[-1].path == f"/v1/acl/token/{token}?dc=dc1"


# -- what this version of Consul has not ---------------------------------------------------------------------


def test_templated_policies(guarded, consul):
    """Consul 1.8 has none; later servers answer as documented (api-docs/acl/templated-policies)."""
    with pytest.raises(consulate.NotFound):
        consul.acl.templated_policies.list(dc="dc1", timeout=5)
    with pytest.raises(consulate.NotFound):
        consul.acl.templated_policies.preview("builtin/service", {"Name": "web"})
    with pytest.raises(consulate.NotFound):
        consul.acl.templated_policies.read("builtin/dns")
    template = {"TemplateName": "builtin/dns", "Schema": "", "Template": 'node_prefix "" {}'}
    answers = {
        "/v1/acl/templated-policies": {"builtin/dns": template},
        "/v1/acl/templated-policy/name/builtin/dns": template,
        "/v1/acl/templated-policy/preview/builtin/dns": {"Rules": 'node_prefix "" {}'},
    }
    with Proxy(guarded.port) as proxy, client(proxy) as consul:
        proxy.fault = lambda seen: (200, json.dumps(answers[seen.path.split("?")[0]]).encode())
        templates = consul.acl.templated_policies
        assert templates.list() == {"builtin/dns": template}
        assert templates.read("builtin/dns") == templates.read("builtin/dns", dc="dc1", timeout=5) == template
        assert templates.preview("builtin/dns", {"Name": "x"})["Rules"] == 'node_prefix "" {}'
        assert (proxy.requests[-1].method, proxy.requests[-1].body) == ("POST", b'{"Name": "x"}')
        proxy.fault = lambda seen: (400, b"Invalid templated policy Name: builtin/x")
        assert templates.read("builtin/x") is None
        proxy.fault = lambda seen: (200, b"{}")
        consul.acl.roles.create("r", templated_policies=["builtin/dns"])
        linked = {"Name": "r", "TemplatedPolicies": [{"TemplateName": "builtin/dns"}]}
        assert json.loads(proxy.requests[-1].body) == linked
        consul.acl.binding_rules.create("m", bind_type="templated-policy", bind_name="b", bind_vars={"Name": "x"})
        assert json.loads(proxy.requests[-1].body)["BindVars"] == {"Name": "x"}


def test_oidc(guarded, consul):
    """Consul Enterprise has it; what it answers is documented (api-docs/acl)."""
    with pytest.raises(consulate.NotFound):
        consul.acl.oidc_auth_url("m", "http://localhost:8550/oidc/callback")
    with pytest.raises(consulate.NotFound):
        consul.acl.oidc_callback("m", "state", "code")
    with Proxy(guarded.port) as proxy, client(proxy, None) as consul:
        proxy.fault = lambda seen: (200, b'{"AuthURL": "https://provider/authorize", "SecretID": "x"}')
        assert consul.acl.oidc_auth_url("m", "http://l/cb", client_nonce="n", meta={"a": "b"}).startswith("https://")
        expected = {"AuthMethod": "m", "RedirectURI": "http://l/cb", "ClientNonce": "n", "Meta": {"a": "b"}}
        assert json.loads(proxy.requests[-1].body) == expected
        assert consul.acl.oidc_callback("m", "s", "c", client_nonce="n", meta={"a": "b"})["SecretID"] == "x"
        expected = {"AuthMethod": "m", "State": "s", "Code": "c", "ClientNonce": "n", "Meta": {"a": "b"}}
        assert json.loads(proxy.requests[-1].body) == expected
        assert {seen.path for seen in proxy.requests} == {"/v1/acl/oidc/auth-url", "/v1/acl/oidc/callback"}


# -- secrets -------------------------------------------------------------------------------------------------


def told(error):
    """All that an exception and its causes can show."""
    seen = []
    while error is not None:
        seen += [str(error), repr(error), repr(error.args), repr(vars(error))]
        seen += traceback.format_exception(type(error), error, None)
        error = error.__cause__ or error.__context__
    return "\n".join(seen)


def test_secrets_are_shown_nowhere(guarded, consul, admin, method, key, caplog):
    caplog.set_level(logging.DEBUG)
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(logging.DEBUG)
    bearer = jwt(key[0], user="db")
    shown = []
    with Proxy(guarded.port) as proxy, client(proxy) as own:
        secrets = [MASTER, UNKNOWN, bearer]
        acl_id = own.acl.create("x", rules=OLD_RULES)
        own.acl.update("s3cret-of-mine", "x", rules=OLD_RULES)
        secrets += [acl_id, "s3cret-of-mine", own.acl.clone(acl_id)]
        own.acl.info(acl_id)
        token = own.acl.tokens.create(description="x")
        secrets.append(token["SecretID"])
        shown.append(repr(own) + repr(own.acl) + repr(own.acl.tokens) + repr(vars(own)) + str(own.acl.meta))
        with client(proxy, "s3cret-of-mine") as limited:
            limited.acl.info("s3cret-of-mine")
            calls = [
                lambda: limited.acl.info(UNKNOWN),
                lambda: limited.acl.clone(acl_id),
                lambda: limited.acl.destroy(acl_id),
                lambda: limited.acl.destroy(UNKNOWN),
                lambda: limited.acl.update(acl_id, "x"),
                lambda: own.acl.info(UNKNOWN),
                lambda: own.acl.clone(UNKNOWN),
                lambda: own.acl.destroy(UNKNOWN),
                lambda: own.acl.update(token["SecretID"], "x", rules="key {"),
                lambda: own.acl.tokens.create(secret_id=MASTER),
                lambda: own.acl.login("m", bearer),
                lambda: own.acl.bootstrap(bootstrap_secret=UNKNOWN),
            ]
            for call in (*calls, limited.acl.logout, lambda: own.acl.logout(acl_id)):
                with pytest.raises(consulate.ConsulateException) as caught:
                    call()
                shown.append(told(caught.value))
            # What comes back is cut short, is of another shape, does not come, or repeats what was sent.
            broken = json.dumps({"SecretID": token["SecretID"], "ID": acl_id}).encode()
            calls += [
                lambda: own.acl.list(),
                lambda: own.acl.info(acl_id),
                lambda: own.acl.tokens.create(),
                lambda: own.acl.tokens.clone(token["AccessorID"]),
                lambda: own.acl.tokens.read(token["AccessorID"]),
                lambda: own.acl.tokens.list(),
                lambda: own.acl.token_self(),
                lambda: own.acl.create("x"),
                lambda: own.acl.update("s3cret-of-mine", "x"),
                lambda: own.acl.destroy("s3cret-of-mine"),
            ]
            for fault in ((200, broken[:-1]), (200, b"[" + broken), (200, b'["' + broken[2:60]), "drop"):
                proxy.fault = lambda seen, fault=fault: fault
                for call in calls:
                    with pytest.raises(consulate.ConsulateException) as caught:
                        call()
                    shown.append(told(caught.value))
            proxy.fault = lambda seen: (500, b"failed: s3cret-of-mine")
            for call in (lambda: own.acl.update("s3cret-of-mine", "x"), lambda: own.acl.destroy("s3cret-of-mine")):
                with pytest.raises(consulate.ServerError) as caught:
                    call()
                shown.append(told(caught.value))
            proxy.fault = lambda seen: None
        for each in secrets[3:6]:
            assert own.acl.destroy(each) is True
    shown += [record.getMessage() + repr(record.args) for record in caplog.records]
    shown += [seen.path for seen in proxy.requests]
    assert any("/v1/acl/token" in each for each in shown[-len(proxy.requests) :])
    assert any(record.name.startswith("urllib3") for record in caplog.records)
    for secret in secrets:
        assert [each for each in shown if secret in each] == []


def test_the_class_is_made_as_in_the_reference(guarded, admin):
    from consulfs.consulate import adapters

    acl = ACL(guarded.url, adapters.Request(timeout=20), None, MASTER)
    assert acl.list() == ask(admin, "acl/list")
    assert acl.tokens.read_self()["SecretID"] == MASTER
