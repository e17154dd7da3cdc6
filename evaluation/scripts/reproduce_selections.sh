#!/usr/bin/env bash
# The keyframes of all cells of the paper's tables, without a model.
# python evaluation/reproduce.py --help has the flags.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python evaluation/reproduce.py selections "$@"
