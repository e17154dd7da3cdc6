#!/usr/bin/env bash
# The paper's table of scorers and numbers of frames, beside the published figures.
# python evaluation/reproduce.py --help has the flags.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python evaluation/reproduce.py scorers "$@"
