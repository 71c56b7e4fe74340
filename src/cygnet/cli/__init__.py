"""The cygnet command: argv to one call per verb."""
