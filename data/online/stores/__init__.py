"""Where the states of entities are kept: each module speaks to one kind of store."""
