"""The arguments of transformers.TrainingArguments that the section `trainer` takes.

Written by `python -m train.config.hf_names` with transformers 5.23.0; not to be edited.
"""

# ruff: noqa: E501
# fmt: off

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from train.config.typed import option

DebugOption = Literal['underflow_overflow', 'tpu_metrics_debug']
IntervalStrategy = Literal['no', 'steps', 'epoch']
OptimizerNames = Literal['adamw_torch', 'adamw_torch_fused', 'adamw_torch_xla', 'adamw_torch_npu_fused', 'adafactor', 'adamw_anyprecision', 'adamw_torch_4bit', 'adamw_torch_8bit', 'ademamix', 'sgd', 'adagrad', 'adamw_bnb_8bit', 'adamw_8bit', 'ademamix_8bit', 'lion_8bit', 'lion_32bit', 'paged_adamw_32bit', 'paged_adamw_8bit', 'paged_ademamix_32bit', 'paged_ademamix_8bit', 'paged_lion_32bit', 'paged_lion_8bit', 'rmsprop', 'rmsprop_bnb', 'rmsprop_bnb_8bit', 'rmsprop_bnb_32bit', 'galore_adamw', 'galore_adamw_8bit', 'galore_adafactor', 'galore_adamw_layerwise', 'galore_adamw_8bit_layerwise', 'galore_adafactor_layerwise', 'lomo', 'adalomo', 'grokadamw', 'schedule_free_radam', 'schedule_free_adamw', 'schedule_free_sgd', 'apollo_adamw', 'apollo_adamw_layerwise', 'stable_adamw']
SaveStrategy = Literal['no', 'steps', 'epoch', 'best']
SchedulerType = Literal['linear', 'cosine', 'cosine_with_restarts', 'polynomial', 'constant', 'constant_with_warmup', 'inverse_sqrt', 'reduce_lr_on_plateau', 'cosine_with_min_lr', 'cosine_warmup_with_min_lr', 'warmup_stable_decay', 'greedy']


