# One command each: `make chat`, `make check` and `make test` set up all they need; `make help` lists the rest.

# What was packaged before, or else the demo model.
MODEL ?= $(or $(shell cat .cache/model 2>/dev/null),--demo)

VENV := .venv
BIN := $(VENV)/bin
ARCHIVE := model_store/llamacpp.tar.gz
PACKED := llama_cpp_handler.py $(wildcard llama_cpp_worker/*.py llama_cpp_worker/*/*.py) model-config.yaml package_llama.sh $(wildcard package_llama/*.py package_llama/*.txt)
QUICK := not server and not browser and not model and not slow
SHELL := /bin/bash
# The set-up's goals: chat, check, test, cluster, doctor, distclean. PYTHON=path chooses another Python.
SETUP = python="$$(.make/find_python.sh $(if $(PYTHON),"$(PYTHON)"))" && MODEL="$(MODEL)" PYTHONPATH=.make exec "$$python" -m installer

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help chat doctor front cluster cluster-test package check lint test clients screenshots clean distclean FORCE

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)
	@echo "  MODEL=…  a snapshot folder, a GGUF file or a Hugging Face id, for chat and package"

chat: $(ARCHIVE) ## install, package, start TorchServe and both apps; Ctrl-C stops them
	@exec $(BIN)/python -m apps

doctor: ## say what is there, what is missing, and the next step
	@$(SETUP) doctor

front: $(VENV)/.installed ## start http://127.0.0.1:8000/v1 in front of the running TorchServe
	@exec $(BIN)/python -m front

cluster: $(ARCHIVE) $(VENV)/.cluster-installed ## serve the model with two nodes on this machine, as several machines would
	@exec $(BIN)/python -m cluster

cluster-test: $(ARCHIVE) $(VENV)/.tests-installed $(VENV)/.cluster-installed ## run the tests of the cluster
	$(BIN)/python -m pytest tests/cluster

package: $(ARCHIVE) ## make the archives that TorchServe loads

check: lint ## lint, and run the tests that need no server, browser or model
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "$(QUICK)"

lint: $(VENV)/.tests-installed ## check style, types, shell scripts, the CI workflow, Dockerfile and compose.yaml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy . .make/installer
	$(BIN)/shellcheck package_llama.sh .ci/run .make/*.sh
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/hadolint Dockerfile
	$(BIN)/pre-commit validate-config

test cluster-test clients screenshots: MODEL := --demo

test: $(ARCHIVE) $(VENV)/.torch-installed ## run every test
	$(BIN)/python -m pytest

clients: $(ARCHIVE) $(VENV)/.tests-installed ## run other people's clients against the server, each in its own environment
	$(BIN)/python -m tests.clients

screenshots: $(ARCHIVE) $(VENV)/.tests-installed ## make the README's pictures from the running apps
	$(BIN)/python -m screenshots.make_screenshots

clean: ## remove logs and the caches of the tools; models stay
	rm -rf logs/*.log logs/*.gz .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: ## also remove the environment, models and archives, after a question; conversations and experiments stay
	@$(SETUP) distclean
	@$(MAKE) --no-print-directory clean

# Each run asks the set-up, which changes a file only if it installs something.
$(VENV)/.installed: FORCE
	@$(SETUP) chat

$(VENV)/.tests-installed: FORCE
	@$(SETUP) check

$(VENV)/.torch-installed: FORCE
	@$(SETUP) test

$(VENV)/.cluster-installed: FORCE
	@$(SETUP) cluster

# `.cache/model` holds the MODEL that was packaged, so that another one is packaged anew. Where only our own files have
# changed, "false" packs them again without another conversion. (llamacpp-dynamic.tar.gz comes from the same run.)
$(ARCHIVE): $(VENV)/.installed $(PACKED) .cache/model
	PATH="$(CURDIR)/$(BIN):$$PATH" ./package_llama.sh "$(MODEL)" $(if $(filter .cache/model,$?),,false)

.cache/model: FORCE
	@mkdir -p .cache
	@printf '%s\n' "$(MODEL)" | cmp -s - $@ || printf '%s\n' "$(MODEL)" > $@
