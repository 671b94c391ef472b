"""The compile gate: every entry of the tile table becomes machine code, without a GPU, within registers and shared memory."""

from __future__ import annotations

import pytest

from dist_teracon.kernels.compile_table import BEGIN, END, Compiled, compile_variant, main
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton import variants
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.tile_table import SHARED_MEMORY

# largest on every device, smallest, not a power of two; the rest of the table is `slow`
SMALL = [
    ("forward", "sm_90", 16, 256, False),
    ("backward opening", "sm_90", 16, 256, True),
    ("weights", "sm_90", 16, 256, False),
    ("forward", "sm_80", 16, 256, True),
    ("backward inner", "sm_80", 16, 96, False),
    ("weights", "sm_80", 32, 96, True),
    ("backward inner", "gfx942", 16, 256, False),
    ("forward", "sm_90", 32, 256, False),
]


def check(variant, *, bits: int, channels: int) -> Compiled:
    compiled = compile_variant(variant)
    assert compiled.shared <= SHARED_MEMORY[variant.device], f"{variant}: {compiled}"
    if variant.device in ("sm_80", "sm_90") and channels <= 256:
        allowed = 256 if variant.label.startswith("backward") else 0
        assert compiled.spills <= allowed, f"{variant}: {compiled}"
    if bits == 16 and channels >= 64 and "top" not in variant.label:
        assert compiled.tensor_cores, f"{variant}: no tensor-core instruction"
    return compiled


@pytest.mark.parametrize(("form", "device", "bits", "channels", "last"), SMALL)
def test_compiles_without_spills(form, device, bits, channels, last):
    check(variants.make_variant(form, device, bits=bits, channels=channels, last=last), bits=bits, channels=channels)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("channels", variants.CHANNELS)
@pytest.mark.parametrize("device", variants.DEVICES)
def test_whole_table_compiles_without_spills(device, channels, bits):
    for form in variants.FORMS:
        for last in (False, True):
            check(variants.make_variant(form, device, bits=bits, channels=channels, last=last), bits=bits, channels=channels)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", [2, 4, 5])
def test_other_kernel_sizes_compile_without_spills(kernel_size):
    for form in variants.FORMS:
        variant = variants.make_variant(form, "sm_90", bits=16, channels=256, last=False, kernel_size=kernel_size)
        check(variant, bits=16, channels=256)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["sm_80", "sm_90"])
def test_tf32_compiles_without_spills_on_tensor_cores(device):
    for form in ("forward", "backward opening", "weights"):
        compiled = check(variants.make_variant(form, device, bits=32, channels=256, last=False, precision="tf32"), bits=32, channels=256)
        assert device == "sm_90" or compiled.tensor_cores


def test_a_tile_too_large_is_seen():
    tile = variants.choose_tile("forward", "sm_90", bits=16, channels=256, gather=False)
    greedy = variants.Tile(**{**vars(tile), "rows": 256, "parts": 1})
    variant = variants.make_variant("forward", "sm_90", bits=16, channels=256, last=False, tile=greedy)
    with pytest.raises(AssertionError, match="spills"):
        check(variant, bits=16, channels=256)


def test_table_goes_between_the_markers_of_a_document(tmp_path, monkeypatch, capsys):
    document = tmp_path / "kernels.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    one = variants.make_variant("weights", "sm_90", bits=32, channels=16, last=False)
    monkeypatch.setattr(variants, "documented_variants", lambda: [one])
    assert main([str(document)]) == 0
    text = document.read_text()
    assert text.startswith(f"before\n{BEGIN}\nTriton ") and text.endswith(f"|\n{END}\nafter\n") and "old" not in text
    assert "| sm_90 | fp32, C=16 | weights, all |" in text
    document.write_text("no markers")
    assert main([str(document)]) == 2
    assert "to write between" in capsys.readouterr().err
