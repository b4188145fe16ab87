"""What answers: a variant, and the items that its data set has got since the variant was trained.

Item codes are dense, so all who work on one batch must mean the same items by them. The edition, which every batch is
sent to a remote stage with, says which: its new items by their digest (`serve.new_items`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Edition:
    """A variant with new items, or with none."""

    variant: str
    new_items: str = ""
    """Digest of the new items; empty if there are none."""

    def __str__(self) -> str:
        return f"{self.variant} with new items {self.new_items}" if self.new_items else self.variant
