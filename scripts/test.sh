#!/usr/bin/env bash
# Makes .venv where it is missing, installs what is missing, and runs the whole test suite.
# Arguments go to pytest:  ./scripts/test.sh -m "not packaging" tests/interventions
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=scripts/environment.sh
. "$ROOT/scripts/environment.sh"

make_environment "[dev,sae]"
cd "$ROOT"
# The suite needs no network: a test that would download must fail here, not on a user's machine.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
say "$VENV/bin/python" -m pytest "$@"
