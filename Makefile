# RaftKV's everyday commands; `make` alone lists them.
#
# Everything is built with the release profile and for the whole workspace at once, so that cargo
# resolves the same features each time and RocksDB, which takes the longest by far, is built once.

CARGO ?= cargo
# More for cargo, for example --locked.
CARGO_FLAGS ?=
RELEASE := --release --workspace $(CARGO_FLAGS)
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)

# What `make run` starts.
NODE_ID ?= node1
DATA_DIR ?= ./data/$(NODE_ID)
PORT ?= 5001

# With ccache a C++ file is compiled once a machine. It gets in by the PATH because cargo would take
# another CXX for a reason to build anew.
export PATH := /usr/lib/ccache:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help run cluster build test lint sim fmt bench compare plugins clean-data

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build and start a cluster of one node on port 5001, its data in ./data/node1
	@scripts/install-deps.sh build
	$(CARGO) build $(RELEASE) --bin raft-kv
	exec '$(TARGET_DIR)/release/raft-kv' --node-id '$(NODE_ID)' --data-dir '$(DATA_DIR)' --port '$(PORT)'

cluster: ## Build and start three nodes on ports 5001 to 5003, their data in ./data/cluster
	@scripts/install-deps.sh build
	$(CARGO) build $(RELEASE) --bin raft-kv
	exec scripts/run-cluster.sh '$(TARGET_DIR)/release/raft-kv'

build: ## Build all libraries and programs
	@scripts/install-deps.sh build
	$(CARGO) build $(RELEASE)

test: build ## Run every test, those of the documentation included
	$(CARGO) test $(RELEASE) --no-fail-fast

lint: ## Check format, lints, documentation, and the crates depended on
	@scripts/install-deps.sh lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(RELEASE) --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc $(RELEASE) --no-deps
	@scripts/check-dependencies.sh

SIM_SEEDS ?= 2000
SIM_FROM ?= 0
sim: ## Run the simulator from SIM_SEEDS seeds, from SIM_FROM on
	$(CARGO) build $(RELEASE) --example sim
	'$(TARGET_DIR)/release/examples/sim' --seeds $(SIM_SEEDS) --from $(SIM_FROM)

fmt: ## Format the code
	$(CARGO) fmt --all

bench: ## Run the benchmarks; the table of what plugins cost goes into the README
	@scripts/install-deps.sh build
	RAFTKV_TABLE='$(CURDIR)/README.md' $(CARGO) bench --workspace $(CARGO_FLAGS) --bench '*'

compare: ## Measure a cluster of three nodes beside one of etcd, in one table
	@scripts/install-deps.sh compare
	$(CARGO) build $(RELEASE) --bins
	scripts/compare.sh '$(TARGET_DIR)/release'

plugins: ## Build the default plugin's WebAssembly module, plugins/dist/kv.wasm
	@scripts/install-deps.sh plugins
	scripts/build-plugins.sh

clean-data: ## Delete the data of what `make run` and `make cluster` start
	rm -rf -- '$(DATA_DIR)' ./data/cluster
