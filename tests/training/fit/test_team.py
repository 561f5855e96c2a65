"""Where the processes of a team meet."""

from __future__ import annotations

import os

import pytest

from training.fit.team import use_interface_of


def test_gloo_is_told_the_interface_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # restored at the end, whatever is done here
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_interface_of("203.0.113.1")  # nobody's here
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    use_interface_of("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    use_interface_of("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
