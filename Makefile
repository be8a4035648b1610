# Every target makes what it needs itself, .venv included. Works with GNU make 3.81 and later.

.DEFAULT_GOAL := help
.PHONY: help run serve board query test browser unit contract faults truth bench importtime lint security reference format build destination deploy lock clean

# What the caller's shell has active must not leak into the environment of the project.
unexport VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE PIP_USER PIP_TARGET PIP_PREFIX UV_PYTHON
# uv.lock holds the addresses of the packages: those of the public index, whichever the caller uses.
unexport UV_DEFAULT_INDEX UV_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL
export UV_PROJECT_ENVIRONMENT := .venv
export UV_PYTHON_DOWNLOADS := never
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export SAM_CLI_TELEMETRY := 0

# A Python 3.13 that is not on the PATH: make run PYTHON=/path/to/python3.13
PYTHON :=
# Where pyenv, uv and Homebrew keep theirs, if the PATH does not lead there.
FURTHER_PYTHONS = "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.13*/bin/python3.13 \
	"$$HOME"/.local/share/uv/python/cpython-3.13*/bin/python3.13 /opt/homebrew/bin/python3.13 /usr/local/bin/python3.13
# The section of samconfig.toml to deploy with: dev or prod. Its parameters are all that GUIDED=0 takes.
STAGE := dev
GUIDED := 1
ASKING = $(if $(filter 0,$(GUIDED)),--no-confirm-changeset --no-fail-on-empty-changeset,--guided)

BIN := .venv/bin
INSTALLED := .venv/.installed
# Two processes: more on a machine of few processors would make the tests of time limits wait for each other.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
REQUIREMENTS := layers/dependencies/requirements.txt
# checkov wants an older boto3 than the project: it has an environment and a lock of its own.
CHECKOV := .venv/checkov
CHECKOV_LOCK := .ci/checkov.txt
EXPORT_REQUIREMENTS = { echo "\# Written by make lock: what the functions import and what that needs, as in uv.lock."; \
	$(BIN)/uv export --frozen --quiet --no-default-groups --no-emit-project --no-header --format requirements.txt; }
# The linter of docs/openapi.yaml and the renderer of its page; they come from npm.
OPENAPI := .ci/openapi
IS_PYTHON_313 := import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 13))

TEMPLATES := template.yaml observability.yaml
# The stamp is named after the list of the sources, so that a file taken away asks for a new build too.
SOURCES := $(shell find functions layers $(TEMPLATES) -type f ! -path '*/__pycache__/*' ! -name '.*' | LC_ALL=C sort)
BUILT := .aws-sam/built-$(shell echo '$(SOURCES)' | cksum | cut -d ' ' -f 1)

help: ## Show this list
	@echo "Stream State for Volcengine RTC. To begin: make run, then make test."
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F '|' '{printf "  make %-10s %s\n", $$1, $$2}'

run: build ## Show the job on this machine, the best parts first; ALL=1 for every sample event too
	@$(BIN)/python -m tests.commands run $(if $(filter-out 0,$(ALL)),--all)

serve: build ## Keep it running, with a live board, at port 8700 and the next four; PORT=... chooses others
	@$(BIN)/python -m tests.commands serve

board: build ## Write a page of the board, and its picture where a browser is, into .aws-sam/board
	@$(BIN)/python -m tests.commands board

query: $(INSTALLED) ## Ask the real service: make query ROOM_ID=... USER_ID=...
	@# make exports what its command line sets: the ids reach Python without a shell reading them.
	@$(BIN)/python -m tests.commands.query --room-id="$$ROOM_ID" --user-id="$$USER_ID"

test: build ## Run the unit tests with coverage, then the integration and end-to-end tests
	@$(PYTEST) tests/unit --cov
	@# Without coverage, which costs these tests a quarter of their processor time.
	@$(PYTEST) tests/integration tests/e2e

unit: $(INSTALLED) ## Run the unit tests alone
	@$(PYTEST) tests/unit

# Debian's packages: chromium and chromium-driver.
browser: build ## Test the board in a real browser, which must be there
	@BROWSER_IS_REQUIRED=yes $(BIN)/python -m pytest tests/e2e/test_browser.py

contract: build ## Hold the running API against docs/openapi.yaml in at least 5,000 cases: about four minutes
	@$(BIN)/python -m tests.e2e.contract

faults: $(INSTALLED) ## Break everything around the functions, one fault after another: some minutes
	@$(BIN)/python -m tests.integration.campaign

truth: $(INSTALLED) ## Judge 20,000 random histories of users by a model of what is true: some minutes
	@$(BIN)/python -m tests.integration.truth

bench: build ## Measure this project against what users would run otherwise: about five minutes
	@$(BIN)/python -m tests.benchmarks

importtime: build ## Show what each function imports, and how long each module takes
	@$(BIN)/python -m tests.benchmarks.importtime

lint: $(INSTALLED) ## Check format, style, types, import order, templates and lock
	@echo "== format and style (ruff)"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@echo "== types (mypy)"
	@$(BIN)/mypy
	@echo "== import order (import-linter)"
	@PYTHONPATH=layers/stream_state $(BIN)/lint-imports --no-logo
	@echo "== templates (sam validate, cfn-lint)"
	@$(BIN)/sam validate --lint --region us-east-1
	@$(BIN)/cfn-lint --regions us-east-1 -- $(TEMPLATES)
	@echo "== pinned packages (uv)"
	@$(BIN)/uv lock --check --quiet || { echo "uv.lock does not match pyproject.toml: run make lock."; exit 1; }
	@$(EXPORT_REQUIREMENTS) | diff $(REQUIREMENTS) - || { echo "$(REQUIREMENTS) does not match uv.lock: run make lock."; exit 1; }
	@echo "All checks passed."

