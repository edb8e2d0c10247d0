"""Groups of experts: everybody with rows in one of them, few spare rows."""

from hypothesis import given
from hypothesis import strategies as st

from plait.ops.backend.batches import affordable_padding, batches, work_per_row


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(-1, 100))
def test_groups_cover_who_has_rows_and_spare_few(loads, affordable):
    found = batches(loads, affordable)
    members = [expert for group in found for expert in range(group.start, group.end)]
    assert members == sorted(set(members))
    assert {expert for expert, load in enumerate(loads) if load} <= set(members)
    for group in found:
        own = loads[group.start : group.end]
        assert 0 not in (own[0], own[-1])
        assert group.size == max(own)
        assert group.num_experts == 1 or group.num_rows - sum(own) <= affordable


def test_nobody_shares_a_call_where_none_may():
    assert batches([3, 3, 0, 3], -1) == [(0, 1, 3), (1, 2, 3), (3, 4, 3)]


def test_the_larger_an_expert_the_fewer_spare_rows_are_worth_a_call():
    assert affordable_padding(10**4) == 10 * affordable_padding(10**5)


def test_a_row_with_many_positions_takes_the_work_at_each():
    """An image costs an expert of few variables more than a vector of features."""
    kernel, bias = (3, 3, 2, 4), (4,)
    assert work_per_row([kernel, bias], [(2,)]) == 76
    assert work_per_row([kernel, bias], [(10, 5, 2), (7,)]) == 76 * 50


def test_experts_without_variables_work_on_each_number_of_a_row():
    assert work_per_row([], [(10, 5, 2)]) == 100
    assert work_per_row([], [()]) == 1
