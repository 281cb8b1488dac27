# Each target installs what it needs first and says so in one line.  `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
PACKAGES := PYTHON=$(PYTHON) scripts/debian-packages
SECONDS ?= 60
TARGETS ?=
JOBS ?= 2
ROUNDS ?= 3
FAULTS ?= 10000
BYTES ?= 5000000000
MUTANTS ?= 100
SEED ?= 1
# Each tier ends after this long; docs/reference/conformance.md says what they hold and how they last went.
LIMIT := timeout --verbose --kill-after=60

.PHONY: help
help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

.PHONY: demo
demo: $(VENV)/run ## build, convert, push and lazily run a real image on this machine (a few minutes)
	@$(PACKAGES) demo
	@$(BIN)/python -m pip install -q -e '.[start]'
	@$(RUN) $(BIN)/python demo/demo.py

.PHONY: demo-sealed
demo-sealed: $(VENV)/run ## seal and sign an image, run it with keys of a key broker, then tamper with it
	@$(PACKAGES) demo
	@$(BIN)/python -m pip install -q -e '.[ocicrypt]'
	@$(RUN) $(BIN)/python demo/demo_sealed.py

.PHONY: demo-guest
demo-guest: guest-image ## two emulated guests of one host run a sealed image, then the host lies (some minutes)
	@$(PACKAGES) guest
	@$(BIN)/python -m pip install -q -e '.[ocicrypt]'
	@$(RUN) $(BIN)/python demo/demo_guest.py build/guest-image

.PHONY: test
test: $(VENV)/dev ## units, Debian's tools, kernel mounts, a guest a kernel, linters, seconds of each fuzz target
	@$(PACKAGES) test
	@$(RUN) $(BIN)/python -m tests.support.prepare
	@$(RUN) $(LIMIT) 80m $(BIN)/pytest -n $(JOBS) -m "not peers and not package" tests

.PHONY: test-fresh
test-fresh: ## the same as on a new machine: a clone, an empty cache, home and virtual environment
	@scripts/test-fresh

.PHONY: test-peers
test-peers: $(VENV)/dev peers ## against the tools that `make peers` builds: other registries, builders, nydus, cosign
	@$(PACKAGES) test bench
	@$(RUN) $(BIN)/python -m tests.support.prepare
	@$(RUN) $(LIMIT) 40m $(BIN)/pytest -n $(JOBS) -m peers tests

.PHONY: test-guest
test-guest: $(VENV)/dev ## in virtual machines with kernels of Debian
	@$(PACKAGES) test
	@$(RUN) $(BIN)/python -m tests.support.prepare
	@$(RUN) $(LIMIT) 40m $(BIN)/pytest -m guest tests

.PHONY: test-deb
test-deb: $(VENV)/dev ## build a Debian package, then install, use, upgrade and remove it in a tree of Debian
	@$(PACKAGES) test
	@$(RUN) $(LIMIT) 20m $(BIN)/pytest -m package tests

.PHONY: lint
lint: $(VENV)/dev ## ruff, mypy --strict and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: bench
bench: $(VENV)/dev peers ## convert, cold start and serving, against the peers that are there; ROUNDS=3
	@$(PACKAGES) bench
	@mkdir -p bench/results
	@for each in $(basename $(notdir $(wildcard bench/*.py))); do \
	    echo; echo "== bench/$$each.py"; $(BIN)/python bench/$$each.py --rounds $(ROUNDS) --json bench/results/$$each.json || exit 1; done

.PHONY: peers
peers: ## fetch and build the tools that tests and benchmarks compare with (optional)
	@scripts/peers

.PHONY: docs
docs: $(VENV)/dev ## write the references, check links, run the tutorial
	@$(PACKAGES) demo
	@$(BIN)/python -m lamina.cli.reference docs/reference/cli.md
	@$(BIN)/python -m lamina.cli.python_reference docs/reference/python.md
	@$(BIN)/python -m lamina.cli.docker_options docs/reference/docker-options.md
	@$(BIN)/pytest -q tests/integration/test_docs.py

.PHONY: protos
protos: $(VENV)/dev ## write the messages of containerd's services anew from their .proto files
	@$(BIN)/python -m pip install -q grpcio-tools==1.71.2 --target build/protoc
	@cd src/lamina/containerd/wire && PYTHONPATH=$(CURDIR)/build/protoc $(CURDIR)/$(BIN)/python -m grpc_tools.protoc \
	    -I . --python_out=. --pyi_out=. *.proto

.PHONY: fuzz
fuzz: $(VENV)/dev ## run the fuzz targets; SECONDS=60 of CPU time for each, TARGETS="tar toc" for some
	@$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) $(TARGETS)

.PHONY: faults
faults: $(VENV)/dev ## break network, servers, disks and caches under real readers; FAULTS=10000 SEED=1
	@$(PACKAGES) test
	@$(RUN) $(LIMIT) 30m $(BIN)/python -m tests.faults --early --faults $(FAULTS) --bytes $(BYTES) --seed $(SEED) --seconds 900
	@$(RUN) LAMINA_GUEST_FAULTS=1 $(LIMIT) 20m $(BIN)/pytest -q tests/faults/test_virtiofs.py

.PHONY: mutants
mutants: $(VENV)/dev ## change one line at a time and see whether a test notices; MUTANTS=100 SEED=1 TARGETS="store source"
	@$(BIN)/python -m pip install -q -e '.[mutants]'
	@$(RUN) $(LIMIT) 3h $(BIN)/python -m tests.mutants --count $(MUTANTS) --seed $(SEED) $(TARGETS)

.PHONY: guest-image
guest-image: $(VENV)/run ## a kernel and an initial RAM disk for confidential guests, reproducible: build/guest-image
	@$(BIN)/python distribution/guest_image.py build/guest-image

.PHONY: install uninstall
install: ## install below PREFIX=/usr/local; distribution/install has the variables for packagers
	@distribution/install

uninstall: ## remove what `make install` has installed below PREFIX
	@distribution/install --remove

.PHONY: clean
clean: ## remove the virtual environment and what tools leave in the tree
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two stamps: a user of the demo does not need the test tools.
$(VENV)/run: pyproject.toml
	@$(call virtual_environment,.,lamina)

$(VENV)/dev: pyproject.toml
	@$(call virtual_environment,.[dev],lamina and its test tools)
	@touch $(VENV)/run

define virtual_environment
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || { echo "lamina needs Python 3.11 or newer as $(PYTHON); set PYTHON=..." >&2; exit 1; }; \
$(PACKAGES) venv; \
echo "installing Python packages into $(VENV): $(2)"; \
$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q -e '$(1)' && touch $@
endef
