"""Livepeer's trickle protocol: media in numbered HTTP bodies (go-livepeer's trickle/README.md)."""
