#!/usr/bin/env bash
# All tests and the style checks, from a bare machine: bash test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")"
# Where it is set, as in many container images, every process of the tests would compile PyTorch anew.
unset PYTHONDONTWRITEBYTECODE
source ./environment.sh
environment_for requirements.txt requirements-dev.txt requirements-lavis.txt requirements-eval.txt \
    requirements-ray.txt \
    nodeps:requirements-conse.txt nodeps:requirements-dev-nodeps.txt nodeps:requirements-lavis-nodeps.txt \
    nodeps:requirements-eval-nodeps.txt
environment_torchvision
python check_environment.py
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
ruff check .
ruff format --check .
workers=$(nproc)
python -m pytest -n $((workers < 4 ? workers : 4)) "$@"
