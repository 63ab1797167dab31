"""OFASys's names for what this app calls otherwise: one table, and what it makes of a configuration.

A row says which key is accepted, and either which of our keys it is, or at which values it says what
happens anyway. Whatever else OFASys has is refused with the reason. docs/configuration.md prints
the table (`python -m train.config.ofasys`).
"""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass
from typing import Any

from train.config.sections import ModelSettings
from train.config.typed import Problem, SettingsErrors, nearest, option, read_value, shown

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One key of OFASys. `convert` gives None where a value asks for nothing."""

    key: str
    type: Any
    default: Any  # OFASys's
    to: tuple[str, ...] = ()
    convert: Callable[[Any], Any] = lambda value: value  # one value per key of `to`, if several
    ignored: bool = False  # whatever it says; without `to` and this, only the default is taken
    why: str = ""  # it is not, and what to do


def _betas(value: Any) -> tuple[float, float]:
    parsed = ast.literal_eval(value) if isinstance(value, str) else value
    first, second = (float(one) for one in parsed)
    return first, second


def _first(value: Any) -> float:
    return float(value[0] if isinstance(value, list) else value)


def _limit(value: int | None) -> int | None:
    return None if value is None or value < 0 else value


def _every(value: int) -> tuple[str, int] | None:
    return ("steps", value) if value > 0 else None


FRESH = (
    "a job starts from weights alone (init_from), with a fresh optimizer, schedule and data order"
)
EVERY = "every epoch, or give a number of updates in {}_interval_updates"
FLOATS = float | list[float]

# fmt: off
ROWS: tuple[Row, ...] = (
    Row("common.seed", int, 1, ("seed",)),
    Row("common.fp16", bool, False, ("trainer.fp16",)),
    Row("common.bf16", bool, False, ("trainer.bf16",)),
    Row("common.fp16_scale_window", int | None, None, ("trainer.fp16_scale_window",)),
    Row("common.fp16_init_scale", float, 128.0, ("trainer.fp16_init_scale",)),
    Row("common.min_loss_scale", float, 1e-4, ("trainer.min_loss_scale",)),
    Row("common.log_format", str | None, None, ("trainer.log_format",)),
    Row("common.log_interval", int, 100, ("trainer.logging_steps",)),
    Row("common.log_file", str | None, None,
        why="a job logs into its own folder; choose that with hydra.run.dir"),
    Row("common.tensorboard_logdir", str | None, None,
        why="trainer.report_to=tensorboard writes curves into the folder of each job"),
    Row("common.cpu", bool, False, ("trainer.use_cpu",)),
    Row("distributed_training.find_unused_parameters", bool, False, ("trainer.ddp_find_unused_parameters",)),
    Row("distributed_training.distributed_backend", str, "nccl", ("trainer.ddp_backend",)),
    Row("optimization.max_epoch", float, 0, ("trainer.num_train_epochs",), lambda v: v if v > 0 else None),
    Row("optimization.max_update", int, 0, ("trainer.max_steps",), lambda v: v if v > 0 else None),
    Row("optimization.stop_time_hours", float, 0.0, ("trainer.stop_time_hours",)),
    Row("optimization.clip_norm", float, 0.0, ("trainer.max_grad_norm",)),
    Row("optimization.lr", FLOATS, 0.25, ("trainer.learning_rate",), _first),
    Row("optimization.sentence_avg", bool, False, ("task.*.criterion.sentence_avg",)),
    Row("optimization.update_freq", FLOATS | None, None,
        why="gradient accumulation is a task's: set task.<name>.dataset.update_freq"),
    Row("optimizer._name", str, "adam", ("trainer.optim",), lambda v: "adamw_torch" if v == "adam" else v),
    Row("optimizer.adam_betas", str | list[float], "(0.9, 0.999)", ("trainer.adam_beta1", "trainer.adam_beta2"),
        _betas),
    Row("optimizer.adam_eps", float, 1e-8, ("trainer.adam_epsilon",)),
    Row("optimizer.weight_decay", float, 0.0, ("trainer.weight_decay",)),
    Row("lr_scheduler._name", str, "ofa_polynomial_decay", ("trainer.lr_scheduler_type",),
        lambda v: "polynomial" if v == "ofa_polynomial_decay" else v),
    Row("lr_scheduler.warmup_ratio", float, 0.0, ("trainer.warmup_steps",), lambda v: v if v > 0 else None),
    Row("lr_scheduler.warmup_updates", int, 0, ("trainer.warmup_steps",), lambda v: v if v > 0 else None),
    Row("lr_scheduler.end_learning_rate", float, 0.0, ("trainer.lr_scheduler_kwargs.lr_end",)),
    Row("lr_scheduler.power", float, 1.0, ("trainer.lr_scheduler_kwargs.power",)),
    Row("lr_scheduler.total_num_update", float, 1e6,
        why="the schedule ends where the training does: set optimization.max_update"),
    Row("dataset.micro_batch_size", int, 32, ("trainer.per_device_train_batch_size",)),
    Row("dataset.micro_valid_batch_size", int | None, None, ("trainer.per_device_eval_batch_size",)),
    Row("dataset.validate_interval", int, 1, ("trainer.eval_strategy",), lambda v: "epoch",
        why=EVERY.format("validate")),
    Row("dataset.validate_interval_updates", int, 0, ("trainer.eval_strategy", "trainer.eval_steps"), _every),
    Row("dataset.validate_after_updates", int, 0, ("trainer.eval_delay",)),
    Row("dataset.max_valid_steps", int | None, None, ("trainer.max_valid_steps",)),
    Row("dataset.disable_validation", bool, False, ("trainer.eval_strategy",), lambda v: "no" if v else None),
    Row("checkpoint.save_dir", str, "checkpoints", ("trainer.save_dir",)),
    Row("checkpoint.restore_file", str, "checkpoint_last.pt",
        why="start from a finished job's checkpoint folder with the top-level key init_from"),
    Row("checkpoint.finetune_from_model", str | None, None, ("init_from",)),
    Row("checkpoint.reset_optimizer", bool, False, ignored=True, why=FRESH),
    Row("checkpoint.reset_lr_scheduler", bool, False, ignored=True, why=FRESH),
    Row("checkpoint.reset_meters", bool, False, ignored=True, why=FRESH),
    Row("checkpoint.reset_dataloader", bool, False, ignored=True, why=FRESH),
    Row("checkpoint.save_interval", int, 1, ("trainer.save_strategy",), lambda v: "epoch",
        why=EVERY.format("save")),
    Row("checkpoint.save_interval_updates", int, 0, ("trainer.save_strategy", "trainer.save_steps"), _every),
    Row("checkpoint.validate_interval_updates", int, 0, ("trainer.eval_strategy", "trainer.eval_steps"),
        _every),
    Row("checkpoint.keep_interval_updates", int, -1, ("trainer.save_total_limit",), _limit),
    Row("checkpoint.keep_last_epochs", int, -1, ("trainer.save_total_limit",), _limit),
    Row("checkpoint.keep_best_checkpoints", int, -1,
        why="checkpoint/ is the best one already where best_checkpoint_metric is set"),
    Row("checkpoint.no_epoch_checkpoints", bool, False, ignored=True,
        why="none are kept unless save_interval asks for them"),
    Row("checkpoint.no_save", bool, False,
        why="the next task of a chain starts from this job's checkpoint"),
    Row("checkpoint.best_checkpoint_metric", str, "loss", ("trainer.metric_for_best_model",)),
    Row("checkpoint.maximize_best_checkpoint_metric", bool | None, None, ("trainer.greater_is_better",)),
    Row("checkpoint.patience", int, -1, ("trainer.patience",)),
    Row("ema.store_ema", bool, False, why="the app keeps no moving average of the weights"),
    Row("ema.ema_decay", float, 0.9999, ignored=True, why="of store_ema, which is off"),
    Row("ema.ema_start_update", int, 0, ignored=True, why="of store_ema, which is off"),
)
# fmt: on
BY_KEY: Mapping[str, Row] = {row.key: row for row in ROWS}
# Where the second one is set, it takes the place of the first.
INSTEAD = (
    ("dataset.validate_interval", "dataset.validate_interval_updates"),
    ("dataset.validate_interval", "checkpoint.validate_interval_updates"),
    ("checkpoint.save_interval", "checkpoint.save_interval_updates"),
)


def _section(name: str) -> type:
    fields = []
    for row in ROWS:
        section, _, key = row.key.partition(".")
        if section == name:
            why = "" if row.to or row.ignored else row.why
            told = "; ".join(filter(None, (", ".join(row.to), row.why)))
            made = option(row.default, told, key=key, refused=why)
            fields.append(("kind" if key == "_name" else key, row.type, made))
    return make_dataclass(f"OFASys_{name}", fields, frozen=True)


# Top-level section -> its options, all of them OFASys's.
OFASYS: Mapping[str, type] = {
    name: _section(name) for name in dict.fromkeys(row.key.partition(".")[0] for row in ROWS)
}

# arch -> width, layers of the encoder and of the decoder, heads, width inside a layer's MLP
ARCHITECTURES: Mapping[str, tuple[int, int, int, int, int]] = {
    "tiny": (256, 4, 4, 4, 1024),
    "medium": (512, 4, 4, 8, 2048),
    "base": (768, 6, 6, 12, 3072),
    "large": (1024, 12, 12, 16, 4096),
    "huge": (1280, 24, 12, 16, 5120),
}
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_decoder_layers",
    "num_attention_heads",
    "intermediate_size",
)
# What the encoder-decoder of this app (T5) is; other values are refused.
IS_SO: Mapping[str, Any] = {
    "share_decoder_input_output_embed": True,
    "share_all_embeddings": True,
    "freeze_encoder_embedding": False,
    "freeze_decoder_embedding": False,
    "encode_drop_path_rate": 0.0,
    "decode_drop_path_rate": 0.0,
    "encoder.normalize_before": True,
    "decoder.normalize_before": True,
}
# Details of OFASys's own network that this one does otherwise: taken, with a warning.
OTHERWISE: Mapping[str, str] = {
    "max_source_positions": "positions are relative and have no last one",
    "max_target_positions": "positions are relative and have no last one",
    "encoder.learned_pos": "positions are relative, and learned",
    "decoder.learned_pos": "positions are relative, and learned",
    "no_scale_embedding": "embeddings are not scaled",
    "layernorm_embedding": "embeddings are not normalised",
    "activation_fn": "the activation is T5's",
    "attention_dropout": "`dropout` is that of attention, too",
    "adaptor": "images are read as patches, without a ResNet",
}


# What may stand in `model` of OFASys's: `encoder` and `decoder` hold normalize_before and learned_pos.
MODEL_KEYS: Mapping[str, Any] = {
    **dict.fromkeys(("adaptor", "encoder", "decoder"), dict[str, Any]),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), int),
    **dict.fromkeys(("encode_drop_path_rate", "decode_drop_path_rate", "attention_dropout"), float),
    **dict.fromkeys(("share_decoder_input_output_embed", "share_all_embeddings"), bool),
    **dict.fromkeys(("freeze_encoder_embedding", "freeze_decoder_embedding"), bool),
    **dict.fromkeys(("no_scale_embedding", "layernorm_embedding"), bool),
    "activation_fn": str,
}


def _said(name: str) -> str:
    only = f"only {json.dumps(IS_SO[name])}" if name in IS_SO else "normalize_before, learned_pos"
    return f"OFASys's; {OTHERWISE.get(name, only)}"


ModelKeys = make_dataclass(
    "ModelKeys",
    [
        ("arch", str | None, option(None, f"sizes by name: {', '.join(ARCHITECTURES)}")),
        *((name, kind | None, option(None, _said(name))) for name, kind in MODEL_KEYS.items()),
    ],
    bases=(ModelSettings,),
    namespace={"__doc__": "What may stand in `model`: the app's options, and OFASys's."},
    frozen=True,
)


# -- translating ------------------------------------------------------------------------------------


def translate(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, resolved, with OFASys's keys turned into ours. Raises SettingsErrors."""
    problems: list[Problem] = []
    given = {
        f"{section}.{name}": value
        for section in OFASYS
        for name, value in (values.get(section) or {}).items()
    }
    ours: dict[str, tuple[str, Any]] = {}  # our key -> who said so first, and what
    for key, value in given.items():
        if any((given.get(other) or 0) > 0 for one, other in INSTEAD if one == key):
            continue
        try:
            found = _wanted(key, value)
        except SettingsErrors as error:
            problems += error.problems
            continue
        for target, wanted in found:
            said = _select(values, target)
            first = ours.setdefault(target, (target, said) if said is not None else (key, wanted))
            if first[1] != wanted or isinstance(first[1], bool) != isinstance(wanted, bool):
                text = f"{key}={shown(value)} and {first[0]}={shown(first[1])} say two things about {target}; "
                problems.append(Problem(key, text + "remove one of them"))
    limits = ("optimization.max_epoch", "optimization.max_update")
    if all(given.get(key) == 0 for key in limits):
        text = f"{limits[0]}=0 and {limits[1]}=0: training would never end; set one"
        problems.append(Problem(limits[0], text))
    made = {key: value for key, value in values.items() if key not in OFASYS}
    made["model"] = _model(values.get("model") or {}, problems)
    if problems:
        raise SettingsErrors(problems)
    for target, (_, wanted) in ours.items():
        made = _put(made, target.split("."), wanted)
    if "lr_scheduler" in values:  # where OFASys's schedule ends; transformers' ends at 1e-7
        trainer = made["trainer"]
        if trainer.get("lr_scheduler_type") == "polynomial":
            kwargs = {"lr_end": 0.0, "power": 1.0, **(trainer.get("lr_scheduler_kwargs") or {})}
            made = _put(made, ["trainer", "lr_scheduler_kwargs"], kwargs)
    return made


