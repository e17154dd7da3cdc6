#!/usr/bin/env bash
# The models that need a newer transformers, tested with it: Qwen3-VL and InternVL3.5, and Qwen2-VL and Qwen2.5-VL
# as well. Makes .venv-newer (environment.sh) and runs their tests there, with small random checkpoints of
# transformers' own classes. Not one of the tests: it takes ten minutes.
#
#   bash tests/newer_models.sh [PYTEST_ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
source ./environment.sh
environment_newer requirements-dev.txt nodeps:requirements-dev-nodeps.txt nodeps:requirements-conse.txt
python check_environment.py requirements-newer.txt
export AKS_TESTS_LONG=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
tests=(tests/evaluation/{test_qwen,test_internvl,test_visual_tracker}.py tests/test_message_models.py)
python -m pytest "${tests[@]}" "$@"
# The scripts of these models alone: other models' rows run with the pinned transformers.
python -m pytest tests/evaluation/test_evaluation_scripts.py -k "documented and (qwen3_vl or internvl3_5)" "$@"
python -m pytest tests/evaluation/test_tasks.py -k "rule and qwen" "$@"
