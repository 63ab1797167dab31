"""One task on a model with a head of its own, a file a class: `MEETING`, made of plan and tokenizer."""
