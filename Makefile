# `make` alone lists the targets. Every one may be run again: what is there already is not fetched again.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Cargo puts its files elsewhere where it is told to.
target_dir := $(or $(CARGO_TARGET_DIR),target)

# Arguments for `make demo`, `make faults` and `make bench`, e.g. ARGS="--help".
ARGS ?=
# How long `make fuzz` spends on each target.
FUZZ_SECONDS ?= 30

.PHONY: help build demo test faults chart image-test bench lint deny fuzz clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

build: ## Build target/release/capvec, and fetch ONNX Runtime
	@scripts/setup build
	@scripts/cache-folder >/dev/null # It may refuse: now rather than after minutes of compiling.
	cargo build --release --locked
	@scripts/onnxruntime

demo: build ## Build, then watch capvec embed captions: make demo ARGS="..."
	"$(target_dir)/release/capvec" demo $(ARGS)

test: ## Run all tests, those on a real Kafka included
	@scripts/setup test
	@scripts/onnxruntime
	@scripts/kafka-jars
	@scripts/prometheus || true # The tests that need it say that they are skipped.
	@scripts/check-image --prepare
	@mkdir -p "$(target_dir)"
	@echo cargo test --locked --no-fail-fast
	@status=0; \
	cargo test --locked --no-fail-fast 2>&1 | tee "$(target_dir)/test.log" || status=$$?; \
	echo 'cargo test --locked --test faults # the short rows of make faults'; \
	cargo test --locked --test faults 2>&1 | tee -a "$(target_dir)/test.log" || status=$$?; \
	scripts/check-chart 2>&1 | tee -a "$(target_dir)/test.log" || status=$$?; \
	scripts/test-summary "$(target_dir)/test.log"; \
	exit $$status

image-test: build ## Build the container image around the release and run it
	@scripts/check-image "$(target_dir)/release/capvec"

chart: ## Check the Helm chart alone
	@scripts/setup test
	@scripts/check-chart

faults: ## Try every fault of docs/delivery.md: make faults ARGS="--mode at-least-once 1 6b"
	@scripts/setup faults
	@scripts/kafka-jars
	@scripts/toxiproxy
	cargo test --locked --test faults -- --full --document docs/delivery.md $(ARGS)

bench: ## Benchmark the pure parts: make bench ARGS="caption"
	@scripts/setup build
	cargo bench --locked --bench pure -- $(ARGS)

lint: ## Check format, clippy, the docs, the scripts, the Dockerfile and the crates
	@cargo fmt --version >/dev/null 2>&1 || { echo "missing: rustup component add rustfmt" >&2; exit 1; }
	@cargo clippy --version >/dev/null 2>&1 || { echo "missing: rustup component add clippy" >&2; exit 1; }
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --test faults -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
	@if command -v shellcheck >/dev/null; then \
	  shellcheck $$(grep -lI -d skip '^#!.*bash' scripts/* .ci/run) helm/capvec/files/fetch-model.sh; \
	else \
	  echo "not checked, as shellcheck is missing: scripts/ and .ci/run" >&2; \
	fi
	@scripts/hadolint
	@scripts/deny

deny: ## Check licences, sources and vulnerabilities of the crates
	@scripts/deny

fuzz: ## Fuzz every target for FUZZ_SECONDS (30) each
	@cargo +nightly fuzz --version >/dev/null 2>&1 || { \
	  echo "missing: rustup toolchain install nightly && cargo install cargo-fuzz" >&2; exit 1; }
	for target in $$(cargo +nightly fuzz list); do \
	  cargo +nightly fuzz run "$$target" -- -max_total_time=$(FUZZ_SECONDS); \
	done

clean: ## Delete what was built; downloads stay in the cache
	cargo clean
