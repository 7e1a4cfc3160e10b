"""What the kernel was told of files, and what an open file goes on showing until it is told anew. Pure."""

from __future__ import annotations

from consulfs.consulate import Record
from consulfs.filesystem import kernel as module
from consulfs.filesystem.kernel import Asked, Kernel
from consulfs.store.edits import Append
from consulfs.store.node import Node, version_of


def record(value, index):
    return Record("k", value, 0, 1, index)


def test_an_open_of_another_content_than_was_told_is_behind_until_it_is_told_anew():
    kernel = Kernel(1e9)
    assert not kernel.is_behind("k", 1)
    kernel.tell("k", 1)
    assert not kernel.is_behind("k", 1)
    kernel.tell("k", 1)
    assert kernel.is_behind("k", 2)
    assert kernel.is_behind("k", 2)
    kernel.tell("k", 2)
    assert not kernel.is_behind("k", 2)


def test_a_program_is_not_sent_back_twice_in_a_row():
    kernel = Kernel(1e9)
    assert kernel.send_back("k", 1, Asked.OPEN)
    assert not kernel.send_back("k", 1, Asked.OPEN)
    assert kernel.send_back("k", 2, Asked.OPEN)
    assert kernel.send_back("l", 1, Asked.OPEN)


def test_a_program_that_has_looked_again_is_sent_back_by_its_next_open():
    kernel = Kernel(1e9)
    assert not kernel.waits
    assert kernel.send_back("k", 1, Asked.LOOK)
    assert kernel.waits
    assert kernel.send_back("k", 1, Asked.OPEN)
    kernel.arrives("k", 1, Asked.LOOK)
    assert kernel.send_back("k", 1, Asked.LOOK)
    assert not kernel.send_back("k", 1, Asked.OPEN)
    kernel.arrives("k", 2, *Asked)
    assert kernel.waits
    kernel.arrives("k", 1, *Asked)
    assert not kernel.waits


def test_without_a_timeout_it_is_never_behind():
    kernel = Kernel(0)
    kernel.tell("k", 1)
    assert not kernel.is_behind("k", 2)


def test_a_name_that_it_was_just_told_is_one_that_it_has_without_a_timeout_too():
    """An open(2) asks for the name, and then for the rights, however short names stand."""
    for timeout in (0, 1e9):
        kernel = Kernel(timeout)
        kernel.tell("k", 1, "/k")
        assert not kernel.loses("another", "/another")
        assert kernel.loses("k", "/k")
        assert not kernel.loses("k", "/k")


def test_what_it_was_made_to_forget_is_not_behind():
    kernel = Kernel(1e9)
    kernel.tell("k", 1)
    kernel.forget("k")
    assert not kernel.is_behind("k", 2)


def test_pages_are_kept_from_one_open_to_the_next_of_the_same_content_and_path():
    kernel = Kernel(1e9)
    assert [kernel.opens("/k", "k", version) for version in (1, 1, 2, 2)] == [False, True, False, True]
    assert not kernel.opens("/k%value", "k", 2)
    assert not kernel.opens("/k", "k", None)
    assert not kernel.opens("/k", "k", None)
    assert not kernel.opens("/k", "k", 2)
    kernel.forget("k")
    assert not kernel.opens("/k", "k", 2)


def test_names_that_it_takes_as_there_and_that_are_gone_are_known():
    kernel = Kernel(1e9)
    for key, path in (("a", "/a"), ("b", "/b"), ("d/", "/d"), ("d/a", "/d/a"), ("d/b", "/d/b%value")):
        kernel.tell(key, 1, path)
    kernel.tell("c", 1)  # by a handle
    assert kernel.gone_from("/", ["a", "b", "d"]) == []
    assert kernel.gone_from("/", []) == ["a", "b", "d/"]
    assert kernel.gone_from("/d", ["a", "b"]) == ["d/b"]
    assert kernel.gone_from("/e", []) == []
    kernel.forget("a")
    kernel.loses("b")
    assert kernel.gone_from("/", []) == ["d/"]
    kernel.tell("d/a", 1, "/a")  # renamed
    assert kernel.gone_from("/d", []) == ["d/b"]
    assert sorted(kernel.gone_from("/", [])) == ["d/", "d/a"]
    for number in range(module.TOLD):
        kernel.tell(f"{number}", 1, f"/e/{number}")
    assert kernel.gone_from("/", []) == kernel.gone_from("/d", []) == []
    assert len(kernel.gone_from("/e", ["1"])) == module.TOLD - 1
    assert Kernel(0).gone_from("/", []) == []


def test_without_a_timeout_no_name_is_taken_as_there():
    kernel = Kernel(0)
    kernel.tell("a", 1, "/a")
    assert kernel.gone_from("/", []) == []


def test_the_files_that_are_remembered_are_bounded():
    kernel = Kernel(1e9)
    assert not kernel.is_behind("never told", 2)
    for number in range(module.TOLD):
        kernel.tell(f"{number}", 1)
    kernel.tell("0", 2)  # the last one now
    assert not kernel.is_behind("never told", 2)
    kernel.tell("another", 1)
    assert kernel.is_behind("1", 1)  # whatever it was told, nobody knows
    assert not kernel.is_behind("0", 2)
    assert kernel.is_behind("another", 2)
    for number in range(module.OPENED + 1):
        kernel.opens("/", f"{number}", 1)
    assert not kernel.opens("/", "0", 1)
    assert kernel.opens("/", f"{module.OPENED}", 1)


def test_an_open_file_shows_what_was_told_until_it_is_told_anew():
    node = Node("k", record(b"old", 1))
    node.adopt(record(b"newer", 2))
    assert (node.shown, node.content, node.version) == (b"old", b"newer", version_of(record(b"newer", 2)))
    node.adopt(record(b"newest", 3))
    assert (node.shown, node.content) == (b"old", b"newest")
    node.show()
    assert node.shown is None
    node.adopt(record(b"newest", 4))  # a lock: the content is the same
    assert (node.shown, node.version) == (None, version_of(record(b"newest", 4)))


def test_a_change_here_shows_all():
    node = Node("k", record(b"old", 1))
    node.adopt(record(b"newer", 2))
    node.change(1, Append(bytearray(b"+")))
    assert (node.shown, node.content, node.version) == (None, b"newer+", None)


def test_a_store_says_whether_it_brought_changes_of_others():
    for stored, merged in ((b"old+", False), (b"theirs+", True)):
        node = Node("k", record(b"old", 1))
        node.change(1, Append(bytearray(b"+")))
        node.plan()
        assert node.version is None
        assert node.settle(record(stored, 2)) is merged
        assert (node.content, node.version) == (stored, version_of(record(stored, 2)))


def test_after_indexes_begin_anew_any_record_is_newer():
    node = Node("k", record(b"old", 50))
    node.begin_anew()
    assert node.version is None
    node.adopt(record(b"restored", 3))
    assert (node.content, node.version) == (b"restored", version_of(record(b"restored", 3)))
