#!/usr/bin/env bash
# Evaluates a language model with and without SAE features steered, and prints one table.
#
#   ./evaluate.sh              the embedded model, SAE, features and task; needs no GPU
#   ./evaluate.sh ARGS         the same as `sae-steered evaluate ARGS`, see ./evaluate.sh --help
#
# The first run makes .venv and installs what is missing; SAE_STEERED_VLLM=1 installs vLLM as well,
# for `--model_args backend=vllm`.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/environment.sh
. "$ROOT/scripts/environment.sh"

# The embedded SAE is read without SAELens; SAE releases by name need it.
if [ $# -eq 0 ]; then make_environment ""; else make_environment "[sae]"; fi
# Threads that wait by spinning make generation many times slower on a busy machine.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
vllm_cpu_settings
say "$VENV/bin/sae-steered" evaluate "$@"
