# Every target with a `## ` comment is listed by `make help`.

CARGO ?= cargo
BENCH := target/release/ringmesh-bench
SERVER := target/release/ringmesh
# What upgrade-test upgrades from: a binary, or else a commit that is built.
PREVIOUS ?=
UPGRADE_FROM ?= c5221b2

.DEFAULT_GOAL := help
.PHONY: help run build test test-tools check fmt lint bench bench-build bench-full bench-100k bench-peers bench-tuning bench-cluster bench-redis hosts upgrade-test mutants tune-plan tune doc clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Start a node on port 8080 (ARGS="--shards 2" adds settings)
	$(CARGO) run --release -- serve $(ARGS)

build: ## Build target/release/ringmesh
	$(CARGO) build --release --bin ringmesh

test: test-tools ## Run all tests, with cargo nextest where it is installed
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		set -x; $(CARGO) nextest run --workspace && $(CARGO) test --workspace --doc; \
	else \
		set -x; $(CARGO) test --workspace; \
	fi

test-tools: ## Install what the tests use: redis-server, nginx, HAProxy; Prometheus and Python packages under target/
	@tests/support/install-tools.sh

check: ## Type-check everything
	$(CARGO) check --workspace --all-targets

fmt: ## Format the code
	$(CARGO) fmt --all

lint: ## Check format and lints; any warning is an error
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

bench-build:
	$(CARGO) build --release --workspace

bench: bench-build ## Measure the quick suite, about two minutes: server on core 0, generator on core 1
	$(BENCH) suite quick --server-cmd $(SERVER)

bench-full: bench-build ## Measure the whole table, about ten minutes
	$(BENCH) suite full --server-cmd $(SERVER)

bench-100k: bench-build ## Hold 100,000 connections and send through them, about five minutes
	$(BENCH) suite 100k --server-cmd $(SERVER)

bench-peers: bench-build ## Measure other servers beside the node, interleaved (builds them first)
	bench/peers/build.sh
	$(BENCH) peers --server-cmd $(SERVER)

bench-tuning: bench-build ## As root: which settings of tuning/host matter on this machine, about half an hour (ARGS= adds options)
	bench/tuning.py --server $(SERVER) --bench $(BENCH) $(ARGS)

bench-cluster: bench-build ## Measure two nodes with a Redis between them beside one, about four minutes
	$(BENCH) suite cluster --server-cmd $(SERVER)

bench-redis: bench-build ## Measure what nodes ask of Redis, each thing by itself, about two minutes
	$(BENCH) costs --server-cmd $(SERVER)

hosts: build ## As root: cut cables and lose a host among network namespaces, and say what users saw, about six minutes
	tests/hosts/run --binary $(SERVER) $(ARGS)

upgrade-test: build test-tools ## Roll three nodes from the previous release to this one and back under load, about two minutes (PREVIOUS=binary or UPGRADE_FROM=commit; ARGS= adds options)
	@previous="$(PREVIOUS)"; \
	if [ -z "$$previous" ]; then previous=$$(CARGO="$(CARGO)" tests/upgrade/previous "$(UPGRADE_FROM)") || exit 1; fi; \
	set -x; target/test-venv/bin/python tests/upgrade/run --previous "$$previous" --binary $(SERVER) --own-ids $(ARGS)

mutants: ## Put faults into the bus, one at a time, and say which kinds of the cluster simulation notice each, about an hour (ARGS="--only NAME" adds options)
	tests/mutants/run $(ARGS)

tune-plan: ## Show what this host lacks for ringmesh, and change nothing (ARGS="--connections 200000" adds options)
	@tuning/host/tune plan $(ARGS)

tune: ## Tune this host for ringmesh, as root (ARGS= as above; tuning/host/tune rollback takes it back)
	@tuning/host/tune apply $(ARGS)

doc: ## Build the API documentation
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

clean: ## Remove all that was built
	$(CARGO) clean
