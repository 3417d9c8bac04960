"""The command line: one file a command. Nothing outside this package prints or exits."""
