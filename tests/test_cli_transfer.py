"""`consulate kv backup` and `restore`: exact, restartable, and never half."""

import base64
import contextlib
import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import time

import pytest
from support.agent import Agent, consul_command
from support.command import COMMAND, consulate, environment, fails, ok
from support.curl import Curl
from support.waiting import until

from consulfs import consulate as library
from consulfs.consulate import rows, transfer

ODD = {
    "app/text": (b"text", 0),
    "app/binary": (bytes(range(256)) * 3, 7),
    "app/latin": (b"caf\xe9", 1),
    "app/empty": (b"", 0),
    "app/empty-with-flags": (b"", 42),
    "app/flags": (b"x", 2**64 - 1),
    "app/": (b"", 0),
    "app": (b"both key and folder", 3),
    "a//b": (b"double", 2**63),
    "/lead": (b"lead", 0),
    "x/../y": (b"dots", 0),
    "x/./z": (b"dot", 0),
    "schlüssel/日本/😀": ("größe 😀".encode(), 5),
    "line\nbreak": (b"a\nb\r\n", 0),
    "tab\tnul\0": (b"\0", 0),
    "100%/what?/#hash/a b&c=d+e": (b'"\\quoted\\"', 0),
    'quote"back\\slash': (b"\\ud800 is no escape here", 0),
    "replacement\ufffd": (b"\xef\xbf\xbd", 0),
    "json": (b'{"a": [1, null]}', 0),
    "big": (os.urandom(512 * 1024), 9),
    "bigtext": (b"t" * 512 * 1024, 0),
}


@pytest.fixture(scope="module")
def second():
    with Agent() as agent:
        yield agent


@pytest.fixture
def other(second):
    """The independent client of the second agent, on an empty store."""
    curl = Curl(second.url)
    curl.delete_all()
    return curl


def fill(curl, entries=ODD):
    small = []
    for key, (value, flags) in entries.items():
        if len(value) > 300_000:
            assert curl("PUT", f"kv/{key}?flags={flags}", value)[0] == 200
        else:
            text = base64.b64encode(value).decode()
            small.append({"Verb": "set", "Key": key, "Value": text, "Flags": flags})
    for start in range(0, len(small), 64):
        assert curl.txn(*small[start : start + 64]) is not None


def export(agent):
    command = [consul_command(), "kv", "export", "-http-addr", agent.address, ""]
    return subprocess.run(command, capture_output=True, check=True).stdout


def many(count, length=100):
    return {f"many/{number:05d}": (f"{number} ".encode().ljust(length, b"v"), number) for number in range(count)}


def backup_of(entries):
    found = [[key, flags, base64.b64encode(value).decode()] for key, (value, flags) in entries.items()]
    return json.dumps(found).encode()


def entries_of(curl):
    status, text = curl("GET", "kv/?recurse")
    found = json.loads(text) if status == 200 else []
    return {each["Key"]: (base64.b64decode(each["Value"] or ""), each["Flags"]) for each in found}


# -- exact ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["-b"], ["-p"], ["-b", "-p"]], ids=" ".join)
def test_a_backup_restored_elsewhere_is_the_same_store(agent, curl, second, other, options):
    fill(curl)
    saved = ok(agent.address, "kv", "backup", *options)
    on_restore = [option for option in options if option == "-b"]
    assert ok(second.address, "kv", "restore", *on_restore, input=saved) == b""
    assert export(second) == export(agent)
    assert len(entries_of(other)) == len(ODD)
    assert ok(second.address, "kv", "backup", *options) == saved


def test_a_backup_by_file_is_the_same_store(agent, curl, second, other, tmp_path):
    fill(curl)
    path = tmp_path / "backup.json"
    assert ok(agent.address, "kv", "backup", "-f", path) == b""
    assert ok(second.address, "kv", "restore", "--file", path) == b""
    assert export(second) == export(agent)


def test_a_backup_looks_as_the_original_writes_it(agent, curl):
    assert ok(agent.address, "kv", "backup", "--allow-empty") == b"[]\n"
    fill(curl, {"a": (b"1", 0), "b": (b"", 3), "ü": ("ä".encode(), 0)})
    wanted = [["a", 0, "1"], ["b", 3, None], ["ü", 0, "ä"]]
    assert ok(agent.address, "kv", "backup").decode() == json.dumps(wanted) + "\n"
    pretty = json.dumps(wanted, sort_keys=True, indent=2, separators=(",", ": ")) + "\n"
    assert ok(agent.address, "kv", "backup", "--pretty").decode() == pretty
    wanted = [["a", 0, "MQ=="], ["b", 3, None], ["ü", 0, "w6Q="]]
    assert ok(agent.address, "kv", "backup", "--base64").decode() == json.dumps(wanted) + "\n"


