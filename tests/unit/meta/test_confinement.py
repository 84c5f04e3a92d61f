"""Tokens that open one directory, and tokens that are read-only, at the metadata service."""

import pytest

from luciola.errors import InvalidArgument, NotFound, PermissionDenied
from luciola.wire import CLIENT, TRUSTED, Identity
from luciola.wire.credentials import Limits
from luciola.wire.pb import meta_pb2 as pb
from unit.meta.world import ALICE, ROOT

OUTSIDE = "not below its path"
EROFS = 30


@pytest.fixture
def tree(world):
    """The root with /data/set, which tokens open, /data/other and /secret."""
    numbers = {}
    for path in (b"data", b"data/set", b"data/set/sub", b"data/other"):
        numbers[path] = world.mkdir(path, permissions=0o777).id
    for path in (b"data/set/file", b"data/set/sub/deep", b"data/other/file", b"secret"):
        numbers[path] = world.create(path, write=False, permissions=0o666).inode.id
    return numbers


def token(tree, **limits):
    return Identity(TRUSTED, 0, 0, (), limits=Limits(**{"root": tree[b"data/set"], **limits}))


def names(reply):
    return [entry.name for entry in reply.entries]


def listed(world, inode, who, **options):
    return names(world.call("list", pb.ListRequest(inode=inode, **options), identity=who))


def test_what_is_inside_can_be_used_by_path_and_by_number(world, tree):
    who = token(tree)
    for path in (b"/data/set", b"/data/set/file", b"/data/set/sub/deep"):
        assert world.stat(path, identity=who).id == tree[path[1:]]
        assert world.stat(at=tree[path[1:]], identity=who).id == tree[path[1:]]
    assert listed(world, tree[b"data/set"], who) == [b"file", b"sub"]
    made = world.create(b"/data/set/sub/new", read=True, identity=who).inode.id
    assert world.open(at=made, identity=who).inode.id == made
    world.mkdir(b"/data/set/a/b", parents=True, identity=who)
    world.call(
        "rename",
        pb.RenameRequest(
            source=pb.Path(at=1, path=b"data/set/a"), target=pb.Path(at=1, path=b"data/set/sub/a")
        ),
        identity=who,
    )
    world.call(
        "remove_tree", pb.RemoveTreeRequest(path=pb.Path(at=tree[b"data/set/sub"], path=b"a")), identity=who
    )
    assert (
        world.call("real_path", pb.RealPathRequest(inode=tree[b"data/set/sub"]), identity=who).path
        == b"/data/set/sub"
    )
    attribute = {"inode": tree[b"data/set/file"], "name": b"user.a"}
    world.call("set_xattr", pb.XattrRequest(value=b"1", **attribute), identity=who)
    assert world.call("get_xattr", pb.XattrRequest(**attribute), identity=who).value == b"1"


def test_the_way_from_the_root_shows_nothing_beside_it(world, tree):
    who = token(tree)
    assert listed(world, 1, who) == [b"data"]
    assert listed(world, 1, who, by_cookie=True) == [b"data"]
    assert listed(world, 1, who, after=b"data") == []
    assert listed(world, tree[b"data"], who, with_inodes=True) == [b"set"]
    assert world.lookup(b"data", identity=who).id == tree[b"data"]
    for name, parent in ((b"secret", 1), (b"other", tree[b"data"])):
        with pytest.raises(NotFound):
            world.lookup(name, parent=parent, identity=who)
    assert listed(world, 1, world.identity) == [b"data", b"secret"], "others see all"


@pytest.mark.parametrize("path", [b"secret", b"data/other", b"data/other/file"])
def test_what_is_outside_cannot_be_named_by_its_number(world, tree, path):
    who, number = token(tree), tree[path]
    requests = [
        ("stat", pb.StatRequest(path=pb.Path(at=number))),
        ("open", pb.OpenRequest(path=pb.Path(at=number), read=True)),
        ("open", pb.OpenRequest(path=pb.Path(at=number), write=True)),
        ("open", pb.OpenRequest(path=pb.Path(at=number), truncate=True)),
        ("list", pb.ListRequest(inode=number)),
        ("sync", pb.SyncRequest(inode=number)),
        ("get_xattr", pb.XattrRequest(inode=number, name=b"user.a")),
        ("list_xattr", pb.XattrRequest(inode=number)),
        ("set_xattr", pb.XattrRequest(inode=number, name=b"user.a", value=b"1")),
        ("remove_xattr", pb.XattrRequest(inode=number, name=b"user.a")),
        ("set_attr", pb.SetAttrRequest(path=pb.Path(at=number), permissions=0o600)),
        ("lookup", pb.LookupRequest(parent=number, name=b"file")),
        ("link", pb.LinkRequest(source=pb.Path(at=number), target=pb.Path(at=tree[b"data/set"], path=b"l"))),
        ("real_path", pb.RealPathRequest(inode=number)),
    ]
    for name, request in requests:
        with pytest.raises(PermissionDenied, match=OUTSIDE):
            world.call(name, request, identity=who)
    close = pb.CloseRequest(closes=[pb.CloseOne(inode=number, mtime_ns=1)])
    assert world.call("close", close, identity=who).errors[0].code == "permission_denied"
    world.call("hold", pb.HoldRequest(inodes=[number]), identity=who)
    assert not world.dependencies.holds.has(number, 1)


