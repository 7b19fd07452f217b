"""What records written by earlier versions leave unsaid, and how it is known all the same."""

from __future__ import annotations

from functools import cache

from bench.records.record import Record


def stages_of(record: Record) -> tuple[str, ...]:
    """Return the plan stages that the method of a run writes, in the order in which they are applied.

    A record without them names its method, and the class of a built-in method knows its stages. Nothing is known, so the
    result is empty, of recipes and methods of other distributions in such records; the base has no stages.
    """
    return record.stages if record.stages is not None else _of_built_in(record.method)


@cache
def _of_built_in(name: str | None) -> tuple[str, ...]:
    from methods.framework.layer_plan import STAGES
    from methods.registry import BUILT_IN, method_class

    if name not in BUILT_IN:
        return ()
    written = method_class(str(name)).stages
    return tuple(stage for stage in STAGES if stage in written)
