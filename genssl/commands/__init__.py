"""The commands, thin: parse, one library call, render."""
