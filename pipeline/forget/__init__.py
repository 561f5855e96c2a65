"""Photos are forgotten: every trace of their rows is removed from an output, and they are not looked at again."""
