"""What `serve` refuses before it starts anything."""

from __future__ import annotations

import socket

import pytest

from dist_teracon.cli import main
from dist_teracon.errors import ConfigError
from dist_teracon.launch.serve import read_token

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "16 characters"),
        (b"short", "16 characters"),
        (b"two words of sixteen", "without blanks"),
        (b"\xc3\xa4" * 20, "ASCII"),
    ],
)
def test_tokens_that_are_none(tmp_path, content, message):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as told:
        read_token(path)
    assert not content or content.decode() not in str(told.value)


def test_a_token_without_its_line_end(tmp_path):
    (tmp_path / "token").write_text("0123456789abcdef\n")
    assert read_token(tmp_path / "token") == "0123456789abcdef"


def test_a_port_in_use_and_a_host_of_another_machine(tmp_path, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", str(tmp_path), "--port", str(port)]) == 2
        assert f"--port {port}: is in use on 127.0.0.1; stop what listens there" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--host", "192.0.2.7", "--port", str(port)]) == 2
    assert "--host 192.0.2.7" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--port", "70000"]) == 2
    assert "expected 1 to 65535" in capsys.readouterr().err


def test_runs_that_cannot_be_served(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "none"), "--port", "18973"]) == 2
    assert "no such run" in capsys.readouterr().err
    assert main(["serve", "a=runs/a", "a=runs/b"]) == 2
    assert "a is there twice" in capsys.readouterr().err
