"""How Towerline gets better: search spaces and the hyperparameter search on Ray Tune with Optuna."""
