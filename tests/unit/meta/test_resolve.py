import pytest

from luciola.errors import InvalidArgument, NotADirectory, NotFound, PermissionDenied

from .world import ALICE, World, refused


@pytest.fixture
def tree(world):
    world.mkdir(b"a/b/c", parents=True)
    world.create(b"a/b/file")
    world.symlink(b"a/up", b"..")
    world.symlink(b"abs", b"/a/b")
    world.symlink(b"dangling", b"nowhere")
    world.symlink(b"loop", b"loop")
    world.symlink(b"chain1", b"chain2")
    world.symlink(b"chain2", b"a/b/file")
    return world


@pytest.mark.parametrize(
    ("path", "same"),
    [
        (b"/", b""),
        (b"a/b/", b"a/b"),
        (b"./a/./b", b"a/b"),
        (b"a/../a/b", b"a/b"),
        (b"..", b""),
        (b"a/b/..", b"a"),
        (b"a/up", b""),
        (b"a/up/a/b", b"a/b"),
        (b"abs/c", b"a/b/c"),
        (b"abs", b"a/b"),
        (b"//a//b", b"a/b"),
        (b"chain1", b"a/b/file"),
        (b"abs/", b"a/b"),
    ],
)
def test_paths_lead_to_the_same_inode(tree, path, same):
    assert tree.stat(path).id == tree.stat(same).id


def test_last_link_is_followed_only_on_request(tree):
    assert tree.stat(b"abs", follow=False).symlink_target == b"/a/b"
    assert tree.stat(b"abs/", follow=False).id == tree.stat(b"a/b").id


def test_paths_are_relative_to_an_inode(tree):
    directory = tree.stat(b"a").id
    assert tree.stat(b"b/c", at=directory).id == tree.stat(b"a/b/c").id
    assert tree.stat(b"/a", at=directory).id == directory
    assert tree.stat(b"", at=directory).id == directory


@pytest.mark.parametrize(
    ("path", "error", "errno"),
    [
        (b"none", NotFound, 2),
        (b"none/x", NotFound, 2),
        (b"dangling", NotFound, 2),
        (b"a/b/file/x", NotADirectory, 20),
        (b"a/b/file/", NotADirectory, 20),
        (b"chain1/x", NotADirectory, 20),
        (b"loop", InvalidArgument, 40),
        (b"loop/x", InvalidArgument, 40),
        (b"n" * 256, InvalidArgument, 36),
        (b"a/" + b"n" * 256, InvalidArgument, 36),
        (b"a/" * 2500, InvalidArgument, 36),
        (b"./" * 300, InvalidArgument, 36),
        (b"a\0b", InvalidArgument, 22),
    ],
)
def test_paths_that_lead_nowhere(tree, path, error, errno):
    with refused(error, errno):
        tree.stat(path)


def test_name_of_255_bytes_is_fine(world):
    world.create(b"n" * 255)
    assert world.lookup(b"n" * 255).id


def test_forty_links_are_followed_and_no_more(world):
    world.create(b"link0")
    for number in range(1, 42):
        world.symlink(b"link%d" % number, b"link%d" % (number - 1))
    assert world.stat(b"link40").id == world.stat(b"link0").id
    with refused(InvalidArgument, 40):
        world.stat(b"link41")


def test_directories_on_the_way_must_be_executable(tree):
    tree.set_attr(b"a/b", permissions=0o600)
    with refused(PermissionDenied, 13):
        tree.stat(b"a/b/c", user=ALICE)
    with refused(PermissionDenied, 13):
        tree.lookup(b"c", parent=tree.stat(b"a/b").id, user=ALICE)
    assert tree.stat(b"a/b", user=ALICE).id
    assert tree.stat(b"a/b/c").id


def test_unknown_starting_point(world):
    with refused(NotFound, 2):
        world.stat(b"x", at=12345)
    with refused(NotFound, 2):
        world.stat(b"", at=2**64 - 1)


def test_starting_point_must_be_a_directory(world):
    number = world.create(b"f").inode.id
    with refused(NotADirectory, 20):
        world.stat(b"x", at=number)
    with refused(NotADirectory, 20):
        world.lookup(b"x", parent=number)


def test_names_in_lookup_are_single(world):
    for name in (b"", b"a/b", b"a\0"):
        with refused(InvalidArgument, 22):
            world.lookup(name)


def test_depth_is_configurable():
    world = World(path_depth_max=3)
    world.mkdir(b"a/b/c", parents=True)
    assert world.stat(b"a/b/c").id
    with refused(InvalidArgument, 36):
        world.stat(b"a/b/c/d")
    world.close()
