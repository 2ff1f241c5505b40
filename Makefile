# Everything a newcomer needs: `make demo` and `make test`. Each is complete on its own.
PYTHON ?= python3
BIN := .venv/bin
MODEL ?= gemma-3-270m
# This release of llama.cpp crashes in its AMX kernels; without them it takes those for AVX-512.
WITHOUT_AMX := $(if $(filter x86_64,$(shell uname -m)),-DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8)
# Two processes, each of which takes whole files, so that what a file sets up is made once.
IN_PARALLEL ?= -n 2 --dist loadfile
CPP := $(wildcard native/*.cc native/tests/*.cc native/src/*/*.cc native/src/*/*.h)

.PHONY: demo test test-slow test-peers test-sanitized test-neon check format bench bench-accelerator clean

demo: .venv/demo.installed  ## Real text, written by a real Gemma
	$(BIN)/gemwright generate --model $(MODEL) --max-tokens 100 --seed 7 "Once upon a time"

test: .venv/dev.installed  ## Prove the house sound
	$(BIN)/pytest $(IN_PARALLEL)
	cd native && ../$(BIN)/pytest $(IN_PARALLEL)

test-sanitized:  ## The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	native/tests/sanitize.sh

test-neon:  ## The native kernels for 64-bit Arm, in an emulator
	native/tests/neon.sh

test-slow: .venv/dev.installed  ## Tests of half a minute each
	$(BIN)/pytest -m slow

test-peers: .venv/peers.installed  ## Tests that need llama.cpp, which is compiled for them
	$(BIN)/pytest -m peer

check: .venv/dev.installed  ## Style, types, the order of the layers, C++ style and lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/clang-tidy --quiet --extra-arg=-isystem$$($(BIN)/python -c "import jax.ffi; print(jax.ffi.include_dir())") \
		$(filter-out %.h native/machine.cc,$(CPP))

format: .venv/dev.installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/clang-format -i $(CPP)

bench: .venv/peers.installed  ## gemwright beside its peers, on this machine
	$(BIN)/python bench/cpu.py

bench-accelerator: .venv/dev.installed  ## gemwright and transformers on this machine's GPU or TPU; needs the extra `cuda` or `tpu`
	$(BIN)/python bench/accelerator.py

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis bench/.cache

.venv/python.installed:
	$(PYTHON) -m venv .venv
	touch $@

.venv/native.installed: native/pyproject.toml native/CMakeLists.txt $(wildcard native/src/*/*) $(wildcard native/python/*/*.py) | .venv/python.installed
	$(BIN)/pip install -q ./native
	@$(BIN)/python -c "import gemwright_native as native; native.available() or \
		print('The C++ kernels of gemwright-native were not built (no C++17 compiler, such as g++?).', \
		'Everything works without them, but CPU inference is slower and needs more memory.')"
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
