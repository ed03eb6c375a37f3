"""The options of a training: their schema, their ranges, and the named methods and recipes."""
