"""Tests against released versions of packages, each in an environment of its own. Knows nothing of the command line."""
