"""Transfer between tasks: deltas of several tasks, weighted and merged as the start of another.

    python -m train.transfer score   task=c merge.method=loss merge.sources=[runs/a/checkpoint,...]
    python -m train.transfer plan    merge.sources=[runs/a/checkpoint,runs/b/checkpoint] merge.target=c
    python -m train.transfer merge   merge.plan=<folder>/merge_plan.json      or what makes a plan, as above
    python -m train.transfer inspect merge.plan=<folder>/merge_plan.json

Each is a Hydra app over the configuration of train.py, with the section `merge` beside the others
(conf/transfer.yaml); results lie in Hydra's output folder. docs/transfer.md is the tutorial.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from train.chain import CheckpointError
from train.config.merging import MergeSettings
from train.config.schema import CONF, VERSION_BASE, register
from train.config.typed import SettingsError, build

log = logging.getLogger(__name__)


def settings_of(cfg: DictConfig) -> MergeSettings:
    """The section `merge`. Raises SettingsErrors."""
    values: Any = OmegaConf.to_container(cfg.merge, resolve=True)
    return build(MergeSettings, values, "merge")


def plan_of(settings: MergeSettings) -> tuple[Any, Any]:
    """The plan in merge.plan, or the one the settings describe; and its sources, read."""
    from train.merge.plan import make_plan, read_plan, reread_sources

    if settings.plan is not None:
        plan = read_plan(settings.plan)
        return plan, reread_sources(plan)
    scores = None
    if settings.scores is not None:
        from train.score.matrix import read_scores

        scores = read_scores(settings.scores, settings.target, settings.method)
    return make_plan(settings, scores)


def score(cfg: DictConfig, folder: Path) -> None:
    """Score all sources for every chosen task: result.tsv and result.json; with a temperature, weights."""
    from hydra.core.hydra_config import HydraConfig

    from train.check import checked_values
    from train.config.reading import read_run
    from train.config.settle import as_written
    from train.data.task_plan import plan_run
    from train.score.run import score_tasks

    written = as_written(cfg)
    # Several tasks need a limit to be trained together; nothing is trained here.
    written["trainer"] = {**(written.get("trainer") or {}), "max_steps": 1}
    values = checked_values(written, HydraConfig.get())
    run = read_run(written, values)
    print(score_tasks(run, plan_run(run), settings_of(cfg), folder))


def plan(cfg: DictConfig, folder: Path) -> None:
    """Write merge_plan.json."""
    from train.merge.plan import PLAN, write_whole

    made, _ = plan_of(settings_of(cfg))
    write_whole(folder / PLAN, made.text())
    print(described(made))
    print(f"\n{folder / PLAN}")


def merge(cfg: DictConfig, folder: Path) -> None:
    """Apply a plan: a folder with the merged delta."""
    from train.merge.apply import merge as applied
    from train.merge.apply import write_merged

    settings = settings_of(cfg)
    made, sources = plan_of(settings)
    out = Path(settings.out) if settings.out else folder / "merged"
    done = write_merged(applied(made, sources), made, out)
    print(described(done))
    print(f"\n{out}")


def inspect(cfg: DictConfig, folder: Path) -> None:
    """Print a plan, and check that its sources are still what they were."""
    made, _ = plan_of(settings_of(cfg))
    print(described(made))
    print("\nits sources are what they were when it was made")


def described(made: Any) -> str:
    """A plan as a table."""
    weights = made.method
    if made.temperature is not None:
        weights += f" (T = {made.temperature:.4g}, {made.reduction})"
    left_out = f", without {', '.join(made.excluded)}" if made.excluded else ""
    told = ", ".join(f"{k}={v}" for k, v in made.parameters.items() if v is not None)
    lines = [
        f"target  {made.target or '-'}{left_out}",
        f"weights {weights}, effective sources {made.ess:.2f} of {len(made.sources)}",
        f"rule    {made.rule}{f' ({told})' if told else ''}",
        "",
        f"{'source':20} {'weight':>9} {'score':>12}  delta",
    ]
    scores: Mapping[str, float] = made.scores or {}
    for one in made.sources:
        score = f"{scores[one.name]:12.6g}" if one.name in scores else f"{'-':>12}"
        kind = one.kind if one.rank is None else f"{one.kind} r={one.rank} alpha={one.alpha:g}"
        where = "" if one.trial is None else f" trial {one.trial} of stage {one.stage}"
        lines.append(
            f"{one.name:20} {made.weights[one.name]:9.6f} {score}  {kind}{where} {one.path}"
        )
    for block, row in made.block_weights.items():
        lines.append(f"{block:20} {', '.join(f'{name} {w:.4f}' for name, w in row.items())}")
    if made.dev_losses:
        by_temperature = ", ".join(f"T = {t} {loss:.4f}" for t, loss in made.dev_losses.items())
        lines.append(f"dev loss of the merge  {by_temperature}")
    if made.result is not None:
        errors = made.result["errors"].values()
        worst = f", relative error up to {max(errors):.3g}" if errors else ""
        rank = f"rank {made.result['rank']}, " if made.result["rank"] else ""
        lines += ["", f"result  {rank}sha256 {made.result['sha256'][:12]}{worst}"]
    return "\n".join(lines)


MODES: Mapping[str, Callable[[DictConfig, Path], None]] = {
    mode.__name__: mode for mode in (score, plan, merge, inspect)
}


def main() -> None:
    """Run the mode of the command line as a Hydra app; a mistake is one message."""
    words = sys.argv[1:]
    if not words or words[0] not in MODES:
        print(__doc__)
        sys.exit(0 if words and words[0] in ("-h", "--help") else 2)
    mode = words[0]
    sys.argv[1:] = words[1:]
    register()

    @hydra.main(**VERSION_BASE, config_path=str(CONF), config_name="transfer")
    def app(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        try:
            MODES[mode](cfg, Path(HydraConfig.get().runtime.output_dir))
        except (SettingsError, CheckpointError, ValueError) as error:
            log.error("%s", error)
            sys.exit(1)

    app()


if __name__ == "__main__":
    main()
