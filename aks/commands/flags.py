"""The flags that say how keyframes are chosen, for the commands that choose."""

from __future__ import annotations

import argparse
import math

from aks import errors
from aks.presets import DEFAULT
from aks.selection import QUOTAS, STRATEGIES


def add_selection_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags of a rule; those of ADA have no default here, so that a preset may give it."""
    parser.add_argument("--strategy", default="ada", choices=STRATEGIES, help="how keyframes are chosen")
    parser.add_argument(
        "--t1", type=float, help=f"threshold on the difference of means (default: {DEFAULT['t1']})"
    )
    parser.add_argument("--t2", type=float, default=-100, help="threshold on the standard deviation")
    parser.add_argument(
        "--all_depth", type=int, help=f"most halvings of the timeline (default: {DEFAULT['max_depth']})"
    )
    parser.add_argument(
        "--quota",
        choices=QUOTAS,
        help="the fractions of the budget that halving leaves: full spends them; released (older name: "
        "paper) drops them, as the released code does; algorithm1 gives every segment the same share "
        f"(default: {DEFAULT['quota']})",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the strategy's own (docs/selection.md), such as seed=1; may be repeated",
    )


def given_settings(args: argparse.Namespace) -> dict[str, float | str]:
    """Those of ADA's flags that were given, by the names of :func:`aks.select_keyframes`."""
    given = {"t1": args.t1, "max_depth": args.all_depth, "quota": args.quota}
    return {name: value for name, value in given.items() if value is not None}


def parse_options(texts: list[str]) -> dict[str, float]:
    """``NAME=VALUE`` texts as a dictionary.

    Raises:
        UserError: one is of another form.
    """
    options = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            options[name] = float(value)
            if not math.isfinite(options[name]):
                raise ValueError
        except ValueError:
            raise errors.UserError(f"--option {text}: use NAME=VALUE with a number, such as seed=1") from None
    return options
