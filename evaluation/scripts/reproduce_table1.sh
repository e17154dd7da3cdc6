#!/usr/bin/env bash
# The paper's main table: every row whose inputs are there and whose weights fit this machine, then the tables.
# A row that cannot run is named with its reasons; finished rows stay. RESULTS names another results folder.
set -uo pipefail
cd "$(dirname "$0")/../.."
results=${RESULTS:-./results}
status=0 ran=0
unset OUTPUT CHECKPOINT SELECTION MAX_FRAMES LABELS VIDEOS  # they differ from row to row
for model in qwen2_vl llava_onevision llava_vid; do
    for dataset in longvideobench videomme; do
        for frames in uni aks; do
            # Where the script of this row alone also writes, so that neither asks again what the other has asked.
            row=(--model "$model" --dataset "$dataset" --frames "$frames" --results "$results")
            echo "== $model, $dataset, $frames"
            if ! python evaluation/run.py "${row[@]}" --check_only; then
                status=1
                continue
            fi
            if python evaluation/run.py "${row[@]}"; then
                ran=$((ran + 1))
            else
                status=1
            fi
        done
    done
done
if [ "$ran" = 0 ]; then
    echo "error: no row could be evaluated; see above" >&2
    exit 1
fi
python evaluation/tables.py "$results" --output "$results/tables" || status=1
exit "$status"
