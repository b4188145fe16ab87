"""How Horovod gets here: built from its own source distribution, because nothing published builds with this torch."""
