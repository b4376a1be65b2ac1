"""Waiting for descriptors, those above 1023 among them."""

from __future__ import annotations

import fcntl
import os
import resource

from layerfs.host.polling import readable


def test_a_descriptor_of_any_number_is_waited_for() -> None:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, 2048), most))
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, 1500)
    try:
        assert readable([high], 0) == []
        os.write(writer, b"x")
        assert readable([reader, high], 10) == [reader, high]
        os.read(reader, 1)
        os.close(writer)
        assert readable([high]) == [high]  # its end
    finally:
        os.close(reader)
        os.close(high)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
