#!/usr/bin/env bash
# LLaVA-OneVision-7B on LongVideoBench, uniform frames.
# Overrides by environment: CHECKPOINT, MAX_FRAMES, SELECTION, VIDEOS, LIMIT, OUTPUT, GPUS, SHORT_SELECTION
# (docs/evaluation.md, "Settings of a row"; python evaluation/run.py --help).
set -euo pipefail
cd "$(dirname "$0")/../../.."
exec python evaluation/run.py --model llava_onevision --dataset longvideobench --frames uni "$@"
