"""What AutoDL Finetuner's evaluators leave for their reader: tables, models and logs by round."""
