"""Features as of any past moment; `point_in_time` puts the others together."""