def test_directories_on_the_way_cannot_be_changed(world, tree):
    who = token(tree)
    above = pb.Path(at=tree[b"data"])
    path = pb.Path(at=tree[b"data"], path=b"new")
    down = pb.Path(at=tree[b"data"], path=b"set")
    inside = pb.Path(at=tree[b"data/set"], path=b"moved")
    requests = [
        ("create", pb.CreateRequest(path=path, permissions=0o644)),
        ("mkdir", pb.MkdirRequest(path=path, permissions=0o755)),
        (
            "mkdir",
            pb.MkdirRequest(path=pb.Path(at=1, path=b"data/new/more"), permissions=0o755, parents=True),
        ),
        ("symlink", pb.SymlinkRequest(path=path, target=b"x")),
        ("mknod", pb.MknodRequest(path=path, type=pb.FIFO)),
        ("link", pb.LinkRequest(source=pb.Path(at=tree[b"data/set/file"]), target=path)),
        ("set_attr", pb.SetAttrRequest(path=above, permissions=0o700)),
        ("set_attr", pb.SetAttrRequest(path=pb.Path(at=1), permissions=0o700)),
        ("set_xattr", pb.XattrRequest(inode=tree[b"data"], name=b"user.a", value=b"1")),
        ("rmdir", pb.RmdirRequest(path=down)),
        ("remove_tree", pb.RemoveTreeRequest(path=down)),
        ("rename", pb.RenameRequest(source=down, target=inside)),
        ("rename", pb.RenameRequest(source=pb.Path(at=tree[b"data/set"], path=b"file"), target=path)),
    ]
    for name, request in requests:
        with pytest.raises(PermissionDenied):
            world.call(name, request, identity=who)
    assert world.apply((b"data/new", b"bytes"), identity=who) == ["permission_denied"]
    kinds = ("create", "mkdir", "symlink", "rmdir", "rename")
    changes = [pb.Change(**{name: each}) for name, each in requests if name in kinds]
    for change in changes:
        if change.HasField("create"):
            change.create.exclusive = True
    results = world.call("apply", pb.ApplyRequest(changes=changes), identity=who).results
    parents = ["invalid_argument"]  # which a batch never makes
    assert [each.error.code for each in results] == ["permission_denied"] * 2 + parents + [
        "permission_denied"
    ] * 4
    assert listed(world, tree[b"data"], world.identity) == [b"other", b"set"]
    assert world.stat(at=tree[b"data"]).permissions == 0o777


def test_links_lead_no_way_out(world, tree):
    target = {"secret": b"/secret", "up": b"../other/file"}
    for name, to in target.items():
        world.call(
            "symlink", pb.SymlinkRequest(path=pb.Path(at=tree[b"data/set"], path=name.encode()), target=to)
        )
        with pytest.raises((PermissionDenied, NotFound)):
            world.stat(b"/data/set/" + name.encode(), identity=token(tree))
    with pytest.raises(NotFound):
        world.stat(b"/data/set/../other/file", identity=token(tree))


def test_file_with_a_name_inside_can_be_reached_by_it(world, tree):
    inside = pb.Path(at=tree[b"data/set"], path=b"linked")
    world.call("link", pb.LinkRequest(source=pb.Path(at=1, path=b"secret"), target=inside))
    who = token(tree)
    assert world.open(b"/data/set/linked", identity=who).inode.id == tree[b"secret"]
    with pytest.raises(PermissionDenied, match=OUTSIDE):
        world.open(at=tree[b"secret"], identity=who)


def test_token_follows_its_directory_and_ends_with_it(world, tree):
    who = token(tree)
    move = pb.RenameRequest(source=pb.Path(at=1, path=b"data/set"), target=pb.Path(at=1, path=b"moved"))
    world.call("rename", move)
    world.mkdir(b"data/set", permissions=0o777)
    assert world.stat(b"/moved/file", identity=who).id == tree[b"data/set/file"]
    with pytest.raises(NotFound):
        world.stat(b"/data/set", identity=who)
    world.call("remove_tree", pb.RemoveTreeRequest(path=pb.Path(at=1, path=b"moved")))
    with pytest.raises((NotFound, PermissionDenied)):
        world.stat(b"/moved", identity=who)
    with pytest.raises((NotFound, PermissionDenied)):
        world.stat(at=1, identity=who)


