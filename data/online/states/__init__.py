"""How the events of one entity become one packed value, and how features are finished from it."""
