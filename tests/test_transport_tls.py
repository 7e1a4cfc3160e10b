"""TLS and mutual TLS with a real agent and certificates of `consul tls`."""

import io
import shutil
import ssl
import subprocess
import sys
import threading

import pytest
from support.agent import Agent, consul_command, free_ports
from support.curl import Curl
from support.faulty import Faulty
from support.proxy import Proxy

from consulfs import consulate
from consulfs.consulate import adapters

# verify=False: urllib3 says so once, as it does for every program.
pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")


class Certificates:
    """A CA, a server's and a client's certificate; `folder` holds the CA by its hash, `both` the client's two files."""

    def __init__(self, folder):
        self.home = folder
        for words in (["ca", "create"], ["cert", "create", "-server"], ["cert", "create", "-client"]):
            subprocess.run([consul_command(), "tls", *words], cwd=folder, check=True, capture_output=True)
        self.ca = str(folder / "consul-agent-ca.pem")
        self.server = (str(folder / "dc1-server-consul-0.pem"), str(folder / "dc1-server-consul-0-key.pem"))
        self.client = (str(folder / "dc1-client-consul-0.pem"), str(folder / "dc1-client-consul-0-key.pem"))
        self.both = str(folder / "both.pem")
        (folder / "both.pem").write_text("".join(open(name).read() for name in self.client))
        (folder / "hashed").mkdir()
        shutil.copy(self.ca, folder / "hashed")
        subprocess.run(["openssl", "rehash", str(folder / "hashed")], check=True, capture_output=True)
        self.folder = str(folder / "hashed")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """Of another CA."""
    return Certificates(tmp_path_factory.mktemp("strange"))


def tls_agent(certificates, **more):
    cert, key = certificates.server
    agent = Agent(
        {
            "ports": {"https": free_ports(1)[0]},
            "addresses": {"https": "127.0.0.1 127.0.0.2"},
            "ca_file": certificates.ca,
            "cert_file": cert,
            "key_file": key,
            **more,
        }
    )
    agent.https = agent.config["ports"]["https"]
    return agent


@pytest.fixture(scope="module")
def served(certificates):
    with tls_agent(certificates) as agent:
        yield agent


@pytest.fixture(scope="module")
def mutual(certificates):
    with tls_agent(certificates, verify_incoming_https=True) as agent:
        yield agent


@pytest.fixture(autouse=True)
def no_certificates_of_the_environment(monkeypatch):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


def client(agent, host="127.0.0.1", **more):
    return consulate.Consul(host, agent.https, scheme="https", timeout=10, **more)


def refused(consul, words=""):
    """The call fails before anything is sent, and says that it is TLS and what was asked."""
    with consul, pytest.raises(consulate.ConnectFailed, match=r"^GET /v1/kv/a: .*TLS.*" + words) as caught:
        consul.kv.get("a")
    assert caught.value.__cause__ is not None


def works(consul, agent):
    Curl(agent.url).put("a", b"over TLS")
    with consul:
        assert consul.kv.get("a") == "over TLS"
        consul.kv["b"] = "back"
    assert Curl(agent.url).get("b") == b"back"
    Curl(agent.url).delete_all()


def test_an_unknown_authority_is_refused(served, strange):
    refused(client(served), "certificate verify failed")
    refused(client(served, verify=strange.ca), "certificate verify failed")
    refused(client(served, verify=strange.folder), "certificate verify failed")


@pytest.mark.parametrize("verify", ["ca", "folder", False])
def test_what_verify_takes(served, certificates, verify):
    works(client(served, verify=verify and getattr(certificates, verify)), served)


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_bundle_of_the_environment(served, certificates, strange, monkeypatch, name):
    monkeypatch.setenv(name, certificates.ca)
    works(client(served), served)
    refused(client(served, verify=strange.ca))  # what the program says goes before the environment
    monkeypatch.setenv(name, strange.ca)
    refused(client(served))
    works(client(served, verify=certificates.ca), served)
    works(client(served, verify=False), served)


def test_the_name_in_the_certificate(served, certificates):
    works(client(served, "localhost", verify=certificates.ca), served)
    refused(client(served, "127.0.0.2", verify=certificates.ca), "127.0.0.2")
    works(client(served, "127.0.0.2", verify=False), served)
    for name, good in (("server.dc1.consul", True), ("server.dc2.consul", False)):
        adapter = adapters.Request(timeout=10, verify=certificates.ca, server_hostname=name)
        consul = client(served, "127.0.0.2", adapter=adapter)
        works(consul, served) if good else refused(consul, "server.dc2.consul")


def test_a_client_certificate(mutual, certificates, strange):
    refused(client(mutual, verify=certificates.ca), "certificate")
    works(client(mutual, verify=certificates.ca, cert=certificates.client), mutual)
    works(client(mutual, verify=certificates.ca, cert=certificates.both), mutual)
    refused(client(mutual, verify=certificates.ca, cert=strange.client), "certificate")


def test_a_client_certificate_where_servers_want_one_too(certificates):
    with tls_agent(certificates, verify_incoming=True, verify_outgoing=True) as agent:
        refused(client(agent, verify=certificates.ca), "certificate")
        with pytest.raises(consulate.ConnectFailed, match=r"^PUT /v1/session/create: .*TLS"):
            client(agent, verify=certificates.ca).session.create()
        works(client(agent, verify=certificates.ca, cert=certificates.client), agent)


