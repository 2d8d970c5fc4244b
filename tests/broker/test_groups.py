"""Groups are few, whatever operators call their devices, and every device is in one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.groups import GROUPS_MAX, OTHER, UNTAGGED, groups_of

TAGS = {"cabin": frozenset({"north", "wood"}), "barn": frozenset({"wood"})}


def test_a_device_is_in_each_of_its_tags() -> None:
    groups = groups_of(TAGS)
    assert groups.names == ("wood", "north")  # the most used first
    assert (groups.of("cabin"), groups.of("barn"), groups.of("dune")) == (("wood", "north"), ("wood",), (UNTAGGED,))


def test_a_group_that_was_told_of_stays_one_when_others_grow() -> None:
    many = {f"d{number}": frozenset({f"new-{number % 20}"}) for number in range(100)}
    groups = groups_of(TAGS | many, known=("north",))
    assert "north" in groups.names
    assert "wood" not in groups.names
    assert groups.of("barn") == (OTHER,)


@given(st.dictionaries(st.text("abc", min_size=1), st.frozensets(st.text("xyz", min_size=1), max_size=9)))
def test_there_are_never_more_than_so_many_and_nobody_is_left_out(tags: dict[str, frozenset[str]]) -> None:
    groups = groups_of(tags)
    assert len(groups.names) <= GROUPS_MAX
    for device_id, own in tags.items():
        found = groups.of(device_id)
        assert found
        assert set(found) - own <= {OTHER, UNTAGGED}
        assert (found == (UNTAGGED,)) == (not own)