def _wanted(key: str, value: Any) -> list[tuple[str, Any]]:
    """Our keys and values for one of OFASys's. Raises SettingsErrors."""

    def wrong(text: str) -> SettingsErrors:
        return SettingsErrors([Problem(key, text)])

    row = BY_KEY.get(key)
    if row is None:
        raise wrong(f"{key}={shown(value)}: there is no option '{key}'{nearest(key, BY_KEY)}")
    value = read_value(row.type, value, key)
    if row.why and not row.ignored and value != row.default:
        only = "only " if row.to else ""
        raise wrong(f"{key}={shown(value)} is not taken over: {only}{row.why}")
    try:
        wanted = row.convert(value)
    except (ValueError, SyntaxError, TypeError, IndexError) as error:
        raise wrong(f"{key}={value!r} cannot be read; like {row.default}") from error
    if wanted is None or not row.to:
        return []
    return list(zip(row.to, wanted, strict=True)) if len(row.to) > 1 else [(row.to[0], wanted)]


def _select(values: Mapping[str, Any], key: str) -> Any:
    node: Any = values
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return None
        node = node[name]
    return node


def _put(values: Mapping[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    """A copy with `value` at `keys`; below `*` it is a default, and what is there stays."""
    name, *rest = keys
    if name == "*":
        return {
            key: _put(child, rest, value) if _select(child, ".".join(rest)) is None else child
            for key, child in values.items()
        }
    below = _put(values.get(name) or {}, rest, value) if rest else value
    return {**values, name: below}


def _model(given: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """The section `model` by our names: sizes from `arch`, unless they are given."""

    def wrong(key: str, value: Any, text: str) -> None:
        problems.append(Problem(f"model.{key}", f"model.{key}={shown(value)}: {text}"))

    made = {key: value for key, value in given.items() if key not in (*MODEL_KEYS, "arch")}
    arch = given.get("arch")
    if arch is not None and arch not in ARCHITECTURES:
        near = nearest(str(arch), ARCHITECTURES)
        wrong("arch", arch, f"unknown; there are {', '.join(ARCHITECTURES)}{near}")
    elif arch is not None:
        made = {**dict(zip(SIZES, ARCHITECTURES[arch], strict=True)), **made}
    details: dict[str, Any] = {}  # OFASys's that are set, `encoder` and `decoder` flat
    for key in sorted(MODEL_KEYS.keys() & given.keys()):
        if key in ("encoder", "decoder"):
            details |= {f"{key}.{name}": value for name, value in (given[key] or {}).items()}
        elif given[key] is not None:
            details[key] = given[key]
    for key, value in details.items():
        if key in IS_SO and value != IS_SO[key]:
            wrong(key, value, f"this app's model has {shown(IS_SO[key])} only")
        elif key in OTHERWISE:
            log.warning("model.%s=%s has no effect: %s", key, value, OTHERWISE[key])
        elif key not in IS_SO:
            near = nearest(key, [*IS_SO, *OTHERWISE])
            wrong(key, value, f"there is no option '{key}'{near}")
    return made


# -- the documentation ------------------------------------------------------------------------------


def table() -> str:
    """ROWS as the table of docs/configuration.md."""
    lines = ["| OFASys | its default | here |", "|---|---|---|"]
    for row in ROWS:
        here = " and ".join(f"`{key}`" for key in row.to)
        if not row.to:
            here = "accepted" if row.ignored else f"only {json.dumps(row.default)}"
        here += f"; {row.why}" if row.why else ""
        lines.append(f"| `{row.key}` | {json.dumps(row.default)} | {here} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
