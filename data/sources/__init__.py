"""Where events come from: each module turns one kind of source into the tables of `data.schema`."""
