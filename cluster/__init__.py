"""Where Towerline runs: settings, the Ray session, pinned assets and the local cluster."""
