"""Arguments of transformers.TrainingArguments that are no options of the app, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping

SEED = "to change the randomness of a job set the top-level key `seed`"
KEPT = "a job keeps its checkpoint in checkpoint/ of its own folder, or in trainer.save_dir"
HUB = "jobs keep everything on this machine"
SHOWN = "all a job reports is in its log and in all_results.json"
LEASED = "the section `env` says which processes train together"
SCORED = "the section `evaluation` of a task says what is measured"
REFUSED: Mapping[str, str] = {
    "output_dir": "Hydra's hydra.run.dir is the folder of a job",
    "seed": SEED,
    "data_seed": SEED,
    "report_to": SHOWN,
    "load_best_model_at_end": "the best weights come back whenever metric_for_best_model is set",
    "disable_tqdm": SHOWN,
    "run_name": SHOWN,
    "project": SHOWN,
    "trackio_space_id": SHOWN,
    "trackio_bucket_id": SHOWN,
    "trackio_static_space_id": SHOWN,
    "push_to_hub": HUB,
    "hub_token": HUB,
    "hub_private_repo": HUB,
    "hub_model_id": HUB,
    "hub_strategy": HUB,
    "hub_always_push": HUB,
    "hub_revision": HUB,
    "remove_unused_columns": "the app's rows have no unused columns",
    "label_names": "the app's rows have their labels",
    "length_column_name": "the app's rows have no column of lengths",
    "label_smoothing_factor": "set label_smoothing of a task's criterion "
    "label_smoothed_cross_entropy",
    "prediction_loss_only": SCORED,
    "include_for_metrics": SCORED,
    "batch_eval_metrics": SCORED,
    "eval_do_concat_batches": SCORED,
    "eval_use_gather_object": SCORED,
    "eval_accumulation_steps": SCORED,
    "do_train": "a job always trains",
    "do_eval": SCORED,
    "do_predict": SCORED,
    "resume_from_checkpoint": "start from a finished job with the top-level key `init_from`",
    "ignore_data_skip": "a job is not resumed but run again",
    "restore_callback_states_from_checkpoint": "a job is not resumed but run again",
    "enable_jit_checkpoint": "a job is not resumed but run again",
    "save_on_each_node": KEPT,
    "save_only_model": KEPT,
    "local_rank": LEASED,
    "fsdp": LEASED,
    "fsdp_config": LEASED,
    "deepspeed": LEASED,
    "parallelism_config": LEASED,
    "use_liger_kernel": "the app's models are no language models that liger knows",
    "liger_kernel_config": "the app's models are no language models that liger knows",
    "gradient_checkpointing": "its name is activation_checkpointing now",
    "gradient_checkpointing_kwargs": "its name is activation_checkpointing_kwargs now",
}
