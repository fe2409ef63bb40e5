"""A model over HTTP, as an API and a page, behind limits, with photos of several clients in one batch."""
