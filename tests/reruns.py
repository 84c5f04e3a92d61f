"""What surrounds a failed test that is run once more (`make test-python`: pytest-rerunfailures).

- A test marked `integrity` (its subject is lost or wrong data) is never run again: one failure is a failure.
- The others get fixtures of every scope anew, for the failed attempt may have left a broken cluster behind, and their
  whole time limit.
- What the failed attempt left open is collected before the next test begins, which it would fail with a warning.

How many failures a run may forgive stands on the command line in the Makefile.
"""

import gc
import sys
import warnings
from typing import Any

import pytest

_TIME_LIMIT = pytest.StashKey[Any]()


class Reruns:
    """The plugin; without `--reruns` it does nothing but collect what failed tests leave."""

    def __init__(self) -> None:
        self._item: pytest.Item | None = None
        self._failed = self._again = False

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Translates our mark into the plugin's, which goes before `--reruns`."""
        if not config.getoption("reruns", None):
            return
        for item in items:
            if item.get_closest_marker("integrity"):
                item.add_marker(pytest.mark.flaky(reruns=0), append=False)

    @pytest.hookimpl(tryfirst=True, wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Remembers which test the reports are about."""
        self._item = item
        return (yield)

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> None:
        """Remembers the limit; pytest-timeout goes on and sets it."""
        item.stash[_TIME_LIMIT] = settings

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes how the attempt ended."""
        self._again = self._again or report.outcome == "rerun"
        self._failed = self._failed or report.outcome in {"rerun", "failed"}

    def pytest_runtest_logfinish(self) -> None:
        """Between two attempts, and after every test."""
        item, again, failed = self._item, self._again, self._failed
        self._again = self._failed = False
        if item is None or not failed:
            return
        if again:
            _finish_fixtures(item)
        _collect()
        if again and _TIME_LIMIT in item.stash:
            item.config.hook.pytest_timeout_set_timer(item=item, settings=item.stash[_TIME_LIMIT])


def _finish_fixtures(item: pytest.Item) -> None:
    """Those of the test have ended; this ends those of its module and of the session, so that they begin anew."""
    if not isinstance(item, pytest.Function):
        return
    item._initrequest()  # pytest would, when the next attempt begins
    known = item._fixtureinfo.name2fixturedefs
    for definition in (each for definitions in known.values() for each in definitions):
        try:
            definition.finish(item._request)
        except Exception as error:  # noqa: BLE001, what is broken may break at its end; the next attempt tells
            sys.stderr.write(f"{item.nodeid}: the end of fixture {definition.argname}: {error!r}\n")


def _collect() -> None:
    """Python keeps the last exception, hence its frames and their files and sockets, until there is another."""
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