# Checkov skips resources whose condition does not hold: it reads the template a second time, with EnableCallbacks. Left
# out for every function: CKV_AWS_115, since many accounts have no concurrency to reserve (parameters do it), and
# CKV_AWS_116, since OnFailure of EventInvokeConfig keeps the error too, and the others are never invoked asynchronously.
security: $(CHECKOV)/.installed ## Check the templates for security (checkov)
	@mkdir -p .aws-sam/security
	@sed '/^  EnableCallbacks:/s/Default: "false"/Default: "true"/' template.yaml > .aws-sam/security/template.yaml
	@$(CHECKOV)/bin/checkov --framework cloudformation --file $(TEMPLATES) .aws-sam/security/template.yaml \
		--compact --quiet --skip-download --skip-check CKV_AWS_115,CKV_AWS_116 --output cli
	@echo "No check failed. What is left out, and why, stands beside it in the templates, or in the Makefile."

reference: $(OPENAPI)/node_modules/.installed ## Check docs/openapi.yaml (Redocly) and write docs/api-reference.html
	@REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true \
		$(OPENAPI)/node_modules/.bin/redocly lint --extends recommended-strict docs/openapi.yaml
	@$(BIN)/python $(OPENAPI)/reference.py

format: $(INSTALLED) ## Rewrite the code in the agreed format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

build: $(BUILT) ## Build the functions and layers into .aws-sam/build
	@:

# Before the build and the questions, since both take time.
destination: $(INSTALLED)
	@$(BIN)/python -m tests.commands.deployment "$(STAGE)"

# DEPLOYED makes every deployment publish a version of each function, which SAM does not do for a parameter's new value.
deploy: destination build ## Build, then deploy to your AWS account; STAGE=prod for production, GUIDED=0 to be asked nothing
	@sed 's/DEPLOYED: .*/DEPLOYED: '"$$(date -u +%Y%m%dT%H%M%SZ)"'/' .aws-sam/build/template.yaml > .aws-sam/build/stamped.yaml
	@mv .aws-sam/build/stamped.yaml .aws-sam/build/template.yaml
	@$(BIN)/sam deploy --config-env $(STAGE) $(ASKING)

lock: $(INSTALLED) ## Bring uv.lock and the layer's requirements in step with pyproject.toml
	@$(BIN)/uv lock
	@$(EXPORT_REQUIREMENTS) > $(REQUIREMENTS)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.13 --generate-hashes --no-header --no-annotate \
		--output-file $(CHECKOV_LOCK) .ci/checkov.in

clean: ## Remove everything that these targets have made, .venv included
	@rm -rf .venv $(OPENAPI)/node_modules .aws-sam .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find functions layers tests -type d -name __pycache__ -prune -exec rm -rf {} +

# --frozen: the lock alone decides, also where another package index is configured. `make lint` finds a lock out of step.
$(INSTALLED): pyproject.toml uv.lock .python-version
	@python=; \
	for candidate in $(PYTHON) python3.13 python3 python $(FURTHER_PYTHONS); do \
		if "$$candidate" -c '$(IS_PYTHON_313)' 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "Python 3.13 with its venv module was not found: please install it, or name it with PYTHON=/path/to/it." >&2; exit 1; \
	fi; \
	echo "Installing the pinned packages into .venv (the first time takes a minute) ..."; \
	$(BIN)/python -c '$(IS_PYTHON_313)' 2>/dev/null && $(BIN)/python -m pip --version >/dev/null 2>&1 \
		|| "$$python" -m venv --clear .venv
	@{ $(BIN)/python -m pip install -qq --retries 1 "$$(sed -n 's/^ *"\(uv==[^"]*\)".*/\1/p' pyproject.toml)" && \
		$(BIN)/uv sync --frozen --quiet; } > .venv/install.log 2>&1 || { \
		echo "The packages could not be installed. Is the package index reachable? .venv/install.log has the details." >&2; \
		exit 1; }
	@touch $@

# With pip, which takes the index that the caller has set; the hashes decide what is accepted.
$(CHECKOV)/.installed: $(CHECKOV_LOCK) | $(INSTALLED)
	@echo "Installing checkov into $(CHECKOV) (the first time takes a minute) ..."
	@$(BIN)/python -m venv --clear $(CHECKOV)
	@$(CHECKOV)/bin/python -m pip install -qq --no-deps --no-compile --only-binary :all: \
		--require-hashes -r $(CHECKOV_LOCK)
	@touch $@

$(OPENAPI)/node_modules/.installed: $(OPENAPI)/package-lock.json | $(INSTALLED)
	@command -v npm >/dev/null || { echo "npm was not found: please install Node.js 22 or later." >&2; exit 1; }
	@echo "Installing Redocly into $(OPENAPI)/node_modules ..."
	@cd $(OPENAPI) && npm ci --silent
	@touch $@

# The builder's own output is long: it is shown only if the build fails. Its makefiles call the python3.13 of .venv.
$(BUILT): $(INSTALLED) $(SOURCES)
	@echo "Building the functions and layers ..."
	@mkdir -p .aws-sam
	@rm -f .aws-sam/built-*
	@MAKEFLAGS= PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/sam build > .aws-sam/build.log 2>&1 || { cat .aws-sam/build.log; exit 1; }
	@touch $@
