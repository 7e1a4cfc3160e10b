"""An open key's unsaved edits: taken, given back, settled, dropped. Pure."""

from consulfs.consulate import Record
from consulfs.store.edits import Append, Truncate, Write
from consulfs.store.node import Creation, Doubt, Node, Plan


def record(value, index=1, flags=0):
    return Record("k", value, flags, 1, index)


def opened(value=b"base"):
    return Node("k", record(value))


def append(node, owner, data):
    node.change(owner, Append(bytearray(data)))


def test_edits_show_at_once_and_are_owed():
    node = opened()
    append(node, 1, b"+one")
    assert node.content == b"base+one"
    assert node.unsaved
    assert node.owes(1)
    assert not node.owes(2)


def test_what_is_in_flight_is_still_owed():
    node = opened()
    append(node, 1, b"+one")
    plan = node.plan()
    assert not node.dirty
    assert node.unsaved
    assert node.owes(1)
    append(node, 2, b"+two")
    node.settle(record(b"base+one", 2))
    assert not node.owes(1)
    assert node.content == b"base+one+two"
    assert [edit.owner for edit in plan.edits] == [1]


def test_a_plan_that_failed_is_pending_again_before_what_came_later():
    node = opened()
    append(node, 1, b"+one")
    plan = node.plan()
    append(node, 1, b"+two")
    node.keep(plan)
    assert node.content == b"base+one+two"
    assert node.sealed == 1
    append(node, 1, b"+three")  # merged with "+two", never with what was sent
    assert len(node.pending) == 2


def test_a_plan_that_was_found_half_applied_goes_on_from_there():
    node = opened()
    append(node, 1, b"+one")
    plan = node.plan()
    plan.base, plan.edits = record(b"base+one+other", 3), []
    append(node, 1, b"+two")
    node.keep(plan)
    assert node.content == b"base+one+other+two"


def test_a_failed_handle_takes_its_own_edits_along():
    node = opened()
    append(node, 1, b"+one")
    append(node, 2, b"+two")
    append(node, 1, b"+three")
    node.discard(1)
    assert node.content == b"base+two"
    assert not node.owes(1)


def test_a_handle_that_failed_during_a_store_is_not_stored_by_the_next():
    node = opened()
    append(node, 1, b"+one")
    plan = node.plan()
    node.discard(1)
    node.keep(plan)
    assert node.content == b"base"
    assert not node.dirty


def test_discarding_keeps_the_count_of_what_was_sent():
    node = opened()
    append(node, 1, b"+one")
    append(node, 2, b"+two")
    plan = node.plan()
    plan.doubts.append(Doubt(b"base+one+two", 0, 2))
    node.keep(plan)
    append(node, 2, b"+three")
    node.discard(1)
    assert node.doubts[0].edits == 1
    assert node.sealed == 1


def test_a_newer_record_is_adopted_only_where_nothing_is_unsaved():
    node = opened()
    node.adopt(record(b"newer", 5))
    assert node.content == b"newer"
    node.adopt(record(b"older", 4))
    assert node.content == b"newer"
    node.change(1, Write(0, bytearray(b"N")))
    node.adopt(record(b"newest", 6))
    assert node.content == b"Newer"


def test_a_creation_is_owed_by_its_handle():
    node = Node("k", None, Creation(7, exclusive=True))
    assert node.exists
    assert node.owes(7)
    node.discard(7)
    assert not node.exists


def test_flags_of_a_plan():
    creation = Creation(1, False, 3)
    assert Plan("k", None, [], creation, []).flags_on(None) == 3
    assert Plan("k", None, [], creation, []).flags_on(record(b"", flags=4)) == 4
    assert Plan("k", None, [], None, [], 5).flags_on(record(b"", flags=4)) == 5
    assert Plan("k", record(b"", flags=6), [], None, []).flags_on(None) == 6


def test_a_truncation_is_an_edit():
    node = opened()
    node.change(1, Truncate(0))
    assert node.content == b""
    assert node.owes(1)


def test_under_a_lock_unsaved_edits_go_on_from_the_newest_value():
    node = opened()
    append(node, 1, b"+one")
    node.adopt(record(b"newer", 2))
    assert node.content == b"base+one"
    node.refresh(record(b"newer", 2))
    assert (node.content, node.base.modify_index) == (b"newer+one", 2)
    node.refresh(record(b"older", 1))
    assert node.content == b"newer+one"


def test_but_not_from_a_value_that_may_hold_them_already():
    for doubt in (True, False):
        node = opened()
        append(node, 1, b"+one")
        plan = node.plan()
        if doubt:
            plan.doubts.append(Doubt(b"base+one", 0, 1))
            node.keep(plan)
        node.refresh(record(b"base+one", 2))
        assert (node.content, node.base.modify_index) == (b"base+one", 1)


def test_a_handle_whose_edits_were_dropped_may_write_again():
    node = opened()
    append(node, 1, b"+one")
    node.discard(1)
    node.readmit(1)
    append(node, 1, b"+two")
    node.keep(node.plan())
    assert node.content == b"base+two"


def test_what_others_did_is_held_until_the_kernel_has_forgotten():
    node = opened(b"old")
    node.adopt(record(b"newer", 2))
    assert node.hold()
    assert node.tell()[0] == b"old"
    node.let_go()
    assert node.tell()[0] == b"newer"


def test_after_a_lock_nothing_from_before_it_is_held():
    """A watch tells of the change when the kernel was made to forget the file already."""
    node = opened(b"old")
    node.bare()
    node.adopt(record(b"newer", 2))
    assert not node.hold()
    assert node.tell()[0] == b"newer"
    assert node.mapped is None
    node.adopt(record(b"newest", 3))  # now the kernel has something to forget
    assert node.hold()
    assert node.tell()[0] == b"newer"


def test_a_page_that_was_written_after_a_lock_is_one_that_the_kernel_has():
    node = opened(b"old")
    node.bare()
    append(node, 1, b"+own")
    node.plan()
    node.settle(record(b"old+own", 2))
    node.adopt(record(b"OLD+own", 3))
    assert node.mapped == b"old+own"
    assert node.hold()
