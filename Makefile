# One word per intention. Everything happens in .venv; nothing outside this folder is changed.
#
#   make demo      set up, export the demo checkpoint, verify it, print text
#   make test      set up for development, lint, types, all tests that guard the code
#   make test-all  the long tests too, in other people's runtimes and in Chromium (both are set up where they can be)
#   make cpp       the C++ runtime (runtime/cpp): build and test it
#   make kernels   our CPU operators, with CMake and a C++ compiler: int4 and int8 bundles get faster
#   make web       the libraries of the browser page (runtime/web), with npm
#   make check     lint and types alone
#   make bench     ours against peers, on a quiet machine (benchmarks/README.md)
#   make clean     remove .venv and what was built
#
# PyTorch: on Linux the default package index carries the CUDA build (gigabytes). To take the CPU build:
#   make demo TORCH_INDEX=<address of PyTorch's CPU wheel index, see pytorch.org/get-started>

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
SOURCES := exporter runtime/python runtime/web runtime/cpp runtime/kernels recipes tests benchmarks examples
DEMO := artifacts/tiny
# A file's tests share what they export, so they stay together.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo setup web cpp cpp-needs kernels programs test test-all check format bench clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.run-ready
	@echo "demo: recipes/tiny/checkpoint (a 2 M parameter LLaMA that tells little stories) -> $(DEMO)"
	@$(BIN)/llama-export onnx recipes/tiny/checkpoint $(DEMO) --force
	@echo
	@echo '$$ llama-export run $(DEMO) "Once" --temperature 0.6 --top-p 0.9 --seed 11'
	@printf Once
	@$(BIN)/llama-export run $(DEMO) "Once" --temperature 0.6 --top-p 0.9 --seed 11

setup: $(VENV)/.dev-ready

test: check cpp-needs kernels
	@$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not long"

test-all: check cpp-needs kernels programs
	@$(BIN)/python -m pytest -q

cpp: setup cpp-needs
	@$(BIN)/python -m pytest -q tests/cpp -m "not long"

# What the C++ runtime and the kernels are built and tested with, and ONNX Runtime's headers; where they cannot be
# had, those tests are skipped.
cpp-needs: $(VENV)/.dev-ready
	@for need in cmake:cmake c++:g++ ninja:ninja-build pkg-config:pkg-config /usr/include/nlohmann/json.hpp:nlohmann-json3-dev \
			aarch64-linux-gnu-g++:g++-aarch64-linux-gnu qemu-aarch64:qemu-user; do \
		command -v $${need%%:*} >/dev/null || test -f $${need%%:*} && continue; \
		echo "set-up: $${need##*:}, with apt-get"; \
		{ apt-get update && apt-get install -y $${need##*:}; } >/dev/null 2>&1 || echo "$${need##*:} cannot be installed here"; \
	done
	@runtime/cpp/fetch_onnxruntime.sh build/onnxruntime $(BIN)/python || echo "the C++ runtime cannot be built here"

kernels: $(VENV)/.run-ready
	@runtime/kernels/build.sh

web: runtime/web/node_modules/.ready

runtime/web/node_modules/.ready: runtime/web/package-lock.json
	@command -v npm >/dev/null || { echo "error: npm not found; install Node.js 18 or newer"; exit 2; }
	@echo "set-up: onnxruntime-web and tokenizers into runtime/web/node_modules (150 MB, of which a browser loads 15)"
	@cd runtime/web && npm ci --silent
	@cp runtime/web/package-lock.json $@

# What the long tests drive. Where it can be neither found nor installed, those tests are skipped and say so.
programs:
	@for need in chromium:chromium npm:npm; do \
		command -v $${need%%:*} >/dev/null && continue; \
		echo "set-up: $${need##*:}, with apt-get"; \
		{ apt-get update && apt-get install -y $${need##*:}; } >/dev/null 2>&1 || echo "$${need##*:} cannot be installed here"; \
	done

check: $(VENV)/.dev-ready
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check --quiet $(SOURCES)
	@$(BIN)/mypy

format: $(VENV)/.dev-ready
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

bench: $(VENV)/.dev-ready
	@$(BIN)/python benchmarks/run.py

# torch goes first and by itself: whatever needs it later finds it there and pulls no other build.
$(VENV)/.run-ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version) found, 3.11 or newer needed; make PYTHON=/path/to/it"; exit 2; }
	@echo "set-up: $(VENV), with $(TORCH), onnx, onnxscript, onnxruntime, tokenizers and a few small packages"
	@echo "        (downloaded from your package index: about 0.4 GB with a CPU build of torch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt "$(TORCH)"
	@$(PIP) install -c constraints.txt -e '.[export,cpu]'
	@touch $@

$(VENV)/.dev-ready: $(VENV)/.run-ready
	@echo "set-up: pytest, ruff, mypy, transformers, tensorrt_rtx and other oracles for the tests (about 0.2 GB)"
	@$(PIP) install -c constraints.txt -e '.[export,cpu,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache runtime/web/node_modules tests/other_runtimes/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
