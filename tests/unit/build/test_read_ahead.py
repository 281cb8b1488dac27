from __future__ import annotations

import threading

import pytest

from lamina.build.read_ahead import layer_tars
from lamina.errors import FetchError
from lamina.oci.manifest import OCI_LAYER_GZIP, Descriptor


class Silent:
    """A repository that says nothing until it is told to."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answer = threading.Event()

    def open_blob(self, _descriptor: Descriptor) -> None:
        self.asked.set()
        self.answer.wait()
        raise FetchError("it was closed")


def test_an_interrupt_does_not_wait_for_a_source_that_is_silent() -> None:
    source = Silent()
    layer = Descriptor(media_type=OCI_LAYER_GZIP, digest="sha256:" + "1" * 64, size=10)

    def convert() -> None:
        with layer_tars(source, [layer], (), 100, 1, lambda _: None):  # type: ignore[arg-type]
            assert source.asked.wait(60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert()
    assert not source.answer.is_set(), "it is silent still"
    source.answer.set()
    for thread in threading.enumerate():
        if thread.name.startswith("lamina-read"):
            thread.join()