def test_only_what_is_no_text_is_written_as_consul_does(agent, curl):
    fill(curl, {"a": (b"\xff", 1), "b": (b"text", 0)})
    wanted = [{"Key": "a", "Flags": 1, "Value": "/w=="}, ["b", 0, "text"]]
    assert json.loads(ok(agent.address, "kv", "backup")) == wanted


def test_a_folder_is_backed_up_with_relative_names_and_restored_elsewhere(agent, curl):
    below = {"": 1, "/": 2, "/x": 3, "/x/y": 4, "//": 5, "//x": 6, "/x//y/": 7}
    fill(curl, {"foo" + rest: (b"v", flags) for rest, flags in below.items()} | {"foobar/x": (b"not", 0)})
    saved = ok(agent.address, "kv", "backup", "foo")
    assert {name: flags for name, flags, _ in json.loads(saved)} == {
        "": 1, "/": 2, "x": 3, "x/y": 4, "//": 5, "//x": 6, "x//y/": 7,
    }  # fmt: skip
    assert ok(agent.address, "kv", "backup", "/foo/") == saved
    curl.put("barrier", b"stays")
    curl.put("bar/old", b"goes")
    assert ok(agent.address, "kv", "restore", "-p", "/bar/", input=saved) == b"Pruning bar/old\n"
    found = {key: flags for key, (_, flags) in entries_of(curl).items() if key.startswith("bar")}
    assert found == {"barrier": 0} | {"bar" + rest: flags for rest, flags in below.items()}


def test_a_backup_of_nothing_replaces_and_empties_nothing(agent, curl, tmp_path):
    path = tmp_path / "backup.json"
    path.write_text("the old one")
    assert "there are no keys" in fails(agent.address, "kv", "backup", "-f", path)
    curl.put("nowhere-else", b"stays")
    done = consulate(agent.address, "kv", "backup", "nowhere")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no key 'nowhere' and none below it" in done.stderr
    fails(agent.address, "kv", "restore", "-p", input=done.stdout)
    assert curl.tree() == {"nowhere-else": b"stays"}
    assert path.read_text() == "the old one"
    ok(agent.address, "kv", "backup", "--allow-empty", "-f", path, "nowhere")
    assert path.read_text() == "[]\n"
    with library.Consul("127.0.0.1", agent.port) as consul, pytest.raises(transfer.NothingFound):
        transfer.backup(consul, io.BytesIO(), "nowhere")


def test_rows_of_all_forms_are_restored(agent, curl, other, second):
    text = (
        b"\xef\xbb\xbf \n"
        + json.dumps(
            [
                ["a", 1, "text"],
                {"Key": "b", "Flags": 2, "Value": "Yg==", "CreateIndex": 5, "LockIndex": 0},
                {"key": "c", "flags": 3, "value": "Yw=="},
                {"Key": "d", "Flags": 0, "Value": None},
                ["e", 0, None],
                ["a", 9, "again"],
            ]
        ).encode()
    )
    ok(agent.address, "kv", "restore", input=text)
    wanted = {"a": (b"again", 9), "b": (b"b", 2), "c": (b"c", 3), "d": (b"", 0), "e": (b"", 0)}
    assert entries_of(curl) == wanted
    fill(curl)
    ok(second.address, "kv", "restore", input=export(agent))
    assert export(second) == export(agent)
    other.delete_all()
    ok(second.address, "kv", "restore", "-b", input=curl("GET", "kv/?recurse")[1])
    assert export(second) == export(agent)


def test_a_key_that_json_cannot_name_makes_no_backup(agent, curl, tmp_path):
    assert curl("PUT", "kv/a%ffb", b"x")[0] == 200
    assert "is not UTF-8" in fails(agent.address, "kv", "backup", "-f", tmp_path / "b")
    assert os.listdir(tmp_path) == []
    curl.put("old")
    done = consulate(agent.address, "kv", "restore", "-p", input=b"[]")
    assert (done.returncode, done.stdout) == (1, b"Pruning old\n")
    assert b"is not UTF-8" in done.stderr
    assert curl.keys() == ["a\ufffdb"]


