#!/usr/bin/env bash
# The paper's main table: every row whose inputs are there and whose weights fit this machine, then the tables.
# What is missing is listed first; --check_only stops there. RESULTS or --results names another results folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python evaluation/reproduce_table1.py "$@"
