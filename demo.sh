#!/usr/bin/env bash
# The main job on a real film, from a bare machine to a table and pictures: bash demo.sh
# What is there from an earlier run is not made again; DEMO_DIR names another working folder.
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh
environment_for requirements.txt requirements-eval.txt \
    nodeps:requirements-conse.txt nodeps:requirements-eval-nodeps.txt
environment_torchvision
exec python -m demo.run "$@"
