"""What the log says where an operation fails: which file, why, and no secret."""

import base64
import json
import os
import subprocess

import pytest
from support.acl import MASTER, make
from support.agent import Agent
from support.mount import Mount
from support.waiting import until

PASSWORD = "pass-word,of:mine"


def quoted(text):
    return text.replace("\\", "\\\\").replace(",", "\\,")


def test_a_directory_that_cannot_be_read_is_named(counted, proxy, curl):
    curl.put("app/key", b"1")
    proxy.fault = lambda seen: (403, b"Permission denied") if "/app/?" in seen.path else None
    with pytest.raises(OSError):
        os.listdir(counted.path / "app")
    assert "readdir '/app': Permission denied" in counted.log_text()


def test_what_consul_refuses_leaves_no_trace_of_our_own_calls(proxy, curl):
    curl.put("key", b"1")
    proxy.fault = lambda seen: (500, b"out of order") if seen.path.startswith("/v1/kv") else None
    with Mount(proxy.address, "timeout=1,virtual=hidden") as mount:
        assert mount.sh("cat key").returncode == 1
        text = mount.log_text()
    assert "out of order" in text
    assert "Traceback" not in text


def test_a_password_that_a_server_repeats_is_not_there(proxy, curl):
    sent = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    echo = f"Basic {sent}, which is user:{PASSWORD}, so {PASSWORD}".encode()
    options = f"timeout=1,virtual=hidden,log_level=debug,auth=user:{quoted(PASSWORD)}"
    with Mount(proxy.address, options) as mount:
        proxy.fault = lambda seen: (500, echo)
        assert mount.sh("cat key").returncode == 1
        text = mount.log_text()
    assert "<secret>" in text
    assert sent not in text
    assert PASSWORD not in text


def test_a_legacy_token_whose_file_cannot_be_read_is_not_there(guarded, admin, tmp_path):
    from support.proxy import Proxy

    legacy = make(admin, "acl/create", Name="old", Type="client", Rules="")["ID"]
    (tmp_path / "token").write_text(MASTER)
    with Proxy(guarded.port) as proxy:
        options = f"timeout=1,acl_secrets,token_file={tmp_path / 'token'}"
        with Mount(proxy.address, options) as mount:
            assert legacy in os.listdir(mount.path / "_acl/list")
            proxy.fault = lambda seen: (500, b"out of order")
            script = f"cat _acl/list/{legacy}; sleep 0.5"
            until(lambda: "out of order" in (mount.sh(script) and mount.log_text()))
            text = mount.log_text()
    assert "/_acl/list/<secret>" in text
    assert legacy not in text


def test_what_the_mesh_gets_its_certificates_with_is_not_shown():
    key = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    mesh = {"connect": {"enabled": True, "ca_config": {"private_key": key}}}
    with Agent(mesh) as agent:
        for options, is_shown in (("timeout=20", False), ("timeout=20,acl_secrets", True)):
            with Mount(agent.address, options) as mount:
                shown = json.loads(mount.ok("cat _agent/self"))["DebugConfig"]["ConnectCAConfig"]
                assert ("PrivateKey" in shown) is is_shown
                assert ("PRIVATE KEY" in mount.ok("cat _agent/self")) is is_shown


def test_a_listing_has_the_directory_and_the_one_above(mnt, curl):
    curl.put("app/key", b"1")
    for folder in (".", "app", "_catalog", "_catalog/nodes"):
        shown = mnt.ok(f"ls -a {folder}").split("\n")
        assert shown[:2] == [".", ".."], folder
