"""Tests of the plugins need the extra `plugins` (torch, triton): without it they are not collected."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["*"]
