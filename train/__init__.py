"""How Towerline learns: models, the training loop, Horovod on Ray Train, evaluation and the registry."""
