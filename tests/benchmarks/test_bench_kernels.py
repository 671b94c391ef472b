"""The kernels' benchmark runs and writes the rows it promises; its times are not asserted."""

from __future__ import annotations

import pytest
import torch

from dist_teracon.bench import kernels
from dist_teracon.errors import ConfigError
from dist_teracon.kernels.masked_dilated_conv_stack import StackParameters, build_layout, masked_dilated_conv_stack


def test_table_has_a_row_for_every_case_mode_type_and_path(tmp_path, capsys):
    kernels.main(["--tiny", "--repeats", "1", "--threads", "1", "--save", str(tmp_path / "table.md")])
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    rows = [tuple(cell.strip() for cell in line.split("|")[1:6]) for line in text.splitlines() if line.startswith("| ")][1:]
    expected = [
        (case.label, "8", positions, dtype, path)
        for case in kernels.TINY
        for positions in ("last", "all")
        for dtype in ("fp32", "bf16")
        for path in ("eager", "gathered", "default")
    ]
    assert rows == expected
    assert "torch" in text.splitlines()[0]


def test_what_is_compared_computes_the_same():
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((16, 4, 4, 3), (16, 4), (16, 4), (16, 4), (16, 4))]
    parameters, masks = StackParameters(*draw[:4]), draw[4]
    x = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    layout = build_layout(torch.tensor([0, 7, 14]), torch.zeros(2, dtype=torch.int32), dilations=kernels.DILATIONS)
    packed = masked_dilated_conv_stack(x.flatten(0, 1), layout, parameters, masks[None])
    torch.testing.assert_close(kernels.eager(x, parameters, masks).flatten(0, 1), packed, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_cuda_without_a_device_is_one_clear_error():
    with pytest.raises(ConfigError, match="no CUDA device"):
        kernels.main(["--device", "cuda"])
