"""What the Triton kernels compile to, without a GPU: registers, spills, shared memory, tensor-core instructions.

`python -m dist_teracon.kernels.compile_table docs/kernels.md` writes the table between the file's markers.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- compiled: begin -->", "<!-- compiled: end -->"


@dataclass(frozen=True)
class Variant:
    """A kernel with everything that decides its machine code.

    Attributes:
        label: Which kernel, in words.
        device: `sm_80`, `sm_90`, `gfx942` …
        shape: Number type and channels, in words.
        function: The Triton function.
        arguments: Run-time arguments in Triton's notation, as `*bf16`.
        constants: Compile-time arguments.
        aligned: Arguments that are multiples of 16.
        warps, stages: Of a program, of its pipeline.
        tile: In words.
    """

    label: str
    device: str
    shape: str
    function: Any
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...]
    warps: int
    stages: int
    tile: str

    def __str__(self) -> str:
        return f"{self.label}, {self.shape} on {self.device} ({self.tile})"


@dataclass(frozen=True)
class Compiled:
    """What came out.

    Attributes:
        registers: A thread's.
        spills: Bytes of registers that a thread keeps in memory (on AMD: registers so kept).
        shared: Bytes of shared memory a program.
        tensor_cores: Whether wgmma (sm_90), mma (other NVIDIA GPUs) or mfma (AMD) is used.
    """

    registers: int
    spills: int
    shared: int
    tensor_cores: bool


def compile_variant(variant: Variant) -> Compiled:
    """Compile to machine code; Triton's interpreter must be off.

    Raises:
        RuntimeError: the interpreter is on.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not hasattr(variant.function, "arg_names") or triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: nothing can be compiled; unset it")
    nvidia = variant.device.startswith("sm_")
    target = GPUTarget("cuda", int(variant.device[3:]), 32) if nvidia else GPUTarget("hip", variant.device, 64)
    names = variant.function.arg_names
    signature = {name: variant.arguments.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    source = ASTSource(variant.function, signature, dict(variant.constants), attributes)
    kernel = triton.compile(source, target=target, options={"num_warps": variant.warps, "num_stages": variant.stages})
    if nvidia:
        registers, spills = _assemble(kernel.asm["ptx"], int(variant.device[3:]))
        instruction = "wgmma.mma_async" if variant.device == "sm_90" else "mma.sync"
        return Compiled(registers, spills, kernel.metadata.shared, instruction in kernel.asm["ptx"])
    text = kernel.asm["amdgcn"]
    return Compiled(_number(r"\.vgpr_count:\s+(\d+)", text), _number(r"\.vgpr_spill_count:\s+(\d+)", text), kernel.metadata.shared,
                    "v_mfma" in text)  # fmt: skip


def _assemble(ptx: str, capability: int) -> tuple[int, int]:
    """Return from ptxas the registers, and the larger of the spilled bytes stored and loaded."""
    from triton.backends.nvidia.compiler import get_ptxas

    ptxas = get_ptxas(capability).path
    name = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx, encoding="utf-8")
        done = subprocess.run(
            [ptxas, "-v", f"--gpu-name={name}", str(source), "-o", str(source.with_suffix(".cubin"))],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    stored, loaded = (_number(rf"(\d+) bytes spill {what}", done.stderr) for what in ("stores", "loads"))
    return _number(r"Used (\d+) registers", done.stderr), max(stored, loaded)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in the assembler's output"
    return int(found[1])


def table(variants: Iterable[Variant]) -> str:
    """Compile variants and return a Markdown table of the outcome."""
    import triton

    lines = [
        f"Triton {triton.__version__}, compiled without a GPU.", "",
        "| device | numbers | kernel, positions | tile | registers | spilled | shared memory | tensor cores |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for variant in variants:
        out = compile_variant(variant)
        print(f"{variant}: {out}", file=sys.stderr, flush=True)
        lines.append(
            f"| {variant.device} | {variant.shape} | {variant.label} | {variant.tile} | {out.registers} | {out.spills} | "
            f"{out.shared:,} | {'yes' if out.tensor_cores else 'no'} |"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Write the table into a document, between its markers."""
    from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.variants import documented_variants

    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print(f"usage: python -m dist_teracon.kernels.compile_table DOCUMENT (a file with {BEGIN} and {END})", file=sys.stderr)
        return 2
    document = Path(arguments[0])
    if not re.search(f"{BEGIN}.*{END}", document.read_text(encoding="utf-8"), re.DOTALL):
        print(f"{document}: no {BEGIN} … {END} to write between", file=sys.stderr)
        return 2
    made = table(documented_variants())
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)  # it takes minutes: somebody may have written meanwhile
    document.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
