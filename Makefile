# Everything a developer or an operator types. `make` alone lists it.
# Variables on the command line reach the programs as environment: make run PORT=8001

PYTHON ?= python3
# Scripts of a virtual environment break where its path has a space; its python does not.
VENV := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help run demo loadtest test check bench chaos lock

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1: \2/p' Makefile

run: .venv/installed ## start everything in the foreground: PostgreSQL, Redis, web, workers, Flower, sandbox inbox
	@exec $(VENV) -m mailqueue.embedded run

demo: .venv/installed ## send 1,000 mails into the sandbox inbox and show the rate (COUNT=1000)
	@exec $(VENV) -m mailqueue.embedded demo $(if $(COUNT),--count $(COUNT))

loadtest: .venv/installed ## put load on the running stack and sum up (ARGS="--count 5000 --rate 100 --owners 3 --lanes otp=1,bulk=9")
	@exec $(VENV) -m mailqueue.embedded exec -- $(VENV) manage.py loadtest $(ARGS)

test: .venv/installed-dev ## the whole test suite, on real PostgreSQL and Redis (one after another: ARGS="-n 0")
	@exec $(VENV) -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/installed-dev ## lint, format, types, import contracts, migrations, deployment checks, known vulnerabilities
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	@exec $(VENV) -m mailqueue.embedded exec --temporary -- $(MAKE) --no-print-directory _check-django
	$(VENV) .ci/audit.py requirements.txt

# As an operator would set it; E006 is for the PostgreSQL of this check, which may forget a crash of its machine.
_PRODUCTION = ALLOWED_HOSTS=mail.example.com PUBLIC_URL=https://mail.example.com SMTP_ALLOWED_NETWORKS= \
  FLOWER_BASIC_AUTH=ops:brave-heron-21-lantern SILENCED_SYSTEM_CHECKS=mailqueue.E006

.PHONY: _check-django
_check-django:
	$(VENV) -m mypy config mailqueue tasks accounts
	$(VENV) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"
	$(VENV) manage.py makemigrations --check --dry-run
	$(_PRODUCTION) $(VENV) manage.py check --deploy --fail-level WARNING

bench: .venv/installed-dev ## the benchmarks, side by side with what others do
	@exec $(VENV) -m tests.bench $(ARGS)

chaos: .venv/installed-dev ## the fault suite: every promise under every fault, some 90 minutes (SCALE=0.05 ARGS="--only C1")
	@exec $(VENV) -m tests.chaos $(ARGS)

compile := -m uv pip compile --universal --generate-hashes -p 3.11 --custom-compile-command "make lock"

lock: .venv/installed-dev ## resolve pyproject.toml anew into requirements.txt, its part for the image, and requirements-dev.txt
	$(VENV) $(compile) --extra embedded pyproject.toml -o requirements.txt
	$(VENV) $(compile) -c requirements.txt pyproject.toml -o requirements-image.txt
	$(VENV) $(compile) --extra embedded --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt

# The stamps: a second start installs nothing, a changed lock file does.
.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python 3.11 or newer is needed, and $(PYTHON) is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(VENV) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(VENV) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

# On Kubernetes: minikube, or OVERLAY=production and the like in the cluster that kubectl points at (deployment/).
.PHONY: cluster apply hpa re delete clean all manifests
cluster: ## start minikube, with metrics, ingress and enforced network policies (CPUS=4 MEMORY=6g)
	@deployment/cluster start

apply: ## build the image into minikube, make secrets once, migrate, start everything and wait for it
	@deployment/cluster apply

hpa: ## apply the autoscalers, wait until they have figures, and show them
	@deployment/cluster hpa

re: ## build anew, migrate, restart every part bit by bit and wait for it
	@deployment/cluster re

delete: ## take everything out of the cluster again, in minikube data included
	@deployment/cluster delete

clean: ## delete the minikube cluster
	@deployment/cluster clean

all: ## cluster, apply and hpa, one after the other
	@$(MAKE) --no-print-directory cluster
	@$(MAKE) --no-print-directory apply
	@$(MAKE) --no-print-directory hpa

manifests: .venv/installed .local/checkov/installed ## checkov over what deployment/ renders (schemas and all else: make test)
	@PATH="$$(.ci/get-kubectl):$$PATH" .ci/check-manifests

# In a place of its own: it wants older versions of what we use ourselves.
.local/checkov/installed: .ci/requirements-checkov.txt
	$(PYTHON) -m venv .local/checkov
	.local/checkov/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .ci/requirements-checkov.txt
	@touch $@

.PHONY: _lock-checkov
lock: _lock-checkov
_lock-checkov: .venv/installed-dev
	$(VENV) -m uv pip compile --universal --generate-hashes -p 3.11 --custom-compile-command "make lock" \
	  .ci/checkov.in -o .ci/requirements-checkov.txt
