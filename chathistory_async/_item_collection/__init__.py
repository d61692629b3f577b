"""The item-collection layout: one item, a record, for each append."""
