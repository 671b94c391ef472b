"""Cases for the fused kernels, and a process in which Triton's interpreter runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"
sys.path.insert(0, str(HELPERS))


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., dict[str, Any]]]:
    """Give tests a function that runs a `stack_cases.Case` (its fields as arguments) in Triton's interpreter."""
    from stack_cases import Case, as_line

    process = subprocess.Popen(
        [sys.executable, str(HELPERS / "stack_cases.py")], env={**os.environ, "TRITON_INTERPRET": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None

    def run(*arguments: Any, **fields: Any) -> dict[str, Any]:
        process.stdin.write(as_line(Case(*arguments, **fields)))
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert "failed" not in answer, answer["failed"]
        return answer

    yield run
    process.stdin.close()
    process.wait(timeout=60)