def test_a_key_that_json_cannot_name_is_not_taken_for_the_one_that_it_is_shown_as(agent, curl):
    curl.put("a\ufffdb", b"named")
    saved = ok(agent.address, "kv", "backup")
    assert curl("PUT", "kv/a%ffb", b"nameless")[0] == 200
    assert curl.keys() == ["a\ufffdb"] * 2
    assert "is not UTF-8" in fails(agent.address, "kv", "backup")
    for text in (saved, b"[]"):
        done = consulate(agent.address, "kv", "restore", "-p", input=text)
        assert done.returncode == 1
        assert b"is not UTF-8" in done.stderr
    assert json.loads(curl("GET", "kv/?recurse")[1])[0]["Value"] == base64.b64encode(b"nameless").decode()


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "before the first row: the input is not a whole JSON list: it ends too early"),
        (b"  \n", "it ends too early"),
        (b'{"Key": "a"}', "the input is not a JSON list"),
        (b"hello", "the input is not a JSON list"),
        (b'[["a",0,"x"]', "after row 1: the input is not a whole JSON list: it ends too early (1 written"),
        (b'[["a",0,"x"],["b",0,"y', "after row 1: the input is not a whole JSON list: it ends too early (1 written"),
        (b'[["a",0,"x"]] []', "after row 1"),
        (b'[["a",0,"x"],]', "after row 1"),
        (b'[["a",0,"x"],["b",0]]', "row 2: 2 fields"),
        (b'[["a",0,"x"],5]', "row 2: neither a list nor an object but a number"),
        (b'[["a",0,"x"],{"Flags":0,"Value":null}]', "row 2: no Key"),
        (b'[["a",0,"x"],{"Key":"b","Flags":0}]', "row 2: no Value"),
        (b'[["a",0,"x"],{"Key":"b","Value":"eA=="}]', "row 2: no Flags"),
        (b'[["a",0,"x"],{"Key":"b","Flags":0,"Value":"!!"}]', "row 2: 'b': the value is not base64"),
        (b'[["a",0,"x"],["b",18446744073709551616,"y"]]', "row 2: 'b': the flags are not"),
        (b'[["a",0,"x"],["b",-1,"y"]]', "row 2: 'b': the flags are not"),
        (b'[["a",0,"x"],["b",1.5,"y"]]', "row 2: 'b': the flags are not"),
        (b'[["a",0,"x"],["b",true,"y"]]', "row 2: 'b': the flags are not"),
        (b'[["a",0,"x"],["b",null,"y"]]', "row 2: 'b': the flags are not"),
        (b'[["a",0,"x"],["b",0,7]]', "row 2: 'b': the value is neither text nor null but a number"),
        (b'[["a",0,"x"],[7,0,"y"]]', "row 2: the key is not text but a number"),
        (b'[["a",0,"x"],["",0,"y"]]', "row 2: the key is empty"),
        (b'[["a",0,"x"],["b\xff",0,"y"]]', "row 2: the key 'b\\udcff' is not Unicode text"),
        (b'[["a",0,"x"],["b\\ud83d",0,"y"]]', "row 2: the key 'b\\ud83d' is not Unicode text"),
        (b'[["a",0,"x"],["b",0,"\\ude00"]]', "row 2: 'b': the value is not Unicode text"),
        (b'[["a",0,"x"],["b",' + b"1" * 5000 + b',"y"]]', "after row 1"),
        (b'[["a",0,"x"],' + b"[" * 100_000, "after row 1"),
        (b"null", "the input is not a JSON list"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_bad_input_is_named_and_what_stands_before_it_is_written(agent, curl, text, words):
    curl.put("other", b"stays")
    said = fails(agent.address, "kv", "restore", "--prune", input=text)
    assert words in said
    wanted = {"other": b"stays"}
    if b'["a",0,"x"]' in text:
        wanted["a"] = b"x"
        assert "1 written" in said
    assert curl.tree() == wanted


def test_values_that_are_not_base64_are_refused_under_that_option(agent, curl):
    assert "row 1: 'a': the value is not base64" in fails(
        agent.address, "kv", "restore", "-b", input=b'[["a",0,"plain text"]]'
    )
    assert curl.tree() == {}


def test_halves_of_characters_are_found_wherever_the_input_is_cut():
    good = json.dumps([["k", 0, "\\ud83d 😀 \\\\ \u20ac" * 3], ["l", 0, "\\"]]).encode()
    bad = good.replace(b"\\ude00", b"\\u0041", 1)

    class Pieces(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, self.step))

    for step in range(1, len(good)):
        source = Pieces(good)
        source.step = step
        assert [entry.key for entry in rows.read(source)] == ["k", "l"]
        source = Pieces(bad)
        source.step = step
        with pytest.raises(rows.BadBackup, match=r"row 1: .*not Unicode text"):
            list(rows.read(source))


