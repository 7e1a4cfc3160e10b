"""`consulate kv` and the options of the connection, as a process, on a real Consul."""

import argparse
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.agent import Agent
from support.command import COMMAND, consulate, environment, fails, ok
from support.curl import Curl

from consulfs.consulate.cli import connection, parser
from consulfs.consulate.settings import Address, BadAddress, Security

# -- keys ----------------------------------------------------------------------------------------------------------


def test_values_go_in_and_come_out_as_bytes(agent, curl):
    ok(agent.address, "kv", "set", "a/text", "größe")
    ok(agent.address, "kv", "set", "/a/bytes/", b"\xff\x80")
    assert curl.tree() == {"a/text": "größe".encode(), "a/bytes": b"\xff\x80"}
    assert ok(agent.address, "kv", "get", "/a/text") == "größe\n".encode()
    assert ok(agent.address, "kv", "get", "a/bytes") == b"\xff\x80\n"
    curl.put("flagged", b"1", 7)
    ok(agent.address, "kv", "set", "flagged", "--", "-2")
    assert (curl.get("flagged"), curl.flags("flagged")) == (b"-2", 7)
    assert fails(agent.address, "kv", "get", "nowhere") == "consulate: no such key: nowhere\n"
    assert "is not UTF-8" in consulate(agent.address, "kv", "get", b"\xff").stderr.decode()


def test_get_shows_a_tree_and_trims_its_names(agent, curl):
    for key, value in {"a/b/c": b"1", "a/b/": b"", "a/d": b"\xff\x00", "ab": b"2", "c": b"3"}.items():
        curl.put(key, value)
    wanted = {
        (): b"a/b/\t\na/b/c\t1\na/d\t\xff\0\nab\t2\n",
        ("-t", "1"): b"b/\t\nb/c\t1\nd\t\xff\0\nab\t2\n",
        ("--trim", "2"): b"\t\nc\t1\nd\t\xff\0\nab\t2\n",
        ("-t", "9"): b"\t\nc\t1\nd\t\xff\0\nab\t2\n",
    }
    for options, lines in wanted.items():
        assert ok(agent.address, "kv", "get", "-r", "/a", *options) == lines
    assert ok(agent.address, "kv", "get", "--recurse", "nowhere") == b""


def test_ls_lists_keys_and_lengths(agent, curl):
    assert ok(agent.address, "kv", "ls") == b""
    for key, value in {"a/b": b"12345", "a/": b"", "z\nz": "ü".encode(), "b": b"1"}.items():
        curl.put(key, value)
    assert ok(agent.address, "kv", "ls") == b"a/\na/b\nb\nz\nz\n"
    assert ok(agent.address, "kv", "ls", "/a") == b"a/\na/b\n"
    long = b"             0 a/\n             5 a/b\n             1 b\n             2 z\nz\n"
    assert ok(agent.address, "kv", "ls", "-l") == long
    assert ok(agent.address, "kv", "ls", "--long", "a/b") == b"             5 a/b\n"


def test_mkdir_makes_a_key_with_a_slash_and_no_value(agent, curl):
    ok(agent.address, "kv", "mkdir", "a/b")
    ok(agent.address, "kv", "mkdir", "/c/")
    assert curl.tree() == {"a/b/": b"", "c/": b""}
    assert curl.record("c/")["Value"] in (None, "")


def test_rm_and_del_delete_keys_and_trees(agent, curl):
    for key in ("a", "a/b", "a/c", "d", "e"):
        curl.put(key, b"v")
    ok(agent.address, "kv", "rm", "/d")
    ok(agent.address, "kv", "del", "e")
    ok(agent.address, "kv", "rm", "nowhere")
    assert curl.keys() == ["a", "a/b", "a/c"]
    ok(agent.address, "kv", "rm", "-r", "a/")
    assert curl.keys() == ["a"]
    assert "an empty key" in fails(agent.address, "kv", "rm", "--recurse", "")
    assert curl.keys() == ["a"]
    ok(agent.address, "kv", "rm", "-r", "/")
    assert curl.keys() == []


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_nobody_there_is_one_line_and_status_1():
    words = (
        "kv ls", "kv get a", "kv set a b", "kv rm a", "kv mkdir a", "kv backup", "kv restore", "acl backup",
        "services", "register a", "deregister a", "run_once a true",
    )  # fmt: skip
    for each in words:
        assert "cannot connect to http://127.0.0.1:1" in fails("127.0.0.1:1", *each.split(), input=b"[]")


def test_a_token_is_never_shown(agent, curl):
    token = "5ec4e700-0000-0000-0000-000000000000"
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": "root-token"}}}
    with Agent(config) as locked:
        for words in (("kv", "set", "a", "b"), ("kv", "ls", "-l"), ("kv", "restore"), ("kv", "get", "a")):
            said = fails(locked.address, "--token", token, *words, input=b'[["a",0,"x"]]')
            assert "403" in said
            assert token not in said
        assert ok(locked.address, "--token", "root-token", "kv", "set", "a", "b") == b""
        assert ok(locked.address, "kv", "get", "a", CONSUL_HTTP_TOKEN="root-token") == b"b\n"
        assert ok(locked.address, "kv", "get", "a", CONSUL_HTTP_TOKEN_FILE=_file(locked, "root-token\n")) == b"b\n"
    assert "no HTTP header can carry" in fails(agent.address, "--token", "a\nb", "kv", "ls")
    assert "No such file" in fails(agent.address, "kv", "ls", CONSUL_HTTP_TOKEN_FILE="/nowhere/token")


