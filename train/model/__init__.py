"""Model families, one file each, behind the protocol of `train.model.family`."""
