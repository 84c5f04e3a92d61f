"""Replies that are put together from stored inodes, beside the messages that they stand for."""

import pytest

from luciola.errors import CorruptData
from luciola.meta.replies import StoredReply, of_inode, without_data
from luciola.wire.pb import meta_pb2 as pb

from .world import World

NAME = b"x" * 120  # an inode with it takes more than 127 bytes: its length has two bytes on the wire


@pytest.mark.parametrize(
    "inode", [pb.Inode(), pb.Inode(id=7, length=5), pb.Inode(id=1 << 62, symlink_target=NAME * 200)]
)
@pytest.mark.parametrize("more", [{}, {"session": (1 << 63) - 1}, {"session": 1, "created": True}])
def test_reply_of_a_stored_inode_is_the_message_encoded(inode, more):
    reply = of_inode(inode.id, inode.SerializeToString(), **more)
    assert reply.message() == pb.InodeReply(inode=inode, **more)
    assert list(reply.inodes) == [inode.id]
    assert without_data(reply) == reply.SerializeToString()


def test_record_of_a_reply_has_no_bytes_of_a_small_file():
    inode = pb.Inode(id=7, is_inline=True, inline_data=b"secret", length=6)
    reply = of_inode(inode.id, inode.SerializeToString(), session=3)
    assert reply.message().inode.inline_data == b"secret"
    inode.ClearField("inline_data")
    assert pb.InodeReply.FromString(without_data(reply)) == pb.InodeReply(inode=inode, session=3)


def test_tag_of_inline_data_that_is_there_by_chance_changes_nothing():
    inode = pb.Inode(id=7, symlink_target=b"a\x82\x01b")
    reply = of_inode(inode.id, inode.SerializeToString())
    assert pb.InodeReply.FromString(without_data(reply)) == pb.InodeReply(inode=inode)


def test_damaged_inode_is_an_error_where_it_is_looked_at():
    with pytest.raises(CorruptData):
        of_inode(7, b"\xff\xff").message()


def test_new_name_is_answered_with_what_is_stored():
    world = World()
    assert world.create(b"a").inode == world.stat(b"a")
    reply = world.service.rename(
        pb.RenameRequest(
            caller=world.caller(), source=pb.Path(at=1, path=b"a"), target=pb.Path(at=1, path=b"b")
        ),
        world.identity,
    )
    assert isinstance(reply, StoredReply)
    assert reply.message() == pb.RenameReply(moved=world.stat(b"b"))
