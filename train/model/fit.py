"""Sizes on which a model and its tasks must agree: of images, of texts. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from train.config.sections import ModelSettings
from train.config.text_data import HEADED, SHIPPED
from train.config.typed import SettingsError
from train.data.instruction import Slot
from train.data.task_plan import TaskPlan
from train.model.stored import kind_of


def images(plan: TaskPlan) -> Iterator[tuple[Slot, int, int]]:
    """IMAGE slots of a task, with side (pixels) and channels of their images.

    Classes with a head of their own have images of any size.
    """
    if plan.task.kind in HEADED:
        return
    for slot in (s for t in plan.templates for s in t.slots if s.type == "IMAGE"):
        if slot.preprocess == "digits":
            yield slot, 8, 1
        else:
            yield slot, plan.images[slot.preprocess].patch_image_size, 3


def refuse_images(plans: Iterable[TaskPlan], kind: str) -> None:
    """Raises SettingsError where a task has an image, for models that read text alone."""
    for plan in plans:
        for slot, _, _ in images(plan):
            raise SettingsError(
                f"task.{plan.name}: {slot} is an image, and model={kind} reads text alone. "
                "model=unify_tiny reads both, with model.tokenizer by the tokenizer of a folder"
            )


def refuse_unread(plan: TaskPlan, able: str) -> None:
    """Raises SettingsError for text before the answer and dropped tokens, which only `able` models take."""
    unread = [s for t in plan.templates for s in t.side("decoder") if s is not t.target]
    if unread or plan.loss.drop_worst_ratio:
        what = f"'{unread[0]}' before the answer" if unread else "criterion.drop_worst_ratio"
        raise SettingsError(f"task.{plan.name}: {what} needs {able}")


def fitted(model: ModelSettings, plans: Iterable[TaskPlan]) -> ModelSettings:
    """`model` with the size of images, or the head and its labels, that it leaves to its tasks.

    Raises SettingsError where a task's images have another size.
    """
    plans = list(plans)
    if model.kind == "headed":
        return _with_head(model, plans[0])
    found = [(plan, *one) for plan in plans for one in images(plan)]
    for _, _, side, channels in found[:1]:
        model = replace(
            model, image_size=model.image_size or side, num_channels=model.num_channels or channels
        )
    for plan, slot, side, channels in found:
        where = f"task.{plan.name}"
        if side != model.side:
            key = f"{where}.preprocess.{slot.preprocess}.patch_image_size="
            raise SettingsError(
                f"{where}: {slot} gives images of {'' if slot.preprocess == 'digits' else key}{side} "
                f"pixels, but model.image_size={model.side}; make them equal"
            )
        if channels != model.channels:
            raise SettingsError(
                f"{where}: {slot} gives images of {channels} channels, but "
                f"model.num_channels={model.channels}; set it to {channels}"
            )
    return model


def _with_head(model: ModelSettings, plan: TaskPlan) -> ModelSettings:
    head, config = plan.task.kind, dict(model.config)
    if plan.answers is not None:
        config["id2label"] = {number: label for label, number in plan.answers.items()}
    if model.path is not None:
        return replace(model, head=head, config=config)
    tiny = SHIPPED / "models" / ("detr_tiny" if head == "object_detection" else "bert_tiny")
    return replace(model, head=head, config=config, path=str(tiny), weights="random")


def check_loaded(model: Any, settings: ModelSettings, plans: Iterable[TaskPlan]) -> None:
    """Refuse images and texts of another size than a built or loaded model is made for.

    Raises SettingsError.
    """
    side = getattr(model.config, "image_size", None)
    for plan in plans:
        if any(images(plan)) and side not in (None, settings.side):
            raise SettingsError(
                f"model.image_size={settings.side}: the model of the chain in init_from was made for "
                f"images of {side} pixels. Set preprocess.<name>.patch_image_size={side} in its tasks"
            )
        if plan.task.kind in HEADED and plan.answers is not None:
            _check_labels(model, plan)
        if plan.task.kind != "object_detection":
            _check_lengths(model, plan)


def _check_labels(model: Any, plan: TaskPlan) -> None:
    own = [model.config.id2label[i] for i in sorted(model.config.id2label)]
    if own != list(plan.answers or ()):
        raise SettingsError(
            f"task.{plan.name}: has the labels {', '.join(plan.answers or ())}, and the head of the model of "
            f"the chain in init_from has {', '.join(own)}. Name the labels of all tasks of a chain in "
            "preprocess.text.ans2label of each"
        )


def _check_lengths(model: Any, plan: TaskPlan) -> None:
    """Refuse texts that a model with learned positions, or made for so many, has no positions for."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return
    limit -= _unused_positions(model)
    kind, where = kind_of(model.config.to_dict()), f"task.{plan.name}"
    source, target = plan.max_src_length, plan.max_tgt_length
    if plan.task.kind in HEADED:
        if source > limit:  # marks are counted
            raise SettingsError(
                f"{where}.max_src_length={source}: the model has positions for {limit} tokens; that is "
                "the most"
            )
    elif kind == "causal":
        if source + target >= limit:
            raise SettingsError(
                f"{where}.max_src_length={source}, max_tgt_length={target}: the model has positions for "
                f"{limit} ids, and both stand in one sequence with the begin mark; together {limit - 1} "
                "is the most"
            )
    else:
        answered = {} if kind == "encoder" else {"max_tgt_length": target}
        for key, length in {"max_src_length": source, **answered}.items():
            if length + 1 > limit:  # with the begin mark
                raise SettingsError(
                    f"{where}.{key}={length}: the model has positions for {limit} ids, one of them for "
                    f"the begin mark; {limit - 1} is the most"
                )


def _unused_positions(model: Any) -> int:
    """Rows of learned positions that no id gets: RoBERTa's begin behind that of the padding."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(padding) + 1
    return 0