def test_a_missing_file_is_one_line(agent):
    assert "No such file" in fails(agent.address, "kv", "restore", "-f", "/nowhere/backup.json")
    assert "No such file" in fails(agent.address, "kv", "backup", "-f", "/nowhere/backup.json")


def test_input_that_does_not_wait_is_waited_for(agent, curl):
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    process = subprocess.Popen([COMMAND, "kv", "restore"], stdin=reader, env=environment(agent.address))
    with open(writer, "wb", buffering=0) as file:
        file.write(b'[["a",0,"x"],')
        time.sleep(0.5)
        file.write(b'["b",0,"' + b"y" * 60000 + b'"]]')
    os.close(reader)
    assert process.wait(60) == 0
    assert curl.tree() == {"a": b"x", "b": b"y" * 60000}


# -- again, without replacing, pruning -----------------------------------------------------------------------------


def test_restoring_again_writes_nothing(agent, curl, proxy):
    fill(curl)
    saved = ok(agent.address, "kv", "backup")
    with proxy.counting() as count:
        ok(proxy.address, "kv", "restore", input=saved)
    assert count.writes == 0
    curl.put("app/text", b"other")
    curl.put("app/flags", b"x", 1)
    with proxy.counting() as count:
        ok(proxy.address, "kv", "restore", input=saved)
    assert count.writes == 1
    assert entries_of(curl) == ODD


def test_transactions_are_full(curl, proxy):
    entries = many(640)
    with proxy.counting() as count:
        ok(proxy.address, "kv", "restore", "-b", input=backup_of(entries))
    assert count.writes == 10
    assert entries_of(curl) == entries


def test_without_replacing_keys_that_are_there_stay(agent, curl):
    fill(curl, {"a": (b"old", 1), "b/c": (b"", 0)})
    ok(agent.address, "kv", "restore", "-n", input=b'[["a",2,"new"],["b/c",0,"new"],["d",0,"new"]]')
    assert entries_of(curl) == {"a": (b"old", 1), "b/c": (b"", 0), "d": (b"new", 0)}
    ok(agent.address, "kv", "restore", "--no-replace", "-p", input=b'[["a",2,"new"]]')
    assert entries_of(curl) == {"a": (b"old", 1)}


def test_pruning_deletes_what_the_backup_does_not_have(agent, curl):
    entries = many(150)
    fill(curl, entries)
    fill(curl, {"a//b": (b"odd", 0), "keep": (b"", 0), "bad\nname": (b"", 0)})
    said = ok(agent.address, "kv", "restore", "-p", input=b'[["keep",0,"kept"]]')
    wanted = ["a//b", "bad\nname", *entries]
    assert said == "".join(f"Pruning {key}\n" for key in wanted).encode()
    assert curl.tree() == {"keep": b"kept"}
    assert ok(agent.address, "kv", "restore", "-p", input=b"[]") == b"Pruning keep\n"
    assert curl.tree() == {}


def test_pruning_leaves_what_others_write_meanwhile(curl, proxy):
    fill(curl, {"old": (b"", 0), "changed": (b"1", 0), "late": (b"1", 0)})

    def others(seen):
        if b'"cas"' in seen.body:
            curl.put("new", b"by others")
            curl.put("changed", b"2")
        if b'"delete-cas"' in seen.body and curl.get("late") == b"1":
            curl.put("late", b"2")

    proxy.fault = others
    assert ok(proxy.address, "kv", "restore", "-p", input=b'[["a",0,"x"]]') == b"Pruning old\n"
    assert curl.tree() == {"a": b"x", "new": b"by others", "changed": b"2", "late": b"2"}


