"""How Towerline answers: HTTP models, stages, the composed graph and its Ray Serve deployments."""
