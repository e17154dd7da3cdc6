#!/usr/bin/env bash
# Writes constraints.txt: the exact version of every package that the requirement files bring along.
#
#   bash lock.sh                        after a change of a requirement file; other versions stay
#   bash lock.sh --upgrade              everything as new as the requirement files allow
#   bash lock.sh --upgrade-package X    only X
#
# Run the tests after it. What is installed without dependencies is pinned in its own requirement file.
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh
environment_for
# Universal: the versions for every build of torch, with markers for what only some platforms need.
uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url \
    --annotation-style line --custom-compile-command "bash lock.sh" --output-file constraints.txt \
    requirements.txt requirements-dev.txt requirements-lavis.txt requirements-eval.txt requirements-ray.txt \
    requirements-mcp.txt "$@"
