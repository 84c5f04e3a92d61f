# make demo     set up, start a cluster, use it with real data through a node's loss, clean up
# make test     set up, pass all tests
# make check    formatting, lint, types, import rules, dependencies, clippy, API reference
# make docs     the API reference, from docstrings, in build/site; warnings are errors
# make dev      set up for development: environment, native module, editable install; PYTHON=… chooses the interpreter
# make wheels   the packages that other machines install, in build/wheels
# make image    a container image with everything, by podman, buildah or docker; IMAGE=… names it
# make bench    measure this machine, beside other file systems where they are installed
# make gpu      on a machine with an NVIDIA GPU: the kernels' tests and benchmarks there, and a report of them
# make test-rdma  everything that speaks RDMA, in a virtual machine with Soft-RoCE (Debian, root)
# make nemesis  faults, two at a time, on a cluster whose histories are checked, for MINUTES (root, loop devices);
#               METADATA=etcd: several of mgmtd and meta, over logs in etcd
# make sim      random walks of the chain protocol and power loss for MINUTES (10), its larger worlds; SEED=… replays
# make fuzz     fuzz all parsers of bytes from outside for MINUTES (10) together; KEEP=1 copies what is new to the seeds
# make planted  put mistakes back into a copy of the code, and report which suites find them
# make proto    regenerate the protobuf code after a change in proto/
# make fmt      format everything
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help dev demo test test-rust test-python test-clusters test-units test-rdma test-rdma-quick check check-python check-rust docs wheels image bench gpu nemesis sim fuzz planted proto fmt clean

VENV ?= .venv
PYTHON ?= python3
MINUTES ?= 10
IMAGE ?= localhost/luciola
SEED ?=
PY := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
CORE_SOURCES := $(shell find core/src core/Cargo.toml core/Cargo.lock core/pyproject.toml -type f 2>/dev/null)
# What the tests run beside Python and Rust: a command and the Debian package that brings it.
TOOLS := fusermount3:fuse3 fio:fio git:git sqlite3:sqlite3 rsync:rsync ip:iproute2 setpriv:util-linux setfattr:attr etcd:etcd-server etcdctl:etcd-client openssl:openssl systemd-analyze:systemd

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(STAMPS)/system:
	@missing=""; for pair in $(TOOLS); do command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; \
	  export DEBIAN_FRONTEND=noninteractive; apt-get update -q >/dev/null && apt-get install -y -q $$missing >/dev/null; fi
	@mkdir -p $(@D) && touch $@

$(STAMPS)/venv: | $(STAMPS)/system
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	@mkdir -p $(@D) && touch $@

$(STAMPS)/install: $(STAMPS)/venv pyproject.toml $(CORE_SOURCES)
	$(PY) -m pip install -q ./core -e .
	@touch $@

$(STAMPS)/dev: $(STAMPS)/install
	$(PY) -m pip install -q -e '.[all]'
	@touch $@

dev: $(STAMPS)/dev

demo: $(STAMPS)/install
	$(PY) examples/demo.py

test: $(STAMPS)/dev test-rust test-python

test-rust: $(STAMPS)/dev
	cd core && timeout --kill-after 30 1800 cargo test --locked --no-fail-fast

# A test that hangs is ended and named here, with the longest tests, before CI's own limit ends the run.
# Suites that start clusters mostly wait, the others compute: side by side, each has a processor. Libraries for numbers get
# one thread: for small products, others wait three times as long as they compute.
PYTEST := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(PY) -m pytest --session-timeout 3300 --durations 20
CLUSTERS := tests/integration tests/nemesis tests/posix

test-python: $(STAMPS)/dev
	$(MAKE) -j2 --output-sync=target test-clusters test-units

test-clusters: $(STAMPS)/dev
	$(PYTEST) $(CLUSTERS)

test-units: $(STAMPS)/dev
	$(PYTEST) $(CLUSTERS:%=--ignore %)

test-rdma: $(STAMPS)/dev
	$(PY) tests/rdma/run.py

test-rdma-quick: $(STAMPS)/dev
	$(PY) tests/rdma/run.py --quick

sim: $(STAMPS)/dev
	cd core && LUCIOLA_MINUTES=$(MINUTES) LUCIOLA_SEED=$(SEED) cargo test --locked --test craq_simulator long_ -- --nocapture
	cd core && LUCIOLA_MINUTES=$(MINUTES) LUCIOLA_SEED=$(SEED) cargo test --locked --test power_loss -- --nocapture
	@if [ -z "$(SEED)" ]; then cd core && LUCIOLA_MODEL=wide cargo test --locked --test craq_model -- --nocapture; fi

fuzz: $(STAMPS)/dev
	$(PY) -m pip install -q -e '.[fuzz]'
	$(PY) tests/fuzz/campaign.py --minutes $(MINUTES) $(if $(KEEP),--keep)

planted: $(STAMPS)/dev
	$(PY) tests/planted/run.py

check: check-python check-rust docs

docs: $(STAMPS)/dev
	$(PY) docs/build.py build/site

wheels: $(STAMPS)/venv
	rm -rf build/wheels
	$(PY) -m pip wheel -q --no-deps --wheel-dir build/wheels ./core .

image: wheels
	@builder=$$(command -v podman buildah docker | head -1); \
	if [ -z "$$builder" ]; then echo "make image needs podman, buildah or docker: apt-get install podman" >&2; exit 1; fi; \
	"$$builder" build -t $(IMAGE) $(if $(BASE),--build-arg BASE=$(BASE)) -f deploy/Containerfile build

check-python: $(STAMPS)/dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) tests/tidy/dependencies.py

check-rust:
	cd core && cargo fmt --check
	cd core/fuzz && cargo fmt --check
	cd core && cargo clippy --locked --all-targets --features python -- -D warnings
	cd core && cargo clippy --locked --all-targets --no-default-features --features python -- -D warnings

fmt: $(STAMPS)/dev
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .
	cd core && cargo fmt

bench: $(STAMPS)/install
	$(PY) benchmarks/run.py

gpu: $(STAMPS)/dev
	$(PY) benchmarks/plugins/gpu.py

nemesis: $(STAMPS)/dev
	PYTHONPATH=tests $(PY) -m nemesis.run --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) \
		$(if $(METADATA),--metadata $(METADATA)) --report nemesis-report.txt

proto: $(STAMPS)/dev
	$(PY) -m grpc_tools.protoc -Iproto --python_out=fs/wire/pb --pyi_out=fs/wire/pb proto/*.proto
	sed -i -E 's/^import (common|mgmtd|meta|storage)_pb2/from . import \1_pb2/' fs/wire/pb/*.py fs/wire/pb/*.pyi
	mkdir -p core/target
	$(PY) -m grpc_tools.protoc -Iproto --include_imports --descriptor_set_out=core/target/proto.bin proto/common.proto proto/mgmtd.proto proto/meta.proto
	cd core/protogen && cargo run -q --release -- ../target/proto.bin ../target && mv ../target/luciola.rs ../src/wire/pb.rs
	cd core && rustfmt --edition 2024 target/verbs.rs && mv target/verbs.rs src/wire/verbs.rs

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info core/target core/protogen/target core/fuzz/target
