"""The command `gradstep` and all that it shows."""