def test_what_leaves_the_directory_cannot_be_named_any_more(world, tree):
    move = pb.RenameRequest(
        source=pb.Path(at=1, path=b"data/set/sub"), target=pb.Path(at=1, path=b"data/sub")
    )
    world.call("rename", move)
    for path in (b"data/set/sub", b"data/set/sub/deep"):
        with pytest.raises(PermissionDenied, match=OUTSIDE):
            world.stat(at=tree[path], identity=token(tree))


def test_permissions_of_the_user_count_inside(world, tree):
    world.create(b"data/set/private", write=False, permissions=0o600)
    who = Identity(CLIENT, *ALICE, (), limits=Limits(root=tree[b"data/set"]))
    with pytest.raises(PermissionDenied, match="permission denied"):
        world.open(b"/data/set/private", user=ALICE, identity=who)
    assert world.open(b"/data/set/file", user=ALICE, identity=who).inode.id == tree[b"data/set/file"]


def test_read_only_token_reads_and_changes_nothing(world, tree):
    who = token(tree, root=0, read_only=True)
    number = tree[b"data/set/file"]
    path, free = pb.Path(at=number), pb.Path(at=1, path=b"new")
    assert world.stat(b"/secret", identity=who).id == tree[b"secret"]
    world.open(at=number, identity=who)
    world.call("close", pb.CloseRequest(closes=[pb.CloseOne(inode=number, read_hold=True)]), identity=who)
    world.call(
        "sync", pb.SyncRequest(inode=number, durable=True), identity=who
    )  # fsync of what is open for reading
    requests = [
        ("open", pb.OpenRequest(path=path, write=True)),
        ("open", pb.OpenRequest(path=path, truncate=True)),
        ("create", pb.CreateRequest(path=pb.Path(at=1, path=b"secret"), read=True)),
        ("close", pb.CloseRequest(closes=[pb.CloseOne(inode=number, session=1)])),
        ("close", pb.CloseRequest(closes=[pb.CloseOne(inode=number, mtime_ns=1)])),
        ("sync", pb.SyncRequest(inode=number, mtime_ns=1)),
        ("mkdir", pb.MkdirRequest(path=free)),
        ("mknod", pb.MknodRequest(path=free, type=pb.FIFO)),
        ("symlink", pb.SymlinkRequest(path=free, target=b"x")),
        ("link", pb.LinkRequest(source=path, target=free)),
        ("unlink", pb.UnlinkRequest(path=pb.Path(at=1, path=b"secret"))),
        ("rmdir", pb.RmdirRequest(path=pb.Path(at=1, path=b"data"))),
        ("remove_tree", pb.RemoveTreeRequest(path=pb.Path(at=1, path=b"data"))),
        ("rename", pb.RenameRequest(source=pb.Path(at=1, path=b"secret"), target=free)),
        ("set_attr", pb.SetAttrRequest(path=path, permissions=0o600)),
        ("set_attr", pb.SetAttrRequest(path=path)),
        ("set_xattr", pb.XattrRequest(inode=number, name=b"user.a", value=b"1")),
        ("remove_xattr", pb.XattrRequest(inode=number, name=b"user.a")),
        ("apply", pb.ApplyRequest()),
    ]
    for name, request in requests:
        with pytest.raises(PermissionDenied, match="read-only") as caught:
            world.call(name, request, identity=who)
        assert caught.value.errno == EROFS
    assert listed(world, 1, world.identity) == [b"data", b"secret"]


def test_read_only_token_ends_no_session_of_the_client_that_it_names(world, tree):
    session = world.open(b"/secret", write=True, user=ROOT, client=7).session
    world.clock.advance(3600)
    reader = token(tree, root=0, read_only=True)
    with pytest.raises(PermissionDenied, match="belongs to another token"):
        world.call("hold", pb.HoldRequest(), client=7, identity=reader)
    world.crash()  # the id was not used since
    world.call("hold", pb.HoldRequest(), client=7, identity=reader)
    world.crash()
    assert world.sync(tree[b"secret"], session, client=7, mtime_ns=5).mtime_ns == 5


def test_sequence_of_another_verb_is_no_way_around_a_refusal(world, tree):
    """A recorded answer is sent again only to what the token may do."""
    world.create(b"made", sequence=77)
    with pytest.raises(PermissionDenied, match="read-only"):
        world.create(b"made", sequence=77, identity=token(tree, root=0, read_only=True))
    with pytest.raises((InvalidArgument, PermissionDenied, NotFound)):
        world.create(b"made", sequence=77, identity=token(tree))
