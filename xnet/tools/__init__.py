"""What stands on the library and nothing in it needs: command, fingerprints, pictures, figures."""