def test_a_restore_names_the_key_that_the_token_may_not_write(curl):
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": "root-token"}}}
    with Agent(config) as locked:
        root = Curl(locked.url, "root-token")
        status, _ = root(
            "PUT", "acl/create", b'{"ID": "writer", "Type": "client", "Rules": "key \\"a\\" {policy=\\"write\\"}"}'
        )
        assert status == 200
        text = b'[["a/1",0,"x"],["b",0,"x"],["a/2",0,"x"]]'
        said = fails(locked.address, "kv", "restore", "-p", input=text, CONSUL_HTTP_TOKEN="writer")
        assert "row 2: 'b': " in said
        assert "(1 written" in said
        assert "writer" not in said
        assert root.tree() == {"a/1": b"x"}


def _file(agent, text):
    path = os.path.join(agent.folder, "token")
    with open(path, "w") as file:
        file.write(text)
    return path


def test_a_reader_that_leaves_is_no_error(agent, curl):
    for number in range(0, 6400, 64):
        curl.txn(*({"Verb": "set", "Key": f"{'k' * 50}{number + each}"} for each in range(64)))
    for words in (["ls"], ["ls", "-l"], ["backup"], ["get", "-r", "k"]):
        process = subprocess.Popen(
            [COMMAND, "kv", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(agent.address)
        )
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 128 + signal.SIGPIPE


def test_output_that_cannot_be_written_is_one_line(agent, curl):
    curl.put("a", b"x")
    for words in ("kv ls", "kv backup", "kv get a", "services"):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [COMMAND, *words.split()], stdout=full, stderr=subprocess.PIPE, env=environment(agent.address)
            )
        assert (done.returncode, done.stderr) == (1, b"consulate: [Errno 28] No space left on device\n")
    for closing in ("<&-", ">&-"):
        done = subprocess.run(
            ["sh", "-c", f"{COMMAND} kv restore {closing}"], stderr=subprocess.PIPE, env=environment(agent.address)
        )
        assert (done.returncode, done.stderr) == (1, b"consulate: stdin and stdout must be open\n")


def test_a_closed_stderr_changes_nothing_else(agent, curl, tmp_path):
    curl.put("a", b"x")
    for words, status, out in (
        ("kv get a", 0, b"x\n"),
        ("kv get b", 1, b""),
        (f"kv backup -f {tmp_path}/b", 0, b""),
        ("kv backup", 0, b'[["a", 0, "x"]]\n'),
        (f"kv restore -f {tmp_path}/b", 0, b""),
        ("kv restore -f /nowhere/b", 1, b""),
        ("kv nothing", 2, b""),
        ("run_once lock echo yes", 0, b"yes\n"),
    ):
        command = ["sh", "-c", f"{COMMAND} {words} 2>&-"]
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment(agent.address), timeout=60)
        assert (done.returncode, done.stdout) == (status, out), words


def test_ctrl_c_ends_with_130(proxy):
    process = subprocess.Popen(
        [COMMAND, "kv", "restore"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(proxy.address)
    )
    while not proxy.requests:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read() == b""


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["kv"],
        ["kv", "nothing"],
        ["acl"],
        ["--api-port", "x", "kv", "ls"],
        ["kv", "get"],
        ["kv", "get", "-r", "-t", "-1", "a"],
        ["kv", "get", "-r", "-t", "x", "a"],
    ],
)
def test_a_wrong_call_is_status_2(words):
    done = consulate("", *words)
    assert done.returncode == 2
    assert b"usage: consulate" in done.stderr


def test_every_command_and_option_is_in_the_manual():
    manual = (Path(__file__).resolve().parents[1] / "docs/consulate.md").read_text()

    def words(made):
        for action in made._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices
                for each in action.choices.values():
                    yield from words(each)

    assert [word for word in words(parser()) if f"{word}" not in manual] == []


