# Every target with a `## ` comment is listed by `make help`.

CARGO ?= cargo
BENCH := target/release/ringmesh-bench
SERVER := target/release/ringmesh

.DEFAULT_GOAL := help
.PHONY: help run build test test-tools check fmt lint bench doc clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

test-tools: ## Install what the tests use: redis-server, and Python's websockets under target/
	@tests/support/install-tools.sh

check: ## Type-check everything
	$(CARGO) check --workspace --all-targets

fmt: ## Format the code
	$(CARGO) fmt --all

lint: ## Check format and lints; any warning is an error
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

bench: ## Run the quick benchmarks: server on core 0, generator on core 1
	$(CARGO) build --release --workspace
	$(BENCH) suite quick --server-cmd $(SERVER)

doc: ## Build the API documentation
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

clean: ## Remove all that was built
	$(CARGO) clean
