"""The tree of operating errors: what callers catch, and the wire form."""

import pickle
import re

import pytest

from luciola import errors


@pytest.mark.parametrize("cls", errors.CLASSES.values(), ids=lambda cls: cls.code)
def test_every_class_survives_the_wire_and_pickling(cls: type[errors.Error]) -> None:
    error = cls("it happened", chain=7)
    again = errors.from_code(error.code, error.message, errno=error.errno or 0, **error.fields)
    for copy in (again, pickle.loads(pickle.dumps(error))):
        assert type(copy) is cls
        assert (copy.message, copy.errno, copy.fields) == ("it happened", error.errno, {"chain": "7"})


def test_pythons_own_classes_catch_ours() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        raise errors.NotFound("no such file", path="/a")
    assert caught.value.filename == "/a"
    assert isinstance(errors.Unavailable("x"), ConnectionError)
    assert isinstance(errors.InvalidArgument("x"), ValueError)


def test_unknown_codes_become_the_base_class() -> None:
    error = errors.from_code("from_the_future", "new", errno=5)
    assert type(error) is errors.Error
    assert str(error) == "new"


def test_the_drawing_lists_every_class() -> None:
    drawn = re.findall(r"[├└]─ (\w+) +(\w+) ", errors.__doc__ or "")
    assert drawn == [(cls.__name__, cls.code) for cls in errors.CLASSES.values() if cls is not errors.Error]
