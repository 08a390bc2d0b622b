"""One file per command that a person types: parse, call the room that does the work, print."""
