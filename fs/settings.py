"""Settings of the cluster: keys and values that administrators set while it runs, over the defaults of `config`.

What a process runs with comes from three places, the later before the earlier: the defaults, the cluster's settings,
which mgmtd keeps and every process adopts, and the process's own file (`--config`).

    S1  what is set was valid for all processes together, by the same code as a file; all bad keys are named
    S2  a key of `HOT` takes effect when it is adopted, every other at the next start of the process (`waiting`)
    S3  a process runs with a configuration that is valid as a whole: a hot key that does not go with a cold one that
        waits, waits with it; settings that do not go with its own file are not adopted (`problem`)
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Final, TypeAlias, cast

from .config import LABELS, ClusterConfig, check_times, from_table, parse_toml
from .errors import ConfigError

Value: TypeAlias = bool | int | str
Settings: TypeAlias = dict[str, Value]
"""Values by their full key: "mgmtd.lease_ms"."""

MGMTD: Final = "mgmtd"
META: Final = "meta"
STORAGE: Final = "storage"

# What takes effect while a process of that kind runs: it reads the value each time that it needs it.
HOT: Final[Mapping[str, frozenset[str]]] = {
    MGMTD: frozenset(
        {
            "mgmtd.chain_check_interval_ms",
            "mgmtd.client_extend_interval_ms",
            "mgmtd.down_out_s",
            "mgmtd.heartbeat_interval_ms",
        }
    ),
    META: frozenset(
        {
            "meta.gc_batch",
            "meta.gc_delay_ms",
            "meta.gc_interval_ms",
            "meta.idempotence_ms",
            "meta.list_limit",
            "meta.path_depth_max",
        }
    ),
    STORAGE: frozenset(
        {
            "storage.quarantine_s",
            "storage.resync_bytes_per_s",
            "storage.resync_interval_ms",
            "storage.scrub_interval_s",
        }
    ),
}
# What a process of that kind reads at all: sections, or single keys of another one.
READ: Final[Mapping[str, tuple[str, ...]]] = {
    MGMTD: ("mgmtd", "metadata", "metrics"),
    META: ("meta", "metadata", "metrics", "mgmtd.client_session_timeout_ms"),
    STORAGE: ("storage", "metrics", "mgmtd.lease_drift_percent"),
}
SECTIONS: Final = ("mgmtd", "meta", "metadata", "storage", "metrics")  # of services
OF_A_MACHINE: Final = frozenset(f"storage.{level}" for level in LABELS)
TOML_BYTES_MAX: Final = 64 << 10  # many times what all keys take


def flatten(config: ClusterConfig) -> Settings:
    """Return every value of the configuration by its full key, in the order of the classes."""
    return {
        f"{section.name}.{key.name}": getattr(getattr(config, section.name), key.name)
        for section in fields(config)
        for key in fields(getattr(config, section.name))
    }


DEFAULTS: Final = flatten(ClusterConfig())
assert all(key in DEFAULTS for keys in HOT.values() for key in keys), "a hot key is a key"


def parse(toml: str) -> Settings:
    """Return the values in TOML text, whatever they are: `check` says whether they are right. Raises: ConfigError."""
    if len(toml.encode()) > TOML_BYTES_MAX:
        raise ConfigError(f"a configuration has at most {TOML_BYTES_MAX} bytes of TOML")
    try:
        table = parse_toml(toml)
    except ValueError as error:
        raise ConfigError(f"not valid TOML: {error}") from error
    return dict(_values(table))


def _values(table: Mapping[str, object]) -> Iterator[tuple[str, Value]]:
    for section, content in table.items():
        if not isinstance(content, dict):
            raise ConfigError(f"{section}: must be a table")
        for key, value in content.items():
            # Another type is refused by `check`, which names the key and what it must be.
            yield f"{section}.{key}", cast("Value", value)


def to_toml(settings: Mapping[str, Value]) -> str:
    """Return TOML that `parse` reads as `settings`, by sections and keys."""
    lines: list[str] = []
    for section, content in sorted(_tables(settings).items()):
        lines.append(f"[{section}]")
        lines += [f"{key} = {to_literal(value)}" for key, value in sorted(content.items())]
    return "".join(f"{line}\n" for line in lines)


def to_literal(value: Value) -> str:
    """Return a value as TOML writes it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def assigned(assignments: Iterable[str]) -> Settings:
    """Return the settings in "KEY=VALUE" texts; a text needs no quotes. Raises: ConfigError naming all bad ones."""
    settings: Settings = {}
    problems: list[str] = []
    for text in assignments:
        key, equals, literal = text.partition("=")
        key, literal = key.strip(), literal.strip()
        if not equals or not key:
            problems.append(f"{text}: KEY=VALUE is expected")
        elif key in settings:
            problems.append(f"{key}: is set twice")
        else:
            settings[key] = _read(key, literal)
    _refuse(problems)
    return settings


