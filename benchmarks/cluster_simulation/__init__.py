"""A simulation of 10 to 1,000 nodes by discrete events, for docs/scaling.md: which routing finds cached prefixes."""
