"""Which position reads which: the plan by which a stack of dilated convolutions runs over packed sequences.

Legend: N packed positions, B rows (users), k taps of a convolution.

Sequences lie end to end without padding. Position t of a row reads its taps t, t − d, t − 2d … where they lie in the row, else zero.
With `positions="last"` a stage computes only what the last position of a row can see through the stages above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

Positions = Literal["all", "last"]


@dataclass(frozen=True)
class Taps:
    """One convolution's reads.

    Attributes:
        forward: int64 [N_out, k], row of the stage's input that tap j reads; N_in stands for zero. Tap k − 1 is the present position.
        backward: int64 [N_in, k], row of the stage's output that reads this input by tap j; N_out stands for none.
        rows: int64 [N_out], row (user) of each output position.
    """

    forward: Tensor
    backward: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Reads:
    """What every convolution and every block reads, row by row.

    Attributes:
        taps: Two a block: dilation d, then 2d.
        residual: For each block int64 [N_out], the block's input position behind each output; None where they are the same.
    """

    taps: tuple[Taps, ...]
    residual: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Layout:
    """A batch's plan for one stack of residual blocks, two convolutions a block.

    Attributes:
        positions: `all`: the stack's output is [N, C] in packed order; `last`: [B, C], one a row (zero for an empty row).
        row_offsets: int64 [B + 1], where each row's positions start.
        stage_dilations: Two a block: d, then 2d.
        kernel_size: Taps k of a convolution.
        task_of_row: int64 [B], index into the mask table; None where all rows are of one task (`single_task`).
        single_task: The one task of the batch, or None.
        tasks: How many tasks a mask table needs at least: the largest index and one more.
        plans: What backends derive from the layout once and read again, by a key of their own.
    """

    positions: Positions
    row_offsets: Tensor
    stage_dilations: tuple[int, ...]
    kernel_size: int
    task_of_row: Tensor | None
    single_task: int | None
    tasks: int
    plans: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return self.row_offsets.shape[0] - 1

    @cached_property
    def lengths(self) -> Tensor:
        """int64 [B], the rows' lengths, on the CPU."""
        return self.row_offsets.cpu().diff()

    @cached_property
    def host_task_of_row(self) -> Tensor:
        """int32 or int64 [B], the rows' tasks, on the CPU."""
        if self.task_of_row is None:
            return torch.full((self.rows,), self.single_task or 0, dtype=torch.int32)
        return self.task_of_row.cpu()

    @cached_property
    def packed(self) -> int:
        """Number of packed positions N."""
        return int(self.lengths.sum())

    @cached_property
    def reads(self) -> Reads:
        """Each convolution's reads, made when a backend first asks: not every backend works by them."""
        make = _taps_of_all if self.positions == "all" else _taps_of_last
        return Reads(*make(self.row_offsets, self.lengths, self.stage_dilations, self.kernel_size))

    @property
    def taps(self) -> tuple[Taps, ...]:
        """Each convolution's reads."""
        return self.reads.taps

    @property
    def residual(self) -> tuple[Tensor | None, ...]:
        """Each block's input positions behind its outputs."""
        return self.reads.residual

    @cached_property
    def output_row(self) -> Tensor | None:
        """For `last`: int64 [N_out], the row that each output belongs to; None where every row has one."""
        if self.positions == "all" or bool(self.lengths.all()):
            return None
        return self.lengths.nonzero().view(-1).to(self.row_offsets.device, non_blocking=True)


