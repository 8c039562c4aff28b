"""What stands on the library and nothing in it needs: the command, fingerprints, pictures."""
