"""SOURCE, -o and the environment: pure."""

import pytest

from consulfs import options, source
from consulfs.source import Source


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", Source("http", "localhost", 8500)),
        ("none", Source("http", "localhost", 8500)),
        ("host", Source("http", "host", 8500)),
        ("host:1", Source("http", "host", 1)),
        ("https://host", Source("https", "host", 8501)),
        ("http://host:1/a/b", Source("http", "host", 1, "a/b/")),
        ("host/a/", Source("http", "host", 8500, "a/")),
        ("host/", Source("http", "host", 8500)),
        ("host//odd", Source("http", "host", 8500, "/odd/")),
        ("host/a%20b?c#d", Source("http", "host", 8500, "a b?c#d/")),
        ("/app", Source("http", "localhost", 8500, "app/")),
        ("[::1]:7", Source("http", "::1", 7)),
        ("unix:///run/consul.sock", Source("http+unix", "/run/consul.sock", None)),
    ],
)
def test_sources(text, wanted):
    assert source.parse(text, {}) == wanted


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"CONSUL_HTTP_ADDR": "host:1"}, Source("http", "host", 1, "app/")),
        ({"CONSUL_HTTP_ADDR": "https://host:1"}, Source("https", "host", 1, "app/")),
        ({"CONSUL_HTTP_ADDR": "host:1", "CONSUL_HTTP_SSL": "true"}, Source("https", "host", 1, "app/")),
        ({"CONSUL_HTTP_ADDR": "unix:///s"}, Source("http+unix", "/s", None, "app/")),
    ],
)
def test_the_environment_gives_the_address(environ, wanted):
    assert source.parse("/app", environ) == wanted


@pytest.mark.parametrize("text", ["ftp://host", "unix://relative", "user:secret@host", "host:port", "http://"])
def test_bad_sources(text):
    with pytest.raises(source.BadSource) as caught:
        source.parse(text, {})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("ro", ["ro"]),
        ("ro,timeout=5,,noatime", ["ro", "timeout=5", "noatime"]),
        (r"log_file=/a\,b,ro", ["log_file=/a,b", "ro"]),
        (r"log_file=/a\\b", [r"log_file=/a\b"]),
    ],
)
def test_the_words_of_an_option(text, words):
    assert options.split(text) == words


def test_defaults_options_and_environment():
    given = options.parse(["timeout=5", "umask=022", "rw", "_netdev", "x-systemd.automount"], {"CONSUL_CACERT": "/ca"})
    assert (given["timeout"], given["umask"], given["cacert"], given["ro"]) == (5.0, 0o022, "/ca", False)
    assert given["exclusive"] == "open"
    assert given.given == {"timeout", "umask"}
    assert given.kernel == ("nosuid", "nodev", "noexec")
    assert options.parse(["cacert=/other"], {"CONSUL_CACERT": "/ca"})["cacert"] == "/other"
    assert options.parse([], {"CONSUL_HTTP_SSL_VERIFY": "false"})["verify"] is False


@pytest.mark.parametrize(("text", "seconds"), [("10", 10), ("10s", 10), ("1m30s", 90), ("24h", 86400)])
def test_how_long_a_lock_outlives_its_host(text, seconds):
    assert options.parse([f"lock_ttl={text}"], {})["lock_ttl"] == seconds
    assert options.parse([], {})["lock_ttl"] == 15


@pytest.mark.parametrize(
    "word",
    [
        *("lock_ttl=9", "lock_ttl=25h", "lock_ttl=soon", "lock_delay=61", "lock_delay=-1", "locks=none"),
        *("bogus", "timeout=x", "timeout=0", "timeout", "umask=9", "exclusive=never", "ro=1", "cache_size=1", "uid=-1"),
    ],
)
def test_bad_options(word):
    with pytest.raises(options.BadOption, match=word.partition("=")[0]):
        options.parse([word], {})


def test_every_option_is_described():
    for option in options.OPTIONS:
        assert options.describe(option)
        assert f"`{option.usage}`".replace("|", "\\|") in options.markdown_table()


def test_a_token_is_not_shown():
    assert "s3cret" not in repr(options.parse(["token=s3cret", "auth=u:s3cret"], {}))


@pytest.mark.parametrize("text", ["auth=user:pass,word", "token=one,word,ro", "ro,auth=a:b,word=x"])
def test_the_rest_of_a_secret_behind_a_comma_is_not_repeated(text):
    with pytest.raises(options.BadOption, match="comma") as caught:
        options.parse(options.split(text), {})
    assert "word" not in str(caught.value)