def build_layout(
    row_offsets: Tensor,
    task_of_row: Tensor,
    *,
    dilations: Sequence[int],
    kernel_size: int = 3,
    positions: Positions = "all",
    host_row_offsets: Tensor | None = None,
    host_task_of_row: Tensor | None = None,
) -> Layout:
    """Plan a stack over a packed batch.

    Sizes and checks need values on the host. Where the tensors are on a GPU, copying them back waits for it, once a call; with the
    `host_` tensors nothing is copied back and nothing waits.

    Args:
        row_offsets: int64 [B + 1], where each row's positions start; not decreasing.
        task_of_row: int32 or int64 [B], row of the mask table that a row uses.
        dilations: The dilation d of each block; its convolutions have d and 2d.
        kernel_size: Taps k of a convolution.
        positions: Which positions of the output are computed.
        host_row_offsets, host_task_of_row: The same values on the CPU; both or neither.

    Raises:
        ValueError: a dilation or the kernel size is not positive, there is no block, the shapes do not fit, offsets fall, a task is
            negative; one `host_` tensor without the other, or not on the CPU.
    """
    if kernel_size < 1 or not dilations or any(d < 1 for d in dilations):
        raise ValueError(f"expected a block or more, kernel size and dilations of at least 1, got {kernel_size} and {list(dilations)}")
    if row_offsets.ndim != 1 or task_of_row.shape[0] != row_offsets.shape[0] - 1:
        raise ValueError(f"row_offsets {tuple(row_offsets.shape)} needs one entry more than task_of_row {tuple(task_of_row.shape)}")
    on_host = _on_host(row_offsets, task_of_row, host_row_offsets, host_task_of_row)
    lengths, low, high = _check_values(*on_host)
    stage_dilations = tuple(step * d for d in dilations for step in (1, 2))
    several = task_of_row.long() if low != high else None
    layout = Layout(positions, row_offsets, stage_dilations, kernel_size, several, low if low == high else None, high + 1)
    # on the host already: copying them from a GPU would wait for it
    vars(layout).update(lengths=lengths, host_task_of_row=on_host[1])
    return layout


