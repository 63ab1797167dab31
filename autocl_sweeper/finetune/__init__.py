"""`autocl finetune`: AutoDL Finetuner's command for plain scripts, on top of the sweeper."""
