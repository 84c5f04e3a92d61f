import grpc
import pytest

from luciola import errors
from luciola.wire import errors as wire_errors
from luciola.wire.pb import common_pb2


@pytest.mark.parametrize("code", errors.CLASSES)
def test_every_class_survives_the_wire(code):
    error = errors.CLASSES[code]("what", path="/a/b", inode=7)
    again = wire_errors.decode_bytes(wire_errors.encode(error).SerializeToString())
    assert type(again) is type(error)
    assert (again.message, again.errno, again.filename, again.fields) == (
        "what",
        error.errno,
        "/a/b",
        {"inode": "7"},
    )
    assert str(again) == str(error)


def test_errno_that_differs_from_the_class_survives():
    error = errors.InvalidArgument("name too long", errno=36)
    assert wire_errors.decode(wire_errors.encode(error)).errno == 36


def test_every_class_has_a_status():
    assert wire_errors.STATUS.keys() == errors.CLASSES.keys()
    assert grpc.StatusCode.OK not in wire_errors.STATUS.values()


def test_unknown_code_of_a_newer_peer_is_a_plain_error():
    error = wire_errors.decode(common_pb2.Error(code="from_the_future", message="?", errno=11))
    assert type(error) is errors.Error
    assert error.errno == 11


def test_garbage_is_an_unavailable_service():
    assert isinstance(wire_errors.decode_bytes(b"\xff\xff"), errors.Unavailable)


def test_long_texts_are_cut():
    message = wire_errors.encode(errors.Error("x" * 100_000, detail="y" * 100_000))
    assert message.ByteSize() < 3000


def test_programmer_error_says_nothing_of_its_cause():
    message = wire_errors.unexpected()
    assert (message.code, message.errno, message.retryable) == ("error", 5, False)
