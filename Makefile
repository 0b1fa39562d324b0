# One command each: `make chat`, `make check` and `make test` set up all they need; `make help` lists the rest.

PYTHON ?= python3
MODEL ?= --demo

VENV := .venv
BIN := $(VENV)/bin
ARCHIVE := model_store/llamacpp.tar.gz
CLIENTS := .cache/clients
PACKED := llama_cpp_handler.py $(wildcard llama_cpp_worker/*.py llama_cpp_worker/*/*.py) model-config.yaml package_llama.sh $(wildcard package_llama/*.py package_llama/*.txt)
QUICK := not server and not browser and not model and not slow
SHELL := /bin/bash

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help chat front package check lint test screenshots clean distclean FORCE

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)
	@echo "  MODEL=path  a Llama 2 snapshot folder or a GGUF file, for chat and package"

chat: $(ARCHIVE) ## install, package, start TorchServe and both apps; Ctrl-C stops them
	@exec $(BIN)/python -m apps

front: $(VENV)/.installed ## start http://127.0.0.1:8000/v1 in front of the running TorchServe
	@exec $(BIN)/python -m front

package: $(ARCHIVE) ## make the archives that TorchServe loads

check: lint ## lint, and run the tests that need no server, browser or model
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "$(QUICK)"

lint: $(VENV)/.tests-installed ## check style, types, shell scripts and the CI workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/shellcheck package_llama.sh .ci/run .make/*.sh
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/pre-commit validate-config

test: $(ARCHIVE) $(VENV)/.tests-installed ## run every test
	$(BIN)/python -m pytest

clients: $(ARCHIVE) $(VENV)/.tests-installed $(CLIENTS)/bin/uv ## run other people's clients against the server, each in its own environment
	$(BIN)/python -m tests.clients

screenshots: $(ARCHIVE) $(VENV)/.tests-installed ## make the README's pictures from the running apps
	$(BIN)/python -m screenshots.make_screenshots

clean: ## remove logs and the caches of the tools; models stay
	rm -rf logs/*.log logs/*.gz .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## also remove the environment, models and archives; conversations and experiments stay
	rm -rf $(VENV) .cache models model_store

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	@.make/check_compiler.sh $(BIN)/python
	@echo "Installing. llama.cpp is compiled: that takes about 5 minutes on 2 cores, and only the first time."
	$(BIN)/pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.tests-installed: $(VENV)/.installed tests/requirements.txt package_llama/requirements.txt
	$(BIN)/pip install --quiet -r tests/requirements.txt
	@touch $@

$(CLIENTS)/bin/uv:
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet uv==0.13.9

# `.cache/model` holds the MODEL that was packaged, so that another one is packaged anew. Where only our own files have
# changed, "false" packs them again without another conversion. (llamacpp-dynamic.tar.gz comes from the same run.)
$(ARCHIVE): $(VENV)/.installed $(PACKED) .cache/model
	PATH="$(CURDIR)/$(BIN):$$PATH" ./package_llama.sh "$(MODEL)" $(if $(filter .cache/model,$?),,false)

.cache/model: FORCE
	@mkdir -p .cache
	@printf '%s\n' "$(MODEL)" | cmp -s - $@ || printf '%s\n' "$(MODEL)" > $@
