"""What Towerline learns from: the event contract, its sources, validation, features and stores."""
