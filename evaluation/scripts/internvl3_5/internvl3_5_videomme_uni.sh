#!/usr/bin/env bash
# InternVL3.5-8B on VideoMME, uniform frames.
# Needs a newer transformers: source environment.sh && environment_newer
# Overrides by environment: CHECKPOINT, MAX_FRAMES, SELECTION, VIDEOS, LIMIT, OUTPUT, GPUS, SHORT_SELECTION
# (docs/evaluation.md, "Settings of a row"; python evaluation/run.py --help).
set -euo pipefail
cd "$(dirname "$0")/../../.."
exec python evaluation/run.py --model internvl3_5 --dataset videomme --frames uni "$@"
