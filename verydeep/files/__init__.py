"""The disk: files written whole or not at all, looked for, locked, hashed, cached."""
