"""Values: decimal numbers, finite floats, and the types that an option can have."""

import pytest

from configs.errors import ConfigError
from configs.values import coerce, describe
from fire.fields import option


def declared(annotation, **metadata):
    return describe(annotation, None, option(None, "help", **metadata).metadata)


@pytest.mark.parametrize(
    "text, annotation, value",
    [
        ("010", int, 10),
        ("-0089", int, -89),
        ("1_000_000", int, 1_000_000),
        ("1e6", int, 1_000_000),
        ("2.0", int, 2),
        ("010", float, 10.0),
        ("+.5", float, 0.5),
        ("1e-4", float, 1e-4),
        ("010", str, "010"),
        ("1e5", str, "1e5"),
        ("YES", bool, True),
        ("off", bool, False),
        ("None", float | None, None),
        ("null", str | None, None),
        ("none", str, "none"),
        (3, float, 3.0),
        (3.0, int, 3),
        (12345678901234567891, int, 12345678901234567891),
        (["08", 9, "1e1"], tuple[int, ...], (8, 9, 10)),
        ([], tuple[str, ...], ()),
    ],
)
def test_text_and_numbers_become_the_declared_type(text, annotation, value):
    got = coerce(text, declared(annotation), "here")
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "value, annotation, message",
    [
        ("1:30", int, "here must be int, got '1:30'"),
        ("0x10", int, "here must be int, got '0x10'"),
        ("0o10", float, "here must be float, got '0o10'"),
        ("1e400", int, "here must be int, got '1e400'"),
        ("1e400", float, "here must be a finite number, got '1e400'"),
        (10**400, float, "here must be a finite number, got 1000"),
        ("9" * 5000, int, "here must be int, got '999"),
        ("-inf", float, "here must be a finite number, got '-inf'"),
        (float("nan"), float, "here must be a finite number, got nan"),
        (True, int, "here must be int, got True"),
        (1, bool, "here must be true/false, got 1"),
        (1.5, int, "here must be int, got 1.5"),
        (5, str, "here must be text, got 5"),
        (None, int, "here must be int, got None"),
        ({}, int, "here must be int, got {}"),
        ("3", tuple[int, ...], "here must be a list of int, got '3'"),
        ([None], tuple[int, ...], "here must be int, got None"),
        ([0], tuple[int, ...], "here must be at least 1, got 0"),
        ("11", int, "here must be at most 10, got 11"),
    ],
)
def test_what_is_refused(value, annotation, message):
    with pytest.raises(ConfigError) as caught:
        coerce(value, declared(annotation, minimum=1, maximum=10), "here")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "annotation",
    [dict, list[int], int | str, int | str | None, tuple[int, int], tuple[int, ...] | None, complex],
)
def test_other_types_are_a_mistake_of_ours(annotation):
    with pytest.raises(TypeError, match="no option can have the type"):
        declared(annotation)
