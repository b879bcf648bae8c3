"""Tests; a package, so that they can share the provider simulators."""
