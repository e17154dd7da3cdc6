"""``aks COMMAND``, or ``python -m aks COMMAND``: all commands of the library under one name."""

from __future__ import annotations

import pkgutil
import sys

from aks import errors

# Name: module, and what it does. Only the module of the command that is asked for is imported.
COMMANDS = {
    "keyframes": ("aks.commands.keyframes", "one video and some questions: its keyframes"),
    "cache": ("aks.commands.cache", "what keyframes keeps for later questions: show or delete it"),
    "mcp": ("aks.commands.mcp", "a server by which an assistant looks into your videos"),
    "background": (
        "aks.commands.background",
        "other footage: with it keyframes tells what stands out",
    ),
    "extract": ("aks.commands.extract", "step 1: videos and questions of a label file to relevance scores"),
    "store": ("aks.commands.store", "step 1': videos to features that later questions are scored with"),
    "select": ("aks.commands.select", "step 2: scores to keyframes"),
    "recall": ("aks.recall", "how much of the labelled evidence has a keyframe nearby"),
    "quality": ("aks.quality", "selections side by side: recall, precision, coverage, redundancy"),
    "compare": ("aks.compare", "all selection rules on the same scores, by the labelled evidence"),
    "report": ("aks.commands.report", "a run as one HTML page: curves, keyframes, evidence"),
    "convert": ("aks.interchange", "selections from and to the files of other tools"),
}


def usage() -> str:
    """What ``aks --help`` prints."""
    lines = [f"  {name:11} {words}" for name, (_, words) in COMMANDS.items()]
    return "\n".join(
        ["usage: aks COMMAND ...", "", *lines, "", "aks COMMAND --help lists the flags of a command."]
    )


def main() -> int | None:
    """Run the command that is named first, with the arguments that follow.

    Raises:
        UserError: there is no such command.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        raise errors.UserError(
            f"aks {name}: no such command; use one of {', '.join(COMMANDS)}{errors.nearest(name, COMMANDS)} "
            "(aks --help)"
        )
    sys.argv[:] = [f"aks {name}", *arguments]  # argparse and messages name the program by the first
    return pkgutil.resolve_name(f"{COMMANDS[name][0]}:main")()


def run() -> None:
    """The entry point of the installed command ``aks``."""
    errors.run_main(main)


if __name__ == "__main__":
    run()
