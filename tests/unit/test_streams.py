"""Commands whose standard streams are closed, full or gone: they end quietly, or with one message."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMAND = f"{sys.executable} -m dist_teracon"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("line", ["--help | true", "--help >&-", "--help <&- >&- 2>&-"])
def test_a_reader_that_is_gone_is_no_error(line: str) -> None:
    done = shell(f"{COMMAND} {line}")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_standard_output_is_no_full_disk() -> None:
    code = "from dist_teracon import cli; cli._doctor = lambda _: print(1); raise SystemExit(cli.main(['doctor']))"
    done = shell(f'{sys.executable} -c "{code}" > /dev/full')
    assert (done.returncode, done.stderr) == (
        2,
        "dist-teracon: error: standard output cannot be written (No space left on device); what was finished is kept\n",
    )


def test_a_job_goes_on_without_its_terminal() -> None:
    job = "from dist_teracon.console import *; c = Console(); c.log('a'); complain('b'); print(list(c.track(iter('ab'), 2, 'x')))"
    done = shell(f'{sys.executable} -c "{job}" 2> /dev/full')
    assert (done.returncode, done.stdout) == (0, "['a', 'b']\n")