def test_version_and_help_need_no_consul():
    assert ok("ftp://nonsense", "--version").startswith(b"consulate ")
    assert b"backup" in ok("ftp://nonsense", "kv", "--help")
    done = subprocess.run([sys.executable, "-m", "consulfs.consulate.cli", "--version"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


# -- the connection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "environ", "wanted"),
    [
        ("", {}, Address("http", "localhost", 8500)),
        ("", {"CONSUL_HTTP_ADDR": "host"}, Address("http", "host", 8500)),
        ("", {"CONSUL_HTTP_ADDR": "host:1", "CONSUL_RPC_ADDR": "http://rpc:2"}, Address("http", "rpc", 2)),
        ("", {"CONSUL_HTTP_ADDR": "https://host"}, Address("https", "host", 8501)),
        ("", {"CONSUL_HTTP_ADDR": "host:1", "CONSUL_HTTP_SSL": "true"}, Address("https", "host", 1)),
        ("", {"CONSUL_HTTP_ADDR": "unix:///s"}, Address("http+unix", "/s", None)),
        ("--api-host other", {"CONSUL_HTTP_ADDR": "https://host:1"}, Address("https", "other", 1)),
        ("--api-scheme https --api-host h --api-port 9", {}, Address("https", "h", 9)),
        ("--api-scheme https", {}, Address("https", "localhost", 8500)),
        ("--api-host ::1", {}, Address("http", "::1", 8500)),
        ("--api-scheme http+unix --api-host /s", {}, Address("http+unix", "/s", None)),
        ("--api-scheme http+unix", {"CONSUL_HTTP_ADDR": "unix:///s"}, Address("http+unix", "/s", None)),
        ("--api-host /s", {"CONSUL_HTTP_ADDR": "host:1"}, Address("http+unix", "/s", None)),
        ("--api-host unix:///s", {}, Address("http+unix", "/s", None)),
        ("--api-host h", {"CONSUL_HTTP_ADDR": "unix:///s"}, Address("http", "h", 8500)),
    ],
)
def test_options_and_environment_give_the_address(words, environ, wanted):
    arguments = parser().parse_args([*words.split(), "kv", "ls"])
    assert connection.address(arguments.api_scheme, arguments.api_host, arguments.api_port, environ) == wanted


@pytest.mark.parametrize(
    ("words", "text"),
    [("", "ftp://host"), ("", "user:secret@host"), ("", "http://host/path"), ("--api-scheme http+unix", "host:1")],
)
def test_bad_addresses(words, text):
    arguments = parser().parse_args([*words.split(), "kv", "ls"])
    with pytest.raises(BadAddress) as caught:
        connection.address(arguments.api_scheme, arguments.api_host, arguments.api_port, {"CONSUL_HTTP_ADDR": text})
    assert "secret" not in str(caught.value)


def test_a_password_in_the_option_is_refused_and_not_shown():
    for host in ("user:secret@host", "http://user:secret@host", "unix://user:secret@host"):
        for more in ((), ("--api-scheme", "http+unix")):
            said = fails("", *more, "--api-host", host, "kv", "ls")
            assert "no user or password" in said
            assert "secret" not in said
    assert connection.address(None, "/run/a@b.sock", None, {}).host == "/run/a@b.sock"


def test_variables_for_tls_and_http_are_read():
    environ = {
        "CONSUL_CACERT": "/a", "CONSUL_CAPATH": "/b", "CONSUL_CLIENT_CERT": "/c", "CONSUL_CLIENT_KEY": "/d",
        "CONSUL_TLS_SERVER_NAME": "e", "CONSUL_HTTP_SSL_VERIFY": "false", "CONSUL_HTTP_AUTH": "user:secret",
    }  # fmt: skip
    found = Security.of(environ)
    assert found == Security("/a", "/b", "/c", "/d", "e", False, "user:secret")
    assert "secret" not in repr(found)
    assert Security.of({}) == Security()
    assert "CONSUL_CACERT: /nowhere/ca.pem: no such file" in fails("", "kv", "ls", CONSUL_CACERT="/nowhere/ca.pem")


def test_a_unix_socket_is_reached_by_option_and_environment(tmp_path):
    path = str(tmp_path / "consul.sock")
    config = {"addresses": {"http": f"unix://{path}"}}
    with Agent(config, reached_by=path):
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        ok("", "--api-scheme", "http+unix", "--api-host", path, "kv", "set", "a", "b")
        assert ok(f"unix://{path}", "kv", "get", "a") == b"b\n"


def test_tls_is_checked_unless_told_otherwise(tmp_path):
    make = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=server.test -addext subjectAltName=DNS:server.test"
    )
    subprocess.run(
        [*make.split(), "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True
    )
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    with Agent() as plain:  # its HTTP port stays plain, so that the fixture can ask it
        from support.agent import free_ports

        (https,) = free_ports(1)
        plain.stop()
        plain.config = {"ports": {"https": https}, "cert_file": cert, "key_file": key}
        plain.start()
        address = f"https://127.0.0.1:{https}"
        assert "no TLS connection" in fails(address, "kv", "ls")
        assert ok(address, "kv", "ls", CONSUL_CACERT=cert, CONSUL_TLS_SERVER_NAME="server.test") == b""
        assert ok(address, "kv", "ls", CONSUL_HTTP_SSL_VERIFY="false") == b""
        assert ok(f"127.0.0.1:{https}", "kv", "ls", CONSUL_HTTP_SSL="1", CONSUL_HTTP_SSL_VERIFY="0") == b""


def test_another_datacenter_is_asked_for(agent, curl):
    assert "No path to datacenter" in fails(agent.address, "--datacenter", "nowhere", "kv", "set", "a", "b")
    ok(agent.address, "--datacenter", "dc1", "kv", "set", "a", "b")
    assert curl.get("a") == b"b"
