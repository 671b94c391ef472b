"""`dist-teracon export`: the vectors of all users, by parts, in bounded memory; a stopped export goes on with the same command.

    export.json                    written last: settings, run, stage, data version, widths, norms, checksums of all files
    users/part-00042.parquet       user, events, last_event, and for Parquet vector_<name> (and scale_<name> for int8)
    users/part-00042.<name>.npy    the vectors, with `--format npy`; `….<name>.scale.npy` for int8
    users/part-00042.safetensors   the vectors, with `--format safetensors`
    items.parquet, labels_<task>.parquet, alignment.safetensors

In names of files <name> and <task> are the task's name, or where that is not plain the short one that a data set's folders have, too.
"""

from __future__ import annotations

from typing import Any

from dist_teracon.console import Log, NoProgress, Progress, no_log
from dist_teracon.inference.align import align, check_old
from dist_teracon.inference.export_job import MANIFEST, ExportOptions, Job, settings_of
from dist_teracon.inference.export_on_cluster import write_parts
from dist_teracon.inference.model import SHARED, PretrainedModel
from dist_teracon.inference.out_folder import OutFolder
from dist_teracon.inference.sources import UserSource


def export(
    model: PretrainedModel, source: UserSource, out: str, options: ExportOptions, *,
    log: Log = no_log, progress: Progress | None = None, cluster: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Export the vectors of a source's users into a folder or URI; the same call again goes on, or finds it finished.

    Args:
        model: The model.
        source: The users.
        out: Where to.
        options: What and how.
        log, progress: What a person sees.
        cluster: Have the parts written by the workers of a Ray cluster, which see the run, the data set and `out` at the same places.

    Returns:
        The manifest.

    Raises:
        RunError: `out` holds the export of another run, data or options.
        ConfigError: an unknown task or option.
        DataError: vectors that are not finite, or an export to align to that does not fit.
    """
    options.check()
    kinds = {task: model.kind_of_vector(task, options.shared if task == SHARED else None) for task in options.tasks}
    for task in options.labels:
        model.task(task)
    if options.align_to is not None:
        check_old(model, options.align_to, next(iter(kinds.items())))
    folder = OutFolder(out, MANIFEST)
    if folder.claim(settings_of(model, source, options, kinds)):
        log(f"{out}: is there already; nothing to do")
        manifest: dict[str, Any] = folder.read_json(MANIFEST)
        return manifest
    for note in source.notes:
        log(note)
    alignment = align(model, source, folder, options.align_to, next(iter(kinds.items())), log=log) if options.align_to else None
    job = Job(model, source, folder, options, kinds, alignment)
    shown = progress or NoProgress()
    if cluster:
        write_parts(job, progress=shown)
        shown = NoProgress()
    parts = [job.part(number) for number in shown.track(iter(range(source.parts)), source.parts, "exporting")]
    extra = job.extra_files()
    manifest = job.manifest(parts, extra)
    folder.finish(manifest)
    return manifest
