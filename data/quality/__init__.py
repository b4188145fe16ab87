"""What rows, tables and columns must keep, and the report of what came in."""
