import resource

from child_process import Child
from luciola.descriptors import raise_limit


def limits_after_raising():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
    raise_limit()
    return most, resource.getrlimit(resource.RLIMIT_NOFILE)


def test_a_process_may_open_as_much_as_its_hard_limit_allows():
    with Child(limits_after_raising) as child:
        most, now = child.result()
    assert now == (most, most)
