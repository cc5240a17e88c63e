"""Destinations: where objects go."""
