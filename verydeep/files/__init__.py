"""The disk: written whole or not at all, found, locked, hashed, cached."""
