# `make help` lists the targets. Each target installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
MODEL ?= gemma-3-270m
# The AMX kernels of this llama.cpp release crash; without them it uses those for AVX-512.
WITHOUT_AMX := $(if $(filter x86_64,$(shell uname -m)),-DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8)
# Two processes; each runs whole files, so that fixtures are set up once.
IN_PARALLEL ?= -n 2 --dist loadfile
CPP := $(wildcard native/*.cc native/tests/*.cc native/src/*/*.cc native/src/*/*.h)

.DEFAULT_GOAL := demo
.PHONY: help demo test test-slow test-peers test-sanitized test-neon check format bench bench-accelerator clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  %-18s %s\n' "$$name" "$$text"; done

demo: .venv/demo.installed  ## Install and generate text with Gemma 3 270M (the default)
	$(BIN)/gemwright generate --model $(MODEL) --max-tokens 100 --seed 7 --echo "Once upon a time"

test: .venv/dev.installed  ## Run the test suite
	$(BIN)/pytest $(IN_PARALLEL)
	cd native && ../$(BIN)/pytest $(IN_PARALLEL)

test-sanitized:  ## Test the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	native/tests/sanitize.sh

test-neon:  ## Test the C++ kernels for 64-bit Arm in an emulator
	native/tests/neon.sh

test-slow: .venv/dev.installed  ## Run the slow tests, about half a minute each
	$(BIN)/pytest -m slow

test-peers: .venv/peers.installed  ## Compile llama.cpp and run the tests that need it
	$(BIN)/pytest -m peer

check: .venv/dev.installed  ## Check style, types, import order, and C++ style and lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/clang-tidy --quiet --extra-arg=-isystem$$($(BIN)/python -c "import jax.ffi; print(jax.ffi.include_dir())") \
		$(filter-out %.h native/machine.cc,$(CPP))

format: .venv/dev.installed  ## Format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/clang-format -i $(CPP)

bench: .venv/peers.installed  ## Compare with llama.cpp and transformers on this machine
	$(BIN)/python bench/cpu.py

bench-accelerator: .venv/dev.installed  ## Compare with transformers on a GPU or TPU (needs the extra cuda or tpu)
	$(BIN)/python bench/accelerator.py

clean:  ## Delete .venv, builds and caches
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis bench/.cache

.venv/python.installed:
	$(PYTHON) -m venv .venv
	touch $@

.venv/native.installed: native/pyproject.toml native/CMakeLists.txt $(wildcard native/src/*/*) $(wildcard native/python/*/*.py) | .venv/python.installed
	$(BIN)/pip install -q ./native
	@$(BIN)/python -c "import gemwright_native as native; native.available() or \
		print('The C++ kernels of gemwright-native were skipped: no C++17 compiler (such as g++) was found.', \
		'gemwright runs through XLA, about ten times slower on a CPU and with more memory.')"
	touch $@

.venv/demo.installed: pyproject.toml .venv/native.installed
	$(BIN)/pip install -q -e '.[demo]'
	touch $@

.venv/dev.installed: pyproject.toml .venv/native.installed
	$(BIN)/pip install -q -e '.[dev]'
	touch $@

.venv/peers.installed: pyproject.toml | .venv/dev.installed
	CMAKE_ARGS="-DGGML_NATIVE=ON $(WITHOUT_AMX)" $(BIN)/pip install -q --no-cache-dir llama-cpp-python==0.3.36
	touch $@
