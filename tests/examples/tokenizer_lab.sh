#!/usr/bin/env bash
# Extends a tokenizer and its model with Chinese pieces, and looks at what that changes:
#   tests/examples/tokenizer_lab.sh [OUT]
# BASE   the model (SmolLM2-135M, weak at Chinese, by default)
# PIECES a SentencePiece model with the new pieces; without one, SIZE pieces are learnt from TEXT
# TASKS  benchmarks to score both models on; their files are found or fetched as in a run
# LIMIT  items of each subject (all without it)
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-runs/lab}
base=${BASE:-smollm2-135m}
tasks=${TASKS:-ceval}
text=${TEXT:-tasks/sample}
limit=${LIMIT:+--limit $LIMIT}
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

if [ -n "${PIECES:-}" ]; then
  source=(--sentencepiece "$PIECES" --add-merges --skip-bad)
else
  source=(--train "$text" --size "${SIZE:-1000}" --han)
fi

step() { printf '\n== %s\n' "$*" >&2; "$@"; }

if [ ! -e "$out/tokenizer" ]; then
  step ceval-suite tokenizer extend --base "$base" "${source[@]}" --tasks "$tasks" --out "$out/tokenizer"
fi
step ceval-suite tokenizer audit "$out/tokenizer"
step ceval-suite tokenizer compare "base=$base" "extended=$out/tokenizer" --task "$tasks"
if [ ! -e "$out/extended" ]; then
  step ceval-suite model extend "$base" --tokenizer "$out/tokenizer" --out "$out/extended"
fi
# shellcheck disable=SC2086  # limit is two words or none
step ceval-suite run --model "$base" --model "$out/extended" --tasks "$tasks" $limit --out "$out/runs"
# shellcheck disable=SC2086
step ceval-suite bits "$base" "$out/extended" --tasks "$tasks" $limit --out "$out/runs"
step ceval-suite compare "$out/runs/$base" "$out/runs/extended"
