"""``moebench calibrate``: measure statistics in one pass and keep them."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.commands.library_log import library_log
from bench.commands.options import (
    CORPUS_OPTIONS,
    DEFAULT_STORE,
    TALK_OPTIONS,
    Model,
    RevisionOption,
    StoreOption,
    TrustOption,
)
from bench.commands.printing import bar, console, print_ending
from bench.commands.setting_options import SEVERAL, Given, Part, listed, with_settings
from bench.settings.stage_settings import CalibrationConfig
from methods.framework.errors import ConfigError


@with_settings(Part(CalibrationConfig, (*CORPUS_OPTIONS, *TALK_OPTIONS), panel="Calibration"))
def calibrate(
    given: Given,
    model: Model,
    needs: Annotated[
        list[str], typer.Option(help=f"statistics; 'all' for the whole catalogue; {SEVERAL}", show_default="all")
    ] = [],  # noqa: B006  # typer reads it
    revision: RevisionOption = None,
    store: StoreOption = DEFAULT_STORE,
    trust_remote_code: TrustOption = False,
) -> None:
    """Measure what ``needs`` names into the cache of the store, and print what that was."""
    from bench.library import measuring
    from bench.library.opening import open_checkpoint

    corpus = given.pop("corpus", CalibrationConfig().corpus)
    wanted = listed(needs) or ["all"]
    if len(wanted) > 1 and "all" in wanted:
        raise ConfigError(
            f"--needs {','.join(wanted)}: all is the whole catalogue; name it alone, or statistics without it"
        )
    names = None if wanted == ["all"] else wanted
    with library_log(store, console()) as noise, bar("calibrate") as progress:
        opened = open_checkpoint(model, revision, trust_remote_code)
        stats = measuring.calibrate(opened, corpus, names, store=store, progress=progress, **given)
    told = f"{', '.join(sorted(stats.values))}: measured on {stats.tokens:,} tokens of {corpus}"
    console().print(told, soft_wrap=True, highlight=False)
    print_ending(
        console(),
        {"statistics": store / "cache" / "stats", **noise.place()},
        [
            (f"moebench plan {model} METHOD", "decides from them; give the same corpus options"),
            ("moebench methods", "the methods, and what each is"),
        ],
    )