@dataclass(frozen=True)
class HFArguments:
    """By their own names, with their own defaults."""

    per_device_train_batch_size: int = option(8, "The batch size per device for training")
    num_train_epochs: float = option(3.0, "Total number of training epochs to perform")
    max_steps: int = option(-1, "Overrides `num_train_epochs`")
    learning_rate: float = option(5e-05, "The initial learning rate for the optimizer")
    lr_scheduler_type: SchedulerType = option('linear', "The learning rate scheduler type to use")
    lr_scheduler_kwargs: dict[str, Any] | str | None = option(None, "The extra arguments for the lr_scheduler")
    warmup_steps: float = option(0, "Number of steps for a linear warmup from 0 to `learning_rate`")
    optim: OptimizerNames = option('adamw_torch_fused', "The optimizer to use")
    optim_args: str | None = option(None, "Optional arguments supplied to optimizers such as AnyPrecisionAdamW, AdEMAMix, and GaLore")
    weight_decay: float = option(0.0, "Weight decay coefficient applied by the optimizer")
    adam_beta1: float = option(0.9, "The exponential decay rate for the first moment estimates (momentum) in Adam-based optimizers")
    adam_beta2: float = option(0.999, "The exponential decay rate for the second moment estimates (variance) in Adam-based optimizers")
    adam_epsilon: float = option(1e-08, "Epsilon value for numerical stability in Adam-based optimizers")
    optim_target_modules: str | list[str] | None = option(None, "The target modules to optimize")
    gradient_accumulation_steps: int = option(1, "Number of update steps to accumulate gradients before performing a backward/update pass")
    average_tokens_across_devices: bool = option(True, "Whether or not to average tokens across devices")
    max_grad_norm: float = option(1.0, "Maximum gradient norm for gradient clipping")
    bf16: bool = option(False, "Enable bfloat16 (BF16) mixed precision training")
    fp16: bool = option(False, "Enable float16 (FP16) mixed precision training")
    bf16_full_eval: bool = option(False, "Use full BF16 precision for evaluation (not just mixed precision)")
    fp16_full_eval: bool = option(False, "Use full FP16 precision for evaluation (not just mixed precision)")
    tf32: bool | None = option(None, "Enable TF32 mode on Ampere and newer GPUs")
    activation_checkpointing: bool | None = option(None, "Enable activation checkpointing to trade compute for memory")
    activation_checkpointing_kwargs: dict[str, Any] | str | None = option(None, "Keyword arguments passed to `activation_checkpointing_enable()`")
    torch_compile: bool = option(False, "Compile the model using `torch.compile()` for faster training")
    torch_compile_backend: str | None = option(None, "Backend for `torch.compile()`")
    torch_compile_mode: str | None = option(None, "Compilation mode for `torch.compile()`")
    use_cache: bool = option(False, "Whether or not to use cache for the model For training, this is usually not needed apart from some PEFT methods that uses `past_key_values`")
    neftune_noise_alpha: float | None = option(None, "If not None, activates NEFTune noise embeddings")
    torch_empty_cache_steps: int | None = option(None, "Number of steps to wait before calling `torch.<device>.empty_cache()`")
    auto_find_batch_size: bool = option(False, "Whether to find a training batch size that will fit into memory automatically through exponential decay, avoiding CUDA Out-of-Memory errors")
    logging_strategy: IntervalStrategy = option('steps', "The logging strategy to adopt during training")
    logging_steps: float = option(500, "Log every X updates steps")
    logging_first_step: bool = option(False, "Whether to log the first `global_step` or not")
    log_on_each_node: bool = option(True, "When doing a multinode distributed training, whether to log once per node or just once on the main node")
    logging_nan_inf_filter: bool = option(True, "Filter out NaN and Inf training and evaluation losses when logging")
    include_num_input_tokens_seen: str | bool = option('no', "Whether to track the number of input tokens seen")
    log_level: str = option('passive', "Logging level for the main process")
    log_level_replica: str = option('warning', "Logging level for replica processes in distributed training")
    report_to: str | list[str] | None = option('none', "The list of integrations to report the results and logs to")
    eval_strategy: IntervalStrategy = option('no', "When to run evaluation")
    eval_steps: float | None = option(None, "Number of update steps between evaluations if `eval_strategy='steps'`")
    eval_delay: float = option(0, "Number of epochs or steps to wait for before the first evaluation can be performed, depending on the eval_strategy")
    per_device_eval_batch_size: int = option(8, "The batch size per device (GPU/TPU core/CPU) for evaluation")
    eval_on_start: bool = option(False, "Whether to run through the entire `evaluation` step at the very beginning of training as a sanity check")
    save_strategy: SaveStrategy = option('steps', "The checkpoint save strategy to adopt during training")
    save_steps: float = option(500, "Save checkpoint every X updates steps")
    save_total_limit: int | None = option(None, "Maximum number of checkpoints to keep")
    metric_for_best_model: str | None = option(None, "Metric to use for comparing models when `load_best_model_at_end=True`")
    greater_is_better: bool | None = option(None, "Whether higher metric values are better")
    full_determinism: bool = option(False, "Whether to call enable_full_determinism instead of set_seed for reproducibility in distributed training")
    use_cpu: bool = option(False, "Whether or not to use cpu")
    accelerator_config: dict[str, Any] | str | None = option(None, "Configuration for the internal Accelerate integration")
    dataloader_drop_last: bool = option(False, "Drop the last incomplete batch if it is not divisible by the batch size")
    dataloader_num_workers: int = option(0, "Number of subprocesses to use for data loading (PyTorch only)")
    dataloader_pin_memory: bool = option(True, "Whether or not to pin memory for DataLoader")
    dataloader_persistent_workers: bool = option(False, "If True, the data loader will not shut down the worker processes after a dataset has been consumed once")
    dataloader_prefetch_factor: int | None = option(None, "Number of batches loaded in advance by each worker")
    dataloader_multiprocessing_context: str | None = option(None, "The multiprocessing start method to use for data loading workers ('fork', 'spawn', or 'forkserver')")
    dataloader_in_order: bool = option(True, "If True (default), the data loader yields batches in the order workers were dispatched")
    train_sampling_strategy: str = option('random', "Sampler for training")
    ddp_find_unused_parameters: bool | None = option(None, "When using distributed training, the value of the flag `find_unused_parameters` passed to `DistributedDataParallel`")
    ddp_bucket_cap_mb: int | None = option(None, "When using distributed training, the value of the flag `bucket_cap_mb` passed to `DistributedDataParallel`")
    ddp_broadcast_buffers: bool | None = option(None, "When using distributed training, the value of the flag `broadcast_buffers` passed to `DistributedDataParallel`")
    ddp_static_graph: bool | None = option(None, "When using distributed training, the value of the flag `static_graph` passed to `DistributedDataParallel`")
    ddp_backend: str | None = option(None, "The backend to use for distributed training")
    ddp_timeout: int = option(1800, "The timeout for `torch.distributed.init_process_group` calls (in seconds)")
    debug: list[DebugOption] = option('', "Enable one or more debug features")
    skip_memory_metrics: bool = option(True, "Whether to skip adding memory profiler reports to metrics")