def _read(key: str, literal: str) -> Value:
    if isinstance(DEFAULTS.get(key), str) and not literal.startswith('"'):
        return literal
    try:
        value = parse_toml(f"value = {literal}")["value"]
    except ValueError:
        return literal
    return value if isinstance(value, bool | int | str) else literal


def check(settings: Mapping[str, Value]) -> None:
    """Raises: ConfigError naming every key that the cluster cannot have, or what does not go together (S1)."""
    check_each(settings)
    effective(settings)


def check_each(settings: Mapping[str, Value]) -> None:
    """Raises: ConfigError naming every key that the cluster cannot have, and why; not what goes together."""
    _refuse(list(_problems(settings).values()))


def _problems(settings: Mapping[str, Value]) -> dict[str, str]:
    """Return why the cluster cannot have a key, by key; not what goes together."""
    problems: dict[str, str] = {}
    for key, value in settings.items():
        try:
            _check_key(key)
            from_table(ClusterConfig, _tables({key: value}), where="")
        except ConfigError as error:
            if not _is_of_several(key):  # those are judged together, below
                problems[key] = error.message
    return problems


def _is_of_several(key: str) -> bool:
    return key in ("metrics.listen", "metrics.allow_remote")


def _check_key(key: str) -> None:
    """Raises: ConfigError for a key that is not one of services, all over the cluster."""
    section, dot, _ = key.partition(".")
    if dot and section in ("client", "mount"):
        raise ConfigError(f"{key}: is set where the program or the mount runs, not for the cluster")
    if key in OF_A_MACHINE:
        raise ConfigError(f"{key}: is of one machine: set it in the file that its services are started with")
    if key not in DEFAULTS:
        of_section = [each for each in DEFAULTS if each.startswith(f"{section}.")]
        known = of_section or [f"{each}.…" for each in SECTIONS]
        raise ConfigError(f"{key}: unknown key (known here: {', '.join(known)})")


def require_known(keys: Iterable[str]) -> None:
    """Raises: ConfigError naming all `keys` that the cluster cannot set."""
    problems: list[str] = []
    for key in keys:
        try:
            _check_key(key)
        except ConfigError as error:
            problems.append(error.message)
    _refuse(problems)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("; ".join(problems))


def effective(*layers: Mapping[str, Value]) -> ClusterConfig:
    """Return the configuration of the defaults and `layers`, a later one before an earlier. Raises: ConfigError."""
    merged: Settings = {}
    for layer in layers:
        merged |= layer
    config = from_table(ClusterConfig, _tables(merged), where="")
    check_times(config.mgmtd)
    return config


def _tables(settings: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    tables: dict[str, dict[str, Value]] = {}
    for path, value in settings.items():
        section, _, key = path.partition(".")
        tables.setdefault(section, {})[key] = value
    return tables


@dataclass(frozen=True)
class Adoption:
    """What one process runs with, and what of the cluster's settings waits. `own`: of its file."""

    kind: str
    own: Settings
    running: ClusterConfig
    version: int = 0
    waiting: tuple[str, ...] = ()
    problem: str = ""

    @classmethod
    def start(cls, kind: str, own: Settings, version: int, settings: Settings) -> "Adoption":
        """Return what a process starts with (S3). Raises: ConfigError if its own file is wrong."""
        alone = effective(own)
        bad = _problems(settings)  # of another release, whose other keys count all the same
        usable = {key: value for key, value in settings.items() if key not in bad}
        try:
            return cls(kind, own, effective(usable, own), version, problem="; ".join(bad.values()))
        except ConfigError as error:
            return cls(kind, own, alone, version, problem=error.message)

    def adopted(self, version: int, settings: Settings) -> "Adoption":
        """Return what it runs with once it has heard of a version (S2, S3)."""
        try:
            wanted = effective(settings, self.own)
        except ConfigError as error:
            return Adoption(self.kind, self.own, self.running, version, self.waiting, error.message)
        running = self._with_hot(wanted)
        return Adoption(self.kind, self.own, running, version, self._differing(running, wanted))

    def _with_hot(self, wanted: ClusterConfig) -> ClusterConfig:
        new = flatten(wanted)
        running = self.running
        for key in HOT[self.kind]:
            with suppress(ConfigError):  # it waits with a cold one
                running = effective(flatten(running), {key: new[key]})
        return running

    def _differing(self, running: ClusterConfig, wanted: ClusterConfig) -> tuple[str, ...]:
        now = flatten(running)
        return tuple(key for key, value in flatten(wanted).items() if self._reads(key) and now[key] != value)

    def _reads(self, key: str) -> bool:
        section, _, _ = key.partition(".")
        return section in READ[self.kind] or key in READ[self.kind]


__all__ = [
    "DEFAULTS",
    "HOT",
    "META",
    "MGMTD",
    "READ",
    "SECTIONS",
    "STORAGE",
    "Adoption",
    "Settings",
    "Value",
    "assigned",
    "check",
    "check_each",
    "effective",
    "flatten",
    "parse",
    "require_known",
    "to_literal",
    "to_toml",
]
