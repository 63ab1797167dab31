"""Arguments of transformers.TrainingArguments that are no options of the app, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping

# What to do instead -> the arguments it is said of.
INSTEAD: Mapping[str, str] = {
    "Hydra's hydra.run.dir is the folder of a job": "output_dir",
    "to change the randomness of a job set the top-level key `seed`": "seed data_seed",
    "all a job reports is in its log and in all_results.json": "disable_tqdm",
    "a run has the name of its job's folder, and belongs to its sweep": "run_name",
    "trainer.report_to knows no trackio": "project trackio_space_id trackio_bucket_id"
    " trackio_static_space_id",
    "the best weights come back whenever metric_for_best_model is set": "load_best_model_at_end",
    "jobs keep everything on this machine": "push_to_hub hub_token hub_private_repo hub_model_id"
    " hub_strategy hub_always_push hub_revision",
    "the app's rows have no unused columns": "remove_unused_columns",
    "the app's rows have their labels": "label_names",
    "the app's rows have no column of lengths": "length_column_name",
    "set label_smoothing of a task's criterion label_smoothed_cross_entropy": "label_smoothing_factor",
    "the section `evaluation` of a task says what is measured": "prediction_loss_only do_eval do_predict"
    " include_for_metrics batch_eval_metrics eval_do_concat_batches eval_use_gather_object"
    " eval_accumulation_steps",
    "a job always trains": "do_train",
    "start from a finished job with the top-level key `init_from`": "resume_from_checkpoint",
    "a job is not resumed but run again": "ignore_data_skip restore_callback_states_from_checkpoint"
    " enable_jit_checkpoint",
    "a job keeps its checkpoint in checkpoint/ of its own folder, or in trainer.save_dir": ""
    "save_on_each_node save_only_model",
    "the section `env` says which processes train together": "local_rank fsdp fsdp_config deepspeed"
    " parallelism_config",
    "the app's models are no language models that liger knows": "use_liger_kernel liger_kernel_config",
    "its name is activation_checkpointing now": "gradient_checkpointing",
    "its name is activation_checkpointing_kwargs now": "gradient_checkpointing_kwargs",
}
REFUSED: Mapping[str, str] = {
    name: instead for instead, names in INSTEAD.items() for name in names.split()
}
