"""How fast and how large: measurements side by side with what one would otherwise use, in one run."""
