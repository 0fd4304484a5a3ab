#!/usr/bin/env bash
# Makes .venv where it is missing, installs what is missing, and runs the whole test suite.
# Arguments go to pytest:  ./scripts/test.sh -m "not packaging" tests/interventions
#
# Tests that start engines of vLLM are skipped where it is not installed. With it, in an environment
# of its own, so that .venv stays as most users have it:
#   SAE_STEERED_VENV=.venv-vllm SAE_STEERED_VLLM=1 ./scripts/test.sh -m vllm
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=scripts/environment.sh
. "$ROOT/scripts/environment.sh"

make_environment "[dev,sae]"
vllm_cpu_settings
cd "$ROOT"
# The suite needs no network: a test that would download must fail here, not on a user's machine.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Neither reads nor fills the user's own compiled graphs.
export VLLM_CACHE_ROOT="${VLLM_CACHE_ROOT:-$VENV/cache/vllm}"
say "$VENV/bin/python" -m pytest "$@"
