# make demo   set up, start a cluster, use it with real data, clean up
# make test   set up, pass all tests
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: help system env dev check test bench proto demo fmt clean all

help:
	@sed -n 's/^# \(make .*\)/\1/p' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	python3 -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip

proto: ## regenerate fs/wire/pb and core/src/wire/pb.rs
	$(PY) -m grpc_tools.protoc -Iproto --python_out=fs/wire/pb --pyi_out=fs/wire/pb --grpc_python_out=fs/wire/pb proto/*.proto
	sed -i -E 's/^import (common|mgmtd|meta|storage)_pb2/from . import \1_pb2/' fs/wire/pb/*.py fs/wire/pb/*.pyi
	$(PY) -m grpc_tools.protoc -Iproto --include_imports --descriptor_set_out=core/target/proto.bin proto/common.proto proto/mgmtd.proto proto/meta.proto
	cd core/protogen && cargo run -q --release -- ../target/proto.bin ../target && mv ../target/luciola.rs ../src/wire/pb.rs
