"""Generated code equals `proto/`: Python is made again and compared; for Rust every field is compared."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from luciola.wire.pb import common_pb2, meta_pb2, mgmtd_pb2

ROOT = Path(__file__).parents[3]


def test_python_code_is_what_make_proto_makes(tmp_path):
    pytest.importorskip("grpc_tools")
    protos = sorted(str(path) for path in (ROOT / "proto").glob("*.proto"))
    out = [f"--{kind}={tmp_path}" for kind in ("python_out", "pyi_out")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", *out, *protos],
        check=True,
        timeout=200,
    )
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    for name, text in made.items():
        relative = re.sub(r"(?m)^import (common|mgmtd|meta|storage)_pb2", r"from . import \1_pb2", text)
        committed = (ROOT / "fs/wire/pb" / name).read_text()
        assert committed == relative, f"{name} is stale: run `make proto`"
    present = {path.name for path in (ROOT / "fs/wire/pb").glob("*_pb2*")}
    assert present == made.keys()


KINDS = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_ENUM: "enumeration",
    FieldDescriptor.TYPE_MESSAGE: "message",
}
STRUCT = re.compile(r"(?m)^pub struct (\w+) \{\n(.*?)^\}|^pub struct (\w+) \{\}", re.DOTALL)
ONEOF = re.compile(
    r"(?m)^    #\[derive\([^\]]*::prost::Oneof\)\]\n    pub enum (\w+) \{\n(.*?)^    \}", re.DOTALL
)
VARIANT = re.compile(r'#\[prost\((\w+), tag = "(\d+)"\)\]\s+(\w+)\(')
FIELD = re.compile(r'#\[prost\((\w+)[^\]]*?tag = "(\d+)"[^\]]*\)\]\s+pub (?:r#)?(\w+):', re.DOTALL)


def test_rust_code_has_the_same_fields():
    text = (ROOT / "core/src/wire/pb.rs").read_text()
    rust = {}
    for match in STRUCT.finditer(text):
        name, body = match[1] or match[3], match[2] or ""
        rust[name] = {(field[3], int(field[2]), field[1]) for field in FIELD.finditer(body)}
    for module in (common_pb2, mgmtd_pb2, meta_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            wanted = {
                (field.name, field.number, _kind(field)) for field in message.fields if not _is_variant(field)
            }
            assert rust.get(message.name) == wanted, f"{message.name} in pb.rs is stale: run `make proto`"


def test_rust_code_has_the_same_choices():
    text = (ROOT / "core/src/wire/pb.rs").read_text()
    rust = {
        match[1]: {(field[3], int(field[2]), field[1]) for field in VARIANT.finditer(match[2])}
        for match in ONEOF.finditer(text)
    }
    wanted: dict[str, set] = {}
    for module in (common_pb2, mgmtd_pb2, meta_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            for field in filter(_is_variant, message.fields):
                choice = field.containing_oneof.name.title().replace("_", "")
                name = field.name.title().replace("_", "")
                wanted.setdefault(choice, set()).add((name, field.number, _kind(field)))
    assert rust == wanted, "pb.rs is stale: run `make proto`"


def _is_variant(field: FieldDescriptor) -> bool:
    """Return whether the field is one of a choice; `optional` is written as a choice of one too."""
    oneof = field.containing_oneof
    return oneof is not None and oneof.name != f"_{field.name}"


def _kind(field: FieldDescriptor) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return "btree_map"
    return KINDS[field.type]


VERB = re.compile(r"pub const (\w+): Verb<pb::(\w+), pb::(\w+)> =\s+Verb::new\(Method::(\w+), (\w+)\)")


def test_rust_code_has_the_same_methods_of_the_metadata_service():
    wanted = {
        method.name: (
            method.input_type.name,
            method.output_type.name,
            method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS,
        )
        for method in meta_pb2.DESCRIPTOR.services_by_name["Meta"].methods
        if "caller" in method.input_type.fields_by_name
    }
    assert len(wanted) == 25, "what clients call"
    rust = VERB.findall((ROOT / "core/src/wire/verbs.rs").read_text())
    assert {
        number.removeprefix("Meta"): (request, reply, side_effects == "true")
        for _, request, reply, number, side_effects in rust
    } == wanted, "verbs.rs is stale: run `make proto`"
    for constant, _, _, number, _ in rust:
        assert "META" + constant.replace("_", "") == number.upper()


def test_rust_code_has_the_same_numbers_of_enumerations():
    text = (ROOT / "core/src/wire/pb.rs").read_text()
    bodies = {match[1]: match[2] for match in re.finditer(r"pub enum (\w+) \{(.*?)\n *\}", text, re.DOTALL)}
    for module in (common_pb2, mgmtd_pb2, meta_pb2):
        enums = dict(module.DESCRIPTOR.enum_types_by_name)
        for message in module.DESCRIPTOR.message_types_by_name.values():
            enums |= message.enum_types_by_name
        for name, enum in enums.items():
            rust = {int(number) for number in re.findall(r"= (\d+),", bodies[name])}
            assert rust == {value.number for value in enum.values}, (
                f"{name} in pb.rs is stale: run `make proto`"
            )
