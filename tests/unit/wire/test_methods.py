import pytest

from luciola.wire import methods
from luciola.wire.credentials import ADMIN, CLIENT, SERVICE
from luciola.wire.pb import common_pb2, meta_pb2, mgmtd_pb2, replicas_pb2, storage_pb2

SERVICES = {
    "Mgmtd": (methods.Mgmtd, mgmtd_pb2),
    "Meta": (methods.Meta, meta_pb2),
    "Replicas": (methods.Replicas, replicas_pb2),
    "Storage": (methods.Storage, storage_pb2),
}


@pytest.mark.parametrize("name", SERVICES)
def test_table_equals_the_protocol_definition(name):
    service, module = SERVICES[name]
    table = {entry.name: entry for entry in methods.methods_of(service)}
    defined = module.DESCRIPTOR.services_by_name[name].methods_by_name
    assert set(table) == set(defined.keys())
    for entry in table.values():
        method = defined[entry.name]
        assert entry.request.DESCRIPTOR is method.input_type, entry.name
        assert entry.reply.DESCRIPTOR is method.output_type, entry.name
        assert entry.streams == method.server_streaming, entry.name
        assert not method.client_streaming, entry.name
        assert entry.path == f"/luciola.{name}/{entry.name}"
        assert getattr(service, entry.attribute) is entry


def test_every_lane_number_has_its_method():
    numbers = {
        entry.lane: f"{entry.service}_{entry.attribute}".upper() for entry in methods.ALL if entry.lane
    }
    defined = {number: name for name, number in common_pb2.Method.items() if number}
    assert numbers == defined


def test_clients_may_use_files_but_not_manage_the_cluster():
    may = {entry.path for entry in methods.ALL if entry.role == CLIENT}
    assert methods.Meta.create.path in may
    assert methods.Mgmtd.get_routing.path in may
    for entry in methods.ALL:
        if entry.service == "Replicas":
            assert entry.role in (SERVICE, ADMIN), entry.path
        if entry.service == "Storage" or entry.name.startswith(("Scan", "Set", "Unregister", "Heartbeat")):
            assert entry.role in (ADMIN, SERVICE) or entry.name in ("SetAttr", "SetXattr"), entry.path


def test_binding_a_service_that_lacks_a_method_is_a_programmer_error():
    with pytest.raises(AssertionError, match=r"does not serve /luciola\.Meta/Lookup"):
        methods.bind(methods.Meta, object())
