"""What a person types: thin commands that parse, call and print."""
