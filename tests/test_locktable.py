"""The table of claims beside a brute-force model of it, which knows for each byte who has it and how."""

from hypothesis import given
from hypothesis import strategies as st

from consulfs.store.locktable import END, Claim, LockOwner, LockTable, deadlocks, first_of

BYTES = 12
"""The model knows so many bytes one by one, and all behind them as one more."""

HANDLES = [1, 2, 3]

POSIX = [LockOwner(True, number) for number in (1, 2, 3)]

FLOCK = [LockOwner(False, number) for number in HANDLES]

spans = st.tuples(st.integers(0, BYTES), st.integers(0, BYTES)).map(
    lambda pair: (min(pair), END if max(pair) == BYTES else max(pair))
)

posix_claims = st.builds(
    lambda owner, exclusive, handle, span: Claim(owner, exclusive, handle, 100 + owner.number, *span),
    st.sampled_from(POSIX),
    st.booleans(),
    st.sampled_from(HANDLES),
    spans,
)

flock_claims = st.builds(
    lambda owner, exclusive: Claim(owner, exclusive, owner.number, 0), st.sampled_from(FLOCK), st.booleans()
)

claims = st.one_of(posix_claims, posix_claims, flock_claims)

steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), claims),
        st.tuples(st.just("ask"), claims),
        st.tuples(st.just("drop"), st.sampled_from(POSIX), spans),
        st.tuples(st.just("drop"), st.sampled_from(FLOCK), st.just((0, END))),
        st.tuples(st.just("close"), st.sampled_from(HANDLES)),
    ),
    max_size=40,
)


def cells(start, end):
    """The model's numbers of the bytes of a range."""
    return range(min(start, BYTES), min(end, BYTES) + 1)


def blocked(model, claim):
    """The owners that have a byte of it in a way that does not go together."""
    return {
        owner
        for owner, has in model.items()
        if owner != claim.owner and owner.posix == claim.owner.posix
        for cell in cells(claim.start, claim.end)
        if cell in has and (has[cell][0] or claim.exclusive)
    }


def check(table, model):
    seen = {}
    for claim in table:
        has = seen.setdefault(claim.owner, {})
        for cell in cells(claim.start, claim.end):
            assert cell not in has, "one owner has a byte twice"
            has[cell] = (claim.exclusive, claim.handle)
    assert seen == {owner: has for owner, has in model.items() if has}
    assert bool(table) == bool(seen)
    for owner in POSIX + FLOCK:
        assert table.holds(owner) == (owner in seen)
    for handle in HANDLES:
        assert table.uses(handle) == any(handle == by for has in seen.values() for _, by in has.values())
    for one in table:
        for other in table:
            same = (one.owner, one.exclusive, one.handle) == (other.owner, other.exclusive, other.handle)
            assert not (same and one.end + 1 == other.start), "two that are one"


@given(steps)
def test_it_is_as_if_each_byte_were_locked_by_itself(steps):
    table, model = LockTable(), {owner: {} for owner in POSIX + FLOCK}
    for name, *arguments in steps:
        if name == "ask":
            claim = arguments[0]
            blockers = table.blockers(claim)
            assert {each.owner for each in blockers} == blocked(model, claim)
            assert all(each in list(table) and each.excludes(claim) and claim.excludes(each) for each in blockers)
            if blockers:
                first = first_of(blockers)
                assert all(first.start <= each.start for each in blockers)
            else:
                assert first_of(blockers) is None
                table.grant(claim)
                for cell in cells(claim.start, claim.end):
                    model[claim.owner][cell] = (claim.exclusive, claim.handle)
        elif name == "drop":
            owner, (start, end) = arguments
            had = [cell for cell in cells(start, end) if cell in model[owner]]
            assert table.drop(owner, start, end) == bool(had)
            for cell in had:
                del model[owner][cell]
        else:
            handle = arguments[0]
            had = any(by == handle for has in model.values() for _, by in has.values())
            assert table.drop_handle(handle) == had
            for has in model.values():
                for cell in [cell for cell, (_, by) in has.items() if by == handle]:
                    del has[cell]
        check(table, model)
    left = list(table)
    assert table.clear() == left
    check(table, {})


def test_a_range_to_the_end_stays_one_when_a_piece_in_it_is_unlocked():
    table = LockTable()
    table.grant(Claim(POSIX[0], True, 1, 7, 5, END))
    assert table.drop(POSIX[0], 10, 19)
    assert sorted((each.start, each.end) for each in table) == [(5, 9), (20, END)]
    assert table.drop(POSIX[0])
    assert not table


def test_the_first_that_blocks_is_the_first_in_the_file():
    table = LockTable()
    for start in (8, 2, 5):
        table.grant(Claim(POSIX[start % 3], False, 1, 7, start, start))
    assert first_of(table.blockers(Claim(LockOwner(True, 9), True, 2, 8, 3, END))).start == 5


names = st.integers(0, 5)

graphs = st.lists(st.tuples(names, st.lists(names, max_size=3)), max_size=8)


def claim_of(name):
    return Claim(LockOwner(True, name), True, name, name)


@given(names, st.lists(names, max_size=3), graphs)
def test_a_deadlock_is_a_circle_of_waiters(asking, blockers, graph):
    reached = {(one, other) for one, others in [*graph, (asking, blockers)] for other in others}
    for middle in range(6):
        for one in range(6):
            for other in range(6):
                if (one, middle) in reached and (middle, other) in reached:
                    reached.add((one, other))
    waiting = [(claim_of(one), [claim_of(other) for other in others]) for one, others in graph]
    wanted = any(name == asking or (name, asking) in reached for name in blockers)
    assert deadlocks(claim_of(asking), [claim_of(name) for name in blockers], waiting) == wanted


@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.booleans()), spans), max_size=60))
def test_where_a_deadlock_is_refused_somebody_can_always_go_on(asked):
    """Four processes ask for locks, or unlock (None); one that waits asks for nothing else."""
    table, waiting = LockTable(), {}
    for number, exclusive, (start, end) in asked:
        owner = LockOwner(True, number)
        if number in waiting:
            continue
        if exclusive is None:
            table.drop(owner, start, end)
        else:
            claim = Claim(owner, exclusive, number, number, start, end)
            blockers = table.blockers(claim)
            if not blockers:
                table.grant(claim)
            elif not deadlocks(claim, blockers, [(each, table.blockers(each)) for each in waiting.values()]):
                waiting[number] = claim
        for name, claim in list(waiting.items()):
            if not table.blockers(claim):
                table.grant(waiting.pop(name))
        assert len(waiting) < 4