def test_a_large_body_without_a_client_certificate_is_refused_in_the_same_words(mutual, certificates):
    """The server hangs up while the body is on its way: its reason is read all the same."""
    for _ in range(20):
        with pytest.raises(consulate.ConnectFailed, match=r"^PUT /v1/kv/x: .*TLS.*certificate"):
            client(mutual, verify=certificates.ca).kv._write("kv/x", b"x" * 400_000)


def test_a_client_certificate_is_missed_by_tls_1_2(mutual, certificates):
    """Before TLS 1.3 the handshake itself fails for want of a certificate; since then the first answer does."""
    adapter = adapters.Request(timeout=10, verify=certificates.ca)
    pool, _ = adapter._find_route(f"https://127.0.0.1:{mutual.https}")
    pool.conn_kw["ssl_context"] = ssl.create_default_context()
    pool.conn_kw["ssl_context"].maximum_version = ssl.TLSVersion.TLSv1_2
    refused(client(mutual, adapter=adapter), "certificate")


@pytest.mark.parametrize("where", ["verify", "cert", "key"])
def test_files_that_are_missing_or_none(served, certificates, tmp_path, where):
    wrong = tmp_path / "wrong.pem"
    for content in (None, b"", b"not a certificate"):
        if content is not None:
            wrong.write_bytes(content)
        options = {
            "verify": {"verify": str(wrong)},
            "cert": {"verify": certificates.ca, "cert": str(wrong)},
            "key": {"verify": certificates.ca, "cert": (certificates.client[0], str(wrong))},
        }[where]
        refused(client(served, **options))


def test_one_side_without_tls(served, certificates):
    consul = consulate.Consul("127.0.0.1", served.port, scheme="https", timeout=10, verify=certificates.ca)
    refused(consul, "[Vv]ersion|record layer")
    with pytest.raises(consulate.ClientError, match=r"GET /v1/kv/a: 400 .*HTTPS") as caught:
        consulate.Consul("127.0.0.1", served.https, timeout=10).kv.get("a")
    assert caught.value.status == 400


def test_a_server_that_hangs_or_ends_in_the_handshake(certificates):
    with Faulty(None) as silent:
        silent.https = silent.port
        with pytest.raises(consulate.ConnectFailed, match=r"GET /v1/kv/a: .*TLS.*timed out"):
            consulate.Consul("127.0.0.1", silent.port, scheme="https", timeout=0.3).kv.get("a")
        timer = threading.Timer(0.3, silent.hang_up)
        timer.start()
        refused(client(silent, verify=certificates.ca))
        timer.join()


def test_the_environments_proxy_is_not_asked_for_loopback(served, certificates, monkeypatch):
    curl = Curl(served.url)
    curl.put("a", b"1")
    with Proxy(served.port) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy.address}")
            monkeypatch.setenv(name.lower(), f"http://{proxy.address}")
        for host in ("127.0.0.1", "localhost"):
            for consul in (
                client(served, host, verify=certificates.ca),
                consulate.Consul(host, served.port, timeout=10),
            ):
                with consul:
                    assert consul.kv.get("a") == "1"
                    assert sum(1 for _ in consul.kv.stream()) == 1
        assert proxy.requests == []
        monkeypatch.undo()
    curl.delete_all()


def test_streams(mutual, certificates, tmp_path):
    curl = Curl(mutual.url)
    for number in range(8):
        curl.put(f"s/{number}", bytes([number]) * 300_000)
    with client(mutual, verify=certificates.ca, cert=certificates.client) as consul:
        found = {record.key: record.value for record in consul.kv.stream("s/")}
        assert found == curl.tree()
        first = next(iter(consul.kv.stream("s/")))  # left at its beginning: the connection is no longer of use
        assert first.key == "s/0"
        assert consul.kv.get("s/1") == "\x01" * 300_000
        big = tmp_path / "big"
        big.write_bytes(b"u" * 500_000)
        for body in (big.open("rb"), io.BytesIO(big.read_bytes())):
            with body, consul._adapter.stream("PUT", f"{consul._base}/kv/upload", body) as answer:
                assert answer.read() == b"true\n"
            assert curl.get("upload") == big.read_bytes()
            curl.delete("upload")
        with pytest.raises(consulate.TooLarge):
            consul.kv._stream("PUT", "kv/upload", {}, b"x" * (1 << 20))
    curl.delete_all()


def test_the_agents_certificate_may_change_while_a_client_lives(certificates, strange):
    """A restart with a certificate of another authority: refused from then on, not kept by an old session."""
    with tls_agent(certificates) as agent, client(agent, verify=certificates.ca) as consul:
        assert consul.kv.get("none") is None
        agent.stop()
        agent.config.update(ca_file=strange.ca, cert_file=strange.server[0], key_file=strange.server[1])
        agent.start()
        refused(consul, "certificate verify failed")


def test_a_process_that_knows_only_the_environment(served, certificates):
    script = f"from consulfs import consulate; print(consulate.Consul('localhost', {served.https}, scheme='https', "
    script += "timeout=10).status.leader())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={"REQUESTS_CA_BUNDLE": certificates.folder, "https_proxy": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.startswith("127.0.0.1:"), done.stderr
