#!/usr/bin/env bash
# Resolves srpo beside other tools in one environment, with uv and without installing anything; `make pins` runs it.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=${UV:-.venv-pins/bin/uv}
failed=0
for tool in axolotl==0.19.0 unsloth==2026.10.9 ms-swift==4.6 trl==1.16.0 vllm==0.32.0; do
    if found=$(printf 'srpo @ file://%s\n%s\n' "$PWD" "$tool" | "$uv" pip compile -q --python-version 3.11 - 2>&1); then
        echo "$tool: $(grep -E '^(transformers|torch)==' <<<"$found" | tr '\n' ' ')"
    else
        echo "$tool: no versions fit srpo's"
        failed=1
    fi
done
exit $failed