def _on_host(
    row_offsets: Tensor, task_of_row: Tensor, host_row_offsets: Tensor | None, host_task_of_row: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return offsets and tasks on the CPU: as given, or copied back, which waits for the device once."""
    if host_row_offsets is None and host_task_of_row is None:
        joined = torch.cat([row_offsets, task_of_row.to(row_offsets.dtype)]).cpu()
        return joined[: row_offsets.shape[0]], joined[row_offsets.shape[0] :]
    if host_row_offsets is None or host_task_of_row is None:
        raise ValueError("expected host_row_offsets and host_task_of_row together, got one of them")
    for name, host, tensor in (("row_offsets", host_row_offsets, row_offsets), ("task_of_row", host_task_of_row, task_of_row)):
        if host.device.type != "cpu" or host.shape != tensor.shape:
            raise ValueError(
                f"host_{name}: expected the values of {name}, {tuple(tensor.shape)}, on the CPU, got {tuple(host.shape)} on {host.device}"
            )
    return host_row_offsets, host_task_of_row


def _check_values(row_offsets: Tensor, task_of_row: Tensor) -> tuple[Tensor, int, int]:
    """Return the rows' lengths, the smallest and the largest task, all of tensors on the CPU."""
    lengths, tasks = row_offsets.diff(), task_of_row
    if not tasks.numel():
        tasks, lengths = tasks.new_zeros(1), lengths.new_zeros(1)
    first, least, low, high = int(row_offsets[0]), int(lengths.min()), int(tasks.min()), int(tasks.max())
    if first != 0 or least < 0:
        raise ValueError(f"row_offsets: expected 0 and then values that never fall, got a start at {first} and a shortest row of {least}")
    if low < 0:
        raise ValueError(f"task_of_row: expected indices of 0 and more, got {low}")
    return lengths[: task_of_row.shape[0]], low, high


def _invert(forward: Tensor, inputs: int) -> Tensor:
    """Turn `output reads input` round: for each tap an input is read by one output at most."""
    outputs, taps = forward.shape
    backward = forward.new_full((inputs + 1, taps), outputs)
    backward.scatter_(0, forward, torch.arange(outputs, device=forward.device)[:, None].expand(outputs, taps))
    return backward[:inputs].contiguous()


def _taps_of_all(
    row_offsets: Tensor, lengths: Tensor, stage_dilations: Sequence[int], kernel_size: int
) -> tuple[tuple[Taps, ...], tuple[Tensor | None, ...]]:
    total = int(lengths.sum())
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=row_offsets.device), row_offsets.diff(), output_size=total)
    packed = torch.arange(total, device=row_offsets.device)
    within = packed - row_offsets[:-1][rows]
    back = torch.arange(kernel_size - 1, -1, -1, device=row_offsets.device)
    made: dict[int, Taps] = {}
    for dilation in set(stage_dilations):
        reach = back * dilation
        forward = torch.where(within[:, None] >= reach, packed[:, None] - reach, total)
        made[dilation] = Taps(forward, _invert(forward, total), rows)
    return tuple(made[dilation] for dilation in stage_dilations), (None,) * (len(stage_dilations) // 2)


def seen_offsets(stage_dilations: Sequence[int], kernel_size: int, longest: int) -> list[Tensor]:
    """For each stage, and ahead of them the input, the distances from the last position that the result depends on, ascending."""
    wanted = [torch.zeros(1, dtype=torch.int64)]
    for dilation in reversed(stage_dilations):
        reach = torch.arange(kernel_size) * dilation
        seen = torch.unique(wanted[0][:, None] + reach)
        wanted.insert(0, seen[seen < longest])
    return wanted


def _taps_of_last(
    row_offsets: Tensor, lengths: Tensor, stage_dilations: Sequence[int], kernel_size: int
) -> tuple[tuple[Taps, ...], tuple[Tensor | None, ...]]:
    device, count = row_offsets.device, len(lengths)
    offsets = seen_offsets(stage_dilations, kernel_size, max(1, int(lengths.max())) if count else 1)
    # Offsets contain those of the stage above, so as many of them are the same ones: most stages of a deep stack see whole rows and share
    # their index tables. The input is apart, since it is packed in another order than what stages compute.
    ids = [-1, *(len(seen) for seen in offsets[1:])]
    distinct = {len(seen): seen for seen in offsets[1:]}
    made_of = {key: _Computed.of(seen, lengths, device) for key, seen in distinct.items()}
    total, first = int(lengths.sum()), offsets[0].to(device, non_blocking=True)
    table = torch.where(first < row_offsets.diff()[:, None], row_offsets[1:, None] - 1 - first, total)
    read_of: dict[int, _Positions] = {-1: _Positions(first, table, total), **made_of}
    back = torch.arange(kernel_size - 1, -1, -1, device=device)
    taps: dict[tuple[int, int, int], Taps] = {}
    kept: dict[tuple[int, int], Tensor] = {}
    stages = [(dilation, ids[stage], ids[stage + 1]) for stage, dilation in enumerate(stage_dilations)]
    blocks = list(zip(ids[:-2:2], ids[2::2], strict=True))
    for key in stages:
        if key not in taps:
            read, made = read_of[key[1]], made_of[key[2]]
            reached = (made.offsets[:, None] + back * key[0]).contiguous()
            columns = torch.searchsorted(read.offsets, reached)  # past the end: beyond every row
            padded = torch.cat([read.table, read.table.new_full((count, 1), read.size)], dim=1)
            forward = padded[made.rows[:, None], columns[made.place]]
            taps[key] = Taps(forward, _invert(forward, read.size), made.rows)
    for block in blocks:
        if block not in kept:
            read, made = read_of[block[0]], made_of[block[1]]
            kept[block] = read.table[made.rows, torch.searchsorted(read.offsets, made.offsets)[made.place]]
    return tuple(taps[key] for key in stages), tuple(kept[block] for block in blocks)


@dataclass(frozen=True)
class _Positions:
    """Positions that a stage reads, by their distance from the last of their row.

    Attributes:
        offsets: The distances.
        table: int64 [B, offsets], which position a row and a distance are; `size` where the row has none.
        size: How many positions.
    """

    offsets: Tensor
    table: Tensor
    size: int


@dataclass(frozen=True)
class _Computed(_Positions):
    """Positions that a stage computes, row by row.

    Attributes:
        rows, place: int64 [N_out], each position's row and where its distance stands in `offsets`.
    """

    rows: Tensor
    place: Tensor

    @classmethod
    def of(cls, offsets: Tensor, lengths: Tensor, device: torch.device) -> _Computed:
        """Return what is computed of these distances, of rows of these lengths; both are on the CPU, so no size is asked of a GPU."""
        counts = torch.searchsorted(offsets, lengths)
        size, count = int(counts.sum()), len(lengths)
        offsets, made = offsets.to(device, non_blocking=True), counts.to(device, non_blocking=True)
        starts = made.cumsum(0) - made
        rows = torch.repeat_interleave(torch.arange(count, device=device), made, output_size=size)
        ahead = torch.arange(len(offsets), device=device)
        table = torch.where(ahead < made[:, None], starts[:, None] + ahead, size)
        return cls(offsets, table, size, rows, torch.arange(size, device=device) - starts[rows])
