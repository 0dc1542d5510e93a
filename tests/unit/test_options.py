"""What tasks may ask for, and views of executors."""

from __future__ import annotations

import dataclasses

import pytest

from taskfarm.errors import UsageError
from taskfarm.futures._options import OptionChanges, TaskOptions


def test_one_name_stands_for_several() -> None:
    """A name, a rank and a tag may be given alone; repeated ones count once."""
    options = TaskOptions(hosts="a", ranks_in=3, tags="gpu")  # type: ignore[arg-type]
    assert (options.hosts, options.ranks_in, options.tags) == (("a",), frozenset({3}), frozenset({"gpu"}))
    several = TaskOptions(hosts=["a", "b", "a"], ranks_in=range(2, 4), tags={"x", "y"})  # type: ignore[arg-type]
    assert (several.hosts, several.ranks_in, several.tags) == (("a", "b"), frozenset({2, 3}), frozenset({"x", "y"}))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ranks", 0), ("ranks", True), ("ranks", 2.0), ("results", "last"),
        ("hosts", []), ("hosts", 7), ("hosts", [""]), ("tags", [3]), ("tags", ""),
        ("ranks_in", -1), ("ranks_in", True), ("ranks_in", ()), ("ranks_in", ["1"]),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named(option: str, value: object) -> None:
    """The error names the option and the value."""
    with pytest.raises(UsageError) as caught:
        TaskOptions(**{option: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{option}={value!r}: ")


def test_plain_tasks_are_told_from_placed_ones() -> None:
    """What asks for nothing but one rank takes the fast way."""
    assert not TaskOptions().is_placed
    assert all(
        TaskOptions(**options).is_placed  # type: ignore[arg-type]
        for options in ({"ranks": 2}, {"results": "all"}, {"hosts": "a"}, {"ranks_in": 1}, {"tags": "gpu"})
    )


def test_the_keywords_are_the_fields() -> None:
    """`with_options` knows every option, and no other."""
    assert set(OptionChanges.__annotations__) == {field.name for field in dataclasses.fields(TaskOptions)}