def test_a_key_that_others_write_meanwhile_is_still_restored(curl, proxy):
    times = iter(range(3))

    def others(seen):
        if b'"cas"' in seen.body and next(times, None) is not None:
            curl.put("a", os.urandom(4))

    proxy.fault = others
    ok(proxy.address, "kv", "restore", input=b'[["a",0,"x"],["b",0,"y"]]')
    assert curl.tree() == {"a": b"x", "b": b"y"}


# -- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cut", "drop", (500, b"No cluster leader"), (429, b"slow down"), (503, b"")])
def test_passing_failures_are_endured(curl, proxy, fault):
    entries = many(500)
    turns = iter(range(10**6))
    proxy.fault = lambda seen: fault if seen.path == "/v1/txn" and next(turns) % 3 == 0 else None
    ok(proxy.address, "kv", "restore", "-b", "-p", input=backup_of(entries))
    assert entries_of(curl) == entries


@pytest.mark.parametrize("fault", ["cut", (500, b"No cluster leader"), (429, b"slow down")])
def test_the_first_requests_are_patient_too(curl, proxy, fault):
    paths = set()

    def fails_once(seen):
        path = seen.path.split("?")[0]
        before = path in paths
        paths.add(path)
        return None if before else fault

    curl.put("old")
    proxy.fault = fails_once
    assert ok(proxy.address, "kv", "restore", "-p", input=b'[["a",0,"x"]]') == b"Pruning old\n"
    assert {"/v1/agent/self", "/v1/kv/", "/v1/txn"} <= paths
    assert curl.tree() == {"a": b"x"}


def test_nobody_there_is_told_at_once(agent):
    with library.Consul("127.0.0.1", 1) as consul, pytest.raises(library.ConnectFailed):
        transfer.restore(consul, io.BytesIO(b"[]"), patience=10**6)


@pytest.mark.parametrize(
    "config", [None, [], "x", *({"TxnMaxReqLen": each} for each in ("many", -1, 0, [1], 1.5, True))]
)
def test_a_limit_that_is_none_is_the_default(curl, proxy, config):
    body = json.dumps({"DebugConfig": config}).encode()
    proxy.fault = lambda seen: (200, body) if seen.path == "/v1/agent/self" else None
    ok(proxy.address, "kv", "restore", input=b'[["a",0,"x"]]')
    assert curl.tree() == {"a": b"x"}


def test_a_restore_that_was_killed_goes_on_when_it_is_run_again(curl, proxy):
    entries = {**many(1000), **ODD}
    saved = backup_of(entries)
    process = subprocess.Popen(
        [COMMAND, "kv", "restore", "-b"], stdin=subprocess.PIPE, env=environment(proxy.address), stderr=subprocess.PIPE
    )
    turns = iter(range(10**6))

    def kill(seen):
        if seen.is_write and next(turns) == 5:
            process.kill()

    proxy.fault = kill
    with contextlib.suppress(BrokenPipeError):
        process.communicate(saved)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(entries_of(curl)) < len(entries)
    with proxy.counting() as count:
        ok(proxy.address, "kv", "restore", "-b", input=saved)
    assert count.writes <= 17
    assert entries_of(curl) == entries


def test_a_restore_gives_up_in_time_and_says_how_far_it_came(curl, proxy):
    entries = many(300)
    writes = iter(range(10**6))
    proxy.fault = lambda seen: "drop" if seen.is_write and next(writes) >= 2 else None
    host, port = proxy.address.split(":")
    curl.put("other", b"stays")
    with library.Consul(host, int(port)) as consul:
        with pytest.raises(transfer.RestoreStopped) as caught:
            transfer.restore(consul, io.BytesIO(backup_of(entries)), as_base64=True, prune=True, patience=1)
        assert "run the same restore again to go on" in str(caught.value)
        assert "row 129: " in str(caught.value)
        assert caught.value.counts.written == 128
        assert curl.get("other") == b"stays"
        proxy.fault = lambda seen: None
        counts = transfer.restore(consul, io.BytesIO(backup_of(entries)), as_base64=True, prune=True)
    assert (counts.written, counts.same, counts.pruned) == (172, 128, 1)
    assert entries_of(curl) == entries


