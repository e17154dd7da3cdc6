"""A server by which an assistant looks into your videos: one tool, keyframes (Model Context Protocol, stdio).

    %(prog)s ~/Videos
    %(prog)s ~/Videos /srv/recordings --extract_feature_model clip --longest_side 512

The client, such as Claude Desktop, starts it; docs/models.md has its configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

from aks import errors
from aks.arguments import ArgumentParser, at_least
from aks.cli import (
    add_log_flags,
    add_own_scorer_flags,
    add_worker_flags,
    count_workers,
    load_scorer_from_args,
)
from aks.console import configure_logging

logger = logging.getLogger("aks.mcp")


def parse_arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", nargs="+", type=Path, help="whose videos may be read; nothing outside is")
    parser.add_argument(
        "--longest_side",
        type=at_least(1),
        default=768,
        metavar="PIXELS",
        help="of the pictures; larger ones are reduced to it (default: 768)",
    )
    parser.add_argument("--no_cache", action="store_true", help="neither use nor keep the frames' features")
    add_own_scorer_flags(parser)
    add_worker_flags(parser)
    add_log_flags(parser)
    return parser.parse_args()


def _end() -> None:
    """End at once: the protocol's library waits for standard input in a thread that no exception reaches."""
    print("interrupted", file=sys.stderr)
    os._exit(130)


def main() -> None:
    """Serve until the client closes standard input."""
    args = parse_arguments()
    configure_logging(args.log_level)
    workers = count_workers(args)
    try:
        import anyio

        from aks import mcp_server
    except ModuleNotFoundError as error:
        if error.name not in ("anyio", "mcp", "mcp_types", "pydantic"):
            raise
        raise errors.UserError(
            "the package mcp, of version 2, is missing; run: pip install -c constraints.txt -r "
            'requirements-mcp.txt, or pip install "mcp>=2,<3"'
        ) from None

    tool = mcp_server.KeyframeTool(
        *(mcp_server.VideoFolders(args.folder), partial(load_scorer_from_args, args), args.longest_side),
        workers=workers,
        video_timeout=args.video_timeout,
        cache=not args.no_cache,
    )
    takes_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not under nohup
    if sys.stdin.isatty():
        logger.warning("waiting for an assistant's messages, as docs/models.md says; Ctrl-C ends this")
    # The model must not take a miss for proof.
    remark = " The scorer is conse, which knows ImageNet's objects and little else."

    async def serve() -> None:
        if takes_interrupts:
            # The loop's own handler: one of signal.signal would run at the next event where the signal comes
            # just before the loop begins to wait.
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, _end)
        await mcp_server.serve(tool, remark if args.extract_feature_model == "conse" else "")

    anyio.run(serve)
