#!/usr/bin/env bash
# Installs what the tests need, checks the style and runs the tests.
#
#   bash test.sh                     all tests, in several processes
#   bash test.sh -k WORD             the quick tests with this word in their names (tests/conftest.py)
#   bash test.sh PYTEST_ARGUMENTS    with other arguments of pytest, such as tests/video -n 4; in one process
set -euo pipefail
cd "$(dirname "$0")"
# Where it is set, as in many container images, every process of the tests would compile PyTorch anew.
unset PYTHONDONTWRITEBYTECODE
source ./environment.sh
environment_for requirements.txt requirements-dev.txt requirements-lavis.txt requirements-eval.txt \
    requirements-ray.txt requirements-mcp.txt \
    nodeps:requirements-conse.txt nodeps:requirements-dev-nodeps.txt nodeps:requirements-lavis-nodeps.txt \
    nodeps:requirements-eval-nodeps.txt
environment_torchvision
python check_environment.py
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
ruff check .
ruff format --check .
if [ "$#" = 0 ]; then
    workers=$(nproc)
    set -- -n $((workers < 4 ? workers : 4))
elif [ "$1" = -k ]; then
    set -- -m "not slow" "$@"
fi
python -m pytest "$@"
