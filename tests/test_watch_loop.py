"""A watch's pauses, and whose turn it is. Pure."""

from __future__ import annotations

import threading

from consulfs.store.patience import Patience
from consulfs.store.turns import Turns
from consulfs.store.watch import Pause


def test_pauses_double_up_to_the_longest_and_begin_anew():
    pause = Pause(0.1, 1.0)
    for _ in range(2):
        for most in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
            assert most * 0.75 <= pause.grow() <= most
        pause.reset()


def test_those_at_work_are_found_by_key_and_below_prefixes():
    turns = Turns(Patience(60))
    assert turns.taken(["a", "d/"]) == turns.taken_below("") == []
    with turns.take("d/a", "d/s/x"), turns.take(below=("e/f/",)):
        candidates = ["d/a", "d/b", "d/", "d/s/", "d/s/x", "e/", "e/f/", "e/f/g", "e/g", "g/"]
        assert turns.taken(candidates) == ["d/a", "d/", "d/s/", "d/s/x", "e/", "e/f/", "e/f/g"]
        assert sorted(turns.taken_below("d/")) == ["d/a", "d/s/x"]
        assert turns.taken_below("e/") == ["e/f/"]
    assert turns.taken(candidates) == []


def test_it_waits_until_a_key_is_free():
    turns = Turns(Patience(60))
    begun, end, freed = threading.Event(), threading.Event(), threading.Event()

    def work():
        with turns.take("d/a"):
            begun.set()
            end.wait(60)
            freed.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert begun.wait(60)
        turns.wait_free(["d/b"], 60)
        turns.wait_free(["d/a"], 0.02)  # not for long
        assert not freed.is_set()
        threading.Timer(0.05, end.set).start()
        turns.wait_free(["d/a"], 60)
        assert freed.is_set()
        assert turns.taken(["d/a"]) == []
    finally:
        end.set()
        thread.join(60)