def test_a_page_of_something_else_is_not_endured(curl, proxy):
    proxy.fault = lambda seen: (200, b"<html>") if seen.path == "/v1/txn" else None
    assert "row 1: " in fails(proxy.address, "kv", "restore", input=b'[["a",0,"x"]]')


def test_a_value_that_is_too_large_is_named_and_the_others_are_written(agent, curl):
    text = json.dumps([["a", 0, "x"], ["b", 0, "x" * (512 * 1024 + 1)], ["c", 0, "x"]]).encode()
    said = fails(agent.address, "kv", "restore", input=text)
    assert "row 2: 'b': " in said
    assert "413" in said
    assert curl.get("a") == b"x"


def test_the_limits_of_the_server_count():
    limits = {"limits": {"txn_max_req_len": 20000, "kv_max_value_size": 100000}}
    entries = {**many(100, 1000), "big": (b"b" * 99_000, 1), "a//b": (b"odd", 0)}
    with Agent(limits) as agent:
        ok(agent.address, "kv", "restore", "-b", input=backup_of(entries))
        assert entries_of(Curl(agent.url)) == entries


@pytest.mark.parametrize("fault", ["half", "half chunked", "drop", (500, b"No cluster leader")])
def test_a_backup_that_fails_leaves_no_half_file(agent, curl, proxy, tmp_path, fault):
    fill(curl, many(2000))
    path = tmp_path / "backup.json"
    proxy.fault = lambda seen: fault if "recurse" in seen.path else None
    fails(proxy.address, "kv", "backup", "-f", path)
    assert os.listdir(tmp_path) == []
    path.write_text("the old one")
    fails(proxy.address, "kv", "backup", "-f", path)
    assert (os.listdir(tmp_path), path.read_text()) == (["backup.json"], "the old one")
    done = consulate(proxy.address, "kv", "backup")
    assert done.returncode == 1
    curl.delete_all()
    assert "it ends too early" in fails(agent.address, "kv", "restore", "-p", input=done.stdout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_backup_that_is_ended_leaves_no_half_file(curl, proxy, tmp_path, number):
    proxy.fault = lambda seen: 30
    process = subprocess.Popen(
        [COMMAND, "kv", "backup", "-f", str(tmp_path / "backup.json")], env=environment(proxy.address)
    )
    until(lambda: os.listdir(tmp_path))
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert os.listdir(tmp_path) == []


def test_a_backup_file_keeps_its_mode_and_its_symlink(agent, curl, tmp_path):
    real = tmp_path / "real.json"
    real.write_text("")
    real.chmod(0o640)
    (tmp_path / "link.json").symlink_to("real.json")
    ok(agent.address, "kv", "set", "a", "x")
    ok(agent.address, "kv", "backup", "-f", tmp_path / "link.json")
    assert json.loads(real.read_text()) == [["a", 0, "x"]]
    assert real.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link.json").is_symlink()
    assert ok(agent.address, "kv", "backup", "-f", "/dev/stdout") == b'[["a", 0, "x"]]\n'
    ok(agent.address, "kv", "backup", "-f", tmp_path / ("x" * 255))
    assert "'/nowhere/backup.json'" in fails(agent.address, "kv", "backup", "-f", "/nowhere/backup.json")


# -- the terminal --------------------------------------------------------------------------------------------------


def in_terminal(address, *words):
    """What the command says on a terminal, which is its stderr only."""
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [COMMAND, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=child,
        env=environment(address),
    )
    os.close(child)
    out = process.stdout.read()
    assert process.wait(60) == 0
    said = b""
    with contextlib.suppress(OSError), open(main, "rb", buffering=0) as file:
        while piece := file.read(1 << 16):
            said += piece
    return out, said


def test_a_terminal_shows_a_bar_and_a_pipe_does_not(agent, curl, tmp_path):
    fill(curl, many(300))
    path = tmp_path / "backup.json"
    out, said = in_terminal(agent.address, "kv", "backup", "-f", path)
    assert out == b""
    assert b"backup: 300 keys" in said, said
    curl.delete_all()
    curl.put("old", b"")
    out, said = in_terminal(agent.address, "kv", "restore", "-p", "-f", path)
    assert out == b"Pruning old\n"
    assert b"restore: 100%" in said
    assert b"300 written, 0 already as in the backup, 1 pruned" in said
    assert ok(agent.address, "kv", "restore", "-f", path) == b""
