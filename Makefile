# The Python to set up with; 3.11 is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := .venv/bin/python -m
# Debian's packages that the tests take servers and tools from.
SERVERS := curl util-linux redis-server postgresql prometheus wrk

# `make bench-features`: events, and how often each side runs.
SIZES ?= 1m 10m 50m
REPEATS ?= 3
# `make bench-quality`: which data set, how many seeds (on the protocols beside the first, too); SEARCH=1 searches every system's settings first, SEARCH=missing those that nobody has searched.
DATASET ?= movielens-100k
SEEDS ?= 3
OTHER_SEEDS ?= 1
# `make soak`: minutes of load, and requests of the crowd after it.
MINUTES ?= 10
REQUESTS ?= 50000

.PHONY: install demo serve test test-cluster lint bench-ablation bench-features bench-quality bench-serving bench-train bench-item-table bench-autoscaling soak cluster-up cluster-down install-servers

install: ## set-up; does nothing when it is complete
	@$(PYTHON) -m cluster.install

demo: install ## the whole path, from raw events to real answers
	@$(RUN) jobs.quickstart

serve: install ## the endpoint, from the registry
	@$(RUN) jobs.serve_models

test: install
	@$(RUN) pytest -m "not cluster" -n 2 --dist loadfile

test-cluster: install ## what is slow or starts servers
	@$(RUN) pytest -m cluster -n 2 --dist loadfile

lint: install
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) mypy
	@.venv/bin/lint-imports

bench-features: install ## features beside polars, DuckDB and Feast; SIZES="1m 10m" for less than 50 M events
	@$(RUN) benchmarks.features --sizes $(SIZES) --repeats $(REPEATS)

bench-train: install ## Horovod beside torch DDP beside a plain loop, and what Horovod's features do; 10 minutes
	@$(RUN) benchmarks.training --dataset $(DATASET)

bench-item-table: install ## the two-tower's table of a million items with dense and with sparse gradients; 5 minutes
	@$(RUN) benchmarks.item_table

bench-quality: install ## our models beside RecTools, RecBole, implicit and LensKit; an hour
	@$(RUN) benchmarks.quality --dataset $(DATASET) --seeds $(SEEDS) --other-seeds $(OTHER_SEEDS) $(if $(SEARCH),--search $(if $(filter missing,$(SEARCH)),missing,all))

bench-serving: install ## our serving graph beside FastAPI, BentoML and the usual Ray Serve way; 15 minutes
	@$(RUN) benchmarks.serving --dataset $(DATASET)

bench-autoscaling: install ## our autoscaling policies beside Ray Serve's default, on simulated traces; 2 minutes
	@$(RUN) benchmarks.autoscaling --dataset $(DATASET)

soak: install ## the endpoint under load while parts of it are killed, MINUTES of load after that, and 50,000 requests of bad clients among good ones
	@$(RUN) benchmarks.soak --dataset $(DATASET) --minutes $(MINUTES) --requests $(REQUESTS)

bench-ablation: install ## what each part of our pair is worth, with the settings of bench-quality; an hour or two
	@$(RUN) benchmarks.ablation --dataset $(DATASET) --seeds $(SEEDS)

cluster-up: install ## a Ray cluster on this machine, with its dashboard and job server
	@$(RUN) cluster.local_cluster up

cluster-down: install
	@$(RUN) cluster.local_cluster down

install-servers: ## what `make test-cluster` takes from Debian
	@if which curl unshare redis-server prometheus wrk >/dev/null \
		&& ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then echo "nothing to install"; \
	else apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(SERVERS); fi
