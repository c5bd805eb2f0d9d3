"""raybench: distributed batch evaluation of image classifiers' robustness.

::

    import raybench

    run = raybench.score(models=["zoo:cnn3", "zoo:cnn3-adv"], data="digits", n=200)
    for row in run.tables[0].rows:
        print(row.rank, row.model.name, row.score, row.ci_low, row.ci_high)

Importing this costs nothing: torch, Ray and MLflow are imported by what uses them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raybench.config import RunConfig
    from raybench.driver import ScoreRun

__all__ = ["attack", "score"]
__version__ = "0.1.0"


def score(*, quiet: bool = False, **options: Any) -> "ScoreRun":
    """Score models on images and return the ranked tables.

    Args:
        quiet: show no progress on stderr.
        **options: the fields of `raybench.config.ScoreConfig`, the same as on the command line:
            models, data, n, samples, reading, seed, out, tracking_uri, actors, and so on.

    Returns:
        The run: tables (best first), failures, files written.

    Raises:
        InputError: something in `options` is wrong, found before any model is asked.
        Interrupted: Ctrl-C or SIGTERM; the same call again goes on.
    """
    from raybench.config import ScoreConfig, make_config

    return _run(make_config(ScoreConfig, options), quiet)


def attack(*, quiet: bool = False, **options: Any) -> "ScoreRun":
    """Attack models on labelled images and return the tables of robust accuracy.

    Args:
        quiet: show no progress on stderr.
        **options: the fields of `raybench.config.AttackConfig`: models, data, attack or suite, eps,
            norm, targeted, steps, n, seed, out, and so on.

    Raises:
        InputError: something in `options` is wrong, found before any model is asked.
        Interrupted: Ctrl-C or SIGTERM; the same call again goes on.
    """
    from raybench.config import AttackConfig, make_config

    return _run(make_config(AttackConfig, options), quiet)


def _run(config: "RunConfig", quiet: bool) -> "ScoreRun":
    from raybench.display import make_display
    from raybench.driver import execute
    from raybench.job import build_job
    from raybench.signals import StopFlag

    display = make_display(quiet=quiet)
    job = build_job(config, display.note)
    for note in job.notes:
        display.note(note)
    return execute(job, config, display, StopFlag())
