#!/usr/bin/env bash
# The paper's table of strategies (UNI, TOP, BIN, ADA), beside the published figures.
# python evaluation/reproduce.py --help has the flags.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python evaluation/reproduce.py strategies "$@"
