"""The generated code is that of the .proto files (``make protos``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lamina.containerd.wire import pulling_pb2, snapshots_pb2

FOLDER = Path(snapshots_pb2.__file__).parent
MESSAGE = re.compile(r"^message (\w+) \{(.*?)\}", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"(repeated |)(map<string, string>|[\w.]+) (\w+) = (\d+);")


@pytest.mark.parametrize("module", [snapshots_pb2, pulling_pb2])
def test_numbers_are_those_that_are_written(module: Any) -> None:
    text = (FOLDER / module.DESCRIPTOR.name).read_text()
    written = {
        name: {(field, int(number)) for _, _, field, number in FIELD.findall(body)}
        for name, body in MESSAGE.findall(text)
    }
    generated = {
        name: {(field.name, field.number) for field in message.fields}
        for name, message in module.DESCRIPTOR.message_types_by_name.items()
    }
    assert generated == written
    assert len(generated) > 8
