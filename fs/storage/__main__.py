"""`python -m luciola.storage`: one storage node, until SIGTERM."""

import argparse
import logging
import os
import sys
from pathlib import Path

import uvloop

from .. import config as configuration
from ..descriptors import raise_limit
from ..errors import ConfigError, Error
from ..ids import NodeId
from ..logfile import rotate_output
from ..settings import STORAGE
from ..wire import AuditLog, load_cluster
from ..wire.addresses import port_argument
from ..wire.adoption import AdoptedConfig
from .node import Settings, serve

log = logging.getLogger("luciola.storage")


def main(arguments: list[str] | None = None) -> int:
    """Run the node; the exit code: EX_CONFIG (78) where an operator has to act before another start."""
    parser = argparse.ArgumentParser(
        prog="python -m luciola.storage",
        description="One storage node of a Luciola cluster. `luciola up` starts these.",
        epilog="example: python -m luciola.storage --node-id 1 --data /data/storage-1 --cluster /data/cluster.json",
    )
    parser.add_argument("--node-id", type=_node_id, required=True, help="number of this node, from 1")
    parser.add_argument("--data", type=Path, required=True, help="directory that holds its chunks")
    parser.add_argument("--cluster", type=Path, required=True, help="the cluster file")
    parser.add_argument("--config", type=Path, help="TOML with what differs from the defaults")
    parser.add_argument("--listen", default="127.0.0.1", metavar="HOST", help="where to listen (%(default)s)")
    parser.add_argument(
        "--port",
        type=port_argument,
        default=0,
        help="data plane; the next one is gRPC's (%(default)s: free ones)",
    )
    parser.add_argument(
        "--label",
        type=_label,
        action="append",
        default=[],
        metavar="LEVEL=NAME",
        help="room, rack or host that the node stands in, instead of that of --config (repeat)",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="listen for other machines, though in clear text"
    )
    parser.add_argument("--rotate-log", action="store_true", help="keep the file on standard error short")
    parser.add_argument("--audit", type=Path, metavar="DIR", help="write down there who changed the cluster")
    options = parser.parse_args(arguments)
    if options.rotate_log:
        rotate_output()
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s %(levelname).1s storage-{options.node_id} %(message)s",
        stream=sys.stderr,
    )
    raise_limit()  # every connection, block file and client's region is a descriptor
    try:
        settings = Settings(
            node=options.node_id,
            data=options.data,
            cluster=load_cluster(options.cluster),
            adopted=AdoptedConfig(STORAGE, options.config, options.data),
            host=options.listen,
            port=options.port,
            insecure=options.insecure,
            labels=dict(options.label),
            audit=AuditLog(options.audit, f"storage-{options.node_id}"),
        )
        uvloop.run(serve(settings))
    except ConfigError as error:
        log.error("cannot run: %s", error)  # noqa: TRY400 (an operating error needs no traceback)
        return os.EX_CONFIG
    except Error as error:
        log.error("cannot run: %s", error)  # noqa: TRY400 (an operating error needs no traceback)
        return 1
    return 0


def _label(text: str) -> tuple[str, str]:
    level, _, name = text.partition("=")
    if level not in configuration.LABELS or not configuration.is_label(name):
        raise argparse.ArgumentTypeError(
            f"{' or '.join(f'{each}=NAME' for each in configuration.LABELS)} is expected, where NAME is "
            f"{configuration.LABEL_RULE}, not {text!r}"
        )
    return level, name


def _node_id(text: str) -> NodeId:
    if not text.isdecimal() or not 0 < int(text) < 1 << 32:
        raise argparse.ArgumentTypeError(f"a number from 1 to {(1 << 32) - 1} is expected, not {text!r}")
    return NodeId(int(text))


if __name__ == "__main__":
    sys.exit(main())
