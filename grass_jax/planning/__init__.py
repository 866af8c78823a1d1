"""What a step costs: on known chips, by the compiled program, before it is run."""
